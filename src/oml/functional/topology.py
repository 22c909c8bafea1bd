"""The shape of a set of embeddings."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

_ROWS = 512  # are centred in float64 at a time
_ROUNDING = 1e-6  # of shares of the variance, if embeddings are float32


def pcf(embeddings: Float[Tensor, "item dim"], variances: Sequence[float | int]) -> Float[Tensor, " variance"]:
    """Principal components fraction: the share of the dimensions needed to explain more than some variance.

    With ``c_i`` the variance that the first ``i`` of ``min(item, dim)`` principal components explain, relative to all
    of it, the value for ``r`` is ``(1 + #{i: c_i <= r}) / dim``: the fewest components that explain more than ``r``.
    Near 0 the embeddings have collapsed to few directions. As nothing explains more than everything, ``r = 1`` gives
    ``(min(item, dim) + 1) / dim``, which may exceed 1. Embeddings that are all the same need one component for any
    ``r < 1``. Sums that equal ``r`` up to rounding count as equal.

    Args:
        embeddings: One row per item.
        variances: The shares ``r`` of the variance, each in [0, 1].

    Raises:
        ValueError: No items or variances, variances outside [0, 1], embeddings that are not finite.

    Example:
        >>> pcf(torch.eye(4, 10), [0.5, 1])
        tensor([0.2000, 0.5000])
    """
    if embeddings.numel() == 0:
        raise ValueError(f"pcf needs embeddings (item, dim) of at least one item, got {tuple(embeddings.shape)}.")
    if len(variances) == 0 or not all(0 <= variance <= 1 for variance in variances):
        raise ValueError(f"pcf needs one or more variances in [0, 1], got {list(variances)}.")
    x = embeddings.detach()
    mean = torch.stack([part.double().sum(dim=0) for part in x.split(_ROWS)]).sum(dim=0) / len(x)
    if not mean.isfinite().all():
        bad = (~x.isfinite().all(dim=1)).nonzero().squeeze(1)
        raise ValueError(f"pcf needs finite embeddings, got NaN or inf in {len(bad)} rows, such as {bad[:5].tolist()}.")
    rounding = x.abs().amax().double() * 4 * torch.finfo(mean.dtype).eps
    # The eigenvalues of the smaller of both Gram matrices are the variances along the components.
    if len(x) > x.shape[1]:
        gram = mean.new_zeros(x.shape[1], x.shape[1])
        for part in x.split(_ROWS):
            centred = part.double() - mean
            gram.addmm_(centred.T, centred)
    else:
        centred = x.double() - mean
        gram = centred @ centred.T
    explained = torch.linalg.eigvalsh(gram).flip(0).clamp(min=0).cumsum(dim=0)
    all_the_same = explained[-1] <= x.numel() * rounding**2
    explained = torch.where(all_the_same, 1, explained / explained[-1])
    limits = torch.tensor(list(variances), dtype=explained.dtype, device=explained.device)
    n_components = torch.searchsorted(explained, limits + _ROUNDING, right=True) + 1
    return n_components / embeddings.shape[1]
