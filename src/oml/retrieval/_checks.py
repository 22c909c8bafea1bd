"""What a search needs to be given."""

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def check_items(
    embeddings: Any, labels: Any, is_query: Any, is_gallery: Any, sequences: Any | None, ids: Any | None
) -> None:
    """Refuse what is not of the same items, see :meth:`oml.retrieval.RetrievalResults.from_embeddings`."""
    given = {"embeddings": embeddings, "labels": labels, "is_query": is_query, "is_gallery": is_gallery}
    given |= {} if sequences is None else {"sequences": sequences}
    given |= {} if ids is None else {"ids": ids}
    for name, part in given.items():
        if not isinstance(part, Tensor):
            raise TypeError(f"RetrievalResults needs tensors, got {name} of {type(part).__name__}.")
        if part is not embeddings and part.ndim != 1:
            raise ValueError(f"RetrievalResults needs one number per item, got {name} of shape {tuple(part.shape)}.")
    sizes = [len(part) for part in given.values()]
    if len(set(sizes)) > 1 or not _is_integer(labels):
        raise ValueError(
            "RetrievalResults needs an embedding, an integer label and both roles of every item, got "
            f"{', '.join(given)} of {', '.join(map(str, sizes))} items, labels of {labels.dtype}."
        )
    if sequences is not None and not _is_integer(sequences):
        raise ValueError(
            f"RetrievalResults needs the numbers of sequences of integers, -1 for none, got {sequences.dtype}."
        )
    check_roles("RetrievalResults", "is_query", is_query)
    check_roles("RetrievalResults", "is_gallery", is_gallery)


def check_roles(owner: str, name: str, roles: Tensor) -> None:
    """Whether items are queries, or galleries: True or False, or 1 or 0.

    Raises:
        ValueError: something else is among them.

    Example:
        >>> check_roles("RetrievalResults", "is_query", torch.tensor([True, False]))
    """
    if roles.dtype != torch.bool and len(bad := ((roles != 0) & (roles != 1)).nonzero().squeeze(1)):
        raise ValueError(
            f"{owner} needs True or False, or 1 or 0, in {name!r}, got {roles[bad[0]].item()} and the like for "
            f"{len(bad)} of {len(roles)} items, such as {bad[:3].tolist()}."
        )


def check_finite(embeddings: Tensor, is_used: Bool[Tensor, " item"], ids: Int[Tensor, " item"]) -> None:
    """Refuse embeddings that are not finite. The search would name rows among the queries or the galleries."""
    if embeddings.numel() == 0 or torch.stack(embeddings.aminmax()).isfinite().all():
        return
    finite = torch.cat([part.isfinite().flatten(1).all(dim=1) for part in embeddings.split(1024)])
    if len(bad := ids[~finite & is_used]):
        raise ValueError(
            f"RetrievalResults needs finite embeddings, got NaN or infinite numbers in {len(bad)} of "
            f"{int(is_used.sum())} items, such as {bad[:5].tolist()}, as they are numbered in the data set. "
            "Look at the model or at the inputs of these items."
        )


def _is_integer(numbers: Tensor) -> bool:
    return not (numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool)
