from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oml.samplers.balance import BalanceSampler


@given(
    sizes=st.lists(st.integers(2, 5), min_size=2, max_size=15),
    n_labels=st.integers(2, 6),
    n_instances=st.integers(2, 4),
    seed=st.integers(0, 99),
)
def test_every_batch_is_labels_by_instances(sizes: list[int], n_labels: int, n_instances: int, seed: int) -> None:
    n_labels = min(n_labels, len(sizes))
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)) * 7 + 3, sizes))
    sampler = BalanceSampler(labels, n_labels, n_instances, seed=seed)
    seen: list[int] = []
    batches = list(sampler)
    assert len(batches) == len(sampler) == len(sizes) // n_labels
    for batch in batches:
        assert len(batch) == sampler.batch_size == n_labels * n_instances
        groups = labels[batch].reshape(n_labels, n_instances)
        assert (groups == groups[:, :1]).all()  # instances of a label stand together
        seen += groups[:, 0].tolist()
        for label, row in zip(groups[:, 0], np.reshape(batch, groups.shape), strict=True):
            assert len(set(row.tolist())) == min(n_instances, (labels == label).sum())
    assert len(seen) == len(set(seen)) > len(sizes) - n_labels  # no label twice, fewer than n_labels left out


def test_more_labels_than_one_block_holds() -> None:
    labels = np.repeat(np.arange(2_000), 2)
    seen = [label for batch in BalanceSampler(labels, 3, 2) for label in labels[batch][::2].tolist()]
    assert len(set(seen)) == len(seen) == 1_998


def test_epochs_differ_and_repeat_with_the_seed() -> None:
    labels = np.repeat(np.arange(20), 4)
    first, same, other = (BalanceSampler(labels, 4, 2, seed=seed) for seed in (1, 1, 2))
    epochs = [list(first), list(first)]
    assert epochs == [list(same), list(same)]
    assert epochs[0] != epochs[1]
    assert epochs[0] != list(other)
    first.set_epoch(0)
    assert list(first) == epochs[0]


def test_global_randomness_is_neither_read_nor_changed() -> None:
    labels = np.repeat(np.arange(20), 4)
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    first = list(BalanceSampler(labels, 4, 2))
    assert (np.random.get_state()[1] == before).all()
    np.random.seed(1)
    assert list(BalanceSampler(labels, 4, 2)) == first


def test_labels_left_out_differ_between_epochs() -> None:
    labels = np.repeat(np.arange(5), 2)
    sampler = BalanceSampler(labels, 4, 2)
    seen = Counter(label for _ in range(30) for batch in sampler for label in set(labels[batch].tolist()))
    assert set(seen) == set(range(5))


@pytest.mark.parametrize(
    ("n_labels", "n_instances", "text"), [(1, 2, "n_labels"), (4, 2, "n_labels"), (2, 1, "n_instances")]
)
def test_bad_arguments(n_labels: int, n_instances: int, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        BalanceSampler([0, 0, 1, 1, 2, 2], n_labels, n_instances)


def test_a_label_with_one_item_is_reported_and_used() -> None:
    with pytest.warns(UserWarning, match=r"1 of 2 labels with a single item, such as \[5\]"):
        sampler = BalanceSampler([4, 4, 5], 2, 2)
    assert sorted(next(iter(sampler))) == [0, 1, 2, 2]
