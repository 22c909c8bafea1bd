"""Bounds of blocks against float64, and pairs found in them against a comparison of all."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from oml.functional.pair_blocks import Block, PairBlocks, measured, near_columns, near_rows, nearness_within
from oml.functional.ranks import relevant_ranks
from oml.functional.search import exact_search


def vectors(n: int, dim: int, scale: float, offset: float, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (x * scale + offset).to(dtype)


def all_blocks(blocks: PairBlocks) -> Tensor:
    """The bounds of all pairs as one matrix, without what fills up the blocks."""
    places = [(i, j) for i in range(blocks.n_query_blocks) for j in range(blocks.n_gallery_blocks)]
    found = blocks.visit(places, lambda block: Block(*block[:2], block.nearness.clone()))
    rows = [torch.cat([b.nearness for b in found if b.first_query == first], 1) for first in {b[0]: 0 for b in found}]
    nearness = torch.cat(rows)
    n, m = len(blocks.query_slack), len(blocks.gallery_slack)
    assert (nearness[n:] < -1e37).all()
    assert (nearness[:, m:] < -1e37).all()
    return nearness[:n, :m]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    ("dim", "scale", "offset"), [(384, 1, 0), (3, 1e3, 1e3), (33, 1e-15, 0), (7, 1e-25, 0), (1, 1, 50)]
)
def test_bounds_hold_and_are_tight(dim: int, scale: float, offset: float, dtype: torch.dtype) -> None:
    q, g = vectors(70, dim, scale, offset, 0, dtype), vectors(45, dim, scale, offset, 1, dtype)
    g[:5] = q[:5]
    blocks = PairBlocks(q, g, shape=(64, 32))
    upper = all_blocks(blocks).double()
    true = (q.double()[:, None] - g.double()).square().sum(dim=2) / -2
    slack = blocks.query_slack.double()[:, None] + blocks.gallery_slack.double()
    assert (upper >= true).all()
    assert (upper - slack <= true).all()
    squares = (q.double() - blocks._centre).square().sum(1)[:, None] + (g.double() - blocks._centre).square().sum(1)
    smallest = torch.finfo(blocks.dtype).tiny * dim
    assert (slack < (dim + 20) * torch.finfo(blocks.dtype).eps * 1.2 * squares + 8 * smallest).all()


@pytest.mark.parametrize(
    ("dim", "scale", "offset"), [(384, 1, 0), (3, 1e3, 1e3), (33, 1e-15, 0), (7, 1e-25, 0), (1, 1, 50), (5, 1e-42, 0)]
)
@pytest.mark.parametrize("whole", [False, True])
def test_bounds_of_bfloat16_hold(dim: int, scale: float, offset: float, whole: bool) -> None:
    q, g = vectors(70, dim, scale, offset, 0), vectors(45, dim, scale, offset, 1)
    if whole:  # so that all errors are those of the last rounding
        q, g = (4 * q / scale).round(), (4 * g / scale).round()
    g[:5] = q[:5]
    blocks = PairBlocks(q, g, shape=(64, 32), product_dtype=torch.bfloat16)
    upper = all_blocks(blocks).double()
    true = (q.double()[:, None] - g.double()).square().sum(dim=2) / -2
    slack = blocks.query_slack.double()[:, None] + blocks.gallery_slack.double()
    assert (upper >= true).all()
    assert (upper.clamp(max=0) * (1 + blocks.rounding) - slack <= true).all()
    if scale > 1e-20:
        squares = (q.double() - blocks._centre).square().sum(1)[:, None] + (g.double() - blocks._centre).square().sum(1)
        relative = 2.2 * (dim + 20) * 2**-23 + (0 if whole else 2**-6.9)
        assert (slack <= relative * squares + 8 * dim * torch.finfo(torch.float32).tiny).all()


def test_products_in_float64_of_float32() -> None:
    x = vectors(40, 16, 1, 3, 0)
    blocks = PairBlocks(x, x.flip(0), product_dtype=torch.float64)
    true = (x.double()[:, None] - x.flip(0).double()).square().sum(dim=2) / -2
    torch.testing.assert_close(all_blocks(blocks), true, rtol=0, atol=1e-12)
    assert (all_blocks(blocks) >= true).all()


def test_a_set_with_itself_is_symmetric() -> None:
    x = vectors(100, 8, 1, 3, 0)
    blocks = PairBlocks(x, x, shape=(32, 32), memory_budget=10**6)
    assert blocks.symmetric
    assert not PairBlocks(x, x.clone()).symmetric
    nearness = all_blocks(blocks)
    torch.testing.assert_close(nearness, nearness.T)
    assert torch.equal(nearness, all_blocks(PairBlocks(x, x, shape=(32, 32))))  # prepared or not


@settings(deadline=None)
@given(seed=st.integers(0, 9), limit=st.sampled_from([-3.0, 0.0, 1.0, 9.0]))
def test_near_pairs_are_those_of_a_comparison(seed: int, limit: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    nearness = torch.randint(-3, 3, (64, 96), generator=generator).float()
    of_rows, of_columns = (limit + torch.randint(-1, 2, (n,), generator=generator).float() for n in (64, 96))
    assert torch.equal(
        torch.stack(near_rows(nearness, of_rows), 1).unique(dim=0), (nearness >= of_rows[:, None]).nonzero()
    )
    rows = near_rows(nearness, of_rows)[0]
    assert torch.equal(rows, rows.sort().values)
    column, row = near_columns(nearness, of_columns)
    assert torch.equal(torch.stack([column, row], 1).unique(dim=0), (nearness >= of_columns).T.nonzero())
    assert torch.equal(column, column.sort().values)


def test_distances_of_pairs_do_not_depend_on_the_others() -> None:
    x, ids = vectors(50, 33, 1, 0, 0), torch.arange(50)
    whole = measured(x, x, ids, ids.flip(0))
    assert torch.equal(whole, (x.double() - x.double().flip(0)).square().sum(1).sqrt().float())
    assert torch.equal(whole, measured(x, x, ids, ids.flip(0), memory_budget=1))


@given(distance=st.floats(0, 2**60, width=32), steps=st.integers(-3, 3))
def test_what_is_below_the_limit_is_farther_after_rounding(distance: float, steps: int) -> None:
    known = torch.tensor([distance], dtype=torch.float32)
    other = known.double() * (1 + steps * 2**-24)  # next to it, nearer than float32 can tell
    if -(other**2) / 2 < nearness_within(known, dim=3).double():
        assert (other.float() > known).item()


def test_threads_give_the_same() -> None:
    x = vectors(200, 8, 1, 3, 0)
    one = all_blocks(PairBlocks(x, x, shape=(32, 64)))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(all_blocks(PairBlocks(x, x, shape=(32, 64))), one)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_threads_work_in_the_mode_of_who_calls(mode: Any) -> None:
    x, labels = vectors(3000, 4, 1, 3, 0), torch.arange(3000) % 7
    found = exact_search(x, x, 5)
    ranks = relevant_ranks(x, x, labels, labels)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with mode():
            of_mode = x.clone()  # an inference tensor may be written to in that mode alone
            assert torch.equal(exact_search(of_mode, of_mode, 5).ids, found.ids)
            assert torch.equal(relevant_ranks(of_mode, of_mode, labels, labels).rank, ranks.rank)
    finally:
        torch.set_num_threads(before)
