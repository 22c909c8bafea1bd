"""The ranking by k-reciprocal encodings, a few queries at a time."""

from threading import local
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from oml.functional.pair_blocks import BLOCK, GROUP, full_precision_products, in_threads, measured, near_rows
from oml.functional.precision import without_autocast
from oml.functional.search import Neighbours
from oml.functional.sparse_rows import SparseRows, looked_up, ranges, starts_of

_NUMBERS = 2**20  # of queries x galleries that are summed at a time: 8 MiB of float64 stay in a CPU's cache
_FEW_ROWS = 16  # queries at a time that are worth more memory than that
_TERMS = 2**16  # that are added at a time
_CROWD = 128  # pairs per query that are measured sooner than all pairs are multiplied
_SEGMENT = 16  # galleries of a column that are worked on together


def squared_share(distances: Float[Tensor, "*pair"], farthest: Float[Tensor, "*#pair"]) -> Float[Tensor, "*pair"]:
    """``(distance / farthest)^2`` in float64, and 0 if all items are in one place."""
    return (distances.double() / torch.where(farthest > 0, farthest, 1)).square_()


class _Index(NamedTuple):
    """Which galleries have an entry in a column, in segments of one size: those from ``starts[column]`` on.

    The last one of a column is filled up with values of 0.
    """

    starts: Int[Tensor, " column_or_end"]
    places: Int[Tensor, "segment place"]
    values: Float[Tensor, "segment place"]


class _Pairs(NamedTuple):
    """Some galleries of each row: their place among all, their ``d`` and final distance."""

    row: Int[Tensor, " pair"]
    place: Int[Tensor, " pair"]
    d: Float[Tensor, " pair"]
    final: Float[Tensor, " pair"]


class Ranking:
    """The last steps of :func:`oml.functional.k_reciprocal.k_reciprocal_rerank`, from the sparse rows on."""

    def __init__(
        self,
        embeddings: Tensor,
        query_ids: Tensor,
        gallery_ids: Tensor,
        query_items: Tensor,
        gallery_items: Tensor,
        lists: Neighbours,
        farthest: Tensor,
        rows: SparseRows,
        lambda_value: float | int,
    ) -> None:
        self.embeddings = embeddings
        self.query_ids, self.gallery_ids = query_ids, gallery_ids
        self.query_items, self.gallery_items = query_items, gallery_items
        self.lists, self.farthest, self.rows = lists, farthest, rows
        self.lambda_value = lambda_value
        # places among the galleries; the last is for -1
        self.place_of = torch.full((len(embeddings) + 1,), -1, device=embeddings.device)
        self.place_of[gallery_ids] = torch.arange(len(gallery_ids), device=embeddings.device)
        self.index = self._inverted()
        # around their mean, with squared norms
        self.x = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
        self.x = self.x - self.x.mean(dim=0)
        self.norms = torch.cat([part.double().square_().sum(dim=1) for part in self.x.split(BLOCK)])
        in_order = torch.equal(gallery_ids, torch.arange(len(embeddings), device=embeddings.device))
        self.galleries = self.x if in_order else self.x[gallery_ids]

    def run(self, retrieved_ids: Int[Tensor, "query rank"], memory_budget: int) -> Neighbours:
        """The galleries that all queries find."""
        device = self.gallery_ids.device
        n_threads = torch.get_num_threads() if device.type == "cpu" else 1
        width = -(-len(self.gallery_ids) // GROUP) * GROUP
        n_numbers = min(max(_NUMBERS, _FEW_ROWS * width), memory_budget // (24 * n_threads))
        n_rows = min(max(1, n_numbers // width), len(self.query_ids))
        buffers = local()

        def of_block(first: int) -> tuple[Tensor, Tensor]:
            here = slice(first, first + n_rows)
            if not hasattr(buffers, "sums"):
                buffers.sums = self.rows.values.new_empty(n_rows, width)
            sums = buffers.sums[: len(self.query_ids[here])].zero_()
            self._add_up(sums, self.query_ids[here])
            return self._ranked(sums, here, retrieved_ids[here])

        with full_precision_products(), without_autocast(device.type):
            parts = in_threads(of_block, range(0, len(self.query_ids), n_rows), device)
        ids, distances = (torch.cat(part) for part in zip(*parts, strict=True))
        return Neighbours(ids, distances)

    def _inverted(self) -> _Index:
        """The galleries, by their place among them, that have an entry in a column, and the entry."""
        counts = self.rows.starts.diff()
        place = self.place_of[:-1].repeat_interleave(counts)
        of_gallery = (place >= 0).nonzero().squeeze(1)
        columns, order = self.rows.columns.index_select(0, of_gallery).sort(stable=True)
        order = of_gallery.index_select(0, order)
        counts = columns.bincount(minlength=len(counts))
        starts = starts_of((counts + _SEGMENT - 1) // _SEGMENT)
        rank = torch.arange(len(columns), device=columns.device) - starts_of(counts)[columns]
        spot = starts[columns] * _SEGMENT + rank
        n_segments = int(starts[-1])
        places = place.new_zeros(n_segments * _SEGMENT)
        values = self.rows.values.new_zeros(n_segments * _SEGMENT)
        places[spot], values[spot] = place.index_select(0, order), self.rows.values.index_select(0, order)
        return _Index(starts, places.view(n_segments, _SEGMENT), values.view(n_segments, _SEGMENT))

    def _add_up(self, sums: Float[Tensor, "row gallery"], queries: Int[Tensor, " row"]) -> None:
        """Adds ``sum_m min(V[i, m], V[j, m])`` of some queries and all galleries."""
        starts, index = self.rows.starts, self.index
        row, entry = ranges(starts[queries], starts[queries + 1] - starts[queries])
        columns = self.rows.columns.index_select(0, entry)
        first, last = index.starts.index_select(0, columns), index.starts.index_select(0, columns + 1)
        which, segment = ranges(first, last - first)
        bases, values = row * sums.shape[1], self.rows.values.index_select(0, entry)
        n = _TERMS // _SEGMENT
        for part, segments in zip(which.split(n), segment.split(n), strict=True):
            value, base = values.index_select(0, part), bases.index_select(0, part)
            least = index.values.index_select(0, segments)
            place = index.places.index_select(0, segments).add_(base[:, None])
            sums.view(-1).scatter_add_(0, place.view(-1), torch.minimum(least, value[:, None], out=least).view(-1))

    def _ranked(
        self, sums: Float[Tensor, "row place"], here: slice, retrieved_ids: Int[Tensor, "row rank"]
    ) -> tuple[Int[Tensor, "row rank"], Float[Tensor, "row rank"]]:
        """The first galleries of some queries. Overwrites the sums."""
        queries, items, (n_rows, width) = self.query_ids[here], self.query_items[here], retrieved_ids.shape
        near, of_near = (part.index_select(0, queries) for part in self.lists)
        of_near = squared_share(of_near, self.farthest[queries, None])

        # the neighbours, of which d is known
        place = self.place_of[near]
        row, rank = ((place >= 0) & (self.gallery_items[place] != items[:, None])).nonzero().unbind(1)
        place, d = place[row, rank], of_near[row, rank]
        known = _Pairs(row, place, d, self._final(_taken(sums, row, place), d))
        final = torch.full(near.shape, torch.inf, device=near.device)
        final[row, rank] = known.final
        worst = final.new_full((n_rows,), torch.inf)
        if width <= final.shape[1]:
            worst = final.kthvalue(width, dim=1).values

        # others share too little to come before these if they are no nearer than the last of the neighbours
        retrieved = self.place_of[retrieved_ids]
        is_other = (retrieved_ids >= 0) & ~looked_up(near.sort(dim=1).values, retrieved_ids)[1]
        other_row, rank = is_other.nonzero().unbind(1)
        others = retrieved[other_row, rank]
        of_others = _taken(sums, other_row, others)
        jaccard = (worst.double() * (1 + 1e-6) - self.lambda_value * of_near.amax(dim=1)) / max(
            1 - self.lambda_value, 1e-300
        )
        jaccard.clamp_(max=1)
        limits = (2 * (1 - jaccard) / (2 - jaccard)).clamp_(min=torch.finfo(torch.float64).tiny)
        sums[row, place] = sums[other_row, others] = 0
        new_row, new = near_rows(sums, limits)
        differs = (self.gallery_items.index_select(0, new) != items.index_select(0, new_row)).nonzero().squeeze(1)
        new_row, new = new_row.index_select(0, differs), new.index_select(0, differs)
        of_others = torch.cat([of_others, _taken(sums, new_row, new)])
        other_row, others = torch.cat([other_row, new_row]), torch.cat([others, new])
        if len(others) > _CROWD * n_rows:
            few = self._may_be_first(queries, other_row, others, of_others, known, width)
            other_row, others, of_others = other_row[few], others[few], of_others[few]
        d = self._measured(queries, other_row, self.gallery_ids[others])
        pairs = _Pairs(*map(torch.cat, zip(known, (other_row, others, d, self._final(of_others, d)), strict=True)))

        ids = self.gallery_ids[pairs.place]
        order = ids.argsort()
        for values in (pairs.d, _row_and_bits(pairs.row, pairs.final)):
            order = order[values[order].argsort(stable=True)]
        row = pairs.row[order]
        rank = torch.arange(len(row), device=row.device) - starts_of(row.bincount(minlength=n_rows))[row]
        is_first = rank < width
        row, rank, order = row[is_first], rank[is_first], order[is_first]
        new_ids = torch.full_like(retrieved_ids, -1)
        new_ids[row, rank] = ids[order]
        distances = torch.full(new_ids.shape, torch.inf, device=row.device)
        distances[row, rank] = pairs.final[order]
        return new_ids, distances

    def _may_be_first(
        self,
        queries: Int[Tensor, " row"],
        row: Int[Tensor, " pair"],
        place: Int[Tensor, " pair"],
        sums: Float[Tensor, " pair"],
        known: _Pairs,
        width: int,
    ) -> Int[Tensor, " few"]:
        """Which of many pairs may be among the first of their row, by bounds of their distances out of a product."""
        x = self.x.index_select(0, queries)
        product = x @ self.galleries.T
        both = self.norms.index_select(0, queries.index_select(0, row))
        both += self.norms.index_select(0, self.gallery_ids.index_select(0, place))
        d = both - 2 * _taken(product, row, place)
        error = 2 * (x.shape[1] + 16) * torch.finfo(x.dtype).eps * both
        squares = self.farthest.double().square().clamp_(min=torch.finfo(torch.float64).tiny)
        squares = squares.index_select(0, queries.index_select(0, row))
        highest = self._final(sums, (d + error) / squares)
        of_all, row_of_all = torch.cat([highest, known.final]), torch.cat([row, known.row])
        key = _row_and_bits(row_of_all, of_all.clamp_(min=0)).sort().values
        counts = row_of_all.bincount(minlength=len(queries))
        key = key[(starts_of(counts)[:-1] + width - 1).clamp_(max=len(key) - 1)]
        worst = (key & 0xFFFFFFFF).int().view(torch.float32)
        worst.masked_fill_(counts < width, torch.inf)
        return (self._final(sums, (d - error) / squares) <= worst.index_select(0, row)).nonzero().squeeze(1)

    def _measured(self, queries: Int[Tensor, " row"], row: Int[Tensor, " pair"], ids: Int[Tensor, " pair"]) -> Tensor:
        queries = queries[row]
        distances = measured(self.embeddings, self.embeddings, queries, ids)
        return squared_share(distances, self.farthest[queries])

    def _final(self, sums: Float[Tensor, "*pair"], d: Float[Tensor, "*pair"]) -> Float[Tensor, "*pair"]:
        jaccard = (1 - sums / (2 - sums)).clamp_(min=0)
        return ((1 - self.lambda_value) * jaccard + self.lambda_value * d).float()


def _taken(numbers: Float[Tensor, "row column"], row: Int[Tensor, " pair"], column: Int[Tensor, " pair"]) -> Tensor:
    return numbers.view(-1).index_select(0, row * numbers.shape[1] + column)


def _row_and_bits(row: Int[Tensor, " pair"], numbers: Float[Tensor, " pair"]) -> Int[Tensor, " pair"]:
    """In order of the row, then of the float32 numbers, all of them 0 or more."""
    return (row << 32).add_(numbers.view(torch.int32))
