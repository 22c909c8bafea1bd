"""Losses as functions of distances or embeddings."""

from typing import Literal, get_args

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

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
