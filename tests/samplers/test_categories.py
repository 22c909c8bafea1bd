from collections import Counter
from itertools import permutations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from oml.samplers.categories import draw_categories, group_by_category


def probability(order: tuple[int, ...], weights: list[int]) -> float:
    """Of drawing these in this order, one after the other, each by its weight among those left."""
    left, result = sum(weights), 1.0
    for one in order:
        result *= weights[one] / left
        left -= weights[one]
    return result


def test_categories_are_drawn_as_numpy_draws_them() -> None:
    weights = [1, 9, 2, 4]
    rng = np.random.default_rng(0)
    ours = Counter(map(tuple, draw_categories(np.array(weights), 200_000, 3, rng).tolist()))
    share = np.array(weights) / sum(weights)
    numpys = Counter(tuple(rng.choice(4, 3, replace=False, p=share).tolist()) for _ in range(20_000))
    for drawn in (ours, numpys):
        n = drawn.total()
        for order in permutations(range(4), 3):
            expected = probability(order, weights)
            assert abs(drawn[order] / n - expected) < 5 * (expected * (1 - expected) / n) ** 0.5


@given(weights=st.lists(st.sampled_from([1, 2, 1_000_000]), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_no_category_comes_twice(weights: list[int], seed: int) -> None:
    for n_categories in range(1, len(weights) + 1):
        drawn = draw_categories(np.array(weights), 20, n_categories, np.random.default_rng(seed))
        assert drawn.shape == (20, n_categories)
        assert all(len(set(row)) == n_categories and set(row) <= set(range(len(weights))) for row in drawn.tolist())


def test_labels_by_category() -> None:
    groups = group_by_category("Test", np.array([2, 4, 5, 9]), {9: "b", 2: "c", 5: "b", 4: "a"})
    members = [groups.members[start:end].tolist() for start, end in zip(groups.starts, groups.starts[1:], strict=False)]
    assert members == [[1], [2, 3], [0]]
