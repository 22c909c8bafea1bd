"""How a set of embeddings fills its space."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def pcf(embeddings: Float[Tensor, "item dim"], variances: Sequence[float]) -> Float[Tensor, " variance"]:
    """Principal components fraction: components needed to pass each share of the variance, divided by ``dim``.

    With the components' shares of the variance in descending order, the number of components is one more than the
    number of their cumulative sums that do not exceed the share ``r``. So ``r = 1`` may give a value above 1.

    Example:
        >>> pcf(torch.eye(4, 10), (0.5, 1.0))
        tensor([0.2000, 0.5000])
    """
    if not variances or not all(0 <= share <= 1 for share in variances):
        raise ValueError(f"pcf needs at least one share of variance, between 0 and 1, got {tuple(variances)}.")
    centred = embeddings.double() - embeddings.double().mean(dim=0)
    explained = torch.linalg.svdvals(centred).square()
    # a sum that reaches the share but for rounding does reach it
    cumulative = explained.cumsum(dim=0) / explained.sum().clamp(min=torch.finfo(torch.float64).tiny)
    shares = torch.tensor(variances, dtype=torch.float64, device=embeddings.device)
    n_components = (cumulative <= shares[:, None] + 1e-9).sum(dim=1) + 1
    return (n_components / embeddings.shape[1]).float()
