import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.retrieval.postprocessors.data import ROLES, searched

from oml.functional.thresholding import n_before_jump
from oml.metrics.embeddings import EmbeddingMetrics
from oml.retrieval.postprocessors.base import Postprocessor
from oml.retrieval.postprocessors.thresholding import AdaptiveThresholding, ConstantThresholding


@settings(deadline=None, max_examples=50)
@given(
    n=st.integers(2, 10),
    roles=st.sampled_from(ROLES),
    top_k=st.integers(1, 12),
    n_sequences=st.integers(0, 4),
    threshold=st.sampled_from([-1, 0, 1, 2**0.5, 3.0, math.inf]),
    seed=st.integers(0, 999),
)
def test_what_is_farther_than_the_threshold_is_dropped(
    n: int, roles: str, top_k: int, n_sequences: int, threshold: float, seed: int
) -> None:
    results, _ = searched(n, roles, top_k, n_sequences, seed)
    before = results.retrieved_ids.clone(), results.distances.clone()
    kept = ConstantThresholding(threshold).rerank(results, {})
    assert torch.equal(results.retrieved_ids, before[0])
    assert torch.equal(results.distances, before[1])
    for row in range(len(results)):
        pairs = zip(before[0][row].tolist(), before[1][row].tolist(), strict=True)
        near = [(g, d) for g, d in pairs if g >= 0 and d <= threshold]
        padded = [*near, *[(-1, math.inf)] * (before[0].shape[1] - len(near))]
        assert list(zip(kept.retrieved_ids[row].tolist(), kept.distances[row].tolist(), strict=True)) == padded
    assert torch.equal(kept.n_relevant, results.n_relevant)


def test_a_query_may_be_left_with_nothing() -> None:
    results, _ = searched(8, "separate", 3, seed=3)
    kept = ConstantThresholding(results.distances[:, 0].median().item()).rerank(results, {})
    n_kept = (kept.retrieved_ids >= 0).sum(dim=1)
    assert 0 in n_kept.tolist()
    assert n_kept.amax() > 0


@settings(deadline=None, max_examples=50)
@given(
    n=st.integers(2, 10),
    roles=st.sampled_from(ROLES),
    top_k=st.integers(1, 12),
    n_std=st.sampled_from([0, 0.5, 1, 2.0]),
    seed=st.integers(0, 999),
)
def test_rankings_end_before_their_jump(n: int, roles: str, top_k: int, n_std: float, seed: int) -> None:
    results, _ = searched(n, roles, top_k, seed=seed)
    kept = AdaptiveThresholding(n_std).rerank(results, {})
    n_kept = n_before_jump(results.distances, n_std).tolist()
    for row, last in enumerate(n_kept):
        assert kept.retrieved_ids[row, :last].tolist() == results.retrieved_ids[row, :last].tolist()
        assert kept.distances[row, :last].tolist() == results.distances[row, :last].tolist()
        assert (kept.retrieved_ids[row, last:] == -1).all()
        assert kept.distances[row, last:].isinf().all()
        assert last >= (results.retrieved_ids[row] >= 0).any()


@settings(deadline=None, max_examples=50)
@given(n_std=st.sampled_from([0, 1, 2.0]), seed=st.integers(0, 999), row=st.integers(0, 19))
def test_the_cut_of_a_query_depends_on_no_other(n_std: float, seed: int, row: int) -> None:
    """Defect 28."""
    results, _ = searched(20, "shared", 12, seed=seed)
    postprocessor: Postprocessor = AdaptiveThresholding(n_std)
    alone = postprocessor.rerank(results.of_queries(torch.tensor([row])), {})
    together = postprocessor.rerank(results, {})
    assert torch.equal(alone.retrieved_ids, together.retrieved_ids[row : row + 1])
    assert postprocessor.is_by_query
    assert postprocessor.top_n == 20
    assert postprocessor.needed_keys == []


def test_only_some_are_cut() -> None:
    results, _ = searched(20, "shared", 12, seed=1)
    n_kept = (AdaptiveThresholding().rerank(results, {}).retrieved_ids >= 0).sum(dim=1)
    assert 0 < (n_kept < 12).sum() < 20


@pytest.mark.parametrize("n_std", [-0.5, math.nan, math.inf])
def test_bad_n_std_is_refused(n_std: float) -> None:
    with pytest.raises(ValueError, match=f"AdaptiveThresholding needs an n_std of 0 or more, got {n_std}"):
        AdaptiveThresholding(n_std)


def test_rankings_too_short_to_be_cut_are_refused() -> None:
    with pytest.raises(ValueError, match="AdaptiveThresholding needs a top_n of 3 or more, as fewer are never cut"):
        AdaptiveThresholding(top_n=2)


def test_metrics_find_enough_to_cut() -> None:
    """With 5 results there are 4 jumps, none of which can be 2 standard deviations above their mean."""
    labels = torch.arange(60) // 30
    is_near = torch.arange(60) % 30 < 4
    points = torch.where(is_near, 0.0, 10.0) + torch.arange(60) * 1e-3 + labels * 100
    metric = EmbeddingMetrics(cmc_top_k=[1], map_top_k=[5], postprocessor=AdaptiveThresholding(), verbose=False)
    metric.setup(60)
    roles = {"is_query": is_near, "is_gallery": torch.ones(60, dtype=torch.bool)}
    metric.update_data({"embeddings": points[:, None], "labels": labels, **roles})
    returned = metric.compute_metrics()["OVERALL"]["returned"]
    assert returned["number"] == 3
    assert returned["precision"] == 1


def test_bad_threshold_is_refused() -> None:
    with pytest.raises(ValueError, match="ConstantThresholding needs a distance as threshold, got nan"):
        ConstantThresholding(math.nan)
    with pytest.raises(TypeError, match="ConstantThresholding needs a distance as threshold, got 'far'"):
        inspect.unwrap(ConstantThresholding.__init__)(object.__new__(ConstantThresholding), "far")
