"""Losses that compare embeddings with a vector (proxy) per label, as functions of their cosines.

Cosines come first, ``(batch, label)``; what a loss does with the column of an item's own label touches nothing else of
that matrix, as it is the largest thing in memory when there are many labels.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from oml.functional.derivatives import first_order_only
from oml.functional.distances import normalise
from oml.functional.precision import in_full_precision


@in_full_precision
def cosines_to_proxies(
    embeddings: Float[Tensor, "batch dim"], proxies: Float[Tensor, "label dim"]
) -> Float[Tensor, "batch label"]:
    """The cosine of the angle between each embedding and each proxy; 0 where one of the two is all zeros.

    Rounding may bring it above 1 by a few units of the last digit. If the two types differ, it has the wider one.

    Args:
        embeddings: of any length.
        proxies: of any length; no normalised copy of them is made.

    Example:
        >>> cosines_to_proxies(torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 0.0], [0.0, -1.0]]))
        tensor([[ 0.6000, -0.8000]])
    """
    dtype = torch.promote_types(embeddings.dtype, proxies.dtype)
    cosines = _Cosines.apply(normalise(embeddings.to(dtype)), proxies.to(dtype))
    assert isinstance(cosines, Tensor)
    return cosines


@in_full_precision
def cosines_to_nearest_centers(
    embeddings: Float[Tensor, "batch dim"], centers: Float[Tensor, "center dim"], n_centers: int
) -> Float[Tensor, "batch label"]:
    """The largest of the cosines with the ``n_centers`` centers of each label (Deng et al. 2020, "Sub-center ArcFace").

    Only that center gets a gradient.

    Args:
        embeddings: of any length.
        centers: those of label 0 first, then those of label 1, and so on.
        n_centers: how many a label has.

    Example:
        >>> centers = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
        >>> cosines_to_nearest_centers(torch.tensor([[3.0, 4.0]]), centers, n_centers=2)
        tensor([[ 0.8000, -0.6000]])
    """
    cosines = cosines_to_proxies(embeddings, centers)
    return cosines if n_centers == 1 else cosines.unflatten(1, (-1, n_centers)).max(dim=2).values


@in_full_precision
def add_angular_margin(cosines: Float[Tensor, "..."], margin: int | float) -> Float[Tensor, "..."]:
    """``cos(angle + margin)``, or ``cosine - margin * sin(margin)`` where the sum would be above pi.

    The second form keeps it decreasing there. At ``cosine = 1`` the true slope is infinite; it counts as
    ``cos(margin)`` there, so that the gradient is finite everywhere.

    Args:
        cosines: of an embedding with the proxy of its own label; numbers beyond 1 count as angles of 0 or pi.
        margin: in radians, from 0 to pi.

    Example:
        >>> add_angular_margin(torch.tensor([1.0, 0.0, -1.0]), margin=0.5)
        tensor([ 0.8776, -0.4794, -1.2397])
    """
    # below this floor, which no rounded number but 0 is, clamp has a gradient of 0, and the root a finite one
    sines = ((1 - cosines) * (1 + cosines)).clamp(min=torch.finfo(cosines.dtype).tiny).sqrt()
    added = cosines * math.cos(margin) - sines * math.sin(margin)
    return torch.where(cosines > -math.cos(margin), added, cosines - margin * math.sin(margin))


@in_full_precision
def arcface_logits(
    cosines: Float[Tensor, "batch label"], labels: Int[Tensor, " batch"], margin: int | float, scale: int | float
) -> Float[Tensor, "batch label"]:
    """``scale * cosines``, with the angular margin added at the labels (Deng et al. 2019, "ArcFace").

    Args:
        cosines: of embeddings and proxies.
        labels: of 0 to ``label - 1``.
        margin: see :func:`add_angular_margin`.
        scale: multiplies cosines.

    Example:
        >>> arcface_logits(torch.tensor([[0.0, 0.5]]), torch.tensor([0]), margin=0.5, scale=10)
        tensor([[-4.7943,  5.0000]])
    """
    own = labels.long()[:, None]
    return (scale * cosines).scatter_(1, own, scale * add_angular_margin(cosines.gather(1, own), margin))


@in_full_precision
def cosface_logits(
    cosines: Float[Tensor, "batch label"], labels: Int[Tensor, " batch"], margin: int | float, scale: int | float
) -> Float[Tensor, "batch label"]:
    """``scale * cosines``, with ``scale * margin`` taken off at the labels (Wang et al. 2018, "CosFace").

    Args:
        cosines: of embeddings and proxies.
        labels: of 0 to ``label - 1``.
        margin: what the cosine with the own proxy must win by.
        scale: multiplies cosines.

    Example:
        >>> cosface_logits(torch.tensor([[0.0, 0.5]]), torch.tensor([0]), margin=0.25, scale=10)
        tensor([[-2.5000,  5.0000]])
    """
    own = labels.long()[:, None]
    return (scale * cosines).scatter_add_(1, own, torch.full_like(own, -scale * margin, dtype=cosines.dtype))


@in_full_precision
def proxy_anchor_loss(
    cosines: Float[Tensor, "batch label"], labels: Int[Tensor, " batch"], margin: int | float, scale: int | float
) -> Float[Tensor, ""]:
    """Proxies pull the items of their label and push all others (Kim et al. 2020, "Proxy Anchor Loss").

    The mean over the proxies with items of their label of ``log(1 + sum(exp(-scale * (cosine - margin))))`` over those
    items, plus the mean over all proxies of ``log(1 + sum(exp(scale * (cosine + margin))))`` over the other items.
    An empty batch gives 0.

    Args:
        cosines: of embeddings and proxies.
        labels: of 0 to ``label - 1``.
        margin: own items are pulled up to a cosine of about ``margin``, others pushed down to ``-margin``.
        scale: multiplies cosines.

    Example:
        >>> proxy_anchor_loss(torch.tensor([[1.0, -1.0]]), torch.tensor([0]), margin=0.0, scale=1.0)
        tensor(0.4699)
    """
    own = labels.long()[:, None]
    pulls = scale * (margin - cosines.gather(1, own)).squeeze(1)
    # row i holds the items of the label of item i, so a label of n items has n equal rows: each counts 1/n
    same = own == labels
    share = same.sum(dim=1).to(cosines.dtype).reciprocal()
    pull = F.softplus(pulls.where(same, -torch.inf).logsumexp(dim=1))
    # a proxy may have no other item: the lowest number gives a gradient of 0, where minus infinity would give NaN
    pushes = (scale * cosines).add_(scale * margin).scatter_(1, own, torch.finfo(cosines.dtype).min)
    push = F.softplus(pushes.logsumexp(dim=0))
    return (pull * share).sum() / share.sum().clamp(min=1) + push.mean()


class _Cosines(torch.autograd.Function):
    """Products of unit vectors and proxies, over the norms of the proxies: half the memory of normalising proxies."""

    @staticmethod
    def forward(ctx: Any, units: Tensor, proxies: Tensor) -> Tensor:
        norms = torch.linalg.vector_norm(proxies, dim=1)
        inverse = torch.where(norms == 0, 1, norms).reciprocal()
        cosines = (units @ proxies.T).mul_(inverse)
        ctx.save_for_backward(units, proxies, inverse, cosines)
        return cosines

    @staticmethod
    @first_order_only
    @in_full_precision  # a backward pass may run under autocast
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        # of a proxy p: (unit - cosine * p / |p|) / |p|
        units, proxies, inverse, cosines = ctx.saved_tensors
        along = (gradient * cosines).sum(dim=0) * inverse.square()
        gradient = gradient * inverse
        return gradient @ proxies, (gradient.T @ units).addcmul_(proxies, along[:, None], value=-1)
