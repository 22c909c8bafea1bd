import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

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
    with pytest.raises(ValueError, match="expects 2 items, the batch would bring them to 3"):
        accumulator.update_data({"a": [1] * 3, "b": [1] * 3})
