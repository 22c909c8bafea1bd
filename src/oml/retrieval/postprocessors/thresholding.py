"""Results without what is too far off."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from oml.functional.thresholding import n_before_jump, n_within
from oml.retrieval.postprocessors.base import Postprocessor
from oml.retrieval.results import RetrievalResults


class ConstantThresholding(Postprocessor):
    """Drops what is farther than a distance. A query may be left with nothing.

    Results are as wide as before, with ids of -1 at the end. Distances are those at hand: after re-ranking, the new
    ones.

    Args:
        threshold: the largest distance to keep.

    Raises:
        ValueError: if it is NaN.
        TypeError: if it is no number.

    Example:
        >>> everyone = torch.ones(3, dtype=torch.bool)
        >>> results = RetrievalResults.from_embeddings(
        ...     torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([0, 0, 0]), everyone, everyone, top_k=2
        ... )
        >>> ConstantThresholding(1.5).rerank(results, {}).retrieved_ids
        tensor([[ 1, -1],
                [ 0, -1],
                [-1, -1]])
    """

    def __init__(self, threshold: float | int) -> None:
        if not isinstance(threshold, float | int):
            raise TypeError(f"ConstantThresholding needs a distance as threshold, got {threshold!r}.")
        if math.isnan(threshold):
            raise ValueError("ConstantThresholding needs a distance as threshold, got nan.")
        self.threshold = threshold

    def rerank(self, results: RetrievalResults, data: Mapping[str, Any]) -> RetrievalResults:  # noqa: ARG002
        """The results up to the threshold. ``data`` does not count."""
        return _first(results, n_within(results.distances, self.threshold))


class AdaptiveThresholding(Postprocessor):
    """Cuts the ranking of each query at its biggest jump of distances, if that is uncommonly big.

    That is if it is larger than ``mean + n_std * std`` of the jumps of this query, see
    :func:`oml.functional.thresholding.n_before_jump`: other queries do not matter, but how many ranks there are does.
    At least one item stays. Results are as wide as before, with ids of -1 at the end.

    Args:
        n_std: 0 or more; the larger, the fewer rankings are cut.
        top_n: as many results per query as whoever searches for it should find, 3 or more: among few, no jump is
            uncommon. It takes what there is.

    Raises:
        ValueError: if one is out of its range.

    Example:
        >>> everyone = torch.ones(5, dtype=torch.bool)
        >>> results = RetrievalResults.from_embeddings(
        ...     torch.tensor([[0.0], [1.0], [2.0], [8.0], [9.0]]), torch.zeros(5).long(), everyone, everyone, top_k=4
        ... )
        >>> AdaptiveThresholding(n_std=1).rerank(results, {}).retrieved_ids
        tensor([[ 1,  2, -1, -1],
                [ 0,  2, -1, -1],
                [ 1,  0, -1, -1],
                [ 4, -1, -1, -1],
                [ 3, -1, -1, -1]])
    """

    def __init__(self, n_std: float | int = 2, top_n: int = 20) -> None:
        if not 0 <= n_std < math.inf:
            raise ValueError(f"AdaptiveThresholding needs an n_std of 0 or more, got {n_std}.")
        if top_n < 3:
            raise ValueError(f"AdaptiveThresholding needs a top_n of 3 or more, as fewer are never cut; got {top_n}.")
        self.n_std = n_std
        self.top_n = top_n

    def rerank(self, results: RetrievalResults, data: Mapping[str, Any]) -> RetrievalResults:  # noqa: ARG002
        """The results before their jumps. ``data`` does not count."""
        return _first(results, n_before_jump(results.distances, self.n_std))


def _first(results: RetrievalResults, n_kept: Int[Tensor, " query"]) -> RetrievalResults:
    is_dropped = torch.arange(results.retrieved_ids.shape[1], device=n_kept.device) >= n_kept[:, None]
    return results.with_ranking(
        results.retrieved_ids.masked_fill(is_dropped, -1), results.distances.masked_fill(is_dropped, torch.inf)
    )
