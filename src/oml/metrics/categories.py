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

    Raises:
        ValueError: if some are empty, or there are texts and numbers.

    Example:
        >>> positions_by_category(["b", "a", "b"])
        {'a': tensor([1]), 'b': tensor([0, 2])}
    """
    listed = list(categories) if isinstance(categories, list | tuple) else categories.tolist()
    fits = _is_text if listed and _is_text(listed[0]) else _is_whole  # numpy would make a text of a gap between texts
    if bad := [item for item, category in enumerate(listed) if not fits(category)]:
        raise ValueError(
            f"Categories need to be all texts or all whole numbers, got {listed[bad[0]]!r} of item {bad[0]}"
            f"{f', and {len(bad) - 1} more that differ from the first' if len(bad) > 1 else ''}. Fill gaps with a name."
        )
    values, inverse = np.unique(np.asarray(listed), return_inverse=True)
    order = torch.from_numpy(np.argsort(inverse, kind="stable"))
    counts = np.bincount(inverse, minlength=len(values)).tolist()
    return dict(zip(values.tolist(), order.split(counts), strict=True))


def _is_text(category: Any) -> bool:
    return isinstance(category, str)


def _is_whole(category: Any) -> bool:
    return isinstance(category, int | np.integer) or (isinstance(category, float) and category.is_integer())
