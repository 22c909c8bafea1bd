"""Re-ranking of what is to be measured: in one process, or in several, each of which does its share."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Int
from torch import Tensor

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

    If the postprocessor is ``is_by_query``, each re-ranks its share of the queries; otherwise each does all. Shares end
    where batches of pairs do, by the postprocessor's ``top_n`` and ``batch_size``: so networks see the batches that
    they see in one process, and give the same numbers bit for bit. Pairs of images are put into an order of their own,
    so their batches are others, and numbers the same up to rounding.

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
    bounds = _bounds(postprocessor, results, n)[dist.get_rank() :]
    mine = results.of_queries(torch.arange(int(bounds[0]), int(bounds[1])))
    own = in_all_processes(lambda: rerank(postprocessor, mine, data) if len(mine) else mine)
    return results.with_ranking(gather_rows(own.retrieved_ids), gather_rows(own.distances))


def _bounds(postprocessor: Postprocessor, results: RetrievalResults, n: int) -> Int[Tensor, " bound"]:
    """The first rows of the shares of ``n`` processes, and the end."""
    n_pairs = (results.retrieved_ids[:, : postprocessor.top_n] >= 0).sum(dim=1).cumsum(0)
    is_end = n_pairs % getattr(postprocessor, "batch_size", 1) == 0
    ends = torch.cat([torch.tensor([0, len(results)]), is_end.nonzero().squeeze(1) + 1]).unique()
    wanted = torch.arange(n + 1) * len(results) / n
    return ends[(ends[:, None] - wanted).abs().argmin(dim=0)]
