from collections import Counter
from itertools import islice

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from oml.samplers.distinct_category_balance import DistinctCategoryBalanceSampler


def sampler_of(sizes: list[int], n_categories: int, n_labels: int, epoch_size: int) -> DistinctCategoryBalanceSampler:
    """Categories of so many labels with two items each: item i has label i // 2."""
    categories = np.repeat(np.arange(len(sizes)), sizes)
    return DistinctCategoryBalanceSampler(
        np.repeat(np.arange(sum(sizes)), 2),
        dict(enumerate(categories.tolist())),
        n_categories,
        n_labels,
        n_instances=2,
        epoch_size=epoch_size,
    )


def labels_of(batch: list[int]) -> list[int]:
    return [item // 2 for item in batch[::2]]


@given(
    sizes=st.lists(st.integers(0, 7), min_size=1, max_size=5),
    n_categories=st.integers(1, 5),
    n_labels=st.integers(2, 4),
    epoch_size=st.integers(1, 30),
)
def test_labels_are_used_up_before_any_comes_back(
    sizes: list[int], n_categories: int, n_labels: int, epoch_size: int
) -> None:
    sizes = [n_labels + more for more in sizes]
    n_categories = min(n_categories, len(sizes))
    category = np.repeat(np.arange(len(sizes)), sizes)
    everything = [set(np.flatnonzero(category == one).tolist()) for one in range(len(sizes))]
    sampler = sampler_of(sizes, n_categories, n_labels, epoch_size)
    for _ in range(2):
        unused = [set(labels) for labels in everything]
        batches = list(sampler)
        assert len(batches) == len(sampler) == epoch_size
        for batch in batches:
            if sum(map(bool, unused)) < n_categories:
                unused = [set(labels) for labels in everything]
            rows = np.array(labels_of(batch)).reshape(n_categories, n_labels)
            assert (category[rows] == category[rows[:, :1]]).all()
            chosen = category[rows[:, 0]].tolist()
            assert len(set(chosen)) == n_categories
            for one, row in zip(chosen, rows.tolist(), strict=True):
                assert unused[one]
                assert len(set(row)) == n_labels
                if len(unused[one]) >= n_labels:
                    assert set(row) <= unused[one]
                else:
                    assert unused[one] <= set(row)
                unused[one] -= set(row)


def test_categories_are_drawn_uniformly() -> None:
    batches = [labels_of(batch) for batch in sampler_of([2, 2, 2, 2], 2, 2, epoch_size=6_000)]
    # two batches use up the four categories; the first has any two of them
    counts = Counter(frozenset(label // 2 for label in batch) for batch in islice(batches, 0, None, 2))
    assert len(counts) == 6
    assert max(abs(count - 500) for count in counts.values()) < 5 * 21
    batches = [labels_of(batch) for batch in sampler_of([2, 20], 1, 2, epoch_size=11 * 400)]
    # 11 batches use up both; the first is of the smaller category every other time
    assert abs(sum(batch[0] < 2 for batch in islice(batches, 0, None, 11)) - 200) < 5 * 10


def test_labels_are_drawn_uniformly() -> None:
    batches = [labels_of(batch) for batch in sampler_of([5], 1, 2, epoch_size=6_000)]
    pairs, refills = Counter(), Counter()
    for first, second, third in zip(batches[::3], batches[1::3], batches[2::3], strict=True):
        pairs[frozenset(first)] += 1
        (refill,) = set(third) & {*first, *second}
        refills[[*sorted(first), *sorted(second)].index(refill)] += 1
    assert len(pairs) == 10
    assert max(abs(count - 200) for count in pairs.values()) < 5 * 13.5
    assert len(refills) == 4
    assert max(abs(count - 500) for count in refills.values()) < 5 * 19.5
