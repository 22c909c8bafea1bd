"""From what was retrieved to one value per query and metric: the one place for it."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from oml.functional.nothing_to_find import rows_to_evaluate
from oml.functional.ranking import (
    Hits,
    average_precision_at_k,
    average_precision_at_r,
    cmc_at_k,
    f1_of_returned,
    ndcg_at_k,
    precision_at_k,
    precision_of_returned,
    r_precision,
    recall_at_k,
    recall_of_returned,
    reciprocal_rank,
)
from oml.retrieval import RetrievalResults

#: where a ranking is cut: at a rank, or for every query at its ``n_relevant``
Cut = int | Literal["r"]
#: what is told of whole answers, whatever their length
OfReturned = Literal["precision", "recall", "f1", "number"]


def ranking_metrics(
    results: RetrievalResults,
    *,
    cmc_top_k: Sequence[int] = (),
    precision_top_k: Sequence[Cut] = (),
    map_top_k: Sequence[Cut] = (),
    recall_top_k: Sequence[int] = (),
    ndcg_top_k: Sequence[int] = (),
    mrr_top_k: Sequence[int] = (),
    map_divide_by: Literal["found", "min(k, n)", "n"] = "found",
    hits: Hits | None = None,
    returned: bool = False,
) -> dict[str, dict[Cut | OfReturned, Float[Tensor, " query"]]]:
    """For each metric and ``k`` a value per query, in the order of ``results.query_ids``.

    The formulas, with their denominators, are those of :mod:`oml.functional.ranking`: precision divides by
    ``min(k, n_relevant)``, map by the relevant items found, recall by all. A metric without ``k`` is left out.

    Args:
        results: of a search for the largest ``k`` or more, unless all that is relevant was found earlier. A row that
            ends with -1 has no more to come.
        cmc_top_k, precision_top_k, map_top_k, recall_top_k, ndcg_top_k, mrr_top_k: values of ``k``, positive ints. For
            precision and map also ``"r"``, which cuts the ranking of every query at its ``n_relevant``: these are
            :func:`oml.functional.ranking.r_precision` and map@r, :func:`oml.functional.ranking.average_precision_at_r`.
        map_divide_by: the denominator of map, see :func:`oml.functional.ranking.average_precision_at_k`.
        hits: where the relevant items stand in the ranking of the whole gallery, for ``k`` beyond the lists of
            ``results``: of :func:`oml.functional.ranks.relevant_ranks`.
        returned: tell ``precision``, ``recall``, ``f1`` and ``number`` of all that was returned too, under
            ``"returned"``: what stands in a row of ``results`` before the first -1, as after a threshold. See
            :func:`oml.functional.ranking.precision_of_returned`, which is 0 for a row without anything, and the
            functions that follow it.

    Raises:
        NothingToFindError: A query has nothing to find, so that no value would mean anything.
        ValueError: A ``k`` is no positive int, or reaches beyond the ranks that are known.

    Example:
        >>> import torch
        >>> embeddings, everyone = torch.tensor([[0.0], [1.0], [3.0], [4.5]]), torch.ones(4, dtype=torch.bool)
        >>> labels = torch.tensor([0, 0, 1, 0])
        >>> results = RetrievalResults.from_embeddings(embeddings, labels, labels == 0, everyone, top_k=2)
        >>> ranking_metrics(results, cmc_top_k=(1, 2), map_top_k=(2,))
        {'cmc': {1: tensor([1., 1., 0.]), 2: tensor([1., 1., 1.])}, 'map': {2: tensor([1.0000, 1.0000, 0.5000])}}
        >>> ranking_metrics(results, precision_top_k=("r",), map_top_k=("r",))
        {'precision': {'r': tensor([0.5000, 0.5000, 0.5000])}, 'map': {'r': tensor([0.5000, 0.5000, 0.2500])}}
        >>> ranking_metrics(results, returned=True)["returned"]["precision"]
        tensor([0.5000, 0.5000, 0.5000])
    """
    rows_to_evaluate(results.n_relevant, ids=results.query_ids, labels=results.query_labels)
    n_relevant, n_ranks = results.n_relevant, results.retrieved_ids.shape[1]
    n_returned = (results.retrieved_ids >= 0).sum(dim=1)
    if hits is None:
        top_k = (*cmc_top_k, *precision_top_k, *map_top_k, *recall_top_k, *ndcg_top_k, *mrr_top_k)
        is_whole = n_returned < n_ranks
        lacks = (results.is_relevant.sum(dim=1) < n_relevant) & ~is_whole
        needed = torch.full_like(n_relevant, max([k for k in top_k if isinstance(k, int)], default=0))
        if "r" in top_k:
            needed = needed.maximum(n_relevant)
        if len(too_far := needed[lacks & (needed > n_ranks)]):
            raise ValueError(
                f"ranking_metrics needs results of a search with top_k={int(too_far.amax())}, got {n_ranks} ranks, "
                f"which lack relevant items of {len(too_far)} queries; or the hits of the whole gallery."
            )
    found = results.is_relevant if hits is None else hits
    values: dict[str, dict[Cut | OfReturned, Tensor]] = {
        "cmc": {k: cmc_at_k(found, k) for k in cmc_top_k},
        "precision": {
            k: r_precision(found, n_relevant) if k == "r" else precision_at_k(found, n_relevant, k)
            for k in precision_top_k
        },
        "map": {
            k: average_precision_at_r(found, n_relevant)
            if k == "r"
            else average_precision_at_k(found, k, n_relevant, map_divide_by)
            for k in map_top_k
        },
        "recall": {k: recall_at_k(found, n_relevant, k) for k in recall_top_k},
        "ndcg": {k: ndcg_at_k(found, n_relevant, k) for k in ndcg_top_k},
        "mrr": {k: reciprocal_rank(found, k) for k in mrr_top_k},
    }
    if returned:
        values["returned"] = {
            "precision": precision_of_returned(results.is_relevant, n_returned),
            "recall": recall_of_returned(results.is_relevant, n_relevant),
            "f1": f1_of_returned(results.is_relevant, n_returned, n_relevant),
            "number": n_returned.float(),
        }
    return {name: by_k for name, by_k in values.items() if by_k}
