"""Quality of rankings, from the relevance of what was retrieved: one number per query, in [0, 1].

A ranking comes as a matrix ``is_relevant``, whose row i belongs to query i and whose columns are the ranks, the nearest
gallery first; or as :class:`Hits`, the ranks of the relevant items alone, which are known for a whole gallery where no
matrix would fit. Ranks that a matrix does not have count as not relevant, so retrieve at least ``k`` (for r-precision
and map@r: as many as the most relevant items of a query) unless the gallery itself is smaller.

``n_relevant`` is the number of galleries that are right for a query, retrieved or not. Queries with nothing to find
must be left out before, as :class:`oml.retrieval.RetrievalResults` does: they have no meaningful value, and get 0.

Values are added up in float64 and rounded to float32; no bit of them depends on the other queries.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Hits(NamedTuple):
    """The places of relevant items in rankings, sorted by query, then rank.

    Attributes:
        query: Row of the query that each of them is right for.
        rank: Where it stands in the ranking of that query, from 1.
        n_queries: How many queries there are, with or without hits.

    Example:
        >>> cmc_at_k(Hits(query=torch.tensor([0, 0, 2]), rank=torch.tensor([1, 4, 3]), n_queries=3), k=3)
        tensor([1., 0., 1.])
    """

    query: Int[Tensor, " hit"]
    rank: Int[Tensor, " hit"]
    n_queries: int


def cmc_at_k(is_relevant: Bool[Tensor, "query rank"] | Hits, k: int) -> Float[Tensor, " query"]:
    """1 if any of the first ``k`` ranks holds a relevant item, else 0.

    The cumulative matching characteristic of re-identification. Papers on metric learning call it Recall@k (so does
    Musgrave et al., "A Metric Learning Reality Check"), though it is not the share of relevant items found;
    at ``k = 1`` it is also their Precision@1. torchmetrics calls it hit rate.

    Args:
        is_relevant: Whether the item at each rank is right for the query, or where such items stand.
        k: How many ranks to look at, a positive int.

    Raises:
        ValueError: ``k`` is not a positive int.

    Example:
        >>> cmc_at_k(torch.tensor([[False, True, False], [False, False, True]]), k=2)
        tensor([1., 0.])
    """
    return (_count(_first(is_relevant, k)) > 0).float()


def precision_at_k(
    is_relevant: Bool[Tensor, "query rank"] | Hits, n_relevant: Int[Tensor, " query"], k: int
) -> Float[Tensor, " query"]:
    """Relevant items among the first ``k`` ranks, divided by ``min(k, n_relevant)``.

    An ideal ranking scores 1 even for a query with fewer than ``k`` relevant items. Elsewhere (torchmetrics) the
    denominator is ``k``, so that such a query cannot reach 1. With ``k = n_relevant`` this is :func:`r_precision`.

    Args:
        is_relevant: Whether the item at each rank is right for the query, or where such items stand.
        n_relevant: How many galleries are right for the query, retrieved or not; at least 1.
        k: How many ranks to look at, a positive int.

    Raises:
        ValueError: ``k`` is not a positive int.

    Example:
        >>> precision_at_k(torch.tensor([[True, False, True], [True, False, False]]), torch.tensor([4, 1]), k=3)
        tensor([0.6667, 1.0000])
    """
    return _count(_first(is_relevant, k)) / n_relevant.clamp(min=1, max=k)


def recall_at_k(
    is_relevant: Bool[Tensor, "query rank"] | Hits, n_relevant: Int[Tensor, " query"], k: int
) -> Float[Tensor, " query"]:
    """Relevant items among the first ``k`` ranks, divided by ``n_relevant``: the share that was found.

    As in torchmetrics and in information retrieval at large. What papers on metric learning call Recall@k is
    :func:`cmc_at_k`.

    Args:
        is_relevant: Whether the item at each rank is right for the query, or where such items stand.
        n_relevant: How many galleries are right for the query, retrieved or not; at least 1.
        k: How many ranks to look at, a positive int.

    Raises:
        ValueError: ``k`` is not a positive int.

    Example:
        >>> recall_at_k(torch.tensor([[True, False, True], [True, False, False]]), torch.tensor([4, 1]), k=3)
        tensor([0.5000, 1.0000])
    """
    return _count(_first(is_relevant, k)) / n_relevant.clamp(min=1)


def r_precision(
    is_relevant: Bool[Tensor, "query rank"] | Hits, n_relevant: Int[Tensor, " query"]
) -> Float[Tensor, " query"]:
    """Relevant items among the first ``n_relevant`` ranks of the query, divided by ``n_relevant``.

    Precision and recall at the rank where both can be 1. As in Musgrave et al., "A Metric Learning Reality Check",
    pytorch-metric-learning and torchmetrics.

    Args:
        is_relevant: Whether the item at each rank is right for the query, or where such items stand.
        n_relevant: How many galleries are right for the query, retrieved or not; at least 1.

    Example:
        >>> r_precision(torch.tensor([[True, False, True], [True, False, False]]), torch.tensor([2, 1]))
        tensor([0.5000, 1.0000])
    """
    return _count(_up_to(_hits(is_relevant), n_relevant)) / n_relevant.clamp(min=1)


def average_precision_at_k(
    is_relevant: Bool[Tensor, "query rank"] | Hits,
    k: int | None,
    n_relevant: Int[Tensor, " query"] | None = None,
    divide_by: Literal["found", "min(k, n)", "n"] = "found",
) -> Float[Tensor, " query"]:
    """Sum of the precisions at those of the first ``k`` ranks that hold a relevant item, divided; its mean is map@k.

    ``sum(n_i / i for each relevant rank i <= k) / denominator``, where ``n_i`` items are relevant among the first
    ``i``. No hit scores 0. Libraries differ in the denominator:

    * ``"found"``, the number of summands: one hit at rank 1 scores 1 however many were missed. torchmetrics,
      OML 0.4.4.
    * ``"min(k, n)"``, the summands of an ideal ranking: that alone scores 1. The landmark retrieval challenges (mAP@100
      in Weyand et al., "Google Landmarks Dataset v2").
    * ``"n"``, all relevant items: no ranking scores 1 if there are more of them than ``k``. pytorch-metric-learning,
      trec_eval.

    Over a whole gallery (``k=None``) everything is found and the three are one, which is also scikit-learn's
    ``average_precision_score`` if no distances are equal (there, equal ones share a rank).

    Args:
        is_relevant: Whether the item at each rank is right for the query, or where such items stand.
        k: How many ranks to look at, a positive int; None for all.
        n_relevant: How many galleries are right for the query, retrieved or not; needed unless ``"found"`` divides.
        divide_by: The denominator; ``n`` is ``n_relevant``.

    Raises:
        ValueError: ``k`` is not a positive int, ``divide_by`` is something else, or ``n_relevant`` is missing.

    Example:
        >>> ranking, n_relevant = torch.tensor([[True, False, True, False, False]]), torch.tensor([4])
        >>> average_precision_at_k(ranking, k=3)
        tensor([0.8333])
        >>> average_precision_at_k(ranking, 3, n_relevant, "min(k, n)")
        tensor([0.5556])
        >>> average_precision_at_k(ranking, 3, n_relevant, "n")
        tensor([0.4167])
    """
    if divide_by not in ("found", "min(k, n)", "n"):
        raise ValueError(f"average_precision_at_k divides by 'found', 'min(k, n)' or 'n', got {divide_by!r}.")
    found = _first(is_relevant, k)
    if divide_by == "found":
        denominator = _count(found)
    elif n_relevant is None:
        raise ValueError(f"average_precision_at_k needs n_relevant to divide by {divide_by!r}, got None.")
    else:
        denominator = n_relevant if divide_by == "n" or k is None else n_relevant.clamp(max=k)
    return (_sum_of_precisions(found) / denominator.clamp(min=1)).float()


def average_precision_at_r(
    is_relevant: Bool[Tensor, "query rank"] | Hits, n_relevant: Int[Tensor, " query"]
) -> Float[Tensor, " query"]:
    """Sum of the precisions at the relevant ones of the first ``n_relevant`` ranks, over ``n_relevant``.

    Its mean is map@r: MAP@R of Musgrave et al., "A Metric Learning Reality Check", and pytorch-metric-learning. It is
    1 for an ideal ranking only, and what comes after rank ``n_relevant`` counts as not found.

    Args:
        is_relevant: Whether the item at each rank is right for the query, or where such items stand.
        n_relevant: How many galleries are right for the query, retrieved or not; at least 1.

    Example:
        >>> average_precision_at_r(torch.tensor([[True, False, True, True]]), torch.tensor([3]))
        tensor([0.5556])
    """
    found = _up_to(_hits(is_relevant), n_relevant)
    return (_sum_of_precisions(found) / n_relevant.clamp(min=1)).float()


def ndcg_at_k(
    is_relevant: Bool[Tensor, "query rank"] | Hits, n_relevant: Int[Tensor, " query"], k: int | None
) -> Float[Tensor, " query"]:
    """``sum(1 / log2(i + 1) for each relevant rank i <= k)``, divided by what an ideal ranking would have.

    Normalised discounted cumulative gain (Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques")
    of items that are relevant or not. The ideal ranking has ``min(k, n_relevant)`` relevant items first, retrieved or
    not. scikit-learn and torchmetrics agree on rankings of the whole gallery; of a list of some retrieved items they
    only know those.

    Args:
        is_relevant: Whether the item at each rank is right for the query, or where such items stand.
        n_relevant: How many galleries are right for the query, retrieved or not; at least 1.
        k: How many ranks to look at, a positive int; None for all.

    Raises:
        ValueError: ``k`` is not a positive int.

    Example:
        >>> ndcg_at_k(torch.tensor([[True, False, True], [False, True, False]]), torch.tensor([2, 1]), k=3)
        tensor([0.9197, 0.6309])
    """
    found = _first(is_relevant, k)
    n_ideal = n_relevant if k is None else n_relevant.clamp(max=k)
    query = torch.arange(len(n_ideal), device=n_ideal.device).repeat_interleave(n_ideal)
    ideal = Hits(query, torch.arange(1, len(query) + 1, device=query.device), len(n_ideal))
    ideal = ideal._replace(rank=ideal.rank - _starts(ideal)[query])
    gain, most = (_sum(hits, 1 / (hits.rank + 1).double().log2()) for hits in (found, ideal))
    return (gain / most.masked_fill(n_ideal < 1, 1)).float()


def reciprocal_rank(is_relevant: Bool[Tensor, "query rank"] | Hits, k: int | None = None) -> Float[Tensor, " query"]:
    """``1 / i`` for the first rank ``i`` that holds a relevant item, 0 if there is none; its mean is mrr.

    Args:
        is_relevant: Whether the item at each rank is right for the query, or where such items stand.
        k: How many ranks to look at, a positive int; None for all.

    Raises:
        ValueError: ``k`` is not a positive int.

    Example:
        >>> reciprocal_rank(torch.tensor([[True, False, True], [False, True, False]]))
        tensor([1.0000, 0.5000])
    """
    found = _first(is_relevant, k)
    first = _position(found) == 1
    values = torch.zeros(found.n_queries, device=found.rank.device)
    values[found.query[first]] = 1 / found.rank[first]
    return values


def precision_of_returned(
    is_relevant: Bool[Tensor, "query rank"] | Hits, n_returned: Int[Tensor, " query"]
) -> Float[Tensor, " query"]:
    """Relevant items among all that were returned, divided by ``n_returned``; 0 if nothing was returned.

    Of answers that differ in length, as of a search with a threshold: unlike :func:`precision_at_k`, it is the share of
    an answer that is right. To return nothing is no right answer here, as every query that counts has something to
    find: so it is in trec_eval (``set_P``) and scikit-learn. With 1 instead, as the ends of precision-recall curves
    have it, a threshold that nothing passes would look perfect.

    Args:
        is_relevant: Whether the item at each rank is right for the query, or where such items stand; not so at ranks
            beyond the last item that was returned.
        n_returned: How many items were returned for the query.

    Example:
        >>> precision_of_returned(torch.tensor([[True, False, True], [False, False, False]]), torch.tensor([3, 0]))
        tensor([0.6667, 0.0000])
    """
    return _count(_hits(is_relevant)) / n_returned.clamp(min=1)


def recall_of_returned(
    is_relevant: Bool[Tensor, "query rank"] | Hits, n_relevant: Int[Tensor, " query"]
) -> Float[Tensor, " query"]:
    """Relevant items among all that were returned, divided by ``n_relevant``: the share that was found.

    Args:
        is_relevant: See :func:`precision_of_returned`.
        n_relevant: How many galleries are right for the query, returned or not; at least 1.

    Example:
        >>> recall_of_returned(torch.tensor([[True, False, True], [False, False, False]]), torch.tensor([4, 1]))
        tensor([0.5000, 0.0000])
    """
    return _count(_hits(is_relevant)) / n_relevant.clamp(min=1)


def f1_of_returned(
    is_relevant: Bool[Tensor, "query rank"] | Hits, n_returned: Int[Tensor, " query"], n_relevant: Int[Tensor, " query"]
) -> Float[Tensor, " query"]:
    """Twice the relevant items among all that were returned, divided by ``n_returned + n_relevant``.

    That is the harmonic mean of :func:`precision_of_returned` and :func:`recall_of_returned`, and 0 where both are. The
    mean over queries is that of their values, not the harmonic mean of the means.

    Args:
        is_relevant, n_returned: See :func:`precision_of_returned`.
        n_relevant: How many galleries are right for the query, returned or not; at least 1.

    Example:
        >>> f1_of_returned(torch.tensor([[True, False, True]]), torch.tensor([3]), torch.tensor([4]))
        tensor([0.5714])
    """
    return 2 * _count(_hits(is_relevant)) / (n_returned + n_relevant).clamp(min=1)


def _hits(is_relevant: Tensor | Hits) -> Hits:
    if isinstance(is_relevant, Hits):
        return is_relevant
    query, rank = is_relevant.nonzero().unbind(1)
    return Hits(query, rank + 1, len(is_relevant))


def _first(is_relevant: Tensor | Hits, k: object) -> Hits:
    """The hits up to rank ``k``."""
    if k is None:
        return _hits(is_relevant)
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"A ranking is cut at a positive int k, got {k!r}.")
    if isinstance(is_relevant, Hits):
        near = is_relevant.rank <= k
        return is_relevant._replace(query=is_relevant.query[near], rank=is_relevant.rank[near])
    return _hits(is_relevant[:, :k])


def _up_to(hits: Hits, ranks: Int[Tensor, " query"]) -> Hits:
    """The hits up to a rank of each query."""
    near = hits.rank <= ranks[hits.query]
    return hits._replace(query=hits.query[near], rank=hits.rank[near])


def _starts(hits: Hits) -> Int[Tensor, " bound"]:
    """Where the hits of each query start, and where the last ones end."""
    return torch.searchsorted(hits.query, torch.arange(hits.n_queries + 1, device=hits.query.device))


def _count(hits: Hits) -> Int[Tensor, " query"]:
    return _starts(hits).diff()


def _position(hits: Hits) -> Int[Tensor, " hit"]:
    """How many hits of its query there are up to each of them, itself included."""
    return torch.arange(1, len(hits.query) + 1, device=hits.query.device) - _starts(hits)[hits.query]


def _sum(hits: Hits, values: Float[Tensor, " hit"]) -> Float[Tensor, " query"]:
    """The sum of the values of each query: one after the other, so that no bit depends on other queries."""
    return torch.segment_reduce(values, "sum", lengths=_count(hits), initial=0, unsafe=True)


def _sum_of_precisions(hits: Hits) -> Float[Tensor, " query"]:
    return _sum(hits, _position(hits).double() / hits.rank)
