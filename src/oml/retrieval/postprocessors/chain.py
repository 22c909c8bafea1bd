"""Several postprocessors as one."""

from collections.abc import Mapping, Sequence
from typing import Any

from oml.retrieval.postprocessors.base import Postprocessor
from oml.retrieval.results import RetrievalResults


class Chain(Postprocessor):
    """Postprocessors one after another, each on what the one before it made of the results.

    Thresholds come last: what searches anew, such as query expansion, fills up what was dropped before it.

    Args:
        postprocessors: one or more, the first one first.

    Raises:
        ValueError: if there are none.
        TypeError: if some are something else.

    Example:
        >>> import torch
        >>> from oml.retrieval.postprocessors.query_expansion import QueryExpansionPostprocessor
        >>> from oml.retrieval.postprocessors.thresholding import ConstantThresholding
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
        >>> everyone = torch.ones(3, dtype=torch.bool)
        >>> results = RetrievalResults.from_embeddings(embeddings, everyone.long(), everyone, everyone, top_k=2)
        >>> chain = Chain([QueryExpansionPostprocessor(n=1), ConstantThresholding(0.7)])
        >>> chain.top_n, chain.needed_keys
        (1, ['embeddings'])
        >>> chain.rerank(results, {"embeddings": embeddings}).retrieved_ids.tolist()
        [[1, -1], [0, -1], [-1, -1]]
    """

    def __init__(self, postprocessors: Sequence[Postprocessor]) -> None:
        if not postprocessors:
            raise ValueError("Chain needs one postprocessor or more, got none.")
        if others := [repr(each) for each in postprocessors if not isinstance(each, Postprocessor)]:
            raise TypeError(f"Chain needs a list of postprocessors, got {', '.join(others)} among them.")
        self.postprocessors = tuple(postprocessors)
        self.top_n = max((each.top_n for each in self.postprocessors if each.top_n is not None), default=None)
        self.is_by_query = all(each.is_by_query for each in self.postprocessors)

    def rerank(self, results: RetrievalResults, data: Mapping[str, Any]) -> RetrievalResults:
        """The results after the last postprocessor."""
        for each in self.postprocessors:
            results = each.rerank(results, data)
        return results

    @property
    def needed_keys(self) -> list[str]:
        """All names that any of them needs."""
        return list(dict.fromkeys(key for each in self.postprocessors for key in each.needed_keys))

    @property
    def optional_keys(self) -> list[str]:
        """All names that any of them takes."""
        return list(dict.fromkeys(key for each in self.postprocessors for key in each.optional_keys))
