"""What re-ranks a matrix of distances, as earlier versions did."""

from abc import ABC, abstractmethod
from typing import Any

from jaxtyping import Float
from torch import Tensor


class IDistancesPostprocessor(ABC):
    """Distances of all queries and galleries in, better ones out.

    The matrix is dense. :class:`oml.retrieval.postprocessors.base.Postprocessor` works on what was found instead.
    """

    @abstractmethod
    def process(self, distances: Float[Tensor, "query gallery"], queries: Any, galleries: Any) -> Tensor:
        """New distances (query, gallery); ``distances`` stay as they are.

        Args:
            distances: infinite where the query is not to find the gallery.
            queries, galleries: what the distances are of, such as embeddings or paths.
        """

    @abstractmethod
    def process_by_dict(self, distances: Float[Tensor, "query gallery"], data: dict[str, Any]) -> Tensor:
        """The same, of what stands in the entries :attr:`needed_keys` of ``data``, for all items of a data set."""

    @property
    @abstractmethod
    def needed_keys(self) -> list[str]:
        """Names of the entries that ``data`` must have."""
