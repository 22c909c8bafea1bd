"""Losses that see the batches of all processes."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from oml.ddp.utils import get_world_size_safe


def global_batch(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The embeddings and labels of all processes, by rank, for a loss that is to see them all.

    Every process computes the whole loss, and its gradient reaches the embeddings of that process, ``W`` times as
    large. ``DistributedDataParallel`` then takes the mean over ``W`` processes, so the gradient of the network is that
    of one process with the batch of all, and so is that of parameters of the loss. Without it, each process would
    have a loss of its own batch: no negatives of others, and triplets of few labels.

    Args:
        embeddings: [n, dim]; ``n`` may differ between processes, every one of which must call this.
        labels: [n].

    Returns:
        ``embeddings``, ``labels`` of all processes; what came, if this process is in no group.

    Example:
        >>> global_batch(torch.ones(1, 2), torch.tensor([3]))
        (tensor([[1., 1.]]), tensor([3]))
    """
    if get_world_size_safe() < 2:
        return embeddings, labels
    own = torch.tensor([len(embeddings)], device=embeddings.device)
    gathered = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, own)
    sizes = torch.cat(gathered).tolist()
    return _Gather.apply(embeddings, sizes), _gather(labels, sizes)  # pyright: ignore[reportReturnType]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        return _gather(rows, sizes)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient.split(ctx.sizes)[dist.get_rank()] * len(ctx.sizes), None


def _gather(rows: Tensor, sizes: list[int]) -> Tensor:
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])  # all processes have to send as much
    padded[: len(rows)] = rows
    gathered = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(gathered, padded)
    return torch.cat([each[:size] for each, size in zip(gathered, sizes, strict=True)])
