"""Where to cut a ranking: how many of the nearest to keep, for each query on its own."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from oml.functional.pair_blocks import row_sums


def n_within(distances: Float[Tensor, "query rank"], threshold: float | int) -> Int[Tensor, " query"]:
    """How many finite distances are at most ``threshold``; infinite ones are places without a gallery.

    Example:
        >>> n_within(torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, torch.inf]]), 0.2)
        tensor([2, 0])
    """
    return ((distances <= threshold) & distances.isfinite()).sum(dim=1)


def n_before_jump(distances: Float[Tensor, "query rank"], n_std: float | int) -> Int[Tensor, " query"]:
    """How many distances come before the biggest jump of a row, if that is uncommonly big; all of them otherwise.

    A jump is the difference of a distance and the next. The biggest one, the first of equals, is uncommon if it is
    larger than ``mean + n_std * std`` of all jumps of its row. The standard deviation has the number of jumps as
    denominator, so that ``m`` jumps can reach no ``n_std`` of ``sqrt(m - 1)`` or more, and a single jump none. What
    rounding of the distances may add to a jump is not counted.

    A row depends on no other one, and not on infinite distances at its end, which do not count. At least one is kept,
    if there is one.

    Args:
        distances: ascending in each row.
        n_std: 0 or more; the larger, the fewer rows are cut.

    Example:
        >>> n_before_jump(torch.tensor([[0.1, 0.2, 0.8, 0.9], [0.1, 0.2, 0.3, 0.4]]), n_std=1)
        tensor([2, 4])
    """
    n_found = distances.isfinite().sum(dim=1)
    if distances.shape[1] < 3:  # no jump is larger than the mean of them
        return n_found
    is_jump = distances[:, 1:].isfinite()
    finite = distances.masked_fill(distances.isinf(), 0)
    jumps = finite.diff(dim=1).masked_fill(~is_jump, 0)
    n_jumps = is_jump.sum(dim=1).clamp(min=1)
    mean = row_sums(jumps.clone()) / n_jumps
    variance = row_sums((jumps - mean[:, None]).masked_fill(~is_jump, 0).square()) / n_jumps
    biggest, place = jumps.max(dim=1)
    rounding = 4 * torch.finfo(distances.dtype).eps * finite.abs().amax(dim=1)
    return torch.where(biggest > mean + n_std * variance.sqrt() + rounding, place + 1, n_found)
