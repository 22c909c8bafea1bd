import os
import random
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from oml.utils.misc import (
    check_if_nonempty_positive_integers,
    clip_max,
    compare_dicts_recursively,
    dictconfig_to_dict,
    find_first_occurrences,
    find_value_ids,
    flatten_dict,
    load_dotenv,
    one_hot,
    remove_unused_kwargs,
    set_global_seed,
    smart_sample,
)


def test_value_ids() -> None:
    for kind in (list, tuple, np.array, iter):
        assert find_value_ids(kind([3, 1, 3, 2]), 3) == [0, 2]
        assert find_value_ids(kind([3, 1]), 7) == []
    assert all(type(i) is int for i in find_value_ids(np.array([3, 3]), 3))
    assert find_value_ids(["b", None, "b"], None) == [1]


def test_first_occurrences() -> None:
    for kind in (list, np.array, torch.tensor, iter):
        assert find_first_occurrences(kind([2, 2, 0, 2, 1, 0])) == [0, 2, 4]
    assert find_first_occurrences("abca") == [0, 1, 2]
    assert find_first_occurrences([]) == []


@pytest.fixture
def _global_state(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PL_SEED_WORKERS", "0")
    states = random.getstate(), np.random.get_state()
    cudnn = torch.backends.cudnn
    flags = cudnn.benchmark, cudnn.deterministic
    with torch.random.fork_rng():
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])
    cudnn.benchmark, cudnn.deterministic = flags


@pytest.mark.usefixtures("_global_state")
def test_global_seed() -> None:
    def draws() -> list[float]:
        return [random.random(), np.random.rand(), torch.rand(1).item()]

    set_global_seed(3)
    first = draws()
    assert os.environ["PL_SEED_WORKERS"] == "1"
    assert all(a != b for a, b in zip(first, draws(), strict=True))
    set_global_seed(4)
    assert all(a != b for a, b in zip(first, draws(), strict=True))
    set_global_seed(3)
    assert draws() == first


@pytest.mark.usefixtures("_global_state")
@pytest.mark.parametrize("has_cuda", [True, False])
def test_global_seed_on_other_devices(has_cuda: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = True, False
    xla = SimpleNamespace(set_rng_state=seeds.append)
    monkeypatch.setattr("oml.utils.misc.find_spec", lambda name: name == "torch_xla")
    monkeypatch.setitem(sys.modules, "torch_xla", SimpleNamespace(__path__=[]))
    monkeypatch.setitem(sys.modules, "torch_xla.core", SimpleNamespace(__path__=[]))
    monkeypatch.setitem(sys.modules, "torch_xla.core.xla_model", xla)
    set_global_seed(3)
    assert seeds == [3]
    assert torch.backends.cudnn.benchmark is (not has_cuda)
    assert torch.backends.cudnn.deterministic is has_cuda


def test_one_hot() -> None:
    for i in range(3):
        vector = one_hot(i, 3)
        assert vector.dtype == torch.float32
        assert vector.tolist() == [float(j == i) for j in range(3)]
    for i in (-1, 3):
        with pytest.raises(ValueError, match=f"position of 0 to 2, as dim=3, got {i}"):
            one_hot(i, 3)


def test_flat_dicts() -> None:
    nested = {"a": {"b": 1, "skip": 2, "c": {"skip": {"d": 3}, "e": [4], 5: None}}, "empty": {"x": {}}, "skip": 6}
    assert flatten_dict(nested, ignored_keys=["skip"]) == {"a/b": 1, "a/c/e": [4], "a/c/5": None}
    assert flatten_dict({"a": {"b": 1}, "c": 2}, parent_key="top", sep=".") == {"top.a.b": 1, "top.c": 2}
    assert flatten_dict(OmegaConf.create({"a": {"b": 1}})) == {"a/b": 1}
    assert flatten_dict({}) == {}


def test_dotenv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    monkeypatch.setitem(sys.modules, "dotenv", None)
    assert load_dotenv(tmp_path / ".env") is False
    (tmp_path / ".env").write_text("A=1")
    with pytest.raises(ModuleNotFoundError, match=r"needs python-dotenv for .*\.env: pip install python-dotenv"):
        load_dotenv(tmp_path / ".env")
    monkeypatch.setitem(sys.modules, "dotenv", SimpleNamespace(load_dotenv=lambda path: read.append(path) or True))
    assert load_dotenv(tmp_path / ".env") is True
    assert read == [tmp_path / ".env"]


def test_configs_become_dicts() -> None:
    config = OmegaConf.create({"size": 8, "model": {"sizes": ["${size}", 2]}, "${size}": None})
    expected = {"size": 8, "model": {"sizes": [8, 2]}, "${size}": None}
    made = dictconfig_to_dict(config)
    assert made == expected
    assert (type(made), type(made["model"]), type(made["model"]["sizes"])) == (dict, dict, list)
    tensor = torch.zeros(1)
    given: dict[str, Any] = {"config": config, "plain": {"text": "${size}", "list": [config, {1: tensor}]}}
    made = dictconfig_to_dict(given)
    assert made == {"config": expected, "plain": {"text": "${size}", "list": [expected, {1: tensor}]}}
    made["plain"]["list"].append(0)
    assert len(given["plain"]["list"]) == 2


@given(elements=st.lists(st.integers(0, 3), min_size=1, max_size=6), k=st.integers(0, 15), seed=st.integers(0, 99))
def test_smart_sample(elements: list[int], k: int, seed: int) -> None:
    picked = smart_sample(elements, k, np.random.default_rng(seed))
    assert len(picked) == k
    n = len(elements)
    available = Counter(elements)
    if k <= n:
        assert Counter(picked) <= available  # no position twice
    else:
        assert Counter(picked[:n]) == available
        assert set(picked[n:]) <= set(elements)
    assert picked == smart_sample(np.array(elements), k, np.random.default_rng(seed))


def test_smart_sample_is_random() -> None:
    state = str(np.random.get_state())
    assert {tuple(smart_sample("abc", 2)) for _ in range(300)} == {(a, b) for a in "abc" for b in "abc" if a != b}
    assert {tuple(smart_sample("ab", 3)) for _ in range(300)} == {(*first, x) for first in ("ab", "ba") for x in "ab"}
    assert str(np.random.get_state()) == state  # the global generator is left alone
    for array, k in (([], 1), ([1], -1)):
        with pytest.raises(ValueError, match=f"k={k} of {len(array)} elements"):
            smart_sample(array, k)


def test_clip_max() -> None:
    assert clip_max((3, 9, 5), 5) == (3, 5, 5)
    assert clip_max([], 5) == ()


class Model:
    def __init__(self, dim: int, *, depth: int = 1, **others: Any) -> None:
        pass


def test_unused_kwargs() -> None:
    kwargs: dict[str, Any] = {"dim": 1, "depth": 2, "width": 3, "self": 4}
    assert remove_unused_kwargs(kwargs, Model) == {"dim": 1, "depth": 2}
    assert kwargs == {"dim": 1, "depth": 2, "width": 3, "self": 4}


def test_positive_integers() -> None:
    for good in (1, np.int64(3), [1], (5, 1), np.array([2, 3]), [np.int32(1)]):
        check_if_nonempty_positive_integers(good, "top_k")
    for bad in (0, -1, 1.0, True, None, "", "12", [], (), [1, 0], [1, 2.0], [[1]], {1}, np.array([1.0])):
        with pytest.raises(ValueError, match="top_k must be a positive integer or a sequence of one or more, got"):
            check_if_nonempty_positive_integers(bad, "top_k")


def test_dicts_are_compared() -> None:
    a: dict[str, Any] = {"x": {"y": {1: [1, 2]}}, "z": float("nan")}
    assert compare_dicts_recursively(a, {"z": a["z"], "x": {"y": {1: [1, 2]}}})
    for b, text in [
        (a | {"x": {"y": {1: [1, 3]}}}, "The dicts differ at x/y/1: [1, 2] and [1, 3]."),
        (a | {"x": {"y": 5}}, "The dicts differ at x/y: {1: [1, 2]} and 5."),
        (a | {"x": {"y": {2: 0}}}, "The dicts differ at x/y: only the first has the keys [1], only the second [2]."),
        ({"x": a["x"]}, "The dicts differ: only the first has the keys ['z'], only the second []."),
    ]:
        with pytest.raises(AssertionError) as error:
            compare_dicts_recursively(a, b)
        assert str(error.value) == text
