import inspect
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.retrieval.postprocessors.data import ROLES, searched

from oml.retrieval import RetrievalResults, fusion
from oml.retrieval.fusion import fuse
from oml.retrieval.postprocessors.thresholding import ConstantThresholding

METHODS = ("reciprocal_rank", "distance")
WEIGHTS = st.sampled_from([1, 2, 0.5, 3.0])


def rankings(n: int, roles: str, top_ks: list[int], n_sequences: int, seed: int) -> list[RetrievalResults]:
    """Of as many extractors, in one data set; the last list is shorter for some queries."""
    results, _ = searched(n, roles, 12, n_sequences, seed)
    generator = torch.Generator().manual_seed(seed)
    fusible = []
    for top_k in top_ks:
        noisy = (results.distances + torch.randint(4, results.distances.shape, generator=generator) / 2).sort(dim=1)
        ids, distances = results.retrieved_ids.gather(1, noisy.indices), noisy.values
        fusible.append(results.with_ranking(ids[:, :top_k], distances[:, :top_k]))
    fusible[-1] = ConstantThresholding(2.5).rerank(fusible[-1], {})
    return fusible


def literal(results: list[RetrievalResults], row: int, method: str, weights: list[float], k: int) -> list[Any]:
    """(distance, mean rank, id) of all candidates of a query, in order, in exact numbers."""
    lists = []
    for each in results:
        pairs = zip(each.retrieved_ids[row].tolist(), each.distances[row].tolist(), strict=True)
        lists.append([(g, Fraction(d)) for g, d in pairs if g >= 0])
    shares = [Fraction(weight) / sum(map(Fraction, weights)) for weight in weights]
    width = max(each.retrieved_ids.shape[1] for each in results)
    fused = []
    for item in {g for one in lists for g, _ in one}:
        distance = mean_rank = Fraction(0)
        for one, share in zip(lists, shares, strict=True):
            rank = next((rank for rank, (g, _) in enumerate(one, start=1) if g == item), None)
            if rank is None:
                says = Fraction(1)
            elif method == "reciprocal_rank":
                says = Fraction(rank - 1, k + rank)
            else:
                span = one[-1][1] - one[0][1]
                says = (one[rank - 1][1] - one[0][1]) / span if span else Fraction(0)
            distance += share * says
            mean_rank += share * (width + 1 if rank is None else rank)
        fused.append((distance, mean_rank, item))
    return sorted(fused)


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(2, 9),
    roles=st.sampled_from(ROLES),
    lists=st.lists(st.tuples(st.integers(1, 9), WEIGHTS), min_size=1, max_size=4),
    n_sequences=st.integers(0, 3),
    method=st.sampled_from(METHODS),
    k=st.sampled_from([0, 1, 60]),
    rows=st.integers(1, 9),
    seed=st.integers(0, 9999),
)
def test_fusion_follows_the_definition(
    n: int, roles: str, lists: list[tuple[int, float]], n_sequences: int, method: str, k: int, rows: int, seed: int
) -> None:
    top_ks, weights = [top_k for top_k, _ in lists], [weight for _, weight in lists]
    results = rankings(n, roles, top_ks, n_sequences, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fusion, "_ROWS", rows)
        fused = fuse(results, method, weights=weights, k=k)  # pyright: ignore[reportArgumentType]
    width = max(each.retrieved_ids.shape[1] for each in results)
    assert fused.retrieved_ids.shape == (len(results[0]), width)
    for row in range(len(fused)):
        expected = literal(results, row, method, weights, k)
        found = [g for g in fused.retrieved_ids[row].tolist() if g >= 0]
        distances = fused.distances[row, : len(found)].tolist()
        assert len(found) == min(width, len(expected))
        assert distances == pytest.approx([float(distance) for distance, _, _ in expected[:width]], abs=1e-6)
        # where numbers are equal, save for rounding, the order may be another
        of_item = {item: (float(distance), float(mean_rank)) for distance, mean_rank, item in expected}
        assert [of_item[g][0] for g in found] == pytest.approx([float(d) for d, _, _ in expected[:width]], abs=1e-12)
        if len(set(weights)) == 1 and len(weights) in (1, 2, 4):  # shares without rounding
            assert found == [item for _, _, item in expected[:width]] or method == "distance"


@settings(deadline=None, max_examples=25)
@given(
    n=st.integers(2, 9),
    roles=st.sampled_from(ROLES),
    top_k=st.integers(1, 9),
    n_sequences=st.integers(0, 3),
    method=st.sampled_from(METHODS),
    weights=st.lists(WEIGHTS, min_size=1, max_size=4),
    seed=st.integers(0, 999),
)
def test_the_fusion_of_a_ranking_with_itself_is_that_ranking(
    n: int, roles: str, top_k: int, n_sequences: int, method: Any, weights: list[float], seed: int
) -> None:
    (results,) = rankings(n, roles, [top_k], n_sequences, seed)
    fused = fuse([results] * len(weights), method, weights=weights)
    assert torch.equal(fused.retrieved_ids, results.retrieved_ids)


@pytest.mark.parametrize("method", METHODS)
def test_a_ranking_of_nearly_equal_distances_stays_as_it_is(method: Any) -> None:
    ids = torch.arange(50)
    distances = (
        1e3 + torch.rand(50, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).sort().values * 1e-12
    )
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    results = RetrievalResults(ids[:1] + 50, ids[:1], ids, ids * 0, order[None], distances[None])
    assert torch.equal(fuse([results] * 3, method).retrieved_ids, order[None])


@settings(deadline=None, max_examples=25)
@given(
    top_ks=st.lists(st.integers(1, 9), min_size=2, max_size=4),
    method=st.sampled_from(METHODS),
    scale=st.sampled_from([0.1, 3, 1e6]),
    order=st.randoms(use_true_random=False),
    seed=st.integers(0, 999),
)
def test_neither_the_order_of_rankings_nor_the_scale_of_weights_matters(
    top_ks: list[int], method: Any, scale: float, order: Any, seed: int
) -> None:
    results = [
        each.with_ranking(each.retrieved_ids, each.distances.double())  # in float32 few sums would tell
        for each in rankings(9, "shared", top_ks, 0, seed)
    ]
    weights = [0.1 + 0.3 * i for i in range(len(results))]
    numbers = list(range(len(results)))
    order.shuffle(numbers)
    fused = fuse(results, method, weights=weights)
    shuffled = fuse([results[i] for i in numbers], method, weights=[weights[i] for i in numbers])
    assert torch.equal(fused.retrieved_ids, shuffled.retrieved_ids)
    assert torch.equal(fused.distances, shuffled.distances)
    assert (fused.distances >= 0).all()  # shares add up to 1 save for rounding
    scaled = fuse(results, method, weights=[scale * weight for weight in weights])
    torch.testing.assert_close(scaled.distances, fused.distances)


@pytest.mark.parametrize("method", METHODS)
def test_a_heavy_ranking_prevails(method: Any) -> None:
    one, other, _ = rankings(9, "shared", [8, 8, 8], 0, seed=1)
    one, other = (each.with_ranking(each.retrieved_ids, torch.arange(8.0).repeat(9, 1)) for each in (one, other))
    assert not torch.equal(one.retrieved_ids, other.retrieved_ids)
    assert torch.equal(fuse([one, other], method, weights=[1e4, 1]).retrieved_ids, one.retrieved_ids)
    assert torch.equal(fuse([one, other], method, weights=[1, 1e4]).retrieved_ids, other.retrieved_ids)


def ranked(ids: list[int], distances: list[float]) -> RetrievalResults:
    """Of one query in a gallery of five."""
    query, gallery = torch.tensor([5]), torch.arange(5)
    return RetrievalResults(query, query * 0, gallery, gallery * 0, torch.tensor([ids]), torch.tensor([distances]))


def test_ranks_that_tell_equal_distances_apart_have_weights() -> None:
    """Items 1 to 3 have one distance: 3 has the ranks 2 and 4, 2 has 3 and 2, 1 has 4 and 3."""
    distances = [0.0, 0.5, 0.5, 0.5, 1.0]
    one, other = ranked([0, 3, 2, 1, 4], distances), ranked([0, 2, 1, 3, 4], distances)
    assert fuse([one, other]).retrieved_ids.tolist() == [[0, 2, 3, 1, 4]]  # 2.5 of 2, 3 of 3, 3.5 of 1
    assert fuse([one, other], weights=[3, 1]).retrieved_ids.tolist() == [[0, 3, 2, 1, 4]]  # 2.75, 2.5, 3.75


def test_items_that_a_short_ranking_lacks_come_after_the_ranks_of_the_widest() -> None:
    """1 has the rank 2 and 6, being absent; 2 has 3 and 2: if absent items had the rank 3, they would tie."""
    fused = fuse([ranked([0, 1, 2, 3, 4], [0.0, 0.5, 0.5, 0.75, 1.0]), ranked([0, 2], [0.0, 1.0])])
    assert fused.retrieved_ids.tolist() == [[0, 2, 1, 3, 4]]


@pytest.mark.parametrize("method", METHODS)
def test_no_distance_is_negative(method: Any) -> None:
    weights = [1, 3, 3, 3, 3]
    assert sum(weight / 13 for weight in weights) > 1  # as all of it is taken off the distance
    assert fuse([ranked([0, 1], [0.0, 1.0])] * 5, method, weights=weights).distances[0, 0] == 0


def test_reciprocal_ranks_of_the_paper() -> None:
    """Two lists by hand: b is second in both, a first in one and absent from the other."""
    ids, query = torch.arange(3), torch.tensor([3])
    one, other = (
        RetrievalResults(query, query, ids, ids, torch.tensor([ranked]), torch.tensor([[0.1, 0.2]]))
        for ranked in ([0, 1], [2, 1])
    )
    fused = fuse([one, other], "reciprocal_rank")
    assert fused.retrieved_ids.tolist() == [[1, 0]]  # 2 / 62 before 1 / 61; a and c tie, a has the lower id
    scores = [(1 - d) / 61 for d in fused.distances[0].tolist()]
    assert scores == pytest.approx([(1 / 62 + 1 / 62) / 2, 1 / 61 / 2])


def other_labels(results: RetrievalResults) -> RetrievalResults:
    return RetrievalResults(
        results.query_ids, results.query_labels + 1, results.gallery_ids, results.gallery_labels + 1,
        results.retrieved_ids, results.distances,
    )  # fmt: skip


def with_sequences(results: RetrievalResults) -> RetrievalResults:
    none = torch.full_like(results.gallery_ids, -1)
    return RetrievalResults(
        results.query_ids, results.query_labels, results.gallery_ids, results.gallery_labels,
        results.retrieved_ids, results.distances, torch.full_like(results.query_ids, -1), none,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda results: results.of_queries(torch.tensor([1, 0, 2, 3])), "query_ids .*: 2 of 4 differ, such as 0 and"),
        (lambda results: results.of_queries(torch.tensor([0, 1])), "other query_ids in results 0 and 1: 4 and 2"),
        (other_labels, "other query_labels in results 0 and 1: 4 of 4 differ"),
        (with_sequences, "fuse needs query_sequences of all results or of none, results 0 have none"),
    ],
)  # fmt: skip
def test_other_queries_or_galleries_are_refused(
    change: Callable[[RetrievalResults], RetrievalResults], message: str
) -> None:
    results, _ = searched(4, "shared", 3)
    with pytest.raises(ValueError, match=message):
        fuse([results, change(results)])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"method": "borda"}, "methods 'distance', 'reciprocal_rank', got 'borda'"),
        ({"weights": [1]}, r"a weight above 0 of each of 2 results, got \[1\]"),
        ({"weights": [1, 0]}, r"a weight above 0 of each of 2 results, got \[1, 0\]"),
        ({"weights": [1, math.nan]}, r"a weight above 0 of each of 2 results, got \[1, nan\]"),
        ({"k": -1}, "a k of 0 or more, got -1"),
        ({"results": []}, "the results of one search or more, got none"),
    ],
)
def test_bad_arguments_are_refused(args: dict[str, Any], message: str) -> None:
    results, _ = searched(4, "shared", 3)
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(fuse)(**{"results": [results] * 2, **args})


def test_nothing_found_at_all() -> None:
    results, _ = searched(4, "shared", 3)
    empty = ConstantThresholding(-1).rerank(results, {})
    for method in METHODS:
        fused = fuse([empty, empty], method)  # pyright: ignore[reportArgumentType]
        assert (fused.retrieved_ids == -1).all()
        assert fused.distances.isinf().all()
        assert torch.equal(fuse([empty, results], method).retrieved_ids, results.retrieved_ids)  # pyright: ignore[reportArgumentType]
