"""Re-ranking by models that look at a query and a gallery together."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from oml.const import (
    EMBEDDINGS_KEY,
    IS_GALLERY_KEY,
    IS_QUERY_KEY,
    PATHS_KEY,
    X1_KEY,
    X2_KEY,
    Y1_KEY,
    Y2_KEY,
)
from oml.functional.reranking import rerank_top
from oml.inference._batches import patient_bar
from oml.inference._pairs import CACHE_SIZE, ImageItem, score_embeddings, score_images
from oml.interfaces.models import IPairwiseModel
from oml.interfaces.retrieval import IDistancesPostprocessor
from oml.retrieval.postprocessors.base import Postprocessor
from oml.retrieval.results import RetrievalResults
from oml.transforms.images.utils import TTransforms, get_im_reader_for_transforms
from oml.utils.images.images import TImReader

_BOX_KEYS = (X1_KEY, Y1_KEY, X2_KEY, Y2_KEY)
_SORTED = 2**22  # distances at a time


class PairwisePostprocessor(Postprocessor, IDistancesPostprocessor):
    """The nearest ``top_n`` galleries of each query are put in the order of new distances, those of a pairwise model.

    The other galleries stay behind them as they were: all of a row are moved by one number, so that the first starts
    just above the re-ranked ones. So cmc@top_n and precision@top_n do not change. Equal new distances leave the order
    as it was. Every pair is compared once, and none that the query is not to find.

    Attributes:
        top_n: how many galleries of each query to re-rank; of smaller galleries, all.
        verbose: whether to show a bar.
        model: what compares pairs; pipelines move it to a device.
    """

    top_n: int  # pyright: ignore[reportIncompatibleVariableOverride] (never None here)
    verbose: bool = False
    model: IPairwiseModel

    @abstractmethod
    def inference(
        self, queries: Any, galleries: Any, ii_top: Int[Tensor, "query top"], top_n: int
    ) -> Float[Tensor, "query top"]:
        """New distances of each query and its nearest galleries.

        Args:
            queries, galleries: as :meth:`items` or the caller of :meth:`process` gives them.
            ii_top: positions in ``galleries``, nearest first; -1 where there is none, and the result does not count.
            top_n: how many there are for each query.
        """

    def items(self, data: Mapping[str, Any], ids: Int[Tensor, " item"] | None = None) -> Any:
        """What :meth:`inference` compares: the items of a data set at some positions, or all.

        Unless overridden, the entry that stands third in :attr:`needed_keys`, after those of the roles.
        """
        values = data[self.needed_keys[2]]
        if isinstance(values, np.ndarray) and values.dtype.kind in "biuf":
            values = torch.from_numpy(values)
        if ids is None:
            return values
        return values[ids.to(values.device)] if isinstance(values, Tensor) else [values[i] for i in ids.tolist()]

    def rerank(self, results: RetrievalResults, data: Mapping[str, Any]) -> RetrievalResults:
        """Results with the first ``top_n`` in their new order, and new distances; as many as before.

        Computed in this process alone, whatever others do.

        Raises:
            ValueError: ``results`` hold fewer ranks than are to be re-ranked, or the model gives numbers that are not
                finite.
        """
        width = results.retrieved_ids.shape[1]
        n = min(self.top_n, len(results.gallery_ids))
        if width < n:
            raise ValueError(
                f"{type(self).__name__} re-ranks the top {n} galleries, the results hold {width}: search with "
                f"top_k={n} or more."
            )
        top = results.retrieved_ids[:, :n]
        scores = self._scores(self.items(data, results.query_ids), self.items(data), top, results.distances.dtype)
        return results.with_ranking(*rerank_top(results.retrieved_ids, results.distances, scores))

    def process(self, distances: Float[Tensor, "query gallery"], queries: Any, galleries: Any) -> Tensor:
        """The same for a matrix of distances, infinite where a query is not to find a gallery; they stay infinite.

        Args:
            distances: of all queries and galleries.
            queries, galleries: what :meth:`inference` is to compare.

        Raises:
            ValueError: the sizes do not fit, distances are NaN, or the model gives numbers that are not finite.
        """
        if distances.shape != (len(queries), len(galleries)):
            raise ValueError(
                f"{type(self).__name__} needs the distances of {len(queries)} queries and {len(galleries)} galleries, "
                f"got {tuple(distances.shape)}."
            )
        if len(rows := (distances.isnan() | distances.isneginf()).any(dim=1).nonzero().squeeze(1)):
            raise ValueError(
                f"{type(self).__name__} needs distances, got NaN or -inf in {len(rows)} of {len(distances)} rows, such "
                f"as row {int(rows[0])}. Only inf means that the query is not to find the gallery."
            )
        # sorted twice, as all of it would take several times the memory of the distances
        n_rows = max(1, _SORTED // max(1, len(galleries)))
        tops = []
        for part in distances.split(n_rows):
            ordered, columns = part.sort(dim=1, stable=True)
            tops.append(columns.masked_fill(ordered.isinf(), -1)[:, : self.top_n])
        scores = self._scores(queries, galleries, torch.cat(tops), distances.dtype)
        new = torch.empty_like(distances)
        for part, found, out in zip(distances.split(n_rows), scores.split(n_rows), new.split(n_rows), strict=True):
            ordered, columns = part.sort(dim=1, stable=True)
            out.scatter_(1, *rerank_top(columns, ordered, found))
        return new

    def process_by_dict(self, distances: Float[Tensor, "query gallery"], data: Mapping[str, Any]) -> Tensor:
        """:meth:`process` of the queries and galleries among all items of a data set, in its order."""
        is_query, is_gallery = (torch.as_tensor(data[key]).bool() for key in self.needed_keys[:2])
        queries, galleries = (self.items(data, role.nonzero().squeeze(1)) for role in (is_query, is_gallery))
        return self.process(distances, queries, galleries)

    def _scores(self, queries: Any, galleries: Any, top: Tensor, dtype: torch.dtype) -> Tensor:
        """Of :meth:`inference`, infinite where there is no gallery."""
        is_empty = top < 0
        if is_empty.all():
            return torch.full_like(top, torch.inf, dtype=dtype)
        scores = self.inference(queries, galleries, top, top.shape[1])
        if scores.shape != top.shape:
            raise ValueError(
                f"{type(self).__name__}.inference gives {tuple(scores.shape)} numbers instead of {tuple(top.shape)}."
            )
        scores = scores.to(top.device, dtype)
        if n_bad := int((bad := ~scores.isfinite() & ~is_empty).sum()):
            row, rank = bad.nonzero()[0].tolist()
            raise ValueError(
                f"{type(self).__name__} needs finite distances of its model, got {scores[row, rank].item()} and the "
                f"like for {n_bad} of {int((~is_empty).sum())} pairs, such as query {row} and its gallery at rank "
                f"{rank}. Look at the model's weights and at what it is given; use_fp16 may be too narrow."
            )
        return scores.masked_fill(is_empty, torch.inf)


class PairwiseEmbeddingsPostprocessor(PairwisePostprocessor):
    """Re-ranks by a model of two embeddings, see :class:`PairwisePostprocessor`.

    Args:
        top_n: how many galleries of each query to re-rank, at least 2.
        pairwise_model: its ``predict`` gives distances of two batches of embeddings.
        num_workers: of no account: what is in memory takes no processes to read.
        batch_size: pairs at a time.
        verbose: show a bar.
        use_fp16: compute in float16 by autocast, on devices with units for it.
        is_query_key, is_gallery_key, embeddings_key: names of entries of the data.

    Raises:
        ValueError, TypeError: arguments are not such.

    Example:
        >>> from oml.models import LinearTrivialDistanceSiamese
        >>> model = LinearTrivialDistanceSiamese(feat_dim=1, identity_init=True)
        >>> postprocessor = PairwiseEmbeddingsPostprocessor(2, model, num_workers=0, batch_size=4)
        >>> postprocessor.process(torch.tensor([[0.5, 0.4, 0.6]]), torch.zeros(1, 1), torch.tensor([[1.0], [2], [3]]))
        tensor([[1.0000, 2.0000, 2.0000]])
    """

    def __init__(
        self,
        top_n: int,
        pairwise_model: IPairwiseModel,
        num_workers: int,
        batch_size: int,
        verbose: bool = False,
        use_fp16: bool = False,
        is_query_key: str = IS_QUERY_KEY,
        is_gallery_key: str = IS_GALLERY_KEY,
        embeddings_key: str = EMBEDDINGS_KEY,
    ) -> None:
        _check_arguments(type(self).__name__, top_n, pairwise_model, num_workers, batch_size)
        self.top_n = top_n
        self.model = pairwise_model
        self.num_workers = num_workers
        self.batch_size = batch_size
        self.verbose = verbose
        self.use_fp16 = use_fp16
        self.is_query_key = is_query_key
        self.is_gallery_key = is_gallery_key
        self.embeddings_key = embeddings_key

    @property
    def needed_keys(self) -> list[str]:
        """Names of the roles and the embeddings."""
        return [self.is_query_key, self.is_gallery_key, self.embeddings_key]

    def inference(
        self,
        queries: Tensor,
        galleries: Tensor,
        ii_top: Tensor,
        top_n: int,  # noqa: ARG002 (the width of ii_top)
    ) -> Tensor:
        """New distances, see :meth:`PairwisePostprocessor.inference`; rows are taken a batch at a time."""
        rows, ranks = (ii_top >= 0).nonzero(as_tuple=True)
        with patient_bar(_description(ii_top), self.verbose) as on_progress:
            scores = score_embeddings(
                self.model, queries, galleries, rows, ii_top[rows, ranks], batch_size=self.batch_size,
                use_fp16=self.use_fp16, on_progress=on_progress,
            )  # fmt: skip
        return _spread(scores, ii_top)


class PairwiseImagesPostprocessor(PairwisePostprocessor):
    """Re-ranks by a model of two images, see :class:`PairwisePostprocessor`.

    Boxes count: of an item with a box, the model sees what is inside. Items of :meth:`process` are paths, or pairs of a
    path and a box (x1, y1, x2, y2) or ``None``. An image is read once and kept while it will be needed again, as far as
    ``cache_size`` allows.

    Args:
        top_n: how many galleries of each query to re-rank, at least 2.
        pairwise_model: its ``predict`` gives distances of two batches of images.
        transforms: image -> tensor.
        num_workers: processes that read images.
        batch_size: pairs at a time.
        verbose: show a bar.
        use_fp16: compute in float16 by autocast, on devices with units for it.
        is_query_key, is_gallery_key, paths_key: names of entries of the data.
        f_imread: how files are read; by default as the transforms want it.
        cache_size: bytes of transformed images to keep on the model's device.

    Raises:
        ValueError, TypeError: arguments are not such.
    """

    def __init__(
        self,
        top_n: int,
        pairwise_model: IPairwiseModel,
        transforms: TTransforms,
        num_workers: int = 0,
        batch_size: int = 128,
        verbose: bool = True,
        use_fp16: bool = False,
        is_query_key: str = IS_QUERY_KEY,
        is_gallery_key: str = IS_GALLERY_KEY,
        paths_key: str = PATHS_KEY,
        *,
        f_imread: TImReader | None = None,
        cache_size: int = CACHE_SIZE,
    ) -> None:
        _check_arguments(type(self).__name__, top_n, pairwise_model, num_workers, batch_size, cache_size)
        self.top_n = top_n
        self.model = pairwise_model
        self.image_transforms = transforms
        self.num_workers = num_workers
        self.batch_size = batch_size
        self.verbose = verbose
        self.use_fp16 = use_fp16
        self.is_query_key = is_query_key
        self.is_gallery_key = is_gallery_key
        self.paths_key = paths_key
        self.f_imread = get_im_reader_for_transforms(transforms) if f_imread is None else f_imread
        self.cache_size = cache_size

    @property
    def needed_keys(self) -> list[str]:
        """Names of the roles and the paths."""
        return [self.is_query_key, self.is_gallery_key, self.paths_key]

    @property
    def optional_keys(self) -> list[str]:
        """Names of the sides of boxes."""
        return list(_BOX_KEYS)

    def items(self, data: Mapping[str, Any], ids: Tensor | None = None) -> list[ImageItem]:
        """Paths and boxes."""
        paths = data[self.paths_key]
        numbers = range(len(paths)) if ids is None else ids.tolist()
        lacking = [key for key in _BOX_KEYS if key not in data]
        if 0 < len(lacking) < len(_BOX_KEYS):
            raise ValueError(f"{type(self).__name__} needs all four sides of boxes or none, {lacking} are missing.")
        if lacking:
            return [(str(paths[i]), None) for i in numbers]
        boxes = torch.stack([torch.as_tensor(data[key], dtype=torch.float64) for key in _BOX_KEYS], dim=1)
        is_whole = boxes.isnan().all(dim=1)
        if len(rows := (boxes.isnan().any(dim=1) & ~is_whole).nonzero().squeeze(1)):
            raise ValueError(
                f"{type(self).__name__} needs all four sides of a box, or NaN for each of them, got "
                f"{boxes[rows[0]].tolist()} for item {int(rows[0])}, and others of that kind: {len(rows)} in all."
            )
        whole, sides = is_whole.tolist(), boxes.nan_to_num().int().tolist()
        return [(str(paths[i]), None if whole[i] else tuple(sides[i])) for i in numbers]

    def inference(
        self,
        queries: Sequence[Path | str | ImageItem],
        galleries: Sequence[Path | str | ImageItem],
        ii_top: Tensor,
        top_n: int,  # noqa: ARG002 (the width of ii_top)
    ) -> Tensor:
        """New distances, see :meth:`PairwisePostprocessor.inference`."""
        rows, ranks = (ii_top >= 0).nonzero(as_tuple=True)
        with patient_bar(_description(ii_top), self.verbose) as on_progress:
            scores = score_images(
                self.model, [_item(queries[i]) for i in rows.tolist()],
                [_item(galleries[i]) for i in ii_top[rows, ranks].tolist()],
                self.image_transforms, self.f_imread, num_workers=self.num_workers, batch_size=self.batch_size,
                cache_size=self.cache_size, use_fp16=self.use_fp16, on_progress=on_progress,
            )  # fmt: skip
        return _spread(scores, ii_top)


def _spread(scores: Tensor, ii_top: Tensor) -> Tensor:
    """Scores of the pairs that there are, in their places; infinite elsewhere."""
    spread = scores.new_full(ii_top.shape, torch.inf)
    spread[(ii_top >= 0).to(scores.device)] = scores
    return spread


def _description(ii_top: Tensor) -> str:
    return f"Re-ranking the top {ii_top.shape[1]} of {len(ii_top):,} queries"


def _item(item: Path | str | ImageItem) -> ImageItem:
    return item if isinstance(item, tuple) else (str(item), None)


def _check_arguments(
    owner: str, top_n: int, model: nn.Module, num_workers: int, batch_size: int, cache_size: int = 0
) -> None:
    if not isinstance(model, nn.Module) or not callable(getattr(model, "predict", None)):
        raise TypeError(
            f"{owner} needs a pairwise_model: a module with predict(x1, x2), such as those of "
            f"oml.models.meta.siamese, got {type(model).__name__}."
        )
    least_values = {"top_n": (top_n, 2), "batch_size": (batch_size, 1), "num_workers": (num_workers, 0)}
    for name, (value, least) in (least_values | {"cache_size": (cache_size, 0)}).items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{owner} needs a whole number of {least} or more as {name}, got {value!r}.")
