"""Losses as functions of distances or embeddings."""

from typing import Literal, get_args

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from oml.functional.precision import in_full_precision
from oml.functional.surrogates import check_ranking, found_within_k, ranks_of_relevant

Reduction = Literal["mean", "sum", "none"]


def check_reduction(owner: str, reduction: str) -> None:
    """Raise ``ValueError`` unless ``reduction`` is one of ``mean``, ``sum``, ``none``."""
    if reduction not in get_args(Reduction):
        raise ValueError(f"{owner} needs reduction to be one of {', '.join(get_args(Reduction))}, got {reduction!r}.")


def get_reduced(tensor: Float[Tensor, "..."], reduction: str) -> Float[Tensor, "..."]:
    """``tensor`` reduced to its mean or its sum, or as it is for ``none``."""
    check_reduction("get_reduced", reduction)
    if reduction == "mean":
        return tensor.mean()
    if reduction == "sum":
        return tensor.sum()
    return tensor


def triplet_loss(
    positive_distances: Float[Tensor, " triplet"], negative_distances: Float[Tensor, " triplet"], margin: float | None
) -> Float[Tensor, " triplet"]:
    """``relu(d_ap - d_an + margin)`` per triplet; with ``margin=None`` the soft form ``log(1 + exp(d_ap - d_an))``.

    The soft form is a softplus: finite, with a finite gradient, for any gap. Distances are unsquared L2.
    Source: Schroff et al. 2015 (margin), Hermans et al. 2017 (soft margin).

    Example:
        >>> import torch
        >>> triplet_loss(torch.tensor([1.0, 1.0]), torch.tensor([1.5, 0.5]), margin=0.2)
        tensor([0.0000, 0.7000])
    """
    gap = positive_distances - negative_distances
    return F.softplus(gap) if margin is None else F.relu(gap + margin)


@in_full_precision
def surrogate_precision(
    distances: Float[Tensor, "query gallery"],
    mask_gt: Bool[Tensor, "query gallery"] | Int[Tensor, "query gallery"] | Float[Tensor, "query gallery"],
    k: int,
    t1: int | float,
    t2: int | float,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Precision@k with a gradient: ``sum over relevant g of sigmoid((k - rank(g)) / t1) / min(k, n_relevant)``.

    ``rank(g) = sum over all g' of sigmoid((d(g) - d(g')) / t2)`` includes ``g' = g``, so well separated items have
    the ranks 0.5, 1.5, 2.5, ... With small temperatures this is the precision@k of :mod:`oml.metrics`. A query with
    no relevant item has a precision of 0. After Patel et al., see :func:`oml.functional.surrogates.surrogate_recall`.

    Memory is that of ``distances`` whatever the size, as comparisons are made in blocks, and once more for the
    gradient. Time grows with ``query * gallery * (largest number of relevant items of a query)``.

    Args:
        distances: smaller is closer. Items that a query must ignore may be at infinity, if not in ``mask_gt``.
        mask_gt: true (or 1) where the gallery item is relevant for the query.
        k: how many of the first ranks count, above 0.
        t1: temperature of the comparison of ranks with ``k``, in ranks.
        t2: temperature of the comparison of distances, in their unit.
        reduction: ``mean``, ``sum`` or ``none`` over the queries.

    Raises:
        ValueError: ``k`` or a temperature is not above 0, the shapes differ, or the reduction is unknown.

    Example:
        >>> import torch
        >>> distances = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
        >>> surrogate_precision(distances, torch.tensor([[True, False, True, True]]), k=2, t1=1e-3, t2=1e-3)
        tensor(0.5000)
    """
    if k < 1:
        raise ValueError(f"surrogate_precision needs k of 1 or more, got {k}.")
    check_ranking("surrogate_precision", distances, mask_gt, t1, t2)
    ranks, is_relevant = ranks_of_relevant(distances, mask_gt, t2)
    return get_reduced(found_within_k(ranks, is_relevant, k, t1), reduction)
