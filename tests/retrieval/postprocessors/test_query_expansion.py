import inspect
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.retrieval.postprocessors.data import ROLES, is_to_find, searched
from torch import Tensor

from oml.retrieval import RetrievalResults
from oml.retrieval.postprocessors.query_expansion import DatabaseAugmentationPostprocessor, QueryExpansionPostprocessor

KINDS = ("queries", "galleries", "both")


def postprocessor(kind: str, n: int, alpha: float) -> QueryExpansionPostprocessor | DatabaseAugmentationPostprocessor:
    if kind == "queries":
        return QueryExpansionPostprocessor(n=n, alpha=alpha)
    return DatabaseAugmentationPostprocessor(n=n, alpha=alpha, expand_queries=kind == "both")


def literal(kind: str, results: RetrievalResults, embeddings: Tensor, n: int, alpha: float) -> tuple[Tensor, Tensor]:
    """New ids and distances with all pairs in matrices, in float64."""
    embeddings = embeddings.double()
    queries, galleries = embeddings[results.query_ids], embeddings[results.gallery_ids]
    n_galleries = len(galleries)

    def blend(vectors: Tensor, neighbours: list[list[int]]) -> Tensor:
        rows = []
        for vector, places in zip(vectors, neighbours, strict=True):
            total = vector
            for g in galleries[places]:
                total = total + torch.cosine_similarity(vector, g, dim=0).clamp(min=0) ** alpha * g
            rows.append(total / total.norm() * vector.norm())
        return torch.stack(rows)

    place = {int(g): i for i, g in enumerate(results.gallery_ids)}
    new_queries = blend(queries, [[place[g] for g in row if g >= 0] for row in results.retrieved_ids[:, :n].tolist()])
    own = torch.cdist(galleries, galleries).float()
    nearest = [sorted((own[i, j].item(), j) for j in range(n_galleries) if j != i)[:n] for i in range(n_galleries)]
    new_galleries = blend(galleries, [[j for _, j in row] for row in nearest])
    distances = torch.cdist(
        queries if kind == "galleries" else new_queries, galleries if kind == "queries" else new_galleries
    ).masked_fill(~is_to_find(results), math.inf)
    order = distances.argsort(dim=1, stable=True)[:, : results.retrieved_ids.shape[1]]
    distances = distances.gather(1, order)
    return results.gallery_ids[order].masked_fill(distances.isinf(), -1), distances.float()


@settings(deadline=None, max_examples=40)
@given(
    kind=st.sampled_from(KINDS),
    n_items=st.integers(2, 10),
    roles=st.sampled_from(ROLES),
    top_k=st.integers(1, 12),
    n_sequences=st.integers(0, 4),
    n=st.integers(1, 4),
    alpha=st.sampled_from([0, 1, 3.0]),
    seed=st.integers(0, 9999),
)
def test_results_are_those_of_dense_formulas(
    kind: str, n_items: int, roles: str, top_k: int, n_sequences: int, n: int, alpha: float, seed: int
) -> None:
    results, embeddings = searched(n_items, roles, max(top_k, n), n_sequences, seed)
    before = results.retrieved_ids.clone(), results.distances.clone(), embeddings.clone()
    found = postprocessor(kind, n, alpha).rerank(results, {"embeddings": embeddings})
    ids, distances = literal(kind, results, embeddings, n, alpha)
    torch.testing.assert_close(found.distances, distances, rtol=1e-5, atol=3e-3)  # roots of what is left of 0
    unsure = torch.zeros_like(ids, dtype=torch.bool)  # where another one is as far, save for rounding
    close = distances.diff(dim=1) < 3e-3
    unsure[:, 1:] |= close
    unsure[:, :-1] |= close
    unsure[:, -1:] |= True  # one just beyond the end may be
    assert torch.equal(found.retrieved_ids[~unsure], ids[~unsure])
    assert torch.equal(found.retrieved_ids < 0, ids < 0)
    assert all(len({*row} - {-1}) == sum(i >= 0 for i in row) for row in found.retrieved_ids.tolist())
    for given_before, now in zip(before, (results.retrieved_ids, results.distances, embeddings), strict=True):
        assert torch.equal(given_before, now)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("roles", ROLES)
def test_the_order_of_random_embeddings_is_that_of_the_dense_formulas(kind: str, roles: str) -> None:
    results, embeddings = searched(60, roles, 9, n_sequences=20, seed=1, dim=8)
    embeddings = torch.randn(embeddings.shape, generator=torch.Generator().manual_seed(3)) + 0.5
    data = {
        "query_ids": results.query_ids,
        "query_labels": results.query_labels,
        "gallery_ids": results.gallery_ids,
        "gallery_labels": results.gallery_labels,
        "query_sequences": results.query_sequences,
        "gallery_sequences": results.gallery_sequences,
    }
    pairs = torch.cdist(embeddings[results.query_ids], embeddings[results.gallery_ids])
    distances, order = pairs.masked_fill(~is_to_find(results), math.inf).topk(9, dim=1, largest=False)
    results = RetrievalResults(**data, retrieved_ids=results.gallery_ids[order], distances=distances)
    found = postprocessor(kind, 3, 3).rerank(results, {"embeddings": embeddings})
    ids, distances = literal(kind, results, embeddings, 3, 3)
    assert torch.equal(found.retrieved_ids, ids)
    assert not torch.equal(ids, results.retrieved_ids)
    torch.testing.assert_close(found.distances, distances)


def test_neighbours_are_those_of_the_results() -> None:
    """As after re-ranking or a threshold: with none left, queries stay as they are."""
    results, embeddings = searched(12, "separate", 4, seed=5)
    nothing = torch.full_like(results.retrieved_ids, -1)
    emptied = results.with_ranking(nothing, nothing.float().abs() * torch.inf)
    found = QueryExpansionPostprocessor().rerank(emptied, {"embeddings": embeddings})
    assert torch.equal(found.retrieved_ids, results.retrieved_ids)
    assert torch.equal(found.distances, results.distances)
    turned = results.with_ranking(results.retrieved_ids.flip(1), results.distances)
    found = QueryExpansionPostprocessor().rerank(turned, {"embeddings": embeddings})
    other = QueryExpansionPostprocessor().rerank(results, {"embeddings": embeddings})
    assert not torch.equal(found.distances, other.distances)


@pytest.mark.parametrize("kind", KINDS)
def test_width_stays_that_of_the_results_also_beyond_the_gallery(kind: str) -> None:
    results, embeddings = searched(5, "shared", 5, seed=2)
    assert results.retrieved_ids[:, -1].tolist() == [-1] * 5
    wider = results.with_ranking(
        torch.nn.functional.pad(results.retrieved_ids, (0, 2), value=-1),
        torch.nn.functional.pad(results.distances, (0, 2), value=torch.inf),
    )
    found = postprocessor(kind, 2, 1).rerank(wider, {"embeddings": embeddings})
    assert found.retrieved_ids.shape == (5, 7)
    assert ((found.retrieved_ids >= 0).sum(dim=1) == 4).all()


@pytest.mark.parametrize("kind", KINDS)
def test_n_beyond_the_gallery_means_all_of_it(kind: str) -> None:
    results, embeddings = searched(6, "separate", 10, seed=4)
    n_galleries = len(results.gallery_ids)
    found, expected = (postprocessor(kind, n, 0).rerank(results, {"embeddings": embeddings}) for n in (50, n_galleries))
    assert torch.equal(found.distances, expected.distances)


def test_what_each_tells_of_itself() -> None:
    expansion, augmentation = QueryExpansionPostprocessor(n=4), DatabaseAugmentationPostprocessor(n=5)
    assert (expansion.top_n, augmentation.top_n) == (4, None)
    assert DatabaseAugmentationPostprocessor(n=5, expand_queries=True).top_n == 5
    assert expansion.is_by_query
    assert augmentation.is_by_query
    assert QueryExpansionPostprocessor(embeddings_key="features").needed_keys == ["features"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_ranking_of_a_query_depends_on_no_other(kind: str) -> None:
    results, embeddings = searched(20, "separate", 5, seed=8)
    data = {"embeddings": embeddings}
    together = postprocessor(kind, 2, 3).rerank(results, data)
    for row in range(len(results)):
        alone = postprocessor(kind, 2, 3).rerank(results.of_queries(torch.tensor([row])), data)
        assert torch.equal(alone.retrieved_ids, together.retrieved_ids[row : row + 1])
        assert torch.equal(alone.distances, together.distances[row : row + 1])


@pytest.mark.parametrize("constructor", [QueryExpansionPostprocessor, DatabaseAugmentationPostprocessor])
@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"n": 0}, "whole number of 1 or more as n, got 0"),
        ({"n": 2.5}, "whole number of 1 or more as n, got 2.5"),
        ({"n": True}, "whole number of 1 or more as n, got True"),
        ({"alpha": -0.1}, "alpha of 0 or more, got -0.1"),
        ({"alpha": math.nan}, "alpha of 0 or more, got nan"),
    ],
)
def test_bad_arguments_are_refused(constructor: Any, args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"{constructor.__name__} needs an? {message}"):
        inspect.unwrap(constructor.__init__)(object.__new__(constructor), **args)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "embeddings", [torch.ones(5, 2), torch.ones(6), torch.ones(6, 2).long(), torch.ones(6, 2, 1)], ids=str
)
def test_embeddings_that_do_not_fit_are_refused(kind: str, embeddings: Tensor) -> None:
    results, _ = searched(6, "shared", 4)
    with pytest.raises(ValueError, match="needs embeddings .* whose ids go to 5, got"):
        postprocessor(kind, 1, 1).rerank(results, {"embeddings": embeddings})


def test_too_few_ranks_are_refused() -> None:
    results, embeddings = searched(6, "shared", 2)
    for kind in ("queries", "both"):
        with pytest.raises(ValueError, match="by their top 3 galleries, the results hold 2: search with top_k=3"):
            postprocessor(kind, 3, 1).rerank(results, {"embeddings": embeddings})
    postprocessor("galleries", 3, 1).rerank(results, {"embeddings": embeddings})
