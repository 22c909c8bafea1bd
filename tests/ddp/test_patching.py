"""Shares of samplers and loaders, for any number of processes."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from tests.processes import run_processes
from torch.utils.data import DataLoader, RandomSampler

from oml.ddp.patching import (
    DDPSamplerWrapper,
    check_loaders_is_patched,
    extract_loader_parameters,
    patch_dataloader_to_ddp,
)
from oml.ddp.utils import WarningDDP
from oml.samplers.balance import BalanceSampler

LABELS = [label for label in range(9) for _ in range(3)]


def shares(n_processes: int, sampler: Any, **kwargs: Any) -> list[DDPSamplerWrapper]:
    return [DDPSamplerWrapper(sampler, num_replicas=n_processes, rank=rank, **kwargs) for rank in range(n_processes)]


@given(n=st.integers(1, 40), n_processes=st.integers(1, 5), epochs=st.integers(1, 3))
def test_shares_are_the_whole_and_padding(n: int, n_processes: int, epochs: int) -> None:
    wrappers = shares(n_processes, range(n))
    for _ in range(epochs):
        parts = [list(wrapper) for wrapper in wrappers]
        assert {len(part) for part in parts} == {len(wrappers[0])} == {-(-n // n_processes)}
        dealt = [element for part in parts for element in part]
        assert set(dealt) == set(range(n))
        assert len(dealt) - n < n_processes
        if n >= n_processes:
            assert all(len(set(part)) == len(part) for part in parts)


@given(n=st.integers(0, 40), n_processes=st.integers(1, 5))
def test_without_padding_the_tail_is_left_out(n: int, n_processes: int) -> None:
    wrappers = shares(n_processes, range(n), pad_data_to_num_gpus=False)
    dealt = [element for wrapper in wrappers for element in wrapper]
    assert sorted(dealt) == list(range(n // n_processes * n_processes))
    assert len(wrappers[0]) == n // n_processes


def test_first_epoch_has_the_samplers_order_and_later_ones_are_dealt_anew() -> None:
    first, second = shares(2, range(6))
    assert [list(first), list(second)] == [[0, 2, 4], [1, 3, 5]]
    later = [list(first) + list(second) for _ in range(2)]
    assert all(sorted(epoch) == list(range(6)) for epoch in later)
    assert later[0] != later[1]

    first, second = shares(2, range(6), shuffle_samples_between_gpus=False)
    for _ in range(3):
        assert [list(first), list(second)] == [[0, 2, 4], [1, 3, 5]]


def test_random_samplers_are_read_anew_in_every_epoch() -> None:
    wrappers = [
        DDPSamplerWrapper(BalanceSampler(LABELS, 2, 3, seed=5), False, num_replicas=2, rank=rank) for rank in (0, 1)
    ]
    epochs = [[list(wrapper) for wrapper in wrappers] for _ in range(2)]
    whole = BalanceSampler(LABELS, 2, 3, seed=5)
    for parts in epochs:
        batches = list(whole)
        assert parts[0] == batches[::2]
        assert parts[1] == batches[1::2]
    assert epochs[0] != epochs[1]


def test_set_epoch_reaches_the_sampler_within() -> None:
    wrapper = DDPSamplerWrapper(BalanceSampler(LABELS, 2, 3, seed=5), num_replicas=1, rank=0)
    epochs = [list(wrapper) for _ in range(3)]
    wrapper.set_epoch(1)
    assert list(wrapper) == epochs[1]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_with_workers_reads_the_sampler_once_an_epoch(num_workers: int) -> None:
    sampler = BalanceSampler(LABELS, 2, 3, seed=5)
    wrapper = DDPSamplerWrapper(sampler, num_replicas=2, rank=0)
    loader = DataLoader(range(len(LABELS)), batch_sampler=wrapper, num_workers=num_workers)  # pyright: ignore[reportArgumentType]
    for _ in loader:
        pass
    assert sampler.state_dict() == {"seed": 5, "epoch": 1, "batches_done": 0}


def test_parameters_of_a_loader_make_the_same_loader() -> None:
    loader = DataLoader(range(7), batch_size=3, num_workers=2, drop_last=True, persistent_workers=True, timeout=5)  # pyright: ignore[reportArgumentType]
    parameters = extract_loader_parameters(loader)
    assert parameters["batch_size"] == 3
    assert {"num_workers": 2, "persistent_workers": True, "timeout": 5}.items() <= parameters.items()
    without = extract_loader_parameters(loader, ignore_data_related_parameters=True)
    assert extract_loader_parameters(DataLoader(range(7), **without)).items() >= without.items()  # pyright: ignore[reportArgumentType]


def test_without_a_group_the_loader_stays() -> None:
    loader = DataLoader(range(3))  # pyright: ignore[reportArgumentType]
    with pytest.warns(WarningDDP, match="in no group"):
        assert patch_dataloader_to_ddp(loader) is loader
    assert not check_loaders_is_patched([loader])


def load_in_a_process(rank: int, folder: Path) -> None:
    torch.manual_seed(rank)  # processes need not be seeded alike
    found = {}
    loaders = {
        "plain": DataLoader(range(7), batch_size=2),  # pyright: ignore[reportArgumentType]
        "shuffled": DataLoader(range(7), batch_size=2, shuffle=True),  # pyright: ignore[reportArgumentType]
        "dropped": DataLoader(range(7), batch_size=3, drop_last=True),  # pyright: ignore[reportArgumentType]
        "with replacement": DataLoader(range(7), sampler=RandomSampler(range(7), True, 5)),  # pyright: ignore[reportArgumentType]
        "balanced": DataLoader(range(len(LABELS)), batch_sampler=BalanceSampler(LABELS, 2, 3, seed=5)),  # pyright: ignore[reportArgumentType]
    }
    for name, loader in loaders.items():
        patched = patch_dataloader_to_ddp(loader)
        assert check_loaders_is_patched(patched)
        found[name] = [[batch.tolist() for batch in patched] for _ in range(2)]
    torch.save(found, folder / f"{rank}.pt")
    dist.barrier()


@pytest.mark.slow
def test_loaders_of_two_processes(tmp_path: Path) -> None:
    run_processes(load_in_a_process, tmp_path, folder=tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first["plain"] == [[[0, 2], [4, 6]]] * 2
    assert second["plain"] == [[[1, 3], [5, 0]]] * 2
    assert first["dropped"] == [[[0, 2, 4]]] * 2
    for epoch in (0, 1):
        items = [item for part in (first, second) for batch in part["shuffled"][epoch] for item in batch]
        assert set(items) == set(range(7))
        assert len(items) == 8
    assert first["shuffled"][0] != first["shuffled"][1]
    assert [len(part["with replacement"][0]) for part in (first, second)] == [3, 3]
    batches = list(BalanceSampler(LABELS, 2, 3, seed=5))
    assert first["balanced"][0] == batches[::2]
    assert second["balanced"][0] == batches[1::2]
