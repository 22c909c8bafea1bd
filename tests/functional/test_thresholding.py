import math
import statistics
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oml.functional.thresholding import n_before_jump, n_within

#: steps of a grid, so that jumps are equal, as large as the mean, and exactly at the limit
JUMPS = st.lists(st.sampled_from([0, 1, 2, 5, 16]), max_size=7)


def literal(distances: list[float], n_std: float) -> int:
    """How many come before the biggest jump, read off the definition."""
    jumps = [b - a for a, b in pairwise(distances)]
    if not jumps:
        return len(distances)
    if max(jumps) > statistics.fmean(jumps) + n_std * statistics.pstdev(jumps) + 1e-4:
        return jumps.index(max(jumps)) + 1
    return len(distances)


def rows_of(rows: list[list[float]], width: int) -> torch.Tensor:
    return torch.tensor([[*row, *[math.inf] * (width - len(row))] for row in rows]).view(len(rows), width)


@settings(deadline=None)
@given(
    all_jumps=st.lists(JUMPS, min_size=1, max_size=5),
    start=st.sampled_from([-3.0, 0.0, 0.5]),
    n_std=st.sampled_from([0, 0.5, 1, 1.5, 2.0, 2.5]),
    n_empty=st.integers(0, 3),
    extra_rows=st.integers(0, 2),
)
def test_rankings_are_cut_by_the_definition(
    all_jumps: list[list[int]], start: float, n_std: float, n_empty: int, extra_rows: int
) -> None:
    rows = [[start + sum(jumps[:i]) for i in range(len(jumps) + 1)] for jumps in all_jumps] + [[]] * extra_rows
    distances = rows_of(rows, max(map(len, rows)) + n_empty)
    assert n_before_jump(distances, n_std).tolist() == [literal(row, n_std) for row in rows]


@settings(deadline=None)
@given(n_std=st.sampled_from([0, 1, 2.0]), n_empty=st.integers(0, 5), seed=st.integers(0, 999))
def test_a_query_is_cut_alike_whatever_comes_with_it(n_std: float, n_empty: int, seed: int) -> None:
    """Defect 28: the limit was that of the batch."""
    generator = torch.Generator().manual_seed(seed)
    distances = torch.rand(6, 9, generator=generator).pow(3).sort(dim=1).values
    distances[3:] *= 1000  # other queries, with other jumps
    together = n_before_jump(torch.nn.functional.pad(distances, (0, n_empty), value=torch.inf), n_std)
    assert together.tolist() == [int(n_before_jump(row[None], n_std)) for row in distances]


def test_some_are_cut_and_some_not() -> None:
    assert n_before_jump(torch.tensor([[0.0, 1, 6]]), 0.5).tolist() == [2]
    distances = torch.tensor([[0.0, 1, 2, 3, 9, 10], [0.0, 1, 2, 3, 4, 5], [0.0, 9, 10, 11, 12, 13]])
    assert n_before_jump(distances, 1.5).tolist() == [4, 6, 1]
    assert n_before_jump(distances, 2).tolist() == [6, 6, 6]  # five jumps reach sqrt(4) and no more


@settings(deadline=None)
@given(step=st.floats(1e-3, 10), start=st.floats(-400, 100), n=st.integers(1, 40), n_std=st.integers(0, 3))
def test_equal_steps_are_not_cut_for_their_rounding(step: float, start: float, n: int, n_std: int) -> None:
    distances = (start + step * torch.arange(n, dtype=torch.float64)).float()[None]
    assert n_before_jump(distances, n_std).tolist() == [n]


@settings(deadline=None)
@given(
    rows=st.lists(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0]), max_size=5), min_size=1, max_size=4),
    threshold=st.sampled_from([-2, -1, 0.25, 0.5, 2, math.inf, -math.inf]),
)
def test_what_is_at_most_as_far_is_within(rows: list[list[float]], threshold: float) -> None:
    rows = [sorted(row) for row in rows]
    distances = rows_of(rows, max(map(len, rows)) + 1)
    expected = [sum(distance <= threshold for distance in row) for row in rows]
    assert n_within(distances, threshold).tolist() == expected


def test_no_ranks() -> None:
    assert n_before_jump(torch.empty(2, 0), 1).tolist() == n_within(torch.empty(2, 0), 1).tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    assert n_before_jump(torch.tensor([[0, 1, 2, 9, 10]], dtype=dtype), 1).tolist() == [3]
