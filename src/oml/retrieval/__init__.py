"""Retrieval: the results of a search, and their pictures."""

from oml.retrieval.results import NothingToFindError, RetrievalResults

__all__ = ["NothingToFindError", "RetrievalResults"]
