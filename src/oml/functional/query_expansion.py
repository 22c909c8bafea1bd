"""Vectors made better by those nearest to them: expansion of queries, augmentation of a gallery."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from oml.functional.pair_blocks import BLOCK, row_sums


@torch.no_grad()
def expanded(
    vectors: Float[Tensor, "item dim"],
    galleries: Float[Tensor, "gallery dim"],
    neighbour_ids: Int[Tensor, "item rank"],
    alpha: float | int,
) -> Float[Tensor, "item dim"]:
    """Each vector with its neighbours among the galleries added, nearer ones with more weight, at its old length.

    The direction is that of ``v + sum(max(0, cos(v, g)) ** alpha * g)`` over the neighbours ``g``: alpha query
    expansion (Radenović, Tolias & Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation", 2018). With
    ``alpha = 0`` all weights are 1: average query expansion (Chum et al., "Total Recall", 2007). If vectors have
    length 1, as in these papers, so have those that come back; in general each keeps its own.

    Memory besides inputs and outputs does not grow with their number. Gradients do not flow. No bit of a vector depends
    on the others.

    Args:
        vectors: to be expanded.
        galleries: what neighbours are taken from, on the same device.
        neighbour_ids: rows of ``galleries`` for each vector; -1 for none.
        alpha: 0 or more; the larger, the less far neighbours count.

    Returns:
        Vectors in the inputs' dtype, float32 for half precision. Those without neighbours stay as they are.

    Raises:
        ValueError: if ``alpha`` is negative or not finite, shapes do not fit, or there are no such rows.

    Example:
        >>> x = torch.tensor([[1.0, 0.0]])
        >>> galleries = torch.tensor([[0.0, 1.0], [0.6, 0.8]])
        >>> expanded(x, galleries, torch.tensor([[1, -1]]), alpha=0)  # the direction of (1.6, 0.8)
        tensor([[0.8944, 0.4472]])
        >>> expanded(x, galleries, torch.tensor([[1, -1]]), alpha=3)  # a weight of 0.6 ** 3
        tensor([[0.9885, 0.1512]])
    """
    if not 0 <= alpha < torch.inf:
        raise ValueError(f"expanded needs an alpha of 0 or more, got {alpha}.")
    if galleries.shape[1:] != vectors.shape[1:] or len(neighbour_ids) != len(vectors):
        raise ValueError(
            "expanded needs vectors (item, dim), galleries (gallery, dim) and neighbour_ids (item, rank), got "
            f"{tuple(vectors.shape)}, {tuple(galleries.shape)} and {tuple(neighbour_ids.shape)}."
        )
    if neighbour_ids.numel() and not -1 <= neighbour_ids.amin() <= neighbour_ids.amax() < len(galleries):
        raise ValueError(
            f"expanded needs neighbour_ids from -1 to {len(galleries) - 1}, the last of the galleries, got "
            f"{int(neighbour_ids.amin())} to {int(neighbour_ids.amax())}."
        )
    dtype = torch.promote_types(torch.promote_types(vectors.dtype, galleries.dtype), torch.float32)
    new = torch.empty(vectors.shape, dtype=dtype, device=vectors.device)
    for rows in torch.arange(len(vectors), device=vectors.device).split(BLOCK):
        part = vectors[rows].to(dtype)
        direction, total = F.normalize(part), part.clone()
        for ids in neighbour_ids[rows].unbind(1):
            nearby = galleries[ids].to(dtype)  # the last one for -1, with no weight
            weights = row_sums(direction * F.normalize(nearby)).clamp_(min=0).pow_(alpha).masked_fill_(ids < 0, 0)
            total.addcmul_(weights[:, None], nearby)
        has_neighbours = (neighbour_ids[rows] >= 0).any(dim=1, keepdim=True)
        new[rows] = torch.where(has_neighbours, F.normalize(total) * part.norm(dim=1, keepdim=True), part)
    return new
