"""What forms batches."""

from abc import ABC, abstractmethod
from collections.abc import Iterator


class IBatchSampler(ABC):
    """Yields lists of data set positions, one list a batch: ``DataLoader(..., batch_sampler=sampler)``.

    Those of this library also have ``set_epoch``, ``state_dict`` and ``load_state_dict``, see
    :class:`oml.samplers.epochs.Epochs`.
    """

    @property
    @abstractmethod
    def batch_size(self) -> int:
        """Items per batch."""

    @abstractmethod
    def __len__(self) -> int:
        """Batches per epoch."""

    @abstractmethod
    def __iter__(self) -> Iterator[list[int]]:
        """The batches of one epoch; each call gives another epoch."""
