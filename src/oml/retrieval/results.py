"""What a search found: the one value between embeddings and everything after them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, final

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from oml.const import IS_GALLERY_COLUMN, IS_QUERY_COLUMN, SEQUENCE_COLUMN
from oml.functional.nothing_to_find import count_relevant, rows_to_evaluate
from oml.functional.search import Neighbours, exact_search
from oml.retrieval._checks import check_finite, check_items
from oml.retrieval._merging import all_equal, of_all_galleries, of_all_queries
from oml.utils.io import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from oml.datasets.base import DatasetQueryGallery

_FIELDS = ("query_ids", "gallery_ids", "query_labels", "gallery_labels", "retrieved_ids", "distances")
_SEQUENCE_FIELDS = ("query_sequences", "gallery_sequences")


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
        ids = torch.cat([query_ids, gallery_ids])
        if len(ids) and ids.amin() < 0:
            raise ValueError(f"RetrievalResults needs positions in the data set as ids, got {int(ids.amin())}.")
        size = int(ids.amax()) + 1 if len(ids) else 0

        # What is known of each id; the place after them is for ids that are none, the last one for -1.
        place = retrieved_ids.masked_fill((retrieved_ids < -1) | (retrieved_ids >= size), size)
        label_of = gallery_labels.new_zeros(size + 2)
        label_of[gallery_ids] = gallery_labels
        is_gallery = torch.zeros(size + 2, dtype=torch.bool, device=gallery_ids.device)
        is_gallery[gallery_ids] = True
        is_query = torch.zeros_like(is_gallery)
        is_query[query_ids] = True
        if is_gallery.sum() < len(gallery_ids) or is_query.sum() < len(query_ids):
            raise ValueError("RetrievalResults needs each query and each gallery once, some ids occur twice.")
        both = is_gallery[query_ids]
        if len(other := query_ids[both & (label_of[query_ids] != query_labels)]):
            raise ValueError(
                f"RetrievalResults needs one label per item, got others as query and as gallery for {len(other)} "
                f"items, such as {other[:3].tolist()}."
            )

        is_empty = retrieved_ids == -1
        allowed = is_gallery[place] & (retrieved_ids != query_ids[:, None])
        if query_sequences is not None and gallery_sequences is not None:
            sequence_of = query_sequences.new_full((size + 2,), -1)
            sequence_of[gallery_ids] = gallery_sequences
            allowed &= (sequence_of[place] != query_sequences[:, None]) | (query_sequences < 0)[:, None]
        if len(rows := (~(allowed | is_empty)).any(dim=1).nonzero().squeeze(1)):
            raise ValueError(
                "RetrievalResults needs retrieved ids out of the gallery, not the query's own nor of its sequence, got "
                f"others in {len(rows)} rows, such as {retrieved_ids[rows[0]].tolist()} in row {int(rows[0])}. "
                "Ids are positions in the data set."
            )
        ordered = (distances[:, 1:] >= distances[:, :-1]).all(dim=1) & ~distances.isnan().any(dim=1)
        if len(rows := (~ordered | (distances.isinf() != is_empty).any(dim=1)).nonzero().squeeze(1)):
            raise ValueError(
                "RetrievalResults needs distances in ascending order, infinite where there is no gallery (-1) and only "
                f"there, got others in {len(rows)} rows, such as {distances[rows[0]].tolist()} in row {int(rows[0])}."
            )
        self.query_ids = query_ids
        self.query_labels = query_labels
        self.query_sequences = query_sequences
        self.gallery_ids = gallery_ids
        self.gallery_labels = gallery_labels
        self.gallery_sequences = gallery_sequences
        self.retrieved_ids = retrieved_ids
        self.distances = distances
        self.is_relevant: Bool[Tensor, "query rank"] = (label_of[place] == query_labels[:, None]) & ~is_empty
        self.n_relevant: Int[Tensor, " query"] = count_relevant(
            both, query_labels, gallery_labels, query_sequences, gallery_sequences
        )
        if len(rows := (self.is_relevant.sum(dim=1) > self.n_relevant).nonzero().squeeze(1)):
            raise ValueError(
                f"RetrievalResults needs each gallery at most once per query, got some twice in {len(rows)} rows, such "
                f"as {retrieved_ids[rows[0]].tolist()} in row {int(rows[0])}."
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
        ids: Int[Tensor, " item"] | None = None,
        on_missing: Literal["raise", "ignore", "keep"] = "raise",
        distance: Literal["l2", "cosine"] = "l2",
        product_dtype: torch.dtype | None = None,
        memory_budget: int = 512 * 2**20,
        search: Callable[..., Neighbours] = exact_search,
    ) -> "RetrievalResults":
        """Search with the queries in the galleries of a data set; an item never finds itself.

        Args:
            embeddings: of all items.
            labels: theirs.
            is_query, is_gallery: their roles; an item may have both.
            top_k: how many galleries to find for a query.
            sequences: the number of the sequence, such as a video, that each item is from, -1 for none: a query does
                not find the items of its own sequence, which would be near copies of itself.
            ids: the items' positions in the data set, if these are but some of them: see :meth:`merge`.
            on_missing: what to do about queries that have nothing to find: ``raise``, or ``ignore`` to leave them
                out, with a warning; or ``keep``, if galleries of other parts are yet to be merged.
            distance, product_dtype, memory_budget: see :func:`oml.functional.search.exact_search`.
            search: what does it, such as :func:`oml.ddp.search.search_in_all_processes`.

        Raises:
            NothingToFindError: see ``on_missing``; the text has their number and the first rows. Also raised if
                no query at all has anything to find.
            ValueError: if sizes differ, labels or sequences are not integers, roles are neither True or False nor 1 or
                0, there are no queries or no galleries, the embeddings of such are not finite, or ``on_missing`` is
                something else.

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
        check_items(embeddings, labels, is_query, is_gallery, sequences, ids)
        if ids is None:
            ids = torch.arange(len(labels), device=labels.device)
        else:  # in the order of the data set, in which equal distances rank
            ids, order = ids.sort()
            embeddings, labels, is_query, is_gallery = (x[order] for x in (embeddings, labels, is_query, is_gallery))
            sequences = None if sequences is None else sequences[order]
        check_finite(embeddings, (is_query != 0) | (is_gallery != 0), ids)
        queries, galleries = is_query.nonzero().squeeze(1), is_gallery.nonzero().squeeze(1)
        for name, rows in (("query", queries), ("gallery", galleries)):
            if len(rows) == 0:
                raise ValueError(f"RetrievalResults needs at least one {name}, none of the {len(labels)} items is one.")
        if on_missing != "keep":
            n_relevant = count_relevant(
                is_gallery[queries],
                labels[queries],
                labels[galleries],
                *(None if sequences is None else sequences[rows] for rows in (queries, galleries)),
            )
            queries = queries[rows_to_evaluate(n_relevant, on_missing, ids=ids[queries], labels=labels[queries])]
        own = _numbers(ids, sequences, int(ids.amax()) + 1)
        found = search(
            _take(embeddings, queries),
            _take(embeddings, galleries),
            top_k,
            query_items=own[queries],
            gallery_items=own[galleries],
            distance=distance,
            product_dtype=product_dtype,
            memory_budget=memory_budget,
        )
        return cls(
            ids[queries],
            labels[queries],
            ids[galleries],
            labels[galleries],
            ids[galleries][found.ids].masked_fill(found.ids < 0, -1),
            found.distances,
            *(None if sequences is None else sequences[rows] for rows in (queries, galleries)),
        )

    @classmethod
    def from_dataset(
        cls,
        embeddings: Float[Tensor, "item dim"],
        dataset: "DatasetQueryGallery",
        *,
        top_k: int,
        on_missing: Literal["raise", "ignore"] = "raise",
        distance: Literal["l2", "cosine"] = "l2",
        product_dtype: torch.dtype | None = None,
        memory_budget: int = 512 * 2**20,
    ) -> "RetrievalResults":
        """Search with the labels, roles and, if there are any, sequences of a data set; no image is read.

        Args:
            embeddings: of all items, in the order of the data set.
            dataset: which items are queries and galleries, and what they should find.
            top_k, on_missing, distance, product_dtype, memory_budget: see :meth:`from_embeddings`.

        Raises:
            NothingToFindError, ValueError: see :meth:`from_embeddings`.
        """
        table = dataset.df
        is_query, is_gallery = (
            torch.from_numpy(table[column].astype(bool).to_numpy(copy=True))
            for column in (IS_QUERY_COLUMN, IS_GALLERY_COLUMN)
        )
        sequences = None
        if SEQUENCE_COLUMN in table.columns:
            sequences = torch.from_numpy(table[SEQUENCE_COLUMN].factorize()[0])
        return cls.from_embeddings(
            embeddings,
            torch.from_numpy(dataset.get_labels()),
            is_query,
            is_gallery,
            top_k=top_k,
            sequences=sequences,
            on_missing=on_missing,
            distance=distance,
            product_dtype=product_dtype,
            memory_budget=memory_budget,
        )

    @classmethod
    def merge(
        cls,
        parts: Sequence["RetrievalResults"],
        *,
        top_k: int | None = None,
        on_missing: Literal["raise", "ignore", "keep"] = "raise",
    ) -> "RetrievalResults":
        """One result of several: of other queries in the same gallery, or of the same queries in other galleries.

        So chunks and processes may search on their own. The queries are ordered by id. Of galleries, as many ranks
        are kept as all the parts together are sure of: the fewest of a part that did not list its whole gallery.

        Args:
            parts: to merge.
            top_k: how many ranks to keep, if not all those that are sure.
            on_missing: what to do about queries that have nothing to find in the whole gallery, see
                :meth:`from_embeddings`.

        Raises:
            NothingToFindError: see ``on_missing``.
            ValueError: if there is nothing to merge, parts differ in both or neither, a query or gallery occurs
                twice, or the parts do not reach to ``top_k``.

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
        if all_equal(parts, "gallery_ids", "gallery_labels", "gallery_sequences"):
            merged = cls(*of_all_queries(parts, top_k))
        elif all_equal(parts, "query_ids", "query_labels", "query_sequences"):
            merged = cls(*of_all_galleries(parts, top_k))
        else:
            raise ValueError(
                "RetrievalResults can be merged if they were searched in the same gallery, or for the same queries, "
                f"these differ in both: {list(parts[:3])}."
            )
        if on_missing == "keep":
            return merged
        rows = rows_to_evaluate(merged.n_relevant, on_missing, ids=merged.query_ids, labels=merged.query_labels)
        return merged if len(rows) == len(merged) else merged.of_queries(rows)

    def of_queries(self, rows: Int[Tensor, " kept"]) -> "RetrievalResults":
        """What some of the queries found, by their row in the results.

        Example:
            >>> labels = torch.tensor([0, 0, 0])
            >>> everyone = labels == 0
            >>> results = RetrievalResults.from_embeddings(torch.eye(3), labels, everyone, everyone, top_k=2)
            >>> results.of_queries(torch.tensor([2])).query_ids
            tensor([2])
        """
        return RetrievalResults(
            self.query_ids[rows],
            self.query_labels[rows],
            self.gallery_ids,
            self.gallery_labels,
            self.retrieved_ids[rows],
            self.distances[rows],
            None if self.query_sequences is None else self.query_sequences[rows],
            self.gallery_sequences,
        )

    def with_ranking(
        self, retrieved_ids: Int[Tensor, "query rank"], distances: Float[Tensor, "query rank"]
    ) -> "RetrievalResults":
        """The same queries and galleries, of which others were found, or in another order.

        Example:
            >>> labels = torch.tensor([0, 0, 0])
            >>> everyone = labels == 0
            >>> results = RetrievalResults.from_embeddings(torch.eye(3), labels, everyone, everyone, top_k=2)
            >>> results.with_ranking(results.retrieved_ids[:, :1], results.distances[:, :1])
            RetrievalResults(3 queries, 3 galleries, top 1)
        """
        return RetrievalResults(
            self.query_ids,
            self.query_labels,
            self.gallery_ids,
            self.gallery_labels,
            retrieved_ids,
            distances,
            self.query_sequences,
            self.gallery_sequences,
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
            ValueError: if the file holds something else, or is a folder.

        Example:
            >>> import tempfile
            >>> one = torch.tensor([0])
            >>> results = RetrievalResults(one, one, one + 1, one, torch.tensor([[1]]), torch.tensor([[0.5]]))
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     results.save(f"{folder}/results.safetensors")
            ...     RetrievalResults.load(f"{folder}/results.safetensors")
            RetrievalResults(1 queries, 1 galleries, top 1)
        """
        if (folder := Path(path)).is_dir():
            files = sorted(map(str, folder.glob("*.safetensors")))
            such = (
                f", such as {', '.join(map(repr, files[:3]))}" if files else "; this folder has no .safetensors files"
            )
            raise ValueError(
                f"RetrievalResults.load needs a file that save() wrote, {str(path)!r} is a folder. Name the file{such}."
            )
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

    def query_and_gallery_items(self) -> tuple[Int[Tensor, " query"], Int[Tensor, " gallery"]]:
        """Numbers of the queries and of the galleries: a query is not to find galleries of its own number.

        As :func:`oml.functional.search.exact_search` and other functions of all pairs take them: an item that is query
        and gallery has one number, and so have all items of a sequence.

        Example:
            >>> ids, labels = torch.tensor([4, 5]), torch.tensor([0, 0])
            >>> found = torch.tensor([[5], [4]])
            >>> RetrievalResults(ids, labels, ids, labels, found, torch.ones(2, 1)).query_and_gallery_items()
            (tensor([4, 5]), tensor([4, 5]))
        """
        size = 1 + max(int(ids.amax()) if len(ids) else 0 for ids in (self.query_ids, self.gallery_ids))
        return (
            _numbers(self.query_ids, self.query_sequences, size),
            _numbers(self.gallery_ids, self.gallery_sequences, size),
        )

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


def _numbers(ids: Tensor, sequences: Tensor | None, size: int) -> Tensor:
    """One for all items of a sequence, one of its own for each other."""
    return ids if sequences is None else torch.where(sequences < 0, ids, size + sequences)
