"""New distances for the first of a ranking, and what that does to the others."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

_STEP = 1e-5  # from the re-ranked galleries to the others
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def rerank_top(
    ids: Int[Tensor, "query rank"], distances: Float[Tensor, "query rank"], top_distances: Float[Tensor, "query top"]
) -> tuple[Int[Tensor, "query rank"], Float[Tensor, "query rank"]]:
    """Rankings whose first places have new distances: these in their order, and the others moved behind them.

    All others of a row are moved by one number, which may be negative::

        new_i = old_i + max(top_distances) - old_first + 1e-5

    so they keep their order and differences, and start just above the re-ranked ones. Where numbers are so large that
    rounding would make different distances equal, each is at least the next number after the one before it. Equal new
    distances leave the order as it was.

    Args:
        ids: what is ranked.
        distances: ascending, infinite where a row has ended.
        top_distances: the new ones of the first in each row, finite where those were, and infinite where not.

    Returns:
        Ids and distances of the new rankings.

    Example:
        >>> rerank_top(torch.tensor([[4, 7, 5]]), torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.5, 0.25]]))
        (tensor([[7, 4, 5]]), tensor([[0.2500, 0.5000, 0.5000]]))
    """
    n = top_distances.shape[1]
    top, order = top_distances.sort(dim=1, stable=True)
    ids = torch.cat([ids[:, :n].gather(1, order), ids[:, n:]], dim=1)
    old = distances[:, n:]
    if old.shape[1] == 0:
        return ids, top
    wide = torch.promote_types(old.dtype, torch.float32)
    last = top[:, -1:]  # infinite only where there are no others
    start = torch.maximum((last.to(wide) + _STEP).to(last.dtype), _from_order(_to_order(last) + 1, last.dtype))
    new = (start.to(wide) + (old.to(wide) - old[:, :1].to(wide))).to(old.dtype)
    rises = torch.cat([torch.zeros_like(old[:, :1]), old[:, 1:] > old[:, :-1]], dim=1).long().cumsum(dim=1)
    places = (_to_order(new) - rises).cummax(dim=1).values + rises
    largest = _to_order(torch.full_like(last, torch.finfo(last.dtype).max))
    new = _from_order(places.minimum(largest), old.dtype).masked_fill(old.isinf(), torch.inf)
    return ids, torch.cat([top, new], dim=1)


def _to_order(values: Float[Tensor, "row column"]) -> Int[Tensor, "row column"]:
    """Integers in the order of floating point numbers, one for each: that after a number is the next number's."""
    integer = _INTEGERS[values.element_size()]
    bits = values.contiguous().view(integer).long()
    return torch.where(bits < 0, (bits ^ torch.iinfo(integer).max) + 1, bits)  # both zeros are 0


def _from_order(order: Int[Tensor, "row column"], dtype: torch.dtype) -> Float[Tensor, "row column"]:
    """The numbers that :func:`_to_order` made integers of."""
    integer = _INTEGERS[dtype.itemsize]
    return torch.where(order < 0, (order - 1) ^ torch.iinfo(integer).max, order).to(integer).view(dtype)
