"""Losses are computed in float32 at least, whatever precision the model works in."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

_P = ParamSpec("_P")
_R = TypeVar("_R")


def in_full_precision(compute: Callable[_P, _R]) -> Callable[_P, _R]:
    """A function that gets its half-precision tensors as float32 and runs without autocast.

    Sums over a batch, exponents of logits and differences of distances lose too much in 8 or 11 bits. Gradients go
    back in the precision in which the tensors came; float32 and float64 tensors are passed on as they are.

    Example:
        >>> mean = in_full_precision(lambda x: x.mean())
        >>> mean(torch.ones(3, dtype=torch.bfloat16)).dtype
        torch.float32
    """

    @wraps(compute)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        values = [*args, *kwargs.values()]
        device = next((value.device.type for value in values if isinstance(value, Tensor)), "cpu")
        with without_autocast(device):
            wide: Any = [_widened(value) for value in args]
            return compute(*wide, **{key: _widened(value) for key, value in kwargs.items()})

    return run


def without_autocast(device: str) -> AbstractContextManager[Any]:
    """A context in which this kind of device computes in the types of its inputs."""
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def _widened(value: Any) -> Any:
    half = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if half else value
