"""Re-ranking of what is to be measured: in one process, or in several, each of which does its share."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from oml.ddp.utils import gather_rows, get_world_size_safe, in_all_processes
from oml.retrieval import RetrievalResults
from oml.retrieval.postprocessors.base import Postprocessor


def rerank(postprocessor: Postprocessor, results: RetrievalResults, data: Mapping[str, Any]) -> RetrievalResults:
    """What a postprocessor makes of results, as many ranks as they had: -1 stands at those that it leaves out.

    Args:
        postprocessor, results, data: see :meth:`oml.retrieval.postprocessors.base.Postprocessor.rerank`.

    Raises:
        ValueError: what comes back is not of the same queries, or has more ranks.
    """
    found, n_ranks = postprocessor.rerank(results, data), results.retrieved_ids.shape[1]
    width = found.retrieved_ids.shape[1]
    if not torch.equal(found.query_ids, results.query_ids) or width > n_ranks:
        raise ValueError(
            f"{type(postprocessor).__name__}.rerank must give back the queries that it is given in their order, and no "
            f"more ranks: of {results} it made {found}. `results.with_ranking(ids, distances)` keeps the queries."
        )
    ids, distances = found.retrieved_ids.to(results.retrieved_ids), found.distances.to(results.distances)
    gap = 0, n_ranks - width
    return results.with_ranking(
        torch.nn.functional.pad(ids, gap, value=-1), torch.nn.functional.pad(distances, gap, value=torch.inf)
    )


def rerank_in_all_processes(
    postprocessor: Postprocessor, results: RetrievalResults, data: Mapping[str, Any]
) -> RetrievalResults:
    """The same by all processes of the group, each of which must call it with the same arguments and gets the whole.

    If the postprocessor is ``is_by_query``, each re-ranks its share of the queries; otherwise each does all.

    Args:
        postprocessor, results, data: see :func:`rerank`.

    Raises:
        ValueError: see :func:`rerank`; an error of one process is raised in all.
    """
    n = get_world_size_safe()
    if n < 2:
        return rerank(postprocessor, results, data)
    if not postprocessor.is_by_query:
        return in_all_processes(lambda: rerank(postprocessor, results, data))
    mine = results.of_queries(torch.arange(len(results)).tensor_split(n)[dist.get_rank()])
    own = in_all_processes(lambda: rerank(postprocessor, mine, data) if len(mine) else mine)
    return results.with_ranking(gather_rows(own.retrieved_ids), gather_rows(own.distances))
