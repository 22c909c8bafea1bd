"""Which triplets a batch of labelled embeddings holds, as index tensors on the device of the inputs.

A triplet is an anchor, a positive (another item of the anchor's label) and a negative (an item of another
label). An anchor is never its own positive, whatever duplicates the batch holds; anchors that lack a positive
or a negative are left out, so a batch without any triplet gives three empty tensors.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from oml.functional.distances import pairwise_dist
from oml.functional.precision import in_full_precision

_HARDEST = slice(0, 1)
_FEW_ITEMS = 256  # of a batch, up to which masks of all pairs are quicker than tables of the items of labels


class Triplets(NamedTuple):
    """Row i of the three tensors names one triplet by its positions in the batch."""

    anchor: Int[Tensor, " triplet"]
    positive: Int[Tensor, " triplet"]
    negative: Int[Tensor, " triplet"]


class Pairs(NamedTuple):
    """Row i of the three tensors names one pair by its positions in the batch, and tells if the labels differ."""

    ids1: Int[Tensor, " pair"]
    ids2: Int[Tensor, " pair"]
    is_negative: Bool[Tensor, " pair"]


def all_triplets(labels: Int[Tensor, " batch"]) -> Triplets:
    """Every triplet of the batch: ``sum over labels of c (c - 1) (batch - c)`` for labels of ``c`` items.

    Ordered by anchor, then positive, then negative. Needs memory for all triplets and for one bool per pair
    of a positive pair and an item.

    Example:
        >>> all_triplets(torch.tensor([5, 5, 7])).anchor
        tensor([0, 1])
    """
    same = labels[:, None] == labels
    anchor, positive = same.clone().fill_diagonal_(False).nonzero(as_tuple=True)
    pair, negative = (~same[anchor]).nonzero(as_tuple=True)
    return Triplets(anchor[pair], positive[pair], negative)


def draw_triplets(
    labels: Int[Tensor, " batch"],
    n: int,
    generator: torch.Generator,
    negative_labels: Int[Tensor, " other"] | None = None,
) -> Triplets:
    """``n`` different triplets, each set of ``n`` as likely as any other; all of them, if there are no more than ``n``.

    Needs memory for ``n`` triplets, however many there are: those that were drawn by number are worked out from the
    sizes of the labels.

    Args:
        labels: of the items of which anchors and positives are drawn.
        n: how many to draw.
        generator: on the CPU, so that the same seed gives the same triplets on every device.
        negative_labels: of the items of which negatives are drawn, if those are others; negatives are positions there.

    Example:
        >>> draw_triplets(torch.tensor([5, 5, 7]), 9, torch.Generator())
        Triplets(anchor=tensor([0, 1]), positive=tensor([1, 0]), negative=tensor([2, 2]))
    """
    items = _Items.of(labels, labels)
    others = items if negative_labels is None else _Items.of(negative_labels, labels)
    n_negatives = len(others.order) - others.size
    n_triplets = (items.size - 1) * n_negatives
    ends = n_triplets.cumsum(0)  # triplets are numbered by anchor, positive, negative
    number = _distinct(int(ends[-1]) if len(ends) else 0, n, generator).to(labels.device)
    anchor = torch.searchsorted(ends, number, right=True)
    number = number - (ends - n_triplets)[anchor]
    positive, negative = number // n_negatives[anchor], number % n_negatives[anchor]
    # ranks become places among the sorted items: positives leave out the anchor's own, negatives those of its label
    positive += items.first[anchor]
    positive += positive >= items.places()[anchor]
    negative += others.size[anchor] * (negative >= others.first[anchor])
    return Triplets(anchor, items.order[positive], others.order[negative])


def items_of_label(
    labels: Int[Tensor, " batch"], anchors: Int[Tensor, " anchor"] | None = None
) -> tuple[Int[Tensor, "anchor most"], Bool[Tensor, "anchor most"]]:
    """For each anchor: itself, the other items of its label, and padding by itself; and which entries are others.

    Args:
        labels: of the items.
        anchors: positions of the anchors among the items; all of them by default.

    Example:
        >>> ids, is_other = items_of_label(torch.tensor([7, 5, 7]))
        >>> ids.tolist(), is_other.tolist()
        ([[0, 2], [1, 1], [2, 0]], [[False, True], [False, False], [False, True]])
    """
    if anchors is None:
        anchors = torch.arange(len(labels), device=labels.device)
    items = _Items.of(labels, labels[anchors])
    place, first, count = items.places()[anchors, None], items.first[:, None], items.size[:, None]
    step = torch.arange(int(count.max()) if len(anchors) else 0, device=labels.device)
    is_other = (step > 0) & (step < count)
    # round the label's items, beginning with the item itself
    return items.order[torch.where(is_other, first + (place - first + step) % count, place)], is_other


def n_hardest_triplets(
    distances: Float[Tensor, "anchor item"],
    labels: Int[Tensor, " item"],
    positives: slice = _HARDEST,
    negatives: slice = _HARDEST,
    anchors: Int[Tensor, " anchor"] | None = None,
) -> Triplets:
    """For each anchor its positives of some ranks, from the farthest, combined with its negatives, from the nearest.

    Anchors keep their order; of each come the positives with the farthest first, of each of these the negatives with
    the nearest first. Where an anchor has fewer than ``stop`` positives or negatives, it takes what it has; with none
    of the ranks it is left out. Which of equally far items is taken is not specified.

    Args:
        distances: from the anchors to all items; they may be infinite.
        labels: of all items.
        positives: ranks of the positives, the farthest has rank 0: ``slice(0, 3)`` takes the three farthest.
        negatives: ranks of the negatives, the nearest has rank 0.
        anchors: positions of the anchors among the items; by default the first ``len(distances)`` items.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [3.0], [9.0]])
        >>> n_hardest_triplets(torch.cdist(x, x), torch.tensor([0, 0, 0, 1]), positives=slice(0, 2)).positive
        tensor([2, 1, 2, 0, 0, 1])
    """
    if anchors is None:
        anchors = torch.arange(len(distances), device=labels.device)
    items, is_other = items_of_label(labels, anchors)
    positive = _hardest(distances.gather(1, items).masked_fill_(~is_other, -torch.inf), positives, largest=True)
    is_positive, positive = is_other.gather(1, positive), items.gather(1, positive)
    # NaN goes first, as topk has it among positives: a loss of NaN tells that something is wrong
    to_others = distances.scatter(1, items, torch.inf).nan_to_num_(nan=-torch.inf, posinf=torch.inf)
    negative = _hardest(to_others, negatives, largest=False)
    is_negative = labels[negative] != labels[anchors, None]
    row, i, j = (is_positive[:, :, None] & is_negative[:, None]).nonzero(as_tuple=True)
    return Triplets(anchors[row], positive[row, i], negative[row, j])


def hardest_triplets(distances: Float[Tensor, "batch batch"], labels: Int[Tensor, " batch"]) -> Triplets:
    """For each anchor, in order, its farthest positive and its nearest negative ("batch hard", Hermans et al. 2017).

    Which of equally far items is taken is not specified.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [3.0], [9.0]])
        >>> hardest_triplets(torch.cdist(x, x), torch.tensor([0, 0, 1, 1])).negative
        tensor([2, 2, 1, 1])
    """
    if not 0 < len(labels) <= _FEW_ITEMS:
        return n_hardest_triplets(distances, labels)
    same = labels[:, None] == labels
    n_same = same.sum(dim=1)
    anchor = ((n_same > 1) & (n_same < len(labels))).nonzero()[:, 0]
    farthest = distances.masked_fill(~same, -torch.inf).fill_diagonal_(-torch.inf).argmax(dim=1)
    nearest = distances.masked_fill(same, torch.inf).argmin(dim=1)
    return Triplets(anchor, farthest.index_select(0, anchor), nearest.index_select(0, anchor))


@in_full_precision
def cluster_triplets(
    embeddings: Float[Tensor, "batch dim"], labels: Int[Tensor, " batch"]
) -> tuple[Float[Tensor, "label dim"], Float[Tensor, "label dim"], Float[Tensor, "label dim"]]:
    """For each label of two items or more, sorted: its mean, its item farthest from that, the nearest other mean.

    Means of labels with one item count as well, as negatives. Gradients flow through the means and the items.

    Example:
        >>> x, labels = torch.tensor([[0.0], [4.0], [5.0], [9.0]]), torch.tensor([0, 0, 1, 2])
        >>> cluster_triplets(x, labels)
        (tensor([[2.]]), tensor([[0.]]), tensor([[5.]]))
    """
    _, label, count = labels.unique(return_inverse=True, return_counts=True)
    sums = embeddings.new_zeros(len(count), embeddings.shape[1]).index_add(0, label, embeddings)
    means = sums / count[:, None]
    with torch.no_grad():
        from_mean = torch.linalg.vector_norm(embeddings - means.index_select(0, label), dim=1)
        order = from_mean.argsort(descending=True)
        order = order[label[order].argsort(stable=True)]  # by label, the farthest first
        farthest = order[count.cumsum(0) - count]
        nearest = pairwise_dist(means, means).fill_diagonal_(torch.inf).topk(min(1, len(count)), largest=False).indices
        taken = ((count > 1) & (len(count) > 1)).nonzero()[:, 0]
        nearest = nearest[taken].flatten()
    return means.index_select(0, taken), embeddings.index_select(0, farthest[taken]), means.index_select(0, nearest)


def all_pairs(labels: Int[Tensor, " batch"]) -> Pairs:
    """The pairs that triplets of the batch hold, each once, ``ids1 < ids2``: first positive pairs, then negative ones.

    Example:
        >>> all_pairs(torch.tensor([5, 5, 7]))
        Pairs(ids1=tensor([0, 0, 1]), ids2=tensor([1, 2, 2]), is_negative=tensor([False,  True,  True]))
    """
    same = labels[:, None] == labels
    is_anchor = (same.sum(dim=1) > 1) & ~same.all(dim=1)
    of_triplet = (is_anchor[:, None] | is_anchor).triu(1)
    return _pairs((same & of_triplet).nonzero(), (~same & of_triplet).nonzero())


def pairs_of_triplets(triplets: Triplets, n_items: int) -> Pairs:
    """The pairs that these triplets of positions below ``n_items`` hold, in the form of :func:`all_pairs`.

    Example:
        >>> pairs_of_triplets(Triplets(torch.tensor([0, 1]), torch.tensor([1, 0]), torch.tensor([2, 2])), n_items=3)
        Pairs(ids1=tensor([0, 0, 1]), ids2=tensor([1, 2, 2]), is_negative=tensor([False,  True,  True]))
    """
    anchor, *others = triplets
    codes = [(torch.minimum(anchor, ids) * n_items + torch.maximum(anchor, ids)).unique() for ids in others]
    return _pairs(*(torch.stack([code // n_items, code % n_items], dim=1) for code in codes))


def lone_labels(labels: Int[Tensor, " batch"]) -> Int[Tensor, " label"]:
    """Labels that occur once in the batch, sorted: their items can be negatives only."""
    values, counts = labels.unique(return_counts=True)
    return values[counts == 1]


class _Items(NamedTuple):
    """Items sorted by label; for each label of a list, where its items begin among them, and how many there are."""

    order: Tensor
    first: Tensor
    size: Tensor

    @classmethod
    def of(cls, labels: Tensor, wanted: Tensor) -> "_Items":
        values, order = labels.sort(stable=True)
        first = torch.searchsorted(values, wanted)
        return cls(order, first, torch.searchsorted(values, wanted, right=True) - first)

    def places(self) -> Tensor:
        """Where each item stands among the sorted ones."""
        places = torch.arange(len(self.order), device=self.order.device)
        return torch.empty_like(places).scatter_(0, self.order, places)


def _hardest(distances: Tensor, ranks: slice, largest: bool) -> Tensor:
    return distances.topk(min(ranks.stop, distances.shape[1]), dim=1, largest=largest).indices[:, ranks]


def _distinct(total: int, n: int, generator: torch.Generator) -> Tensor:
    """``n`` different numbers below ``total``, or all of them."""
    if n >= total:
        return torch.arange(total)
    if n > total // 2:
        return torch.randperm(total, generator=generator)[:n]
    numbers = torch.empty(0, dtype=torch.int64)
    while len(numbers) < n:  # 2 n draws below 2 n or more have 1.26 n values or more: one pass, unless n is tiny
        numbers = torch.cat([numbers, torch.randint(total, (2 * n,), generator=generator)]).unique()
    return numbers[torch.randperm(len(numbers), generator=generator)[:n]]


def _pairs(positive: Tensor, negative: Tensor) -> Pairs:
    ids1, ids2 = torch.cat([positive, negative]).unbind(1)
    return Pairs(ids1, ids2, torch.arange(len(ids1), device=ids1.device) >= len(positive))
