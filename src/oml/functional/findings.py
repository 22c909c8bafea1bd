"""Findings in the data: what the nearest neighbours of items tell of wrong labels, copies and mixed labels."""

from math import log2
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from oml.functional.search import Neighbours, exact_search

_AT_ONCE = 2**20  # pairs of neighbours of an item that are compared
_LEVELS = 2**30  # of average precision that are told apart
_MOST_COPIES = 4  # of one item, unless they are exact
_BY_CHANCE = 0.05  # items that are expected to seem to have copies, in a whole data set
_TO_AGREE = 2  # neighbours that carry another label, or it is not voted for


class WrongLabels(NamedTuple):
    """Items whose label is likely wrong, the surest first: ``items[i]`` should rather carry ``suggested[i]``.

    Example:
        >>> WrongLabels(items=torch.tensor([7]), suggested=torch.tensor([1]), scores=torch.tensor([0.9])).items
        tensor([7])
    """

    items: Int[Tensor, " finding"]
    suggested: Int[Tensor, " finding"]
    scores: Float[Tensor, " finding"]


class MixedLabels(NamedTuple):
    """Pairs of labels whose items lie among each other, the surest first; ``labels[:, 0] < labels[:, 1]``.

    Example:
        >>> scores, crossing = torch.tensor([0.8]), torch.tensor([12])
        >>> MixedLabels(labels=torch.tensor([[3, 5]]), scores=scores, crossing=crossing).labels
        tensor([[3, 5]])
    """

    labels: Int[Tensor, "finding 2"]
    scores: Float[Tensor, " finding"]
    crossing: Int[Tensor, " finding"]
    """neighbours that carry the other label of the pair"""


class Copies(NamedTuple):
    """Pairs of items that are copies of each other; of groups the surest first, so are pairs in a group.

    ``groups`` numbers, from 0, what pairs link with each other: three copies of an image are two or three pairs of
    one group. ``pairs[:, 0] < pairs[:, 1]``.

    Example:
        >>> distances, groups = torch.tensor([0.0]), torch.tensor([0])
        >>> Copies(pairs=torch.tensor([[0, 4]]), distances=distances, scores=torch.ones(1), groups=groups).pairs
        tensor([[0, 4]])
    """

    pairs: Int[Tensor, "finding 2"]
    distances: Float[Tensor, " finding"]
    scores: Float[Tensor, " finding"]
    groups: Int[Tensor, " finding"]


def nearest_items(
    embeddings: Float[Tensor, "item dim"],
    k: int = 10,
    *,
    items: Int[Tensor, " item"] | None = None,
    memory_budget: int = 512 * 2**20,
) -> Neighbours:
    """The ``k`` nearest other items of every item, see :func:`~oml.functional.search.exact_search`.

    Args:
        embeddings: One row per item.
        k: Number of neighbours.
        items: Items of equal numbers do not find each other: give numbers of sequences if near copies of an item
            would fill its neighbourhood. By default every item has a number of its own.
        memory_budget: In bytes.

    Example:
        >>> nearest_items(torch.tensor([[0.0], [1.0], [3.0]]), k=1).ids.flatten()
        tensor([1, 0, 1])
    """
    if items is None:
        items = torch.arange(len(embeddings), device=embeddings.device)
    return exact_search(embeddings, embeddings, k, query_items=items, gallery_items=items, memory_budget=memory_budget)


def nearest_across(
    embeddings: Float[Tensor, "item dim"], sides: Int[Tensor, " item"], *, memory_budget: int = 512 * 2**20
) -> Neighbours:
    """For every item the nearest one of another side, such as of the other split; id -1 if there is no other side.

    Args:
        embeddings: One row per item.
        sides: The number of each item's side.
        memory_budget: In bytes.

    Example:
        >>> nearest_across(torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([0, 0, 1])).ids.flatten()
        tensor([2, 2, 1])
    """
    ids, distances = exact_search(
        embeddings, embeddings, 1, query_items=sides, gallery_items=sides, memory_budget=memory_budget
    )
    return Neighbours(ids, distances)


def wrong_labels(
    neighbours: Neighbours,
    labels: Int[Tensor, " item"],
    *,
    items: Int[Tensor, " item"] | None = None,
    min_score: float | int = 0.4,
) -> WrongLabels:
    """Items whose nearest neighbours carry another label than they do, and agree with each other.

    Around item ``i``, of label ``a``, each label ``c`` is weighed by the average precision of its items in the ranking
    of the ``k`` neighbours: ``AP_i(c) = sum of precision@r over the ranks r that hold c / min(k, n_c)``, where ``n_c``
    counts the items of ``c`` that ``i`` could find. So a rare label whose few items come first is not outvoted by
    those that follow. Let ``b`` be the label with the largest one (of equals the nearest) but for ``a``, of those that
    two neighbours or more carry. The neighbours vote for ``b`` if ``AP_i(b) > AP_i(a)``, else for ``a``. If they vote
    for ``b``, the score is the product of three numbers in [0, 1]:

    - clear: ``AP_i(b) - AP_i(a)``.
    - fitting: ``min(1, (s_b / d)^2)``, where ``d`` is the mean distance from ``i`` to its neighbours of ``b``, and
      ``s_b`` the median of the same over the items of ``b``. An item that is alone with its label, far from
      all others, is no member of the label it happens to be nearest to.
    - trusted: ``(t - p) / (1 - p)`` if that is positive. Of the items whose neighbours vote for ``b`` as clearly or
      more so, ``t`` is the share that carries ``b`` (``i`` left out; one vote is added that is right as often as all
      votes are), and ``p`` is the share of ``b`` among all items, as often as chance would be right. If embeddings
      are poor, votes are no better than chance and no label is suspected; a hub, the neighbour of many, makes
      votes for its label that are often wrong and lose trust.

    Editing by nearest neighbours (Wilson, "Asymptotic properties of nearest neighbor rules using edited data", 1972)
    takes out all items that a majority of their neighbours outvote, in poor embeddings half of the data. Measuring
    a vote by how far such votes are to be trusted for this label is the idea of confident learning (Northcutt, Jiang
    and Chuang, "Confident learning: estimating uncertainty in dataset labels", 2021).

    Args:
        neighbours: The nearest other items of every item, as :func:`nearest_items` gives them; 5 to 20 of each.
        labels: Of the items.
        items: The numbers that the neighbours were searched with, if any.
        min_score: Findings score above this.

    Raises:
        ValueError: Not one row of neighbours per label.

    Example:
        >>> points = torch.tensor([[0.0], [0.1], [0.2], [0.3], [9.0], [9.1], [9.2]])
        >>> wrong_labels(nearest_items(points, k=3), torch.tensor([0, 0, 1, 0, 1, 1, 1]))[:2]
        (tensor([2]), tensor([0]))
    """
    _check_rows("wrong_labels", neighbours, labels, items)
    values, codes, counts = labels.unique(return_inverse=True, return_counts=True)
    if neighbours.ids.numel() == 0:
        return WrongLabels(labels[:0], labels[:0], neighbours.distances.new_zeros(0, dtype=torch.float64))
    available = _Available(codes, counts, items)
    rows_at_once = max(1, _AT_ONCE // neighbours.ids.shape[1] ** 2)
    parts = torch.arange(len(labels), device=labels.device).split(rows_at_once)
    votes = [_votes(neighbours, codes, rows, available) for rows in parts]
    voted, clear, distance, own_distance = (torch.cat(part) for part in zip(*votes, strict=True))

    spread = _medians(own_distance, codes, len(counts))
    fitting = (spread[voted] / distance).square().clamp(max=1).nan_to_num(1.0)  # 0 / 0 among copies
    chance = counts[voted] / len(labels)
    trusted = ((_trust(voted, clear, codes) - chance) / (1 - chance)).clamp(min=0)
    scores = torch.where(voted != codes, clear * fitting * trusted, 0)
    found = (scores > min_score).nonzero().squeeze(1)
    found = found[scores[found].sort(descending=True, stable=True).indices]
    return WrongLabels(found, values[voted[found]], scores[found])


def mixed_labels(
    neighbours: Neighbours,
    labels: Int[Tensor, " item"],
    *,
    items: Int[Tensor, " item"] | None = None,
    min_score: float | int = 0.5,
) -> MixedLabels:
    """Pairs of labels whose items lie among each other, so that neighbours do not tell one label from the other.

    Around each item of ``a`` as many neighbours are looked at as its label could fill, ``r = min(k, n_a - 1)``: in a
    label of its own, all of them carry ``a``. Of these, over all items of ``a``, ``w`` carry ``a`` or ``b`` and ``x``
    carry ``b``. If the two labels were one, shuffled, ``x`` would be about ``p * w`` with
    ``p = n_b / (n_a + n_b - 1)``. Seen from ``a``, the score is ``min(w, x / p) / (sum of r)``: 1 if all neighbours
    are of the two labels and as mixed as by shuffling, 0 if no neighbour is of the other label. The score of the
    pair is the smaller one of those seen from ``a`` and from ``b``. Of three labels that are one, each pair scores
    about 2/3, and with random embeddings of ``m`` labels 2/m.

    The count of neighbours of the other sample is the statistic of Schilling ("Multivariate two-sample tests based on
    nearest neighbors", 1986). A label with a single item is in no pair: see :func:`wrong_labels`.

    Args:
        neighbours: The nearest other items of every item, as :func:`nearest_items` gives them.
        labels: Of the items.
        items: The numbers that the neighbours were searched with, if any; ``n_a - 1`` then is the mean number of
            items of ``a`` that an item of ``a`` could find.
        min_score: Findings score above this.

    Raises:
        ValueError: Not one row of neighbours per label.

    Example:
        >>> points = torch.tensor([[0.0], [0.1], [0.2], [0.3], [9.0], [9.1]])
        >>> mixed_labels(nearest_items(points, k=3), torch.tensor([0, 5, 0, 5, 1, 1])).labels
        tensor([[0, 5]])
    """
    _check_rows("mixed_labels", neighbours, labels, items)
    values, codes, counts = labels.unique(return_inverse=True, return_counts=True)
    n, width = len(values), neighbours.ids.shape[1]
    could = _Available(codes, counts, items)(torch.arange(len(labels), device=labels.device), codes)
    looked_at = could.clamp(max=width)
    item, rank = (torch.arange(width, device=labels.device) < looked_at[:, None]).nonzero().unbind(1)
    ids = neighbours.ids[item, rank]
    item, ids = item[ids >= 0], ids[ids >= 0]
    slots = torch.bincount(codes, weights=looked_at, minlength=n)
    mean_could = torch.bincount(codes, weights=could, minlength=n) / counts

    # from each label to each other: how many neighbours, and the same the other way round
    codes_of_pairs, crossing = (codes[item] * n + codes[ids]).unique(return_counts=True)
    a, b = codes_of_pairs // n, codes_of_pairs % n
    within = torch.zeros_like(counts).index_put_((a[a == b],), crossing[a == b])
    a, b, crossing = a[a != b], b[a != b], crossing[a != b]
    x = crossing.double()
    score = torch.minimum(within[a] + x, x * (mean_could[a] + counts[b]) / counts[b]) / slots[a]
    codes_of_pairs, back = a * n + b, b * n + a
    place = torch.searchsorted(codes_of_pairs, back).clamp(max=max(len(back) - 1, 0))
    both = (codes_of_pairs[place] == back) & (a < b)
    score, crossing = torch.minimum(score, score[place])[both], (crossing + crossing[place])[both]
    pairs = torch.stack([values[a[both]], values[b[both]]], dim=1)

    found = (score > min_score).nonzero().squeeze(1)
    found = found[score[found].sort(descending=True, stable=True).indices]
    return MixedLabels(pairs[found], score[found], crossing[found])


def copy_distances(distances: Float[Tensor, "item rank"]) -> Float[Tensor, " item"]:
    """Up to which distance the neighbours of each item are its copies; 0 if none are, but exact ones.

    Let ``r_1 <= r_2 <= ...`` be the distances from an item to its neighbours. If ``p`` of them are copies of it, there
    is a gap behind them: ``r_p`` is much smaller than ``r_(p + 1)``. How small is not due to chance? Among points that
    lie at random in ``D`` dimensions, ``P(r_1 / r_2 < q) = q^D``. The exponent is told by the data: it is the one that
    gives the median ``m`` of the ratios the probability 1/2. So of ``n`` items, 0.05 are expected to have a ratio below
    ``q = m^log2(n / 0.05)``, and there is a gap if ``r_p < q * r_(p + 1)``, for ``p`` up to 4.

    As a ratio compares distances in one place, it does not matter that some labels are tighter than others. But a
    label of two items may lie far from all others, and has a gap around it; so copies also have to be nearer than a
    quarter of the median of all ``r_1``. The distance up to which neighbours are copies is the largest that keeps to
    both, ``min(q * r_(p + 1), median / 4)``, for the largest ``p`` that has a gap.

    Distances of zero are left out of the medians. Only exact copies are found if copies, or labels of two items, are
    so many that a gap is the rule, and of items with more than four copies. The ratio is the statistic of Facco et al.,
    "Estimating the intrinsic dimension of datasets by a minimal neighborhood information", 2017.

    Args:
        distances: From each item to its neighbours, ascending, inf where there is none. Of ``k`` neighbours, at most
            ``k - 1`` can be told to be copies.

    Example:
        >>> distances = torch.tensor([[1.0, 1.1], [1.0, 1.2], [1.1, 1.2], [0.01, 1.1], [0.01, 1.1]])
        >>> copy_distances(distances)
        tensor([0.0000, 0.0000, 0.0000, 0.2500, 0.2500], dtype=torch.float64)
    """
    distances = distances.detach().double()
    n, width = distances.shape
    limits = distances.new_zeros(n)
    if width < 2:
        return limits
    nearest, second = distances[:, 0], distances[:, 1]
    usual = (nearest > 0) & second.isfinite()
    if not usual.any():
        return limits
    gap = (nearest / second)[usual].median() ** log2(n / _BY_CHANCE)
    for p in range(1, min(_MOST_COPIES, width - 1) + 1):
        limit = (gap * distances[:, p]).clamp(max=nearest[usual].median() / 4)
        limits = torch.where((distances[:, p - 1] < limit) & distances[:, p].isfinite(), limit, limits)
    return limits


def near_copies(neighbours: Neighbours, max_distance: Float[Tensor, " item"] | float | int) -> Copies:
    """Items that are within the distance of copies from each other, as groups of pairs.

    A pair scores ``1 - distance / max_distance``, exact copies 1. A group is ranked by its best pair.

    Args:
        neighbours: Of every item, as :func:`nearest_items` or :func:`nearest_across` give them. With ``k`` neighbours,
            an item of more than ``k`` copies is paired with the nearest ``k``.
        max_distance: One for all, or of each item, see :func:`copy_distances`; of the two in a pair, the smaller one
            counts.

    Example:
        >>> points = torch.tensor([[0.0], [5.0], [0.0], [5.01], [9.0]])
        >>> copies = near_copies(nearest_items(points, k=2), max_distance=0.1)
        >>> copies.pairs, copies.groups
        (tensor([[0, 2],
                [1, 3]]), tensor([0, 1]))
    """
    n = len(neighbours.ids)
    limits = torch.as_tensor(max_distance, dtype=torch.float64, device=neighbours.ids.device).expand(n)
    item, rank = ((neighbours.distances <= limits[:, None]) & (neighbours.ids >= 0)).nonzero().unbind(1)
    other, distances = neighbours.ids[item, rank], neighbours.distances[item, rank].double()
    item, other, distances = (part[distances <= limits[other]] for part in (item, other, distances))
    codes, inverse = (torch.minimum(item, other) * n + torch.maximum(item, other)).unique(return_inverse=True)
    pairs = torch.stack([codes // max(n, 1), codes % max(n, 1)], dim=1)
    distances = distances.new_zeros(len(codes)).index_put_((inverse,), distances)  # both directions have one distance
    scores = torch.where(distances > 0, 1 - distances / limits[pairs].amin(dim=1), 1.0)

    # of each group the first place that one of its pairs has in the order of scores
    order = scores.sort(descending=True, stable=True).indices
    pairs, distances, scores = pairs[order], distances[order], scores[order]
    group = _components(pairs, n)[pairs[:, 0]]
    places = torch.arange(len(group), device=group.device)
    first = group.new_full((n,), len(group)).scatter_reduce(0, group, places, "amin")[group]
    first, order = first.sort(stable=True)
    return Copies(pairs[order], distances[order], scores[order], first.unique_consecutive(return_inverse=True)[1])


class _Available:
    """How many items of a label an item could find: all of them, but those that carry its own number."""

    def __init__(
        self, codes: Int[Tensor, " item"], counts: Int[Tensor, " label"], items: Int[Tensor, " item"] | None
    ) -> None:
        if items is None:
            items = torch.arange(len(codes), device=codes.device)
        _, self._items = items.unique(return_inverse=True)
        self._counts = counts
        self._keys, self._own = (codes * len(codes) + self._items).unique(return_counts=True)

    def __call__(self, rows: Int[Tensor, " row"], codes: Int[Tensor, " row *rank"]) -> Int[Tensor, " row *rank"]:
        numbers = self._items[rows].view(-1, *[1] * (codes.ndim - 1))
        wanted = codes * len(self._items) + numbers
        place = torch.searchsorted(self._keys, wanted).clamp(max=max(len(self._keys) - 1, 0))
        return self._counts[codes] - torch.where(self._keys[place] == wanted, self._own[place], 0)


def _votes(
    neighbours: Neighbours, codes: Int[Tensor, " item"], rows: Int[Tensor, " row"], available: _Available
) -> tuple[Int[Tensor, " row"], Float[Tensor, " row"], Float[Tensor, " row"], Float[Tensor, " row"]]:
    """For some items: the label voted for, how clearly, the mean distances to neighbours of it and of the own label.

    Without neighbours to vote it is the own label, with clearness 0.
    """
    ids, distances = neighbours.ids[rows], neighbours.distances[rows].double()
    is_there, label, own = ids >= 0, codes[ids.clamp(min=0)], codes[rows, None]
    agree = (label[:, :, None] == label[:, None, :]) & is_there[:, :, None] & is_there[:, None, :]
    precision = agree.tril().sum(dim=2) / torch.arange(1, ids.shape[1] + 1, device=ids.device).double()
    to_find = available(rows, label).clamp(1, ids.shape[1])
    ap = (agree * precision[:, None, :]).sum(dim=2) / to_find
    ap = (ap * _LEVELS).round() / _LEVELS  # so that sums in another order are equal
    is_own = is_there & (label == own)
    ap = ap.masked_fill(~is_own & (agree.sum(dim=2) < _TO_AGREE), 0)

    own_ap = ap.where(is_own, 0).amax(dim=1, keepdim=True)
    other_ap, place = ap.masked_fill(is_own, 0).max(dim=1, keepdim=True)  # of equals the nearest
    voted = torch.where(other_ap > own_ap, label.gather(1, place), own)
    is_voted = is_there & (label == voted)
    return voted[:, 0], (other_ap - own_ap).abs()[:, 0], _mean(distances, is_voted), _mean(distances, is_own)


def _mean(values: Float[Tensor, "row rank"], mask: Bool[Tensor, "row rank"]) -> Float[Tensor, " row"]:
    """NaN where the mask is empty."""
    return values.where(mask, 0).sum(dim=1) / mask.sum(dim=1)


def _medians(values: Float[Tensor, " item"], codes: Int[Tensor, " item"], n_labels: int) -> Float[Tensor, " label"]:
    """The lower median of each label's values but for NaN; inf if there is none."""
    codes, values = codes[~values.isnan()], values[~values.isnan()]
    values, by_value = values.sort()
    values = values[codes[by_value].sort(stable=True).indices]
    counts = torch.bincount(codes, minlength=n_labels)
    medians = values.new_full((n_labels,), torch.inf)
    medians[counts > 0] = values[(counts.cumsum(0) - counts + (counts - 1) // 2)[counts > 0]]
    return medians


def _trust(
    voted: Int[Tensor, " item"], clear: Float[Tensor, " item"], codes: Int[Tensor, " item"]
) -> Float[Tensor, " item"]:
    """How often votes for the same label are right that are as clear or more so.

    For an item whose vote is wrong the own vote is left out, in place of the one that is added.
    """
    level = ((1 - clear) * _LEVELS).long()
    label = voted * (_LEVELS + 1)
    keys, order = (label + level).sort()
    right = F.pad((voted == codes)[order].cumsum(0), (1, 0))
    start = torch.searchsorted(keys, label)
    # two differences of rounded numbers may be 2 levels apart though they are as clear
    end = torch.searchsorted(keys, label + (level + 2).clamp(max=_LEVELS), right=True)
    is_right, is_vote = voted == codes, level < _LEVELS
    usual = (is_right & is_vote).sum() / is_vote.sum().clamp(min=1)
    return (right[end] - right[start] + usual.double()) / (end - start)


def _components(pairs: Int[Tensor, "pair 2"], n: int) -> Int[Tensor, " item"]:
    """For each of ``n`` items the first one that pairs link it with, over any number of links."""
    roots = torch.arange(n, device=pairs.device)
    while True:
        lower = roots[pairs].amin(dim=1, keepdim=True).expand_as(pairs)
        linked = roots.scatter_reduce(0, roots[pairs].flatten(), lower.flatten(), "amin")
        linked = linked[linked]
        if torch.equal(linked, roots):
            return roots
        roots = linked


def _check_rows(owner: str, neighbours: Neighbours, labels: Tensor, items: Tensor | None) -> None:
    counts = {len(neighbours.ids), len(labels), *([] if items is None else [len(items)])}
    if len(counts) > 1:
        raise ValueError(
            f"{owner} needs neighbours of every item and a label for each, got {len(neighbours.ids)} rows of "
            f"neighbours, {len(labels)} labels{'' if items is None else f' and {len(items)} items'}."
        )
