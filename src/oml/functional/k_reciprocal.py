"""k-reciprocal re-ranking (Zhong et al. 2017) over sparse vectors: no matrix of all pairs is ever held."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from oml.functional.farthest import farthest_distances
from oml.functional.k_reciprocal_ranking import Ranking, squared_share
from oml.functional.pair_blocks import check_pairs, in_threads, measured
from oml.functional.search import Neighbours, exact_search
from oml.functional.sparse_rows import SparseRows, joined_rows, looked_up, ranges

_ROWS = 512  # items at a time
_NUMBERS = 2**17  # of neighbours of neighbours at a time


@torch.no_grad()
def k_reciprocal_rerank(
    embeddings: Float[Tensor, "item dim"],
    query_ids: Int[Tensor, " query"],
    gallery_ids: Int[Tensor, " gallery"],
    retrieved_ids: Int[Tensor, "query rank"],
    *,
    query_items: Int[Tensor, " query"],
    gallery_items: Int[Tensor, " gallery"],
    k1: int = 20,
    k2: int = 6,
    lambda_value: float | int = 0.3,
    memory_budget: int = 512 * 2**20,
) -> Neighbours:
    """The nearest galleries by ``(1 - lambda) * jaccard + lambda * d``, as many as were retrieved before.

    Zhong, Zheng, Cao, Li: Re-ranking Person Re-identification with k-reciprocal Encoding, CVPR 2017. The conventions
    are those of the implementation that its authors published:

    - ``d(i, j)`` is the squared L2 distance divided by the largest of row ``i``, among all items.
    - The neighbours of an item are itself and its ``k1`` nearest, among all items: queries and galleries alike.
    - ``R(i)``, the k-reciprocal neighbours: those of the neighbours of ``i`` that have ``i`` among theirs. ``R`` with
      ``round(k1 / 2)`` (half to even) in place of ``k1`` is ``H``. The expanded set has those of every ``H(c)``, ``c``
      in ``R(i)``, of which more than two thirds are in ``R(i)``. (The paper says: two thirds or more.)
    - ``V[i, j] = exp(-d(i, j))`` in the expanded set of ``i`` and 0 elsewhere, divided by the sum of the row.
    - Local query expansion: the row of ``i`` becomes the mean of the rows of itself and its ``k2 - 1`` nearest.
    - ``jaccard(i, j) = 1 - s / (2 - s)`` with ``s = sum_m min(V[i, m], V[j, m])``.

    Here ``i`` always comes first in its own list, before its copies. Numbers are evaluated in float64 and the result
    is rounded to float32 before it is ranked; ties rank by ``d``, then by id. The largest distance of a row is that of
    the farthest item as far as products in the embeddings' dtype can tell. Gradients do not flow.

    How: each row has as many entries as its neighbours have neighbours, so an inverted index, from a column to the
    galleries with an entry there, yields the sums ``s`` of all pairs that share any. They are added up for a block of
    queries at a time; ``d`` is evaluated only for pairs that can be among the first. Memory is O(item * k).

    Args:
        embeddings: of all items that are query or gallery, on a device that has float64.
        query_ids, gallery_ids: rows of ``embeddings``.
        retrieved_ids: the nearest galleries of each query by L2 distance, rows of ``embeddings`` too; -1 where there
            are none. With them the result is exact: a gallery whose ``jaccard`` is 1 can only come in if it is one.
        query_items, gallery_items: numbers of their items: a query does not find a gallery of its number, which still
            is a neighbour.
        k1, k2, lambda_value: see above.
        memory_budget: bytes to use beyond inputs, outputs, sparse rows and two copies of the embeddings. One number
            per gallery is always allowed.

    Raises:
        ValueError: ``k1`` or ``k2`` below 1, ``lambda_value`` not from 0 to 1; embeddings that are not finite or too
            large to be squared.

    Example:
        >>> points, ids = torch.tensor([[0.0], [1.0], [3.0], [3.5]]), torch.arange(4)
        >>> nearest = torch.tensor([[1, 2], [0, 2], [3, 1], [2, 1]])
        >>> k_reciprocal_rerank(points, ids, ids, nearest, query_items=ids, gallery_items=ids, k1=2, k2=1).ids
        tensor([[1, 2],
                [0, 2],
                [3, 1],
                [2, 1]])
    """
    check_k_reciprocal("k_reciprocal_rerank", k1, k2, lambda_value, memory_budget)
    check_pairs("k_reciprocal_rerank", embeddings, embeddings, memory_budget)
    width = retrieved_ids.shape[1]
    if len(query_ids) == 0 or width == 0:
        return Neighbours(retrieved_ids.clone(), torch.full(retrieved_ids.shape, torch.inf, device=embeddings.device))
    embeddings = embeddings.detach()
    lists = nearest_with_itself(embeddings, max(k1, k2 - 1), memory_budget)
    farthest = farthest_distances(embeddings, memory_budget)
    rows = k_reciprocal_encoding(embeddings, lists, farthest, k1)
    rows = local_query_expansion(rows, lists.ids, k2)
    ranking = Ranking(
        embeddings, query_ids, gallery_ids, query_items, gallery_items, lists, farthest, rows, lambda_value
    )
    return ranking.run(retrieved_ids, memory_budget)


def check_k_reciprocal(owner: str, k1: object, k2: object, lambda_value: float | int, memory_budget: object) -> None:
    """Refuse parameters out of their range."""
    for name, k in (("k1", k1), ("k2", k2), ("memory_budget", memory_budget)):
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ValueError(f"{owner} needs a whole number of 1 or more as {name}, got {k!r}.")
    if not 0 <= lambda_value <= 1:
        raise ValueError(f"{owner} needs a lambda_value from 0 to 1, got {lambda_value!r}.")


def nearest_with_itself(embeddings: Float[Tensor, "item dim"], k: int, memory_budget: int = 512 * 2**20) -> Neighbours:
    """Each item and its ``min(k, item - 1)`` nearest others, with their L2 distances; ids are int32.

    Example:
        >>> nearest_with_itself(torch.tensor([[0.0], [0.0], [3.0]]), 1).ids
        tensor([[0, 1],
                [1, 0],
                [2, 0]], dtype=torch.int32)
    """
    items = torch.arange(len(embeddings), device=embeddings.device)
    ids, distances = items[:, None].int(), torch.zeros(len(items), 1, device=items.device)
    if (k := min(k, len(items) - 1)) > 0:
        others = exact_search(
            embeddings, embeddings, k, query_items=items, gallery_items=items, memory_budget=memory_budget
        )
        ids = torch.cat([ids, others.ids.int()], dim=1)
        distances = torch.cat([distances.to(others.distances.dtype), others.distances], dim=1)
    return Neighbours(ids, distances)


def is_reciprocal(ids: Int[Tensor, "item rank"]) -> Bool[Tensor, "item rank"]:
    """Which of an item's neighbours have it among theirs.

    Example:
        >>> is_reciprocal(torch.tensor([[0, 1], [1, 2], [2, 1]]))
        tensor([[ True, False],
                [ True,  True],
                [ True,  True]])
    """
    items = torch.arange(len(ids), dtype=ids.dtype, device=ids.device)

    def of_block(part: tuple[Tensor, Tensor]) -> Tensor:
        own, nearest = part
        theirs = ids.index_select(0, nearest.flatten()).view(*nearest.shape, -1)
        return (theirs == own[:, None, None]).any(dim=2)

    return torch.cat(in_threads(of_block, list(zip(items.split(_ROWS), ids.split(_ROWS), strict=True)), ids.device))


def k_reciprocal_encoding(
    embeddings: Float[Tensor, "item dim"],
    lists: Neighbours,
    farthest: Float[Tensor, " item"],
    k1: int,
) -> SparseRows:
    """``V`` of :func:`k_reciprocal_rerank`, before the local query expansion.

    Args:
        embeddings: of all items.
        lists: of :func:`nearest_with_itself`, ``k1`` others or more.
        farthest: of :func:`farthest_distances`.
        k1: how many neighbours an item has.

    Example:
        >>> points = torch.tensor([[0.0], [1.0], [3.0]])
        >>> lists = nearest_with_itself(points, 1)
        >>> k_reciprocal_encoding(points, lists, farthest_distances(points), k1=1).columns
        tensor([0, 1, 0, 1, 2], dtype=torch.int32)
    """
    n = len(embeddings)
    ids, distances = (part[:, : k1 + 1].contiguous() for part in lists)
    halves = ids[:, : round(k1 / 2) + 1].contiguous()
    mutual = is_reciprocal(ids)
    halves.masked_fill_(~is_reciprocal(halves), n)  # n stands for nobody
    n_in_half = (halves < n).sum(dim=1)
    n_rows = max(1, _NUMBERS // (ids.shape[1] * halves.shape[1]))

    def of_block(first: int) -> tuple[Tensor, Tensor, Tensor]:
        here = slice(first, first + n_rows)
        nearest = ids[here]
        own = nearest.masked_fill(~mutual[here], n).sort(dim=1).values
        theirs = halves.index_select(0, nearest.flatten()).view(*nearest.shape, -1)
        shared = (looked_up(own, theirs.flatten(1))[1].view_as(theirs) & (theirs < n)).sum(dim=2)
        alike = mutual[here] & (3 * shared > 2 * n_in_half.index_select(0, nearest.flatten()).view_as(nearest))
        columns = torch.cat([own, theirs.masked_fill_(~alike[:, :, None], n).flatten(1)], dim=1).sort(dim=1).values
        kept = columns < n
        kept[:, 1:] &= columns[:, 1:] != columns[:, :-1]

        nearest, order = nearest.sort(dim=1)
        place, is_near = looked_up(nearest, columns)
        row = kept.nonzero()[:, 0]
        columns, far = columns[kept], (~is_near)[kept].nonzero().squeeze(1)
        of_pairs = distances[here].gather(1, order).gather(1, place)[kept]
        of_pairs[far] = measured(embeddings, embeddings, first + row[far], columns[far].long())
        values = squared_share(of_pairs, farthest[here][row]).neg_().exp_()
        sums = values.new_zeros(len(nearest)).index_add_(0, row, values)
        return kept.sum(dim=1), columns, values / sums[row]

    return joined_rows(in_threads(of_block, range(0, n, n_rows), ids.device))


def local_query_expansion(rows: SparseRows, ids: Int[Tensor, "item rank"], k2: int) -> SparseRows:
    """Each row becomes the mean of those of its ``k2`` nearest, itself included.

    Example:
        >>> rows = SparseRows(torch.tensor([0, 1, 2]), torch.tensor([0, 1]), torch.ones(2))
        >>> local_query_expansion(rows, torch.tensor([[0, 1], [1, 0]]), k2=2).values
        tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """
    ids = ids[:, :k2]
    if ids.shape[1] == 1:
        return rows
    n, counts = len(ids), rows.starts.diff()

    def of_block(first: int) -> tuple[Tensor, Tensor, Tensor]:
        nearest = ids[first : first + _ROWS]
        which, place = ranges(rows.starts[nearest].flatten(), counts[nearest].flatten())
        key, order = (which.div_(ids.shape[1], rounding_mode="floor") * n).add_(rows.columns[place]).sort()
        is_first = torch.ones_like(key, dtype=torch.bool)
        torch.ne(key[1:], key[:-1], out=is_first[1:])
        entry = is_first.cumsum(0).sub_(1)
        key = key[is_first]
        values = rows.values.new_zeros(len(key)).index_add_(0, entry, rows.values[place[order]])
        columns = (key % n).to(rows.columns.dtype)
        return (key // n).bincount(minlength=len(nearest)), columns, values.div_(ids.shape[1])

    return joined_rows(in_threads(of_block, range(0, n, _ROWS), ids.device))
