"""Verification: how well a threshold on the distance tells pairs of one label from pairs of two, over all pairs."""

import math
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from oml.functional.pair_counts import FEW_PAIRS, WHY_NONE, AllowedPairs, Counted

_MEASURED = 2**-7  # the share of the pairs that may be measured: this takes as long as a pass over all of them
_AREA_ERROR = 1e-3  # a larger one of roc_auc, as proven, is told of


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
    check_shares("fnmr_at_fmr", "fmr_vals", fmr_vals)
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
    check_shares("tar_at_far", "far_vals", far_vals)
    positives, negatives = _counted("tar_at_far", positive_distances, negative_distances)
    n = len(negative_distances)
    ranks = [n_admitted_at(n, far) for far in far_vals]
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


class DistanceHistograms(NamedTuple):
    """How many pairs of one label (``positives``) and of two have distances between neighbouring ``edges``.

    Example:
        >>> queries, galleries = torch.tensor([[0.0]]), torch.tensor([[1.0], [3.0], [4.0]])
        >>> found = distance_histograms(queries, galleries, torch.tensor([7]), torch.tensor([7, 8, 8]), n_bins=3)
        >>> found.positives.tolist(), found.negatives.tolist()
        ([1, 0, 0], [0, 0, 2])
    """

    edges: Float[Tensor, " edge"]
    positives: Int[Tensor, " bin"]
    negatives: Int[Tensor, " bin"]


@torch.no_grad()
def verification_metrics(
    queries: Float[Tensor, "query dim"],
    galleries: Float[Tensor, "gallery dim"],
    query_labels: Int[Tensor, " query"],
    gallery_labels: Int[Tensor, " gallery"],
    *,
    fmr_vals: Sequence[float | int] = (),
    far_vals: Sequence[float | int] = (),
    eer: bool = False,
    roc_auc: bool = False,
    query_items: Int[Tensor, " query"] | None = None,
    gallery_items: Int[Tensor, " gallery"] | None = None,
    memory_budget: int = 512 * 2**20,
) -> dict[str, dict[float | int, Tensor] | Tensor]:
    """:func:`fnmr_at_fmr`, :func:`tar_at_far`, :func:`eer` and :func:`roc_auc` of all pairs of a query and a gallery.

    The pairs are pooled, not averaged per query, and those of equal items are left out. A distance is L2, evaluated in
    float64 and rounded to the inputs' dtype, as :func:`oml.functional.search.exact_search` gives it. The values of the
    first three are exactly those of the lists of all distances, although no list is made; no bit of them depends on
    the budget, the threads or chance. ``roc_auc`` is exact, too, if at most 1 pair in 128 (or 262 144) has a distance
    at which positives and negatives both occur. Otherwise pairs are counted in bins that are 6e-5 of their distance
    wide, and what bins and the bounds of products leave open counts half: the error is proven to be below 0.001, or
    a warning tells how large it may be. In practice it is below 1e-5, and digits beyond that may depend on the budget.

    How: a few blocks of random queries and galleries tell between which distances a threshold lies, with a margin for
    the error that their differences let expect. One pass over the products of all pairs, in blocks, counts those that
    are certainly nearer, and measures those between, or that the bounds of the products leave open. If the threshold is
    not among them, or too many would have to be measured, a pass counts all pairs in bins, and another one measures.
    The random numbers come from a generator of their own. If ``galleries is queries``, with the same labels and items,
    half of the products are enough. The time grows with the pairs that lie at a threshold, except for copies of the
    same vectors, as of a collapsed model, which are measured once. Gradients do not flow.

    Args:
        queries: What to compare.
        galleries: With what, on the same device.
        query_labels, gallery_labels: Theirs; a pair of one label is positive.
        fmr_vals: Of ``fnmr@fmr``, in [0, 1].
        far_vals: Of ``tar@far``, in [0, 1].
        eer: Whether to give the equal error rate.
        roc_auc: Whether to give the area under the ROC curve. This takes one or two passes more.
        query_items: Numbers of the queries' items. Pairs of the same number do not count: give positions in the data
            set so that an item is not compared with itself, or sequence numbers so that it is not with a near copy.
        gallery_items: Numbers of the galleries' items, if and only if ``query_items`` are given.
        memory_budget: Bytes to use beyond inputs and outputs, besides a few numbers per query and gallery. Blocks of
            32 x 32 pairs and the bins (about 1 MB a thread) are always allowed.

    Returns:
        ``{"fnmr@fmr": {fmr: value}, "tar@far": {far: value}, "eer": value, "roc_auc": value}``, as far as asked for;
        the values are float32 tensors without dimensions.

    Raises:
        ValueError: Nothing to compute, shares outside [0, 1]; no pairs of one label or none of two; wrong shapes,
            devices or budget; embeddings that are not finite or too large to be squared.

    Example:
        >>> points, labels, items = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([0, 0, 1]), torch.arange(3)
        >>> verification_metrics(
        ...     points, points, labels, labels, fmr_vals=[0.1], eer=True, query_items=items, gallery_items=items
        ... )
        {'fnmr@fmr': {0.1: tensor(0.)}, 'eer': tensor(0.)}
    """
    owner = "verification_metrics"
    for name, shares in (("fmr_vals", fmr_vals), ("far_vals", far_vals)):
        if len(shares):
            check_shares(owner, name, shares)
    if not (len(fmr_vals) or len(far_vals) or eer or roc_auc):
        raise ValueError(f"{owner} needs something to compute: fmr_vals, far_vals, eer or roc_auc.")
    pairs = AllowedPairs(
        owner, queries, galleries, query_labels, gallery_labels, query_items, gallery_items, memory_budget
    )
    n_positives, n_negatives = pairs.n_positives, pairs.n_negatives
    by_bins = (eer or roc_auc) and not pairs.few
    positive_bins = pairs.binned(positive=True) if by_bins else None
    negative_bins = pairs.binned(positive=False) if by_bins and roc_auc else None

    quantiles = [_quantile_ranks(n_negatives, fmr) for fmr in fmr_vals]
    n_admitted = [n_admitted_at(n_negatives, far) for far in far_vals]
    ranks = [(low, high if part else low) for low, high, part in quantiles]
    ranks += [(n, n) for n in n_admitted if n < n_negatives]
    around, crossing = negatives_around(pairs, ranks, eer, positive_bins, negative_bins)

    # The thresholds are known; of the positives, those at the same distances have to be.
    thresholds = [_quantile(near, n_negatives, fmr) for near, fmr in zip(around, fmr_vals, strict=False)]
    ranges = [(near.rank(low), near.rank(high)) for near, (low, high) in zip(around, ranks, strict=True)]
    firsts = iter(ranges[len(fmr_vals) :])  # the nearest negatives that are not admitted
    thresholds += [next(firsts)[0] if n < n_negatives else math.inf for n in n_admitted]
    joined, places = _joined(ranges)
    lists = pairs.counted(joined, positive=True)
    near_positives = iter([lists[place] for place in places])
    n_nearer = [n_positives if t == math.inf else next(near_positives).n_less(t) for t in thresholds]

    metrics: dict[str, dict[float | int, Tensor] | Tensor] = {}
    if len(fmr_vals):
        rejected = [_share((n_positives - n) / n_positives, queries) for n in n_nearer[: len(fmr_vals)]]
        metrics["fnmr@fmr"] = dict(zip(fmr_vals, rejected, strict=True))
    if len(far_vals):
        accepted = [_share(n / n_positives, queries) for n in n_nearer[len(fmr_vals) :]]
        metrics["tar@far"] = dict(zip(far_vals, accepted, strict=True))
    if eer:
        metrics["eer"] = _share(crossing, queries)
    if roc_auc:
        metrics["roc_auc"] = _share(_area_of_all(pairs, positive_bins, negative_bins), queries)
    return metrics


@torch.no_grad()
def distance_histograms(
    queries: Float[Tensor, "query dim"],
    galleries: Float[Tensor, "gallery dim"],
    query_labels: Int[Tensor, " query"],
    gallery_labels: Int[Tensor, " gallery"],
    *,
    n_bins: int = 100,
    query_items: Int[Tensor, " query"] | None = None,
    gallery_items: Int[Tensor, " gallery"] | None = None,
    memory_budget: int = 512 * 2**20,
) -> DistanceHistograms:
    """Histograms of the L2 distances of all pairs of one label, and of two, in bounded memory.

    All pairs are counted, those of equal items left out. The ``n_bins`` bins are equally wide and go from 0 to the
    farthest pair. Distances are not measured but come from products of the inputs' dtype (float32 at least), so a pair
    close to an edge may be counted in the bin beside it: squared distances are off by at most 1 / 8192 of their
    value and ``2 * (dim + 16) * eps * (|q - c|^2 + |g - c|^2)``, where ``c`` is the middle of the galleries. For unit
    vectors of 384 float32 numbers that is about 2e-4 of a distance near 1; distances below about 0.02 look like 0.

    Args:
        queries: What to compare.
        galleries: With what, on the same device.
        query_labels, gallery_labels: Theirs; a pair of one label is positive.
        n_bins: How many bins, at least 1.
        query_items: Numbers of the queries' items. Pairs of the same number do not count.
        gallery_items: Numbers of the galleries' items, if and only if ``query_items`` are given.
        memory_budget: Bytes to use beyond inputs, as for :func:`verification_metrics`.

    Raises:
        ValueError: ``n_bins`` below 1; no pairs of one label or none of two; wrong shapes, devices or budget;
            embeddings that are not finite or too large to be squared.

    Example:
        >>> points, labels = torch.tensor([[0.0], [1.0], [4.0]]), torch.tensor([0, 0, 1])
        >>> distance_histograms(points[:1], points[1:], labels[:1], labels[1:], n_bins=2).negatives
        tensor([0, 1])
    """
    owner = "distance_histograms"
    if isinstance(n_bins, bool) or not isinstance(n_bins, int) or n_bins < 1:
        raise ValueError(f"{owner} needs n_bins >= 1 as an int, got {n_bins!r}.")
    pairs = AllowedPairs(
        owner, queries, galleries, query_labels, gallery_labels, query_items, gallery_items, memory_budget
    )
    fine = torch.stack([pairs.binned(positive=positive) for positive in (True, False)])
    edges = pairs.scale.edges
    halves = (edges[1:] + edges[:-1] + pairs.slack) / 2
    halves[0] = 0  # which holds the pairs that may be equal
    distances = (2 * halves).sqrt()
    farthest = (2 * (edges[int(fine.any(dim=0).nonzero()[-1]) + 1] + pairs.slack)).sqrt()
    bins = (distances / farthest * n_bins).long().clamp_(max=n_bins - 1)
    positives, negatives = fine.new_zeros(2, n_bins).index_add_(1, bins, fine)
    return DistanceHistograms(torch.linspace(0, 1, n_bins + 1, device=edges.device) * farthest, positives, negatives)


def _quantile_ranks(n: int, share: float | int) -> tuple[int, int, float]:
    """Between which ranks of ``n`` numbers a quantile lies, and how far from the first to the second."""
    place = float(share * (n - 1))
    low = min(math.floor(place), n - 1)
    return low, min(low + 1, n - 1), place - low


def _quantile(distances: Counted, n: int, share: float | int) -> float:
    """The quantile of ``n`` distances, interpolated so that it never leaves the two neighbours."""
    low, high, part = _quantile_ranks(n, share)
    a = distances.rank(low)
    b = distances.rank(high) if part else a
    return a + part * (b - a) if part < 0.5 else b - (1 - part) * (b - a)


def n_admitted_at(n: int, share: float | int) -> int:
    """The largest count that is at most this share of ``n``.

    Example:
        >>> n_admitted_at(10, 0.25)
        2
    """
    count = min(math.floor(share * n) + 1, n)  # the product is rounded: look at the counts around it
    while count / n > share:
        count -= 1
    return count


def _crossing(positives: Counted, negatives: Counted, n_positives: int, n_negatives: int) -> float:
    """The share at which the polygon of error rates crosses the diagonal; NaN if it is not in this range."""
    values = torch.cat([positives.values, negatives.values]).unique()
    accepted = torch.stack([_cumulated(part, values, right=True) for part in (positives, negatives)]).double()
    before = accepted.new_tensor([[positives.n_below], [negatives.n_below]])
    accepted = torch.cat([before, accepted], dim=1)
    missed, matched = 1 - accepted[0] / n_positives, accepted[1] / n_negatives
    after = int((matched < missed).sum())
    if not 0 < after < len(matched):
        return math.nan
    m0, f0, m1, f1 = *(x[after - 1].item() for x in (missed, matched)), *(x[after].item() for x in (missed, matched))
    return f0 + (f1 - f0) * (m0 - f0) / ((f1 - f0) + (m0 - m1))


def _area(positives: Counted, negatives: Counted, n_positives: int, n_negatives: int) -> float:
    """The share of pairs of a positive and a negative with the positive nearer; all outside of the range is below
    or above it for both."""
    nearer = 2 * n_negatives - _cumulated(negatives, positives.values, right=False)
    nearer -= _cumulated(negatives, positives.values, right=True)
    twice = 2 * positives.n_below * n_negatives + int((positives.counts * nearer).sum())
    return twice / (2 * n_positives * n_negatives)


def _cumulated(distances: Counted, values: Float[Tensor, " value"], right: bool) -> Int[Tensor, " value"]:
    """How many distances lie below each value, or up to it (``right``)."""
    cumulated = torch.cat([distances.counts.new_zeros(1), distances.counts.cumsum(0)])
    return cumulated[torch.searchsorted(distances.values, values, right=right)] + distances.n_below


def _counted(owner: str, positive_distances: Tensor, negative_distances: Tensor) -> tuple[Counted, Counted]:
    counted = []
    for name, distances in (("positive", positive_distances), ("negative", negative_distances)):
        if len(distances) == 0:
            raise ValueError(f"{owner} needs distances of {name} pairs, got none. {WHY_NONE[name]}")
        if not (finite := distances.isfinite()).all():
            bad = (~finite).nonzero().squeeze(1)
            raise ValueError(
                f"{owner} needs finite distances, got NaN or inf for {len(bad)} of {len(distances)} {name} pairs, such "
                f"as {bad[:5].tolist()}. Leave out pairs that are to be ignored."
            )
        values = distances.detach().sort().values
        counted.append(Counted(0, values, torch.ones_like(values, dtype=torch.int64)))
    return counted[0], counted[1]


def check_shares(owner: str, name: str, shares: Sequence[float | int]) -> None:
    """Refuse what is no list of shares, or an empty one.

    Example:
        >>> check_shares("verification_metrics", "fmr_vals", [0.1])
    """
    if len(shares) == 0 or not all(0 <= share <= 1 for share in shares):
        raise ValueError(f"{owner} needs one or more {name} in [0, 1], got {list(shares)}.")


def _shares(counts: Sequence[int], distances: Float[Tensor, " pair"]) -> Float[Tensor, " value"]:
    return torch.stack([_share(count / len(distances), distances) for count in counts])


def _share(value: float, distances: Tensor) -> Float[Tensor, ""]:
    return torch.tensor(value, dtype=torch.float32, device=distances.device)


class _Guess(NamedTuple):
    """Between which shares the negatives up to the end of each bin lie, both ascending, and how much bounds are off."""

    low: Float[Tensor, " bin"]
    high: Float[Tensor, " bin"]
    slack: float
    is_sample: bool = False

    def bins(self, first: Tensor | float, last: Tensor | float) -> tuple[int, int]:
        """The bins from where the shares may reach ``first`` to where they surely reach ``last``, or their number."""
        if isinstance(first, float):
            return int(torch.searchsorted(self.high, first)), int(torch.searchsorted(self.low, last))
        return int((self.high < first).sum()), int((self.low < last).sum())


def _guesses(pairs: AllowedPairs, negative_bins: Tensor | None) -> Iterator[_Guess]:
    """Where the negatives are, ever more surely; the last one is proven."""
    if negative_bins is None and (shares := pairs.sampled()) is not None:
        yield _Guess(*shares, pairs.slack, is_sample=True)
    counts = pairs.binned(positive=False) if negative_bins is None else negative_bins
    share = counts.cumsum(0).double() / pairs.n_negatives
    yield _Guess(share, share, pairs.slack)
    yield _Guess(share, share, pairs.largest_slack)


def negatives_around(
    pairs: AllowedPairs,
    ranks: Sequence[tuple[int, int]],
    eer: bool,
    positive_bins: Tensor | None,
    negative_bins: Tensor | None,
) -> tuple[list[Counted], float]:
    """Of the negatives, those around each of these ranges of ranks; and the equal error rate, if asked for."""
    n, value = pairs.n_negatives, math.nan
    if not ranks and not eer:
        return [], value
    if pairs.few:
        (near,) = pairs.counted([(0.0, math.inf)], positive=False)
        if eer:
            (near_positives,) = pairs.counted([(0.0, math.inf)], positive=True)
            value = _crossing(near_positives, near, pairs.n_positives, n)
        return [near] * len(ranks), value
    needs: list[tuple[Tensor | float, Tensor | float]] = [((low + 1) / n, (high + 1) / n) for low, high in ranks]
    if eer:
        missed = 0.0 if positive_bins is None else 1 - positive_bins.cumsum(0).double() / pairs.n_positives
        needs.append((missed, missed))
    found: dict[int, Counted] = {}
    for guess in _guesses(pairs, negative_bins):
        left = [i for i in range(len(needs)) if i not in found]
        bins = [guess.bins(*needs[i]) for i in left]
        if guess.is_sample:
            up_to = torch.cat([guess.low.new_zeros(1), (guess.low + guess.high) / 2])
            if sum(up_to[min(b, len(up_to) - 1)] - up_to[a] for a, b in bins) > _MEASURED:
                continue
        ranges, places = _joined([pairs.distances_of(a, b, guess.slack) for a, b in bins])
        lists = pairs.counted(ranges, positive=False)
        for i, place in zip(left, places, strict=True):
            near = lists[place]
            if i < len(ranks):
                if near.n_below <= ranks[i][0] and ranks[i][1] < near.n_below + int(near.counts.sum()):
                    found[i] = near
            else:
                (near_positives,) = pairs.counted([ranges[place]], positive=True)
                value = _crossing(near_positives, near, pairs.n_positives, n)
                if not math.isnan(value):
                    found[i] = near
        if len(found) == len(needs):
            break
    return [found[i] for i in range(len(ranks))], value


def _joined(ranges: Sequence[tuple[float, float]]) -> tuple[list[tuple[float, float]], list[int]]:
    """Ranges without those that overlap, which are put together, and in which of them each one is."""
    joined: list[tuple[float, float]] = []
    places = [0] * len(ranges)
    for i in sorted(range(len(ranges)), key=lambda i: ranges[i]):
        if joined and ranges[i][0] <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(joined[-1][1], ranges[i][1])
        else:
            joined.append(ranges[i])
        places[i] = len(joined) - 1
    return joined, places


def _area_of_all(pairs: AllowedPairs, positive_bins: Tensor | None, negative_bins: Tensor | None) -> float:
    """The area under the ROC curve: measured if not too many distances are common, otherwise by bins."""
    ends = 0.0, math.inf
    if positive_bins is not None and negative_bins is not None:
        edges, slack = pairs.scale.edges, pairs.largest_slack
        first, last = int(negative_bins.nonzero()[0]), int(positive_bins.nonzero()[-1])
        n_common = positive_bins[edges[1:] + slack >= edges[first]].sum()
        n_common += negative_bins[edges[:-1] <= edges[last + 1] + slack].sum()
        if n_common > max(FEW_PAIRS, _MEASURED * (pairs.n_positives + pairs.n_negatives)):
            return _area_by_bins(pairs, positive_bins, negative_bins)
        low, high = pairs.distances_of(first, last, slack)
        ends = low, max(low, high)
    positives, negatives = (pairs.counted([ends], positive=positive)[0] for positive in (True, False))
    return _area(positives, negatives, pairs.n_positives, pairs.n_negatives)


def _area_by_bins(pairs: AllowedPairs, positive_bins: Tensor, negative_bins: Tensor) -> float:
    """The area if pairs whose order bins and bounds leave open are equally far; warns if that is vague."""
    edges = pairs.scale.edges
    # where half squared distances of a bin may really be; beyond that, rounded distances may be equal
    ends = (edges[1:] + pairs.largest_slack) * (1 + 8 * torch.finfo(pairs.dtype).eps)
    nearer = torch.cat([positive_bins.new_zeros(1), positive_bins.cumsum(0)]).double()
    certain = nearer[torch.searchsorted(ends, edges[:-1], right=True)]
    possible = nearer[torch.searchsorted(edges[:-1].contiguous(), ends)]
    shares = negative_bins.double() / pairs.n_negatives / pairs.n_positives
    low, high = (float((shares * n).sum()) for n in (certain, possible))
    area = (low + high) / 2
    if (error := (high - low) / 2) > _AREA_ERROR:
        warnings.warn(
            f"roc_auc is {area:.4f}, but proven within {error:.4f} only: very many pairs of one label and of two are "
            "as far as each other, up to what the bounds of their distances tell.",
            stacklevel=5,  # beyond no_grad
        )
    return area
