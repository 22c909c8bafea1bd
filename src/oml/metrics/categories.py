"""Items by their category."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor


def positions_by_category(categories: Any) -> dict[str | int, Int[Tensor, " item"]]:
    """Every category, in order, with the positions of its items, in one pass.

    Args:
        categories: of the items: a list, array or tensor of texts or whole numbers.

    Example:
        >>> positions_by_category(["b", "a", "b"])
        {'a': tensor([1]), 'b': tensor([0, 2])}
    """
    values, inverse = np.unique(np.asarray(categories), return_inverse=True)
    order = torch.from_numpy(np.argsort(inverse, kind="stable"))
    counts = np.bincount(inverse, minlength=len(values)).tolist()
    return dict(zip(values.tolist(), order.split(counts), strict=True))
