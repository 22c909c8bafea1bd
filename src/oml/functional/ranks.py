"""Where the relevant items stand in the ranking of a whole gallery, without ranking it."""

from collections.abc import Callable, Iterator
from threading import Lock, local

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from oml.functional.pair_blocks import BLOCK, GROUP, Block, PairBlocks, check_pairs, measured, nearness_within
from oml.functional.ranking import Hits

_BYTES_OF_A_HIT = 128  # what is known about a relevant item while blocks go by, and while they are sorted
_BYTES_OF_A_PAIR = 64  # of a block, for each thread
_PAIRS = 2**18  # that are placed at a time
_FEW, _FEW_SHARE = 64, 32  # relevant items, and galleries for each of them, that are not worth a sort of the gallery
_MEASURED_SHARE = 24  # measuring one in so many pairs of a block takes as long as their product in float64


@torch.no_grad()
def relevant_ranks(
    queries: Float[Tensor, "query dim"],
    galleries: Float[Tensor, "gallery dim"],
    query_labels: Int[Tensor, " query"],
    gallery_labels: Int[Tensor, " gallery"],
    *,
    query_items: Int[Tensor, " query"] | None = None,
    gallery_items: Int[Tensor, " gallery"] | None = None,
    memory_budget: int = 512 * 2**20,
) -> Hits:
    """The ranks, in the whole gallery, of all galleries that have the label of the query.

    The ranking is that of :func:`oml.functional.search.exact_search` with ``top_k = len(galleries)``: by distances that
    are evaluated in float64 and rounded to the inputs' dtype, equal ones by the row of the gallery. It is enough for
    all metrics of :mod:`oml.functional.ranking`, over the whole gallery (``k=None``) too. No bit depends on the
    memory budget, the threads or the other queries. A query without a relevant gallery has no hits: whoever reports a
    value per query has to find such queries before, as :class:`oml.retrieval.RetrievalResults` does.

    How: the distances of the relevant pairs are measured first. Then the products of all pairs go by in blocks, and
    whatever may be nearer than the farthest relevant item of a query is counted: proven bounds tell before which of
    the relevant items it comes, and where they leave it open it is measured. So the time is that of the products if
    relevant items are among the nearest, and grows with their number if they are not; queries with so many of them that
    this would take longer have their whole gallery ranked. If ``galleries is queries``, and labels and items are the
    same too, each product serves both of its items. Gradients do not flow.

    Args:
        queries: What to search with.
        galleries: What to search in, on the same device.
        query_labels, gallery_labels: Theirs; a gallery is relevant for the queries of its label.
        query_items: Numbers of the queries' items. A gallery with the same number does not count at all: give
            positions in the data set so that an item does not find itself, or sequence numbers so that it finds no
            near copy.
        gallery_items: Numbers of the galleries' items, if and only if ``query_items`` are given.
        memory_budget: Bytes to use beyond inputs and outputs, besides a few numbers per query and gallery. A block of
            32 x 32 pairs and the relevant items of a single query are always allowed.

    Raises:
        ValueError: Wrong shapes, devices or budget; embeddings that are not finite or too large to be squared.

    Example:
        >>> points, labels, items = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([7, 8, 7]), torch.arange(3)
        >>> relevant_ranks(points, points, labels, labels, query_items=items, gallery_items=items)
        Hits(query=tensor([0, 2]), rank=tensor([2, 2]), n_queries=3)
    """
    check_pairs(
        "relevant_ranks",
        queries,
        galleries,
        memory_budget,
        labels=(query_labels, gallery_labels),
        items=(query_items, gallery_items),
    )
    if queries.shape == galleries.shape and queries.stride() == galleries.stride():
        # views of the same numbers are the same vectors
        galleries = queries if queries.data_ptr() == galleries.data_ptr() else galleries
    items = None if query_items is None or gallery_items is None else (query_items.long(), gallery_items.long())
    query_labels, gallery_labels = query_labels.long(), gallery_labels.long()
    values = gallery_labels.sort().values
    n_equal = torch.searchsorted(values, query_labels, right=True) - torch.searchsorted(values, query_labels)
    query, rank = torch.empty(2, int(n_equal.sum()), dtype=torch.int64, device=queries.device)
    n_found = 0

    def found(hits: Hits) -> None:
        nonlocal n_found
        here = slice(n_found, n_found := n_found + len(hits.query))
        query[here], rank[here] = hits.query, hits.rank

    is_frequent = n_equal > max(_FEW, len(galleries) // _FEW_SHARE)
    if queries.dtype == torch.float64 or galleries.dtype == torch.float64:
        is_frequent[:] = False  # bounds in float64 do not tell the distances
    n_rows = max(1, min(BLOCK, memory_budget // 4 // (_BYTES_OF_A_PAIR * max(1, len(galleries)))))
    frequent = is_frequent.nonzero().squeeze(1)
    for start in range(0, len(frequent), n_rows):
        rows = frequent[start : start + n_rows]
        found(_ranks_by_sorting(queries, galleries, query_labels, gallery_labels, items, rows))
    for part in _parts(n_equal.masked_fill(is_frequent, 0), max(1, memory_budget // 4 // _BYTES_OF_A_HIT)):
        whole = part == slice(0, len(queries))  # then the same object lets a product serve both of its items
        hits = _ranks_by_counting(
            queries if whole else queries[part],
            galleries,
            query_labels[part],
            gallery_labels,
            None if items is None else (items[0][part], items[1]),
            (~is_frequent[part]).nonzero().squeeze(1),
            memory_budget,
        )
        found(hits._replace(query=hits.query + part.start))
    query, rank = query[:n_found], rank[:n_found]
    if 0 < len(frequent) < len(queries):
        query, order = query.sort(stable=True)
        rank = rank[order]
    return Hits(query, rank, len(queries))


def _ranks_by_sorting(
    queries: Tensor,
    galleries: Tensor,
    query_labels: Tensor,
    gallery_labels: Tensor,
    items: tuple[Tensor, Tensor] | None,
    rows: Int[Tensor, " row"],
) -> Hits:
    """The hits of some queries, each with so many relevant items that the whole gallery can as well be ranked."""
    some = queries[rows]
    row, column = torch.arange(len(rows), device=rows.device), torch.arange(BLOCK, device=rows.device)
    parts = galleries.split(len(column))
    distances = torch.cat([_distances_within(some, part, row[:, None], column[: len(part)]) for part in parts], dim=1)
    is_relevant = query_labels[rows, None] == gallery_labels
    if items is not None:
        own = items[0][rows, None] == items[1]
        distances.masked_fill_(own, torch.inf)
        is_relevant &= ~own
    row, rank = is_relevant.gather(1, distances.sort(dim=1, stable=True).indices).nonzero().unbind(1)
    return Hits(rows[row], rank + 1, len(queries))


def _ranks_by_counting(
    queries: Tensor,
    galleries: Tensor,
    query_labels: Tensor,
    gallery_labels: Tensor,
    items: tuple[Tensor, Tensor] | None,
    rows: Int[Tensor, " row"],
    memory_budget: int,
) -> Hits:
    """The hits of some queries; the others are there for symmetry."""
    row, gallery = _equal(query_labels[rows], gallery_labels)
    query = rows[row]
    if items is not None:
        others = items[0][query] != items[1][gallery]
        query, gallery = query[others], gallery[others]
    if len(query) == 0:
        return Hits(query, query, len(queries))
    n_threads = torch.get_num_threads() if queries.device.type == "cpu" else 1
    side = BLOCK
    while side > GROUP and side**2 * _BYTES_OF_A_PAIR + 32 * side * queries.shape[1] > memory_budget // 4 // n_threads:
        side //= 2
    blocks = PairBlocks(queries, galleries, shape=(side, side), memory_budget=memory_budget // 4)
    counts = _Counts(blocks, queries, galleries, query, gallery, side)
    uncounted = [(query_labels, gallery_labels), *([] if items is None else [items])]
    mirrored = blocks.symmetric and all(torch.equal(*keys) for keys in uncounted)

    def look(block: Block) -> None:
        first, other, nearness = block
        for of_queries, of_galleries in uncounted:
            row, column = _equal(of_queries[first : first + side], of_galleries[other : other + side])
            nearness[row, column] = -torch.inf
        counts.add(nearness, first, other)
        if mirrored and first != other:
            counts.add(nearness.T, other, first)

    places = ((i, j) for i in range(blocks.n_query_blocks) for j in range(i * mirrored, blocks.n_gallery_blocks))
    blocks.visit(list(places), look)
    return counts.hits()


class _Counts:
    """For all relevant pairs, how many other galleries come before them.

    Pairs are sorted by query, then distance, then gallery. The *place* of another gallery among those of a query is the
    first pair that it comes before. Galleries are counted at their places, and added up at the end.
    """

    def __init__(
        self, blocks: PairBlocks, queries: Tensor, galleries: Tensor, query: Tensor, gallery: Tensor, side: int
    ) -> None:
        distance = measured(queries, galleries, query, gallery)
        order = distance.argsort(stable=True)
        order = order[query[order].argsort(stable=True)]
        self._queries, self._galleries, self._query = queries, galleries, query
        self._query_slack, self._gallery_slack = blocks.query_slack, blocks.gallery_slack
        self._n_pairs = torch.bincount(query, minlength=len(queries))
        self._ends = self._n_pairs.cumsum(0)
        self._starts = self._ends - self._n_pairs
        # a place after the last pair can be looked up, too
        self._gallery, self._distance = F.pad(gallery[order], (0, 1)), F.pad(distance[order], (0, 1))
        self._reach = nearness_within(self._distance, queries.shape[1])
        self._inside = _nearness_inside(self._distance, queries.shape[1])
        # what does not reach its query's farthest pair comes after all; rows that fill up a block have no pairs
        farthest = self._reach[(self._ends - 1).clamp(min=0)]
        self._limits = F.pad(farthest.masked_fill(self._n_pairs == 0, torch.inf), (0, side), value=torch.inf)
        self._n_pairs_in_blocks = F.pad(self._n_pairs, (0, side))
        self._most_pairs = int(self._n_pairs.amax())
        self._counts = torch.zeros_like(query)
        self._lock, self._of_thread, self._side = Lock(), local(), side

    def add(self, nearness: Float[Tensor, "query gallery"], first_query: int, first_gallery: int) -> None:
        """Count the galleries of a block; those that must not be counted are infinitely far."""
        limits = self._limits[first_query : first_query + len(nearness)]
        if not (nearness.amax(dim=1) >= limits).any():
            return
        is_near = torch.ge(nearness, limits[:, None], out=self._scratch(nearness, 0))
        n_near = is_near.sum(dim=1)
        # placing a near gallery takes as long as comparing a row with some four relevant items
        n_pairs = self._n_pairs_in_blocks[first_query : first_query + len(nearness)]
        n_passes, rows = torch.where(n_near > 4 * n_pairs, n_pairs, 0).sort(descending=True)
        if n := int((n_passes > 0).sum()):
            torch.ge(nearness, limits.index_fill(0, rows[:n], torch.inf)[:, None], out=is_near)
        row, column = _ones(is_near)
        for start in range(0, len(row), _PAIRS):
            r, c = row[start : start + _PAIRS], column[start : start + _PAIRS]
            self._count_at_places(first_query + r, first_gallery + c, nearness[r, c], nearness.numel())
        if n:
            near = _take_rows(nearness, rows[:n], self._scratch(nearness, 1))
            self._count_in_passes(near, first_query + rows[:n], n_passes[:n], first_gallery)

    def hits(self) -> Hits:
        up_to = self._counts.cumsum(0)
        start = self._starts[self._query]
        own = torch.arange(1, len(up_to) + 1, device=up_to.device) - start
        return Hits(self._query, own + up_to - (up_to - self._counts)[start], len(self._queries))

    def _count_in_passes(
        self, near: Float[Tensor, "row gallery"], query: Tensor, n_passes: Tensor, first_gallery: int
    ) -> None:
        """Compare whole rows with their first relevant items, then the second ones, and so on."""
        slack = self._gallery_slack[first_gallery : first_gallery + near.shape[1]].amax() + self._query_slack[query]
        slack *= 1 + 8 * torch.finfo(near.dtype).eps
        compared, unsure = (self._scratch(near, i) for i in (0, 2))
        unsure.zero_()
        n_before = near.new_zeros(len(near))
        passes = torch.arange(int(n_passes[0]), device=near.device)
        for i, n in enumerate((n_passes > passes[:, None]).sum(dim=1).tolist()):
            place = self._starts.index_select(0, query[:n]) + i
            torch.ge(near[:n], self._reach[place, None], out=compared[:n])
            unsure[:n] += compared[:n]
            n_reach = compared[:n].sum(dim=1)
            self._count(place, (n_reach - n_before[:n]).long())
            n_before = n_reach
            torch.gt(near[:n], (self._inside[place] + slack[:n])[:, None], out=compared[:n])
            unsure[:n] -= compared[:n]
        row, column = _ones(unsure)
        query, gallery, value = query[row], first_gallery + column, near[row, column]
        self._count(self._first_reached(query, value), -1)
        self._count_at_places(query, gallery, value, near.numel())

    def _scratch(self, like: Tensor, number: int) -> Tensor:
        """One of the matrices, of the shape and layout of ``like``, that each thread overwrites again and again."""
        if not hasattr(self._of_thread, "numbers"):
            self._of_thread.numbers = like.new_empty(3, self._side**2)
        numbers = self._of_thread.numbers[number, : like.numel()]
        return numbers.view(like.shape) if like.stride(1) == 1 else numbers.view(like.T.shape).T

    def _count_at_places(self, query: Tensor, gallery: Tensor, nearness: Tensor, n_seen: int) -> None:
        """Count galleries, by bounds of their nearness and if need be by their distances; ``n_seen`` were looked at."""
        places, ends = self._first_reached(query, nearness), self._ends[query]
        slack = (self._query_slack[query] + self._gallery_slack[gallery]) * (1 + 8 * torch.finfo(nearness.dtype).eps)
        unsure = (nearness - slack <= self._inside[places]).nonzero().squeeze(1)
        query, gallery = query[unsure], gallery[unsure]
        if len(unsure) * _MEASURED_SHARE > n_seen:
            first_query, first_gallery = query.amin(), gallery.amin()
            distance = _distances_within(
                self._queries[int(first_query) : int(query.amax()) + 1],
                self._galleries[int(first_gallery) : int(gallery.amax()) + 1],
                query - first_query,
                gallery - first_gallery,
            )
        else:
            distance = measured(self._queries, self._galleries, query, gallery)

        def comes_before(place: Tensor) -> Tensor:
            known = self._distance[place]
            return (known < distance) | ((known == distance) & (self._gallery[place] < gallery))

        places[unsure] = self._first(places[unsure], ends[unsure], comes_before)
        self._count(places[places < ends], 1)

    def _first_reached(self, query: Tensor, nearness: Tensor) -> Tensor:
        """The first places that are not certainly nearer."""
        return self._first(self._starts[query], self._ends[query], lambda place: self._reach[place] > nearness)

    def _first(self, first: Tensor, end: Tensor, comes_before: Callable[[Tensor], Tensor]) -> Tensor:
        """The first places, by bisection, that do not come before what is to be placed; ``end`` if all do."""
        for _ in range(self._most_pairs.bit_length()):
            middle = (first + end) // 2
            later = (middle < end) & comes_before(middle)
            first, end = torch.where(later, middle + 1, first), torch.where(later, end, middle)
        return first

    def _count(self, places: Tensor, n: Tensor | int) -> None:
        values = n if isinstance(n, Tensor) else torch.full_like(places, n)
        with self._lock:  # blocks may be looked at by several threads
            self._counts.index_add_(0, places, values)


def _take_rows(matrix: Tensor, rows: Int[Tensor, " row"], buffer: Tensor) -> Float[Tensor, "row column"]:
    """The rows of a matrix that may be transposed, in its layout, written to a buffer of as many numbers."""
    if matrix.stride(1) == 1:
        return torch.index_select(matrix, 0, rows, out=buffer[: len(rows)])
    numbers = buffer.T.view(-1)[: len(rows) * matrix.shape[1]].view(-1, len(rows))
    return torch.index_select(matrix.T, 1, rows, out=numbers).T


def _ones(mask: Float[Tensor, "row column"]) -> tuple[Int[Tensor, " hit"], Int[Tensor, " hit"]]:
    """Rows and columns of the numbers that are not zero. It is quicker to look at two of them at a time."""
    if mask.stride(1) != 1:
        column, row = _ones(mask.T)
        return row, column
    two = mask.view(-1).view(torch.int64 if mask.dtype == torch.float32 else torch.complex128).nonzero().squeeze(1)
    hit, place = mask.view(-1, 2).index_select(0, two).nonzero().unbind(1)
    number = two.index_select(0, hit).mul_(2).add_(place)
    row = number // mask.shape[1]
    return row, number.sub_(row * mask.shape[1])


def _distances_within(
    queries: Float[Tensor, "query dim"],
    galleries: Float[Tensor, "gallery dim"],
    row: Int[Tensor, "..."],
    column: Int[Tensor, "..."],
) -> Float[Tensor, "..."]:
    """What ``measured`` says of many pairs of few vectors: bounds in float64 leave but one number to round to."""
    blocks = PairBlocks(queries.double(), galleries.double(), shape=(len(queries) + GROUP, len(galleries) + GROUP))
    (nearness,) = blocks.visit([(0, 0)], lambda block: block.nearness[row, column])
    dtype = torch.promote_types(torch.promote_types(queries.dtype, galleries.dtype), torch.float32)
    error = (queries.shape[1] + 8) * torch.finfo(torch.float64).eps  # of sums and square roots
    slack = (blocks.query_slack[row] + blocks.gallery_slack[column]) * (1 + error)
    farthest = (slack - nearness).clamp_(min=0).mul_(2).sqrt_().mul_(1 + error).to(dtype)
    distance = nearness.clamp_(max=0).mul_(-2).sqrt_().mul_(1 - error).to(dtype)
    unsure = distance != farthest
    row, column = (ids.expand(unsure.shape)[unsure] for ids in (row, column))
    distance[unsure] = measured(queries, galleries, row, column)
    return distance


def _nearness_inside(distances: Float[Tensor, " pair"], dim: int) -> Float[Tensor, " pair"]:
    """The counterpart of ``nearness_within``: pairs whose nearness is above it are nearer than ``distances``."""
    info = torch.finfo(distances.dtype)
    slack = 8 * info.eps + dim * torch.finfo(torch.float64).eps
    limit = (distances.double() * (1 - slack) - info.tiny).clamp_(min=0).square_().mul_(-0.5)
    return limit.mul_(1 - info.eps).to(distances.dtype).add_(info.tiny)


def _equal(values: Int[Tensor, " row"], others: Int[Tensor, " column"]) -> tuple[Tensor, Tensor]:
    """Rows and columns, in this order, of the pairs of equal values."""
    others, order = others.sort(stable=True)
    first = torch.searchsorted(others, values)
    n = torch.searchsorted(others, values, right=True) - first
    row = torch.arange(len(values), device=values.device).repeat_interleave(n)
    shift = first - (n.cumsum(0) - n)
    return row, order[torch.arange(len(row), device=values.device) + shift[row]]


def _parts(n: Int[Tensor, " query"], limit: int) -> Iterator[slice]:
    """Ranges of queries that have at most ``limit`` of something together, or are one query."""
    ends = n.cumsum(0)
    start, before = 0, 0
    while start < len(n):
        stop = max(start + 1, int(torch.searchsorted(ends, before + limit, right=True)))
        yield slice(start, stop)
        start, before = stop, int(ends[stop - 1])
