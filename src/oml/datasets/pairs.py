"""Pairs of embeddings or images, for models that compare two inputs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from oml.const import INDEX_KEY, PAIR_1ST_KEY, PAIR_2ND_KEY
from oml.datasets.image_files import OnUnreadable, readable_batch
from oml.datasets.list_dataset import ListDataset, TBBoxes
from oml.interfaces.datasets import IPairsDataset
from oml.transforms.images.utils import TTransforms
from oml.utils.images.images import TImReader


class EmbeddingPairsDataset(IPairsDataset):
    """``ds[i]`` holds row ``i`` of two tensors, and ``i``.

    Args:
        embeddings1, embeddings2: of one shape, an item in each row.
        pair_1st_key, pair_2nd_key, index_key: the names of an item's entries.

    Raises:
        ValueError: if the shapes differ, or are not those of rows.

    Example:
        >>> EmbeddingPairsDataset(torch.zeros(2, 3), torch.ones(2, 3))[1]["input_tensors_2"]
        tensor([1., 1., 1.])
    """

    def __init__(
        self,
        embeddings1: Float[Tensor, "pair ..."],
        embeddings2: Float[Tensor, "pair ..."],
        pair_1st_key: str = PAIR_1ST_KEY,
        pair_2nd_key: str = PAIR_2ND_KEY,
        index_key: str = INDEX_KEY,
    ) -> None:
        if embeddings1.shape != embeddings2.shape or embeddings1.ndim < 2:
            raise ValueError(
                "EmbeddingPairsDataset needs two tensors of one shape (pair, dim), got "
                f"{tuple(embeddings1.shape)} and {tuple(embeddings2.shape)}."
            )
        self.embeddings1 = embeddings1
        self.embeddings2 = embeddings2
        self.pair_1st_key = self.pairs_1st_key = pair_1st_key
        self.pair_2nd_key = self.pairs_2nd_key = pair_2nd_key
        self.index_key = index_key

    def __len__(self) -> int:
        return len(self.embeddings1)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        idx = range(len(self))[idx]
        return {
            self.pair_1st_key: self.embeddings1[idx],
            self.pair_2nd_key: self.embeddings2[idx],
            self.index_key: idx,
        }


class ImagePairsDataset(IPairsDataset):
    """``ds[i]`` holds item ``i`` of two lists of images, each a dict as that of a :class:`ListDataset`, and ``i``.

    Args:
        paths1, paths2: of the images, equally many.
        bboxes1, bboxes2: their boxes, see :class:`~oml.datasets.list_dataset.ListDataset`.
        transform, f_imread: see :class:`~oml.datasets.base.BaseDataset`.
        pair_1st_key, pair_2nd_key, index_key: the names of an item's entries.
        cache_size: bytes of decoded images to keep, half of them for each list.
        on_unreadable: see :class:`~oml.datasets.base.BaseDataset`; a pair goes if one of its images does.

    Attributes:
        dataset1, dataset2: the two lists.

    Raises:
        ValueError: for different numbers of paths.
    """

    def __init__(
        self,
        paths1: Sequence[Path | str],
        paths2: Sequence[Path | str],
        bboxes1: TBBoxes | None = None,
        bboxes2: TBBoxes | None = None,
        transform: TTransforms | None = None,
        f_imread: TImReader | None = None,
        pair_1st_key: str = PAIR_1ST_KEY,
        pair_2nd_key: str = PAIR_2ND_KEY,
        index_key: str = INDEX_KEY,
        cache_size: int | None = 0,
        on_unreadable: OnUnreadable = "raise",
    ) -> None:
        if len(paths1) != len(paths2):
            raise ValueError(f"ImagePairsDataset needs as many paths1 as paths2, got {len(paths1)} and {len(paths2)}.")
        self.dataset1, self.dataset2 = (
            ListDataset(paths, boxes, transform=transform, f_imread=f_imread, cache_size=(cache_size or 0) // 2)
            for paths, boxes in ((paths1, bboxes1), (paths2, bboxes2))
        )
        self.pair_1st_key = self.pairs_1st_key = pair_1st_key
        self.pair_2nd_key = self.pairs_2nd_key = pair_2nd_key
        self.index_key = index_key
        self._on_unreadable: OnUnreadable = on_unreadable

    def __len__(self) -> int:
        return len(self.dataset1)

    def __getitems__(self, ids: Sequence[int]) -> list[dict[str, Any]]:
        """The pairs of one batch, as a ``DataLoader`` asks for them."""
        return readable_batch(self.__getitem__, ids, self._on_unreadable)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        idx = range(len(self))[idx]
        return {
            self.pair_1st_key: self.dataset1[idx],
            self.pair_2nd_key: self.dataset2[idx],
            self.index_key: idx,
        }
