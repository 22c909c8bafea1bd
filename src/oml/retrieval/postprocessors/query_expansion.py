"""Searching anew, with queries or galleries made better by their neighbours."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from oml.const import EMBEDDINGS_KEY
from oml.functional.query_expansion import expanded
from oml.functional.search import exact_search
from oml.retrieval.postprocessors._embeddings import embeddings_of, places_of
from oml.retrieval.postprocessors.base import Postprocessor
from oml.retrieval.results import RetrievalResults


class _SearchingAnew(Postprocessor):
    """Results as wide as before, with L2 distances of new embeddings; what a query was not to find stays so."""

    def __init__(self, n: object, alpha: float | int, embeddings_key: str) -> None:
        name = type(self).__name__
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ValueError(f"{name} needs a whole number of 1 or more as n, got {n!r}.")
        if not 0 <= alpha < torch.inf:
            raise ValueError(f"{name} needs an alpha of 0 or more, got {alpha}.")
        self.n = n
        self.alpha = alpha
        self.embeddings_key = embeddings_key

    @property
    def needed_keys(self) -> list[str]:
        """The name of the embeddings."""
        return [self.embeddings_key]

    @abstractmethod
    def _new(
        self, results: RetrievalResults, queries: Tensor, galleries: Tensor
    ) -> tuple[Float[Tensor, "query dim"], Float[Tensor, "gallery dim"]]:
        """New embeddings of the queries and the galleries in place of theirs."""

    def rerank(self, results: RetrievalResults, data: Mapping[str, Any]) -> RetrievalResults:
        """Results of a search with the new embeddings.

        Raises:
            ValueError: if ``data`` has no embeddings (item, dim) of all items, or the results hold fewer ranks than
                there are to be neighbours.
        """
        embeddings = embeddings_of(type(self).__name__, data, self.embeddings_key, results)
        device = embeddings.device
        sides = [embeddings[ids.to(device)] for ids in (results.query_ids, results.gallery_ids)]
        items = [numbers.to(device) for numbers in results.query_and_gallery_items()]
        queries, galleries = self._new(results, *sides)
        width = results.retrieved_ids.shape[1]
        found = exact_search(queries, galleries, width, query_items=items[0], gallery_items=items[1])
        ids, distances = found.ids.to(results.gallery_ids.device), found.distances.to(results.distances)
        ids = torch.where(ids < 0, -1, results.gallery_ids[ids])
        n_empty = width - ids.shape[1]  # beyond the gallery
        return results.with_ranking(F.pad(ids, (0, n_empty), value=-1), F.pad(distances, (0, n_empty), value=torch.inf))

    def _expanded_queries(self, results: RetrievalResults, queries: Tensor, galleries: Tensor) -> Tensor:
        """By the first ``n`` of their results, whatever put these in order."""
        n = min(self.n, len(galleries))
        if results.retrieved_ids.shape[1] < n:
            raise ValueError(
                f"{type(self).__name__} expands queries by their top {n} galleries, the results hold "
                f"{results.retrieved_ids.shape[1]}: search with top_k={n} or more, or give a smaller n."
            )
        place = places_of(results.gallery_ids, int(results.gallery_ids.amax()) + 1)
        ids = place[results.retrieved_ids[:, :n]].to(galleries.device)
        return expanded(queries, galleries, ids, self.alpha)


class QueryExpansionPostprocessor(_SearchingAnew):
    """Adds to each query the nearest galleries that it found, and searches anew.

    Neighbours count by their cosine similarity to the query to the power of ``alpha``: alpha query expansion (Radenović
    et al. 2018), average query expansion (Chum et al. 2007) with ``alpha=0``; for the formula see
    :func:`oml.functional.query_expansion.expanded`. The neighbours are the first of the results that are given,
    whatever put them in order: it can follow re-ranking or thresholds in a
    :class:`oml.retrieval.postprocessors.chain.Chain`.

    It helps where labels have many more galleries than ``n``, and less the first rank than the ones after it. Distances
    are L2 distances of the expanded queries.

    Args:
        n: how many galleries to add, if there are so many.
        alpha: 0 or more; the larger, the less far neighbours count.
        embeddings_key: name of the entry of the data.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.28, -0.96]])
        >>> is_query = torch.tensor([True, False, False, False])
        >>> results = RetrievalResults.from_embeddings(
        ...     embeddings, torch.tensor([0, 0, 0, 1]), is_query, ~is_query, top_k=3
        ... )
        >>> results.retrieved_ids
        tensor([[1, 3, 2]])
        >>> QueryExpansionPostprocessor(n=1).rerank(results, {"embeddings": embeddings}).retrieved_ids
        tensor([[1, 2, 3]])
    """

    def __init__(self, n: int = 2, alpha: float | int = 3, embeddings_key: str = EMBEDDINGS_KEY) -> None:
        super().__init__(n, alpha, embeddings_key)
        self.top_n = n

    def _new(self, results: RetrievalResults, queries: Tensor, galleries: Tensor) -> tuple[Tensor, Tensor]:
        return self._expanded_queries(results, queries, galleries), galleries


class DatabaseAugmentationPostprocessor(_SearchingAnew):
    """Adds to each gallery its nearest other galleries, and searches anew.

    Database-side augmentation (Arandjelović & Zisserman, "Three things everyone should know to improve object
    retrieval", 2012), with weights that fall with the distance (Gordo et al. 2017): here the cosine similarity to the
    power of ``alpha``, see :func:`oml.functional.query_expansion.expanded`. Distances are L2 distances to the augmented
    galleries.

    The gallery is augmented once, for all queries. An item that is query and gallery is among the neighbours of
    galleries as any other, although it does not find itself.

    Args:
        n: how many galleries to add to each, if there are so many.
        alpha: 0 or more; the larger, the less far neighbours count.
        expand_queries: expand the queries as well, as :class:`QueryExpansionPostprocessor` does.
        embeddings_key: name of the entry of the data.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.75, -0.66]])
        >>> is_query = torch.tensor([True, False, False, False])
        >>> results = RetrievalResults.from_embeddings(
        ...     embeddings, torch.tensor([0, 0, 0, 1]), is_query, ~is_query, top_k=3
        ... )
        >>> results.retrieved_ids
        tensor([[1, 3, 2]])
        >>> augmentation = DatabaseAugmentationPostprocessor(n=1)
        >>> augmentation.rerank(results, {"embeddings": embeddings}).retrieved_ids
        tensor([[3, 1, 2]])
    """

    def __init__(
        self, n: int = 3, alpha: float | int = 10, expand_queries: bool = False, embeddings_key: str = EMBEDDINGS_KEY
    ) -> None:
        super().__init__(n, alpha, embeddings_key)
        self.expand_queries = expand_queries
        self.top_n = n if expand_queries else None

    def _new(self, results: RetrievalResults, queries: Tensor, galleries: Tensor) -> tuple[Tensor, Tensor]:
        numbers = torch.arange(len(galleries), device=galleries.device)
        found = exact_search(galleries, galleries, self.n, query_items=numbers, gallery_items=numbers)
        new = expanded(galleries, galleries, found.ids, self.alpha)
        return (self._expanded_queries(results, queries, galleries) if self.expand_queries else queries), new
