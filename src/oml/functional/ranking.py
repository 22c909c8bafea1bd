"""Ranking metrics, one value per query, from the relevance of its ranked items and the count of relevant items.

``is_relevant[q, r]`` says whether the item at rank ``r`` of query ``q`` is right; ``k`` beyond the last rank means
all ranks. Queries with nothing to find are for the caller to leave out, see ``RetrievalResults``.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def cmc_at_k(is_relevant: Bool[Tensor, "query rank"], k: int) -> Float[Tensor, " query"]:
    """1 if any of the first ``k`` items is relevant, else 0. Papers on metric learning call it Recall@k.

    Example:
        >>> cmc_at_k(torch.tensor([[False, True], [False, False]]), k=2)
        tensor([1., 0.])
    """
    _check_k(k)
    return is_relevant[:, :k].any(dim=1).float()


def precision_at_k(
    is_relevant: Bool[Tensor, "query rank"], n_relevant: Int[Tensor, " query"], k: int
) -> Float[Tensor, " query"]:
    """Relevant items among the first ``k``, divided by ``min(k, n_relevant)``: an ideal ranking scores 1.

    Most libraries divide by ``k``. ``n_relevant``, the relevant items in the whole gallery, must be above 0.

    Example:
        >>> precision_at_k(torch.tensor([[True, False, True]]), torch.tensor([2]), k=3)
        tensor([1.])
    """
    _check_k(k)
    return is_relevant[:, :k].float().sum(dim=1) / n_relevant.clamp(max=k)


def average_precision_at_k(is_relevant: Bool[Tensor, "query rank"], k: int) -> Float[Tensor, " query"]:
    """Mean of the precisions at those of the first ``k`` ranks that hold a relevant item.

    The denominator is the number of items *found*, so one hit at rank 1 scores 1.0 however many were missed
    (``min(k, n_relevant)`` and ``n_relevant`` are other conventions). No hit scores 0. Its mean over queries is map@k.

    Example:
        >>> average_precision_at_k(torch.tensor([[True, False, True, False]]), k=4)
        tensor([0.8333])
    """
    _check_k(k)
    found = is_relevant[:, :k].float()
    rank = torch.arange(1, found.shape[1] + 1, device=found.device)
    precision = found.cumsum(dim=1) / rank
    return (precision * found).sum(dim=1) / found.sum(dim=1).clamp(min=1)


def _check_k(k: int) -> None:
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"A ranking metric needs a whole number k of 1 or more, got {k!r}.")
