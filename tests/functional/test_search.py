import inspect
import math
import subprocess
import sys
import textwrap
from functools import partial
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from oml.functional import search
from oml.functional.pair_blocks import BLOCK, Block, PairBlocks
from oml.functional.search import Neighbours, _fastest_product, exact_search, joined


def literal(
    queries: Tensor,
    galleries: Tensor,
    top_k: int,
    query_items: Tensor | None = None,
    gallery_items: Tensor | None = None,
    distance: str = "l2",
) -> tuple[list[list[int]], list[list[float]]]:
    """Measure every pair in Python's floats and sort: distance, then id."""
    dtype = torch.promote_types(queries.dtype, torch.float32)
    rows = [queries.double().tolist(), galleries.double().tolist()]
    if distance == "cosine":
        for vectors in rows:
            for i, x in enumerate(vectors):
                norm = math.sqrt(math.fsum(a * a for a in x))
                vectors[i] = torch.tensor([a / norm for a in x], dtype=dtype).tolist()
    all_ids, all_distances = [], []
    for i, q in enumerate(rows[0]):
        l2 = [math.sqrt(math.fsum((a - b) ** 2 for a, b in zip(q, g, strict=True))) for g in rows[1]]
        ranked = []
        for j, rounded in enumerate(torch.tensor(l2, dtype=dtype).tolist()):
            if query_items is None or gallery_items is None or query_items[i] != gallery_items[j]:
                ranked.append((rounded, j))
        width = min(top_k, len(galleries))
        ranked = [*sorted(ranked)[:width], *[(math.inf, -1)] * (width - len(ranked))]
        all_ids.append([j for _, j in ranked])
        all_distances.append(
            [l2 if distance == "l2" else torch.tensor(l2**2 / 2, dtype=dtype).item() for l2, _ in ranked]
        )
    return all_ids, all_distances


def assert_same(found: Neighbours, expected: tuple[list[list[int]], list[list[float]]]) -> None:
    assert found.ids.tolist() == expected[0]
    assert found.distances.tolist() == expected[1]


def assert_equal(found: Neighbours, expected: Neighbours) -> None:
    assert torch.equal(found.ids, expected.ids)
    assert torch.equal(found.distances, expected.distances)


def clustered(n_clusters: int, n_each: int, dim: int, spread: float, norm: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = norm * torch.nn.functional.normalize(torch.randn(n_clusters, dim, generator=generator))
    return centres.repeat_interleave(n_each, 0) + spread * torch.randn(n_clusters * n_each, dim, generator=generator)


@settings(deadline=None, max_examples=60)
@given(
    n_queries=st.integers(1, 6),
    n_galleries=st.integers(1, 40),
    dim=st.integers(1, 3),
    top_k=st.integers(1, 45),
    n_items=st.integers(1, 9),
    own=st.booleans(),
    budget=st.sampled_from([1, 5_000, 512 * 2**20]),
    product_dtype=st.sampled_from([None, torch.bfloat16]),
    seed=st.integers(0, 999),
)
def test_search_follows_the_definition(
    n_queries: int,
    n_galleries: int,
    dim: int,
    top_k: int,
    n_items: int,
    own: bool,
    budget: int,
    product_dtype: torch.dtype | None,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    # so coarse a grid that duplicates, ties and rows without any allowed gallery are common
    queries = torch.randint(3, (n_queries, dim), generator=generator).float()
    galleries = torch.randint(3, (n_galleries, dim), generator=generator).float()
    items = None, None
    if own:
        items = (
            torch.randint(n_items, (n_queries,), generator=generator),
            torch.randint(n_items, (n_galleries,), generator=generator),
        )
    found = exact_search(
        queries,
        galleries,
        top_k,
        query_items=items[0],
        gallery_items=items[1],
        product_dtype=product_dtype,
        memory_budget=budget,
    )
    assert_same(found, literal(queries, galleries, top_k, *items))


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 130),
    levels=st.sampled_from([2, 5, 1000]),
    top_k=st.sampled_from([1, 2, 5, 31, 200]),
    n_items=st.sampled_from([0, 1, 2, 20, 1000]),
    distance=st.sampled_from(["l2", "cosine"]),
    product_dtype=st.sampled_from([None, torch.bfloat16]),
    budget=st.sampled_from([50_000, 512 * 2**20]),
    seed=st.integers(0, 999),
)
def test_a_set_with_itself_follows_the_definition(
    n: int,
    levels: int,
    top_k: int,
    n_items: int,
    distance: Literal["l2", "cosine"],
    product_dtype: torch.dtype | None,
    budget: int,
    seed: int,
) -> None:
    """Up to five rows of blocks: each pair of blocks serves both directions."""
    generator = torch.Generator().manual_seed(seed)
    x = 1 + torch.randint(levels, (n, 2), generator=generator).float()
    items = torch.randint(n_items, (n,), generator=generator).sort().values if n_items else None
    found = exact_search(
        x,
        x,
        top_k,
        query_items=items,
        gallery_items=items,
        distance=distance,
        product_dtype=product_dtype,
        memory_budget=budget,
    )
    assert_same(found, literal(x, x, top_k, items, items, distance))


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 130),
    levels=st.sampled_from([2, 5, 1000]),
    top_k=st.sampled_from([1, 2, 5, 31, 200]),
    n_items=st.sampled_from([0, 2, 1000]),
    with_itself=st.booleans(),
    n_shares=st.integers(2, 4),
    budget=st.sampled_from([50_000, 512 * 2**20]),
    seed=st.integers(0, 999),
)
def test_shares_make_the_result(
    n: int, levels: int, top_k: int, n_items: int, with_itself: bool, n_shares: int, budget: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(levels, (n, 2), generator=generator).float()
    galleries = x if with_itself else x.flip(0)
    items = torch.randint(n_items, (n,), generator=generator) if n_items else None
    search = partial(exact_search, x, galleries, top_k, query_items=items, gallery_items=items, memory_budget=budget)
    found = joined([search(share=(i, n_shares)) for i in range(n_shares)])
    assert all(map(torch.equal, found, search()))


@pytest.mark.parametrize("with_itself", [True, False])
def test_shares_are_of_one_size_and_nothing_is_looked_at_twice(
    with_itself: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    visited: list[Any] = []
    visit = PairBlocks.visit
    monkeypatch.setattr(
        PairBlocks, "visit", lambda self, blocks, look: visited.extend(blocks) or visit(self, blocks, look)
    )
    x = torch.randn(5 * BLOCK, 8, generator=torch.Generator().manual_seed(0))
    search = partial(exact_search, x, x if with_itself else x.clone(), 3)
    search()
    whole, counts = sorted(visited), []
    assert len(whole) == (15 if with_itself else 25)
    visited.clear()
    for i in range(3):
        search(share=(i, 3))
        counts.append(len(visited) - sum(counts))
    assert sorted(visited) == whole
    assert max(counts) - min(counts) <= 1


def test_shares_of_many_queries_are_queries() -> None:
    x = torch.randn(8 * BLOCK, 2, generator=torch.Generator().manual_seed(0))
    first, second = (exact_search(x, x[:100].clone(), 3, share=(i, 2)).ids >= 0 for i in range(2))
    assert torch.equal(first, ~second)
    assert first.all(dim=1).sum() == 4 * BLOCK


@pytest.mark.parametrize("share", [(1, 1), (-1, 2), (0, 0)])
def test_shares_that_there_are_not(share: tuple[int, int]) -> None:
    x = torch.zeros(2, 2)
    with pytest.raises(ValueError, match="takes as share"):
        exact_search(x, x, 1, share=share)
    with pytest.raises(ValueError, match="for L2 only"):
        exact_search(x + 1, x + 1, 1, share=(0, 2), distance="cosine")


def test_ranking_by_hand() -> None:
    galleries = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 5.0], [-3.0, -4.0], [0.0, 1.0]])
    found = exact_search(torch.tensor([[0.0, 0.0]]), galleries, 5)
    assert found.ids.tolist() == [[1, 4, 0, 2, 3]]  # three at distance 5, by their ids
    assert found.distances.tolist() == [[0, 1, 5, 5, 5]]


ALL_KINDS = {
    "uniform": torch.rand(150, 24, generator=torch.Generator().manual_seed(1)),
    "grid": torch.randint(2, (150, 4), generator=torch.Generator().manual_seed(2)).float(),
    "all equal": torch.ones(150, 3),
    "exact duplicates": clustered(3, 50, 8, spread=0, norm=1),
    "near duplicates of a large norm": clustered(3, 50, 8, spread=1e-3, norm=1e3),
    "a far mean": 1e4 + torch.rand(150, 8, generator=torch.Generator().manual_seed(3)),
    "an outlier": torch.cat([torch.rand(149, 8, generator=torch.Generator().manual_seed(4)), torch.full((1, 8), 1e8)]),
    "tiny": 1e-30 * torch.rand(150, 8, generator=torch.Generator().manual_seed(5)),
    "below the normal numbers": 1e-43 * torch.rand(150, 8, generator=torch.Generator().manual_seed(6)),
    "huge": 1e17 * torch.rand(150, 8, generator=torch.Generator().manual_seed(7)),
    "float64": torch.rand(150, 8, generator=torch.Generator().manual_seed(8)).double(),
    "tiny float64": 1e-200 * torch.rand(150, 8, generator=torch.Generator().manual_seed(9)).double(),
    "float16": torch.rand(150, 8, generator=torch.Generator().manual_seed(10)).half(),
    "bfloat16": torch.rand(150, 8, generator=torch.Generator().manual_seed(11)).bfloat16(),
}


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_every_kind_of_data_is_ranked_exactly(kind: str) -> None:
    x = ALL_KINDS[kind]
    items = torch.arange(len(x))
    found = exact_search(x, x, 7, query_items=items, gallery_items=items)
    assert found.distances.dtype == torch.promote_types(x.dtype, torch.float32)
    if kind == "tiny float64":
        # squares below 1e-308 are lost even in float64: the order among such distances is that of the ids
        assert found.ids[0].tolist() == [1, 2, 3, 4, 5, 6, 7]
        return
    ids, distances = literal(x, x, 7, items, items)
    if x.dtype == torch.float64:  # the sum's last bit is that of its order
        assert found.ids.tolist() == ids
        torch.testing.assert_close(found.distances, torch.tensor(distances, dtype=x.dtype), rtol=1e-15, atol=0)
    else:
        assert_same(found, (ids, distances))


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_no_way_of_searching_changes_a_bit(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = ALL_KINDS[kind][:100]
    items = torch.arange(len(x)) // 3  # sequences
    expected = exact_search(x, x, 7, query_items=items, gallery_items=items)
    monkeypatch.setattr(search, "BLOCK", 32)
    for galleries in (x, x[:], x.clone()):
        assert_equal(exact_search(x, galleries, 7, query_items=items, gallery_items=items), expected)
        if x.dtype != torch.float64:
            found = exact_search(x, galleries, 7, query_items=items, gallery_items=items, product_dtype=torch.bfloat16)
            assert_equal(found, expected)


def test_where_a_product_would_misorder() -> None:
    x = clustered(4, 40, 16, spread=1e-3, norm=1e3)
    approximate = torch.cdist(x, x, compute_mode="use_mm_for_euclid_dist").topk(6, largest=False).indices
    found = exact_search(x, x, 6)
    assert (approximate != found.ids).any()
    assert_same(found, literal(x, x, 6))


@pytest.mark.parametrize("name", ["uniform", "grid", "near duplicates of a large norm", "all equal", "float64"])
def test_the_budget_changes_no_bit(name: str) -> None:
    x = ALL_KINDS[name][::2, :7]
    items = torch.arange(len(x)) // 3
    expected = exact_search(x, x, 5, query_items=items, gallery_items=items)
    budgets = 1, 1_000_000, 3_000_000
    sides = [
        search._side_of_blocks(search._Task(x.float(), x.float(), None, None, 5, torch.float32, budget, None))
        for budget in budgets
    ]
    assert sides == [32, 64, 128]
    for budget in budgets:
        assert_equal(exact_search(x, x, 5, query_items=items, gallery_items=items, memory_budget=budget), expected)


@pytest.mark.parametrize("product_dtype", [None, torch.bfloat16])
def test_the_other_queries_and_the_threads_change_no_bit(
    product_dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(300, 33, generator=torch.Generator().manual_seed(0))
    expected = exact_search(x, x, 5)
    one_by_one = [exact_search(row[None], x, 5, product_dtype=product_dtype) for row in x[:20]]
    assert torch.equal(torch.cat([found.distances for found in one_by_one]), expected.distances[:20])
    assert torch.equal(torch.cat([found.ids for found in one_by_one]), expected.ids[:20])
    monkeypatch.setattr(search, "BLOCK", 64)
    before = torch.get_num_threads()
    try:
        for n_threads in (1, 3):
            torch.set_num_threads(n_threads)
            assert_equal(exact_search(x, x, 5, product_dtype=product_dtype), expected)
    finally:
        torch.set_num_threads(before)


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 99),
    slack=st.sampled_from([0.0, 0.1, 3.0]),
    rounding=st.sampled_from([0.0, 0.3]),
    with_itself=st.booleans(),
)
def test_any_numbers_within_the_bounds_give_the_same(
    seed: int, slack: float, rounding: float, with_itself: bool
) -> None:
    """Real products are far better than their bounds: here each is as bad as it may be."""
    generator = torch.Generator().manual_seed(seed)

    class Worst(PairBlocks):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            if self.dtype == torch.float32:
                self.rounding = rounding
                self.query_slack = slack * torch.rand(len(self.query_slack), generator=generator)
                self.gallery_slack = slack * torch.rand(len(self.gallery_slack), generator=generator)
                if self.symmetric:
                    self.gallery_slack = self.query_slack

        def visit(self, blocks: Any, look: Any) -> Any:
            def look_at_worse(block: Block) -> Any:
                q, g = (
                    part[start : start + size].double()
                    for part, start, size in zip(
                        (self._queries, self._galleries), block[:2], block.nearness.shape, strict=True
                    )
                )
                near = (q[:, None] - g).square().sum(dim=2) / -2
                total = self.query_slack[block.first_query :][: len(q), None]
                total = total + self.gallery_slack[block.first_gallery :][: len(g)]
                highest = (near + 0.999 * total) / (1 + 0.999 * self.rounding)
                lowest = near * 0.999999
                number = torch.where(torch.rand(near.shape, generator=generator) < 0.5, highest, lowest)
                block.nearness[: len(q), : len(g)] = number.maximum(lowest)
                return look(block)

            return super().visit(blocks, look_at_worse if self.dtype == torch.float32 else look)

    x = torch.randint(5, (70, 3), generator=generator).float()
    items = torch.arange(len(x)) // 2
    galleries = x if with_itself else x.flip(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "PairBlocks", Worst)
        patch.setattr(search, "BLOCK", 32)
        found = exact_search(x, galleries, 4, query_items=items, gallery_items=items)
    assert_same(found, literal(x, galleries, 4, items, items))


def test_many_blocks_and_few_survivors() -> None:
    """Enough galleries for the filter, which sees the nearest ones last."""
    generator = torch.Generator().manual_seed(0)
    galleries = torch.randn(6_000, 6, generator=generator)
    queries = galleries[:50] + 0.01 * torch.randn(50, 6, generator=generator)
    for order in (torch.arange(6_000), torch.cdist(queries[:1], galleries)[0].argsort(descending=True)):
        found = exact_search(queries, galleries[order], 10)
        distances = (queries[:, None].double() - galleries[order].double()).square().sum(2).sqrt().float()
        expected = distances.sort(dim=1, stable=True)
        assert torch.equal(found.ids, expected.indices[:, :10])
        assert torch.equal(found.distances, expected.values[:, :10])


def test_near_copies_are_told_apart_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """And ties are measured as they come: too many would be held until the end."""
    n_measured, n_finer = [], []
    nearest, near_in_float64 = search._Search.nearest, search._Search.near_in_float64

    def counted(self: search._Search, q: int, pairs: search._Pairs) -> tuple[search._Pairs, Tensor, Tensor]:
        n_measured.append(len(pairs.ids))
        return nearest(self, q, pairs)

    def counted_finer(self: search._Search, *args: Any) -> tuple[Tensor, Tensor]:
        n_finer.append(1)
        return near_in_float64(self, *args)

    monkeypatch.setattr(search._Search, "nearest", counted)
    monkeypatch.setattr(search._Search, "near_in_float64", counted_finer)
    monkeypatch.setattr(search, "BLOCK", 128)
    for kind, x in (
        ("plain", torch.randn(300, 16, generator=torch.Generator().manual_seed(0))),
        ("near copies", clustered(2, 150, 16, spread=1e-6, norm=1)[30:]),
        ("ties", torch.eye(150)),
    ):
        n_measured.clear()
        n_finer.clear()
        found = exact_search(x, x, 5)
        assert bool(n_finer) == (kind != "plain")
        n_rows_of_blocks = -(-len(x) // 128)
        if kind == "ties":
            assert len(n_measured) > n_rows_of_blocks
        else:  # at the end
            assert len(n_measured) == n_rows_of_blocks
            assert sum(n_measured) < len(x) * 10
        assert_same(found, literal(x, x, 5))


@pytest.mark.parametrize("hashes_tell", [True, False])
def test_copies_that_nobody_can_retrieve_are_left_out(hashes_tell: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not hashes_tell:
        monkeypatch.setattr(torch, "randint", lambda *args, generator: torch.zeros(1, dtype=torch.int64))
        x = torch.tensor([[1.0], [2.0], [2.0], [1.0]])
        spare, _ = search._copies(search._Task(x, x, None, None, 1, torch.float32, 10**9, None))
        assert spare.tolist() == [False, False, True, False]  # of copies apart from each other it may miss some
        return
    x = torch.tensor([[1.0], [2.0], [1.0], [1.0], [3.0], [1.0], [2.0]])
    task = search._Task(x, x, None, None, 2, torch.float32, 10**9, None)
    spare, has_enough = search._copies(task)
    assert spare.tolist() == [False, False, False, True, False, True, False]
    assert has_enough.tolist() == [True, True, True, True, False, True, True]
    # one or two of the copies may be the query's own
    items = torch.tensor([0, 1, 2, 3, 4, 5, 6])
    spare, has_enough = search._copies(task._replace(query_items=items, gallery_items=items))
    assert spare.tolist() == [False, False, False, False, False, True, False]
    assert has_enough.tolist() == [True, False, True, True, False, True, False]
    items = torch.tensor([0, 0, 2, 3, 4, 5, 6])
    spare, has_enough = search._copies(task._replace(query_items=items, gallery_items=items))
    assert not spare.any()
    assert has_enough.tolist() == [True, False, True, True, False, True, False]


@pytest.mark.parametrize("n_copies", [5, 100])
@pytest.mark.parametrize("with_itself", [True, False])
def test_many_copies_of_everything(n_copies: int, with_itself: bool) -> None:
    unique = torch.randn(200 // n_copies, 3, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    x = unique.repeat_interleave(n_copies, dim=0)[order]
    items = torch.arange(len(x)) // 2
    found = exact_search(x, x if with_itself else x.clone(), 8, query_items=items, gallery_items=items)
    assert_same(found, literal(x, x, 8, items, items))


def test_sequences_longer_than_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole blocks hold nothing that may be retrieved, and near copies that must not be."""
    monkeypatch.setattr(search, "BLOCK", 32)
    x = clustered(3, 70, 4, spread=1e-3, norm=1)
    sequences = torch.arange(210) // 70
    for product_dtype in (None, torch.bfloat16):
        found = exact_search(x, x, 4, query_items=sequences, gallery_items=sequences, product_dtype=product_dtype)
        assert_same(found, literal(x, x, 4, sequences, sequences))
    queries_of_another_order = sequences.flip(0)  # items need not be symmetric, even if vectors are
    found = exact_search(x, x, 4, query_items=queries_of_another_order, gallery_items=sequences)
    assert_same(found, literal(x, x, 4, queries_of_another_order, sequences))


def test_all_equal_at_some_size() -> None:
    x = torch.ones(5_000, 16)
    items = torch.arange(5_000)
    found = exact_search(x, x, 3, query_items=items, gallery_items=items)
    assert (found.distances == 0).all()
    assert found.ids[[0, 1, 2, 3, 4_999]].tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2], [0, 1, 2]]


def test_cosine_by_hand() -> None:
    x = torch.tensor([[3.0, 4.0], [0.6, 0.8], [-30.0, -40.0], [4.0, -3.0], [0.0, 1e-30]])
    found = exact_search(x, x, 5, distance="cosine")
    assert found.ids[0].tolist() == [0, 1, 4, 3, 2]
    torch.testing.assert_close(found.distances[0], torch.tensor([0, 0, 0.2, 1, 2]))
    assert found.distances.dtype == torch.float32
    tiny = 1e-200 * x.double()  # whose squares are lost
    torch.testing.assert_close(exact_search(tiny, tiny, 5, distance="cosine").distances, found.distances.double())


def test_cosine_needs_a_direction() -> None:
    x, zero = torch.rand(2_000, 3) + 0.1, torch.rand(2_000, 3) + 0.1
    zero[[7, 1_999]] = 0
    with pytest.raises(ValueError, match=r"galleries other than zero .* in 2 of 2000 rows, such as rows \[7, 1999\]"):
        exact_search(x, zero, 1, distance="cosine")
    with pytest.raises(ValueError, match="queries other than zero"):
        exact_search(zero, x, 1, distance="cosine")


def test_a_device_without_float64_leaves_the_work_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    x, items = torch.rand(10, 3), torch.arange(10)
    expected = exact_search(x, x, 3, query_items=items, gallery_items=items)
    assert search._has_float64(x.device)
    monkeypatch.setattr(search, "_has_float64", lambda device: False)
    assert_equal(exact_search(x, x, 3, query_items=items, gallery_items=items), expected)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 99), top_k=st.integers(1, 12))
def test_the_order_of_queries_changes_nothing_else(seed: int, top_k: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(4, (90, 2), generator=generator).float()
    order = torch.randperm(90, generator=generator)
    items = torch.arange(90) // 2
    expected = exact_search(x, x, top_k, query_items=items, gallery_items=items, memory_budget=50_000)
    found = exact_search(x[order], x, top_k, query_items=items[order], gallery_items=items, memory_budget=50_000)
    assert torch.equal(found.ids, expected.ids[order])
    assert torch.equal(found.distances, expected.distances[order])


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 99), top_k=st.integers(1, 12))
def test_the_order_of_galleries_changes_ids_only(seed: int, top_k: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(60, 3, generator=generator)  # no ties
    order = torch.randperm(60, generator=generator)
    items = torch.arange(60)
    expected = exact_search(x, x, top_k, query_items=items, gallery_items=items)
    found = exact_search(x, x[order], top_k, query_items=items, gallery_items=order)
    assert torch.equal(found.distances, expected.distances)
    assert torch.equal(order[found.ids], expected.ids)


def test_items_may_be_whole_sequences() -> None:
    x = torch.tensor([[0.0], [0.1], [0.2], [5.0], [6.0]])
    sequence = torch.tensor([7, 7, 7, 8, 9])
    found = exact_search(x, x, 3, query_items=sequence, gallery_items=sequence)
    assert found.ids.tolist() == [[3, 4, -1], [3, 4, -1], [3, 4, -1], [4, 2, 1], [3, 2, 1]]
    assert found.distances[0].tolist() == [5, 6, math.inf]


def test_a_lone_item_finds_nothing() -> None:
    one = torch.zeros(1, dtype=torch.int64)
    found = exact_search(torch.ones(1, 2), torch.ones(1, 2), 3, query_items=one, gallery_items=one)
    assert (found.ids.tolist(), found.distances.tolist()) == ([[-1]], [[math.inf]])


def test_empty_sides() -> None:
    found = exact_search(torch.empty(0, 4), torch.ones(3, 4), 2)
    assert found.ids.shape == found.distances.shape == (0, 2)
    found = exact_search(torch.ones(3, 4).double(), torch.empty(0, 4).double(), 2)
    assert found.ids.shape == found.distances.shape == (3, 0)
    assert found.ids.dtype == torch.int64
    assert found.distances.dtype == torch.float64


def test_gradients_and_inputs_are_left_alone() -> None:
    x = torch.rand(5, 3, requires_grad=True)
    before = x.detach().clone()
    assert not exact_search(x, x, 2).distances.requires_grad
    assert torch.equal(x, before)


def test_autocast_and_fast_products_change_no_bit() -> None:
    x = torch.randn(200, 64, generator=torch.Generator().manual_seed(0))
    expected = exact_search(x, x, 5)
    backends = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    before = [backend.fp32_precision for backend in backends]
    try:
        backends[0].fp32_precision, backends[1].fp32_precision = "tf32", "bf16"
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert (x @ x.T).dtype == torch.bfloat16
            found = exact_search(x, x, 5)
        assert [backend.fp32_precision for backend in backends] == ["tf32", "bf16"]
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
    assert torch.equal(found.ids, expected.ids)
    assert torch.equal(found.distances, expected.distances)


@pytest.mark.parametrize("name", ["queries", "galleries"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bad_numbers_are_named(name: str, bad: float, dtype: torch.dtype) -> None:
    sides = {"queries": torch.rand(2_000, 4, dtype=dtype), "galleries": torch.rand(2_000, 4, dtype=dtype)}
    sides[name][[3, 1_500], [1, 2]] = bad
    with pytest.raises(ValueError, match=rf"finite {name} .* in 2 of 2000 rows, such as rows \[3, 1500\]"):
        exact_search(**sides, top_k=1)


def test_infinite_halves_are_named() -> None:
    x = torch.tensor([[1.0], [math.inf]], dtype=torch.float16)
    with pytest.raises(ValueError, match=r"1 of 2 rows, such as rows \[1\]"):
        exact_search(x, x, 1)


def test_bad_arguments() -> None:
    unchecked = inspect.unwrap(exact_search)  # the tests' own checks of annotations would come first
    x, items = torch.rand(3, 2), torch.arange(3)
    for top_k in (0, -1, 1.0, True):
        with pytest.raises(ValueError, match=f"top_k >= 1 as an int, got {top_k}"):
            unchecked(x, x, top_k)
    with pytest.raises(ValueError, match="'l2' and 'cosine', got 'L1'"):
        unchecked(x, x, 1, distance="L1")
    with pytest.raises(ValueError, match=r"float32 in torch.float32 or bfloat16, got product_dtype=torch.float16"):
        exact_search(x, x, 1, product_dtype=torch.float16)
    with pytest.raises(ValueError, match=r"float64 in torch.float64, got product_dtype=torch.bfloat16"):
        exact_search(x.double(), x.double(), 1, product_dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="positive memory_budget in bytes, got 0"):
        exact_search(x, x, 1, memory_budget=0)
    for q, g in ((x, torch.rand(3, 4)), (x[0], x), (x, x[None]), (torch.rand(3, 0), torch.rand(3, 0))):
        with pytest.raises(ValueError, match="of one dim > 0, got"):
            unchecked(q, g, 1)
    with pytest.raises(ValueError, match="both or neither"):
        exact_search(x, x, 1, query_items=items)
    with pytest.raises(ValueError, match="needs 3 integer gallery_items"):
        unchecked(x, x, 1, query_items=items, gallery_items=items[:2])
    with pytest.raises(ValueError, match="one device, got cpu, meta"):
        exact_search(x, x.to("meta"), 1)


@pytest.mark.slow
def test_memory_stays_within_the_budget() -> None:
    """Near copies, so that bounds exclude few of 4 million pairs: to hold half of them would take 46 MiB."""
    script = """
        import resource, torch
        from oml.functional.search import exact_search
        torch.set_num_threads(1)
        x = 1 + 1e-6 * torch.rand(2_000, 4)
        x[::2, 0] = 2.0
        exact_search(x[:100], x[:100], 5)
        exact_search(x[:100], x[:100], 5, product_dtype=torch.bfloat16)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        exact_search(x, x, 5, memory_budget=16 * 2**20)
        exact_search(x, x, 5, memory_budget=16 * 2**20, product_dtype=torch.bfloat16)
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10)
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 16 + 8  # outputs, a few numbers per query, what the allocator keeps


def test_the_product_is_taken_in_what_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(n: int, dim: int, dtype: torch.dtype = torch.float32) -> torch.dtype:
        x = torch.zeros(1, dim, dtype=dtype).expand(n, dim)
        return _fastest_product(x, x, dtype)

    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": True, "amx_bf16": False})
    assert chosen(2**14, 256) == torch.bfloat16
    assert chosen(2**14 - 1, 256) == chosen(2**14, 255) == torch.float32
    assert chosen(2**14, 256, torch.float64) == torch.float64
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx2": True})
    assert chosen(2**14, 256) == torch.float32
