"""What forms batches."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping


class IBatchSampler(ABC):
    """Yields lists of data set positions, one list a batch: ``DataLoader(..., batch_sampler=sampler)``."""

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

    @abstractmethod
    def set_epoch(self, epoch: int) -> None:
        """Let the next ``iter()`` be that of epoch ``epoch``."""

    @abstractmethod
    def state_dict(self) -> dict[str, int]:
        """Where the sampler stands: ``load_state_dict`` of this in another process goes on with the next batch."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Let the next ``iter()`` go on from where ``state_dict`` was taken."""
