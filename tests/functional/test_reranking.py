import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oml.functional.reranking import rerank_top

# an offset of 1e-5 is nothing to a distance of 1e4, nor a difference of 1 to one of 1e9
NUMBERS = st.sampled_from([0.0, 1e-30, 1e-5, 1e-3, 0.1, 1.0, 2.0, 1e4, 1e4 + 1, 3e4])
LARGE = st.sampled_from([1e9, 1e9 + 64, 1e18, 1e30])
NEW = st.sampled_from([-3e4, -1.0, -1e-40, -0.0, 0.0, 1e-45, 1e-5, 1.0, 1e3, 3e4])
DTYPES = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])


@st.composite
def rankings(draw: st.DrawFn) -> tuple[torch.dtype, list[float], list[float]]:
    """Of one query: the dtype, the distances, the new ones of the first."""
    dtype = draw(DTYPES)
    old = sorted(draw(st.lists(NUMBERS if dtype == torch.float16 else NUMBERS | LARGE, min_size=1, max_size=6)))
    new = draw(st.lists(NEW if dtype == torch.float16 else NEW | LARGE, min_size=len(old), max_size=len(old)))
    return dtype, old, new[: draw(st.integers(1, len(old)))]


@settings(deadline=None, max_examples=200)
@given(rankings(), st.integers(0, 2))
def test_every_order_survives(ranking: tuple[torch.dtype, list[float], list[float]], n_missing: int) -> None:
    dtype, old, new = ranking
    n = len(new)
    before, top = torch.tensor(old).to(dtype), torch.tensor(new).to(dtype)
    distances = torch.cat([before, torch.full((n_missing,), torch.inf, dtype=dtype)])
    ids, after = (row[0] for row in rerank_top(torch.arange(len(distances))[None], distances[None], top[None]))
    assert after.dtype == dtype
    assert ids.tolist() == [*sorted(range(n), key=lambda i: top[i].item()), *range(n, len(distances))]
    assert torch.equal(after[:n], top.sort().values)
    assert after[len(old) :].isinf().all()
    others = after[n : len(old)]
    assert others.isfinite().all()
    if len(others):
        assert others[0] > top.max()
        assert torch.equal(others.diff() > 0, before[n:].diff() > 0)
        assert torch.equal(others.diff() == 0, before[n:].diff() == 0)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.integers(0, 9), min_size=3, max_size=7),
    st.lists(st.integers(-9, 9), min_size=2, max_size=2),
)
def test_the_others_move_by_one_number(steps: list[int], new: list[int]) -> None:
    old = torch.tensor(steps).double().cumsum(dim=0)
    _, after = rerank_top(torch.arange(len(old))[None], old[None], torch.tensor([new]).double())
    torch.testing.assert_close(after[0, 2:], old[2:] + (max(new) - old[2] + 1e-5))


def test_rows_that_end_early() -> None:
    distances = torch.tensor([[1.0, 2.0, 3.0], [1.0, torch.inf, torch.inf], [torch.inf, torch.inf, torch.inf]])
    ids = torch.tensor([[4, 5, 6], [4, -1, -1], [-1, -1, -1]])
    top = torch.tensor([[1.0, 0.0], [7.0, torch.inf], [torch.inf, torch.inf]])
    new_ids, new = rerank_top(ids, distances, top)
    assert new_ids.tolist() == [[5, 4, 6], [4, -1, -1], [-1, -1, -1]]
    torch.testing.assert_close(
        new, torch.tensor([[0.0, 1.0, 1.00001], [7.0, torch.inf, torch.inf], [torch.inf, torch.inf, torch.inf]])
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_no_distance_leaves_the_range_of_its_dtype(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    distances = torch.tensor([[0.0, 0.25, 0.5, 1.0]]).to(dtype) * largest
    ids, new = rerank_top(torch.arange(4)[None], distances, distances[:, 2:3] * 1.5)
    assert ids.tolist() == [[0, 1, 2, 3]]
    assert new.isfinite().all()
    assert (new.diff() >= 0).all()
    assert new[0, -1] == largest


def test_no_rows() -> None:
    ids, distances = rerank_top(torch.zeros(0, 3).long(), torch.zeros(0, 3), torch.zeros(0, 2))
    assert ids.shape == distances.shape == (0, 3)
