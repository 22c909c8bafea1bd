"""Arguments, checked."""

from collections.abc import Sequence


def whole_numbers(owner: str, name: str, values: object) -> tuple[int, ...]:
    """The values, if they are a sequence of ints of 1 or more, and at least one.

    Args:
        owner: who asks, for the message.
        name: of the argument, for the message.
        values: what came.

    Raises:
        TypeError: they are no sequence, such as an array or one number, or not all are ints; a bool is none.
        ValueError: there are none, or some are below 1.

    Example:
        >>> whole_numbers("RecallAtKSurrogate", "k_values", [1, 2, 4])
        (1, 2, 4)
    """
    if not isinstance(values, Sequence) or not all(isinstance(v, int) and not isinstance(v, bool) for v in values):
        raise TypeError(
            f"{owner} needs a list or tuple of ints as {name}, got {type(values).__name__} {str(values)[:100]}."
        )
    if not values or min(values) < 1:
        raise ValueError(f"{owner} needs {name} of 1 or more, and at least one, got {list(values)}.")
    return tuple(values)
