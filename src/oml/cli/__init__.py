"""The ``oml`` command. Modules of this package import what is slow inside their functions."""

from oml.cli.app import main

__all__ = ["main"]
