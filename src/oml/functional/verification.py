"""Verification: how well a threshold on the distance tells pairs of one label from pairs of two, over all pairs."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class _Counted(NamedTuple):
    """All the distances of a range: ascending values, how often each occurs, and how many lie below the range."""

    n_below: int
    values: Float[Tensor, " value"]
    counts: Int[Tensor, " value"]

    def rank(self, k: int) -> float:
        """The distance of rank ``k``, from 0, of all."""
        above = (self.counts.cumsum(0) <= k - self.n_below).sum()
        return self.values[above].item()

    def n_less(self, threshold: float) -> int:
        """How many distances are below a threshold of this range."""
        return self.n_below + int(self.counts[self.values.double() < threshold].sum())


def fnmr_at_fmr(
    positive_distances: Float[Tensor, " positive"],
    negative_distances: Float[Tensor, " negative"],
    fmr_vals: Sequence[float | int],
) -> Float[Tensor, " fmr"]:
    """False non-match rate at a false match rate: the share of positive pairs that a threshold rejects.

    The threshold ``T`` is the quantile ``fmr`` of the negatives' distances, with linear interpolation between the two
    neighbouring ones (``numpy.quantile``, but evaluated in float64); the value is the share of the positives with a
    distance ``>= T``. So ``fmr=0`` puts ``T`` at the nearest negative, ``fmr=1`` at the farthest.

    Args:
        positive_distances: of pairs of one label.
        negative_distances: of pairs of two labels.
        fmr_vals: one or more shares in [0, 1].

    Returns:
        A share per value of ``fmr_vals``, as float32.

    Raises:
        ValueError: No positives or no negatives, distances that are not finite, no values or some outside [0, 1].

    Example:
        >>> positives = torch.tensor([0, 0, 1, 1, 2, 2, 5, 5, 9, 9.0])
        >>> negatives = torch.tensor([3, 3, 4, 4, 6, 6, 7, 7, 8, 8.0])
        >>> fnmr_at_fmr(positives, negatives, [0.1, 0.5])
        tensor([0.4000, 0.2000])
    """
    _check_shares("fnmr_at_fmr", "fmr_vals", fmr_vals)
    positives, negatives = _counted("fnmr_at_fmr", positive_distances, negative_distances)
    thresholds = [_quantile(negatives, len(negative_distances), fmr) for fmr in fmr_vals]
    return _shares([len(positive_distances) - positives.n_less(t) for t in thresholds], positive_distances)


def tar_at_far(
    positive_distances: Float[Tensor, " positive"],
    negative_distances: Float[Tensor, " negative"],
    far_vals: Sequence[float | int],
) -> Float[Tensor, " far"]:
    """True accept rate at a false accept rate: the largest share of positives that a threshold accepts.

    Pairs with a distance ``< T`` are accepted; of all thresholds which accept at most the share ``far`` of the
    negatives, the value is the largest share of accepted positives. With ``c`` the largest count with
    ``c / n_negatives <= far``, the threshold is the distance of the negative of rank ``c + 1``, and ``inf`` if there is
    none. So a positive as far as the first negative to be kept out is rejected, as ``fnmr_at_fmr`` rejects one at its
    threshold, and negatives at equal distances are accepted all or none.

    This is the point of the ROC curve that benchmarks of faces report. It is not ``1 - fnmr_at_fmr``, whose threshold
    lies between two negatives and may accept one more of them, or one fewer; libraries that interpolate the ROC curve
    (``numpy.interp``) or take the point nearest to ``far`` may report more.

    Args:
        positive_distances: of pairs of one label.
        negative_distances: of pairs of two labels.
        far_vals: one or more shares in [0, 1].

    Returns:
        A share per value of ``far_vals``, as float32.

    Raises:
        ValueError: No positives or no negatives, distances that are not finite, no values or some outside [0, 1].

    Example:
        >>> positives, negatives = torch.tensor([1.0, 2, 3, 4]), torch.tensor([2.0, 4, 6, 8])
        >>> tar_at_far(positives, negatives, [0, 0.25, 1])
        tensor([0.2500, 0.7500, 1.0000])
    """
    _check_shares("tar_at_far", "far_vals", far_vals)
    positives, negatives = _counted("tar_at_far", positive_distances, negative_distances)
    n = len(negative_distances)
    ranks = [_n_admitted(n, far) for far in far_vals]
    return _shares([positives.n_less(negatives.rank(k) if k < n else math.inf) for k in ranks], positive_distances)


def eer(
    positive_distances: Float[Tensor, " positive"], negative_distances: Float[Tensor, " negative"]
) -> Float[Tensor, ""]:
    """Equal error rate: where as large a share of the negatives is accepted as of the positives is rejected.

    The points (share of negatives accepted, share of positives rejected) of all thresholds are joined by straight
    lines, and the value is where they cross the diagonal; so of pairs at one distance, a part may be accepted. Ways to
    do without the lines, such as the mean of both shares where they differ least, give slightly other values on few
    pairs.

    Args:
        positive_distances: of pairs of one label.
        negative_distances: of pairs of two labels.

    Returns:
        A share, as float32: 0 if all positives are nearer than all negatives, 0.5 if they do not differ.

    Raises:
        ValueError: No positives or no negatives, distances that are not finite.

    Example:
        >>> eer(torch.tensor([1.0, 2, 3, 5]), torch.tensor([4.0, 6, 7, 8]))
        tensor(0.2500)
    """
    positives, negatives = _counted("eer", positive_distances, negative_distances)
    value = _crossing(positives, negatives, len(positive_distances), len(negative_distances))
    return _share(value, positive_distances)


def roc_auc(
    positive_distances: Float[Tensor, " positive"], negative_distances: Float[Tensor, " negative"]
) -> Float[Tensor, ""]:
    """Area under the ROC curve: how often a positive pair is nearer than a negative one; equal distances count half.

    Args:
        positive_distances: of pairs of one label.
        negative_distances: of pairs of two labels.

    Returns:
        A share, as float32.

    Raises:
        ValueError: No positives or no negatives, distances that are not finite.

    Example:
        >>> roc_auc(torch.tensor([1.0, 2]), torch.tensor([2.0, 3]))
        tensor(0.8750)
    """
    positives, negatives = _counted("roc_auc", positive_distances, negative_distances)
    value = _area(positives, negatives, len(positive_distances), len(negative_distances))
    return _share(value, positive_distances)


def _quantile_ranks(n: int, share: float | int) -> tuple[int, int, float]:
    """Between which ranks of ``n`` numbers a quantile lies, and how far from the first to the second."""
    place = float(share * (n - 1))
    low = min(math.floor(place), n - 1)
    return low, min(low + 1, n - 1), place - low


def _quantile(distances: _Counted, n: int, share: float | int) -> float:
    """The quantile of ``n`` distances, interpolated so that it never leaves the two neighbours."""
    low, high, part = _quantile_ranks(n, share)
    a = distances.rank(low)
    b = distances.rank(high) if part else a
    return a + part * (b - a) if part < 0.5 else b - (1 - part) * (b - a)


def _n_admitted(n: int, share: float | int) -> int:
    """The largest count that is at most this share of ``n``."""
    count = min(math.floor(share * n) + 1, n)  # the product is rounded: look at the counts around it
    while count / n > share:
        count -= 1
    return count


def _crossing(positives: _Counted, negatives: _Counted, n_positives: int, n_negatives: int) -> float:
    """The share at which the polygon of error rates crosses the diagonal, which it must do in this range."""
    values = torch.cat([positives.values, negatives.values]).unique()
    accepted = torch.stack([_cumulated(part, values, right=True) for part in (positives, negatives)]).double()
    before = accepted.new_tensor([[positives.n_below], [negatives.n_below]])
    accepted = torch.cat([before, accepted], dim=1)
    missed, matched = 1 - accepted[0] / n_positives, accepted[1] / n_negatives
    after = int((matched < missed).sum())
    m0, f0, m1, f1 = *(x[after - 1].item() for x in (missed, matched)), *(x[after].item() for x in (missed, matched))
    return f0 + (f1 - f0) * (m0 - f0) / ((f1 - f0) + (m0 - m1))


def _area(positives: _Counted, negatives: _Counted, n_positives: int, n_negatives: int) -> float:
    """The share of pairs of a positive and a negative with the positive nearer; all outside of the range is below
    or above it for both."""
    nearer = 2 * n_negatives - _cumulated(negatives, positives.values, right=False)
    nearer -= _cumulated(negatives, positives.values, right=True)
    twice = 2 * positives.n_below * n_negatives + int((positives.counts * nearer).sum())
    return twice / (2 * n_positives * n_negatives)


def _cumulated(distances: _Counted, values: Float[Tensor, " value"], right: bool) -> Int[Tensor, " value"]:
    """How many distances lie below each value, or up to it (``right``)."""
    cumulated = torch.cat([distances.counts.new_zeros(1), distances.counts.cumsum(0)])
    return cumulated[torch.searchsorted(distances.values, values, right=right)] + distances.n_below


def _counted(owner: str, positive_distances: Tensor, negative_distances: Tensor) -> tuple[_Counted, _Counted]:
    counted = []
    for name, distances in (("positive", positive_distances), ("negative", negative_distances)):
        if len(distances) == 0:
            raise ValueError(f"{owner} needs distances of {name} pairs, got none. {_WHY_NONE[name]}")
        if not (finite := distances.isfinite()).all():
            bad = (~finite).nonzero().squeeze(1)
            raise ValueError(
                f"{owner} needs finite distances, got NaN or inf for {len(bad)} of {len(distances)} {name} pairs, such "
                f"as {bad[:5].tolist()}. Leave out pairs that are to be ignored."
            )
        values = distances.detach().sort().values
        counted.append(_Counted(0, values, torch.ones_like(values, dtype=torch.int64)))
    return counted[0], counted[1]


_WHY_NONE = {
    "positive": "Pairs of two items of one label are needed.",
    "negative": "Pairs of items of different labels are needed.",
}


def _check_shares(owner: str, name: str, shares: Sequence[float | int]) -> None:
    if len(shares) == 0 or not all(0 <= share <= 1 for share in shares):
        raise ValueError(f"{owner} needs one or more {name} in [0, 1], got {list(shares)}.")


def _shares(counts: Sequence[int], distances: Float[Tensor, " pair"]) -> Float[Tensor, " value"]:
    return torch.stack([_share(count / len(distances), distances) for count in counts])


def _share(value: float, distances: Tensor) -> Float[Tensor, ""]:
    return torch.tensor(value, dtype=torch.float32, device=distances.device)
