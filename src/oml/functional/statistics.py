"""How sure a mean over queries is."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Interval(NamedTuple):
    """A mean and the interval around it."""

    mean: float
    low: float
    high: float


def bootstrap_interval(
    values: Float[Tensor, " query"],
    *,
    clusters: Int[Tensor, " query"] | None = None,
    confidence: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """The mean and its percentile bootstrap interval (Efron 1979).

    With ``clusters``, whole clusters are drawn: queries of one label resemble each other, so drawing them one by one
    would give intervals that are too narrow. A resample's mean is the sum over the drawn clusters divided by their
    number of queries.

    Args:
        values: one per query.
        clusters: the cluster of each query, such as its label.
        confidence: share of resamples inside the interval.
        n_resamples: how often to draw.
        seed: of the draws; they do not depend on the device.

    Raises:
        ValueError: for no values, NaN or infinite ones, or a confidence that is not between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"bootstrap_interval needs a confidence between 0 and 1, got {confidence}.")
    if n_resamples < 1:
        raise ValueError(f"bootstrap_interval needs n_resamples of 1 or more, got {n_resamples}.")
    values = values.double().cpu()
    if len(values) == 0 or not (finite := values.isfinite()).all():
        what = "no values" if len(values) == 0 else f"NaN or infinity at {(~finite).nonzero().flatten()[:5].tolist()}"
        raise ValueError(f"bootstrap_interval needs finite values, got {what}.")
    cluster = torch.arange(len(values)) if clusters is None else clusters.cpu().unique(return_inverse=True)[1]
    sizes = cluster.bincount().double()
    sums = torch.zeros_like(sizes).index_add_(0, cluster, values)

    generator = torch.Generator().manual_seed(seed)
    means = torch.empty(n_resamples, dtype=torch.float64)
    for part in torch.arange(n_resamples).split(max(1, 2**22 // len(sizes))):
        drawn = torch.randint(len(sizes), (len(part), len(sizes)), generator=generator)
        means[part] = sums[drawn].sum(dim=1) / sizes[drawn].sum(dim=1)
    tail = (1 - confidence) / 2
    low, high = means.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Interval(values.mean().item(), low, high)
