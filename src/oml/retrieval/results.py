"""What a search found: the one value between embeddings and everything after them."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, final

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from oml.functional.search import exact_search
from oml.utils.io import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FIELDS = ("query_ids", "gallery_ids", "query_labels", "gallery_labels", "retrieved_ids", "distances")
_SEQUENCE_FIELDS = ("query_sequences", "gallery_sequences")


class NothingToFindError(ValueError, AssertionError):
    """Some queries have no relevant item in the gallery. Also an ``AssertionError``, which old callers catch.

    Example:
        >>> issubclass(NothingToFindError, ValueError) and issubclass(NothingToFindError, AssertionError)
        True
    """


@final
class RetrievalResults:
    """For each query its nearest galleries in order, and what it should have found.

    All ids are positions in the data set; a row is a query's place among the queries.

    Args:
        query_ids, query_labels: of the queries.
        gallery_ids, gallery_labels: of the galleries.
        retrieved_ids: for each query the galleries found, nearest first; -1 where fewer were to be had.
        distances: theirs, infinite at -1.
        query_sequences, gallery_sequences: numbers of the sequences, such as videos, that they are from, -1 for none;
            both or neither. A query must not have retrieved items of its own sequence.

    Attributes:
        is_relevant: whether a retrieved item has the query's label.
        n_relevant: how many items of its label a query could find, itself and its sequence left out.

    Raises:
        ValueError: if sizes do not fit, or a query retrieved itself, an item of its own sequence or something that
            is not in the gallery.

    Example:
        >>> results = RetrievalResults(
        ...     query_ids=torch.tensor([0]),
        ...     query_labels=torch.tensor([7]),
        ...     gallery_ids=torch.tensor([0, 1, 2]),
        ...     gallery_labels=torch.tensor([7, 8, 7]),
        ...     retrieved_ids=torch.tensor([[1, 2]]),
        ...     distances=torch.tensor([[0.1, 0.2]]),
        ... )
        >>> results
        RetrievalResults(1 queries, 3 galleries, top 2)
        >>> results.is_relevant, results.n_relevant
        (tensor([[False,  True]]), tensor([1]))
    """

    def __init__(
        self,
        query_ids: Int[Tensor, " query"],
        query_labels: Int[Tensor, " query"],
        gallery_ids: Int[Tensor, " gallery"],
        gallery_labels: Int[Tensor, " gallery"],
        retrieved_ids: Int[Tensor, "query rank"],
        distances: Float[Tensor, "query rank"],
        query_sequences: Int[Tensor, " query"] | None = None,
        gallery_sequences: Int[Tensor, " gallery"] | None = None,
    ) -> None:
        if len(query_ids) != len(query_labels) or len(gallery_ids) != len(gallery_labels):
            raise ValueError(
                f"RetrievalResults needs a label per id, got {len(query_labels)} for {len(query_ids)} queries and "
                f"{len(gallery_labels)} for {len(gallery_ids)} galleries."
            )
        if retrieved_ids.shape != distances.shape or len(retrieved_ids) != len(query_ids):
            raise ValueError(
                f"RetrievalResults needs retrieved_ids and distances (query, rank) of {len(query_ids)} queries, got "
                f"{tuple(retrieved_ids.shape)} and {tuple(distances.shape)}."
            )
        sequences = [s for s in (query_sequences, gallery_sequences) if s is not None]
        if len(sequences) == 1 or [len(s) for s in sequences] not in ([], [len(query_ids), len(gallery_ids)]):
            raise ValueError(
                "RetrievalResults needs the sequence of every query and gallery or none at all, got "
                f"{[len(s) for s in sequences]} for {len(query_ids)} queries and {len(gallery_ids)} galleries."
            )
        self.query_sequences = query_sequences
        self.gallery_sequences = gallery_sequences
        size = int(torch.cat([query_ids, gallery_ids]).amax()) + 1 if len(query_ids) + len(gallery_ids) else 0
        allowed = torch.isin(retrieved_ids, gallery_ids) & (retrieved_ids != query_ids[:, None])
        if query_sequences is not None and gallery_sequences is not None:
            sequence_of = query_sequences.new_full((size + 1,), -1)
            sequence_of[gallery_ids] = gallery_sequences
            own = (sequence_of[retrieved_ids.clamp(-1, size)] == query_sequences[:, None]) & (query_sequences >= 0)[
                :, None
            ]
            allowed &= ~own
        if len(rows := (~allowed & (retrieved_ids != -1)).any(dim=1).nonzero().squeeze(1)):
            raise ValueError(
                "RetrievalResults needs retrieved ids out of the gallery, not the query's own nor of its sequence, got "
                f"others in {len(rows)} rows, such as {retrieved_ids[rows[0]].tolist()} in row {int(rows[0])}. "
                "Ids are positions in the data set."
            )
        self.query_ids = query_ids
        self.query_labels = query_labels
        self.gallery_ids = gallery_ids
        self.gallery_labels = gallery_labels
        self.retrieved_ids = retrieved_ids
        self.distances = distances
        label_of = query_labels.new_zeros(size + 1)  # the last place is that of -1
        label_of[gallery_ids] = gallery_labels
        self.is_relevant: Bool[Tensor, "query rank"] = (label_of[retrieved_ids] == query_labels[:, None]) & (
            retrieved_ids >= 0
        )
        self.n_relevant: Int[Tensor, " query"] = _count_relevant(
            query_ids, query_labels, gallery_ids, gallery_labels, query_sequences, gallery_sequences
        )

    @classmethod
    def from_embeddings(
        cls,
        embeddings: Float[Tensor, "item dim"],
        labels: Int[Tensor, " item"],
        is_query: Bool[Tensor, " item"],
        is_gallery: Bool[Tensor, " item"],
        *,
        top_k: int,
        sequences: Int[Tensor, " item"] | None = None,
        on_missing: Literal["raise", "ignore"] = "raise",
        memory_budget: int = 512 * 2**20,
    ) -> "RetrievalResults":
        """Search with the queries in the galleries of a data set; an item never finds itself.

        Args:
            embeddings: of all items.
            labels: theirs.
            is_query, is_gallery: their roles; an item may have both.
            top_k: how many galleries to find for a query.
            sequences: the number of the sequence, such as a video, that each item is from, -1 for none: a query does
                not find the items of its own sequence, which would be near copies of itself.
            on_missing: what to do about queries that have nothing to find: ``raise``, or ``ignore`` to leave them
                out, with a warning.
            memory_budget: bytes that the search may use beyond its inputs and outputs.

        Raises:
            NothingToFindError: see ``on_missing``; the text has their number and the first rows. Also raised if
                no query at all has anything to find.
            ValueError: if sizes differ, labels are not integers, there are no queries or no galleries, the
                embeddings are not finite, or ``on_missing`` is something else.

        Example:
            >>> everyone = torch.ones(4, dtype=torch.bool)
            >>> results = RetrievalResults.from_embeddings(
            ...     torch.tensor([[0.0], [1.0], [3.0], [7.0]]), torch.tensor([0, 0, 1, 1]), everyone, everyone, top_k=2
            ... )
            >>> results.retrieved_ids.tolist()
            [[1, 2], [0, 2], [1, 0], [2, 1]]
            >>> results.is_relevant[:, 0]
            tensor([ True,  True, False,  True])
        """
        if on_missing not in ("raise", "ignore"):
            raise ValueError(f"RetrievalResults knows on_missing 'raise' and 'ignore', got {on_missing!r}.")
        sizes = [len(part) for part in (embeddings, labels, is_query, is_gallery, sequences) if part is not None]
        if len(set(sizes)) > 1 or labels.is_floating_point():
            raise ValueError(
                "RetrievalResults needs an embedding, an integer label and both roles of every item, got embeddings, "
                f"labels, is_query, is_gallery{'' if sequences is None else ', sequences'} of "
                f"{', '.join(map(str, sizes))} items, labels of {labels.dtype}."
            )
        query_ids, gallery_ids = is_query.nonzero().squeeze(1), is_gallery.nonzero().squeeze(1)
        for name, ids in (("query", query_ids), ("gallery", gallery_ids)):
            if len(ids) == 0:
                raise ValueError(f"RetrievalResults needs at least one {name}, none of the {len(labels)} items is one.")
        query_sequences, gallery_sequences = (
            None if sequences is None else sequences[ids] for ids in (query_ids, gallery_ids)
        )
        n_relevant = _count_relevant(
            query_ids, labels[query_ids], gallery_ids, labels[gallery_ids], query_sequences, gallery_sequences
        )
        if len(bad := query_ids[n_relevant == 0]):
            text = (
                f"{len(bad)} of {len(query_ids)} queries have nothing to find: no other item of their label"
                f"{'' if sequences is None else ' and of another sequence'} is in the gallery. They are in rows "
                f"{bad[:3].tolist()}, with labels {labels[bad[:3]].tolist()}"
                + (f", and {len(bad) - 3} more rows." if len(bad) > 3 else ".")
            )
            if on_missing == "raise" or len(bad) == len(query_ids):
                raise NothingToFindError(f"{text} Take them out of the queries, or pass on_missing='ignore'.")
            warnings.warn(f"{text} They are left out.", stacklevel=2)
            query_ids = query_ids[n_relevant > 0]
            query_sequences = None if sequences is None else sequences[query_ids]
        # what must not find each other has one number: an item and itself, or all items of a sequence
        own = torch.arange(len(labels), device=labels.device)
        if sequences is not None:
            own = torch.where(sequences < 0, own, len(labels) + sequences)
        found = exact_search(
            _take(embeddings, query_ids),
            _take(embeddings, gallery_ids),
            top_k,
            query_items=own[query_ids],
            gallery_items=own[gallery_ids],
            memory_budget=memory_budget,
        )
        retrieved_ids = gallery_ids[found.ids].masked_fill(found.ids < 0, -1)
        return cls(
            query_ids,
            labels[query_ids],
            gallery_ids,
            labels[gallery_ids],
            retrieved_ids,
            found.distances,
            query_sequences,
            gallery_sequences,
        )

    @classmethod
    def merge(cls, parts: Sequence["RetrievalResults"]) -> "RetrievalResults":
        """The results of disjoint sets of queries over one gallery, ordered by query.

        Raises:
            ValueError: if there is nothing to merge, the galleries or ``top_k`` differ, or a query occurs twice.

        Example:
            >>> embeddings, labels = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([0, 0, 0])
            >>> parts = [
            ...     RetrievalResults.from_embeddings(embeddings, labels, is_query, labels == 0, top_k=1)
            ...     for is_query in (torch.tensor([False, True, False]), torch.tensor([True, False, True]))
            ... ]
            >>> RetrievalResults.merge(parts).query_ids
            tensor([0, 1, 2])
        """
        if not parts:
            raise ValueError("RetrievalResults.merge needs one part or more, got none.")
        first = parts[0]
        if not all(
            torch.equal(part.gallery_ids, first.gallery_ids)
            and torch.equal(part.gallery_labels, first.gallery_labels)
            and _equal(part.gallery_sequences, first.gallery_sequences)
            for part in parts
        ):
            raise ValueError("RetrievalResults can be merged only if they were searched in the same gallery.")
        if any(part.retrieved_ids.shape[1] != first.retrieved_ids.shape[1] for part in parts):
            raise ValueError("RetrievalResults can be merged only if they were searched with the same top_k.")
        query_ids, order = torch.cat([part.query_ids for part in parts]).sort()
        if len(twice := query_ids[1:][query_ids[1:] == query_ids[:-1]]):
            raise ValueError(
                f"RetrievalResults to merge hold {len(twice)} queries twice, such as {twice[:3].tolist()}."
            )
        return cls(
            query_ids,
            torch.cat([part.query_labels for part in parts])[order],
            first.gallery_ids,
            first.gallery_labels,
            torch.cat([part.retrieved_ids for part in parts])[order],
            torch.cat([part.distances for part in parts])[order],
            _cat([part.query_sequences for part in parts], order),
            first.gallery_sequences,
        )

    def save(self, path: str | Path) -> None:
        """Write to a safetensors file, for :meth:`load`. An existing file is replaced once the new one is complete."""
        # copies, as the format refuses tensors that share memory
        names = _FIELDS if self.query_sequences is None else _FIELDS + _SEQUENCE_FIELDS
        tensors = {name: getattr(self, name).clone(memory_format=torch.contiguous_format) for name in names}
        with atomic_path(path) as temporary:
            save_file(tensors, temporary)

    @classmethod
    def load(cls, path: str | Path) -> "RetrievalResults":
        """Read what :meth:`save` wrote, to the CPU.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file holds something else.

        Example:
            >>> import tempfile
            >>> one = torch.tensor([0])
            >>> results = RetrievalResults(one, one, one + 1, one, torch.tensor([[1]]), torch.tensor([[0.5]]))
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     results.save(f"{folder}/results.safetensors")
            ...     RetrievalResults.load(f"{folder}/results.safetensors")
            RetrievalResults(1 queries, 1 galleries, top 1)
        """
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise ValueError(
                f"RetrievalResults.load needs a file that save() wrote, not {str(path)!r}: {error}"
            ) from error
        if set(tensors) not in (set(_FIELDS), {*_FIELDS, *_SEQUENCE_FIELDS}):
            raise ValueError(
                f"RetrievalResults.load needs a file that save() wrote, {str(path)!r} holds {sorted(tensors)} "
                f"instead of {sorted(_FIELDS)}."
            )
        return cls(**tensors)

    def gt_ids(self, row: int) -> Int[Tensor, " relevant"]:
        """The galleries that the query in a row should find, ``n_relevant[row]`` of them, in data set order.

        Example:
            >>> ids, labels = torch.arange(3), torch.tensor([5, 6, 5])
            >>> none = torch.full((3, 1), -1)
            >>> RetrievalResults(ids, labels, ids, labels, none, none.float().abs() * torch.inf).gt_ids(0)
            tensor([2])
        """
        relevant = (self.gallery_labels == self.query_labels[row]) & (self.gallery_ids != self.query_ids[row])
        if self.query_sequences is not None and self.gallery_sequences is not None and self.query_sequences[row] >= 0:
            relevant &= self.gallery_sequences != self.query_sequences[row]
        return self.gallery_ids[relevant]

    def visualize(
        self,
        paths: Sequence[str | Path],
        rows: Sequence[int],
        n_instances: int,
        boxes: Float[Tensor, "item 4"] | Int[Tensor, "item 4"] | None = None,
    ) -> "Figure":
        """A picture of some queries, see :func:`oml.retrieval.figures.draw_queries`.

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
        sizes = f"{len(self)} queries, {len(self.gallery_ids)} galleries, top {self.retrieved_ids.shape[1]}"
        return f"RetrievalResults({sizes})"


def _take(embeddings: Tensor, ids: Tensor) -> Tensor:
    """The rows ``ids``, which ascend; not copied if these are all the rows."""
    return embeddings if len(ids) == len(embeddings) else embeddings[ids]


def _equal(first: Tensor | None, second: Tensor | None) -> bool:
    return torch.equal(first, second) if first is not None and second is not None else first is second


def _cat(parts: Sequence[Tensor | None], order: Tensor) -> Tensor | None:
    given = [part for part in parts if part is not None]
    return torch.cat(given)[order] if given else None


def _count_relevant(
    query_ids: Tensor,
    query_labels: Tensor,
    gallery_ids: Tensor,
    gallery_labels: Tensor,
    query_sequences: Tensor | None,
    gallery_sequences: Tensor | None,
) -> Tensor:
    """For each query the galleries of its label, less itself and those of its sequence."""
    found = _count(query_labels, gallery_labels)
    itself = torch.isin(query_ids, gallery_ids).long()
    if query_sequences is None or gallery_sequences is None:
        return found - itself
    values, labels = torch.cat([query_labels, gallery_labels]).unique(return_inverse=True)
    pairs = (torch.cat([query_sequences, gallery_sequences]).long() + 1) * len(values) + labels
    own = _count(pairs[: len(query_ids)], pairs[len(query_ids) :])
    return found - torch.where(query_sequences < 0, itself, own)


def _count(wanted: Tensor, among: Tensor) -> Tensor:
    """How often each of ``wanted`` occurs in ``among``."""
    values, counts = among.unique(return_counts=True)
    if len(values) == 0:
        return torch.zeros_like(wanted)
    place = torch.searchsorted(values, wanted.contiguous()).clamp(max=len(values) - 1)
    return torch.where(values[place] == wanted, counts[place], 0)
