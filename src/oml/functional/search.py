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
    memory_budget: int = 512 * 2**20,
) -> Neighbours:
    """The ``min(top_k, gallery)`` nearest galleries of every query by (unsquared) L2 distance.

    ``ids`` are rows of ``galleries``; equal distances rank by id. A distance is ``sqrt(sum((q - g) ** 2))`` evaluated
    in float64 and rounded to the inputs' dtype (float32 for half precision); the order is that of the rounded
    distances. No bit of the result depends on the memory budget, the threads or the other queries.

    How: a matrix product gives a lower bound for every squared distance. The galleries with the smallest bounds are
    measured; if the bounds cannot exclude all the others, as happens among many duplicates, the query is searched
    again by bounds in float64, and whatever they cannot exclude is measured. Gradients do not flow.

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
    dim = queries.shape[1]
    n_rows, n_columns = _block_sizes(dim, n_candidates, memory_budget * 3 // 4)
    task = _Task(
        queries,
        galleries,
        query_items,
        gallery_items,
        centre=galleries[:: -(-len(galleries) // n_columns)].to(dtype).mean(dim=0),
        n_columns=n_columns,
        n_pairs=max(1, min(_NUMBERS, memory_budget // 4 // 32) // dim),
    )
    with _full_precision_products(queries.device.type):
        unsure = []
        for rows in torch.arange(len(queries), device=queries.device).split(n_rows):
            ids[rows], distances[rows], sure = _search_candidates(task, rows, width, n_candidates)
            unsure.append(rows[~sure])
        again = torch.cat(unsure)
        task = task._replace(n_columns=min(n_columns, _COLUMNS // 4))  # among ties, narrow blocks let less through
        for first in range(0, len(again), n_rows):
            rows = again[first : first + n_rows]
            ids[rows], distances[rows] = _search_everything(task, rows, distances[rows])
    return Neighbours(ids, distances)


class _Task(NamedTuple):
    queries: Tensor
    galleries: Tensor
    query_items: Tensor | None
    gallery_items: Tensor | None
    centre: Tensor  # the origin for the bounds: the closer it is to the vectors, the tighter they are
    n_columns: int  # galleries in a block
    n_pairs: int  # of vectors to subtract at a time


def _search_candidates(
    task: _Task, rows: Int[Tensor, " row"], width: int, n_candidates: int
) -> tuple[Int[Tensor, "row rank"], Float[Tensor, "row rank"], Bool[Tensor, " row"]]:
    """The nearest of the galleries with the smallest bounds, and whether no other gallery can come before the last."""
    bounds = task.centre.new_full((len(rows), n_candidates), torch.inf)
    ids = rows.new_full((len(rows), n_candidates), -1)
    for start, block in _lower_bounds(task, rows, bounds.dtype):
        hits = _groups_below(block, bounds[:, -1])
        if len(hits) > block.numel() // _GROUP // 4:  # as in the first block: filtering would keep too much
            _mask_own(task, rows, start, block)
            bounds, order = torch.cat([bounds, block], dim=1).topk(n_candidates, largest=False)
            ids = torch.where(
                order < n_candidates,
                ids.gather(1, order.clamp(max=n_candidates - 1)),
                order - n_candidates + start,
            )
        else:
            row, column = _drop_own(task, rows, start, *_pairs_below(block, bounds[:, -1], hits))
            touched, new_bounds, new_ids = _line_up(row, block[row, column], column + start)
            bounds[touched], order = torch.cat([bounds[touched], new_bounds], dim=1).topk(n_candidates, largest=False)
            ids[touched] = torch.cat([ids[touched], new_ids], dim=1).gather(1, order)
    ids.masked_fill_(bounds == torch.inf, -1)

    # Measure as many as there are places, then only those of the rest that may still come before the last of them.
    dim = task.queries.shape[1]
    ids, rest = ids[:, :width], ids[:, width:]
    distances = _measure(task, rows.repeat_interleave(width), ids.flatten().clamp(min=0)).view_as(ids)
    ids, distances = _ranked(ids, distances.masked_fill(ids < 0, torch.inf))
    row, column = (bounds[:, width:] < _squared_limit(distances[:, -1], dim)[:, None]).nonzero().unbind(1)
    _insert(task, rows, row, rest[row, column], ids, distances)
    if n_candidates == len(task.galleries):
        return ids, distances, torch.ones_like(rows, dtype=torch.bool)
    return ids, distances, bounds[:, -1] >= _squared_limit(distances[:, -1], dim)


def _search_everything(
    task: _Task, rows: Int[Tensor, " row"], known: Float[Tensor, "row rank"]
) -> tuple[Int[Tensor, "row rank"], Float[Tensor, "row rank"]]:
    """The nearest galleries, by measuring all those that may be as near as the last of some ``known`` distances."""
    dim = task.queries.shape[1]
    limits = _squared_limit(known[:, -1], dim)
    ids, distances = rows.new_full(known.shape, -1), torch.full_like(known, torch.inf)
    for start, block in _lower_bounds(task, rows, torch.float64):
        row, column = _drop_own(task, rows, start, *_pairs_below(block, limits, _groups_below(block, limits)))
        _insert(task, rows, row, column + start, ids, distances)
        # a later gallery has a higher id, so it cannot take a place from one at distance zero
        limits = torch.minimum(limits, _squared_limit(distances[:, -1], dim))
        limits = limits.masked_fill(distances[:, -1] == 0, -torch.inf)
    return ids, distances


def _insert(
    task: _Task,
    rows: Int[Tensor, " row"],
    row: Int[Tensor, " pair"],
    new_ids: Int[Tensor, " pair"],
    ids: Int[Tensor, "row rank"],
    distances: Float[Tensor, "row rank"],
) -> None:
    """Measure pairs of a row (sorted) and a new gallery, and give them their places in ``ids`` and ``distances``."""
    touched, new_distances, new_ids = _line_up(row, _measure(task, rows[row], new_ids), new_ids)
    merged_ids, merged_distances = _ranked(
        torch.cat([ids[touched], new_ids], dim=1), torch.cat([distances[touched], new_distances], dim=1)
    )
    ids[touched], distances[touched] = merged_ids[:, : ids.shape[1]], merged_distances[:, : ids.shape[1]]


def _lower_bounds(
    task: _Task, rows: Int[Tensor, " row"], dtype: torch.dtype
) -> Iterator[tuple[int, Float[Tensor, "row column"]]]:
    """For each block of galleries its first id and ``lower[i, j] <= |q_i - g_j|^2``; inf where a block is filled up.

    With ``u = eps / 2``, a product of ``dim`` numbers is off by at most ``dim * u * |q| * |g|`` (to first order) in any
    order of summation, a squared norm by ``dim * u`` of itself, and centring, adding up and subtracting add a few
    ``u * (|q| + |g|)^2``. All this is less than ``(dim + 8) * u * (|q| + |g|)^2 <= (dim + 8) * eps * (|q|^2 + |g|^2)``,
    so it is enough to shrink the squared norms; twice as much covers the higher orders. The last term is for
    products that are too small for a normal number.
    """
    info, dim = torch.finfo(dtype), task.queries.shape[1]
    shrink, smallest = 1 - 2 * (dim + 16) * info.eps, 4 * (dim + 16) * info.tiny
    centre = task.centre.to(dtype)
    q = task.queries[rows].to(dtype) - centre
    q_squared = q.square().sum(dim=1, keepdim=True) * shrink
    for start in range(0, len(task.galleries), task.n_columns):
        g = task.galleries[start : start + task.n_columns].to(dtype) - centre
        g_squared = g.square().sum(dim=1) * shrink - smallest
        if missing := -len(g) % _GROUP:
            g, g_squared = F.pad(g, (0, 0, 0, missing)), F.pad(g_squared, (0, missing), value=torch.inf)
        yield start, torch.addmm(g_squared, q, g.T, alpha=-2).add_(q_squared)


def _squared_limit(distance: Float[Tensor, " row"], dim: int) -> Float[Tensor, " row"]:
    """The squared distance from which on a gallery is farther than ``distance`` even after rounding."""
    info = torch.finfo(distance.dtype)
    slack = 4 * info.eps + dim * torch.finfo(torch.float64).eps
    return (distance.double() * (1 + slack) + info.tiny).square()


def _groups_below(block: Float[Tensor, "row column"], limits: Float[Tensor, " row"]) -> Int[Tensor, " hit"]:
    """Flat positions of the groups of columns with a number below their row's limit."""
    return (block.unflatten(1, (-1, _GROUP)).amin(dim=2) < limits[:, None]).flatten().nonzero().squeeze(1)


def _pairs_below(
    block: Float[Tensor, "row column"], limits: Float[Tensor, " row"], hits: Int[Tensor, " hit"]
) -> tuple[Int[Tensor, " pair"], Int[Tensor, " pair"]]:
    """Rows and columns, in this order, of the numbers below their row's limit, which are in the groups ``hits``."""
    n_groups = block.shape[1] // _GROUP
    below = block.view(-1, _GROUP)[hits] < limits[hits // n_groups, None]
    hit, column = below.nonzero().unbind(1)
    return hits[hit] // n_groups, hits[hit] % n_groups * _GROUP + column


def _mask_own(task: _Task, rows: Int[Tensor, " row"], start: int, block: Float[Tensor, "row column"]) -> None:
    if task.query_items is not None and task.gallery_items is not None:
        gallery_items = task.gallery_items[start : start + task.n_columns]
        block[:, : len(gallery_items)].masked_fill_(task.query_items[rows, None] == gallery_items, torch.inf)


def _drop_own(
    task: _Task, rows: Int[Tensor, " row"], start: int, row: Int[Tensor, " pair"], column: Int[Tensor, " pair"]
) -> tuple[Int[Tensor, " left"], Int[Tensor, " left"]]:
    if task.query_items is None or task.gallery_items is None:
        return row, column
    left = task.query_items[rows[row]] != task.gallery_items[column + start]
    return row[left], column[left]


def _line_up(
    row: Int[Tensor, " pair"], values: Float[Tensor, " pair"], ids: Int[Tensor, " pair"]
) -> tuple[Int[Tensor, " line"], Float[Tensor, "line slot"], Int[Tensor, "line slot"]]:
    """The rows that occur in the sorted ``row``; for each its values and ids, filled up with inf and -1."""
    touched, line, counts = row.unique_consecutive(return_inverse=True, return_counts=True)
    slot = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[line]
    shape = (len(touched), int(counts.amax()) if len(touched) else 0)
    lined_values, lined_ids = values.new_full(shape, torch.inf), ids.new_full(shape, -1)
    lined_values[line, slot], lined_ids[line, slot] = values, ids
    return touched, lined_values, lined_ids


def _measure(task: _Task, query_ids: Int[Tensor, " pair"], gallery_ids: Int[Tensor, " pair"]) -> Float[Tensor, " pair"]:
    """The distances of pairs, evaluated in float64 as they are defined."""
    distances = task.centre.new_empty(len(query_ids))
    for start in range(0, len(query_ids), task.n_pairs):
        part = slice(start, start + task.n_pairs)
        squares = task.queries.index_select(0, query_ids[part]).double()
        squares.sub_(task.galleries.index_select(0, gallery_ids[part])).square_()
        while (width := squares.shape[1]) > 1:
            # Adding the right half to the left one gives the same bits for any number of pairs; sum() may not.
            squares[:, : width // 2] += squares[:, -(width // 2) :]
            squares = squares[:, : -(width // 2)]
        distances[part] = squares[:, 0].sqrt()
    return distances


def _ranked(
    ids: Int[Tensor, "row slot"], distances: Float[Tensor, "row slot"]
) -> tuple[Int[Tensor, "row slot"], Float[Tensor, "row slot"]]:
    """Each row sorted by distance, then id."""
    ids, by_id = ids.sort(dim=1)
    distances, by_distance = distances.gather(1, by_id).sort(dim=1, stable=True)
    return ids.gather(1, by_distance), distances


def _block_sizes(dim: int, n_candidates: int, budget: int) -> tuple[int, int]:
    """Numbers of queries and galleries for a block that fits the budget, even if all its pairs must be measured."""
    n_rows, n_columns = _ROWS, _COLUMNS

    def n_bytes() -> int:
        return 24 * dim * (n_rows + n_columns) + 128 * n_rows * n_candidates + 256 * n_rows * n_columns

    while n_bytes() > budget and (n_rows > 1 or n_columns > _GROUP):
        if n_columns > max(n_rows, _GROUP) or n_rows == 1:
            n_columns //= 2
        else:
            n_rows //= 2
    return n_rows, n_columns


@contextmanager
def _full_precision_products(device_type: str) -> Iterator[None]:
    """Without autocast, TF32 and bfloat16: the lower bounds count on the rounding of the dtype they are computed in."""
    backends = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def _check_shapes(queries: Tensor, galleries: Tensor, query_items: Tensor | None, gallery_items: Tensor | None) -> None:
    if queries.ndim != 2 or galleries.ndim != 2 or queries.shape[1] != galleries.shape[1] or queries.shape[1] == 0:
        raise ValueError(
            "exact_search needs queries (query, dim) and galleries (gallery, dim) of one dim > 0, "
            f"got {tuple(queries.shape)} and {tuple(galleries.shape)}."
        )
    if (query_items is None) != (gallery_items is None):
        raise ValueError("exact_search needs query_items and gallery_items both or neither, got one of them.")
    for name, items, rows in (("query_items", query_items, queries), ("gallery_items", gallery_items, galleries)):
        if items is not None and items.shape != (len(rows),):
            raise ValueError(f"exact_search needs {len(rows)} {name} in one dimension, got {tuple(items.shape)}.")
    tensors = [tensor for tensor in (queries, galleries, query_items, gallery_items) if tensor is not None]
    if len(devices := {str(tensor.device) for tensor in tensors}) > 1:
        raise ValueError(f"exact_search needs all tensors on one device, got {', '.join(sorted(devices))}.")


def _check_values(embeddings: Tensor, name: str, dtype: torch.dtype) -> None:
    if len(embeddings) == 0:
        return
    # (|q| + |g|)^2 must not overflow, even after centring
    limit = (torch.finfo(dtype).max / (32 * embeddings.shape[1])) ** 0.5
    if torch.stack(embeddings.aminmax()).abs().amax().item() <= limit:
        return
    parts = (part.to(dtype).abs() <= limit for part in embeddings.split(1024))
    bad = torch.cat([~part.all(dim=1) for part in parts]).nonzero().squeeze(1)
    raise ValueError(
        f"exact_search needs finite {name} below {limit:.0e}, got NaN, infinite or larger numbers in {len(bad)} of "
        f"{len(embeddings)} rows, such as rows {bad[:5].tolist()}. Look at the model or the inputs of these rows."
    )
