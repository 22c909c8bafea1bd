"""Differentiable stand-ins for metrics of a ranking: the step functions in them become sigmoids."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from oml.functional.arguments import whole_numbers
from oml.functional.derivatives import first_order_only
from oml.functional.precision import in_full_precision

_NUMBERS = 2**20  # of the comparisons that are held at a time: 4 MiB of float32


@in_full_precision
def surrogate_recall(
    similarities: Float[Tensor, "query gallery"],
    mask_gt: Bool[Tensor, "query gallery"] | Int[Tensor, "query gallery"] | Float[Tensor, "query gallery"],
    k_values: Sequence[int],
    t1: int | float,
    t2: int | float,
) -> Float[Tensor, " query"]:
    """Recall@k with a gradient, mean over ``k_values``, for each query (Patel, Tolias, Matas, CVPR 2022).

    For one ``k``: ``sum over relevant p of sigmoid((k - rank(p)) / t1) / min(k, n_relevant)``, where
    ``rank(p) = 1 + sum over z != p of sigmoid((s(z) - s(p)) / t2)``. The sum goes over all other items of the
    gallery, relevant ones too; so the first rank is 1, and an item of rank exactly ``k`` counts by half (in
    :func:`oml.functional.losses.surrogate_precision` ranks start at 0.5, and it counts in full). Recall here is
    found / ``min(k, relevant)``; what papers on metric learning call Recall@k is cmc@k. A query with no relevant item
    has a recall of 0.

    Memory is that of ``similarities`` whatever the size, as comparisons are made in blocks, and once more for the
    gradient. Time grows with ``query * gallery * (largest number of relevant items of a query)``.

    Args:
        similarities: larger is closer. Items that a query must ignore, such as itself, are at ``-inf`` and not in
            ``mask_gt``.
        mask_gt: true (or 1) where the gallery item is relevant for the query.
        k_values: how many of the first ranks count, each above 0.
        t1: temperature of the comparison of ranks with ``k``, in ranks.
        t2: temperature of the comparison of similarities, in their unit.

    Raises:
        TypeError: ``k_values`` are no sequence of ints.
        ValueError: ``k_values`` are none or not above 0, or a temperature is not, or the shapes differ.

    Example:
        >>> similarities = torch.tensor([[0.9, 0.8, 0.7, 0.6]])
        >>> is_relevant = torch.tensor([[True, False, True, False]])
        >>> surrogate_recall(similarities, is_relevant, k_values=[1, 3], t1=1e-3, t2=1e-3)  # (0.5 + 1.5 / 2) / 2
        tensor([0.6250])
    """
    k_values = whole_numbers("surrogate_recall", "k_values", k_values)
    check_ranking("surrogate_recall", similarities, mask_gt, t1, t2)
    ranks, is_relevant = ranks_of_relevant(-similarities, mask_gt, t2)
    ranks = ranks + 0.5  # the item is to count for 1: it was compared with itself, which gave 0.5
    recalls = [found_within_k(ranks, is_relevant, k, t1) for k in k_values]
    return torch.stack(recalls).mean(dim=0)


def check_ranking(owner: str, values: Tensor, mask_gt: Tensor, *temperatures: int | float) -> None:
    """Raise ``ValueError`` unless there are two matrices of one shape, and temperatures above 0."""
    if values.ndim != 2 or values.shape != mask_gt.shape:
        raise ValueError(
            f"{owner} needs two matrices (query, gallery), got {tuple(values.shape)} and {tuple(mask_gt.shape)}."
        )
    if not all(temperature > 0 for temperature in temperatures):
        raise ValueError(f"{owner} needs temperatures above 0, got {' and '.join(map(str, temperatures))}.")


def ranks_of_relevant(
    distances: Float[Tensor, "query gallery"],
    mask_gt: Bool[Tensor, "query gallery"] | Int[Tensor, "query gallery"] | Float[Tensor, "query gallery"],
    temperature: int | float,
) -> tuple[Float[Tensor, "query relevant"], Bool[Tensor, "query relevant"]]:
    """Smooth ranks of the relevant items of each query, and which of them exist: some queries have fewer.

    Ranks of the others are never asked for, which leaves ``n_instances / batch`` of the work. To know the number
    of columns costs one wait for the device.
    """
    relevant = mask_gt != 0
    n_relevant = relevant.sum(dim=1)
    is_relevant, ids = relevant.byte().topk(int(n_relevant.amax()) if len(n_relevant) else 0, dim=1)
    is_relevant = is_relevant.bool()
    values = distances.gather(1, ids).masked_fill(~is_relevant, 0)
    return smooth_ranks(values, distances, temperature), is_relevant


def found_within_k(
    ranks: Float[Tensor, "query relevant"],
    is_relevant: Bool[Tensor, "query relevant"],
    k: int,
    t1: int | float,
) -> Float[Tensor, " query"]:
    """``sum over relevant items of sigmoid((k - rank) / t1) / min(k, n_relevant)``, 0 for none."""
    found = torch.sigmoid((k - ranks) / t1) * is_relevant
    return found.sum(dim=1) / is_relevant.sum(dim=1).clamp(1, k)


def smooth_ranks(
    values: Float[Tensor, "query value"], distances: Float[Tensor, "query gallery"], temperature: int | float
) -> Float[Tensor, "query value"]:
    """How many ``distances`` of a query lie below each of its ``values``, one at the value counting by half.

    ``sum over g of sigmoid((value - distances[g]) / temperature)``. The ``(query, value, gallery)`` comparisons are
    made in blocks, and again in the backward pass. Values are finite; distances may be infinite.

    Example:
        >>> smooth_ranks(torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 2.0, 3.0]]), temperature=1e-3)
        tensor([[0.5000, 2.5000]])
    """
    ranks = _SmoothRanks.apply(values, distances, temperature)
    assert isinstance(ranks, Tensor)
    return ranks


class _SmoothRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, distances: Tensor, temperature: int | float) -> Tensor:
        ctx.save_for_backward(values, distances)
        ctx.temperature = temperature
        ranks = torch.zeros_like(values)
        for rows, columns in _blocks(values, distances):
            gaps = values[rows, columns, None] - distances[rows, None]
            ranks[rows, columns] = gaps.div_(temperature).sigmoid_().sum(dim=2)
        return ranks

    @staticmethod
    @first_order_only
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        values, distances = ctx.saved_tensors
        of_values, of_distances = torch.zeros_like(values), torch.zeros_like(distances)
        for rows, columns in _blocks(values, distances):
            gaps = values[rows, columns, None] - distances[rows, None]
            # the slope s (1 - s) is even: taken at -|gap|, 1 - s does not cancel
            below = gaps.abs_().div_(-ctx.temperature).sigmoid_()
            slopes = below.mul_(1 - below).mul_(gradient[rows, columns, None] / ctx.temperature)
            of_values[rows, columns] = slopes.sum(dim=2)
            of_distances[rows] -= slopes.sum(dim=1)
        return of_values, of_distances, None


def _blocks(values: Tensor, distances: Tensor) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of ``values`` such that a block of comparisons has about ``_NUMBERS`` numbers."""
    (n_rows, n_columns), width = values.shape, max(1, distances.shape[1])
    columns = max(1, min(n_columns, _NUMBERS // width))
    rows = max(1, _NUMBERS // (width * columns))
    for row in range(0, n_rows, rows):
        for column in range(0, n_columns, columns):
            yield slice(row, row + rows), slice(column, column + columns)
