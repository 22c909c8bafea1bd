import inspect
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.retrieval.postprocessors.data import ROLES, is_to_find, searched

from oml.functional.k_reciprocal import k_reciprocal_rerank
from oml.functional.statistics import bootstrap_interval
from oml.metrics.per_query import ranking_metrics
from oml.retrieval import RetrievalResults
from oml.retrieval.postprocessors.k_reciprocal import KReciprocalPostprocessor


@settings(deadline=None, max_examples=30)
@given(
    n=st.integers(2, 14),
    roles=st.sampled_from(ROLES),
    top_k=st.integers(1, 12),
    n_sequences=st.integers(0, 4),
    k1=st.integers(1, 6),
    seed=st.integers(0, 999),
)
def test_results_are_as_wide_as_before_and_hold_what_may_be_found(
    n: int, roles: str, top_k: int, n_sequences: int, k1: int, seed: int
) -> None:
    results, embeddings = searched(n, roles, top_k, n_sequences, seed)
    before = results.retrieved_ids.clone()
    new = KReciprocalPostprocessor(k1=k1, k2=2).rerank(results, {"embeddings": embeddings})
    assert torch.equal(results.retrieved_ids, before)
    assert torch.equal((new.retrieved_ids >= 0).sum(dim=1), (before >= 0).sum(dim=1))
    assert new.distances.dtype == results.distances.dtype
    allowed = is_to_find(results)
    place = {int(g): i for i, g in enumerate(results.gallery_ids)}
    for row, found in enumerate(new.retrieved_ids.tolist()):
        assert all(allowed[row, place[g]] for g in found if g >= 0)
    if top_k >= n:  # the whole gallery
        assert torch.equal(new.retrieved_ids.sort(dim=1).values, before.sort(dim=1).values)


@pytest.mark.parametrize("roles", ROLES)
def test_only_queries_and_galleries_are_neighbours(roles: str) -> None:
    results, embeddings = searched(60, roles, 8, seed=4)
    ids = torch.cat([results.query_ids, results.gallery_ids]).unique()
    assert (len(ids) == len(embeddings)) == (roles != "mixed")
    embeddings = embeddings + torch.rand(embeddings.shape, generator=torch.Generator().manual_seed(0))
    others = torch.ones(60, dtype=torch.bool)
    others[ids] = False
    embeddings[others] = torch.nan
    new = KReciprocalPostprocessor(k1=6, k2=3).rerank(results, {"embeddings": embeddings})

    place = torch.full((61,), -1)
    place[ids] = torch.arange(len(ids))
    expected = k_reciprocal_rerank(
        embeddings[ids],
        place[results.query_ids],
        place[results.gallery_ids],
        place[results.retrieved_ids],
        query_items=results.query_ids,
        gallery_items=results.gallery_ids,
        k1=6,
        k2=3,
    )
    assert torch.equal(place[new.retrieved_ids], expected.ids)
    assert torch.equal(new.distances, expected.distances)


def test_it_finds_what_the_search_missed() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(600) // 20
    centres = torch.randn(30, 16, generator=generator)
    embeddings = centres[labels] + 1.1 * torch.randn(600, 16, generator=generator)
    is_query = torch.arange(600) % 4 == 0
    results = RetrievalResults.from_embeddings(embeddings, labels, is_query, ~is_query, top_k=15)
    new = KReciprocalPostprocessor().rerank(results, {"embeddings": embeddings})
    before, after = (
        ranking_metrics(each, cmc_top_k=(), precision_top_k=(15,), map_top_k=(15,), map_divide_by="n")
        for each in (results, new)
    )
    for name in ("precision", "map"):
        assert before[name][15].mean() < 0.8  # there is something to gain
        assert bootstrap_interval(after[name][15] - before[name][15]).low > 0.05


def test_distances_other_than_of_the_search_are_for_the_order() -> None:
    results, embeddings = searched(40, "shared", 39, seed=1)
    new = KReciprocalPostprocessor(k1=5, lambda_value=1).rerank(results, {"embeddings": embeddings})
    assert torch.equal(new.retrieved_ids, results.retrieved_ids)
    assert new.distances.amax() == 1


def test_it_depends_on_all_queries_and_needs_embeddings() -> None:
    postprocessor = KReciprocalPostprocessor(embeddings_key="vectors")
    assert not postprocessor.is_by_query
    assert (postprocessor.needed_keys, postprocessor.top_n) == (["vectors"], None)


@pytest.mark.parametrize(
    ("kwargs", "text"), [({"k1": True}, "as k1, got True"), ({"lambda_value": -0.1}, "from 0 to 1, got -0.1")]
)
def test_arguments_out_of_range(kwargs: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=f"KReciprocalPostprocessor needs .*{text}"):
        inspect.unwrap(KReciprocalPostprocessor.__init__)(
            KReciprocalPostprocessor.__new__(KReciprocalPostprocessor), **kwargs
        )


def test_embeddings_of_some_items() -> None:
    results, embeddings = searched(10, "shared", 3)
    with pytest.raises(ValueError, match=r"whose ids go to 9, got \(9, 3\) of torch.float32 in 'embeddings'"):
        KReciprocalPostprocessor().rerank(results, {"embeddings": embeddings[:9]})
