"""How sure a mean over queries is, and a difference between two of them."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

_DRAWS = 2**22  # made at a time: 32 MiB of positions
_ROUNDING = 1e-12  # relative: sums of the same numbers with other signs are told apart from there on


class Interval(NamedTuple):
    """A mean and the ends of its confidence interval.

    Example:
        >>> Interval(mean=0.5, low=0.4, high=0.6).mean
        0.5
    """

    mean: float
    low: float
    high: float


class PairedTest(NamedTuple):
    """A mean difference, the ends of its confidence interval, and how likely as large a one is by chance.

    Example:
        >>> PairedTest(difference=0.1, low=0.02, high=0.18, p_value=0.01).difference
        0.1
    """

    difference: float
    low: float
    high: float
    p_value: float


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
    _check("bootstrap_interval", values, clusters, confidence, n_resamples)
    return bootstrap_intervals(
        values[None], clusters=clusters, confidence=confidence, n_resamples=n_resamples, seed=seed
    )[0]


def bootstrap_intervals(
    values: Float[Tensor, "metric query"],
    *,
    clusters: Int[Tensor, " query"] | None = None,
    confidence: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> list[Interval]:
    """:func:`bootstrap_interval` of several values of each query, out of the same draws: it takes the time of one.

    Args:
        values: A row per metric, of one number per query.
        clusters, confidence, n_resamples, seed: As there.

    Raises:
        ValueError: As there, or no rows.

    Example:
        >>> values = torch.tensor([[1.0, 0.0, 1.0, 1.0], [0.5, 0.0, 0.5, 0.5]])
        >>> first, second = bootstrap_intervals(values)
        >>> first == bootstrap_interval(values[0]), first.low == 2 * second.low
        (True, True)
    """
    if len(values) == 0:
        raise ValueError("bootstrap_intervals needs the values of at least one metric, got none.")
    for row in values:
        _check("bootstrap_intervals", row, clusters, confidence, n_resamples)
    # each query is one more in its cluster
    with_ones = torch.cat([values.detach().cpu().double(), torch.ones(1, values.shape[1], dtype=torch.float64)])
    sums = _cluster_sums(with_ones, clusters)
    n = sums.shape[1]
    generator = torch.Generator().manual_seed(seed)
    means = []
    for part in torch.arange(n_resamples).split(max(1, _DRAWS // n)):
        drawn = torch.randint(n, (len(part), n), generator=generator)
        drawn += n * torch.arange(len(part))[:, None]
        counts = drawn.flatten().bincount(minlength=n * len(part)).reshape(len(part), n)
        totals = counts.double() @ sums.T
        means.append(totals[:, :-1] / totals[:, -1:])
    tail = (1 - confidence) / 2
    low, high = torch.cat(means).quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=0)
    ends = zip(with_ones[:-1].mean(dim=1).tolist(), low.tolist(), high.tolist(), strict=True)
    return [Interval(*three) for three in ends]


def paired_test(
    first: Float[Tensor, " query"],
    second: Float[Tensor, " query"],
    *,
    clusters: Int[Tensor, " query"] | None = None,
    confidence: float = 0.95,
    n_resamples: int = 2000,
    n_permutations: int = 9999,
    seed: int = 0,
) -> PairedTest:
    """The mean of ``second - first`` over the same queries, its interval, and a p-value for "no difference".

    The interval is :func:`bootstrap_interval` of the differences: both values of a query are drawn together, and so
    are all queries of a cluster.

    The p-value is two-sided and comes from a sign-flip permutation test. If the two are alike, they could as well
    have changed their names in any of the clusters, which turns the sign of its sum of differences ``d_c``. So
    ``p`` is the share, among the ``2 ** n_clusters`` choices of signs, of those with ``|sum(+-d_c)| >= |sum(d_c)|``:
    a choice without any flip is one of them, so ``p`` is at least ``2 / 2 ** n_clusters``. Clusters with
    ``d_c = 0`` change nothing and are left out. If there are more choices than ``n_permutations``, so many are drawn,
    and ``p = (b + 1) / (n_permutations + 1)``, where ``b`` of them are that large. No difference at all gives 1.

    The test of single pairs is Fisher's (The Design of Experiments, 1935); that of clusters is from Canay, Romano and
    Shaikh, "Randomization Tests under an Approximate Symmetry Assumption" (Econometrica 85, 2017); the ones added are
    from Phipson and Smyth, "Permutation P-values Should Never Be Zero" (2010). Tools for text retrieval flip single
    queries, or use a paired t-test. Where queries of one label resemble each other, these find differences that are
    not there; ``clusters=None`` does so here.

    Args:
        first: One number per query, such as its precision with one model.
        second: The same with another one, in the same order of queries.
        clusters: For each query the number of its cluster, usually its label.
        confidence: How often such intervals should hold the true difference, in (0, 1).
        n_resamples: Number of bootstrap means.
        n_permutations: How many choices of signs to look at, at most.
        seed: Of the draws.

    Raises:
        ValueError: No values, not as many in ``second`` as in ``first``, values that are not finite, one cluster
            number too few or too many, ``confidence`` outside (0, 1), ``n_resamples`` or ``n_permutations`` below 1.

    Example:
        >>> before = torch.tensor([0.0, 0.0, 0.5, 0.0, 1.0, 0.0])
        >>> after = torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0, 0.5])
        >>> paired_test(before, after, clusters=torch.tensor([0, 0, 1, 1, 2, 2]))
        PairedTest(difference=0.5, low=0.25, high=1.0, p_value=0.25)
    """
    if first.shape != second.shape:
        raise ValueError(f"paired_test needs two values of every query, got {len(first)} and {len(second)}.")
    if n_permutations < 1:
        raise ValueError(f"paired_test needs n_permutations >= 1, got {n_permutations}.")
    for values in (first, second):
        _check("paired_test", values, clusters, confidence, n_resamples)
    differences = second.detach().cpu().double() - first.detach().cpu().double()
    interval = bootstrap_interval(
        differences, clusters=clusters, confidence=confidence, n_resamples=n_resamples, seed=seed
    )
    sums = _cluster_sums(differences[None], clusters)[0]
    return PairedTest(*interval, _sign_flip_p_value(sums, n_permutations, seed))


def _check(owner: str, values: Tensor, clusters: Tensor | None, confidence: float, n_resamples: int) -> None:
    if len(values) == 0:
        raise ValueError(f"{owner} needs at least one value, got none.")
    if not (finite := values.isfinite()).all():
        bad = (~finite).nonzero().squeeze(1)
        raise ValueError(
            f"{owner} needs finite values, got NaN or inf for {len(bad)} of {len(values)} queries, "
            f"such as {bad[:5].tolist()}. Leave out queries with nothing to find."
        )
    if clusters is not None and clusters.shape != values.shape:
        raise ValueError(f"{owner} needs {len(values)} cluster numbers, got {tuple(clusters.shape)}.")
    if not 0 < confidence < 1:
        raise ValueError(f"{owner} needs a confidence in (0, 1), got {confidence}.")
    if n_resamples < 1:
        raise ValueError(f"{owner} needs n_resamples >= 1, got {n_resamples}.")


def _cluster_sums(
    values: Float[Tensor, "row query"], clusters: Int[Tensor, " query"] | None
) -> Float[Tensor, "row cluster"]:
    """The sums of the values of each cluster; each value without clusters."""
    if clusters is None:
        return values
    numbers, cluster = clusters.cpu().unique(return_inverse=True)
    return values.new_zeros(len(values), len(numbers)).index_add(1, cluster, values)


def _sign_flip_p_value(sums: Float[Tensor, " cluster"], n_permutations: int, seed: int) -> float:
    sums = sums[sums != 0]
    places = torch.arange(len(sums))
    is_exact = 2 ** len(sums) <= n_permutations
    n_choices = 2 ** len(sums) if is_exact else n_permutations
    at_least = sums.sum().abs() - _ROUNDING * sums.abs().sum()
    generator = torch.Generator().manual_seed(seed)
    n_extreme = 0
    for part in torch.arange(n_choices).split(max(1, _DRAWS // max(1, len(sums)))):
        if is_exact:  # the digits of a binary number are a choice
            flipped = (part[:, None] >> places) & 1
        else:
            flipped = torch.randint(2, (len(part), len(sums)), generator=generator, dtype=torch.bool)
        total = sums.sum() - 2 * (flipped.double() @ sums)
        n_extreme += int((total.abs() >= at_least).sum())
    return n_extreme / n_choices if is_exact else (n_extreme + 1) / (n_choices + 1)
