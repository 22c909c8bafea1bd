import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from oml.samplers.instances import draw_instances


@given(
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=20), n_instances=st.integers(1, 6), seed=st.integers(0, 99)
)
def test_instances_are_distinct_or_all_of_the_label(counts: list[int], n_instances: int, seed: int) -> None:
    picked = draw_instances(np.array(counts), n_instances, np.random.default_rng(seed))
    for count, row in zip(counts, picked.tolist(), strict=True):
        assert all(0 <= position < count for position in row)
        assert len(set(row)) == min(count, n_instances)


def test_every_choice_is_equally_likely() -> None:
    picked = draw_instances(np.full(60_000, 5), 2, np.random.default_rng(0))
    _, counts = np.unique(np.sort(picked, axis=1), axis=0, return_counts=True)
    assert len(counts) == 10  # pairs out of five
    # 6,000 each with a standard deviation of 73: five of them
    assert abs(counts - 6_000).max() < 370
