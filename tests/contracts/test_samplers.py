"""What every sampler of the registry promises."""

import json
import os
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from itertools import islice
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from oml.interfaces.samplers import IBatchSampler
from oml.registry.samplers import SAMPLERS_CATEGORIES_BASED, SAMPLERS_REGISTRY

#: sizes 2 to 6, in no order; labels leave gaps
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(23) * 7 + 3, np.arange(23) % 5 + 2))
CATEGORIES = {int(label): ("hat", "bag", "shoe")[i % 3] for i, label in enumerate(np.unique(LABELS))}
COUNTS = {
    "balance": {"n_labels": 4, "n_instances": 3},
    "category_balance": {"n_categories": 2, "n_labels": 4, "n_instances": 3},
    "distinct_category_balance": {"n_categories": 2, "n_labels": 4, "n_instances": 3, "epoch_size": 7},
}
Build = Callable[..., Any]


def build(name: str, labels: Any = LABELS, categories: dict = CATEGORIES, **changed: Any) -> IBatchSampler:
    config = {"name": name, "args": {**COUNTS[name], **changed}}
    return SAMPLERS_REGISTRY.build(config, labels=labels, label2category=categories)


@pytest.fixture(params=sorted(SAMPLERS_REGISTRY))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=sorted(SAMPLERS_CATEGORIES_BASED))
def category_name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def as_users_run_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the type checks of the test run, which would refuse wrong types before our own code does."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def test_batches_are_labels_by_instances(name: str) -> None:
    sampler = build(name)
    batches = list(sampler)
    assert len(batches) == len(sampler) > 3
    n_instances = COUNTS[name]["n_instances"]
    repeats = set()
    for batch in batches:
        assert len(batch) == sampler.batch_size == COUNTS[name].get("n_categories", 1) * 4 * 3
        assert all(type(item) is int for item in batch)
        rows = np.array(batch).reshape(-1, n_instances)
        labels = LABELS[rows]
        assert (labels == labels[:, :1]).all()  # instances of a label stand together
        assert len(set(labels[:, 0].tolist())) == len(rows)
        for row, label in zip(rows, labels[:, 0], strict=True):
            size = int((label == LABELS).sum())
            assert len(set(row.tolist())) == min(size, n_instances)
            repeats.add(size < n_instances)
    assert repeats == {True, False}  # labels with too few items occur, and others


def test_public_attributes(name: str) -> None:
    sampler = build(name)
    for attribute in ("n_labels", "n_instances", "n_categories"):
        assert getattr(sampler, attribute, None) == COUNTS[name].get(attribute)


@pytest.mark.parametrize("n_workers", [0, 2])
def test_a_data_loader_takes_it(name: str, n_workers: int) -> None:
    loader = DataLoader(torch.arange(len(LABELS)), batch_sampler=build(name), num_workers=n_workers)  # type: ignore
    assert len(loader) == len(build(name))
    sampler = build(name)
    assert [[batch.tolist() for batch in loader] for _ in range(2)] == [list(sampler), list(sampler)]


@pytest.mark.parametrize("n_workers", [0, 2])
def test_a_data_loader_goes_on_where_training_was_interrupted(name: str, n_workers: int) -> None:
    def loader_of(sampler: IBatchSampler) -> DataLoader:
        return DataLoader(torch.arange(len(LABELS)), batch_sampler=sampler, num_workers=n_workers)  # type: ignore

    sampler = build(name)
    epochs = [list(sampler), list(sampler)]
    interrupted, resumed = build(name), build(name)
    batches = iter(loader_of(interrupted))
    trained = [next(batches).tolist() for _ in range(2)]
    # the loader may have asked for more batches: the loop knows those it trained on
    resumed.load_state_dict({**interrupted.state_dict(), "epoch": 0, "batches_done": 2})
    assert trained + [batch.tolist() for batch in loader_of(resumed)] == epochs[0]
    assert [batch.tolist() for batch in loader_of(resumed)] == epochs[1]


def test_epochs_differ_and_repeat_with_the_seed(name: str) -> None:
    first, same, other = (build(name, seed=seed) for seed in (1, 1, 2))
    epochs = [list(first) for _ in range(3)]
    assert epochs == [list(same) for _ in range(3)]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert list(other) not in epochs
    first.set_epoch(1)
    assert [list(first), list(first)] == epochs[1:]


def test_an_epoch_left_early_is_followed_by_the_next(name: str) -> None:
    sampler, whole = build(name), build(name)
    next(iter(sampler))
    assert [list(whole), list(whole)][1] == list(sampler)


def test_labels_in_any_form_give_the_same_batches(name: str) -> None:
    expected = list(build(name))
    for labels in (LABELS.tolist(), LABELS.astype(np.uint8), torch.from_numpy(LABELS), torch.from_numpy(LABELS).int()):
        assert list(build(name, labels)) == expected


def test_labels_count_by_their_order_alone(name: str) -> None:
    ranks = np.unique(LABELS, return_inverse=True)[1]
    values = np.array([-(2**63), -(2**40), -70_000, -1, 0, 70_000, 2**33, 2**48 + 1, 2**63 - 1])
    values = np.unique(np.concatenate([values, np.arange(1, 15)]))
    assert len(values) == 23
    categories = dict(zip(values.tolist(), CATEGORIES.values(), strict=True))
    assert list(build(name, values[ranks], categories)) == list(build(name))


def test_global_randomness_is_neither_read_nor_changed(name: str, as_users_run_it: None) -> None:
    def states() -> tuple[Any, ...]:
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    epochs = []
    for seed in range(2):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        before = states()
        sampler = build(name)
        epochs.append([list(sampler), sampler.state_dict()])
        assert states() == before
    assert epochs[0] == epochs[1]


@pytest.mark.parametrize("make", [np.random.default_rng, lambda seed: torch.Generator().manual_seed(seed)])
def test_a_generator_gives_the_seed_once(name: str, make: Callable[[int], Any]) -> None:
    one, same, other = make(1), make(1), make(2)
    sampler = build(name, seed=one)
    epochs = [list(sampler), list(sampler)]
    twin = build(name, seed=same)
    build(name, seed=same)  # draws from the generator that the twin got: no matter
    assert [list(twin), list(twin)] == epochs
    assert list(build(name, seed=other)) not in epochs
    assert list(build(name, seed=one)) not in epochs  # the generator has moved on


def test_a_state_goes_on_with_the_next_batch(name: str) -> None:
    whole = build(name, seed=5)
    epochs = [list(whole) for _ in range(3)]
    for n_done in range(len(whole) + 1):
        interrupted = build(name, seed=5)
        list(interrupted)
        done = list(islice(interrupted, n_done))
        state = json.loads(json.dumps(interrupted.state_dict()))
        resumed = build(name, seed=6)  # the state has the seed
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        if n_done < len(whole):
            assert done + list(resumed) == epochs[1]
        assert list(resumed) == epochs[2]


def test_a_state_counts_the_batches_handed_out(name: str) -> None:
    sampler = build(name, seed=5)
    assert sampler.state_dict() == {"seed": 5, "epoch": 0, "batches_done": 0}
    batches = iter(sampler)
    next(batches)
    assert sampler.state_dict() == {"seed": 5, "epoch": 0, "batches_done": 1}
    newer = iter(sampler)
    next(batches)  # the newer epoch starts with its first batch
    assert sampler.state_dict() == {"seed": 5, "epoch": 0, "batches_done": 2}
    next(newer)
    next(batches)  # of an epoch given up
    assert sampler.state_dict() == {"seed": 5, "epoch": 1, "batches_done": 1}
    list(newer)
    assert sampler.state_dict() == {"seed": 5, "epoch": 2, "batches_done": 0}
    sampler.set_epoch(9)
    assert sampler.state_dict() == {"seed": 5, "epoch": 9, "batches_done": 0}


def test_naming_the_running_epoch_keeps_the_count(name: str) -> None:
    """A loop that makes its iterator first, and tells the epoch afterwards."""
    sampler = build(name)
    batches = iter(sampler)
    next(batches), next(batches)
    sampler.set_epoch(0)
    next(batches)
    assert sampler.state_dict() == {"seed": 0, "epoch": 0, "batches_done": 3}
    assert list(sampler) == list(build(name))  # and the next iter() is that epoch, whole


def test_seeds_and_epochs_do_not_meet(name: str) -> None:
    """To seed by [seed, epoch] would make epoch 1 of a small seed epoch 0 of a large one."""
    small, large = build(name, seed=3), build(name, seed=3 + 2**32)
    small.set_epoch(1)
    assert list(small) != list(large)


def test_a_caller_may_count_the_batches(name: str) -> None:
    sampler = build(name, seed=5)
    epochs = [list(sampler) for _ in range(3)]
    loaded = {**build(name, seed=5).state_dict(), "epoch": 1, "batches_done": 2}
    sampler.load_state_dict(loaded)
    assert list(sampler) == epochs[1][2:]
    sampler.load_state_dict({**loaded, "epoch": 0, "batches_done": 2 * len(sampler) + 1})  # runs on
    assert list(sampler) == epochs[2][1:]
    sampler.load_state_dict(loaded)
    sampler.set_epoch(1)  # as training loops do at the start of every epoch
    assert list(sampler) == epochs[1][2:]
    sampler.load_state_dict(loaded)
    sampler.set_epoch(2)
    assert list(sampler) == epochs[2]


def test_a_new_process_goes_on_with_the_same_batches() -> None:
    code = """
import importlib, json, sys
given = json.load(sys.stdin)
categories = {int(label): category for label, category in given["categories"].items()}
for module, name, args, state in given["samplers"]:
    if "n_categories" in args:
        args["label2category"] = categories
    sampler = getattr(importlib.import_module(module), name)(given["labels"], **args)
    sampler.load_state_dict(state)
    print(json.dumps(list(sampler)))
"""
    samplers, rest = [], []
    for name, counts in COUNTS.items():
        batches = iter(sampler := build(name, seed=3))
        list(islice(batches, 2))
        samplers.append((type(sampler).__module__, type(sampler).__name__, counts, sampler.state_dict()))
        rest.append(list(batches))
    given = json.dumps({"samplers": samplers, "categories": CATEGORIES, "labels": LABELS.tolist()})
    seeds = {**os.environ, "PYTHONHASHSEED": "12345"}  # sets of strings have another order there
    printed = subprocess.run(
        [sys.executable, "-c", code], input=given, env=seeds, check=True, capture_output=True, text=True
    ).stdout
    assert [json.loads(line) for line in printed.splitlines()] == rest


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (
            {"step": 1},
            ValueError,
            "needs a state with seed, epoch, batches_done, got seed, epoch, batches_done, step",
        ),
        ({"epoch": -1}, ValueError, "needs epoch of 0 or more, got -1"),
        ({"batches_done": 1.5}, TypeError, "needs a whole number as batches_done, got 1.5"),
    ],
)
def test_states_that_are_none(
    name: str, change: dict[str, Any], error: type[Exception], text: str, as_users_run_it: None
) -> None:
    sampler = build(name)
    with pytest.raises(error, match=f"{type(sampler).__name__} {text}"):
        sampler.load_state_dict({**sampler.state_dict(), **change})
    assert list(sampler) == list(build(name))  # nothing of the state was taken
    with pytest.raises(ValueError, match="needs epoch of 0 or more"):
        sampler.set_epoch(-1)


def test_batches_are_made_as_they_are_asked_for(name: str) -> None:
    labels = np.repeat(np.arange(60_000), 2)
    n_batches = {"epoch_size": 8_000} if "epoch_size" in COUNTS[name] else {}
    sampler = build(name, labels, dict.fromkeys(range(60_000), 0) | {0: 1, 1: 1, 2: 1, 3: 1}, **n_batches)
    tracemalloc.start()
    size = sum(len(batch) for batch in sampler)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size == len(sampler) * sampler.batch_size >= 180_000
    assert peak < 28 * size  # a list of them all takes 8 bytes an item for the list and 32 for the number


def test_a_label_with_one_item_is_reported_and_used(name: str) -> None:
    labels = np.append(LABELS, 500)
    with pytest.warns(UserWarning, match=rf"{SAMPLERS_REGISTRY[name].__name__} got 1 of 24 .* such as \[500\]"):
        sampler = build(name, labels, {**CATEGORIES, 500: "hat"})
    lone = len(LABELS)
    counts = {batch.count(lone) for _ in range(5) for batch in sampler}
    assert counts == {0, COUNTS[name]["n_instances"]}


@pytest.mark.parametrize(
    ("labels", "error", "text"),
    [
        ([], ValueError, r"one integer label per item, got labels of shape \(0,\)"),
        ([[1, 1], [2, 2]], ValueError, r"one integer label per item, got labels of shape \(2, 2\)"),
        ([[1, 1], [2]], ValueError, "one integer label per item, got labels of several lengths"),
        ([1.0, 1.0, 2.0, 2.0], TypeError, r"labels that are integers .* got float64, such as \[1.0, 1.0, 2.0\]"),
        (torch.tensor([1.0, 1.0, 2.0, 2.0]), TypeError, "labels that are integers"),
        ([True, True, False, False], TypeError, "labels that are integers"),
        (["a", "a", "b", "b"], TypeError, "labels that are integers"),
        ([1, 1, None, None], TypeError, "labels that are integers"),
        ([1, 1, 2**64, 2**64], TypeError, "labels that are integers"),
    ],
)
def test_labels_that_are_none(name: str, labels: Any, error: type[Exception], text: str, as_users_run_it: None) -> None:
    with pytest.raises(error, match=f"{SAMPLERS_REGISTRY[name].__name__} needs {text}"):
        build(name, labels)


@pytest.mark.parametrize(
    ("count", "value", "error", "text"),
    [
        ("n_labels", 1, ValueError, "n_labels between 2 and the number of labels, 23, got 1"),
        ("n_labels", 24, ValueError, "n_labels between 2 and the number of labels, 23, got 24"),
        ("n_labels", "2", TypeError, "a whole number as n_labels, got '2'"),
        ("n_instances", 1, ValueError, "n_instances of 2 or more, got 1"),
        ("n_instances", 2.0, TypeError, "a whole number as n_instances, got 2.0"),
        ("n_categories", 0, ValueError, "n_categories between 1 and the number of categories, 3, got 0"),
        ("n_categories", 4, ValueError, "n_categories between 1 and the number of categories, 3, got 4"),
        ("n_categories", True, TypeError, "a whole number as n_categories, got True"),
        ("epoch_size", 0, ValueError, "epoch_size of 1 or more, got 0"),
        ("epoch_size", None, TypeError, "a whole number as epoch_size, got None"),
        ("seed", -1, ValueError, "seed of 0 or more, got -1"),
        ("seed", "0", TypeError, "a whole number as seed, got '0'"),
    ],
)
def test_counts_out_of_range(
    name: str, count: str, value: Any, error: type[Exception], text: str, as_users_run_it: None
) -> None:
    if count not in {*COUNTS[name], "seed"}:
        return
    with pytest.raises(error, match=f"{SAMPLERS_REGISTRY[name].__name__} needs {text}"):
        build(name, **{count: value})


def test_batches_have_the_categories_and_labels_asked_for(category_name: str) -> None:
    for batch in build(category_name):
        categories = [CATEGORIES[int(label)] for label in LABELS[batch]]
        assert len(set(categories)) == 2
        assert all(categories.count(category) == 4 * 3 for category in categories)
        assert len(set(LABELS[batch].tolist())) == 2 * 4


@pytest.mark.parametrize("string", [str, lambda number: "abcdefgh"[number]])
def test_categories_count_by_their_order_alone(
    category_name: str, string: Callable[[int], str], as_users_run_it: None
) -> None:
    numbers = {int(label): i % 3 + 1 for i, label in enumerate(np.unique(LABELS))}
    strings = {label: string(number) for label, number in numbers.items()}
    backwards = dict(reversed(numbers.items()))
    far = {np.int64(label): np.int64(number * 10**9) for label, number in numbers.items()}
    expected = list(build(category_name, categories=numbers))
    for categories in (strings, backwards, far):
        assert list(build(category_name, categories=categories)) == expected
    assert list(build(category_name, categories={label: -number for label, number in numbers.items()})) != expected


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({3: None}, TypeError, "needs categories that are all strings or all integers, got {3: None} and others"),
        ({3: 1}, TypeError, "needs categories that are all strings or all integers, got {3: 1} and others"),
        (
            {4: "hat"},
            ValueError,
            r"0 of 23 labels have none in label2category, .*; 1 in .* no item, such as \[4\]",
        ),
        ({"4": "hat"}, TypeError, "needs labels in label2category that are integers"),
        (
            {10: "scarf"},
            ValueError,
            "categories must have at least 4 unique labels, but 1 of 4 have .* {'scarf': 1}",
        ),
    ],
)
def test_categories_that_do_not_fit(
    category_name: str, changes: dict, error: type[Exception], text: str, as_users_run_it: None
) -> None:
    with pytest.raises(error, match=f"{SAMPLERS_REGISTRY[category_name].__name__}.*{text}"):
        build(category_name, categories={**CATEGORIES, **changes})


def test_labels_without_a_category(category_name: str) -> None:
    categories = {label: category for label, category in CATEGORIES.items() if label > 10}
    with pytest.raises(ValueError, match=r"2 of 23 labels have none in label2category, such as \[3, 10\]; 0 in"):
        build(category_name, categories=categories)
