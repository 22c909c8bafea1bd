"""Metrics of what a postprocessor makes of a ranking, in one process and in several."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.processes import run_processes
from torch import Tensor

from oml.interfaces.retrieval import IDistancesPostprocessor
from oml.metrics.comparison import compare_results
from oml.metrics.embeddings import EmbeddingMetrics, EmbeddingMetricsDDP
from oml.metrics.reranking import rerank
from oml.models import LinearTrivialDistanceSiamese
from oml.retrieval import RetrievalResults
from oml.retrieval.postprocessors.base import Postprocessor
from oml.retrieval.postprocessors.pairwise import PairwiseEmbeddingsPostprocessor


class ByPlace(Postprocessor):
    """Sorts the nearest ``top_n`` by how far apart the ``places`` are; the others stay behind them."""

    def __init__(self, top_n: int | None = None, is_by_query: bool = True) -> None:
        self.top_n, self.is_by_query = top_n, is_by_query
        self.n_seen: list[int] = []

    @property
    def needed_keys(self) -> list[str]:
        return ["is_query", "places"]

    def rerank(self, results: RetrievalResults, data: Mapping[str, Any]) -> RetrievalResults:
        self.n_seen.append(len(results))
        ids = results.retrieved_ids
        distances = (data["places"][ids] - data["places"][results.query_ids][:, None]).abs()
        n = ids.shape[1] if self.top_n is None else self.top_n
        assert ids.shape[1] >= min(n, len(results.gallery_ids) - 1)
        behind = 100 + torch.arange(ids.shape[1]).expand_as(distances)
        distances = torch.where(torch.arange(ids.shape[1]) < n, distances, behind).masked_fill(ids < 0, torch.inf)
        distances, order = distances.sort(dim=1, stable=True)
        return results.with_ranking(ids.gather(1, order), distances)


class Within(Postprocessor):
    """Keeps what is as near as that."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    def rerank(self, results: RetrievalResults, data: Mapping[str, Any]) -> RetrievalResults:
        is_far = results.distances > self.threshold
        width = int((~is_far).sum(dim=1).amax())
        ids, distances = results.retrieved_ids.masked_fill(is_far, -1), results.distances.masked_fill(is_far, torch.inf)
        return results.with_ranking(ids[:, :width], distances[:, :width])


def one_vs_rest(embeddings: Tensor, labels: Tensor, **extra: object) -> dict[str, Any]:
    everyone = torch.ones(len(labels), dtype=torch.bool)
    return {"embeddings": embeddings, "labels": labels, "is_query": everyone, "is_gallery": everyone, **extra}


def compute(batch: dict[str, Any], postprocessor: Any, **kwargs: Any) -> EmbeddingMetrics:
    metric = EmbeddingMetrics(verbose=False, postprocessor=postprocessor, **kwargs)
    metric.setup(len(batch["labels"]))
    metric.update_data(batch)
    metric.compute_metrics()
    return metric


LINE = torch.tensor([[0.0], [1.0], [4.0], [3.0], [20.0], [21.0], [7.0]])
LABELS = torch.tensor([0, 0, 1, 0, 2, 2, 1])
#: so that 2 and 6, which are of one label, stand nearest to each other
PLACES = torch.tensor([0.0, 1.0, 50.0, 2.0, 20.0, 21.0, 52.0])
BATCH = one_vs_rest(LINE, LABELS, places=PLACES)


@given(seed=st.integers(0, 999), top_n=st.integers(2, 12), k=st.integers(1, 9), longest=st.sampled_from([1, 3, 100]))
def test_metrics_are_those_of_the_new_ranking(seed: int, top_n: int, k: int, longest: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(3).repeat_interleave(3)[torch.randperm(9, generator=generator)]
    embeddings = torch.randint(4, (9, 2), generator=generator).float()
    places = torch.randint(6, (9,), generator=generator).float()
    batch = one_vs_rest(embeddings, labels, places=places)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("oml.metrics.embeddings._LONGEST_LIST", longest)
        metric = compute(batch, ByPlace(top_n), cmc_top_k=(k,), precision_top_k=(k, "r"), map_top_k=(k,))
    found = metric.metrics_unreduced["OVERALL"]
    for q in range(9):
        others = [g for g in range(9) if g != q]
        ranked = sorted(others, key=lambda g: ((embeddings[q] - embeddings[g]).norm().item(), g))
        first = sorted(ranked[:top_n], key=lambda g: abs(float(places[q] - places[g])))  # stable
        hits = [bool(labels[g] == labels[q]) for g in first + ranked[top_n:]]
        precisions = [sum(hits[: i + 1]) / (i + 1) for i in range(min(k, 8)) if hits[i]]
        assert found["cmc"][k][q] == float(any(hits[:k]))
        assert found["precision"][k][q] == pytest.approx(sum(hits[:k]) / min(k, 2))
        assert found["precision"]["r"][q] == pytest.approx(sum(hits[:2]) / 2)
        assert found["map"][k][q] == pytest.approx(sum(precisions) / len(precisions) if precisions else 0)


def test_before_and_after_are_kept() -> None:
    metric = compute(BATCH, ByPlace(), cmc_top_k=(1,), fmr_vals=(0.1,))
    plain = compute(BATCH, None, cmc_top_k=(1,), fmr_vals=(0.1,))
    assert metric.retrieved is not None
    assert metric.results is not None
    assert plain.results is not None
    assert plain.results is plain.retrieved
    assert torch.equal(metric.retrieved.retrieved_ids, plain.results.retrieved_ids)
    assert metric.metrics_unreduced["OVERALL"]["cmc"][1].tolist() == [1, 1, 1, 1, 1, 1, 1]
    assert plain.metrics_unreduced["OVERALL"]["cmc"][1].tolist() == [1, 1, 0, 0, 1, 1, 1]
    assert metric.results.retrieved_ids[2, 0] == 6
    for name in ("fnmr@fmr", "pcf"):  # of the embeddings
        assert metric.metrics["OVERALL"][name] == plain.metrics["OVERALL"][name]
    metric.setup(7)
    assert metric.retrieved is None


def test_it_comes_after_the_categories() -> None:
    keys, postprocessor = ("embeddings", "labels", "is_query", "is_gallery", ()), ByPlace()
    metric = EmbeddingMetrics(*keys, (1,), (1,), (1,), (), (0.5,), "categories", postprocessor, ("cmc",), True, False)
    assert (metric.categories_key, metric.postprocessor) == ("categories", postprocessor)
    assert (metric.return_only_main_category, metric.visualize_only_main_category) == (True, False)
    with pytest.raises(TypeError, match="needs a Postprocessor.*got function"):
        inspect.unwrap(EmbeddingMetrics.__init__)(metric, postprocessor=lambda results: results)  # pyright: ignore


class WithOptional(ByPlace):
    @property
    def optional_keys(self) -> list[str]:
        return ["x1", "paths"]


def test_the_search_is_as_deep_as_it_needs() -> None:
    assert compute(BATCH, ByPlace(6), cmc_top_k=(1,)).results.retrieved_ids.shape[1] == 6  # pyright: ignore
    assert compute(BATCH, ByPlace(2), cmc_top_k=(1,)).results.retrieved_ids.shape[1] == 5  # pyright: ignore


def test_keys_are_kept_as_they_are_needed() -> None:
    metric = compute(BATCH, WithOptional(), cmc_top_k=(1,))
    assert metric.acc.keys_to_accumulate == ["embeddings", "labels", "is_query", "is_gallery", "places"]
    more = {**BATCH, "x1": torch.arange(7), "paths": [f"{i}.png" for i in range(7)]}
    for extra in ((), ("paths",)):
        metric = compute(more, WithOptional(), cmc_top_k=(1,), extra_keys=extra)
        assert {"x1", "paths", "places"} <= metric.acc.storage.keys()
        assert metric.acc.storage["paths"] == more["paths"]
        metric.setup(7)  # the next epoch has none
        metric.update_data({**BATCH, **{key: more[key] for key in extra}} if not extra else more)
        assert ("x1" in metric.acc.storage) == bool(extra)
    with pytest.raises(ValueError, match=r"needs all of the entries \['x1', 'paths'\].*lacks \['x1'\]"):
        compute({**BATCH, "paths": more["paths"]}, WithOptional())
    with pytest.raises(ValueError, match=r"needs the entries \['places'\]"):
        compute({key: BATCH[key] for key in BATCH if key != "places"}, WithOptional())


def test_what_is_left_out_is_told_of() -> None:
    metric = compute(BATCH, Within(3.0), cmc_top_k=(1,), precision_top_k=(5,), map_top_k=())
    found = metric.metrics_unreduced["OVERALL"]
    # 0 keeps 1 and 3, 1 keeps 0 3 2, 2 keeps 3 1 6, 3 keeps 2 1 0, 4 keeps 5, 5 keeps 4, 6 keeps 2
    assert found["returned"]["number"].tolist() == [2, 3, 3, 3, 1, 1, 1]
    torch.testing.assert_close(found["returned"]["precision"], torch.tensor([1, 2 / 3, 1 / 3, 2 / 3, 1, 1, 1]))
    assert found["returned"]["recall"].tolist() == [1] * 7
    torch.testing.assert_close(found["returned"]["f1"], torch.tensor([1, 4 / 5, 1 / 2, 4 / 5, 1, 1, 1]))
    assert found["precision"][5].tolist() == [1] * 7
    assert metric.results is not None
    assert metric.results.retrieved_ids.shape == (7, 5)
    assert metric.results.retrieved_ids[4].tolist() == [5, -1, -1, -1, -1]

    fewer = compute(BATCH, Within(1.0), cmc_top_k=(1,)).metrics_unreduced["OVERALL"]
    assert fewer["returned"]["number"].tolist() == [1, 1, 1, 1, 1, 1, 0]
    assert fewer["returned"]["precision"].tolist() == [1, 1, 0, 0, 1, 1, 0]
    assert fewer["returned"]["f1"].tolist() == pytest.approx([2 / 3, 2 / 3, 0, 0, 1, 1, 0])
    assert fewer["cmc"][1].tolist() == [1, 1, 0, 0, 1, 1, 0]
    assert fewer["map"][5][6] == 0


def test_what_is_returned_is_told_of_if_it_is_asked_for() -> None:
    assert "returned" not in compute(BATCH, Within(1000), cmc_top_k=(1,)).metrics["OVERALL"]
    asked = compute(BATCH, None, cmc_top_k=(1,), returned_metrics=True).metrics["OVERALL"]
    assert list(asked["returned"]) == ["precision", "recall", "f1", "number"]
    assert asked["returned"]["number"] == 5
    only = EmbeddingMetrics(cmc_top_k=(), precision_top_k=(), map_top_k=(), returned_metrics=True)
    assert only.returned_metrics


def test_the_change_is_that_of_the_two_results() -> None:
    metric = compute(
        {**BATCH, "categories": list("aaaabba")},
        ByPlace(4),
        cmc_top_k=(1,),
        map_top_k=(5,),
        categories_key="categories",
    )
    changes = metric.compare()
    assert metric.retrieved is not None
    assert metric.results is not None
    expected = compare_results(metric.retrieved, metric.results, metrics=["cmc@1", "map@5"]).metrics
    for name, k in (("cmc", 1), ("map", 5)):
        change = changes["OVERALL"][name][k]
        assert change.test == expected[f"{name}@{k}"].test
        assert torch.equal(change.change, expected[f"{name}@{k}"].change)
    assert changes["OVERALL"]["cmc"][1].test.difference == pytest.approx(2 / 7)
    assert changes["a"]["cmc"][1].test.difference == pytest.approx(2 / 5)
    assert changes["b"]["cmc"][1].a.tolist() == [1, 1]
    assert set(changes["OVERALL"]) == {"cmc", "precision", "map"}
    metric.return_only_main_category = True
    assert set(metric.compare()) == {"OVERALL"}
    cut = compute(BATCH, Within(1.0), cmc_top_k=(1,)).compare()["OVERALL"]["returned"]
    assert cut["number"].a.tolist() == [5] * 7
    assert cut["number"].b.tolist() == [1, 1, 1, 1, 1, 1, 0]
    with pytest.raises(ValueError, match="no postprocessor"):
        compute(BATCH, None).compare()
    with pytest.raises(ValueError, match="compute_metrics"):
        EmbeddingMetrics(postprocessor=ByPlace()).compare()


class OfMatrices(IDistancesPostprocessor):
    """What earlier versions take: the places alone count."""

    @property
    def needed_keys(self) -> list[str]:
        return ["is_query", "is_gallery", "places"]

    def process(self, distances: Tensor, queries: Tensor, galleries: Tensor) -> Tensor:
        return (queries[:, None] - galleries).abs().masked_fill(distances.isinf(), torch.inf)

    def process_by_dict(self, distances: Tensor, data: dict[str, Any]) -> Tensor:
        return self.process(distances, data["places"][data["is_query"]], data["places"][data["is_gallery"]])


def test_a_postprocessor_of_matrices_alone() -> None:
    metric = compute(BATCH, OfMatrices(), cmc_top_k=(1,))
    wanted = compute(BATCH, ByPlace(6), cmc_top_k=(1,))
    assert metric.results is not None
    assert wanted.results is not None
    assert metric.results.retrieved_ids[:, :2].tolist() == wanted.results.retrieved_ids[:, :2].tolist()
    assert metric.distance_matrix[2].tolist() == [50, 49, torch.inf, 48, 30, 29, 2]
    assert metric.metrics_unreduced["OVERALL"]["cmc"][1].tolist() == [1] * 7
    # a query that has nothing to find is left out of the matrix as well
    labels = LABELS.where(torch.arange(7) != 1, 9)
    with pytest.warns(UserWarning, match="nothing to find"):
        metric = compute({**BATCH, "labels": labels}, OfMatrices(), cmc_top_k=(1,), on_missing="ignore")
    assert metric.distance_matrix.shape == (6, 7)
    assert metric.distance_matrix[1].tolist() == [50, 49, torch.inf, 48, 30, 29, 2]


def test_the_matrix_of_pairwise_models_is_that_of_the_results() -> None:
    postprocessor = PairwiseEmbeddingsPostprocessor(3, Opposite(), num_workers=0, batch_size=5)
    metric = compute(one_vs_rest(LINE, LABELS), postprocessor, cmc_top_k=(1,))
    assert metric.results is not None
    found = metric.distance_matrix.gather(1, metric.results.retrieved_ids)
    torch.testing.assert_close(found, metric.results.distances)
    assert metric.metrics_unreduced["OVERALL"]["cmc"][1].tolist() == [0, 0, 0, 1, 0, 0, 0]


class Opposite(LinearTrivialDistanceSiamese):
    def __init__(self) -> None:
        super().__init__(1, identity_init=True)

    def predict(self, x1: Tensor, x2: Tensor) -> Tensor:
        return 100 - super().predict(x1, x2)


def titles(metric: EmbeddingMetrics, rows: list[int], n: int) -> list[list[str]]:
    axes = metric.get_plot_for_queries(rows, n).axes
    width = len(axes) // len(rows)
    return [[axes[i * width + j].get_title().split("\n")[-1] for j in range(1, n + 1)] for i in range(len(rows))]


@pytest.mark.parametrize("is_by_query", [True, False])
def test_pictures_of_more_than_is_listed_are_re_ranked_too(is_by_query: bool, tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{i}.png") for i in range(7)]
    for path in paths:
        Image.new("RGB", (8, 8)).save(path)
    postprocessor = ByPlace(is_by_query=is_by_query)
    metric = compute({**BATCH, "paths": paths}, postprocessor, extra_keys=("paths",), cmc_top_k=(1,))
    assert titles(metric, [6, 2], 2) == [["2.000", "32.000"], ["2.000", "30.000"]]
    assert titles(metric, [6, 2], 6)[0] == ["2.000", "31.000", "32.000", "50.000", "51.000", "52.000"]
    assert postprocessor.n_seen == [7, 2 if is_by_query else 7]
    names = compute({**BATCH, "paths": paths}, Within(1.0), extra_keys=("paths",), cmc_top_k=()).visualize()[1]
    assert "top 5 worst by OVERALL_returned_f1" in names
    assert not any("number" in name for name in names)


def test_what_a_postprocessor_gives_back_is_checked() -> None:
    results = compute(BATCH, None).results
    assert results is not None

    class Reversed(ByPlace):
        def rerank(self, results: RetrievalResults, data: Mapping[str, Any]) -> RetrievalResults:
            return results.of_queries(torch.arange(len(results) - 1, -1, -1))

    class Wider(ByPlace):
        def rerank(self, results: RetrievalResults, data: Mapping[str, Any]) -> RetrievalResults:
            none = torch.full((len(results), 1), -1)
            ids = torch.cat([results.retrieved_ids, none], dim=1)
            return results.with_ranking(ids, torch.cat([results.distances, none * -torch.inf], dim=1))

    for bad in (Reversed(), Wider()):
        with pytest.raises(ValueError, match=rf"{type(bad).__name__}.rerank must give back the queries"):
            rerank(bad, results, {})


def _linear() -> PairwiseEmbeddingsPostprocessor:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LinearTrivialDistanceSiamese(9, identity_init=False)
    return PairwiseEmbeddingsPostprocessor(4, model, num_workers=0, batch_size=7)


def _epoch(rank: int, n_ranks: int, postprocessor: Postprocessor, n_queries: int) -> EmbeddingMetricsDDP:
    """The metrics of 20 items, of which each process saw a part."""
    generator = torch.Generator().manual_seed(0)
    batch = one_vs_rest(torch.randn(20, 9, generator=generator), torch.arange(20) % 5, idx=torch.arange(20))
    batch |= {"places": torch.randn(20, generator=generator), "is_query": torch.arange(20) < n_queries}
    batch = {key: values[rank::n_ranks] for key, values in batch.items()}
    metric = EmbeddingMetricsDDP(postprocessor=postprocessor, cmc_top_k=(1, 3), verbose=False)
    metric.setup(len(batch["labels"]))
    metric.update_data(batch)
    metric.sync()
    metric.compute_metrics()
    return metric


def _process(rank: int, out: str) -> None:
    found = []
    for n_queries in (20, 1):
        for postprocessor in (ByPlace(3), ByPlace(3, is_by_query=False), _linear()):
            metric = _epoch(rank, 2, postprocessor, n_queries)
            assert metric.results is not None
            seen = getattr(postprocessor, "n_seen", None)
            found.append((metric.metrics_unreduced, metric.results.retrieved_ids, metric.results.distances, seen))
    with pytest.raises(ValueError, match="places are nowhere"):  # of one process, in both
        _epoch(rank, 2, Failing(3), 20)
    torch.save(found, f"{out}/{rank}")


class Failing(ByPlace):
    def rerank(self, results: RetrievalResults, data: Mapping[str, Any]) -> RetrievalResults:
        if 0 in results.query_ids:
            raise ValueError("places are nowhere")
        return super().rerank(results, data)


@pytest.mark.slow
def test_processes_share_queries_out_and_agree_with_one(tmp_path: Path) -> None:
    run_processes(_process, str(tmp_path), folder=tmp_path)
    both = [torch.load(tmp_path / str(rank), weights_only=False) for rank in (0, 1)]
    cases = [
        (n, make) for n in (20, 1) for make in (ByPlace, lambda n: ByPlace(n, is_by_query=False), lambda _: _linear())
    ]
    for i, (n_queries, make) in enumerate(cases):
        alone = _epoch(0, 1, make(3), n_queries)
        assert alone.results is not None
        for by_query, ids, distances, _ in (each[i] for each in both):
            assert torch.equal(ids, alone.results.retrieved_ids)
            assert torch.equal(distances, alone.results.distances)
            torch.testing.assert_close(by_query, alone.metrics_unreduced, rtol=0, atol=0)
    assert [[case[3] for case in each] for each in both] == [
        [[10], [20], None, [], [1], None],
        [[10], [20], None, [1], [1], None],
    ]
