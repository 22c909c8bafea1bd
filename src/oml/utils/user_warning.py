"""Warnings that point to the user's code."""

import sys
import warnings

_NOT_THE_USER = ("oml", "torch", "pytorch_lightning", "lightning", "jaxtyping", "beartype", "contextlib")


def warn_user(message: str) -> None:
    """A warning at the nearest caller outside of OML and what it stands on."""
    level = 1
    while level < 50:
        try:
            name = sys._getframe(level).f_globals.get("__name__", "")
        except ValueError:  # there is no further caller
            break
        if name.split(".")[0] not in _NOT_THE_USER:
            break
        level += 1
    warnings.warn(message, stacklevel=level + 1)
