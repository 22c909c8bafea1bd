"""Results of several searches as one: what :meth:`oml.retrieval.RetrievalResults.merge` does."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

if TYPE_CHECKING:
    from oml.retrieval.results import RetrievalResults

_Arguments = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]


def all_equal(parts: Sequence["RetrievalResults"], *names: str) -> bool:
    """Whether parts have the same of these attributes."""
    for name in names:
        first, *others = (getattr(part, name) for part in parts)
        if not all(
            first is other or (first is not None and other is not None and torch.equal(first, other))
            for other in others
        ):
            return False
    return True


def of_all_queries(parts: Sequence["RetrievalResults"], top_k: int | None) -> _Arguments:
    """Of parts that were searched in the same gallery, what :class:`RetrievalResults` takes."""
    first = parts[0]
    widths = {part.retrieved_ids.shape[1] for part in parts}
    if len(widths) > 1 or (top_k is not None and min(widths) < min(top_k, len(first.gallery_ids))):
        raise ValueError(
            "RetrievalResults can be merged only if they were searched with the same top_k, and no more is asked "
            f"for, got {sorted(widths)} ranks and top_k={top_k}."
        )
    query_ids, order = torch.cat([part.query_ids for part in parts]).sort()
    _check_no_twins("queries", query_ids)
    return (
        query_ids,
        torch.cat([part.query_labels for part in parts])[order],
        first.gallery_ids,
        first.gallery_labels,
        torch.cat([part.retrieved_ids[:, :top_k] for part in parts])[order],
        torch.cat([part.distances[:, :top_k] for part in parts])[order],
        _cat([part.query_sequences for part in parts], order),
        first.gallery_sequences,
    )


def of_all_galleries(parts: Sequence["RetrievalResults"], top_k: int | None) -> _Arguments:
    """Of parts that were searched for the same queries, what :class:`RetrievalResults` takes."""
    first = parts[0]
    gallery_ids, order = torch.cat([part.gallery_ids for part in parts]).sort()
    _check_no_twins("galleries", gallery_ids)
    widths = [part.retrieved_ids.shape[1] for part in parts]
    unlisted = [width for width, part in zip(widths, parts, strict=True) if width < len(part.gallery_ids)]
    n_sure = min([len(gallery_ids), *unlisted])
    if top_k is not None and n_sure < min(top_k, len(gallery_ids)):
        raise ValueError(f"RetrievalResults to merge hold {n_sure} sure ranks, top_k={top_k} were asked for.")
    retrieved_ids, by_id = torch.cat([part.retrieved_ids for part in parts], dim=1).sort(dim=1)
    distances = torch.cat([part.distances for part in parts], dim=1).gather(1, by_id)
    distances, by_distance = distances.sort(dim=1, stable=True)
    n_kept = n_sure if top_k is None else min(top_k, n_sure)
    return (
        first.query_ids,
        first.query_labels,
        gallery_ids,
        torch.cat([part.gallery_labels for part in parts])[order],
        retrieved_ids.gather(1, by_distance)[:, :n_kept],
        distances[:, :n_kept],
        first.query_sequences,
        _cat([part.gallery_sequences for part in parts], order),
    )


def _check_no_twins(of: str, ids: Int[Tensor, " sorted"]) -> None:
    if len(twice := ids[1:][ids[1:] == ids[:-1]]):
        raise ValueError(f"RetrievalResults to merge hold {len(twice)} {of} twice, such as {twice[:3].tolist()}.")


def _cat(parts: Sequence[Tensor | None], order: Tensor) -> Tensor | None:
    given = [part for part in parts if part is not None]
    if len(given) not in (0, len(parts)):
        raise ValueError("RetrievalResults can be merged if all or none have sequences.")
    return torch.cat(given)[order] if given else None
