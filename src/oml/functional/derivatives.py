"""Gradients that are written by hand."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch

_R = TypeVar("_R")


def first_order_only(backward: Callable[..., _R]) -> Callable[..., _R]:
    """A backward pass of an ``autograd.Function`` that refuses ``create_graph=True``.

    Its result has no graph, so that second derivatives through it would lack terms; torch's ``once_differentiable``
    leaves that unnoticed where the incoming gradient is a constant, as that of a loss is.
    """

    @wraps(backward)
    def run(ctx: Any, *gradients: Any) -> _R:
        if torch.is_grad_enabled():
            raise RuntimeError(
                f"{type(ctx).__name__.removesuffix('Backward').lstrip('_')} of OML has no second derivatives, which "
                "create_graph=True asks for, as for a penalty on gradients. Compute without it."
            )
        return backward(ctx, *gradients)

    return run
