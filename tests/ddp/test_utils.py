"""What processes know of each other, and what they bring together."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.processes import run_processes

from oml.ddp import utils
from oml.ddp.utils import (
    DictsDifferError,
    WarningDDP,
    gather_rows,
    get_world_size_safe,
    is_ddp,
    is_main_process,
    merge_list_of_dicts,
    sync_dicts_ddp,
)


def test_without_a_group() -> None:
    assert not is_ddp()
    assert get_world_size_safe() == 0
    assert is_main_process()
    assert sync_dicts_ddp({"a": [1]}, world_size=1) == {"a": [1]}
    with pytest.warns(WarningDDP, match="told of 2 processes"):
        assert sync_dicts_ddp({"a": [1]}, world_size=2) == {"a": [1]}


def test_dicts_are_merged_in_order() -> None:
    merged = merge_list_of_dicts(
        [
            {"l": [1], "t": (1,), "x": torch.zeros(1, 2), "a": np.zeros(1)},
            {"l": [2], "t": (2, 3), "x": torch.ones(2, 2), "a": np.ones(2)},
        ]
    )
    assert merged["l"] == [1, 2]
    assert merged["t"] == (1, 2, 3)
    assert merged["x"].tolist() == [[0, 0], [1, 1], [1, 1]]
    assert merged["a"].tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    "dicts",
    [[], [{"a": [1]}, {"b": [1]}], [{"a": [1]}, {"a": (1,)}], [{"a": 1}, {"a": 2}]],
    ids=["none", "keys", "types", "numbers"],
)
@pytest.mark.parametrize("error", [ValueError, AssertionError])
def test_dicts_that_differ(dicts: list, error: type[Exception]) -> None:
    assert issubclass(DictsDifferError, error)
    with pytest.raises(error, match="merge_list_of_dicts needs"):
        merge_list_of_dicts(dicts)


DTYPES = [torch.float32, torch.bfloat16, torch.int64, torch.bool]


def rows_of(rank: int, dtype: torch.dtype) -> torch.Tensor:
    n = [5, 0, 2][rank]
    return (torch.arange(n * 6).reshape(n, 2, 3) + rank).to(dtype)


def gather_in_a_process(rank: int, folder: Path) -> None:
    assert is_ddp()
    assert get_world_size_safe() == 3
    assert is_main_process() == (rank == 0)
    utils._CHUNK_BYTES = 40  # two rows of floats
    found = {str(dtype): gather_rows(rows_of(rank, dtype)) for dtype in DTYPES}
    found["vector"] = gather_rows(torch.arange(rank))
    found["main"] = gather_rows(torch.arange(rank), only_to_main=True)
    own = {"x": rows_of(rank, torch.float32), "names": [f"{rank}"] * rank, "a": np.full(rank + 1, rank)}
    found["dict"] = sync_dicts_ddp(own, world_size=3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(DictsDifferError, match="by rank"):
        sync_dicts_ddp({"x" if rank else "y": [1]}, world_size=3)
    torch.save(found, folder / f"{rank}.pt")


@pytest.mark.slow
def test_rows_of_three_processes_one_of_which_has_none(tmp_path: Path) -> None:
    run_processes(gather_in_a_process, tmp_path, folder=tmp_path, n=3)
    for rank in range(3):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        for dtype in DTYPES:
            assert found[str(dtype)].dtype == dtype
            assert torch.equal(found[str(dtype)], torch.cat([rows_of(i, dtype) for i in range(3)]))
        assert found["vector"].tolist() == [0, 0, 1]
        assert found["main"].tolist() == ([0, 0, 1] if rank == 0 else [])
        merged = found["dict"]
        assert torch.equal(merged["x"], torch.cat([rows_of(i, torch.float32) for i in range(3)]))
        assert merged["names"] == ["1", "2", "2"]
        assert merged["a"].tolist() == [0, 1, 1, 2, 2, 2]
