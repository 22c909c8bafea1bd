"""Exact search of which each process does a share."""

from typing import Any

import torch.distributed as dist
from torch import Tensor

from oml.ddp.utils import gather_rows, get_world_size_safe, in_all_processes
from oml.functional.search import Neighbours, exact_search, joined


def search_in_all_processes(queries: Tensor, galleries: Tensor, top_k: int, **options: Any) -> Neighbours:
    """What :func:`~oml.functional.search.exact_search` finds, bit for bit, on the CPU if there are several processes.

    Every process of the group must call it with the same arguments, and gets the whole result. Each looks at its share
    of the pairs: so also a set that is searched with itself, whose pairs one process looks at once, takes many
    processes a part of the time.

    Args:
        queries, galleries, top_k, options: of ``exact_search``.

    Raises:
        ValueError: as ``exact_search``; an error of one process is raised in all.

    Example:
        >>> import torch
        >>> search_in_all_processes(torch.tensor([[0.0]]), torch.tensor([[3.0], [1.0]]), top_k=1).ids
        tensor([[1]])
    """
    n = get_world_size_safe()
    if n < 2:
        return exact_search(queries, galleries, top_k, **options)
    own = in_all_processes(lambda: exact_search(queries, galleries, top_k, share=(dist.get_rank(), n), **options))
    ids, distances = (gather_rows(each).unflatten(0, (n, len(queries))) for each in own)
    return joined([Neighbours(*each) for each in zip(ids, distances, strict=True)])
