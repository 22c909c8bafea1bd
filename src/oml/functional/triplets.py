"""Which triplets a batch of labelled embeddings holds, as index tensors on the device of the inputs.

A triplet is an anchor, a positive (another item of the anchor's label) and a negative (an item of another
label). An anchor is never its own positive, whatever duplicates the batch holds; anchors that lack a positive
or a negative are left out, so a batch without any triplet gives three empty tensors.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Triplets(NamedTuple):
    """Row i of the three tensors names one triplet by its positions in the batch."""

    anchor: Int[Tensor, " triplet"]
    positive: Int[Tensor, " triplet"]
    negative: Int[Tensor, " triplet"]


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


def hardest_triplets(distances: Float[Tensor, "batch batch"], labels: Int[Tensor, " batch"]) -> Triplets:
    """For each anchor, in order, its farthest positive and its nearest negative ("batch hard", Hermans et al. 2017).

    Which of equally far items is taken is not specified.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [3.0], [9.0]])
        >>> hardest_triplets(torch.cdist(x, x), torch.tensor([0, 0, 1, 1])).negative
        tensor([2, 2, 1, 1])
    """
    same = labels[:, None] == labels
    positive = same.clone().fill_diagonal_(False)  # among duplicates, argmax could pick the anchor itself
    anchor = (positive.any(dim=1) & ~same.all(dim=1)).nonzero().squeeze(1)
    if not len(labels):  # nothing has no largest number
        return Triplets(anchor, anchor, anchor)
    farthest = distances.masked_fill(~positive, -torch.inf).argmax(dim=1)
    nearest = distances.masked_fill(same, torch.inf).argmin(dim=1)
    return Triplets(anchor, farthest[anchor], nearest[anchor])


def lone_labels(labels: Int[Tensor, " batch"]) -> Int[Tensor, " label"]:
    """Labels that occur once in the batch, sorted: their items can be negatives only."""
    values, counts = labels.unique(return_counts=True)
    return values[counts == 1]
