"""Embeddings of a whole data set, as postprocessors get them."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from oml.retrieval.results import RetrievalResults


def embeddings_of(owner: str, data: Mapping[str, Any], key: str, results: RetrievalResults) -> Tensor:
    """Those of all items, of which the queries and galleries of the results are some.

    Raises:
        ValueError: these are no embeddings (item, dim), or there are too few.
    """
    embeddings = torch.as_tensor(data[key])
    n_items = 1 + max(int(ids.amax()) if len(ids) else -1 for ids in (results.query_ids, results.gallery_ids))
    if embeddings.ndim != 2 or not embeddings.is_floating_point() or len(embeddings) < n_items:
        raise ValueError(
            f"{owner} needs embeddings (item, dim) of the whole data set, whose ids go to {n_items - 1}, got "
            f"{tuple(embeddings.shape)} of {embeddings.dtype} in {key!r}."
        )
    return embeddings


def places_of(ids: Int[Tensor, " id"], n_items: int) -> Int[Tensor, " item_or_none"]:
    """For each of ``n_items`` where it stands among distinct ids, or -1; the last one is for an id of -1."""
    places = torch.full((n_items + 1,), -1, device=ids.device)
    places[ids] = torch.arange(len(ids), device=ids.device)
    return places
