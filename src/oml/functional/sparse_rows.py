"""Sparse rows: a few numbers in a few columns of each."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class SparseRows(NamedTuple):
    """Row i has the ``values[starts[i] : starts[i + 1]]`` in the ``columns[starts[i] : starts[i + 1]]``, ascending.

    Example:
        >>> rows = SparseRows(torch.tensor([0, 1, 3]), torch.tensor([0, 0, 1]), torch.tensor([1.0, 0.5, 0.5]))
        >>> rows.columns[rows.starts[1] : rows.starts[2]]
        tensor([0, 1])
    """

    starts: Int[Tensor, " row_or_end"]
    columns: Int[Tensor, " entry"]
    values: Float[Tensor, " entry"]


def joined_rows(parts: Sequence[tuple[Tensor, Tensor, Tensor]]) -> SparseRows:
    """Of numbers of entries, columns and values of some rows each."""
    counts, columns, values = (torch.cat(part) for part in zip(*parts, strict=True))
    return SparseRows(starts_of(counts), columns, values)


def starts_of(counts: Int[Tensor, " row"]) -> Int[Tensor, " row_or_end"]:
    """Where rows of so many entries begin, and the end."""
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def ranges(
    starts: Int[Tensor, " range"], counts: Int[Tensor, " range"]
) -> tuple[Int[Tensor, " number"], Int[Tensor, " number"]]:
    """The numbers ``start ... start + count - 1`` of all ranges behind each other, and of which range each is."""
    which = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    numbers = (starts - starts_of(counts)[:-1]).index_select(0, which)
    return which, numbers.add_(torch.arange(len(which), device=which.device))


def looked_up(
    ascending: Int[Tensor, "row known"], wanted: Int[Tensor, "row wanted"]
) -> tuple[Int[Tensor, "row wanted"], Bool[Tensor, "row wanted"]]:
    """Where in the same row the wanted numbers stand, if they do."""
    place = torch.searchsorted(ascending, wanted.to(ascending.dtype)).clamp_(max=ascending.shape[1] - 1)
    return place, ascending.gather(1, place) == wanted
