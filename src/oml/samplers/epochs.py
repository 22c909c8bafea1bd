"""Which epoch comes next, and how many batches of the present one are done."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from oml.interfaces.samplers import IBatchSampler
from oml.samplers.arguments import whole_number

Seed = int | np.random.Generator | torch.Generator
_KEYS = ("seed", "epoch", "batches_done")


@dataclass
class _Position:
    epoch: int
    done: int


class Epochs:
    """The part of a sampler that changes: it starts epochs, counts their batches and goes on after an interruption.

    Epoch ``e`` depends on what the sampler was given, the seed and ``e`` alone. Every ``iter()`` is the next epoch,
    also if the last one was left early. The epoch starts as its first batch is asked for, since a ``DataLoader`` with
    workers calls ``iter()`` twice and drops the first.

    **State.** ``state_dict()`` is ``{"seed", "epoch", "batches_done"}``, three integers. The batches done are those
    *handed out*. A ``DataLoader`` with workers asks for ``num_workers * prefetch_factor`` batches more than the loop
    has trained on; a loop that counts its own steps says so with ``load_state_dict({**state, "epoch": epoch,
    "batches_done": steps})``. More batches than an epoch has run on into the epochs after it, so ``"epoch": 0`` with
    the number of all steps is right as well, if no epoch was left early. The batches done are drawn again and dropped:
    the first batch after that takes as long as they took.

    Args:
        owner: the sampler's name, for messages.
        length: batches per epoch.
        seed: a whole number, 0 or more. A generator of numpy or torch is asked for such a number once, and not kept.
    """

    def __init__(self, owner: str, length: int, seed: Seed) -> None:
        self._owner = owner
        self._length = length
        self._seed = _drawn(owner, seed)
        self._now = self._next = _Position(0, 0)

    def start(self, batches: Callable[[np.random.Generator], Iterator[list[int]]]) -> Iterator[list[int]]:
        """The next epoch, or what is left of the one that was loaded: ``batches`` makes a whole one."""
        now = self._now = self._next
        self._next = _Position(now.epoch + 1, 0)
        # spawn_key and not [seed, epoch]: large seeds would meet small ones of other epochs
        rng = np.random.default_rng(np.random.SeedSequence(self._seed, spawn_key=(now.epoch,)))
        for batch in islice(batches(rng), now.done, None):
            now.done += 1
            yield batch

    def set_epoch(self, epoch: int) -> None:
        """Let the next ``start`` be that of ``epoch``; a loaded state of the same epoch keeps its place in it."""
        epoch = whole_number(self._owner, "epoch", epoch, 0)
        if epoch != self._next.epoch:
            self._next = _Position(epoch, 0)
        # a loop may say which epoch it is in after its loader has asked for batches: they go on being counted
        if not (self._now.epoch == epoch and 0 < self._now.done < self._length):
            self._now = self._next

    def state_dict(self) -> dict[str, int]:
        """The seed, the epoch, and how many of its batches were handed out."""
        more, done = divmod(self._now.done, self._length)
        return dict(zip(_KEYS, (self._seed, self._now.epoch + more, done), strict=True))

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Let the next ``start`` go on from there."""
        if set(state) != set(_KEYS):
            raise ValueError(f"{self._owner} needs a state with {', '.join(_KEYS)}, got {', '.join(map(str, state))}.")
        self._seed, epoch, done = (whole_number(self._owner, key, state[key], 0) for key in _KEYS)
        more, done = divmod(done, self._length)
        self._now = self._next = _Position(epoch + more, done)


class EpochSampler(IBatchSampler):
    """A sampler whose state is ``_epochs``, and whose batches are those that ``_batches`` makes."""

    _epochs: Epochs

    def __iter__(self) -> Iterator[list[int]]:
        return self._epochs.start(self._batches)

    def set_epoch(self, epoch: int) -> None:
        """Let the next ``iter()`` be that of epoch ``epoch``."""
        self._epochs.set_epoch(epoch)

    def state_dict(self) -> dict[str, int]:
        """The seed, the epoch and how many of its batches were handed out."""
        return self._epochs.state_dict()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Let the next ``iter()`` go on from there."""
        self._epochs.load_state_dict(state)

    @abstractmethod
    def _batches(self, rng: np.random.Generator) -> Iterator[list[int]]:
        """All batches of an epoch, made as they are asked for."""


def _drawn(owner: str, seed: Seed) -> int:
    if isinstance(seed, np.random.Generator):
        return int(seed.integers(2**63))
    if isinstance(seed, torch.Generator):
        return int(torch.randint(2**63 - 1, (), generator=seed, device=seed.device))
    return whole_number(owner, "seed", seed, 0)
