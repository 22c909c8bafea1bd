"""How sure a mean over queries is."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

_DRAWS = 2**22  # made at a time: 32 MiB of positions


class Interval(NamedTuple):
    """A mean and the ends of its confidence interval.

    Example:
        >>> Interval(mean=0.5, low=0.4, high=0.6).mean
        0.5
    """

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
    """The mean over queries with its percentile bootstrap interval.

    Queries are drawn with replacement, as many as there are, ``n_resamples`` times; ``low`` and ``high`` are the
    ``(1 - confidence) / 2`` quantiles from below and above of the means so obtained. Queries of one label are not
    independent: with ``clusters``, whole clusters are drawn instead, as many as there are, and the mean is that of
    all their queries. Too few clusters (below about 30) make the interval too narrow; with a single query or cluster
    nothing is known about the spread, and the interval is the mean itself.

    The draws come from a generator of their own on the CPU, so a seed gives the same interval on any device.

    Args:
        values: One number per query, such as its precision.
        clusters: For each query the number of its cluster, usually its label.
        confidence: How often such intervals should hold the true mean, in (0, 1).
        n_resamples: Number of bootstrap means.
        seed: Of the draws.

    Raises:
        ValueError: No values, values that are not finite, one cluster number too few or too many, ``confidence``
            outside (0, 1), ``n_resamples`` below 1.

    Example:
        >>> hits = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0])
        >>> mean, low, high = bootstrap_interval(hits)
        >>> mean, low < mean < high
        (0.75, True)
        >>> wider = bootstrap_interval(hits, clusters=torch.tensor([0, 0, 1, 0, 1, 2, 2, 2]))
        >>> wider.low < low
        True
    """
    if len(values) == 0:
        raise ValueError("bootstrap_interval needs at least one value, got none.")
    if not (finite := values.isfinite()).all():
        bad = (~finite).nonzero().squeeze(1)
        raise ValueError(
            f"bootstrap_interval needs finite values, got NaN or inf for {len(bad)} of {len(values)} queries, "
            f"such as {bad[:5].tolist()}. Leave out queries with nothing to find."
        )
    if clusters is not None and clusters.shape != values.shape:
        raise ValueError(f"bootstrap_interval needs {len(values)} cluster numbers, got {tuple(clusters.shape)}.")
    if not 0 < confidence < 1:
        raise ValueError(f"bootstrap_interval needs a confidence in (0, 1), got {confidence}.")
    if n_resamples < 1:
        raise ValueError(f"bootstrap_interval needs n_resamples >= 1, got {n_resamples}.")

    sums, sizes = values.detach().cpu().double(), torch.ones(len(values), dtype=torch.int64)
    mean = sums.mean().item()
    if clusters is not None:
        _, cluster, sizes = clusters.cpu().unique(return_inverse=True, return_counts=True)
        sums = torch.zeros(len(sizes), dtype=sums.dtype).index_add(0, cluster, sums)
    generator = torch.Generator().manual_seed(seed)
    means = []
    for part in torch.arange(n_resamples).split(max(1, _DRAWS // len(sums))):
        drawn = torch.randint(len(sums), (len(part), len(sums)), generator=generator)
        means.append(sums.take(drawn).sum(dim=1) / sizes.take(drawn).sum(dim=1))
    tail = (1 - confidence) / 2
    low, high = torch.cat(means).quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Interval(mean, low, high)
