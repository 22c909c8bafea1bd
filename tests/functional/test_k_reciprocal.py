import inspect
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from oml.functional import k_reciprocal_ranking
from oml.functional.farthest import farthest_distances
from oml.functional.k_reciprocal import k_reciprocal_rerank
from oml.functional.pair_blocks import BLOCK
from oml.functional.search import exact_search


def dense(x: Tensor, k1: int, k2: int, lambda_value: float) -> tuple[Tensor, Tensor]:
    """The final distances of all pairs by the definition, item by item, and the L2 distances."""
    n = len(x)
    distances = (x[:, None].double() - x.double()).square().sum(dim=2).sqrt().float().double()
    d = distances**2 / (distances**2).amax(dim=1, keepdim=True).clamp(min=1e-300)
    ranking = [sorted(range(n), key=lambda j: (j != i, distances[i, j].item(), j)) for i in range(n)]

    def reciprocal(i: int, k: int) -> set[int]:
        return {j for j in ranking[i][: k + 1] if i in ranking[j][: k + 1]}

    v = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n):
        own = reciprocal(i, k1)
        expanded = set(own)
        for c in own:
            others = reciprocal(c, round(k1 / 2))
            if 3 * len(others & own) > 2 * len(others):
                expanded |= others
        columns = sorted(expanded)
        v[i, columns] = torch.exp(-d[i, columns])
        v[i] /= v[i].sum()
    v = torch.stack([v[ranking[i][:k2]].mean(dim=0) for i in range(n)])
    shared = torch.stack([torch.minimum(row, v).sum(dim=1) for row in v])
    return (1 - lambda_value) * (1 - shared / (2 - shared)) + lambda_value * d, distances


def items_of(n: int, seed: int, grid: bool, dim: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if grid:  # with ties and copies
        return torch.randint(4, (n, dim), generator=generator).float()
    return torch.randn(n, dim, generator=generator)


def reranked(x: Tensor, queries: Tensor, galleries: Tensor, width: int, **kwargs: Any) -> tuple[Tensor, Tensor]:
    nearest = exact_search(x[queries], x[galleries], width, query_items=queries, gallery_items=galleries).ids
    nearest = galleries[nearest].masked_fill(nearest < 0, -1)
    kwargs = {"query_items": queries, "gallery_items": galleries} | kwargs
    return tuple(k_reciprocal_rerank(x, queries, galleries, nearest, **kwargs))  # pyright: ignore[reportReturnType]


@settings(deadline=None, max_examples=50)
@given(
    n=st.integers(1, 18),
    grid=st.booleans(),
    separate=st.booleans(),
    width=st.integers(1, 19),
    k1=st.integers(1, 9),
    k2=st.integers(1, 12),
    lambda_value=st.sampled_from([0, 0.3, 0.9, 1]),
    measures=st.booleans(),
    seed=st.integers(0, 999),
)
def test_it_follows_the_definition(
    n: int, grid: bool, separate: bool, width: int, k1: int, k2: int, lambda_value: float, measures: bool, seed: int
) -> None:
    x, items = items_of(n, seed, grid), torch.arange(n)
    queries, galleries = (items[: n // 3], items[n // 3 :]) if separate else (items, items)
    with pytest.MonkeyPatch.context() as patch:
        if not measures:  # but looks at bounds first
            patch.setattr(k_reciprocal_ranking, "_CROWD", 0)
        ids, found = reranked(x, queries, galleries, width, k1=k1, k2=k2, lambda_value=lambda_value)
    expected, distances = dense(x, k1, k2, lambda_value)
    for row, q in enumerate(queries.tolist()):
        others = [g for g in galleries.tolist() if g != q]
        ranked = sorted(others, key=lambda g: (expected[q, g].float().item(), distances[q, g].item(), g))[:width]
        n_found = len(ranked)
        assert ids[row, n_found:].eq(-1).all()
        assert found[row, n_found:].isinf().all()
        torch.testing.assert_close(found[row, :n_found], expected[q, ranked].float(), rtol=0, atol=1e-6)
        if ids[row, :n_found].tolist() != ranked:  # what rounding alone put in another order
            got = ids[row, :n_found].tolist()
            assert len(set(got)) == n_found
            assert set(got) <= set(others)
            torch.testing.assert_close(expected[q, got], expected[q, ranked], rtol=0, atol=1e-7)


# pairs per query that are measured without a look at bounds; the half of 7 is 4, that of 5 is 2
@pytest.mark.parametrize(("crowd", "k1"), [(0, 5), (10**9, 7)])
def test_galleries_that_are_passed_over_would_not_come_in(crowd: int, k1: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(k_reciprocal_ranking, "_CROWD", crowd)
    x, items = items_of(400, 7, grid=False, dim=12), torch.arange(400)
    expected = dense(x, k1, 4, 0.5)[0].fill_diagonal_(math.inf).sort(dim=1)
    for width in (3, 40):
        ids, distances = reranked(x, items, items, width, k1=k1, k2=4, lambda_value=0.5)
        assert torch.equal(ids, expected.indices[:, :width])
        torch.testing.assert_close(distances, expected.values[:, :width].float(), rtol=0, atol=1e-6)


def test_the_data_of_the_definition_tells_the_steps_apart() -> None:
    """Each step of the definition changes the result of random data, so that the test above would tell."""
    x = items_of(24, 5, grid=False)
    base = dense(x, 6, 3, 0.3)[0]
    for other in ((7, 3, 0.3), (6, 1, 0.3), (6, 3, 0.2)):
        assert (dense(x, *other)[0] - base).abs().amax() > 1e-3, other


def test_permuting_items_permutes_results() -> None:
    n = 300
    x, items = items_of(n, 0, grid=False, dim=8), torch.arange(n)
    ids, distances = reranked(x, items, items, 15)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(1))
    permuted_ids, permuted_distances = reranked(x[order], items, items, 15)
    assert torch.equal(order[permuted_ids], ids[order])
    torch.testing.assert_close(permuted_distances, distances[order], rtol=0, atol=1e-6)


def test_the_original_distance_alone_keeps_the_order() -> None:
    n = 300
    x, items = items_of(n, 0, grid=True), torch.arange(n)
    nearest = exact_search(x, x, 40, query_items=items, gallery_items=items)
    assert (nearest.distances[:, 1:] == nearest.distances[:, :-1]).any()
    ids, distances = reranked(x, items, items, 40, lambda_value=1.0)
    assert torch.equal(ids, nearest.ids)
    torch.testing.assert_close(distances, (nearest.distances / farthest_distances(x)[:, None]) ** 2)


def test_items_of_the_same_number_are_not_found_but_count() -> None:
    x, items = items_of(40, 3, grid=False), torch.arange(40)
    sequences = items // 4
    expected = dense(x, 5, 2, 0.3)[0].masked_fill(sequences[:, None] == sequences, math.inf)
    ids, _ = k_reciprocal_rerank(
        x,
        items,
        items,
        exact_search(x, x, 10, query_items=sequences, gallery_items=sequences).ids,
        query_items=sequences,
        gallery_items=sequences,
        k1=5,
        k2=2,
    )
    assert torch.equal(ids, expected.sort(dim=1).indices[:, :10])


def test_copies_and_one_place() -> None:
    x = torch.ones(9, 2)
    items = torch.arange(9)
    ids, distances = reranked(x, items, items, 8, k1=3, k2=2)
    assert (ids.sort(dim=1).values == torch.stack([items[items != i] for i in items])).all()
    assert distances.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("n", [1, 2, 100, BLOCK + 7, 2 * BLOCK, 3 * BLOCK + 1])
def test_the_farthest(n: int, dtype: torch.dtype) -> None:
    x = (100 + torch.randn(n, 3, generator=torch.Generator().manual_seed(n))).to(dtype)
    expected = torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist").amax(dim=1)
    assert n == 1 or expected.amin() > 1
    torch.testing.assert_close(farthest_distances(x).double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("memory_budget", [2**14, 2**29])
def test_threads_and_budget_change_nothing(memory_budget: int) -> None:
    n = 150
    x, items = items_of(n, 2, grid=True, dim=4), torch.arange(n)
    expected = reranked(x, items, items, 30, k1=10)
    torch.set_num_threads(3)
    try:
        found = reranked(x, items, items, 30, k1=10, memory_budget=memory_budget)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


class Largest(TorchDispatchMode):
    """The most numbers that a tensor has had."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, tuple | list) else [out]:
            if isinstance(each, Tensor):
                self.numbers = max(self.numbers, each.untyped_storage().nbytes() // each.element_size())
        return out


def test_no_tensor_has_a_number_for_all_pairs() -> None:
    n = 1600
    x, items = items_of(n, 0, grid=False, dim=8), torch.arange(n)
    nearest = exact_search(x, x, 50, query_items=items, gallery_items=items).ids
    torch.set_num_threads(1)  # tensors of other threads would not be seen
    with Largest() as largest:
        k_reciprocal_rerank(x, items, items, nearest, query_items=items, gallery_items=items, memory_budget=2**23)
    assert n * 20 < largest.numbers < n * n / 4


def test_autocast_does_not_matter() -> None:
    n = 400
    x, items = items_of(n, 0, grid=False, dim=16), torch.arange(n)
    expected = reranked(x, items, items, 100, k1=5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(reranked(x, items, items, 100, k1=5)[0], expected[0])


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"k1": 0}, "1 or more as k1, got 0"),
        ({"k2": 1.5}, "1 or more as k2, got 1.5"),
        ({"lambda_value": 1.1}, "lambda_value from 0 to 1, got 1.1"),
        ({"memory_budget": 0}, "1 or more as memory_budget, got 0"),
    ],
)
def test_parameters_out_of_range(kwargs: dict[str, Any], text: str) -> None:
    x, items = torch.eye(3), torch.arange(3)
    rerank = inspect.unwrap(k_reciprocal_rerank)
    with pytest.raises(ValueError, match=text):
        rerank(x, items, items, items[:, None], query_items=items, gallery_items=items, **kwargs)


def test_numbers_that_are_not_finite() -> None:
    x, items = torch.eye(3), torch.arange(3)
    x[1, 0] = math.nan
    with pytest.raises(ValueError, match=r"k_reciprocal_rerank needs finite .* rows \[1\]"):
        k_reciprocal_rerank(x, items, items, items[:, None] * 0 - 1, query_items=items, gallery_items=items)
