"""What processes of one group know of each other, and how they bring together what each has."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
_CHUNK_BYTES = 2**24  # of each process: what travels at once


class WarningDDP(UserWarning):
    """There are not as many processes as somebody thinks."""


class DictsDifferError(ValueError, AssertionError):
    """Dicts that are to become one do not fit. Also an ``AssertionError``, which old callers catch."""


def is_ddp() -> bool:
    """Whether this process is in a group of processes, be it the only one."""
    return dist.is_available() and dist.is_initialized()


def get_world_size_safe() -> int:
    """The number of processes in the group; 0 without one.

    Example:
        >>> get_world_size_safe()
        0
    """
    return dist.get_world_size() if is_ddp() else 0


def is_main_process() -> bool:
    """Whether this process has rank 0, or there is no group.

    Example:
        >>> is_main_process()
        True
    """
    return not is_ddp() or dist.get_rank() == 0


def in_all_processes(work: Callable[[], T]) -> T:
    """Do work in every process; an error in one of them is raised in all, where they would wait for it in vain.

    Example:
        >>> in_all_processes(lambda: 3)
        3
    """
    if get_world_size_safe() < 2:
        return work()
    failure: Exception | None = None
    done: list[T] = []
    try:
        done.append(work())
    except Exception as error:
        failure = error
    failures: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(failures, failure)
    for error in (failure, *failures):
        if error is not None:
            raise error
    return done[0]


def gather_rows(rows: Tensor, only_to_main: bool = False) -> Tensor:
    """The rows of all processes, by rank, on the CPU; every process of the group must call it, and gets all.

    They travel as bytes in chunks of 16 MiB, so besides the result little memory is needed, on the device too.

    Args:
        rows: [n, ...]; ``n`` may differ between processes and be 0, all else must agree.
        only_to_main: let only the main process get them, others no rows, to save their memory.
    """
    sizes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(sizes, len(rows))
    width = math.prod(rows.shape[1:])
    mine = rows.detach().contiguous().reshape(len(rows), width).view(torch.uint8)  # which every backend takes
    takes = is_main_process() or not only_to_main
    whole = mine.new_empty(sum(sizes) if takes else 0, mine.shape[1], device="cpu")
    by_rank = whole.split(sizes) if takes else ()
    step = max(1, _CHUNK_BYTES // max(1, mine.shape[1]))
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    for start in range(0, max(sizes), step):
        part = slice(start, min(start + step, max(sizes)))
        sent = torch.zeros(part.stop - start, mine.shape[1], dtype=torch.uint8, device=device)  # of one size, as needed
        sent[: len(mine[part])] = mine[part]
        received = [torch.empty_like(sent) for _ in sizes]
        dist.all_gather(received, sent)
        for target, source in zip(by_rank, received, strict=takes):
            target[part] = source[: len(target[part])]
    return whole.view(rows.dtype).reshape(len(whole), *rows.shape[1:])


def gather_values(name: str, values: Any) -> Any:
    """What all processes have under a name as one value, by rank: tensors, arrays of numbers, or what is pickled."""
    if isinstance(values, Tensor):
        return gather_rows(values)
    if isinstance(values, np.ndarray) and values.dtype.kind in "biuf":
        return gather_rows(torch.from_numpy(values)).numpy()
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, values)
    return _joined(name, everyone, "cpu")


def sync_dicts_ddp(
    outputs_from_device: Mapping[str, Any], world_size: int, device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """The dicts of all processes merged by rank, see :func:`merge_list_of_dicts`; every process must call it.

    Args:
        outputs_from_device: the same keys in every process, with values of the same kinds.
        world_size: how many processes the caller expects.
        device: where tensors are to be.

    Returns:
        The same in every process. Without a group, what came, and a ``WarningDDP`` if more than one was expected.

    Example:
        >>> sync_dicts_ddp({"ids": [1, 2]}, world_size=1)
        {'ids': [1, 2]}
    """
    if not is_ddp():
        if world_size > 1:
            warnings.warn(
                f"sync_dicts_ddp was told of {world_size} processes, but there is no group of them: nothing was "
                "gathered.",
                WarningDDP,
                stacklevel=2,
            )
        return dict(outputs_from_device)
    kinds: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(kinds, {key: type(value).__name__ for key, value in outputs_from_device.items()})
    if any(kind != kinds[0] for kind in kinds):
        raise DictsDifferError(f"sync_dicts_ddp needs the same keys and types in all processes, got by rank {kinds}.")
    gathered = {key: gather_values(key, value) for key, value in outputs_from_device.items()}
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in gathered.items()}


def merge_list_of_dicts(
    list_of_dicts: Sequence[Mapping[str, Any]], device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """One dict out of several with the same keys: lists and tuples chained, tensors and arrays put one after another.

    Args:
        list_of_dicts: at least one; values are lists, tuples, tensors or arrays, of one kind under one key.
        device: where tensors are to be.

    Raises:
        DictsDifferError: they are not such.

    Example:
        >>> merge_list_of_dicts([{"ids": [1], "x": torch.zeros(1)}, {"ids": [2, 3], "x": torch.ones(2)}])
        {'ids': [1, 2, 3], 'x': tensor([0., 1., 1.])}
    """
    kinds = [{key: type(value).__name__ for key, value in each.items()} for each in list_of_dicts]
    if not kinds or any(kind != kinds[0] for kind in kinds):
        raise DictsDifferError(f"merge_list_of_dicts needs dicts with the same keys and types, got {kinds}.")
    return {key: _joined(key, [each[key] for each in list_of_dicts], device) for key in list_of_dicts[0]}


def _joined(key: str, values: list[Any], device: torch.device | str) -> Any:
    if isinstance(values[0], Tensor):
        return torch.cat([value.to(device) for value in values])
    if isinstance(values[0], np.ndarray):
        return np.concatenate(values)
    if isinstance(values[0], list | tuple):
        return type(values[0])(item for value in values for item in value)
    raise DictsDifferError(
        f"merge_list_of_dicts needs lists, tuples, tensors or arrays, {key!r} is a {type(values[0]).__name__}."
    )
