"""What re-ranks the results of a search."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from oml.retrieval.results import RetrievalResults


class Postprocessor(ABC):
    """Results of a search in, better ones out: of the same queries, in the same gallery.

    What a query was not to find, it does not find afterwards either. Results may have fewer items than before; their
    place at the end of a row has id -1 and an infinite distance.

    Attributes:
        top_n: how many of the nearest galleries of each query it needs to be given; ``None`` takes what there is.
        is_by_query: whether the ranking of a query depends on no other query, so that processes can share them out.
    """

    top_n: int | None = None
    is_by_query: bool = True

    @abstractmethod
    def rerank(self, results: RetrievalResults, data: Mapping[str, Any]) -> RetrievalResults:
        """Re-rank what every query found. ``results`` stay as they are.

        Args:
            results: of a search.
            data: the entries :attr:`needed_keys`, and of :attr:`optional_keys` those that there are, for all items of
                the data set in its order: ids in ``results`` are positions in them.
        """

    @property
    def needed_keys(self) -> list[str]:
        """Names of the entries that ``data`` must have."""
        return []

    @property
    def optional_keys(self) -> list[str]:
        """Names of further entries that count if they are there, all of them or none."""
        return []
