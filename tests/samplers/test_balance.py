from collections import Counter

import numpy as np
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
        assert len(set(batch)) >= 4
        groups = labels[batch].reshape(n_labels, n_instances)
        assert (groups == groups[:, :1]).all()  # instances of a label stand together
        seen += groups[:, 0].tolist()
        for label, row in zip(groups[:, 0], np.reshape(batch, groups.shape), strict=True):
            assert len(set(row.tolist())) == min(n_instances, (labels == label).sum())
    assert len(seen) == len(set(seen)) > len(sizes) - n_labels  # no label twice, fewer than n_labels left out


def test_more_labels_than_one_block_holds() -> None:
    labels = np.repeat(np.arange(20_000), 2)
    seen = [label for batch in BalanceSampler(labels, 3, 2) for label in labels[batch][::2].tolist()]
    assert len(set(seen)) == len(seen) == 19_998


def test_labels_left_out_differ_between_epochs() -> None:
    labels = np.repeat(np.arange(5), 2)
    sampler = BalanceSampler(labels, 4, 2)
    seen = Counter(label for _ in range(30) for batch in sampler for label in set(labels[batch].tolist()))
    assert set(seen) == set(range(5))
