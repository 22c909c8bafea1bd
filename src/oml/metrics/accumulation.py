"""Collecting what batches bring until an epoch is complete."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from oml.ddp.utils import gather_values, get_world_size_safe

TStorage = dict[str, list | np.ndarray | Tensor]

_TEXTS = "USO"  # the kinds of arrays whose items have sizes of their own


class Accumulator:
    """Keeps chosen entries of batches, in the order they come.

    Tensors are kept on the CPU, detached; arrays as arrays; lists and tuples as lists. Each part of an epoch may have
    an accumulator of its own: they merge.

    Args:
        keys_to_accumulate: which entries of a batch to keep, each once.

    Example:
        >>> accumulator = Accumulator(["labels"])
        >>> accumulator.refresh(num_samples=3)
        >>> accumulator.update_data({"labels": torch.tensor([1, 2])})
        >>> accumulator.update_data({"labels": torch.tensor([3])})
        >>> accumulator.storage["labels"]
        tensor([1, 2, 3])
    """

    def __init__(self, keys_to_accumulate: Iterable[str]) -> None:
        self.keys_to_accumulate = list(keys_to_accumulate)
        if len(set(self.keys_to_accumulate)) != len(self.keys_to_accumulate):
            raise ValueError(f"Accumulator needs each key once, got {self.keys_to_accumulate}.")
        self.num_samples: int | None = None
        self.collected_samples = 0
        self.storage: TStorage = {}

    def refresh(self, num_samples: int) -> None:
        """Forget everything and expect ``num_samples`` items."""
        if num_samples < 1:
            raise ValueError(f"Accumulator needs num_samples of 1 or more, got {num_samples}.")
        self.num_samples = num_samples
        self.collected_samples = 0
        self.storage = {}

    def update_data(self, data_dict: Mapping[str, Any]) -> None:
        """Keep one batch.

        Raises:
            ValueError: before :meth:`refresh`; if a key is missing, the entries differ in length, or more items
                come than are expected.
            TypeError: if an entry is no tensor, array, list or tuple, or not of the kind of those before.
        """
        if self.num_samples is None:
            raise ValueError("Accumulator needs refresh(num_samples=...) before the first batch.")
        if missing := [key for key in self.keys_to_accumulate if key not in data_dict]:
            raise ValueError(f"Accumulator needs the entries {missing}; the batch has {list(data_dict)}.")
        lengths = {key: len(data_dict[key]) for key in self.keys_to_accumulate}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"Accumulator needs entries of one length, got {lengths}.")
        size = next(iter(lengths.values()), 0)
        if self.collected_samples + size > self.num_samples:
            raise ValueError(
                f"Accumulator expects {self.num_samples} items, the batch would bring them to "
                f"{self.collected_samples + size}."
            )
        for key in self.keys_to_accumulate:
            kind = _kind(key, data_dict[key])
            if key in self.storage and kind != (before := _kind(key, self.storage[key])):
                raise TypeError(f"Accumulator keeps entries {key!r} of one kind, got {kind} after {before}.")
        for key in self.keys_to_accumulate:
            self._put(key, data_dict[key])
        self.collected_samples += size

    def is_storage_full(self) -> bool:
        """Whether all expected items are there."""
        return self.num_samples is not None and self.collected_samples == self.num_samples

    def merge(self, *others: "Accumulator") -> "Accumulator":
        """A new accumulator with the items of all, in this order; each must be full.

        Raises:
            ValueError: if one is not full, or they keep different entries.

        Example:
            >>> parts = [Accumulator(["labels"]), Accumulator(["labels"])]
            >>> for i, part in enumerate(parts):
            ...     part.refresh(num_samples=1)
            ...     part.update_data({"labels": torch.tensor([i])})
            >>> parts[0].merge(parts[1]).storage["labels"]
            tensor([0, 1])
        """
        parts = (self, *others)
        for part in parts:
            part._check_full()
            if part.keys_to_accumulate != self.keys_to_accumulate:
                raise ValueError(
                    f"Accumulator merges with one of the same entries, {self.keys_to_accumulate}, got "
                    f"{part.keys_to_accumulate}."
                )
        merged = Accumulator(self.keys_to_accumulate)
        merged.refresh(sum(part.collected_samples for part in parts))
        for part in parts:
            merged.update_data(part.storage)
        return merged

    def sync(self) -> "Accumulator":
        """The accumulators of all processes merged, by rank; itself if there is one process only.

        Every process must call it and gets all items. Tensors and arrays travel as their bytes, lists are pickled.

        Raises:
            ValueError: if it is not full, or the processes keep different entries.
        """
        self._check_full()
        if get_world_size_safe() < 2:
            return self
        kinds: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(kinds, {key: _kind(key, value) for key, value in self.storage.items()})
        if any(kind != kinds[0] for kind in kinds):
            raise ValueError(f"Accumulator needs the same entries in all processes, got by rank {kinds}.")
        merged = Accumulator(self.keys_to_accumulate)
        merged.storage = {key: gather_values(key, self.storage[key]) for key in self.keys_to_accumulate}
        merged.collected_samples = merged.num_samples = len(merged.storage[self.keys_to_accumulate[0]])
        return merged

    def once_each(self, index_key: str) -> "Accumulator":
        """The items in the order of their indices, each once; itself if that is how they are.

        Example:
            >>> accumulator = Accumulator(["idx"])
            >>> accumulator.refresh(num_samples=3)
            >>> accumulator.update_data({"idx": [1, 0, 1]})
            >>> accumulator.once_each("idx").storage["idx"]
            [0, 1]
        """
        index, order = torch.as_tensor(self.storage[index_key]).sort(stable=True)
        rows = order[torch.cat([torch.ones_like(index[:1], dtype=torch.bool), index[1:] != index[:-1]])]
        if torch.equal(rows, torch.arange(self.collected_samples)):
            return self
        once = Accumulator(self.keys_to_accumulate)
        once.refresh(len(rows))
        taken = rows.tolist()
        once.update_data(
            {
                key: [values[i] for i in taken] if isinstance(values, list) else values[rows.numpy()]
                for key, values in self.storage.items()
            }
        )
        return once

    def _check_full(self) -> None:
        if not self.is_storage_full():
            raise ValueError(
                f"Accumulator merges once it is full, {self.collected_samples} of {self.num_samples} items came."
            )

    def _put(self, key: str, value: Any) -> None:
        assert self.num_samples is not None, "update_data checks it"
        rows = slice(self.collected_samples, self.collected_samples + len(value))
        if isinstance(value, Tensor):
            if key not in self.storage:
                self.storage[key] = torch.empty((self.num_samples, *value.shape[1:]), dtype=value.dtype)
            self.storage[key][rows] = value.detach().cpu()
        elif isinstance(value, np.ndarray):
            stored = self.storage.get(key)
            if not isinstance(stored, np.ndarray):
                stored = np.empty((self.num_samples, *value.shape[1:]), dtype=value.dtype)
            # texts of a later batch may be longer
            self.storage[key] = stored = stored.astype(np.promote_types(stored.dtype, value.dtype), copy=False)
            stored[rows] = value
        else:
            self.storage.setdefault(key, [])
            self.storage[key] += list(value)  # pyright: ignore[reportOperatorIssue]


def _kind(key: str, value: Any) -> tuple[str, str, tuple[int, ...]]:
    """What must not change between batches and processes: the type, and of numbers their type and shape."""
    if isinstance(value, Tensor):
        return "tensor", str(value.dtype), tuple(value.shape[1:])
    if isinstance(value, np.ndarray):
        return "array", value.dtype.kind if value.dtype.kind in _TEXTS else value.dtype.str, value.shape[1:]
    if isinstance(value, list | tuple):
        return "list", "", ()
    raise TypeError(
        f"Accumulator keeps tensors, arrays, lists and tuples; the entry {key!r} is a {type(value).__name__}."
    )
