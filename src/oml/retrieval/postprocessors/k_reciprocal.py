"""Re-ranking by what queries and galleries have in common among their neighbours."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from oml.const import EMBEDDINGS_KEY
from oml.functional.k_reciprocal import check_k_reciprocal, k_reciprocal_rerank
from oml.retrieval.postprocessors._embeddings import embeddings_of, places_of
from oml.retrieval.postprocessors.base import Postprocessor
from oml.retrieval.results import RetrievalResults


class KReciprocalPostprocessor(Postprocessor):
    """Ranks galleries by the neighbours that they share with the query: k-reciprocal re-ranking (Zhong et al. 2017).

    The new distance is ``(1 - lambda) * jaccard + lambda * d``, from 0 to 1, see
    :func:`oml.functional.k_reciprocal.k_reciprocal_rerank` for the formula. Nothing is to be trained. It helps if
    labels have several items among queries and galleries; ``k1`` should be about as many, and ``k2`` a third of it. All
    queries and galleries are neighbours of each other: a query's result depends on the other queries, and items that it
    is not to find, such as those of its sequence, count as neighbours but are not found.

    Galleries can come in that were not among the results. If these are the nearest by the L2 distance between the
    embeddings, the result is what the whole gallery would give. Each row has as many places as before; such as a
    threshold left empty are filled if there are galleries that share neighbours with the query, so thresholds go last.

    Args:
        k1: how many neighbours of an item to look at; the better they are, the more.
        k2: over how many nearest items, itself included, to average what is known of an item; 1 for none else.
        lambda_value: the weight of the original distance, from 0 to 1, at which the order stays.
        embeddings_key: name of the entry of the data.
        memory_budget: bytes that may be used beyond inputs, results and some hundred numbers per item.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> embeddings = torch.tensor([[0.0], [1.1], [2.1], [-1.0], [-1.1], [-1.2]])
        >>> is_query = torch.tensor([True, False, False, False, False, False])
        >>> results = RetrievalResults.from_embeddings(
        ...     embeddings, torch.tensor([0, 0, 0, 1, 1, 1]), is_query, ~is_query, top_k=3
        ... )
        >>> results.retrieved_ids
        tensor([[3, 1, 4]])
        >>> KReciprocalPostprocessor(k1=2, k2=1).rerank(results, {"embeddings": embeddings}).retrieved_ids
        tensor([[1, 3, 4]])
    """

    is_by_query = False

    def __init__(
        self,
        k1: int = 20,
        k2: int = 6,
        lambda_value: float | int = 0.3,
        embeddings_key: str = EMBEDDINGS_KEY,
        memory_budget: int = 512 * 2**20,
    ) -> None:
        check_k_reciprocal("KReciprocalPostprocessor", k1, k2, lambda_value, memory_budget)
        self.k1 = k1
        self.k2 = k2
        self.lambda_value = lambda_value
        self.embeddings_key = embeddings_key
        self.memory_budget = memory_budget

    @property
    def needed_keys(self) -> list[str]:
        """The name of the embeddings."""
        return [self.embeddings_key]

    def rerank(self, results: RetrievalResults, data: Mapping[str, Any]) -> RetrievalResults:
        """Results as wide as before, by the new distance.

        Raises:
            ValueError: if ``data`` has no embeddings (item, dim) of all items, or those of queries or galleries are not
                finite.
        """
        embeddings = embeddings_of(type(self).__name__, data, self.embeddings_key, results)
        ids = torch.cat([results.query_ids, results.gallery_ids]).unique()
        place = places_of(ids, len(embeddings))  # among queries and galleries
        query_items, gallery_items = results.query_and_gallery_items()

        def there(numbers: Tensor) -> Tensor:
            return numbers.to(embeddings.device)

        found = k_reciprocal_rerank(
            embeddings if len(ids) == len(embeddings) else embeddings[there(ids)],
            there(place[results.query_ids]),
            there(place[results.gallery_ids]),
            there(place[results.retrieved_ids]),
            query_items=there(query_items),
            gallery_items=there(gallery_items),
            k1=self.k1,
            k2=self.k2,
            lambda_value=self.lambda_value,
            memory_budget=self.memory_budget,
        )
        retrieved = found.ids.to(ids.device)
        return results.with_ranking(
            torch.where(retrieved < 0, -1, ids[retrieved]), found.distances.to(results.distances)
        )
