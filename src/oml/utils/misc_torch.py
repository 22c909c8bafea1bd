"""Helpers for tensors, under the import path that callers know."""

from oml.functional.distances import elementwise_dist, normalise, pairwise_dist

__all__ = ["elementwise_dist", "normalise", "pairwise_dist"]
