"""The triplet loss summed over all triplets of a batch, without a list of them.

A batch of 1,024 with 4 instances a label holds 3 million triplets, but only a million distances, and the sum depends
on the triplets through a count for each distance: in how many active triplets it takes part. So time and memory are
those of the distances, ``O(batch^2)``, and the gradient is one matrix product.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from oml.functional.derivatives import first_order_only
from oml.functional.distances import euclidean_pairs
from oml.functional.triplets import items_of_label

_NUMBERS = 2**18  # of distances that are dealt with at a time: 1 MiB, which caches hold
_FEW_POSITIVES = 24  # of an anchor, up to which it is quicker to take one after the other than to sort them
_LONGEST = 40.0  # distance for which exp(distance) squared is within float32


class TripletSum(NamedTuple):
    """The loss and what else is known of all triplets of a batch, as 0-d tensors; only ``loss`` has a gradient."""

    loss: Float[Tensor, ""]
    n_triplets: Float[Tensor, ""]
    n_active: Float[Tensor, ""]
    #: sums over the triplets of the distance between anchor and positive, and between anchor and negative
    positive_distances: Float[Tensor, ""]
    negative_distances: Float[Tensor, ""]


def sum_over_all_triplets(
    embeddings: Float[Tensor, "batch dim"], labels: Int[Tensor, " batch"], margin: float | None
) -> TripletSum:
    """The sum of :func:`triplet_loss` over :func:`all_triplets`, and its gradient, in the memory of the distances.

    With a margin, ``relu(d_ap - d_an + margin)`` is linear where it is active: the gradient of a distance is the
    number of active triplets that it is the positive one of, less the number of those that it is the negative one of.
    In the soft form ``sum_p log(1 + exp(d_ap - d_an)) = log prod_p (1 + exp(d_ap) exp(-d_an))``: one exponent for
    each distance and one logarithm for each anchor and negative, in place of both for each triplet. The result is
    that of the explicit form up to the rounding of float32.

    Args:
        embeddings: of a batch.
        labels: of the embeddings.
        margin: above 0, or ``None`` for the soft form.

    Example:
        >>> x, labels = torch.tensor([[0.0], [3.0], [4.0]]), torch.tensor([7, 7, 5])
        >>> sum_over_all_triplets(x, labels, margin=0.5).loss  # relu(3 - 4 + 0.5) + relu(3 - 1 + 0.5)
        tensor(2.5000)
    """
    loss, *others = _SumOverAllTriplets.apply(embeddings, labels, margin)  # pyright: ignore[reportGeneralTypeIssues]
    return TripletSum(loss, *others)


class _SumOverAllTriplets(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, labels: Tensor, margin: float | None) -> tuple[Tensor, ...]:
        pairs = euclidean_pairs(embeddings)
        items, is_other = items_of_label(labels)
        weights = torch.empty_like(pairs.distances)  # the gradient of the loss by each distance
        longest = float(pairs.distances.max()) if margin is None and len(labels) else 0.0
        sums = torch.zeros(5, dtype=pairs.distances.dtype, device=embeddings.device)
        rows = max(1, _NUMBERS // max(1, len(labels)))
        for start in range(0, len(labels), rows):
            anchors = slice(start, start + rows)
            distances = pairs.distances[anchors]
            of_labels = items[anchors], is_other[anchors]
            if margin is None:
                loss, active = _soft_rows(distances, *of_labels, weights[anchors], longest)
            elif items.shape[1] <= _FEW_POSITIVES:
                loss, active = _margin_rows(distances, *of_labels, weights[anchors], margin)
            else:
                loss, active = _margin_rows_sorted(distances, *of_labels, weights[anchors], margin)
            sums += torch.stack([loss, active, *_totals(distances, *of_labels)])
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(pairs.gradients(weights)[0])
        loss, active, n_triplets, to_positives, to_negatives = sums.to(embeddings.dtype)
        # a softplus is above 0 everywhere
        results = n_triplets, n_triplets.clone() if margin is None else active, to_positives, to_negatives
        ctx.mark_non_differentiable(*results)
        return loss, *results

    @staticmethod
    @first_order_only
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return ctx.saved_tensors[0] * gradient, None, None


# Rows of distances below are those of a few anchors. ``weights`` is written.


def _positives_and_negatives(distances: Tensor, items: Tensor, is_other: Tensor) -> tuple[Tensor, Tensor]:
    """Distances to positives, -inf for padding, and those to negatives, inf for items of the label."""
    positives = distances.gather(1, items).masked_fill_(~is_other, -torch.inf)
    return positives, distances.clone().scatter_(1, items, torch.inf)


def _margin_rows(
    distances: Tensor, items: Tensor, is_other: Tensor, weights: Tensor, margin: float
) -> tuple[Tensor, Tensor]:
    positives, negatives = _positives_and_negatives(distances, items, is_other)
    n_negatives = torch.zeros_like(positives)  # active ones, of a positive
    n_positives = weights.zero_()  # active ones, of a negative; negative
    loss = distances.new_zeros(())
    excess = torch.empty_like(negatives)
    for k in range(1, items.shape[1]):
        torch.sub(positives[:, k, None] + margin, negatives, out=excess).relu_()
        loss += excess.sum()
        n_negatives[:, k] = excess.sign_().sum(dim=1)
        n_positives.sub_(excess)
    weights.scatter_(1, items, n_negatives)
    return loss, n_negatives.sum()


def _margin_rows_sorted(
    distances: Tensor, items: Tensor, is_other: Tensor, weights: Tensor, margin: float
) -> tuple[Tensor, Tensor]:
    """As :func:`_margin_rows`, for many positives: among them, sorted, a negative has its place."""
    positives, negatives = _positives_and_negatives(distances, items, is_other)
    limits, order = (positives + margin).sort(dim=1)
    place = torch.searchsorted(limits, negatives, right=True)  # behind the limits that it is not below
    n_positives = (items.shape[1] - place).to(distances.dtype)
    at_place = torch.zeros_like(F.pad(limits, (0, 1))).scatter_add_(1, place, torch.ones_like(negatives))
    n_sorted = at_place.cumsum(dim=1)[:, :-1]
    n_negatives = torch.empty_like(limits).scatter_(1, order, n_sorted)
    gained = (n_sorted.double() * limits.masked_fill(limits.isinf(), 0)).sum()
    loss = gained - (n_positives.double() * distances).sum()
    torch.neg(n_positives, out=weights).scatter_(1, items, n_negatives)
    return loss.to(distances.dtype), n_negatives.sum()


def _soft_rows(
    distances: Tensor, items: Tensor, is_other: Tensor, weights: Tensor, longest: float
) -> tuple[Tensor, Tensor]:
    positives, negatives = _positives_and_negatives(distances, items, is_other)
    slopes = torch.zeros_like(positives)
    weights.zero_()
    loss = distances.new_zeros(())
    if longest <= _LONGEST:
        exp_positives, exp_negatives = positives.exp_(), negatives.neg_().exp_()
        product = torch.zeros_like(negatives)  # of 1 + exp(gap) over some positives, less 1
        at_a_time = int(80 / math.log1p(math.exp(longest)))
        ratio, denominator = torch.empty_like(negatives), torch.empty_like(negatives)
        for k in range(1, items.shape[1]):
            torch.mul(exp_positives[:, k, None], exp_negatives, out=ratio)
            product.addcmul_(product, ratio).add_(ratio)
            if k % at_a_time == 0 or k == items.shape[1] - 1:
                loss += _log1p(product).sum()
                product.zero_()
            ratio.div_(torch.add(ratio, 1, out=denominator))
            slopes[:, k] = ratio.sum(dim=1)
            weights.sub_(ratio)
    else:
        for k in range(1, items.shape[1]):
            gap = positives[:, k, None] - negatives
            loss += F.softplus(gap).sum()
            slope = gap.sigmoid_()
            slopes[:, k] = slope.sum(dim=1)
            weights.sub_(slope)
    weights.scatter_(1, items, slopes)
    return loss, distances.new_zeros(())


def _log1p(x: Tensor) -> Tensor:
    """For ``x`` of 0 or more: ten times faster on a CPU than torch's, which is not vectorised."""
    above = x + 1
    rounded = (above - 1).clamp_(min=torch.finfo(x.dtype).tiny)
    return above.log_() * (x / rounded)  # log is exact for the rounded argument; the ratio makes up for the rounding


def _totals(distances: Tensor, items: Tensor, is_other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Number of triplets, and sums over them of the distances to positives and to negatives."""
    own = distances.gather(1, items) * is_other
    n_positives = is_other.sum(dim=1)
    n_negatives = distances.shape[1] - 1 - n_positives
    to_positives = own.sum(dim=1)
    to_negatives = distances.sum(dim=1) - to_positives
    n_triplets = (n_positives * n_negatives).sum().to(distances.dtype)
    return n_triplets, (n_negatives * to_positives).sum(), (n_positives * to_negatives).sum()
