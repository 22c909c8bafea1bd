import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oml.samplers.arguments import blocks, label_array, whole_number


@given(n_batches=st.integers(1, 300), batch_size=st.integers(1, 40_000))
def test_blocks_hold_every_batch_once(n_batches: int, batch_size: int) -> None:
    slices = list(blocks(n_batches, batch_size))
    assert [i for block in slices for i in range(block.start, block.stop)] == list(range(n_batches))
    assert all(block.stop - block.start == 1 or (block.stop - block.start) * batch_size <= 2**15 for block in slices)


def test_whole_numbers() -> None:
    assert whole_number("Test", "n", np.int32(3), 2) == 3
    assert [whole_number("Test", "n", value, 2, most=4) for value in (2, 4)] == [2, 4]
    for value in (True, 3.0, "3", None):
        with pytest.raises(TypeError, match=f"Test needs a whole number as n, got {value!r}"):
            whole_number("Test", "n", value, 0)
    with pytest.raises(ValueError, match="Test needs n of 2 or more, got 1"):
        whole_number("Test", "n", 1, 2)
    with pytest.raises(ValueError, match="Test needs n between 2 and the size, 4, got 5"):
        whole_number("Test", "n", 5, 2, most=4, limit="the size")


def test_label_arrays() -> None:
    right = np.array([3, 1, 3])
    assert label_array("Test", right) is right
    for labels in (right.tolist(), right.astype(np.uint16), torch.from_numpy(right).char()):
        array = label_array("Test", labels)
        assert array.dtype == np.int64
        assert array.tolist() == [3, 1, 3]
    with pytest.raises(TypeError, match="Test needs keys that are integers of at most 64 bits with a sign, got uint64"):
        label_array("Test", right.astype(np.uint64), "keys")
