"""Exact search: for every query its nearest galleries, in bounded memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

_ROWS, _COLUMNS = 1024, 1024  # queries x galleries of a block: 4 MiB of float32 stay in a CPU's cache
_GROUP = 32  # neighbouring columns of a block that are looked at together
_NUMBERS = 2**18  # of the vectors that are subtracted at a time: 2 MiB of float64 stay in a CPU's cache


class Neighbours(NamedTuple):
    """Row i holds the galleries nearest to query i, nearest first; places without a gallery hold id -1, distance inf."""

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
    memory_budget: int = 512 * 2**20,
) -> Neighbours:
    """The ``min(top_k, gallery)`` nearest galleries of every query by (unsquared) L2 distance.

    ``ids`` are rows of ``galleries``; equal distances rank by id. A distance is what a literal evaluation gives,
    ``sqrt(sum((q - g) ** 2))`` in float64, rounded to the inputs' dtype (float32 for half precision), so neither
    the order nor a single bit depends on the budget, on the number of queries searched at once or on the threads.
    Every query has its answer alone: no approximation is left in it.

    How: a matrix product gives a lower bound for each squared distance. The galleries with the smallest bounds
    are measured; if the bounds cannot exclude all the others, as happens with many duplicates, the query is searched
    again by bounds in float64, measuring whatever they let through.

    Args:
        queries: What to search with.
        galleries: What to search in, on the same device.
        top_k: How many galleries to find per query.
        query_items: Numbers of the queries' items. A gallery with the same number is not retrieved: give positions
            in the data set so that an item does not find itself, or sequence numbers so that it finds no near copy.
        gallery_items: Numbers of the galleries' items, if and only if ``query_items`` are given.
        memory_budget: Bytes to use beyond inputs and outputs, besides a few numbers per query. A single query
            against 32 galleries is always allowed.

    Raises:
        ValueError: Wrong shapes, devices or ``top_k``; embeddings that are not finite or too large to be squared.

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
    """
    _check_shapes(queries, galleries, query_items, gallery_items)
    if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
        raise ValueError(f"exact_search needs top_k >= 1 as an int, got {top_k!r}.")
    if memory_budget < 1:
        raise ValueError(f"exact_search needs a positive memory_budget in bytes, got {memory_budget}.")
    dtype = torch.promote_types(torch.promote_types(queries.dtype, galleries.dtype), torch.float32)
    _check_values(queries, "queries", dtype)
    _check_values(galleries, "galleries", dtype)

    width = min(top_k, len(galleries))
    ids = torch.full((len(queries), width), -1, device=queries.device)
    distances = torch.full((len(queries), width), torch.inf, dtype=dtype, device=queries.device)
    if ids.numel() == 0:
        return Neighbours(ids, distances)

    # A few more candidates than places: the bound of the last one must rise above the distance of the last place.
    n_candidates = min(width + 6 + width // 8, len(galleries))
    n_rows, n_columns = _block_sizes(queries.shape[1], n_candidates, memory_budget // 2)
    task = _Task(
        queries, galleries, query_items, gallery_items, dtype, n_columns,
        centre=galleries[:: -(-len(galleries) // n_columns)].to(dtype).mean(dim=0),
        n_pairs=max(1, min(_NUMBERS, memory_budget // 2 // 24) // queries.shape[1]),
    )  # fmt: skip
    with _full_precision_products(queries.device.type):
        unsure = []
        for rows in torch.arange(len(queries), device=queries.device).split(n_rows):
            ids[rows], distances[rows], sure = _search_candidates(task, rows, width, n_candidates)
            unsure.append(rows[~sure])
        for rows in torch.cat(unsure).split(n_rows):
            ids[rows], distances[rows] = _search_everything(task, rows, distances[rows])
    return Neighbours(ids, distances)


class _Task(NamedTuple):
    queries: Tensor
    galleries: Tensor
    query_items: Tensor | None
    gallery_items: Tensor | None
    dtype: torch.dtype  # of the distances
    n_columns: int  # galleries in a block
    centre: Tensor  # where bounds have their origin: the closer to the galleries, the tighter they are
    n_pairs: int  # of vectors to be subtracted at a time


def _search_candidates(
    task: _Task, rows: Int[Tensor, " row"], width: int, n_candidates: int
) -> tuple[Int[Tensor, "row rank"], Float[Tensor, "row rank"], Bool[Tensor, " row"]]:
    """The nearest of the galleries with the smallest bounds, and whether no other gallery can be among them."""
    bounds = torch.full((len(rows), n_candidates), torch.inf, dtype=task.dtype, device=rows.device)
    ids = torch.full((len(rows), n_candidates), -1, device=rows.device)
    for start, block in _lower_bounds(task, rows, task.dtype):
        pairs = _pairs_below(block, bounds[:, -1], at_most=block.numel() // 64)
        if pairs is None:  # as in the first block: select instead of filtering
            _mask_own(task, rows, start, block)
            bounds, order = torch.cat([bounds, block], dim=1).topk(n_candidates, largest=False)
            new = order - n_candidates + start
            ids = torch.where(new < start, ids.gather(1, order.clamp(max=n_candidates - 1)), new)
        else:
            row, column = _drop_own(task, rows, start, *pairs)
            touched, new_bounds, new_ids = _line_up(row, block[row, column], column + start)
            bounds[touched], order = torch.cat([bounds[touched], new_bounds], dim=1).topk(n_candidates, largest=False)
            ids[touched] = torch.cat([ids[touched], new_ids], dim=1).gather(1, order)
    ids[bounds == torch.inf] = -1

    n_times = torch.full_like(rows, n_candidates)
    found = _measure(task, rows.repeat_interleave(n_times), ids.flatten().clamp(min=0)).view_as(bounds)
    ids, distances = _ranked(ids, found.masked_fill(ids < 0, torch.inf))
    ids, distances = ids[:, :width], distances[:, :width]
    if n_candidates == len(task.galleries):
        return ids, distances, torch.ones_like(rows, dtype=torch.bool)
    return ids, distances, bounds[:, -1] >= _squared_limit(distances[:, -1], task.queries.shape[1])


def _search_everything(
    task: _Task, rows: Int[Tensor, " row"], known: Float[Tensor, "row rank"]
) -> tuple[Int[Tensor, "row rank"], Float[Tensor, "row rank"]]:
    """The nearest galleries, by measuring all that may be as near as the last of ``width`` known distances."""
    width, dim = known.shape[1], task.queries.shape[1]
    limit = _squared_limit(known[:, -1], dim)
    distances, ids = torch.full_like(known, torch.inf), torch.full_like(known, -1, dtype=torch.int64)
    for start, block in _lower_bounds(task, rows, torch.float64):
        pairs = _pairs_below(block, limit, at_most=block.numel())
        assert pairs is not None
        row, column = _drop_own(task, rows, start, *pairs)
        touched, new_distances, new_ids = _line_up(row, _measure(task, rows[row], column + start), column + start)
        merged_ids, merged = _ranked(
            torch.cat([ids[touched], new_ids], dim=1), torch.cat([distances[touched], new_distances], dim=1)
        )
        ids[touched], distances[touched] = merged_ids[:, :width], merged[:, :width]
        # nothing that comes later is nearer than a distance of zero, nor precedes it by its id
        full = distances[:, -1] == 0
        limit = torch.minimum(limit, _squared_limit(distances[:, -1], dim)).masked_fill(full, -torch.inf)
    return ids, distances
