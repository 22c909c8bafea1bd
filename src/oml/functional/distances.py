"""Distances between embeddings, for training: differentiable, with finite gradients everywhere."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from oml.functional.derivatives import first_order_only
from oml.functional.precision import in_full_precision

#: squared distance relative to squared norms below which a product of vectors of this type is not trusted
_NEAR = {torch.float32: 0.1, torch.float64: 1e-6}
_NUMBERS = 2**17  # of the vectors that are subtracted at a time: what caches hold, and allocators keep


def elementwise_dist(x1: Float[Tensor, "row dim"], x2: Float[Tensor, "row dim"], p: int = 2) -> Float[Tensor, " row"]:
    """The p-norm of ``x1[i] - x2[i]`` for each row ``i``, unsquared; where it is zero, its gradient is zero.

    Args:
        x1: Vectors.
        x2: As many vectors of the same size.
        p: Order of the norm: 2 for Euclidean distances.

    Raises:
        ValueError: The shapes differ or do not have two dimensions.

    Example:
        >>> elementwise_dist(torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([[3.0, 4.0], [1.0, 1.0]]))
        tensor([5., 0.])
    """
    if x1.ndim != 2 or x1.shape != x2.shape:
        raise ValueError(f"elementwise_dist needs two tensors (row, dim), got {tuple(x1.shape)} and {tuple(x2.shape)}.")
    return torch.linalg.vector_norm(x1 - x2, ord=p, dim=1)


def indexed_dist(
    x: Float[Tensor, "row dim"],
    ids1: Int[Tensor, " pair"],
    ids2: Int[Tensor, " pair"],
    known: Float[Tensor, " pair"] | None = None,
) -> Float[Tensor, " pair"]:
    """The L2 distance of ``x[ids1[i]]`` and ``x[ids2[i]]``, without a copy of the rows for each pair.

    So a million pairs of a batch need the memory of a million numbers, and many pairs that repeat are computed once,
    in the backward pass as well. Where a distance is zero, so is its gradient.

    Args:
        x: Vectors.
        ids1: Positions of the first of each pair.
        ids2: Positions of the second.
        known: The distances, if they are known: they lack but the gradient.

    Example:
        >>> indexed_dist(torch.tensor([[0.0], [3.0], [7.0]]), torch.tensor([0, 0]), torch.tensor([1, 2]))
        tensor([3., 7.])
    """
    if len(ids1) <= 4 * len(x):  # too few to look for repeats
        return _IndexedEuclidean.apply(x, ids1, ids2, known)  # pyright: ignore[reportReturnType]
    pairs, place = torch.unique(ids1 * len(x) + ids2, return_inverse=True)
    if known is not None:
        known = known.new_empty(len(pairs)).scatter_(0, place, known)
    distances = _IndexedEuclidean.apply(x, pairs // len(x), pairs % len(x), known)
    return distances.index_select(0, place)  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]


def pairwise_dist(
    x1: Float[Tensor, "row dim"], x2: Float[Tensor, "column dim"], p: int = 2
) -> Float[Tensor, "row column"]:
    """The p-norm of ``x1[i] - x2[j]`` for each pair, unsquared; where it is zero, its gradient is zero.

    Euclidean distances come from a matrix product, around the mean of the vectors; pairs so close that it would lose
    digits are subtracted, and if most are, the product is taken in float64. So they are as accurate as subtracting all
    of them, near-duplicates included (the same vector is at distance exactly 0), and far faster; norms may be
    1e-18 to 1e18. The gradient is one product more, or two if ``x1`` and ``x2`` are not the same tensor; there are no
    second derivatives.

    Args:
        x1: Vectors.
        x2: Vectors of the same size.
        p: Order of the norm: 2 for Euclidean distances.

    Raises:
        ValueError: The numbers of columns differ, or the tensors do not have two dimensions.

    Example:
        >>> pairwise_dist(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 0.0], [0.0, 4.0]]))
        tensor([[0., 4.],
                [5., 3.]])
    """
    if x1.ndim != 2 or x2.ndim != 2 or x1.shape[1] != x2.shape[1]:
        raise ValueError(
            "pairwise_dist needs tensors (row, dim) and (column, dim), "
            f"got shapes {tuple(x1.shape)} and {tuple(x2.shape)}."
        )
    if not (x1.is_floating_point() and x2.is_floating_point()):
        raise ValueError(f"pairwise_dist needs tensors of floats, got {x1.dtype} and {x2.dtype}.")
    if p != 2:
        return torch.cdist(x1, x2, p=p)
    distances = _PairwiseEuclidean.apply(x1, None if x2 is x1 else x2)
    assert isinstance(distances, Tensor)
    return distances


def normalise(x: Float[Tensor, "row dim"], p: int = 2) -> Float[Tensor, "row dim"]:
    """Rows divided by their p-norm; zero rows stay zero. The gradient is the true one, through the norm as well.

    So it has no component along the vector (for ``p = 2``). Rows are scaled by their largest number first: neither
    tiny nor huge ones are lost to rounding.

    Args:
        x: Vectors.
        p: Order of the norm.

    Raises:
        ValueError: The tensor does not have two dimensions.

    Example:
        >>> normalise(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    if x.ndim != 2:
        raise ValueError(f"normalise needs a tensor (row, dim), got shape {tuple(x.shape)}.")
    # x / |x| does not change with the scale of x, so the scale may count as a constant
    largest = x.detach().abs().amax(dim=1, keepdim=True)
    scaled = x / torch.where(largest < torch.finfo(x.dtype).tiny, 1, largest)
    norm = torch.linalg.vector_norm(scaled, ord=p, dim=1, keepdim=True)
    return scaled / torch.where(norm == 0, 1, norm)


class EuclideanPairs(NamedTuple):
    """The distances of all pairs of rows of two sets, or of one set, and what their gradients need."""

    distances: Float[Tensor, "row column"]
    #: the rows as they came, and around their common mean in the type of ``distances``; ``None`` for a set that is not
    x1: Float[Tensor, "row dim"]
    x2: Float[Tensor, "column dim"] | None
    centred1: Float[Tensor, "row dim"]
    centred2: Float[Tensor, "column dim"] | None
    #: positions of the pairs that were subtracted, other than a row and itself
    near1: Int[Tensor, " pair"]
    near2: Int[Tensor, " pair"]

    @in_full_precision  # for backward passes within autocast
    def gradients(self, weights: Float[Tensor, "row column"]) -> tuple[Tensor, Tensor | None]:
        """The gradients of both sets for ``weights`` of the distances; of one set, that in both roles and ``None``.

        The gradient of ``|a - b|`` is ``(a - b) / |a - b|``: rows are multiplied by the weights over the distances.
        ``weights``, of the type of ``distances``, are overwritten.
        """
        a, b = self.centred1, self.centred2
        near = self.near1, self.near2
        slopes = weights.div_(self.distances)
        near_slopes = slopes[near].masked_fill_(self.distances[near] == 0, 0)
        slopes[near] = 0  # a product would lose the digits of their differences
        if b is None:
            slopes.fill_diagonal_(0)
            slopes = slopes + slopes.T
            gradient_1 = gradient_2 = torch.addmm(slopes.sum(dim=1)[:, None] * a, slopes, a, alpha=-1)
        else:
            gradient_1 = torch.addmm(slopes.sum(dim=1)[:, None] * a, slopes, b, alpha=-1)
            gradient_2 = torch.addmm(slopes.sum(dim=0)[:, None] * b, slopes.T, a, alpha=-1)
        x2 = self.x1 if self.x2 is None else self.x2
        for rows, columns, slope in _parts(a.shape[1], *near, near_slopes):
            pull = _differences(self.x1, rows, x2, columns, a.dtype).mul_(slope[:, None])
            gradient_1.index_add_(0, rows, pull)
            gradient_2.index_add_(0, columns, pull, alpha=-1)
        return gradient_1.to(self.x1.dtype), None if b is None else gradient_2.to(x2.dtype)


@in_full_precision
@torch.no_grad()
def euclidean_pairs(x1: Float[Tensor, "row dim"], x2: Float[Tensor, "column dim"] | None = None) -> EuclideanPairs:
    """All pairs of a row of ``x1`` and one of ``x2``, or of ``x1`` itself; no graph. See :func:`pairwise_dist`."""
    wide = x1.dtype == torch.float64 or (x2 is not None and x2.dtype == torch.float64)
    narrow = None if wide or not _products_are_exact(x1.device) else _by_products(x1, x2, torch.float32)
    pairs = narrow or _by_products(x1, x2, torch.float64)
    assert pairs is not None, "only float32 gives up"
    return pairs


def _products_are_exact(device: torch.device) -> bool:
    """Whether products of float32 matrices are computed as such, not in TF32 or bfloat16."""
    if device.type == "mps":  # has no other type, whatever the precision
        return True
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # it was set by backend, which this function of torch does not cover
        return False


def _by_products(x1: Tensor, x2: Tensor | None, dtype: torch.dtype) -> EuclideanPairs | None:
    """Distances by a product in ``dtype``, those of near pairs by subtraction; ``None`` if float64 would be quicker."""
    a, b = x1.to(dtype), None if x2 is None else x2.to(dtype)
    centre = a.mean(dim=0) if b is None else (a.sum(dim=0) + b.sum(dim=0)) / (len(a) + len(b))
    centre.nan_to_num_(0, 0, 0)  # a broken row is not to spoil the others
    a, b = a - centre, None if b is None else b - centre
    other = a if b is None else b
    norms_1, norms_2 = a.square().sum(dim=1)[:, None], other.square().sum(dim=1)
    squared = torch.addmm(norms_2, a, other.T, alpha=-2).add_(norms_1)
    if b is None:
        squared.fill_diagonal_(torch.inf)
    near_1, near_2 = _not_above(squared, _NEAR[dtype] * norms_1, _NEAR[dtype] * norms_2)
    if dtype == torch.float32 and len(near_1) > squared.numel() // 8 and a.device.type != "mps":
        return None
    if b is None:
        squared.fill_diagonal_(0)
    distances = squared.clamp_(min=0).sqrt_()
    for rows, columns in _parts(a.shape[1], near_1, near_2):
        gaps = _differences(x1, rows, x1 if x2 is None else x2, columns, dtype)
        distances[rows, columns] = torch.linalg.vector_norm(gaps, dim=1)
    return EuclideanPairs(distances, x1, x2, a, b, near_1, near_2)


def _not_above(squared: Tensor, bounds_1: Tensor, bounds_2: Tensor) -> tuple[Tensor, Tensor]:
    """Positions at which ``squared`` is not above the sum of its row's and its column's bound."""
    excess = squared - bounds_2
    none = torch.empty(0, dtype=torch.int64, device=squared.device)
    if not excess.numel():
        return none, none
    # mostly no row or few: a minimum is quicker than a mask
    rows = (excess.amin(dim=1, keepdim=True) <= bounds_1).nonzero()[:, 0]
    if not len(rows):
        return none, none
    row, column = (excess.index_select(0, rows) <= bounds_1.index_select(0, rows)).nonzero(as_tuple=True)
    return rows[row], column


def _differences(x1: Tensor, ids1: Tensor, x2: Tensor, ids2: Tensor, dtype: torch.dtype) -> Tensor:
    return x1.index_select(0, ids1).to(dtype).sub_(x2.index_select(0, ids2).to(dtype))


def _parts(dim: int, *of_pairs: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The tensors, which have an entry per pair of vectors, in parts that are subtracted at a time."""
    size = max(1, _NUMBERS // max(1, dim))
    for start in range(0, len(of_pairs[0]), size):
        yield tuple(values[start : start + size] for values in of_pairs)


class _PairwiseEuclidean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x1: Tensor, x2: Tensor | None) -> Tensor:
        pairs = euclidean_pairs(x1, x2)
        ctx.save_for_backward(*pairs)
        return pairs.distances.to(x1.dtype if x2 is None else torch.promote_types(x1.dtype, x2.dtype))

    @staticmethod
    @first_order_only
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        pairs = EuclideanPairs(*ctx.saved_tensors)
        return pairs.gradients(gradient.to(pairs.distances.dtype, copy=True))


class _IndexedEuclidean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ids1: Tensor, ids2: Tensor, known: Tensor | None) -> Tensor:
        distances = x.new_empty(len(ids1))
        if known is not None:
            distances.copy_(known)
        else:
            for part, rows, columns in _parts(x.shape[1], distances, ids1, ids2):
                part.copy_(torch.linalg.vector_norm(_differences(x, rows, x, columns, x.dtype), dim=1))
        ctx.save_for_backward(x, ids1, ids2, distances)
        return distances

    @staticmethod
    @first_order_only
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, ids1, ids2, distances = ctx.saved_tensors
        slopes = (gradient / distances).masked_fill_(distances == 0, 0)
        result = torch.zeros_like(x)
        for rows, columns, slope in _parts(x.shape[1], ids1, ids2, slopes):
            pull = _differences(x, rows, x, columns, x.dtype).mul_(slope[:, None])
            result.index_add_(0, rows, pull)
            result.index_add_(0, columns, pull, alpha=-1)
        return result, None, None, None
