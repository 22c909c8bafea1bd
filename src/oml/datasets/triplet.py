"""Images in given triplets, for those who choose their triplets themselves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from oml.const import INDEX_KEY, INPUT_TENSORS_KEY
from oml.datasets._missing import missing_files
from oml.datasets.image_cache import pixels_of
from oml.datasets.image_files import ImageFiles, OnUnreadable, readable_batch
from oml.transforms.images.torchvision import get_normalisation_torch
from oml.transforms.images.utils import TTransforms, as_callable, get_im_reader_for_transforms
from oml.utils.images.images import TImReader

TPath = Path | str
TTriplet = tuple[TPath, TPath, TPath]
TItem = dict[str, Any]

IDS_KEY = "tri_ids"
IMAGES_KEY = "images"


class TriDataset(Dataset):
    """Triplets of images; ``ds[i]`` is a dict:

    =================  ==================================================================================
    ``input_tensors``  three tensors: anchor, positive, negative
    ``tri_ids``        their names, ``"<i>_a"``, ``"<i>_p"``, ``"<i>_n"``
    ``images``         the three images as they were read, uint8 arrays (height, width, 3)
    ``idx``            ``i``
    =================  ==================================================================================

    The first ``len(triplets)`` items are the triplets as given. The others take anchor and positive of one of them
    and another image of the list as the negative; they are drawn once, by the seed.

    Batches are made by :func:`tri_collate`.

    Args:
        triplets: paths of anchor, positive and negative.
        im_root: the folder that the paths refer to.
        transforms: see :class:`oml.datasets.base.BaseDataset`; ``None`` normalises.
        expand_ratio: drawn triplets for each given one, 0 or more; ``int((1 + expand_ratio) * len(triplets))`` in all.
        f_imread, cache_size: see :class:`oml.datasets.base.BaseDataset`.
        index_key: the name of ``idx``.
        seed: of the drawn triplets.
        on_unreadable: see :class:`oml.datasets.base.BaseDataset`; a triplet goes if one of its images does.

    Raises:
        ValueError: for no triplets, such as are not three paths, or a negative ``expand_ratio``; if there is no
            further image that could be a drawn negative.
        FileNotFoundError: if some files do not exist.
    """

    def __init__(
        self,
        triplets: Sequence[TTriplet],
        im_root: Path | str,
        transforms: TTransforms | None,
        expand_ratio: float,
        f_imread: TImReader | None = None,
        cache_size: int | None = 0,
        index_key: str = INDEX_KEY,
        seed: int = 0,
        on_unreadable: OnUnreadable = "raise",
    ) -> None:
        if not triplets or any(len(triplet) != 3 for triplet in triplets):
            raise ValueError("TriDataset needs triplets of three paths each, and one triplet or more.")
        if expand_ratio < 0:
            raise ValueError(f"TriDataset needs an expand_ratio of 0 or more, got {expand_ratio}.")
        names, ids = np.unique([str(path) for triplet in triplets for path in triplet], return_inverse=True)
        paths = [str(Path(im_root) / name) for name in names]
        if (absent := missing_files(paths)).any():
            raise FileNotFoundError(
                f"TriDataset found no file for {absent.sum()} of {len(paths)} paths, such as "
                f"{np.asarray(paths)[absent][:3].tolist()}. Check im_root: relative paths are joined to it."
            )
        given = ids.reshape(-1, 3)
        n_drawn = int((1 + expand_ratio) * len(given)) - len(given)
        self._triplets = np.concatenate([given, _drawn(given, len(names), n_drawn, seed)])
        transforms = get_normalisation_torch() if transforms is None else transforms
        f_imread = get_im_reader_for_transforms(transforms) if f_imread is None else f_imread
        self._images = ImageFiles("TriDataset", paths, None, f_imread, cache_size)
        self._apply = as_callable(transforms)
        self.index_key = index_key
        self._on_unreadable: OnUnreadable = on_unreadable

    def __len__(self) -> int:
        return len(self._triplets)

    def __getitems__(self, ids: Sequence[int]) -> list[TItem]:
        """The triplets of one batch, as a ``DataLoader`` asks for them."""
        return readable_batch(self.__getitem__, ids, self._on_unreadable)

    def __getitem__(self, idx: int) -> TItem:
        idx = range(len(self))[idx]
        images = [self._images.load(i)[0] for i in self._triplets[idx].tolist()]
        return {
            INPUT_TENSORS_KEY: tuple(self._apply(image) for image in images),
            IDS_KEY: tuple(f"{idx}_{role}" for role in "apn"),
            IMAGES_KEY: tuple(pixels_of(image) for image in images),
            self.index_key: idx,
        }


def tri_collate(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A batch of triplets, one after the other.

    Args:
        items: of a :class:`TriDataset`, their images of one size; ``tri_ids`` and ``images`` may be missing.

    Returns:
        ``input_tensors`` (3 * items, channel, height, width) in the order a, p, n, a, p, n ..., and lists
        ``tri_ids`` and ``images`` in the same order, if the items have them.

    Example:
        >>> item = {"input_tensors": (torch.zeros(3, 2, 2),) * 3, "tri_ids": ("0_a", "0_p", "0_n")}
        >>> batch = tri_collate([item, item])
        >>> batch["input_tensors"].shape, batch["tri_ids"][:3]
        (torch.Size([6, 3, 2, 2]), ['0_a', '0_p', '0_n'])
    """
    tensors: list[Tensor] = [tensor for item in items for tensor in item[INPUT_TENSORS_KEY]]
    extras = [key for key in (IDS_KEY, IMAGES_KEY) if key in items[0]]
    return {
        INPUT_TENSORS_KEY: torch.stack(tensors),
        **{key: [entry for item in items for entry in item[key]] for key in extras},
    }


def _drawn(given: np.ndarray, n_images: int, n_drawn: int, seed: int) -> np.ndarray:
    """Triplets with anchor and positive of a random given one, and any other image as the negative."""
    if n_drawn == 0:
        return given[:0]
    rng = np.random.default_rng(seed)
    pairs = given[rng.integers(len(given), size=n_drawn), :2]
    low, high = np.sort(pairs, axis=1).T
    n_others = n_images - 1 - (low != high)
    if (n_others < 1).any():
        raise ValueError("TriDataset can draw no negative: the triplets name no image besides an anchor and positive.")
    negative = rng.integers(n_others)
    negative += negative >= low  # skips the two images of the pair, one after the other
    negative += (negative >= high) & (low != high)
    return np.column_stack([pairs, negative])
