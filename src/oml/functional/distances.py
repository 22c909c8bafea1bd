"""Distances between embeddings, and embeddings of unit length. Distances are unsquared."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def elementwise_dist(x1: Float[Tensor, "row dim"], x2: Float[Tensor, "row dim"], p: int = 2) -> Float[Tensor, " row"]:
    """The p-norm distance between equal rows of two matrices; its gradient is zero where the distance is.

    Example:
        >>> elementwise_dist(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]))
        tensor([5.])
    """
    return torch.linalg.vector_norm(x1 - x2, ord=p, dim=1)


def pairwise_dist(
    x1: Float[Tensor, "row dim"], x2: Float[Tensor, "column dim"], p: int = 2
) -> Float[Tensor, "row column"]:
    """The p-norm distance of every row of ``x1`` to every row of ``x2``; its gradient is zero where the distance is.

    From differences, not from a matrix product, so that near duplicates keep their digits.

    Example:
        >>> pairwise_dist(torch.zeros(1, 2), torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
        tensor([[5., 1.]])
    """
    return torch.cdist(x1, x2, p=p, compute_mode="donot_use_mm_for_euclid_dist")


def normalise(x: Float[Tensor, "row dim"], p: int = 2) -> Float[Tensor, "row dim"]:
    """Rows scaled to a p-norm of 1, with the true gradient; rows of zeros stay zeros.

    Example:
        >>> normalise(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    return F.normalize(x, p=p, dim=1)
