"""Retrieval: the results of a search, and their pictures."""

from oml.functional.nothing_to_find import NothingToFindError
from oml.retrieval.results import RetrievalResults

__all__ = ["NothingToFindError", "RetrievalResults"]
