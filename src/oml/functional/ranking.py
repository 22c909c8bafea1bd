"""Quality of rankings, from the relevance of what was retrieved: one number per query, in [0, 1].

Row i of ``is_relevant`` belongs to query i; its columns are the ranks, the nearest gallery first. Ranks beyond the
width of ``is_relevant`` count as not relevant, so retrieve at least ``k`` unless the gallery itself is smaller.
Queries with nothing to find must be left out before: they have no meaningful value.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def cmc_at_k(is_relevant: Bool[Tensor, "query rank"], k: int) -> Float[Tensor, " query"]:
    """1 if any of the first ``k`` ranks holds a relevant item, else 0.

    The cumulative matching characteristic of re-identification. Papers on metric learning call it Recall@k (so does
    Musgrave et al., "A Metric Learning Reality Check"), though it is not the share of relevant items found;
    at ``k = 1`` it is also their Precision@1.

    Args:
        is_relevant: Whether the item at each rank is right for the query.
        k: How many ranks to look at, a positive int.

    Raises:
        ValueError: ``k`` is not a positive int.

    Example:
        >>> cmc_at_k(torch.tensor([[False, True, False], [False, False, True]]), k=2)
        tensor([1., 0.])
    """
    return _first(is_relevant, k).any(dim=1).float()


def precision_at_k(
    is_relevant: Bool[Tensor, "query rank"], n_relevant: Int[Tensor, " query"], k: int
) -> Float[Tensor, " query"]:
    """Relevant items among the first ``k`` ranks, divided by ``min(k, n_relevant)``.

    An ideal ranking scores 1 even for a query with fewer than ``k`` relevant items. Elsewhere the denominator is
    often ``k``, so that such a query cannot reach 1. With ``k = n_relevant`` this is R-precision.

    Args:
        is_relevant: Whether the item at each rank is right for the query.
        n_relevant: How many galleries are right for the query, retrieved or not; at least 1.
        k: How many ranks to look at, a positive int.

    Raises:
        ValueError: ``k`` is not a positive int.

    Example:
        >>> precision_at_k(torch.tensor([[True, False, True], [True, False, False]]), torch.tensor([4, 1]), k=3)
        tensor([0.6667, 1.0000])
    """
    return _first(is_relevant, k).float().sum(dim=1) / n_relevant.clamp(max=k)


def average_precision_at_k(is_relevant: Bool[Tensor, "query rank"], k: int) -> Float[Tensor, " query"]:
    """Mean of the precisions at those of the first ``k`` ranks that hold a relevant item; its mean is map@k.

    ``sum(n_i / i for each relevant rank i <= k) / n_k``, where ``n_i`` items are relevant among the first ``i``. The
    denominator is the number of items *found*, so one hit at rank 1 scores 1 however many were missed. Elsewhere it
    is ``min(k, n_relevant)`` or ``n_relevant``; MAP@R of Musgrave et al. has ``k = n_relevant`` as both. No hit
    scores 0.

    Args:
        is_relevant: Whether the item at each rank is right for the query.
        k: How many ranks to look at, a positive int.

    Raises:
        ValueError: ``k`` is not a positive int.

    Example:
        >>> average_precision_at_k(torch.tensor([[True, False, True, False]]), k=4)
        tensor([0.8333])
    """
    found = _first(is_relevant, k).float()
    rank = torch.arange(1, found.shape[1] + 1, device=found.device)
    precision = found.cumsum(dim=1) / rank
    return (precision * found).sum(dim=1) / found.sum(dim=1).clamp(min=1)


def _first(is_relevant: Tensor, k: object) -> Tensor:
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"A ranking is cut at a positive int k, got {k!r}.")
    return is_relevant[:, :k]
