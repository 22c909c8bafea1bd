"""Loggers that fail stop no training."""

import warnings
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any

from pytorch_lightning.loggers.logger import Logger

_METHODS = ("log_metrics", "log_hyperparams", "log_graph", "save", "finalize", "after_save_checkpoint")
_GUARD = "_oml_guard"
_REST = 20  # times as long as it took to fail


class _Guard:
    """Calls that warn where they would raise, once for all that a logger does."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._warned = False
        self._rests_until = 0.0

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if (start := monotonic()) < self._rests_until:
            return None
        try:
            return function(*args, **kwargs)
        except Exception as error:
            end = monotonic()
            self._rests_until = end + _REST * (end - start)
            if not self._warned:
                self._warned = True
                warnings.warn(f"{self._name} fails; the training goes on. It raised {error!r}.", stacklevel=2)
            return None


def keep_training(logger: Logger) -> Logger:
    """Let the logger warn where it would raise, once: a server that is gone or a full disk is to stop no training.

    After a failure it is left alone for twenty times as long as the failure took, so that waiting for a server takes
    a twentieth of the time at most; then it is tried again. ``KeyboardInterrupt`` and the like pass.

    Returns:
        The logger itself, whose methods are replaced.
    """
    if not hasattr(logger, _GUARD):
        guard = _Guard(type(logger).__name__)
        setattr(logger, _GUARD, guard)
        for name in _METHODS:
            setattr(logger, name, partial(guard, partial(getattr(type(logger), name), logger)))
    return logger


def attempt(logger: Logger, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function that logs something by its own means: errors are warnings if :func:`keep_training` was called."""
    guard = getattr(logger, _GUARD, None)
    return function(*args) if guard is None else guard(function, *args)
