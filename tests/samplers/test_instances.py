from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from oml.samplers.instances import draw_instances, group, group_by_label


@given(keys=st.lists(st.sampled_from([-(2**63), -70_000, -1, 0, 1, 2**16, 2**40, 2**63 - 1]), min_size=1, max_size=12))
def test_group_puts_equal_keys_together_in_order(keys: list[int]) -> None:
    groups = group(np.array(keys))
    assert groups.keys.tolist() == sorted(set(keys))
    members = [groups.members[start:end].tolist() for start, end in zip(groups.starts, groups.starts[1:], strict=False)]
    assert members == [[i for i, other in enumerate(keys) if other == key] for key in sorted(set(keys))]
    assert groups.sizes.tolist() == [keys.count(key) for key in sorted(set(keys))]


def test_group_of_more_keys_than_16_bits_can_tell_apart() -> None:
    keys = np.random.default_rng(0).integers(-100_000, 100_000, 150_000)
    groups = group(keys)
    assert np.array_equal(groups.members, np.argsort(keys, kind="stable"))
    assert np.array_equal(groups.keys, np.unique(keys))


def test_members_are_drawn_from_their_group() -> None:
    groups = group_by_label("Test", [5, 3, 5, 3, 9, 9, 9])
    drawn = groups.draw(np.array([2, 0, 2, 1]), 2, np.random.default_rng(0))
    assert [
        set(row) <= allowed for row, allowed in zip(drawn.tolist(), ({4, 5, 6}, {1, 3}, {4, 5, 6}, {0, 2}), strict=True)
    ]
    assert all(len(set(row)) == 2 for row in drawn.tolist())


@given(
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=20), n_instances=st.integers(1, 6), seed=st.integers(0, 99)
)
def test_instances_are_distinct_or_all_of_the_label(counts: list[int], n_instances: int, seed: int) -> None:
    picked = draw_instances(np.array(counts), n_instances, np.random.default_rng(seed))
    assert picked.shape == (len(counts), n_instances)
    for count, row in zip(counts, picked.tolist(), strict=True):
        assert all(0 <= position < count for position in row)
        assert len(set(row)) == min(count, n_instances)


def test_every_choice_is_equally_likely() -> None:
    picked = draw_instances(np.full(60_000, 5), 2, np.random.default_rng(0))
    _, counts = np.unique(np.sort(picked, axis=1), axis=0, return_counts=True)
    assert len(counts) == 10  # pairs out of five
    # 6,000 each with a standard deviation of 73: five of them
    assert abs(counts - 6_000).max() < 370


def test_every_repeat_is_equally_likely() -> None:
    picked = draw_instances(np.full(30_000, 3), 4, np.random.default_rng(0))
    counts = Counter(max(row, key=row.count) for row in picked.tolist())
    # 10,000 each with a standard deviation of 82: five of them
    assert max(abs(counts[position] - 10_000) for position in range(3)) < 410
