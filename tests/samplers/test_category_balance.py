from collections import Counter

import numpy as np
import pytest

from oml.samplers.category_balance import CategoryBalanceSampler

#: categories of 2, 6 and 12 labels, labels of 2 to 4 items
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(20), np.arange(20) % 3 + 2))
CATEGORIES = {label: "a" if label < 2 else "b" if label < 8 else "c" for label in range(20)}


@pytest.mark.parametrize(("n_labels", "length"), [(2, 10), (3, 7), (20, 1)])
def test_length(n_labels: int, length: int) -> None:
    sampler = CategoryBalanceSampler(LABELS, CATEGORIES, 1, n_labels, 2, resample_labels=True)
    assert len(sampler) == len(list(sampler)) == length


@pytest.mark.parametrize(
    ("weight_categories", "shares"), [(True, {"a": 0.1, "b": 0.3, "c": 0.6}), (False, dict.fromkeys("abc", 1 / 3))]
)
def test_categories_come_by_their_labels_or_uniformly(weight_categories: bool, shares: dict[str, float]) -> None:
    sampler = CategoryBalanceSampler(LABELS, CATEGORIES, 1, 2, 2, weight_categories=weight_categories)
    counts = Counter(CATEGORIES[int(LABELS[batch[0]])] for _ in range(300) for batch in sampler)
    for category, share in shares.items():
        assert abs(counts[category] / 3_000 - share) < 5 * (share * (1 - share) / 3_000) ** 0.5


def test_every_label_and_item_of_a_category_is_equally_likely() -> None:
    labels = np.repeat(np.arange(5), 3)
    sampler = CategoryBalanceSampler(labels, dict.fromkeys(range(5), 0), 1, 2, 2)
    counts = Counter(item for _ in range(1_500) for batch in sampler for item in batch)
    # 4,500 batches of 4 out of 15 items: 1,200 of each, with a standard deviation of 30
    assert max(abs(counts[item] - 1_200) for item in range(15)) < 150


def test_small_categories_repeat_labels_if_asked() -> None:
    sampler = CategoryBalanceSampler(LABELS, CATEGORIES, 3, 5, 3, resample_labels=True)
    for _ in range(10):
        for batch in sampler:
            counts = Counter(LABELS[batch].tolist())
            assert min(counts.values()) >= 3
            assert {label for label in counts if label < 2} == {0, 1}  # all of the small category
            assert sum(counts[label] for label in range(2)) == 5 * 3
            assert all(counts[label] == 3 for label in counts if label >= 2)


def test_resampling_changes_nothing_where_labels_are_enough() -> None:
    on, off = (
        CategoryBalanceSampler(LABELS, CATEGORIES, 2, 2, 3, resample_labels=resample) for resample in (True, False)
    )
    assert list(on) == list(off)
