"""Loaders of which every process of a group gets its share."""

import inspect
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, RandomSampler, Sampler

from oml.ddp.utils import WarningDDP, is_ddp
from oml.interfaces.samplers import IBatchSampler

TAllSamplers = IBatchSampler | BatchSampler | Sampler
_DATA_RELATED = ("dataset", "sampler", "batch_sampler", "batch_size", "drop_last", "shuffle")


class DDPSamplerWrapper(DistributedSampler):
    """A process's share of what any sampler, or batch sampler, hands out: process ``r`` of ``W`` gets the elements
    ``r, r + W, r + 2W, ...``.

    The sampler is read whole once an epoch, in every process. So processes must read the same: samplers of OML do, as
    their seed is an argument; others must be seeded alike.

    Args:
        sampler: of items or of batches.
        shuffle_samples_between_gpus: deal the elements anew in every epoch but the first, so that what one process got
            goes to others.
        pad_data_to_num_gpus: let all processes have the same number of elements by dealing the first elements twice;
            otherwise the last elements, fewer than ``W``, are left out.
        num_replicas, rank: ``W`` and ``r``, by default those of the group.
        seed: of the dealing.

    Example:
        >>> [list(DDPSamplerWrapper(range(7), num_replicas=2, rank=rank)) for rank in (0, 1)]
        [[0, 2, 4, 6], [1, 3, 5, 0]]
    """

    def __init__(
        self,
        sampler: Any,
        shuffle_samples_between_gpus: bool = True,
        pad_data_to_num_gpus: bool = True,
        num_replicas: int | None = None,
        rank: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            dataset=sampler,
            num_replicas=num_replicas,
            rank=rank,
            shuffle=shuffle_samples_between_gpus,
            seed=seed,
            drop_last=not pad_data_to_num_gpus,
        )
        self.sampler = sampler
        self._next_epoch = 0

    def __len__(self) -> int:
        n = len(self.sampler)
        return n // self.num_replicas if self.drop_last else -(-n // self.num_replicas)

    def __iter__(self) -> Iterator[Any]:
        # read as the first element is asked for: a loader with workers calls iter() twice, and drops the first
        self.epoch, self._next_epoch = self._next_epoch, self._next_epoch + 1
        elements = list(self.sampler)
        if self.shuffle and self.epoch > 0:
            generator = torch.Generator().manual_seed(self.seed + self.epoch)
            elements = [elements[i] for i in torch.randperm(len(elements), generator=generator).tolist()]
        if self.drop_last:
            elements = elements[: len(elements) // self.num_replicas * self.num_replicas]
        elif elements:
            n = -(-len(elements) // self.num_replicas) * self.num_replicas
            elements = [elements[i % len(elements)] for i in range(n)]
        yield from elements[self.rank :: self.num_replicas]

    def set_epoch(self, epoch: int) -> None:
        """Let the next ``iter()`` be that of ``epoch``, of the sampler within too if it has epochs."""
        self._next_epoch = epoch
        if callable(set_epoch := getattr(self.sampler, "set_epoch", None)):
            set_epoch(epoch)


def patch_dataloader_to_ddp(loader: DataLoader) -> DataLoader:
    """A loader like this one that brings a process its share.

    If the batch sampler is torch's own, items are shared out, and batch size and ``drop_last`` are those of a process.
    Any other batch sampler makes batches that belong together: whole ones are shared out, so an epoch has ``W`` times
    fewer steps of ``W`` times as many items. Nothing is shuffled that was not before; the first elements come twice
    where the shares would differ in size. Every process must call it.

    Returns:
        A new loader. Without a group of processes the same one, and a ``WarningDDP``.
    """
    if not is_ddp():
        warnings.warn(
            "patch_dataloader_to_ddp has nothing to share out: this process is in no group. The loader is the same.",
            WarningDDP,
            stacklevel=2,
        )
        return loader
    if hasattr(loader, "shared_out"):  # it can do so itself
        return loader.shared_out(dist.get_world_size(), dist.get_rank())  # pyright: ignore[reportAttributeAccessIssue]
    kwargs: dict[str, Any] = {"shuffle_samples_between_gpus": False, "pad_data_to_num_gpus": True}
    parameters = extract_loader_parameters(loader, ignore_data_related_parameters=True)
    if type(loader.batch_sampler) is BatchSampler:
        sampler = DDPSamplerWrapper(_same_in_all_processes(loader.sampler), **kwargs)
        batch_size, drop_last = loader.batch_sampler.batch_size, loader.batch_sampler.drop_last
        return DataLoader(loader.dataset, batch_size, sampler=sampler, drop_last=drop_last, **parameters)
    if loader.batch_sampler is None:  # batch_size=None: the sampler's elements go to the data set as they are
        sampler = DDPSamplerWrapper(_same_in_all_processes(loader.sampler), **kwargs)
        return DataLoader(loader.dataset, batch_size=None, sampler=sampler, **parameters)
    shares = DDPSamplerWrapper(loader.batch_sampler, **kwargs)
    patched = DataLoader(loader.dataset, batch_sampler=shares, **parameters)
    # Here Lightning looks whether items are shared out already, and would do so itself, and for epochs to set. A
    # loader with a batch sampler has a sampler that nobody reads, which torch does not let one name.
    object.__setattr__(patched, "sampler", shares)
    return patched


def extract_loader_parameters(loader: DataLoader, ignore_data_related_parameters: bool = False) -> dict[str, Any]:
    """What a loader was built with, by the names of ``DataLoader``'s arguments.

    Args:
        loader: of torch.
        ignore_data_related_parameters: leave out data set, samplers, batch size and ``drop_last``.

    Example:
        >>> loader = torch.utils.data.DataLoader(range(3), num_workers=2)
        >>> extract_loader_parameters(loader)["num_workers"]
        2
    """
    names = inspect.signature(DataLoader.__init__).parameters
    known = {name: getattr(loader, name) for name in names if name != "self" and hasattr(loader, name)}
    if loader.num_workers == 0:
        known.pop("prefetch_factor", None)
    if not ignore_data_related_parameters:
        return known
    return {name: value for name, value in known.items() if name not in _DATA_RELATED}


def check_loaders_is_patched(loaders: DataLoader | Sequence[DataLoader]) -> bool:
    """Whether every one of these loaders brings a process its share: such from :func:`patch_dataloader_to_ddp`."""
    loaders = [loaders] if isinstance(loaders, DataLoader) else loaders
    return all(isinstance(loader.sampler, DDPSamplerWrapper) for loader in loaders)


def _same_in_all_processes(sampler: Any) -> Any:
    """A random sampler of torch without a seed draws one from the process it is in: let it be that of rank 0."""
    if type(sampler) is not RandomSampler or sampler.generator is not None:
        return sampler
    seed = [int(torch.empty((), dtype=torch.int64).random_())]
    dist.broadcast_object_list(seed)
    generator = torch.Generator().manual_seed(seed[0])
    n = None if not sampler.replacement and sampler.num_samples == len(sampler.data_source) else sampler.num_samples
    return RandomSampler(sampler.data_source, sampler.replacement, n, generator)
