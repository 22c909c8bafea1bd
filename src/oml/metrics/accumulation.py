"""Collecting what batches bring until an epoch is complete."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

TStorage = dict[str, list | np.ndarray | Tensor]


class Accumulator:
    """Keeps chosen entries of batches, in the order they come.

    Tensors are kept on the CPU, detached; arrays as arrays; lists and tuples as lists.

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
            TypeError: if an entry is no tensor, array, list or tuple.
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
            self._put(key, data_dict[key])
        self.collected_samples += size

    def is_storage_full(self) -> bool:
        """Whether all expected items are there."""
        return self.num_samples is not None and self.collected_samples == self.num_samples

    def _put(self, key: str, value: Any) -> None:
        assert self.num_samples is not None, "update_data checks it"
        rows = slice(self.collected_samples, self.collected_samples + len(value))
        if isinstance(value, Tensor):
            if key not in self.storage:
                self.storage[key] = torch.empty((self.num_samples, *value.shape[1:]), dtype=value.dtype)
            self.storage[key][rows] = value.detach().cpu()
        elif isinstance(value, np.ndarray):
            if key not in self.storage:
                self.storage[key] = np.empty((self.num_samples, *value.shape[1:]), dtype=value.dtype)
            self.storage[key][rows] = value  # pyright: ignore[reportArgumentType]
        elif isinstance(value, list | tuple):
            self.storage.setdefault(key, [])
            self.storage[key] += list(value)  # pyright: ignore[reportOperatorIssue]
        else:
            raise TypeError(
                f"Accumulator keeps tensors, arrays, lists and tuples; the entry {key!r} is a {type(value).__name__}."
            )
