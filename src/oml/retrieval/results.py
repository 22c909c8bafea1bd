"""What a search found: the one value between embeddings and everything after them."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from oml.functional.search import exact_search
from oml.utils.io import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FIELDS = ("query_ids", "gallery_ids", "query_labels", "gallery_labels", "retrieved_ids", "distances")


class NothingToFindError(ValueError, AssertionError):
    """Some queries have no relevant item in the gallery. Also an ``AssertionError``, which old callers catch."""


class RetrievalResults:
    """For each query its nearest galleries in order, and what it should have found.

    All ids are positions in the data set.

    Args:
        query_ids, query_labels: of the queries.
        gallery_ids, gallery_labels: of the galleries.
        retrieved_ids: for each query the galleries found, nearest first; -1 where fewer were to be had.
        distances: theirs, infinite at -1.

    Attributes:
        is_relevant: whether a retrieved item has the query's label.
        n_relevant: how many items of its label a query could find, itself left out.
    """

    def __init__(
        self,
        query_ids: Int[Tensor, " query"],
        query_labels: Int[Tensor, " query"],
        gallery_ids: Int[Tensor, " gallery"],
        gallery_labels: Int[Tensor, " gallery"],
        retrieved_ids: Int[Tensor, "query rank"],
        distances: Float[Tensor, "query rank"],
    ) -> None:
        self.query_ids = query_ids
        self.query_labels = query_labels
        self.gallery_ids = gallery_ids
        self.gallery_labels = gallery_labels
        self.retrieved_ids = retrieved_ids
        self.distances = distances
        size = int(torch.cat([query_ids, gallery_ids]).amax()) + 1 if len(query_ids) + len(gallery_ids) else 0
        label_of = query_labels.new_zeros(size + 1)  # the last place is that of -1
        label_of[gallery_ids] = gallery_labels
        self.is_relevant: Bool[Tensor, "query rank"] = (label_of[retrieved_ids] == query_labels[:, None]) & (
            retrieved_ids >= 0
        )
        self.n_relevant: Int[Tensor, " query"] = _count_relevant(query_ids, query_labels, gallery_ids, gallery_labels)

    @classmethod
    def from_embeddings(
        cls,
        embeddings: Float[Tensor, "item dim"],
        labels: Int[Tensor, " item"],
        is_query: Bool[Tensor, " item"],
        is_gallery: Bool[Tensor, " item"],
        *,
        top_k: int,
        on_missing: Literal["raise", "ignore"] = "raise",
        memory_budget: int = 512 * 2**20,
    ) -> "RetrievalResults":
        """Search with the queries in the galleries of a data set; an item never finds itself.

        Args:
            embeddings: of all items.
            labels: theirs.
            is_query, is_gallery: their roles; an item may have both.
            top_k: how many galleries to find for a query.
            on_missing: what to do about queries that have nothing to find: ``raise``, or ``ignore`` to leave them
                out, with a warning.
            memory_budget: bytes that the search may use beyond its inputs and outputs.

        Raises:
            NothingToFindError: see ``on_missing``; the text has their number and the first rows.
            ValueError: if there are no queries or no galleries.
        """
        query_ids, gallery_ids = is_query.nonzero().squeeze(1), is_gallery.nonzero().squeeze(1)
        for name, ids in (("query", query_ids), ("gallery", gallery_ids)):
            if len(ids) == 0:
                raise ValueError(f"RetrievalResults needs at least one {name}, none of the {len(labels)} items is one.")
        n_relevant = _count_relevant(query_ids, labels[query_ids], gallery_ids, labels[gallery_ids])
        if len(bad := query_ids[n_relevant == 0]):
            text = (
                f"{len(bad)} of {len(query_ids)} queries have nothing to find: no other item of their label is in the "
                f"gallery. They are in rows {bad[:3].tolist()}, with labels {labels[bad[:3]].tolist()}"
                + (f", and {len(bad) - 3} more rows." if len(bad) > 3 else ".")
            )
            if on_missing == "raise" or len(bad) == len(query_ids):
                raise NothingToFindError(f"{text} Take them out of the queries, or pass on_missing='ignore'.")
            warnings.warn(f"{text} They are left out.", stacklevel=2)
            query_ids = query_ids[n_relevant > 0]
        found = exact_search(
            embeddings[query_ids],
            embeddings[gallery_ids],
            top_k,
            query_items=query_ids,
            gallery_items=gallery_ids,
            memory_budget=memory_budget,
        )
        retrieved_ids = gallery_ids[found.ids].masked_fill(found.ids < 0, -1)
        return cls(query_ids, labels[query_ids], gallery_ids, labels[gallery_ids], retrieved_ids, found.distances)

    @classmethod
    def merge(cls, parts: Sequence["RetrievalResults"]) -> "RetrievalResults":
        """The results of disjoint sets of queries over one gallery, ordered by query.

        Raises:
            ValueError: if the galleries differ, or a query occurs twice.
        """
        first = parts[0]
        if any(not torch.equal(part.gallery_ids, first.gallery_ids) for part in parts):
            raise ValueError("RetrievalResults can be merged only if they were searched in the same gallery.")
        if any(part.retrieved_ids.shape[1] != first.retrieved_ids.shape[1] for part in parts):
            raise ValueError("RetrievalResults can be merged only if they were searched with the same top_k.")
        query_ids, order = torch.cat([part.query_ids for part in parts]).sort()
        if len(twice := query_ids[1:][query_ids[1:] == query_ids[:-1]]):
            raise ValueError(f"RetrievalResults to merge hold {len(twice)} queries twice, such as {twice[:3].tolist()}.")
        return cls(
            query_ids,
            torch.cat([part.query_labels for part in parts])[order],
            first.gallery_ids,
            first.gallery_labels,
            torch.cat([part.retrieved_ids for part in parts])[order],
            torch.cat([part.distances for part in parts])[order],
        )

    def save(self, path: str | Path) -> None:
        """Write to a safetensors file."""
        with atomic_path(path) as temporary:
            save_file({name: getattr(self, name).contiguous() for name in _FIELDS}, temporary)

    @classmethod
    def load(cls, path: str | Path) -> "RetrievalResults":
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: if the file holds something else.
        """
        tensors = load_file(path)
        if set(tensors) != set(_FIELDS):
            raise ValueError(f"{str(path)!r} holds {sorted(tensors)}, not retrieval results.")
        return cls(**tensors)

    def gt_ids(self, row: int) -> Int[Tensor, " relevant"]:
        """What the query in a row should find."""
        relevant = (self.gallery_labels == self.query_labels[row]) & (self.gallery_ids != self.query_ids[row])
        return self.gallery_ids[relevant]

    def visualize(
        self,
        paths: Sequence[str | Path],
        rows: Sequence[int],
        n_instances: int,
        boxes: Float[Tensor, "item 4"] | Int[Tensor, "item 4"] | None = None,
    ) -> "Figure":
        """A picture of some queries: the query, its nearest galleries, what it should have found.

        Args:
            paths: of the images of all items of the data set.
            rows: which queries, by their row in the results.
            n_instances: how many retrieved items to draw.
            boxes: left, top, right and bottom of the part of each image to draw.
        """
        from oml.retrieval.figures import draw_queries

        return draw_queries(self, paths, rows, n_instances, boxes=boxes)

    def __len__(self) -> int:
        return len(self.query_ids)

    def __repr__(self) -> str:
        return f"RetrievalResults({len(self)} queries, {len(self.gallery_ids)} galleries, top {self.retrieved_ids.shape[1]})"


def _count_relevant(query_ids: Tensor, query_labels: Tensor, gallery_ids: Tensor, gallery_labels: Tensor) -> Tensor:
    values, counts = gallery_labels.unique(return_counts=True)
    if len(values) == 0:
        return torch.zeros_like(query_ids)
    place = torch.searchsorted(values, query_labels).clamp(max=len(values) - 1)
    found = torch.where(values[place] == query_labels, counts[place], 0)
    return found - torch.isin(query_ids, gallery_ids).long()
