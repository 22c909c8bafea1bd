"""Exact search: for every query its nearest galleries, in bounded memory."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from oml.functional.pair_blocks import (
    BLOCK,
    GROUP,
    Block,
    PairBlocks,
    check_pairs,
    copies,
    in_threads,
    measured,
    near_columns,
    near_rows,
    nearness_within,
    row_sums,
)

_PAIR_BYTES = 24  # of a pair that is held: query, gallery, bound
_CLOSELY = 4 * GROUP  # rows of a block that are worked on at a time if all numbers may be needed


class Neighbours(NamedTuple):
    """Row i holds the galleries nearest to query i, nearest first; a place without a gallery has id -1, distance inf.

    Example:
        >>> Neighbours(ids=torch.tensor([[4, -1]]), distances=torch.tensor([[0.5, torch.inf]])).ids
        tensor([[ 4, -1]])
    """

    ids: Int[Tensor, "query rank"]
    distances: Float[Tensor, "query rank"]


@torch.no_grad()
def exact_search(
    queries: Float[Tensor, "query dim"],
    galleries: Float[Tensor, "gallery dim"],
    top_k: int,
    *,
    query_items: Int[Tensor, " query"] | None = None,
    gallery_items: Int[Tensor, " gallery"] | None = None,
    distance: Literal["l2", "cosine"] = "l2",
    product_dtype: torch.dtype | None = None,
    memory_budget: int = 512 * 2**20,
    share: tuple[int, int] = (0, 1),
) -> Neighbours:
    """The ``min(top_k, gallery)`` nearest galleries of every query.

    ``ids`` are rows of ``galleries``; equal distances rank by id. The (unsquared) L2 distance is
    ``sqrt(sum((q - g) ** 2))`` evaluated in float64 and rounded to the inputs' dtype (float32 for half precision); the
    order is that of the rounded distances. The cosine distance ``1 - cos(q, g)``, from 0 to 2, is half the square of
    the L2 distance, as above, between ``q / |q|`` and ``g / |g|``; these are evaluated in float64 and rounded to the
    same dtype, and the order is that of their L2 distances. No bit of the result depends on the memory budget, the
    threads, the dtype of the product or the other queries.

    How: a matrix product gives bounds for the distances of a block of pairs, and whatever is farther than the ``top_k``
    nearest so far is passed over; only what the bounds leave open is measured. If ``galleries is queries``, one
    product serves both directions of a pair. Of galleries that are copies of each other, bit for bit, those that
    cannot be among the first are left out. Gradients do not flow.

    Args:
        queries: What to search with.
        galleries: What to search in, on the same device. One that has no float64 leaves the work to the CPU.
        top_k: How many galleries to find per query.
        query_items: Numbers of the queries' items. A gallery with the same number is not retrieved: give positions
            in the data set so that an item does not find itself, or sequence numbers so that it finds no near copy.
        gallery_items: Numbers of the galleries' items, if and only if ``query_items`` are given.
        distance: ``l2`` or ``cosine``.
        product_dtype: ``torch.bfloat16`` to find the bounds with products in bfloat16: the same result, sooner on
            hardware that has them, although more pairs have to be measured; not for float64. By default chosen by what
            is faster: bfloat16 on CPUs that multiply in it, from 2^28 pairs of float32 vectors of size 256 on.
        memory_budget: Bytes to use beyond inputs and outputs, besides a few numbers per vector. Blocks of
            32 queries and 32 galleries are always allowed, and a few candidates per query.
        share: ``(i, n)`` for part ``i`` of the work that ``n`` processes share: the nearest among a part of the pairs,
            of which :func:`joined` makes the result; L2 only.

    Raises:
        ValueError: Wrong shapes, devices, dtypes or ``top_k``; embeddings that are not finite or too large to be
            squared, or zero if the distance is cosine.

    Example:
        >>> points = torch.tensor([[0.0], [1.0], [3.0]])
        >>> ids, distances = exact_search(points, points, 2, query_items=torch.arange(3), gallery_items=torch.arange(3))
        >>> ids
        tensor([[1, 2],
                [0, 2],
                [1, 0]])
        >>> distances
        tensor([[1., 3.],
                [1., 2.],
                [2., 3.]])
        >>> exact_search(torch.tensor([[2.0, 0.0]]), torch.tensor([[-1.0, 0.0], [5.0, 0.0]]), 2, distance="cosine")
        Neighbours(ids=tensor([[1, 0]]), distances=tensor([[0., 2.]]))
    """
    dtype = torch.promote_types(torch.promote_types(queries.dtype, galleries.dtype), torch.float32)
    _check_options(top_k, distance, product_dtype, dtype)
    if not 0 <= share[0] < share[1] or (share[1] > 1 and distance != "l2"):
        raise ValueError(
            f"exact_search takes as share (i, n) with 0 <= i < n, for L2 only, got {share} and {distance}."
        )
    check_pairs("exact_search", queries, galleries, memory_budget, items=(query_items, gallery_items))
    device = queries.device
    symmetric = _same(queries, galleries)
    queries, galleries = queries.detach(), galleries.detach()
    if not _has_float64(device):
        queries, galleries = queries.cpu(), galleries.cpu()
        if query_items is not None and gallery_items is not None:
            query_items, gallery_items = query_items.cpu(), gallery_items.cpu()
    if distance == "cosine":
        queries = _normalised(queries, "queries", dtype)
        galleries = queries if symmetric else _normalised(galleries, "galleries", dtype)
    task = _Task(
        queries,
        queries if symmetric else galleries,
        query_items,
        gallery_items,
        min(top_k, len(galleries)),
        product_dtype or _fastest_product(queries, galleries, dtype),
        memory_budget,
        None,
        share,
    )
    ids, distances = _search(task)
    if distance == "cosine":
        distances = distances.double().square_().div_(2).to(dtype)
    return Neighbours(ids.to(device), distances.to(device))


def joined(shares: Sequence[Neighbours]) -> Neighbours:
    """The result of a search of which each share has looked at a part of the pairs, bit for bit that of one.

    Example:
        >>> points = torch.tensor([[0.0], [1.0], [3.0]])
        >>> joined([exact_search(points, points, 2, share=(i, 2)) for i in range(2)]).ids
        tensor([[0, 1],
                [1, 0],
                [2, 1]])
    """
    ids, distances = (torch.cat(parts, dim=1) for parts in zip(*shares, strict=True))
    order = ids.argsort(dim=1)
    order = order.gather(1, distances.gather(1, order).argsort(dim=1, stable=True))[:, : shares[0].ids.shape[1]]
    return Neighbours(ids.gather(1, order), distances.gather(1, order))


class _Task(NamedTuple):
    queries: Tensor
    galleries: Tensor
    query_items: Tensor | None
    gallery_items: Tensor | None
    top_k: int
    product_dtype: torch.dtype
    memory_budget: int
    among_copies: Tensor | None  # whether a query's places are all taken by copies of it
    share: tuple[int, int] = (0, 1)

    def of_queries(self, which: Tensor | slice) -> "_Task":
        query_items, among_copies = (
            None if part is None else part[which] for part in (self.query_items, self.among_copies)
        )
        return self._replace(queries=self.queries[which], query_items=query_items, among_copies=among_copies)


def _search(task: _Task) -> tuple[Int[Tensor, "query rank"], Float[Tensor, "query rank"]]:
    """Without those copies among the galleries that nobody can retrieve."""
    if task.top_k == 0 or len(task.queries) == 0:
        return _nothing(task)
    # finding copies takes as long as a few queries; what is left may be copied
    if len(task.queries) < GROUP or task.galleries.nbytes > task.memory_budget // 4:
        return _search_all(task)
    spare, among_copies = _copies(task)
    with_itself = task.galleries is task.queries
    if with_itself:
        task = task._replace(among_copies=among_copies)
    if not bool(spare.any()):
        return _search_all(task)
    kept = (~spare).nonzero().squeeze(1)
    first = task.of_queries(kept) if with_itself else task
    galleries = first.queries if with_itself else task.galleries[kept]
    gallery_items = None if task.gallery_items is None else task.gallery_items[kept]
    memory_budget = task.memory_budget - galleries.nbytes

    def search_kept(part: _Task) -> tuple[Tensor, Tensor]:
        return _search_all(part._replace(galleries=galleries, gallery_items=gallery_items, memory_budget=memory_budget))

    ids, distances = search_kept(first)
    if with_itself:
        of_kept, (ids, distances) = (ids, distances), _nothing(task)
        ids[kept], distances[kept] = of_kept
        ids[spare], distances[spare] = search_kept(task.of_queries(spare))
    return torch.where(ids < 0, -1, kept[ids]), distances


def _nothing(task: _Task) -> tuple[Int[Tensor, "query rank"], Float[Tensor, "query rank"]]:
    shape = len(task.queries), task.top_k
    dtype = torch.promote_types(torch.promote_types(task.queries.dtype, task.galleries.dtype), torch.float32)
    return (
        torch.full(shape, -1, device=task.queries.device),
        torch.full(shape, torch.inf, dtype=dtype, device=task.queries.device),
    )


def _copies(task: _Task) -> tuple[Bool[Tensor, " gallery"], Bool[Tensor, " gallery"]]:
    """Which galleries no query can retrieve, for enough copies of them have lower ids, and which have enough copies."""
    # as many as there are places, and all that may be left out as items of the query
    n_needed = task.top_k
    if task.gallery_items is not None:
        n_needed += int(task.gallery_items.unique(return_counts=True)[1].amax())
    order, group = copies(task.galleries)
    spare, has_enough = torch.empty(2, len(order), dtype=torch.bool, device=order.device)
    spare[order] = _rank(group) >= n_needed
    has_enough[order] = (group.bincount() >= n_needed)[group]
    return spare, has_enough


def _search_all(task: _Task) -> tuple[Int[Tensor, "query rank"], Float[Tensor, "query rank"]]:
    n_candidates = 2 * task.top_k + 8
    n_queries = max(GROUP, task.memory_budget // 4 // (_PAIR_BYTES * n_candidates))
    if n_queries >= len(task.queries):
        return _Search(task).run()
    parts = [slice(first, first + n_queries) for first in range(0, len(task.queries), n_queries)]
    ids, distances = zip(*(_Search(task.of_queries(part)).run() for part in parts), strict=True)
    return torch.cat(ids), torch.cat(distances)


class _Pairs(NamedTuple):
    """Pairs that may be needed: the query's place in its row of blocks, the gallery's id, the bound, at most 0."""

    row: Int[Tensor, " pair"]
    ids: Int[Tensor, " pair"]
    nearness: Float[Tensor, " pair"]

    def take(self, which: Tensor) -> "_Pairs":
        if which.dtype == torch.bool:
            which = which.nonzero().squeeze(1)
        return _Pairs(*(part.index_select(0, which) for part in self))


class _Search:
    """One pass over the blocks.

    For each query a limit rises: what is below it is farther than ``top_k`` galleries that are known, even after
    rounding. What reaches the limit is held, until a higher one shows that it is not needed. Each round looks at twice
    as many galleries as the last, so that about ``top_k`` new ones per query reach its limit in a round.
    """

    def __init__(self, task: _Task) -> None:
        self.task = task
        side = _side_of_blocks(task)
        self.blocks = PairBlocks(
            task.queries,
            task.galleries,
            shape=(side, side),
            memory_budget=task.memory_budget // 4,
            product_dtype=task.product_dtype,
        )
        self.n_rows = self.blocks.n_rows
        # above the numbers that fill up blocks, below all others
        lowest = -torch.finfo(self.blocks.dtype).max / 10
        n_limits = self.blocks.n_query_blocks * self.n_rows
        self.limits = torch.full((n_limits,), lowest, dtype=self.blocks.dtype, device=task.queries.device)
        if task.among_copies is not None:
            within_zero = nearness_within(self.limits.new_zeros(1), task.queries.shape[1])
            self.limits[: len(task.queries)].masked_fill_(task.among_copies, within_zero.squeeze())
        self.held: list[list[_Pairs]] = [[] for _ in range(self.blocks.n_query_blocks)]
        self.n_pairs = task.memory_budget // 8 // _PAIR_BYTES
        # pairs that the queries of a block may hold on average before they are measured
        self.crowd = max(2 * task.top_k + 8, min(64, self.n_pairs // len(task.queries)))

    def run(self) -> tuple[Int[Tensor, "query rank"], Float[Tensor, "query rank"]]:
        n_blocks = max(torch.get_num_threads(), self.n_pairs // (2 * self.n_rows * self.crowd))
        n_new = 0
        for number, places in enumerate(self.rounds()):
            for first in range(0, len(places), n_blocks):
                look = self.look if number else self.look_closely
                for found in self.blocks.visit(places[first : first + n_blocks], look):
                    for q, pairs, limits in found:
                        self.held[q // self.n_rows].append(pairs)
                        self.raise_limits(q, limits)
                        n_new += len(pairs.ids)
                if n_new > self.n_pairs or first + n_blocks >= len(places):
                    in_threads(self.merge, range(len(self.held)), self.limits.device)
                    n_new = 0
        ids, distances = _nothing(self.task)

        def settle(row: int) -> None:
            if not self.held[row]:  # this share has none of its blocks
                return
            q, (pairs,) = row * self.n_rows, self.held[row]
            nearest, of_nearest, _ = self.nearest(q, pairs)
            places = q + nearest.row, _rank(nearest.row)
            ids[places], distances[places] = nearest.ids, of_nearest

        in_threads(settle, range(len(self.held)), self.limits.device)
        return ids, distances

    def rounds(self) -> Iterator[list[tuple[int, int]]]:
        """Blocks by row and column; a round has as many of each row, so that all limits rise alike."""
        own, n_shares = self.task.share
        n, m = self.blocks.n_query_blocks, self.blocks.n_gallery_blocks
        n_steps = n // 2 + 1 if self.blocks.symmetric else m
        # a query in one share is settled once; where pairs serve both directions, halving their number is worth more
        by_row = not self.blocks.symmetric and n >= 4 * n_shares
        first = 0
        while first < n_steps:
            last = min(2 * first or 1, n_steps)
            yield [
                (row, (row + step) % m)
                for row in range(n)
                for step in range(first, last)
                # in the last step of an even number, half of the blocks are the others transposed
                if (row if by_row else row + step) % n_shares == own
                and (not self.blocks.symmetric or 2 * step < n or row < n // 2)
            ]
            first = last

    def look(self, block: Block) -> list[tuple[int, _Pairs, Tensor | None]]:
        """The pairs of a block that reach their limits, by the first query of their row of blocks."""
        q, g, nearness = block
        row, column = near_rows(nearness, self.limits_of(q))
        sides = [(q, g, row, column, row * nearness.shape[1] + column)]
        if self.blocks.symmetric and q != g:
            column, row = near_columns(nearness, self.limits_of(g))
            sides.append((g, q, column, row, row * nearness.shape[1] + column))
        if any(len(places) > self.crowd * self.n_rows for *_, places in sides):
            return self.look_closely(block)
        numbers = nearness.view(-1)
        return [
            (q, self.without_own(q, _Pairs(row, ids + g, numbers.index_select(0, places).clamp_(max=0))), None)
            for q, g, row, ids, places in sides
        ]

    def look_closely(self, block: Block) -> list[tuple[int, _Pairs, Tensor | None]]:
        """The same if there may be too many: with higher limits, which the block itself gives."""
        q, g, nearness = block
        sides = [(q, g, nearness)]
        if self.blocks.symmetric and q != g:
            sides.append((g, q, nearness.T.contiguous()))
        found = []
        for q, g, numbers in sides:
            limits, pairs = self.limits_of(q).clone(), []
            for first in range(0, len(numbers), _CLOSELY):
                part, of_part = numbers[first : first + _CLOSELY], limits[first : first + _CLOSELY]
                row, column = self.near_and_allowed(self.blocks, of_part, (0, 0), Block(q + first, g, part))
                if len(row) > self.crowd * len(part) and self.blocks.dtype != torch.float64:
                    row, column = self.near_in_float64(of_part, q + first, g, part.shape[1])
                new = _Pairs(row + first, column + g, part[row, column].clamp_(max=0))
                if len(row) > self.crowd * len(part):
                    new, _, measured_limits = self.nearest(q, _sorted(new))
                    torch.maximum(limits, measured_limits, out=limits)
                pairs.append(new)
            found.append((q, _Pairs(*map(torch.cat, zip(*pairs, strict=True))), limits))
        return found

    def near_in_float64(self, limits: Float[Tensor, " row"], q: int, g: int, n_columns: int) -> tuple[Tensor, Tensor]:
        """The same as ``near_and_allowed``, by the bounds of float64, which tell near copies apart."""
        blocks = PairBlocks(
            self.task.queries[q : q + len(limits)],
            self.task.galleries[g : g + n_columns],
            shape=(len(limits), n_columns),
            product_dtype=torch.float64,
        )
        return blocks.visit([(0, 0)], partial(self.near_and_allowed, blocks, limits[: blocks.n_rows], (q, g)))[0]

    def near_and_allowed(
        self, blocks: PairBlocks, limits: Float[Tensor, " row"], start: tuple[int, int], block: Block
    ) -> tuple[Int[Tensor, " pair"], Int[Tensor, " pair"]]:
        """Raises the limits by a block; rows and columns of what reaches them, without the queries' own.

        ``start`` is where the ``blocks`` begin.
        """
        q, g, numbers = block
        k, n_columns, rounding = self.task.top_k, numbers.shape[1], blocks.rounding
        if self.task.query_items is not None and self.task.gallery_items is not None:
            query_items = self.task.query_items[start[0] + q :][: len(numbers), None]
            gallery_items = self.task.gallery_items[start[1] + g :][:n_columns]
            numbers[: len(query_items), : len(gallery_items)].masked_fill_(query_items == gallery_items, -torch.inf)
        if n_columns >= k:
            lower = numbers.clamp(max=0).mul_(1 + rounding)
            slack = blocks.gallery_slack[g : g + n_columns]
            lower[:, : len(slack)] -= slack
            if 2 * k <= n_columns // GROUP:  # among the largest of each group, which are quick to find
                lower = lower.unflatten(1, (GROUP, -1)).amax(dim=1)
            lower = lower.topk(k, dim=1).values[:, -1]
            slack = blocks.query_slack[q : q + len(numbers)]
            lower[: len(slack)] -= slack
            torch.maximum(limits, self.limit(lower), out=limits)
        return near_rows(numbers, limits.to(numbers.dtype))

    def limit(self, kth_lower: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
        """What is below it is farther than ``top_k`` galleries with lower bounds as high as this."""
        distances = kth_lower.mul(-2).sqrt_().to(self.limits.dtype)
        return nearness_within(distances, self.task.queries.shape[1])

    def merge(self, row: int) -> None:
        """What the queries of a row of blocks hold becomes one, with the limits that follow from it."""
        if len(self.held[row]) < 2:
            return
        q = row * self.n_rows
        pairs = _sorted(_Pairs(*map(torch.cat, zip(*self.held[row], strict=True))))
        full, places = _first(pairs.row, self.n_rows, self.task.top_k)
        lower = pairs.nearness[places].mul_(1 + self.blocks.rounding).sub_(self.blocks.gallery_slack[pairs.ids[places]])
        lower = lower.amin(dim=1).sub_(self.blocks.query_slack[q + full])
        limits = self.limits_of(q)
        limits[full] = torch.maximum(limits[full], self.limit(lower))
        pairs = pairs.take(pairs.nearness >= limits.index_select(0, pairs.row))
        if len(pairs.ids) > self.crowd * self.n_rows:
            pairs, _, measured_limits = self.nearest(q, pairs)
            self.raise_limits(q, measured_limits)
        self.held[row] = [pairs]

    def nearest(self, q: int, pairs: _Pairs) -> tuple[_Pairs, Float[Tensor, " pair"], Float[Tensor, " row"]]:
        """The ``top_k`` nearest of each query, by distance and id, their distances, and the limits they give."""
        k, dim = self.task.top_k, self.task.queries.shape[1]
        distances = torch.full_like(pairs.nearness, torch.inf)

        def measure(which: Tensor) -> None:
            distances[which] = measured(
                self.task.queries,
                self.task.galleries,
                q + pairs.row[which],
                pairs.ids[which],
                self.task.memory_budget // 8,
            )

        def limits() -> Tensor:
            full, places = _first(pairs.row, self.n_rows, k)
            of_rows = torch.full_like(self.limits[: self.n_rows], -torch.inf)
            of_rows[full] = nearness_within(distances[places].amax(dim=1), dim)
            return of_rows

        is_first = _rank(pairs.row) < k
        measure(is_first.nonzero().squeeze(1))
        may_come_in = pairs.nearness >= limits().index_select(0, pairs.row)
        measure((may_come_in & ~is_first).nonzero().squeeze(1))
        order = pairs.ids.argsort()
        for values in (distances, pairs.row):
            order = order[values[order].argsort(stable=True)]
        order = order[_rank(pairs.row[order]) < k]
        pairs, distances = pairs.take(order), distances[order]
        return pairs, distances, limits()

    def limits_of(self, q: int) -> Float[Tensor, " row"]:
        return self.limits[q : q + self.n_rows]

    def raise_limits(self, q: int, limits: Tensor | None) -> None:
        if limits is not None:
            torch.maximum(self.limits_of(q), limits, out=self.limits_of(q))

    def without_own(self, q: int, pairs: _Pairs) -> _Pairs:
        if self.task.query_items is None or self.task.gallery_items is None:
            return pairs
        query_items = self.task.query_items.index_select(0, pairs.row + q)
        others = query_items != self.task.gallery_items.index_select(0, pairs.ids)
        return pairs if bool(others.all()) else pairs.take(others)


def _sorted(pairs: _Pairs) -> _Pairs:
    """By row, then nearness: the nearest first."""
    # numbers without sign are in the order of their bits; of float64, half of them will do
    far = pairs.nearness.abs()
    bits = far.view(torch.int64) >> 32 if far.dtype == torch.float64 else far.view(torch.int32).long()
    return pairs.take((pairs.row << 32).add_(bits).argsort())


def _first(row: Int[Tensor, " pair"], n_rows: int, k: int) -> tuple[Int[Tensor, " full"], Int[Tensor, "full rank"]]:
    """The rows that occur ``k`` times or more in the sorted ``row``, and where they do so first."""
    counts = row.bincount(minlength=n_rows)
    full = (counts >= k).nonzero().squeeze(1)
    starts = (counts.cumsum(0) - counts)[full]
    return full, starts[:, None] + torch.arange(k, device=row.device)


def _rank(row: Int[Tensor, " pair"]) -> Int[Tensor, " pair"]:
    """How often the same has occurred before in the sorted ``row``."""
    counts = row.bincount()
    return torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]


def _side_of_blocks(task: _Task) -> int:
    """Queries and galleries of a block, so that all threads can work within three eighths of the budget."""
    side, dim = BLOCK, task.queries.shape[1]
    n_threads = torch.get_num_threads() if task.queries.device.type == "cpu" else 1
    n_bytes = 2 * task.queries.element_size()  # of a number of the product or a vector
    while side > GROUP and n_threads * side * (side * (n_bytes + 48) + 3 * dim * n_bytes) > task.memory_budget * 3 // 8:
        side //= 2
    return side


def _same(queries: Tensor, galleries: Tensor) -> bool:
    """Whether both are the same vectors in memory."""
    return queries is galleries or (
        (queries.data_ptr(), queries.shape, queries.stride(), queries.dtype, queries.device)
        == (galleries.data_ptr(), galleries.shape, galleries.stride(), galleries.dtype, galleries.device)
    )


def _has_float64(device: torch.device) -> bool:
    try:
        torch.empty(1, dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):  # MPS
        return False
    return True


def _normalised(vectors: Tensor, name: str, dtype: torch.dtype) -> Tensor:
    """``x / |x|`` evaluated in float64, rounded."""
    result, zero = torch.empty(vectors.shape, dtype=dtype, device=vectors.device), []
    for start in range(0, len(vectors), BLOCK):
        x = vectors[start : start + BLOCK].double()
        largest = x.abs().amax(dim=1, keepdim=True)
        zero.append((largest == 0).squeeze(1))
        # by a power of two, which changes no bit, so that no square is lost
        x = torch.ldexp(x, -torch.frexp(largest).exponent)
        result[start : start + BLOCK] = x / row_sums(x.square())[:, None].sqrt_()
    if zero and len(bad := torch.cat(zero).nonzero().squeeze(1)):
        raise ValueError(
            f"exact_search needs {name} other than zero for the cosine distance, got zeros in {len(bad)} of "
            f"{len(vectors)} rows, such as rows {bad[:5].tolist()}. Look at the model or the inputs of these rows."
        )
    return result


def _fastest_product(queries: Tensor, galleries: Tensor, dtype: torch.dtype) -> torch.dtype:
    large = len(queries) * len(galleries) >= 2**28 and queries.shape[1] >= 256  # measured: below, it does not pay off
    if large and dtype == torch.float32 and queries.device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"):
            return torch.bfloat16
    return dtype


def _check_options(top_k: object, distance: object, product_dtype: torch.dtype | None, dtype: torch.dtype) -> None:
    if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
        raise ValueError(f"exact_search needs top_k >= 1 as an int, got {top_k!r}.")
    if distance not in ("l2", "cosine"):
        raise ValueError(f"exact_search knows the distances 'l2' and 'cosine', got {distance!r}.")
    if product_dtype not in (None, dtype) and (product_dtype, dtype) != (torch.bfloat16, torch.float32):
        raise ValueError(
            f"exact_search multiplies {dtype} in {dtype}{' or bfloat16' if dtype == torch.float32 else ''}, "
            f"got product_dtype={product_dtype}."
        )
