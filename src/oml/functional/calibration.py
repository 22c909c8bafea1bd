"""From a score, such as a distance, to a probability: fitting the curve, and telling how right probabilities are."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from oml.functional.statistics import Interval

_MOST_STEPS = 100  # of Newton's method, which takes about 8
_WORTHWHILE = 7 / 8  # a pass over all blocks at once is to leave at most this share of them
_FLAT = 1e-12  # added to the second derivatives, so that equal scores have a solution, too


class Knots(NamedTuple):
    """A monotone curve of straight lines between points, and level beyond the first and the last.

    Example:
        >>> Knots(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.5])).values
        tensor([1.0000, 0.5000])
    """

    positions: Float[Tensor, " knot"]
    """ascending and distinct"""
    values: Float[Tensor, " knot"]


class Platt(NamedTuple):
    """The probability is ``sigmoid(slope * score + intercept)``.

    Example:
        >>> Platt(slope=-2.0, intercept=1.0).slope
        -2.0
    """

    slope: float
    intercept: float


class Reliability(NamedTuple):
    """What was predicted and what happened in each bin that holds something, in ascending order.

    Example:
        >>> reliability_curve(torch.tensor([0.1, 0.95]), torch.tensor([False, True])).bins
        tensor([1, 9])
    """

    bins: Int[Tensor, " bin"]
    """the number of the bin"""
    counts: Int[Tensor, " bin"]
    predicted: Float[Tensor, " bin"]
    """mean of the probabilities"""
    observed: Float[Tensor, " bin"]
    """how often it was true"""
    low: Float[Tensor, " bin"]
    high: Float[Tensor, " bin"]
    """ends of the interval of ``observed``"""


def isotonic_regression(
    values: Float[Tensor, " value"], weights: Float[Tensor, " value"] | None = None, *, decreasing: bool = False
) -> Float[Tensor, " value"]:
    """The sequence that never falls, or with ``decreasing`` never rises, and is closest to the given one.

    It minimises ``sum(weights * (found - values) ** 2)``. Found by pooling adjacent violators (Ayer et al., 1955;
    Barlow et al., "Statistical Inference under Order Restrictions", 1972): neighbours in the wrong order get their
    common mean. All falling runs are pooled at once, for as long as that leaves far fewer blocks; then one by one. The
    time is linear.

    Args:
        values: in the order of what they depend on.
        weights: positive.

    Raises:
        ValueError: No values, some are not finite, or weights are not positive or not as many.

    Example:
        >>> isotonic_regression(torch.tensor([1.0, 3.0, 2.0, 4.0]))
        tensor([1.0000, 2.5000, 2.5000, 4.0000])
    """
    owner = "isotonic_regression"
    weights = _checked(owner, values, weights)
    dtype = values.dtype
    values = values.detach().double()
    sums = (-values if decreasing else values) * weights
    block_of = torch.arange(len(values), device=values.device)
    while True:
        means = sums / weights
        starts = torch.ones_like(means, dtype=torch.bool)
        starts[1:] = means[1:] > means[:-1]  # equal ones belong together as well
        n_blocks = int(starts.sum())
        if n_blocks == len(means):
            break
        if n_blocks > _WORTHWHILE * len(means):
            number = torch.tensor(_pooled_one_by_one(sums.tolist(), weights.tolist()), device=sums.device)
            n_blocks = int(number[-1]) + 1
        else:
            number = starts.cumsum(0) - 1
        sums, weights = (x.new_zeros(n_blocks).index_add_(0, number, x) for x in (sums, weights))
        block_of = number[block_of]
    return (0 - means if decreasing else means)[block_of].to(dtype)


def isotonic_curve(
    scores: Float[Tensor, " item"],
    targets: Float[Tensor, " item"],
    weights: Float[Tensor, " item"] | None = None,
    *,
    decreasing: bool = False,
) -> Knots:
    """The monotone function of the score that is closest to the targets: :func:`isotonic_regression` as a curve.

    Items of equal scores count as one with their mean target. Of each run of equal values the first and the last score
    are knots, and between two runs the curve is straight, as in scikit-learn's ``IsotonicRegression``.

    Args:
        scores: such as distances, in any order.
        targets: what to come close to, such as 0 and 1.
        weights: positive.

    Raises:
        ValueError: No scores, scores or targets that are not finite, not as many of one as of the others, or weights
            that are not positive.

    Example:
        >>> isotonic_curve(torch.tensor([1.0, 2, 3, 4]), torch.tensor([1.0, 0, 1, 0]), decreasing=True)
        Knots(positions=tensor([1., 2., 3., 4.]), values=tensor([1.0000, 0.5000, 0.5000, 0.0000]))
    """
    weights = _checked("isotonic_curve", targets, weights, scores)
    positions, place = scores.detach().unique(return_inverse=True)
    sums = targets.detach().double() * weights
    total, mass = (weights.new_zeros(len(positions)).index_add_(0, place, x) for x in (sums, weights))
    values = isotonic_regression(total / mass, mass, decreasing=decreasing)
    changes = values[1:] != values[:-1]
    ends = changes.new_ones(1)
    kept = torch.cat([ends, changes]) | torch.cat([changes, ends])  # the first and the last of each run
    return Knots(positions[kept], values[kept].to(targets.dtype))


def curve_at(knots: Knots, scores: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The values of a curve, as float64. They are as monotone as its knots are, rounding included.

    Example:
        >>> curve_at(Knots(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0])), torch.tensor([0.0, 1.25, torch.inf]))
        tensor([1.0000, 0.7500, 0.0000], dtype=torch.float64)
    """
    positions, values, scores = (x.detach().double() for x in (*knots, scores))
    after = torch.searchsorted(positions, scores.contiguous(), right=True)
    left, right = (after - 1).clamp(min=0), after.clamp(max=len(positions) - 1)
    width = positions[right] - positions[left]
    part = torch.where(width > 0, (scores - positions[left]) / width, 0.0)
    first, last = values[left], values[right]
    return (first + part * (last - first)).clamp(torch.minimum(first, last), torch.maximum(first, last))


def smoothed_targets(
    is_relevant: Bool[Tensor, " item"], weights: Float[Tensor, " item"] | None = None
) -> Float[Tensor, " item"]:
    """Platt's targets in place of 1 and 0: ``(n1 + 1) / (n1 + 2)`` and ``1 / (n0 + 2)`` for n1 true and n0 false items.

    What was never seen to fail may fail yet: with these no probability is 0 or 1, and the best curve has finite
    parameters even if a score tells all items apart. From Platt, "Probabilistic Outputs for Support Vector Machines"
    (1999), section 2.2.

    Example:
        >>> smoothed_targets(torch.tensor([True, True, False]))
        tensor([0.7500, 0.7500, 0.3333], dtype=torch.float64)
    """
    ones = is_relevant.double()
    weights = torch.ones_like(ones) if weights is None else weights.double()
    n_true, n_false = (weights * ones).sum(), (weights * (1 - ones)).sum()
    return torch.where(is_relevant, (n_true + 1) / (n_true + 2), 1 / (n_false + 2))


def platt_scaling(
    scores: Float[Tensor, " item"], is_relevant: Bool[Tensor, " item"], weights: Float[Tensor, " item"] | None = None
) -> Platt:
    """The sigmoid of the score with the smallest log loss against :func:`smoothed_targets`.

    Found by Newton's method with halved steps, as in Lin, Lin and Weng, "A Note on Platt's Probabilistic Outputs for
    Support Vector Machines" (2007), on standardised scores in float64. The loss is convex; if all scores are equal,
    the slope is 0.

    Args:
        scores: such as distances, for which the slope comes out negative.
        is_relevant: whether it was a match.
        weights: positive.

    Raises:
        ValueError: No scores, scores that are not finite, not as many of one as of the other, or weights that are not
            positive.

    Example:
        >>> slope, intercept = platt_scaling(torch.tensor([0.0, 1, 2, 3]), torch.tensor([True, True, False, False]))
        >>> round(-intercept / slope, 6)  # where it is one half
        1.5
    """
    weights = _checked("platt_scaling", scores, weights, is_relevant)
    x = scores.detach().double()
    middle, spread = x.mean(), x.std(correction=0)
    x = (x - middle) / spread if spread > 0 else torch.zeros_like(x)
    targets = smoothed_targets(is_relevant, weights)
    total = weights.sum()
    rows = torch.stack([x, torch.ones_like(x)])
    found = torch.stack([total * 0, torch.special.logit((weights * targets).sum() / total)])

    def loss_at(parameters: Tensor) -> Tensor:
        logits = parameters @ rows
        return (weights * (F.softplus(logits) - targets * logits)).sum() / total

    for _ in range(_MOST_STEPS):
        probability = (found @ rows).sigmoid()
        gradient = rows @ (weights * (probability - targets)) / total
        curvature = (rows * (weights * probability * (1 - probability))) @ rows.T / total
        step = torch.linalg.solve(curvature + _FLAT * torch.eye(2, dtype=x.dtype, device=x.device), gradient)
        gain, size = gradient @ step, 1.0
        # so close that the loss does not tell any more, whole steps are right
        while gain > 1e-10 and loss_at(found - size * step) > loss_at(found) - 1e-4 * size * gain:
            size /= 2
        found = found - size * step
        if gain < 1e-20:
            break
    slope = found[0] / spread if spread > 0 else found[0] * 0
    return Platt(float(slope), float(found[1] - slope * middle))


def share_interval(
    hits: Float[Tensor, " cluster"] | Int[Tensor, " cluster"],
    counts: Float[Tensor, " cluster"] | Int[Tensor, " cluster"],
    *,
    confidence: float = 0.95,
) -> Interval:
    """A share of items, of which those of one cluster are alike: ``sum(hits) / sum(counts)`` with its interval.

    Wilson's interval (1927) for ``n_eff`` independent items, ``n_eff = p (1 - p) / v``, at most as many as there are
    and at least 1. ``v = g / (g - 1) * sum((hits - p counts)^2) / sum(counts)^2`` is the variance of the share ``p``
    over ``g`` clusters with items (Kish's design effect; see Dean and Pagano, 2015). Other than a bootstrap it tells
    something where all or none are hits: ``n_eff`` is ``g`` then.

    Args:
        hits, counts: for each cluster, such as a label, its hits and its items.
        confidence: how often such intervals should hold the true share.

    Raises:
        ValueError: No items, or more hits than items, or ``confidence`` outside (0, 1).

    Example:
        >>> mean, low, high = share_interval(torch.tensor([9, 8, 10]), torch.tensor([10, 10, 10]))
        >>> mean, round(low, 2), round(high, 2)
        (0.9, 0.73, 0.97)
    """
    if not 0 < confidence < 1:
        raise ValueError(f"share_interval needs a confidence in (0, 1), got {confidence}.")
    hits, counts = hits[counts != 0].double(), counts[counts != 0].double()
    if len(counts) == 0 or not ((hits >= 0) & (hits <= counts)).all():
        raise ValueError(
            f"share_interval needs items, and in every cluster as many hits as items at most, got {len(counts)} "
            "clusters with items."
        )
    n, g = float(counts.sum()), len(counts)
    p = float(hits.sum()) / n
    n_eff = float(g)
    if 0 < p < 1:
        variance = float((hits - p * counts).square().sum()) / n**2 * g / (g - 1) if g > 1 else 1.0
        n_eff = min(n, max(1.0, p * (1 - p) / variance)) if variance > 0 else n
    return _wilson(p, n_eff, confidence)


def reliability_curve(
    probabilities: Float[Tensor, " item"],
    is_relevant: Bool[Tensor, " item"],
    *,
    n_bins: int = 10,
    clusters: Int[Tensor, " item"] | None = None,
    confidence: float = 0.95,
) -> Reliability:
    """How often what was given a probability came true, in ``n_bins`` equally wide bins of the probability.

    Bin ``i`` is ``[i / n_bins, (i + 1) / n_bins)``, the last one with its upper end. Bins without items are left out.

    Args:
        probabilities: in [0, 1].
        is_relevant: what happened.
        n_bins: how many bins, at least 1.
        clusters: numbers of groups of items that are alike, such as their labels: intervals are
            :func:`share_interval`. Without them, every item is on its own.
        confidence: of the intervals.

    Raises:
        ValueError: No probabilities, some outside [0, 1], not as many of one as of the others, ``n_bins`` below 1, or
            ``confidence`` outside (0, 1).

    Example:
        >>> curve = reliability_curve(torch.tensor([0.0, 0.4, 0.6]), torch.tensor([False, True, True]), n_bins=2)
        >>> curve.counts, curve.predicted, curve.observed
        (tensor([2, 1]), tensor([0.2000, 0.6000]), tensor([0.5000, 1.0000]))
    """
    _check_probabilities("reliability_curve", probabilities, is_relevant)
    if isinstance(n_bins, bool) or n_bins < 1:
        raise ValueError(f"reliability_curve needs n_bins >= 1, got {n_bins!r}.")
    if clusters is not None and clusters.shape != probabilities.shape:
        raise ValueError(f"reliability_curve needs {len(probabilities)} cluster numbers, got {len(clusters)}.")
    sure, happened = probabilities.detach().double(), is_relevant.double()
    bin_of = (sure * n_bins).long().clamp(max=n_bins - 1)
    bins, place, counts = bin_of.unique(return_inverse=True, return_counts=True)
    predicted, observed = (sure.new_zeros(len(bins)).index_add_(0, place, x) / counts for x in (sure, happened))
    intervals = []
    for i in range(len(bins)):
        if clusters is None:
            intervals.append(_wilson(float(observed[i]), float(counts[i]), confidence))
        else:
            _, cluster = clusters[place == i].unique(return_inverse=True)
            hits = torch.bincount(cluster, weights=happened[place == i])
            intervals.append(share_interval(hits, torch.bincount(cluster), confidence=confidence))
    low, high = (sure.new_tensor([interval[end] for interval in intervals]) for end in (1, 2))
    return Reliability(bins, counts, *(x.to(probabilities.dtype) for x in (predicted, observed, low, high)))


def expected_calibration_error(
    probabilities: Float[Tensor, " item"], is_relevant: Bool[Tensor, " item"], *, n_bins: int = 10
) -> Float[Tensor, ""]:
    """By how much probabilities are off: the mean over items of ``|predicted - observed|`` of their bin.

    From Naeini, Cooper and Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian Binning" (AAAI 2015),
    with the bins of :func:`reliability_curve`. Papers have 10, 15 or 20 bins; with few items it is above 0 for perfect
    probabilities, too.

    Raises:
        ValueError: as :func:`reliability_curve`.

    Example:
        >>> expected_calibration_error(torch.tensor([0.75, 0.75, 0.75, 0.75]), torch.tensor([True, True, False, False]))
        tensor(0.2500)
    """
    curve = reliability_curve(probabilities, is_relevant, n_bins=n_bins)
    return ((curve.predicted - curve.observed).abs() * curve.counts).sum() / curve.counts.sum()


def brier_score(probabilities: Float[Tensor, " item"], is_relevant: Bool[Tensor, " item"]) -> Float[Tensor, ""]:
    """The mean of ``(probability - happened)^2``: 0 is perfect, ``p (1 - p)`` comes of always saying the base rate.

    Half of what Brier (1950) summed over both outcomes.

    Raises:
        ValueError: No probabilities, some outside [0, 1], or not as many of one as of the other.

    Example:
        >>> brier_score(torch.tensor([0.5, 1.0]), torch.tensor([False, True]))
        tensor(0.1250)
    """
    _check_probabilities("brier_score", probabilities, is_relevant)
    return (probabilities - is_relevant.to(probabilities.dtype)).square().mean()


def log_loss(probabilities: Float[Tensor, " item"], is_relevant: Bool[Tensor, " item"]) -> Float[Tensor, ""]:
    """The mean of ``-log`` of the probability of what happened; infinite if that was called impossible.

    Raises:
        ValueError: No probabilities, some outside [0, 1], or not as many of one as of the other.

    Example:
        >>> log_loss(torch.tensor([0.5, 1.0]), torch.tensor([False, True]))
        tensor(0.3466)
    """
    _check_probabilities("log_loss", probabilities, is_relevant)
    return -torch.where(is_relevant, probabilities.log(), torch.log1p(-probabilities)).mean()


def _wilson(share: float, n: float, confidence: float) -> Interval:
    z = float(torch.special.ndtri(torch.tensor((1 + confidence) / 2, dtype=torch.float64)))
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    # it holds the share: beyond that is rounding
    return Interval(share, max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half)))


def _pooled_one_by_one(sums: list[float], weights: list[float]) -> list[int]:
    """For each block the number of the one it ends up in: a new one takes in those before it that it violates."""
    blocks: list[tuple[float, float, int]] = []
    for total, weight in zip(sums, weights, strict=True):
        n = 1
        while blocks and blocks[-1][0] * weight >= total * blocks[-1][1]:
            before = blocks.pop()
            total, weight, n = total + before[0], weight + before[1], n + before[2]
        blocks.append((total, weight, n))
    return [number for number, (_, _, n) in enumerate(blocks) for _ in range(n)]


def _checked(
    owner: str, values: Tensor, weights: Tensor | None, scores: Tensor | None = None
) -> Float[Tensor, " value"]:
    """The weights as float64, ones by default."""
    others = [x for x in (weights, scores) if x is not None]
    if len(values) == 0 or any(len(x) != len(values) for x in others):
        raise ValueError(
            f"{owner} needs at least one item, and a number of each kind for every one, got "
            f"{' and '.join(str(len(x)) for x in (values, *others))}."
        )
    for x in (values, *others):
        if not (finite := x.isfinite()).all():
            bad = (~finite).nonzero().squeeze(1)
            raise ValueError(
                f"{owner} needs finite numbers, got NaN or inf for {len(bad)} of {len(x)} items, such as "
                f"{bad[:5].tolist()}. Leave them out."
            )
    if weights is None:
        return torch.ones(len(values), dtype=torch.float64, device=values.device)
    if not (weights > 0).all():
        raise ValueError(f"{owner} needs positive weights, got {float(weights.min())}. Leave items without weight out.")
    return weights.detach().double()


def _check_probabilities(owner: str, probabilities: Tensor, is_relevant: Tensor) -> None:
    if len(probabilities) == 0 or len(probabilities) != len(is_relevant):
        raise ValueError(
            f"{owner} needs a probability of each item and whether it was a match, got {len(probabilities)} and "
            f"{len(is_relevant)}."
        )
    if not (right := (probabilities >= 0) & (probabilities <= 1)).all():
        bad = (~right).nonzero().squeeze(1)
        raise ValueError(
            f"{owner} needs probabilities in [0, 1], got {float(probabilities[bad[0]])} and the like for {len(bad)} of "
            f"{len(probabilities)} items, such as {bad[:5].tolist()}."
        )
