"""Draws that depend on a key alone, whatever was drawn before."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

_drawing: object | None = None


@contextmanager
def draws_of(seed: int, *key: int) -> Iterator[None]:
    """What the body draws from the global generators of torch (CPU), numpy and Python depends on seed and key alone.

    Afterwards the three go on as if nothing had happened. Transforms of albumentations, which have generators of their
    own, join in if they are called through :func:`oml.transforms.images.utils.as_callable`, as data sets do.

    Args:
        seed, key: whole numbers, 0 or more, such as the epoch and the number of a batch.

    Example:
        >>> def drawn(*key: int) -> float:
        ...     with draws_of(0, *key):
        ...         return random.random()
        >>> drawn(1, 2) == drawn(1, 2), drawn(1, 2) == drawn(2, 1)
        (True, False)
    """
    global _drawing
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    words = np.random.SeedSequence(seed, spawn_key=key).generate_state(12)
    torch.default_generator.manual_seed(_number(words[:2]))  # torch.manual_seed is also of the devices
    np.random.seed(words[2:6])  # noqa: NPY002
    random.seed(_number(words[6:]))
    outer, _drawing = _drawing, object()
    try:
        yield
    finally:
        _drawing = outer
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])


def present_draws() -> object | None:
    """An object that stands for the innermost :func:`draws_of` that this is called in; ``None`` outside of any."""
    return _drawing


def _number(words: np.ndarray) -> int:
    return int.from_bytes(words.tobytes(), "little")
