"""One ranking of several: of other extractors, say, for the same queries in the same gallery."""

from collections.abc import Sequence
from math import fsum
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from oml.retrieval.results import RetrievalResults

Method = Literal["distance", "reciprocal_rank"]

_TO_BE_EQUAL = (
    "query_ids",
    "query_labels",
    "query_sequences",
    "gallery_ids",
    "gallery_labels",
    "gallery_sequences",
)
_ROWS = 1024  # queries at a time


def fuse(
    results: Sequence[RetrievalResults],
    method: Method = "distance",
    *,
    weights: Sequence[float | int] | None = None,
    k: float | int = 60,
) -> RetrievalResults:
    """The results of several searches as one: those of several extractors, which make different mistakes.

    Each ranking has a say of 0, for its first item, to 1, and the new distance of an item is the weighted mean of what
    all rankings say of it:

    - ``distance``: ``(d - first) / (last - first)``, with the distances of the query's own first and last item in this
      ranking; 0 if these are equal. Search with one ``top_k`` for all.
    - ``reciprocal_rank``: ``(rank - 1) / (k + rank)``, ranks from 1. That puts items in the order of
      ``sum(weight / (k + rank))``, reciprocal rank fusion (Cormack, Clarke & Büttcher 2009). It takes no notice of
      distances, so rankings may have any scale, and be re-ranked ones.

    A ranking says 1 of an item that it does not hold: with either method no less than of any that it does. Equal
    distances rank by the weighted mean of the ranks (where one is missing, that after the last of the widest), then by
    id. So the fusion of a ranking with itself is that ranking. The order of ``results`` does not matter.

    It pays if the extractors are about equally good: two runs of the demo, fused by their distances, find more than
    the better one of them. A much weaker one makes things worse, unless its weight is low.

    Args:
        results: two or more, or one; of the same queries in the same gallery, in the same order.
        method: what a ranking says of an item, see above.
        weights: of the rankings, above 0, by default all the same; only their ratios matter.
        k: for ``reciprocal_rank``, 0 or more: the larger, the more the agreement of rankings counts, and the less the
            first ranks of one. 60 is the paper's.

    Returns:
        Results as wide as the widest of ``results``.

    Raises:
        ValueError: if there are no results, they differ in their queries or galleries, there is no such method, or
            ``weights`` or ``k`` are out of their range.

    Example:
        >>> labels = torch.tensor([0, 0, 1, 0])
        >>> is_query = torch.tensor([True, False, False, False])
        >>> of_colour, of_shape = (
        ...     RetrievalResults.from_embeddings(embeddings, labels, is_query, ~is_query, top_k=3)
        ...     for embeddings in (torch.tensor([[0.0], [2], [1], [3]]), torch.tensor([[0.0], [1], [9], [2]]))
        ... )
        >>> of_colour.retrieved_ids.tolist(), of_shape.retrieved_ids.tolist()
        ([[2, 1, 3]], [[1, 3, 2]])
        >>> fuse([of_colour, of_shape], "reciprocal_rank").retrieved_ids.tolist()
        [[1, 2, 3]]
        >>> fuse([of_colour, of_shape], weights=[1, 3]).distances
        tensor([[0.1250, 0.3438, 0.7500]])
    """
    weights = [1.0] * len(results) if weights is None else list(weights)
    if not results:
        raise ValueError("fuse needs the results of one search or more, got none.")
    if method not in get_args(Method):
        raise ValueError(f"fuse knows the methods {', '.join(map(repr, get_args(Method)))}, got {method!r}.")
    if len(weights) != len(results) or not all(0 < weight < torch.inf for weight in weights):
        raise ValueError(f"fuse needs a weight above 0 of each of {len(results)} results, got {weights}.")
    if not 0 <= k < torch.inf:
        raise ValueError(f"fuse needs a k of 0 or more, got {k}.")
    first = results[0]
    for number, other in enumerate(results[1:], start=1):
        _check_same(first, other, number)
    width = max(each.retrieved_ids.shape[1] for each in results)

    shares = [weight / fsum(weights) for weight in weights]  # in any order the same bits
    ids = first.retrieved_ids.new_empty(len(first), width)
    distances = first.distances.new_empty(len(first), width)
    for start in range(0, len(first), _ROWS):
        rows = slice(start, start + _ROWS)
        lists = [(each.retrieved_ids[rows], each.distances[rows]) for each in results]
        ids[rows], distances[rows] = _fused(lists, shares, method, k, width)
    return first.with_ranking(ids, distances)


def _fused(
    lists: Sequence[tuple[Tensor, Tensor]], shares: Sequence[float], method: Method, k: float | int, width: int
) -> tuple[Int[Tensor, "query rank"], Float[Tensor, "query rank"]]:
    """Of some queries the fused ids and distances; the rankings have ids and distances, and shares that sum up to 1."""
    # one entry per item and ranking; what it says is counted from 1 downwards, so that absent items add nothing
    entries: list[tuple[Tensor, Tensor, Tensor]] = []
    for (ids, distances), share in zip(lists, shares, strict=True):
        ranks = torch.arange(ids.shape[1], dtype=torch.float64, device=ids.device).expand(ids.shape)
        says = ranks / (k + 1 + ranks) if method == "reciprocal_rank" else _spans(distances, ids >= 0)
        entries.append((ids, share * (1 - says), share * (width - ranks)))
    ids, credit, ranks_up = (torch.cat(parts, dim=1) for parts in zip(*entries, strict=True))
    ids, credit, ranks_up = _summed(ids, credit, ranks_up, len(lists))

    order = ranks_up.argsort(dim=1, descending=True, stable=True)  # of entries in the order of their ids
    order = order.gather(1, credit.gather(1, order).argsort(dim=1, descending=True, stable=True))[:, :width]
    ids, distances = ids.gather(1, order), (1 - credit.gather(1, order)).clamp_(min=0).to(lists[0][1].dtype)
    return ids, distances.masked_fill_(ids < 0, torch.inf)


def _check_same(first: RetrievalResults, other: RetrievalResults, number: int) -> None:
    for name in _TO_BE_EQUAL:
        a, b = getattr(first, name), getattr(other, name)
        if (a is None) != (b is None):
            without = 0 if a is None else number
            raise ValueError(f"fuse needs {name} of all results or of none, results {without} have none.")
        if a is None or torch.equal(a, b):
            continue
        what = f"{len(a)} and {len(b)}"
        if len(a) == len(b):
            places = (a != b).nonzero().squeeze(1)
            what = f"{len(places)} of {len(a)} differ, such as {int(a[places[0]])} and {int(b[places[0]])}"
        raise ValueError(
            f"fuse needs results of the same queries in the same gallery, in the same order, got other {name} in "
            f"results 0 and {number}: {what}. Search in one data set with all extractors."
        )


def _spans(distances: Float[Tensor, "query rank"], is_found: Bool[Tensor, "query rank"]) -> Float[Tensor, "query rank"]:
    """Distances in each row from 0 to 1, the latter of the last item that there is."""
    distances = distances.double().masked_fill(~is_found, -torch.inf)
    first, last = distances[:, :1], distances.amax(dim=1, keepdim=True)
    return ((distances - first) / torch.where(last > first, last - first, 1)).masked_fill(~is_found, 1)


def _summed(ids: Tensor, credit: Tensor, ranks_up: Tensor, n_rankings: int) -> tuple[Tensor, Tensor, Tensor]:
    """In each row the sums of the entries of an item, in the order of ids; -1 and no credit in the other places.

    Entries are added in the order of their numbers, so that the sums do not depend on that of the rankings.
    """
    parts = [ids, credit, ranks_up]
    for key in (2, 1, 0):
        order = parts[key].argsort(dim=1, stable=True)
        parts = [part.gather(1, order) for part in parts]
    ids, credit, ranks_up = parts
    sums = credit.clone(), ranks_up.clone()
    for step in range(1, min(n_rankings, ids.shape[1])):
        same = ids[:, step:] == ids[:, :-step]
        for total, part in zip(sums, (credit, ranks_up), strict=True):
            total[:, :-step] += part[:, step:] * same
    is_spare = ids < 0
    is_spare[:, 1:] |= ids[:, 1:] == ids[:, :-1]
    return ids.masked_fill(is_spare, -1), sums[0].masked_fill(is_spare, -1), sums[1].masked_fill(is_spare, -1)
