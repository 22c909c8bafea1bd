import math
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Callable
from inspect import unwrap
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from oml.functional import ranks
from oml.functional.ranking import Hits
from oml.functional.ranks import relevant_ranks
from oml.functional.search import exact_search

TItems = tuple[Tensor, Tensor] | None


def found(
    queries: Tensor, galleries: Tensor, labels: tuple[Tensor, Tensor], items: TItems = None, **kwargs: Any
) -> Hits:
    own = {} if items is None else {"query_items": items[0], "gallery_items": items[1]}
    return relevant_ranks(queries, galleries, *labels, **own, **kwargs)


def literal(queries: Tensor, galleries: Tensor, labels: tuple[Tensor, Tensor], items: TItems = None) -> list[list[int]]:
    """Measure every pair in Python's floats, sort by distance, then id, and look where the label stands."""
    dtype = torch.promote_types(queries.dtype, torch.float32)
    expected = []
    for i, q in enumerate(queries.double().tolist()):
        of_galleries = galleries.double().tolist()
        distances = [math.sqrt(math.fsum((a - b) ** 2 for a, b in zip(q, g, strict=True))) for g in of_galleries]
        ranked = []
        for j, distance in enumerate(torch.tensor(distances, dtype=dtype).tolist()):
            if items is None or items[0][i] != items[1][j]:
                ranked.append((distance, j))
        ids = [j for _, j in sorted(ranked)]
        expected += [[i, rank] for rank, j in enumerate(ids, start=1) if labels[1][j] == labels[0][i]]
    return expected


def searched(
    queries: Tensor, galleries: Tensor, labels: tuple[Tensor, Tensor], items: TItems = None
) -> list[list[int]]:
    query_items, gallery_items = (None, None) if items is None else items
    ids = exact_search(queries, galleries, len(galleries), query_items=query_items, gallery_items=gallery_items).ids
    is_relevant = (labels[1][ids] == labels[0][:, None]) & (ids >= 0)
    return [[query, rank + 1] for query, rank in is_relevant.nonzero().tolist()]


def rows(hits: Hits) -> list[list[int]]:
    return torch.stack([hits.query, hits.rank], dim=1).tolist()


@settings(deadline=None, max_examples=60)
@given(
    n_queries=st.integers(1, 8),
    n_galleries=st.integers(1, 40),
    dim=st.integers(1, 3),
    n_labels=st.integers(1, 6),
    n_items=st.sampled_from([None, 1, 4, 9]),
    is_one_set=st.booleans(),
    few=st.sampled_from([(64, 32), (2, 100), (0, 100)]),
    share=st.sampled_from([0, 24, 10**9]),
    budget=st.sampled_from([1, 5_000, 512 * 2**20]),
    seed=st.integers(0, 999),
)
def test_ranks_follow_the_definition(
    n_queries: int,
    n_galleries: int,
    dim: int,
    n_labels: int,
    n_items: int | None,
    is_one_set: bool,
    few: tuple[int, int],
    share: int,
    budget: int,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    # so coarse a grid that duplicates, ties, and queries without a relevant or an allowed gallery are common
    galleries = torch.randint(3, (n_galleries, dim), generator=generator).float()
    of_galleries = torch.randint(n_labels, (n_galleries,), generator=generator)
    queries = galleries if is_one_set else torch.randint(3, (n_queries, dim), generator=generator).float()
    of_queries = of_galleries if is_one_set else torch.randint(n_labels, (n_queries,), generator=generator)
    items = None
    if n_items is not None:
        gallery_items = torch.randint(n_items, (n_galleries,), generator=generator)
        is_same = is_one_set and seed % 3 > 0  # one set may still have other items as queries
        items = (
            gallery_items if is_same else torch.randint(n_items, (len(queries),), generator=generator),
            gallery_items,
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks, "_FEW", few[0])
        patch.setattr(ranks, "_FEW_SHARE", few[1])
        patch.setattr(ranks, "_MEASURED_SHARE", share)
        hits = found(queries, galleries, (of_queries, of_galleries), items, memory_budget=budget)
    assert rows(hits) == literal(queries, galleries, (of_queries, of_galleries), items)
    assert hits.n_queries == len(queries)


def test_ranks_by_hand() -> None:
    galleries = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 5.0], [-3.0, -4.0], [0.0, 1.0]])
    of_galleries = torch.tensor([8, 7, 7, 7, 8])
    hits = found(torch.zeros(2, 2), galleries, (torch.tensor([7, 9]), of_galleries))
    assert rows(hits) == [[0, 1], [0, 4], [0, 5]]  # three at distance 5 by their ids; nothing has label 9
    assert hits.n_queries == 2


def clustered(sizes: list[int], dim: int, spread: float, norm: float = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Vectors around a centre for each label, in random order, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    centres = norm * torch.nn.functional.normalize(torch.randn(len(sizes), dim, generator=generator))
    return centres[labels] + spread * torch.randn(len(labels), dim, generator=generator), labels


def random(kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(150, 8, generator=generator)
    return {
        "uniform": x,
        "grid": torch.randint(2, (150, 4), generator=generator).float(),
        "all equal": torch.ones(150, 3),
        "exact duplicates": x[torch.randint(9, (150,), generator=generator)],
        "near duplicates of a large norm": clustered([50, 100], 8, spread=1e-3, norm=1e3)[0],
        "a far mean": 1e4 + x,
        "an outlier": torch.cat([x[1:], torch.full((1, 8), 1e8)]),
        "tiny": 1e-30 * x,
        "below the normal numbers": 1e-43 * x,
        "huge": 1e17 * x,
        "float64": x.double() + 1e-9 * torch.rand(150, 8, generator=generator),
        "float16": x.half(),
        "bfloat16": x.bfloat16(),
    }[kind]


KINDS = (
    "uniform", "grid", "all equal", "exact duplicates", "near duplicates of a large norm", "a far mean", "an outlier",
    "tiny", "below the normal numbers", "huge", "float64", "float16", "bfloat16",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("few", [(64, 32), (0, 100)])
def test_the_ranking_is_that_of_exact_search(kind: str, few: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "BLOCK", 64)
    monkeypatch.setattr(ranks, "_FEW", few[0])
    monkeypatch.setattr(ranks, "_FEW_SHARE", few[1])
    x, items = random(kind), torch.arange(150) // 3
    labels = torch.randint(20, (150,), generator=torch.Generator().manual_seed(1))
    expected = searched(x, x, (labels, labels), (items, items))
    assert len(expected) > 500
    assert rows(found(x, x, (labels, labels), (items, items))) == expected
    assert rows(found(x, x.clone(), (labels, labels), (items, items))) == expected
    assert rows(found(x[:70], x, (labels[:70], labels))) == searched(x[:70], x, (labels[:70], labels))


def counting_calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts how the ranks were found."""
    calls: Counter[str] = Counter()

    def watch(owner: Any, name: str) -> None:
        function: Callable[..., Any] = getattr(owner, name)

        def watched(*args: Any) -> Any:
            calls[name] += 1
            return function(*args)

        monkeypatch.setattr(owner, name, watched)

    watch(ranks._Counts, "add")
    watch(ranks._Counts, "_count_in_passes")
    watch(ranks, "_distances_within")
    watch(ranks, "_ranks_by_sorting")
    return calls


@pytest.mark.parametrize("spread", [0.02, 0.3, 3])
def test_labels_of_very_different_sizes(spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "BLOCK", 128)
    calls = counting_calls(monkeypatch)
    x, labels = clustered([1, 1, 1, 2, 2, 2, 3, 4, 5, 8, 20, 40, 90, 150, 221], 16, spread)
    items = torch.arange(len(x))
    hits = found(x, x, (labels, labels), (items, items))
    assert rows(hits) == searched(x, x, (labels, labels), (items, items))
    if spread == 3:  # poor embeddings
        assert calls["_count_in_passes"] > 0
    assert calls["_ranks_by_sorting"] > 0
    assert calls["add"] == 5 * 5


def test_each_pair_of_blocks_is_looked_at_once_if_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "BLOCK", 32)
    products = []
    visit = ranks.PairBlocks.visit
    monkeypatch.setattr(
        ranks.PairBlocks, "visit", lambda blocks, places, look: products.extend(places) or visit(blocks, places, look)
    )
    x, labels = clustered([3] * 32, 8, 0.1)
    items = torch.arange(96)
    expected = rows(found(x, x.clone(), (labels, labels), (items, items)))
    assert len(products) == 9
    for other in (x, x[:]):
        products.clear()
        assert rows(found(x, other, (labels, labels), (items, items))) == expected
        assert len(products) == 6
    products.clear()
    queries_of_another_order = items.flip(0)  # neither labels nor items need be the same for both
    assert rows(found(x, x, (labels, labels), (queries_of_another_order, items))) == literal(
        x, x, (labels, labels), (queries_of_another_order, items)
    )
    assert rows(found(x, x, (labels.flip(0), labels))) == literal(x, x, (labels.flip(0), labels))
    assert len(products) == 18


def test_budget_blocks_threads_and_shortcuts_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = clustered([2] * 10 + [9] * 5 + [15], 16, spread=0.6)
    x, labels = torch.cat([x, x]), torch.cat([labels, labels.flip(0)])  # copies of other labels, which must be measured
    items = torch.arange(len(x)) // 2
    expected = rows(found(x, x, (labels, labels), (items, items)))
    assert expected == searched(x, x, (labels, labels), (items, items))
    for budget in (1, 100_000, 4 * 10**6):
        assert rows(found(x, x, (labels, labels), (items, items), memory_budget=budget)) == expected
    calls = counting_calls(monkeypatch)
    before = torch.get_num_threads()
    try:
        for block in (32, 96):
            monkeypatch.setattr(ranks, "BLOCK", block)
            for share, n_threads in ((0, 1), (10**9, 3)):
                monkeypatch.setattr(ranks, "_MEASURED_SHARE", share)
                calls.clear()
                torch.set_num_threads(n_threads)
                assert rows(found(x, x, (labels, labels), (items, items))) == expected
                assert calls["_count_in_passes"] > 0
                assert (calls["_distances_within"] > 0) == (share > 0)
    finally:
        torch.set_num_threads(before)


def test_other_queries_change_nothing() -> None:
    x, labels = clustered([6] * 60, 16, 0.5)
    items = torch.arange(len(x))
    hits = found(x, x, (labels, labels), (items, items))
    some = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:50].sort().values
    part = found(x[some], x, (labels[some], labels), (items[some], items))
    is_some = torch.isin(hits.query, some)
    assert torch.equal(part.rank, hits.rank[is_some])
    assert torch.equal(some[part.query], hits.query[is_some])


def test_ties_that_a_product_cannot_tell() -> None:
    x, labels = clustered([4] * 30, 16, spread=1e-3, norm=1e3)
    x = torch.cat([x, x.flip(0)])  # and each of them twice
    labels = torch.cat([labels, labels])
    assert rows(found(x, x, (labels, labels))) == literal(x, x, (labels, labels))


@pytest.mark.parametrize(("n_queries", "n_galleries"), [(0, 0), (0, 3), (3, 0)])
def test_nothing_to_search(n_queries: int, n_galleries: int) -> None:
    labels = torch.zeros(n_queries, dtype=torch.int64), torch.zeros(n_galleries, dtype=torch.int64)
    hits = found(torch.zeros(n_queries, 2), torch.zeros(n_galleries, 2), labels)
    assert hits.query.tolist() == hits.rank.tolist() == []
    assert hits.n_queries == n_queries


def test_labels_may_be_of_any_integer_type() -> None:
    x, labels = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([-1, 5, -1])
    hits = found(x, x, (labels.to(torch.int32), labels), (torch.arange(3, dtype=torch.int16), torch.arange(3)))
    assert rows(hits) == [[0, 2], [2, 2]]


@pytest.mark.slow
def test_memory_is_bounded() -> None:
    """The process grows by less than a matrix of all pairs would take."""
    script = """
        import ctypes, pathlib, sys, torch
        from oml.functional.ranks import relevant_ranks
        def memory(field):
            lines = pathlib.Path("/proc/self/status").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024
        x = torch.randn(5_000, 16, generator=torch.Generator().manual_seed(0))
        labels = torch.arange(5_000) % 1_000
        relevant_ranks(x[:500], x[:500], labels[:500], labels[:500])
        pathlib.Path("/proc/self/clear_refs").write_text("5")
        before = memory("VmRSS")
        relevant_ranks(x, x, labels, labels, memory_budget=32 * 2**20)
        print(memory("VmHWM") - before)
    """
    if not sys.platform.startswith("linux"):
        pytest.skip("peak memory is read from /proc")
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 40 < 5_000**2 * 4 / 2**20


def test_errors_say_what_came() -> None:
    x, labels = torch.zeros(3, 2), torch.arange(3)
    for match, arguments in {
        r"one dim > 0, got \(3, 2\) and \(3, 4\)": (x, torch.zeros(3, 4), labels, labels),
        r"needs 3 integer query_labels in one dimension, got \(2,\)": (x, x, labels[:2], labels),
        "3 integer gallery_labels in one dimension, got .* of torch.float32": (x, x, labels, labels.float()),
    }.items():
        with pytest.raises(ValueError, match=match):
            unwrap(relevant_ranks)(*arguments)
    with pytest.raises(ValueError, match="both or neither, got one"):
        relevant_ranks(x, x, labels, labels, query_items=labels)
    with pytest.raises(ValueError, match=r"3 integer gallery_items in one dimension, got \(2,\)"):
        unwrap(relevant_ranks)(x, x, labels, labels, query_items=labels, gallery_items=labels[:2])
    with pytest.raises(ValueError, match="positive memory_budget in bytes, got 0"):
        relevant_ranks(x, x, labels, labels, memory_budget=0)
    with pytest.raises(ValueError, match="on one device, got cpu, meta"):
        relevant_ranks(x, x.to("meta"), labels, labels)
    for bad in (math.nan, math.inf, 1e19):
        y = torch.zeros(9, 2)
        y[4, 1] = y[7, 0] = bad
        with pytest.raises(ValueError, match=r"finite galleries .* in 2 of 9 rows, such as rows \[4, 7\]"):
            relevant_ranks(x, y, labels, torch.arange(9))
