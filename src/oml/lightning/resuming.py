"""Training that goes on after an interruption as if there had been none."""

import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset, Sampler

from oml.ddp.patching import DDPSamplerWrapper
from oml.ddp.utils import get_world_size_safe
from oml.interfaces.samplers import IBatchSampler
from oml.samplers.arguments import whole_number
from oml.samplers.epochs import Epochs, EpochSampler
from oml.utils.randomness import draws_of

BatchSampler = IBatchSampler | Sampler[list[int]]
_OTHERS = "of_further_processes"
_SAMPLER_STATE = {"seed", "epoch", "batches_done"}


class TrainingLoader(DataLoader):
    """A loader whose batches depend on its seed, the epoch and the number of the batch in the epoch alone.

    That holds for which items a batch has and for what their transforms draw from the global generators of torch,
    numpy and Python, and from those of albumentations in data sets of OML. So batches are the same with any number of
    workers, and after an interruption. Generators that a data set of yours keeps are left alone: draw from the global
    ones there. Drawing batches does not touch the generators of the main process.

    Every ``iter()`` is the next epoch. Lightning says which one that is, and keeps ``state_dict()`` in its
    checkpoints: the epoch and how many of its batches were handed out by the loader, which are those that were trained
    on, however many are in the making in workers. After ``load_state_dict`` the epoch goes on from there; ``len()``
    is always that of a whole epoch. Workers stay for all epochs, so that short ones cost no start of processes; what
    changes in the data set after the first epoch, they do not see. Lightning ends them after the fit.

    Of several processes, each has a loader from :meth:`shared_out`: :func:`oml.ddp.patching.patch_dataloader_to_ddp`
    and ``ExtractorModuleDDP`` see to it. What it says of seed, epoch and number holds then for the number among the
    batches of all processes.
    """

    def __init__(
        self, dataset: Dataset, sampler: BatchSampler, seed: int, num_workers: int, n_processes: int = 1, rank: int = 0
    ) -> None:
        self._order = _Order(sampler, seed, n_processes, rank)
        self._requests = _Requests()
        super().__init__(dataset, batch_sampler=self._order, num_workers=num_workers)
        if n_processes > 1:  # by this, loaders of a share are known
            share = DDPSamplerWrapper(
                self._order, shuffle_samples_between_gpus=False, num_replicas=n_processes, rank=rank
            )
            object.__setattr__(self, "sampler", share)

    def shared_out(self, n_processes: int, rank: int) -> "TrainingLoader":
        """A loader of every n-th batch: those of one of ``n_processes``.

        All processes get as many. For that, the first batches of a sampler come twice where they do not come out even;
        of random batches without a sampler the last ones are left out.

        Raises:
            ValueError: without a sampler, if the items do not make a batch for each process.
        """
        order = self._order
        shared = TrainingLoader(self.dataset, order.whole, order.seed, self.num_workers, n_processes, rank)
        if len(shared) == 0:
            raise ValueError(
                f"A training by {n_processes} processes needs a batch for each, and {len(self.dataset)} items make "  # pyright: ignore[reportArgumentType]
                f"{len(self)}. Make bs_train smaller: it is the batch size of one process."
            )
        return shared

    def __iter__(self) -> Iterator[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The batches of the next epoch. The epoch starts as the first of them is asked for."""
        numbered = self._order.numbered()
        key = self._order.seed, self._order.epoch
        self._requests.of_epoch = (((*key, number), ids) for number, ids in numbered)
        if self._iterator is None:
            self._loader = DataLoader(
                _RepeatableItems(self.dataset),
                batch_sampler=self._requests,  # pyright: ignore[reportArgumentType]
                num_workers=self.num_workers,
                collate_fn=self.collate_fn,
                worker_init_fn=self.worker_init_fn,
                generator=torch.Generator(),  # of the workers; not the global one
                persistent_workers=self.num_workers > 0,
            )
        batches = iter(self._loader)
        self._iterator = self._loader._iterator  # with the workers; Lightning ends those that it finds here
        for batch in batches:
            self._order.batches_done += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is: seeds, the epoch, and how many of its batches were handed out."""
        return self._order.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next ``iter()`` go on from there."""
        self._order.load_state_dict(state)


def training_loader(
    dataset: Dataset, sampler: BatchSampler | None, batch_size: int | None, seed: int, num_workers: int
) -> TrainingLoader:
    """A loader of training batches that resumes in the midst of an epoch, see :class:`TrainingLoader`.

    Args:
        dataset: any with a length.
        sampler: forms the batches. Those of OML go on where they were. Others are drawn a whole epoch at once, with
            the global generators seeded; after an interruption former epochs are drawn again and dropped, unless the
            sampler has ``set_epoch``.
        batch_size: without a sampler, so many items in random order make a batch; the rest of an epoch is left out.
        seed: of the order without a sampler, and of what transforms draw.
        num_workers: processes that make batches; 0 for none besides this one.

    Raises:
        ValueError: if there is neither a sampler nor a batch size, or fewer items than a batch has.
    """
    if sampler is None:
        sampler = _Shuffled(len(dataset), batch_size, seed)  # pyright: ignore[reportArgumentType]
    return TrainingLoader(dataset, sampler, seed, num_workers)


class RandomState(pl.Callback):
    """Keeps the states of the main process's generators in checkpoints: torch (CPU and CUDA), numpy and Python.

    A run that resumes draws the dropout, say, that it would have drawn. The states are taken up as training starts,
    after all that is done once per process. Each of several processes has its own; where one has none, as a run starts
    or resumes in more of them, it takes the seed that it has plus its rank.
    """

    def __init__(self) -> None:
        super().__init__()
        self._loaded: Mapping[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The states, of types that ``torch.load(weights_only=True)`` takes. All processes have to call it."""
        state: Any = np.random.get_state()  # noqa: NPY002
        kind, keys, *rest = state
        own = {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
            "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), *rest),
            "python": random.getstate(),
        }
        if get_world_size_safe() < 2:
            return own
        states: list[Any] = [None] * get_world_size_safe()
        dist.all_gather_object(states, own)
        return {**states[0], _OTHERS: states[1:]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Note the states for the start of training."""
        self._loaded = state_dict

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take up what was loaded, once."""
        state, self._loaded = self._loaded, None
        if rank := trainer.global_rank:
            state = dict(enumerate((state or {}).get(_OTHERS, ()), 1)).get(rank)
            if state is None:
                seed = (torch.initial_seed() + rank) % 2**32
                for seed_it in (torch.manual_seed, np.random.seed, random.seed):
                    seed_it(seed)
        if state is None:
            return
        torch.set_rng_state(state["torch"].cpu())
        if len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([one.cpu() for one in state["cuda"]])
        kind, keys, *rest = state["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
        random.setstate(state["python"])


class _Requests:
    """What is asked of :class:`_RepeatableItems` in this epoch, for a loader that is there for all epochs."""

    of_epoch: Iterator[tuple[tuple[int, ...], list[int]]]

    def __iter__(self) -> Iterator[tuple[tuple[int, ...], list[int]]]:
        return self.of_epoch


class _RepeatableItems(Dataset):
    """A data set whose items are asked for by batch, with a key that decides what is drawn for them."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def __getitems__(self, request: tuple[tuple[int, ...], Sequence[int]]) -> Any:
        key, ids = request
        with draws_of(*key):
            if callable(of_batch := getattr(self._dataset, "__getitems__", None)):
                return of_batch(ids)
            return [self._dataset[idx] for idx in ids]


class _Order(Sampler[list[int]]):
    """The batches of a sampler, by epochs, and which of them the loader has handed out; or one process's share."""

    def __init__(self, sampler: BatchSampler, seed: int, n_processes: int, rank: int) -> None:
        self.whole = sampler
        self._n_processes, self._rank = n_processes, rank
        self.seed = whole_number("training_loader", "seed", seed, 0)
        self.epoch = self.batches_done = 0
        self._has_begun = False
        self._n_drawn = 0  # epochs, by a sampler without a state

    @property
    def sampler(self) -> "_Order":
        """Lightning sets the epoch of ``loader.batch_sampler.sampler``."""
        return self

    def __len__(self) -> int:
        n = len(self.whole)  # pyright: ignore[reportArgumentType]
        return n // self._n_processes if isinstance(self.whole, _Shuffled) else -(-n // self._n_processes)

    def __iter__(self) -> Iterator[list[int]]:
        return (batch for _, batch in self.numbered())

    def numbered(self) -> Iterator[tuple[int, list[int]]]:
        """The batches of the next epoch that are to come, each with its number among those of all processes."""
        if self._has_begun:
            self._go_to(self.epoch + 1)
        self._has_begun = True
        if self._n_processes == 1:
            return enumerate(self._of_all(self.batches_done), self.batches_done)
        return islice(self._dealt(self._of_all(0)), self.batches_done, len(self))

    def _of_all(self, first: int) -> Iterator[list[int]]:
        """The batches of this epoch from number ``first`` on."""
        if (state := _state_of(self.whole)) is not None:
            self.whole.load_state_dict({**state, "epoch": self.epoch, "batches_done": first})  # pyright: ignore
            return iter(self.whole)
        return iter(self._drawn()[first:])

    def _dealt(self, batches: Iterator[list[int]]) -> Iterator[tuple[int, list[int]]]:
        head, n = [], 0
        for n, batch in enumerate(batches, 1):
            if n <= self._n_processes:
                head.append(batch)
            if (n - 1) % self._n_processes == self._rank:
                yield n - 1, batch
        number = len(self) * self._n_processes - self._n_processes + self._rank
        if number >= n:
            yield number % n, head[number % n]

    def set_epoch(self, epoch: int) -> None:
        """Let the next ``iter()`` be that of ``epoch``; a loaded state of the same epoch keeps its place in it."""
        if epoch != self.epoch:
            self._go_to(epoch)

    def state_dict(self) -> dict[str, Any]:
        more, done = divmod(self.batches_done, len(self))
        state = {"seed": self.seed, "epoch": self.epoch + more, "batches_done": done, "n_processes": self._n_processes}
        sampler = _state_of(self.whole)
        return state if sampler is None else {**state, "sampler_seed": sampler["seed"]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.seed = state["seed"]
        if (sampler := _state_of(self.whole)) is not None:
            self.whole.load_state_dict({**sampler, "seed": state.get("sampler_seed", sampler["seed"])})  # pyright: ignore
        self._go_to(state["epoch"], state["batches_done"] * state.get("n_processes", 1) // self._n_processes)

    def _go_to(self, epoch: int, batches_done: int = 0) -> None:
        self.epoch, self.batches_done, self._has_begun = epoch, batches_done, False

    def _drawn(self) -> list[list[int]]:
        if callable(set_epoch := getattr(self.whole, "set_epoch", None)):
            set_epoch(self.epoch)
            self._n_drawn = self.epoch
        batches: list[list[int]] = []
        for epoch in range(min(self._n_drawn, self.epoch), self.epoch + 1):
            with draws_of(self.seed, epoch):
                batches = list(islice(self.whole, len(self.whole)))  # pyright: ignore[reportArgumentType]
        self._n_drawn = self.epoch + 1
        return batches


class _Shuffled(EpochSampler):
    """All items in random order, as many batches as they fill."""

    def __init__(self, n_items: int, batch_size: int | None, seed: int) -> None:
        if batch_size is None or not 0 < batch_size <= n_items:
            raise ValueError(
                "training_loader without a sampler needs a batch size, bs_train in a config, of 1 or more and no more "
                f"than the {n_items} items there are, got {batch_size}."
            )
        self._n_items, self._batch_size = n_items, batch_size
        self._epochs = Epochs("training_loader", len(self), seed)

    @property
    def batch_size(self) -> int:
        return self._batch_size

    def __len__(self) -> int:
        return self._n_items // self._batch_size

    def _batches(self, rng: np.random.Generator) -> Iterator[list[int]]:
        for batch in rng.permutation(self._n_items)[: len(self) * self._batch_size].reshape(len(self), -1):
            yield batch.tolist()


def _state_of(sampler: BatchSampler) -> dict[str, int] | None:
    """The state of a sampler that has one such as those of OML."""
    state = sampler.state_dict() if hasattr(sampler, "state_dict") else None  # pyright: ignore[reportAttributeAccessIssue]
    return state if isinstance(state, dict) and set(state) == _SAMPLER_STATE else None
