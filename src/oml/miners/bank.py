"""Embeddings of earlier batches, kept as candidates."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch import distributed as dist


class Bank(nn.Module):
    """The last embeddings that were pushed and their labels ("cross-batch memory", Wang et al. 2020).

    Both are buffers, so they move with ``.to()`` and travel in checkpoints; a fresh bank loads a bank of any size,
    and a checkpoint without a bank leaves it as it is.
    Size and type of the embeddings are those of the first push. Batches may have any size, the last one included.

    In a process group each push takes in the batches of all ranks, in rank order: the banks of all ranks are equal.
    All ranks must push equally often; their batches may differ in size.

    A push makes new tensors rather than write into the old ones, so what :meth:`contents` gave before may be part of
    a graph. That copies the bank once per push, and for that moment there are two.

    Args:
        capacity: how many embeddings to keep.
        n_batches: keep so many batches of the size of the first one (of all ranks together); in place of ``capacity``.

    Example:
        >>> bank = Bank(3)
        >>> for i in range(4):
        ...     bank.push(torch.full((1, 2), float(i)), torch.tensor([i]))
        >>> bank.contents()[1]
        tensor([1, 2, 3])
    """

    embeddings: Tensor
    labels: Tensor

    def __init__(self, capacity: int | None = None, n_batches: int | None = None) -> None:
        super().__init__()
        given = [value for value in (capacity, n_batches) if value is not None]
        if len(given) != 1 or given[0] < 1:
            raise ValueError(
                "Bank needs either capacity or n_batches, 1 or more, "
                f"got capacity={capacity} and n_batches={n_batches}."
            )
        self.n_batches = n_batches
        self._capacity = capacity
        self._batch_size = 0  # of the first batch
        self.register_buffer("embeddings", torch.empty(0, 0))
        self.register_buffer("labels", torch.empty(0, dtype=torch.int64))

    @property
    def capacity(self) -> int | None:
        """How many embeddings are kept; ``None`` as long as that hangs on a first batch that has not come."""
        return self._capacity or (self.n_batches or 0) * self._batch_size or None

    @property
    def is_full(self) -> bool:
        """Whether the next push will displace something."""
        return len(self.labels) == self.capacity

    def contents(self) -> tuple[Float[Tensor, "bank dim"], Int[Tensor, " bank"]]:
        """What the bank holds, the oldest first; ``dim`` is 0 before the first push."""
        return self.embeddings, self.labels

    def joined(
        self, embeddings: Float[Tensor, "batch dim"], labels: Int[Tensor, " batch"]
    ) -> tuple[Float[Tensor, "candidate dim"], Int[Tensor, " candidate"]]:
        """The batch and behind it what the bank holds, on the device and in the type of the batch."""
        if not len(self.labels):
            return embeddings, labels.long()
        self._check_dim(embeddings)
        labels = torch.cat([labels, self.labels.to(labels.device)])
        return torch.cat([embeddings, self.embeddings.to(embeddings)]), labels

    @torch.no_grad()
    def push(self, embeddings: Float[Tensor, "batch dim"], labels: Int[Tensor, " batch"]) -> None:
        """Take in a batch and let go of the oldest embeddings, if there are more than ``capacity``.

        Raises:
            ValueError: The embeddings have another size than those in the bank.
        """
        embeddings, labels = _of_all_ranks(embeddings, labels.long())
        if not len(labels):
            return
        self._batch_size = self._batch_size or len(labels)
        assert self.capacity is not None, "the batch size tells it"
        old_embeddings, old_labels = embeddings[:0], labels[:0]
        if len(self.labels):
            self._check_dim(embeddings)
            old_embeddings, old_labels = self.contents()
        n_displaced = max(0, len(old_labels) + len(labels) - self.capacity)
        new_embeddings, new_labels = embeddings[-self.capacity :].to(old_embeddings.dtype), labels[-self.capacity :]
        self.embeddings = torch.cat([old_embeddings[n_displaced:].to(embeddings.device), new_embeddings])
        self.labels = torch.cat([old_labels[n_displaced:].to(labels.device), new_labels])

    def _check_dim(self, embeddings: Tensor) -> None:
        if embeddings.shape[1] != self.embeddings.shape[1]:
            raise ValueError(
                f"Bank holds embeddings of size {self.embeddings.shape[1]} and got a batch of size "
                f"{embeddings.shape[1]}: one bank serves one extractor."
            )

    def get_extra_state(self) -> Tensor:
        """The size of the first batch: a tensor, as not everything that reads checkpoints expects other things."""
        return torch.tensor(self._batch_size)

    def set_extra_state(self, state: Tensor) -> None:
        """Take over what :meth:`get_extra_state` gave."""
        self._batch_size = int(state)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        if not any(key.startswith(prefix) for key in state_dict):
            return  # of an earlier version, which did not keep banks in checkpoints
        for name in ("embeddings", "labels"):
            if (saved := state_dict.get(prefix + name)) is not None:
                setattr(self, name, torch.empty_like(saved, device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if self.capacity is not None and len(self.labels) > self.capacity:
            self.embeddings, self.labels = (part[-self.capacity :].clone() for part in self.contents())

    def extra_repr(self) -> str:
        """How full the bank is, for ``repr``."""
        return f"{len(self.labels)} of {self.capacity or f'{self.n_batches} batches'}"


def _of_all_ranks(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return embeddings, labels
    sizes = [labels.new_empty(1) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, labels.new_tensor([len(labels)]))
    counts = torch.cat(sizes).tolist()  # waits for the device, as no rank knows the sizes of the others
    return _gathered(embeddings, counts), _gathered(labels, counts)


def _gathered(rows: Tensor, sizes: list[int]) -> Tensor:
    # gathering needs equal shapes: rows are padded, and the padding is cut off
    padded = torch.cat([rows, rows.new_zeros(max(sizes) - len(rows), *rows.shape[1:])])
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
