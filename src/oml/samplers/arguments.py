"""What all samplers do with their arguments."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int64
from numpy import ndarray
from torch import Tensor

TLabels = Sequence[int] | np.ndarray | Tensor


def whole_number(owner: str, name: str, value: object, least: int, most: int | None = None, limit: str = "") -> int:
    """The value, if it is an integer from ``least`` to ``most``; ``limit`` says in words what ``most`` is.

    Raises:
        TypeError: if it is no integer; a bool is none.
        ValueError: if it is out of range.

    Example:
        >>> whole_number("BalanceSampler", "n_labels", 8, 2, most=5, limit="the number of labels")
        Traceback (most recent call last):
        ValueError: BalanceSampler needs n_labels between 2 and the number of labels, 5, got 8.
    """
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise TypeError(f"{owner} needs a whole number as {name}, got {value!r}.")
    if value < least or (most is not None and value > most):
        span = f"of {least} or more" if most is None else f"between {least} and {limit}, {most}"
        raise ValueError(f"{owner} needs {name} {span}, got {value}.")
    return int(value)


def label_array(owner: str, labels: TLabels, what: str = "labels") -> Int64[ndarray, " label"]:
    """The labels as a numpy array of one dimension; one that is already right is not copied. Messages say ``what``.

    Raises:
        TypeError: if they are not integers.
        ValueError: if there are none, or not one of them per item.

    Example:
        >>> label_array("BalanceSampler", [3, 3, 5])
        array([3, 3, 5])
    """
    try:
        array = labels.numpy(force=True) if isinstance(labels, Tensor) else np.asarray(labels)
    except ValueError as error:  # rows of different lengths
        raise ValueError(f"{owner} needs one integer label per item, got {what} of several lengths.") from error
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{owner} needs one integer label per item, got {what} of shape {array.shape}.")
    if array.dtype.kind not in "iu" or not np.can_cast(array.dtype, np.int64):
        raise TypeError(
            f"{owner} needs {what} that are integers of at most 64 bits with a sign, got {array.dtype}, such as "
            f"{array[:3].tolist()}. Number the labels: numpy.unique(labels, return_inverse=True)[1] does."
        )
    return array.astype(np.int64, copy=False)


def blocks(n_batches: int, batch_size: int) -> Iterator[slice]:
    """Which batches are drawn at a time: enough of them to spread the cost of a call, few enough to stay lazy.

    Example:
        >>> list(blocks(300, 256))
        [slice(0, 128, None), slice(128, 256, None), slice(256, 300, None)]
    """
    step = max(1, 2**15 // batch_size)
    for start in range(0, n_batches, step):
        yield slice(start, min(start + step, n_batches))
