"""The allowed pairs of queries and galleries, counted by their distances while the products of all go by in blocks."""

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from threading import Lock, local
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from oml.functional.pair_blocks import BLOCK, GROUP, Block, PairBlocks, check_pairs, copies, measured, nearness_within

_BITS = 13  # of the mantissa that tell bins of squared distances apart: a bin is at most 1 / 8192 of its value wide
_SQUARES = 48  # blocks of the sample, each of rows and columns of its own, so that they tell the error of their mean
FEW_PAIRS = 2**18  # so many are all measured
_N_AT_ONCE = 64  # blocks whose finds are put together before others are looked at
_NUMBERS_AT_ONCE = 4096  # labels or items whose blocks are looked for together

WHY_NONE = {
    "positive": "Pairs of two items of one label are needed.",
    "negative": "Pairs of items of different labels are needed.",
}

#: how many distances lie below a range, and the ascending distinct ones in it with how often each occurs
_Finds = tuple[Tensor, Tensor, Tensor]


class Counted(NamedTuple):
    """All the distances of a range: ascending values, how often each occurs, and how many lie below the range."""

    n_below: int
    values: Float[Tensor, " value"]
    counts: Int[Tensor, " value"]

    def rank(self, k: int) -> float:
        """The distance of rank ``k``, from 0, of all."""
        above = (self.counts.cumsum(0) <= k - self.n_below).sum()
        return self.values[above].item()

    def n_less(self, threshold: float) -> int:
        """How many distances are below a threshold of this range."""
        return self.n_below + int(self.counts[self.values.double() < threshold].sum())


class AllowedPairs:
    """The allowed pairs of queries and galleries: the products of all of them go by in blocks."""

    def __init__(
        self,
        owner: str,
        queries: Tensor,
        galleries: Tensor,
        query_labels: Tensor,
        gallery_labels: Tensor,
        query_items: Tensor | None,
        gallery_items: Tensor | None,
        memory_budget: int,
    ) -> None:
        check_pairs(
            owner,
            queries,
            galleries,
            memory_budget,
            labels=(query_labels, gallery_labels),
            items=(query_items, gallery_items),
        )
        for name, vectors in (("queries", queries), ("galleries", galleries)):
            if len(vectors) == 0:
                raise ValueError(f"{owner} needs {name}, got none.")
        labels = _numbered(query_labels, gallery_labels)
        items = _numbered(query_items, gallery_items) if query_items is not None and gallery_items is not None else None
        keys = [labels] if items is None else [labels, items]
        self._symmetric = galleries is queries and all(torch.equal(*key) for key in keys)
        n_own = n_both = 0
        if items is not None:
            n_items = int(torch.cat(items).amax()) + 1
            n_own = _n_equal(items)
            n_both = _n_equal(_numbered(labels[0] * n_items + items[0], labels[1] * n_items + items[1]))
        n_same = _n_equal(labels)
        self.n_positives = n_same - n_both
        self.n_negatives = len(queries) * len(galleries) - n_same - n_own + n_both
        for name, n in (("positive", self.n_positives), ("negative", self.n_negatives)):
            if n == 0:
                raise ValueError(
                    f"{owner} needs {name} pairs, got none among {len(queries)} queries and {len(galleries)} "
                    f"galleries. {WHY_NONE[name]}"
                )

        self.few = self.n_positives + self.n_negatives <= FEW_PAIRS
        # Sorted by label, positive pairs are in few blocks.
        orders = [key.sort(stable=True).indices for key in labels]
        in_order = all(bool((order.diff() > 0).all()) for order in orders)
        n_bytes = sum(x.numel() * x.element_size() for x in ([queries] if self._symmetric else [queries, galleries]))
        if not in_order and n_bytes <= memory_budget // 4:
            q, g = orders
            queries, galleries = (queries[q], galleries[g]) if not self._symmetric else [queries[q]] * 2
            labels, *rest = ((key[0][q], key[1][g]) for key in keys)
            items = rest[0] if rest else None
        self._vectors = queries, galleries
        self._labels = labels[0].int(), labels[1].int()  # quicker to compare
        self._items = None if items is None else (items[0].int(), items[1].int())
        self._dim = queries.shape[1]

        rows = columns = BLOCK
        n_threads = torch.get_num_threads() if queries.device.type == "cpu" else 1
        while rows > GROUP and (40 * rows + 32 * self._dim) * rows * n_threads > memory_budget // 4:
            rows = columns = rows // 2
        rows, columns = (
            min(n, -(-len(x) // GROUP) * GROUP) for n, x in zip((rows, columns), self._vectors, strict=True)
        )
        self._shape = rows, columns
        self._blocks = PairBlocks(queries, galleries, shape=self._shape, memory_budget=memory_budget * 3 // 8)
        self.dtype = self._blocks.dtype
        self._memory_budget = memory_budget
        self._buffers = local()
        slacks = self._blocks.query_slack, self._blocks.gallery_slack
        self._row_slack, self._column_slack = (
            torch.stack([part.amax() for part in slack.split(n)]).double()
            for slack, n in zip(slacks, self._shape, strict=True)
        )
        #: by how much bounds are off, usually and at most
        self.slack = float(sum(slack.median() for slack in slacks))
        self.largest_slack = float(sum(slack.amax() for slack in slacks)) * 1.01
        info = torch.finfo(self.dtype)
        # half a squared distance is at most the sum of the squared norms, of which the slack is that part
        self.farthest = self.largest_slack / ((self._dim + 16) * info.eps) * 1.01
        self._labels_meet = self._meetings(self._labels)
        meet = self._labels_meet if self._items is None else self._labels_meet | self._meetings(self._items)
        self._meet = meet.tolist()  # as it is looked up for each block
        self._kinds = None
        if not self.few:
            of_queries = _kinds(queries)
            of_galleries = of_queries if galleries is queries else _kinds(galleries)
            if 2 * len(of_queries[1]) * len(of_galleries[1]) <= len(queries) * len(galleries):
                self._kinds = of_queries, of_galleries

        # a product of a pair takes about a hundredth of the time that measuring takes
        self._positives = None
        n_products = len(self._places(positive=True)) * rows * columns
        if self.n_positives <= min(n_products if self.few else n_products // 64, memory_budget // 256):
            self._positives = self._measured_positives()

    @cached_property
    def scale(self) -> "_Scale":
        """The bins that half squared distances, or their bounds, are counted in."""
        tiny = torch.finfo(self.dtype).tiny
        smallest, largest = (
            torch.tensor(x, dtype=self.dtype, device=self._vectors[0].device).clamp(min=tiny)
            for x in (self.slack / 8, self.farthest)
        )
        return _Scale(smallest, largest)

    def binned(self, *, positive: bool) -> Int[Tensor, " bin"]:
        """In which bins of the scale half squared distances are, or their lower bounds."""
        if positive and self._positives is not None:
            # as far below as bounds usually are, so that positives and negatives stay comparable
            nearness = self._positives.values.square().mul_(-0.5).add_(self.slack / 2)
            return self.scale.counts(nearness, torch.empty_like(nearness))
        counts = torch.zeros(len(self.scale.edges) - 1, dtype=torch.int64, device=self._vectors[0].device)
        lock = Lock()

        def look(block: Block) -> None:
            weight = self._allow(block, positive)
            found = self.scale.counts(block.nearness, self._scratch(block.nearness))
            with lock:
                counts.add_(found, alpha=weight)

        self._blocks.visit(self._places(positive), look)
        n_pairs = self.n_positives if positive else self.n_negatives
        assert int(counts.sum()) == n_pairs, "the bins cover all distances, and blocks all allowed pairs"
        return counts

    def counted(self, ranges: Sequence[tuple[float, float]], *, positive: bool) -> list[Counted]:
        """The distances in each of the ranges, whose ends are numbers of the distances' dtype and belong to it."""
        if not ranges:
            return []
        if positive and self._positives is not None:
            return [self._positives] * len(ranges)
        ends = torch.tensor(ranges, dtype=self.dtype, device=self._vectors[0].device)
        # pairs with a nearness below ``least`` are farther, pairs with one above ``most`` and the slack are nearer
        least = nearness_within(ends[:, 1], self._dim).clamp(min=-self.farthest)
        most = ends[:, 0].double().mul(1 - 8 * torch.finfo(ends.dtype).eps).square().mul(-0.5)

        def look(block: Block) -> list[_Finds]:
            weight = self._allow(block, positive)
            row, column = block.first_query // self._shape[0], block.first_gallery // self._shape[1]
            # rounded up
            limits = (most + self._row_slack[row] + self._column_slack[column]).to(ends.dtype)
            limits = limits.nextafter(limits.new_tensor(torch.inf))
            parts = zip(ends, least, limits, strict=True)
            return [self._between(block, weight, *part) for part in parts]

        finds: list[list[_Finds]] = [[] for _ in ranges]
        places = self._places(positive)
        for start in range(0, len(places), _N_AT_ONCE):
            found = self._blocks.visit(places[start : start + _N_AT_ONCE], look)
            finds = [[_put_together(old + list(new))] for old, *new in zip(finds, *found, strict=True)]
        none = ends.new_zeros(0), torch.zeros(0, dtype=torch.int64, device=ends.device)
        return [Counted(int(of[0][0]), *of[0][1:]) if of else Counted(0, *none) for of in finds]

    def distances_of(self, first: int, last: int, slack: float) -> tuple[float, float]:
        """The range of distances, as numbers of their dtype, of the bins from ``first`` to ``last``; to infinity if
        there is no such bin."""
        edges = self.scale.edges
        high = edges[last + 1] + slack if last + 1 < len(edges) else edges.new_tensor(torch.inf)
        rounding = 4 * torch.finfo(self.dtype).eps
        ends = torch.stack([edges[first], high]).mul(2).sqrt() * edges.new_tensor([1 - rounding, 1 + rounding])
        low, high = ends.to(self.dtype).tolist()
        return low, high

    def sampled(self) -> tuple[Float[Tensor, " bin"], Float[Tensor, " bin"]] | None:
        """For the end of each bin, between which shares the negatives up to it seem to be, by a sample of pairs.

        ``None`` if there are too few queries or galleries.
        """
        shape = [min(n, len(x) // 16 // GROUP * GROUP) for n, x in zip(self._shape, self._vectors, strict=True)]
        if min(shape) == 0:
            return None
        n_bytes = sum(n * x.element_size() * self._dim for n, x in zip(shape, self._vectors, strict=True))
        most = max(8, min(_SQUARES, self._memory_budget // 4 // n_bytes))
        n_squares = min(most, *(len(x) // n for n, x in zip(shape, self._vectors, strict=True)))
        generator = torch.Generator().manual_seed(0)
        chosen = [
            torch.randperm(len(x), generator=generator)[: n * n_squares].to(x.device)
            for n, x in zip(shape, self._vectors, strict=True)
        ]
        vectors = [x[ids] for x, ids in zip(self._vectors, chosen, strict=True)]
        blocks = PairBlocks(*vectors, shape=(shape[0], shape[1]))
        # the sums over squares of each one's count, its square, and its product with the number of pairs
        up_to, squares, products = (torch.zeros_like(self.scale.edges[1:]) for _ in range(3))
        lock = Lock()

        def look(block: Block) -> Tensor:
            rows, columns = (ids[first : first + n] for ids, first, n in zip(chosen, block[:2], shape, strict=True))
            block.nearness.masked_fill_(self._left_out(rows, columns, positive=False), -torch.inf)
            found = self.scale.counts(block.nearness, self._scratch(block.nearness)).cumsum(0)
            with lock:  # whole numbers below 2^53, so the order of the blocks does not change the sums
                up_to.add_(found)
                squares.add_(found.square())
                products.add_(found * found[-1])
            return found[-1]

        totals = blocks.visit([(i, i) for i in range(n_squares)], look)
        total = torch.stack(totals).double()
        if not total.any():
            return None
        share = up_to / total.sum()
        # the standard error of a ratio of sums over independent squares
        spread = squares - 2 * share * products + share.square() * total.square().sum()
        error = (spread.clamp(min=0) * n_squares / (n_squares - 1)).sqrt() / total.sum()
        margin = (4 + 16 / n_squares) * error + 16 / total.sum()
        return (share - margin).flip(0).cummin(0).values.flip(0), (share + margin).cummax(0).values

    def _measured_positives(self) -> Counted:
        found = []
        n_at_once = max(1024, min(2**18, self._memory_budget // 256))
        for query, gallery in positive_pairs(self._labels, self._items, n_at_once):
            kept = query <= gallery if self._symmetric else torch.ones_like(query, dtype=torch.bool)
            found.append(self._measure(query[kept], gallery[kept]))
            if self._symmetric:
                found.append(found[-1][(query < gallery)[kept]])
        values = torch.cat(found).sort().values
        return Counted(0, values, torch.ones_like(values, dtype=torch.int64))

    def _places(self, positive: bool) -> list[tuple[int, int]]:
        blocks = self._labels_meet if positive else torch.ones_like(self._labels_meet)
        return [(i, j) for i, j in (blocks.triu() if self._symmetric else blocks).nonzero().tolist()]

    def _allow(self, block: Block, positive: bool) -> int:
        """Set the pairs that do not count infinitely far; and how often the others count."""
        row, column = block.first_query // self._shape[0], block.first_gallery // self._shape[1]
        rows = slice(block.first_query, block.first_query + self._shape[0])
        columns = slice(block.first_gallery, block.first_gallery + self._shape[1])
        n_rows, n_columns = len(self._labels[0][rows]), len(self._labels[1][columns])
        if positive or self._meet[row][column]:
            block.nearness[:n_rows, :n_columns].masked_fill_(self._left_out(rows, columns, positive), -torch.inf)
        if (n_rows, n_columns) != self._shape:
            block.nearness[n_rows:] = block.nearness[:, n_columns:] = -torch.inf
        return 2 if self._symmetric and column > row else 1

    def _left_out(self, rows: Tensor | slice, columns: Tensor | slice, positive: bool) -> Bool[Tensor, "query gallery"]:
        same = self._labels[0][rows, None] == self._labels[1][columns]
        left_out = ~same if positive else same
        if self._items is not None:
            left_out |= self._items[0][rows, None] == self._items[1][columns]
        return left_out

    def _scratch(self, like: Tensor) -> Tensor:
        """Memory of the thread's own."""
        if getattr(self._buffers, "shape", None) != like.shape:
            self._buffers.shape, self._buffers.scratch = like.shape, torch.empty_like(like)
        return self._buffers.scratch

    def _between(
        self, block: Block, weight: int, ends: Float[Tensor, "2"], least: Float[Tensor, ""], most: Float[Tensor, ""]
    ) -> _Finds:
        """How many pairs of a block are nearer than a range of distances, and those in it; open ones are measured."""
        nearness = block.nearness
        scratch, n_rows, n_lanes = self._scratch(nearness), nearness.shape[0], nearness.shape[1] // GROUP
        n_nearer = [torch.gt(nearness, most, out=scratch).sum().long()]
        middle = (least + most) / 2
        half = torch.maximum(most - middle, middle - least) * (1 + 4 * torch.finfo(ends.dtype).eps)
        # Most groups (of numbers of a row that are n_lanes apart) have none that is close to the middle.
        closest = torch.sub(nearness, middle, out=scratch).abs_().view(n_rows, GROUP, n_lanes).amin(dim=1)
        groups = (closest <= half).flatten().nonzero().squeeze(1)
        distances = [ends[:0]]
        for part in groups.split(max(1, nearness.numel() // GROUP // 4)):
            row, lane = part // n_lanes, part % n_lanes
            numbers = nearness.view(n_rows, GROUP, n_lanes)[row, :, lane]
            group, place = ((numbers >= least) & (numbers <= most)).nonzero().unbind(1)
            query, gallery = row[group] + block.first_query, place * n_lanes + lane[group] + block.first_gallery
            found = self._measure(query, gallery)
            n_nearer.append((found < ends[0]).sum())
            distances.append(found[(found >= ends[0]) & (found <= ends[1])])
        values, counts = torch.cat(distances).unique(return_counts=True)
        return torch.stack(n_nearer).sum() * weight, values, counts * weight

    def _measure(self, query: Int[Tensor, " pair"], gallery: Int[Tensor, " pair"]) -> Float[Tensor, " pair"]:
        """The distances of pairs; once only for all pairs of the same two vectors."""
        if self._kinds is None:
            return measured(*self._vectors, query, gallery, self._memory_budget // 8)
        (query_kinds, query_ids), (gallery_kinds, gallery_ids) = self._kinds
        pairs, place = (query_kinds[query] * len(gallery_ids) + gallery_kinds[gallery]).unique(return_inverse=True)
        query, gallery = query_ids[pairs // len(gallery_ids)], gallery_ids[pairs % len(gallery_ids)]
        return measured(*self._vectors, query, gallery, self._memory_budget // 8)[place]

    def _meetings(self, key: tuple[Int[Tensor, " query"], Int[Tensor, " gallery"]]) -> Bool[Tensor, "row column"]:
        """Which blocks have a query and a gallery of the same number."""
        sides = [
            (numbers, torch.arange(len(numbers), device=numbers.device) // n)
            for numbers, n in zip(key, self._shape, strict=True)
        ]
        meet = torch.zeros([int(block[-1]) + 1 for _, block in sides], dtype=torch.bool, device=key[0].device)
        n_numbers = int(torch.cat(key).amax()) + 1
        n_at_once = min(n_numbers, _NUMBERS_AT_ONCE)
        for start in range(0, n_numbers, n_at_once):
            occur = []
            for (numbers, block), n_blocks in zip(sides, meet.shape, strict=True):
                here = ((numbers >= start) & (numbers < start + n_at_once)).nonzero().squeeze(1)
                occur.append(torch.zeros(n_blocks, n_at_once, device=meet.device))
                occur[-1][block[here], numbers[here] - start] = 1
            meet |= occur[0] @ occur[1].T > 0
        return meet


def positive_pairs(
    labels: tuple[Int[Tensor, " query"], Int[Tensor, " gallery"]],
    items: tuple[Int[Tensor, " query"], Int[Tensor, " gallery"]] | None,
    n_at_once: int,
) -> Iterator[tuple[Int[Tensor, " pair"], Int[Tensor, " pair"]]]:
    """The pairs of one label, less those of one item, by their places: query by query, ``n_at_once`` at most at a time.

    Example:
        >>> labels, items = torch.tensor([7, 8, 7]), torch.tensor([0, 1, 2])
        >>> list(positive_pairs((labels, labels), (items, items), n_at_once=8))
        [(tensor([0, 2]), tensor([2, 0]))]
    """
    of_galleries, order = labels[1].sort(stable=True)
    first = torch.searchsorted(of_galleries, labels[0].contiguous())
    n = torch.searchsorted(of_galleries, labels[0].contiguous(), right=True) - first
    ends = n.cumsum(0)
    n_pairs = int(ends[-1]) if len(ends) else 0
    for start in range(0, n_pairs, n_at_once):
        pairs = torch.arange(start, min(start + n_at_once, n_pairs), device=ends.device)
        query = torch.searchsorted(ends, pairs, right=True)
        gallery = order[first[query] + pairs - (ends - n)[query]]
        if items is not None:
            kept = items[0][query] != items[1][gallery]
            query, gallery = query[kept], gallery[kept]
        yield query, gallery


class _Scale:
    """Bins of half squared distances: floating-point numbers that agree in their first bits share one."""

    def __init__(self, smallest: Float[Tensor, ""], largest: Float[Tensor, ""]) -> None:
        info = torch.finfo(smallest.dtype)
        self._integer = torch.int32 if info.bits == 32 else torch.int64
        self._shift = round(-math.log2(info.eps)) - _BITS
        first, last = ((x.reshape(1).view(self._integer) >> self._shift).item() for x in (smallest, largest))
        self._first, self._n = int(first), int(last - first) + 1
        bits = torch.arange(self._n + 1, dtype=self._integer, device=smallest.device).add_(self._first)
        self.edges = bits.bitwise_left_shift_(self._shift).view(smallest.dtype).double()
        self.edges[0] = 0

    def counts(self, nearness: Float[Tensor, "..."], scratch: Float[Tensor, "..."]) -> Int[Tensor, " bin"]:
        """How many pairs each bin holds; those that are infinitely far are not counted."""
        bins = torch.neg(nearness, out=scratch).clamp_(min=0).view(self._integer)  # the order of both is the same
        bins.bitwise_right_shift_(self._shift).clamp_(self._first, self._first + self._n).sub_(self._first)
        return torch.bincount(bins.view(-1), minlength=self._n + 1)[: self._n]


def _put_together(finds: Sequence[_Finds]) -> _Finds:
    n_nearer, values, counts = zip(*finds, strict=True)
    distinct, place = torch.cat(values).unique(return_inverse=True)
    total = torch.zeros(len(distinct), dtype=torch.int64, device=distinct.device)
    return torch.stack(n_nearer).sum(), distinct, total.index_add_(0, place, torch.cat(counts))


def _numbered(
    a: Int[Tensor, " query"], b: Int[Tensor, " gallery"]
) -> tuple[Int[Tensor, " query"], Int[Tensor, " gallery"]]:
    """The values as numbers from 0 on without gaps, equal ones alike."""
    numbers = torch.cat([a.long(), b.long()]).unique(return_inverse=True)[1]
    return numbers[: len(a)], numbers[len(a) :]


def _kinds(vectors: Float[Tensor, "item dim"]) -> tuple[Int[Tensor, " item"], Int[Tensor, " kind"]]:
    """For each vector a number that only its copies share, and for each number one of its vectors."""
    order, kinds_in_order = copies(vectors)
    kinds, one_of = torch.empty_like(order), order.new_empty(int(kinds_in_order[-1]) + 1)
    kinds[order] = kinds_in_order
    return kinds, one_of.scatter_(0, kinds_in_order, order)


def _n_equal(key: tuple[Int[Tensor, " query"], Int[Tensor, " gallery"]]) -> int:
    """How many pairs have the same number."""
    n = int(torch.cat(key).amax()) + 1
    a, b = (torch.bincount(numbers, minlength=n) for numbers in key)
    return int((a * b).sum())
