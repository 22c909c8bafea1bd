"""From what was retrieved to one value per query and metric: the one place for it."""

from collections.abc import Sequence

from torch import Tensor

from oml.functional.nothing_to_find import rows_to_evaluate
from oml.functional.ranking import average_precision_at_k, cmc_at_k, precision_at_k
from oml.retrieval import RetrievalResults


def ranking_metrics(
    results: RetrievalResults,
    *,
    cmc_top_k: Sequence[int] = (),
    precision_top_k: Sequence[int] = (),
    map_top_k: Sequence[int] = (),
) -> dict[str, dict[int, Tensor]]:
    """For each metric and ``k`` a value per query, in the order of ``results.query_ids``.

    The formulas, with their denominators, are those of :mod:`oml.functional.ranking`: precision divides by
    ``min(k, n_relevant)``, map by the relevant items found. A metric without ``k`` is left out.

    Args:
        results: of a search for the largest ``k`` or more, unless all that is relevant was found earlier.
        cmc_top_k, precision_top_k, map_top_k: values of ``k``, positive ints.

    Raises:
        NothingToFindError: A query has nothing to find, so that no value would mean anything.
        ValueError: A ``k`` is no positive int, or reaches beyond the ranks that were retrieved.

    Example:
        >>> import torch
        >>> embeddings, everyone = torch.tensor([[0.0], [1.0], [3.0], [4.5]]), torch.ones(4, dtype=torch.bool)
        >>> labels = torch.tensor([0, 0, 1, 0])
        >>> results = RetrievalResults.from_embeddings(embeddings, labels, labels == 0, everyone, top_k=2)
        >>> ranking_metrics(results, cmc_top_k=(1, 2), map_top_k=(2,))
        {'cmc': {1: tensor([1., 1., 0.]), 2: tensor([1., 1., 1.])}, 'map': {2: tensor([1.0000, 1.0000, 0.5000])}}
    """
    rows_to_evaluate(results.n_relevant, ids=results.query_ids, labels=results.query_labels)
    relevant, n_relevant = results.is_relevant, results.n_relevant
    too_far = [k for k in (*cmc_top_k, *precision_top_k, *map_top_k) if isinstance(k, int) and k > relevant.shape[1]]
    if too_far and (unfound := relevant.sum(dim=1) < n_relevant).any():
        raise ValueError(
            f"ranking_metrics needs results of a search with top_k={max(too_far)}, got {relevant.shape[1]} ranks, "
            f"which lack relevant items of {int(unfound.sum())} queries."
        )
    values = {
        "cmc": {k: cmc_at_k(relevant, k) for k in cmc_top_k},
        "precision": {k: precision_at_k(relevant, n_relevant, k) for k in precision_top_k},
        "map": {k: average_precision_at_k(relevant, k) for k in map_top_k},
    }
    return {name: by_k for name, by_k in values.items() if by_k}
