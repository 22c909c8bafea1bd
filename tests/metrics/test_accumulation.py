from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.processes import run_processes

from oml.metrics.accumulation import Accumulator


@given(sizes=st.lists(st.integers(0, 4), min_size=1, max_size=6).filter(any))
def test_storage_is_the_concatenation(sizes: list[int]) -> None:
    total = sum(sizes)
    tensor, array = torch.randn(total, 2, requires_grad=True), np.arange(total)
    accumulator = Accumulator(["tensor", "array", "list"])
    for _ in range(2):  # it can be used again
        accumulator.refresh(total)
        for part in torch.arange(total).split(sizes):
            ids = part.tolist()
            batch = {"tensor": tensor[ids], "array": array[ids], "list": [str(i) for i in ids], "other": None}
            accumulator.update_data(batch)
        assert accumulator.is_storage_full()
        storage = accumulator.storage
        assert set(storage) == {"tensor", "array", "list"}
        assert torch.equal(storage["tensor"], tensor.detach())
        assert not storage["tensor"].requires_grad
        assert (storage["array"] == array).all()
        assert storage["list"] == [str(i) for i in range(total)]


def test_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="each key once"):
        Accumulator(["a", "a"])
    accumulator = Accumulator(["a", "b"])
    assert not accumulator.is_storage_full()
    with pytest.raises(ValueError, match=r"refresh\(num_samples"):
        accumulator.update_data({"a": [1], "b": [1]})
    with pytest.raises(ValueError, match="1 or more, got 0"):
        accumulator.refresh(0)
    accumulator.refresh(2)
    with pytest.raises(ValueError, match=r"entries \['b'\]"):
        accumulator.update_data({"a": [1]})
    with pytest.raises(ValueError, match=r"one length, got {'a': 1, 'b': 2}"):
        accumulator.update_data({"a": [1], "b": [1, 2]})
    with pytest.raises(TypeError, match="'a' is a str"):
        accumulator.update_data({"a": "x", "b": [1]})
    with pytest.raises(ValueError, match="once it is full, 0 of 2 items came"):
        accumulator.sync()
    with pytest.raises(ValueError, match="expects 2 items, the batch would bring them to 3"):
        accumulator.update_data({"a": [1] * 3, "b": [1] * 3})


def filled(first: int, last: int) -> Accumulator:
    """Items from ``first`` on, in entries of many kinds."""
    ids = torch.arange(first, last)
    batch = {
        "float": ids[:, None, None] * torch.ones(2, 3),
        "half": ids.bfloat16(),
        "bool": ids % 2 == 0,
        "array": ids.numpy() * 1.5,
        "texts": np.array(["x" * i for i in ids]),
        "list": [f"item {i}" for i in ids],
        "pair": tuple((int(i), None) for i in ids),
    }
    accumulator = Accumulator(batch)
    accumulator.refresh(last - first)
    accumulator.update_data(batch)
    return accumulator


def assert_same(found: Accumulator, expected: Accumulator) -> None:
    assert found.is_storage_full()
    assert found.num_samples == expected.num_samples
    assert list(found.storage) == list(expected.storage)
    for key, values in expected.storage.items():
        other: Any = found.storage[key]
        assert type(other) is type(values), key
        if isinstance(values, list):
            assert other == values, key
        else:
            assert other.dtype == values.dtype, key
            assert other.shape == values.shape, key
            assert (other == values).all(), key


@given(ends=st.lists(st.integers(1, 12), min_size=2, max_size=5, unique=True))
def test_parts_merge_to_the_whole(ends: list[int]) -> None:
    ends.sort()
    parts = [filled(first, last) for first, last in zip([0, *ends[:-1]], ends, strict=True)]
    assert_same(parts[0].merge(*parts[1:]), filled(0, ends[-1]))
    assert_same(parts[0], filled(0, ends[0]))  # itself it has not changed
    assert parts[0].sync() is parts[0]  # there is one process only


def test_what_does_not_merge() -> None:
    other = Accumulator(["float"])
    other.refresh(1)
    with pytest.raises(ValueError, match="0 of 1 items came"):
        filled(0, 1).merge(other)
    other.update_data({"float": torch.ones(1)})
    with pytest.raises(ValueError, match=r"of the same entries, \['float', 'half'.* got \['float'\]"):
        filled(0, 1).merge(other)


@pytest.mark.parametrize(
    "later",
    [torch.ones(1, 2), torch.ones(1, 3, dtype=torch.int64), np.ones((1, 3), dtype=np.float32), [[1.0, 1.0, 1.0]]],
)
def test_a_batch_does_not_change_its_kind(later: Any) -> None:
    """Otherwise integers would take the place of floats, or half of a batch stay."""
    accumulator = Accumulator(["first", "second"])
    accumulator.refresh(2)
    accumulator.update_data({"first": [1], "second": torch.ones(1, 3)})
    with pytest.raises(TypeError, match=r"keeps entries 'second' of one kind, got \('.*', \(.*\)\) after \('tensor'"):
        accumulator.update_data({"first": [2], "second": later})
    assert accumulator.storage["first"] == [1]


def _process(rank: int, out: str) -> None:
    mine = filled(0, 3) if rank == 0 else filled(3, 8)
    synced = mine.sync()
    other = filled(0, 2)
    other.storage["half"] = torch.arange(2) if rank else torch.arange(2).bool()
    try:
        other.sync()
        complaint = "none"
    except ValueError as error:
        complaint = str(error)
    torch.save((synced, complaint), f"{out}/{rank}")


@pytest.mark.slow
def test_processes_see_what_all_have_seen(tmp_path: Path) -> None:
    run_processes(_process, str(tmp_path), folder=tmp_path)
    for rank in (0, 1):
        synced, complaint = torch.load(tmp_path / str(rank), weights_only=False)
        assert_same(synced, filled(0, 8))
        assert "same entries in all processes" in complaint
