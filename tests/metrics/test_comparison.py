from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from oml.functional.nothing_to_find import NothingToFindError
from oml.functional.statistics import paired_test
from oml.metrics.comparison import METRICS, Comparison, MetricChange, compare_results, draw_changes
from oml.metrics.per_query import ranking_metrics
from oml.retrieval import RetrievalResults

FIELDS = ("query_ids", "query_labels", "gallery_ids", "gallery_labels", "retrieved_ids", "distances")


def searched(embeddings: torch.Tensor, labels: torch.Tensor, top_k: int = 5, **arguments: Any) -> RetrievalResults:
    everyone = torch.ones(len(labels), dtype=torch.bool)
    return RetrievalResults.from_embeddings(embeddings, labels, everyone, everyone, top_k=top_k, **arguments)


@pytest.fixture
def pair() -> tuple[RetrievalResults, RetrievalResults]:
    """Two results for 60 queries of 15 labels; the second embeddings have less noise."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 15
    centres = torch.randn(15, 4, generator=generator)[labels]
    noise = torch.randn(60, 4, generator=generator)
    return searched(centres + noise, labels), searched(centres + 0.5 * noise, labels)


def changed(results: RetrievalResults, **fields: torch.Tensor) -> RetrievalResults:
    """The results with some of their fields replaced."""
    return RetrievalResults(**{name: fields.get(name, getattr(results, name)) for name in FIELDS})


def permuted(results: RetrievalResults, order: torch.Tensor) -> RetrievalResults:
    by_query = ("query_ids", "query_labels", "retrieved_ids", "distances")
    return changed(results, **{name: getattr(results, name)[order] for name in by_query})


def test_values_and_tests_are_those_of_each_metric(pair: tuple[RetrievalResults, RetrievalResults]) -> None:
    a, b = pair
    comparison = compare_results(a, b, metrics=["cmc@1", *METRICS], top_k=[3, 5], confidence=0.8, seed=4)
    assert list(comparison.metrics) == ["cmc@1", *(f"{name}@{k}" for name in METRICS for k in (3, 5))]
    for name in METRICS:
        for k in (3, 5):
            metric = comparison.metrics[f"{name}@{k}"]
            expected_a, expected_b = (ranking_metrics(x, **{f"{name}_top_k": [k]})[name][k] for x in pair)
            assert torch.equal(metric.a, expected_a)
            assert torch.equal(metric.b, expected_b)
            assert not torch.equal(metric.a, metric.b)
            assert torch.equal(metric.change, expected_b - expected_a)
            test = paired_test(expected_a, expected_b, clusters=a.query_labels, confidence=0.8, seed=4)
            assert metric.test == test
            assert test.difference > 0
            assert test != paired_test(expected_a, expected_b, confidence=0.8, seed=4)  # labels have a say
    assert torch.equal(comparison.query_ids, a.query_ids)
    assert torch.equal(comparison.query_labels, a.query_labels)


def test_metrics_and_cuts(pair: tuple[RetrievalResults, RetrievalResults]) -> None:
    def names(a: RetrievalResults, b: RetrievalResults, **arguments: Any) -> list[str]:
        return list(compare_results(a, b, **arguments).metrics)

    a, b = pair
    few = changed(b, retrieved_ids=b.retrieved_ids[:, :3], distances=b.distances[:, :3])
    assert names(a, b) == ["cmc@1", "cmc@5", "precision@5", "map@5"]
    assert names(a, few) == names(few, a) == ["cmc@1", "cmc@3", "precision@3", "map@3"]
    assert names(a, b, top_k=[2]) == ["cmc@2", "precision@2", "map@2"]
    assert names(a, b, metrics=["mrr"]) == ["mrr@5"]
    assert names(few, a, metrics=["mrr"]) == ["mrr@3"]
    assert names(a, b, metrics=["map@4", "map", "cmc"], top_k=[2, 4]) == ["map@4", "map@2", "cmc@2", "cmc@4"]
    assert names(a, b, metrics=["map@r", "map", "precision@r"]) == ["map@r", "map@5", "precision@r"]
    found, (expected_a, expected_b) = (
        compare_results(a, b, metrics=["map@r"]).metrics["map@r"],
        (ranking_metrics(x, map_top_k=("r",))["map"]["r"] for x in pair),
    )
    assert torch.equal(found.a, expected_a)
    assert torch.equal(found.b, expected_b)
    one = changed(b, retrieved_ids=b.retrieved_ids[:, :1], distances=b.distances[:, :1])
    with pytest.raises(ValueError, match=r"needs results of a search with top_k=\d+, got 1 ranks"):
        compare_results(a, one, metrics=["map@r"])
    for bad in ("maps", "map@", "map@x", "map@-1", "@5", "MAP@5", "map@5 ", "cmc@r", "map@r5"):
        with pytest.raises(
            ValueError, match="knows cmc, precision, map, recall, ndcg, mrr, or such as map@10 or map@r, got"
        ):
            compare_results(a, b, metrics=[bad])
    text = r"can cut at 1 to 3, got map@5, map@0: A holds the 5 nearest galleries of a query, B the 3 nearest"
    with pytest.raises(ValueError, match=text):
        compare_results(a, few, metrics=["map@3", "map"], top_k=[5, 0])


def test_the_order_of_queries_and_galleries_changes_nothing(pair: tuple[RetrievalResults, RetrievalResults]) -> None:
    a, b = pair
    expected = compare_results(a, b)
    order = torch.randperm(len(a), generator=torch.Generator().manual_seed(1))
    other = permuted(b, order)
    other = changed(other, gallery_ids=b.gallery_ids[order], gallery_labels=b.gallery_labels[order])
    for first, second in ((a, other), (permuted(a, order.flip(0)), b)):
        found = compare_results(first, second)
        assert torch.equal(found.query_ids, expected.query_ids)
        assert torch.equal(found.query_labels, expected.query_labels)
        for name, metric in expected.metrics.items():
            assert torch.equal(found.metrics[name].a, metric.a)
            assert torch.equal(found.metrics[name].b, metric.b)
            assert found.metrics[name].test == metric.test


def test_what_is_not_the_same_is_told(pair: tuple[RetrievalResults, RetrievalResults]) -> None:
    a, b = pair
    with pytest.raises(ValueError, match=r"same galleries. 50 of 60 queries of A are not in the other, such as items "):
        compare_results(a, permuted(b, torch.arange(10)))
    with pytest.raises(ValueError, match=r"such as items \[57, 58, 59\]\. Evaluate both"):
        compare_results(permuted(a, torch.arange(57)), b)

    labels = b.query_labels.clone()
    labels[[7, 8]] = 3
    other = changed(b, query_labels=labels, gallery_labels=labels)
    text = (
        r"The labels of 2 queries differ, such as 7 and 3 of item 7\. "
        r"The labels of 2 galleries differ, such as 7 and 3 of item 7\. Evaluate"
    )
    with pytest.raises(ValueError, match=text):
        compare_results(a, other)

    embeddings, labels = torch.arange(8.0)[:, None], torch.arange(8) // 4
    whole = searched(embeddings, labels, top_k=2)
    everyone = torch.ones(8, dtype=torch.bool)
    part = RetrievalResults.from_embeddings(embeddings, labels, everyone, torch.arange(8) != 3, top_k=2)
    with pytest.raises(
        ValueError, match=r"galleries\. 1 of 8 galleries of A are not in the other, such as items \[3\]"
    ):
        compare_results(whole, part)
    sequences = torch.tensor([0, 0, -1, -1, -1, -1, 1, 1])
    within = searched(embeddings, labels, top_k=2, sequences=sequences)
    with pytest.raises(
        ValueError, match=r"Only B has sequences of its queries\. Only B has sequences of its galleries"
    ):
        compare_results(whole, within)
    elsewhere = searched(embeddings, labels, top_k=2, sequences=sequences.flip(0))
    with pytest.raises(ValueError, match=r"The sequences of 4 queries differ, such as 0 and 1 of item 0"):
        compare_results(within, elsewhere)
    assert compare_results(within, within).metrics["cmc@1"].test == (0, 0, 0, 1)


def test_a_query_with_nothing_to_find_is_told() -> None:
    lone = searched(torch.arange(3.0)[:, None], torch.tensor([0, 0, 1]), top_k=1, on_missing="keep")
    with pytest.raises(NothingToFindError, match="1 of 3 queries"):
        compare_results(lone, lone)


def test_what_differs_by_rounding_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    a = searched(torch.arange(8.0)[:, None], torch.arange(8) // 4, top_k=2)
    b = searched(torch.arange(8.0)[:, None], torch.arange(8) // 4, top_k=2)
    values = torch.linspace(0.1, 0.9, 8)

    def fake(results: RetrievalResults, **_: Any) -> dict[str, dict[int, torch.Tensor]]:
        return {"map": {2: values if results is a else values.nextafter(torch.ones(8)) + 0.1 * (torch.arange(8) == 3)}}

    monkeypatch.setattr("oml.metrics.comparison.ranking_metrics", fake)
    metric = compare_results(a, b, metrics=["map@2"]).metrics["map@2"]
    assert metric.change.nonzero().tolist() == [[3]]


def comparison_of(**changes: list[float]) -> Comparison:
    """Metrics of which A has zeros."""
    n = len(next(iter(changes.values())))
    zeros = torch.zeros(n)
    metrics = {
        name: MetricChange(zeros, torch.tensor(b), paired_test(zeros, torch.tensor(b))) for name, b in changes.items()
    }
    return Comparison(torch.arange(n) + 10, torch.arange(n) % 2, metrics)


@given(st.lists(st.tuples(st.integers(-1, 1), st.integers(-2, 2)), min_size=1, max_size=9), st.integers(0, 4))
@settings(deadline=None)
def test_most_changed_follow_the_definition(changes: list[tuple[int, int]], n: int) -> None:
    first, second = ([float(c) for c in column] for column in zip(*changes, strict=True))
    better, worse = comparison_of(x=first, y=second).most_changed(n)
    totals = [sum(pair) for pair in changes]
    rows = range(len(changes))
    assert better.tolist() == sorted((r for r in rows if totals[r] > 0), key=lambda r: -totals[r])[:n]
    assert worse.tolist() == sorted((r for r in rows if totals[r] < 0), key=lambda r: totals[r])[:n]


def test_the_table_of_changes() -> None:
    table = comparison_of(**{"cmc@1": [1.0, 0.0], "map@5": [0.25, -0.5]}).to_table()
    assert table.to_dict("list") == {
        "query": [10, 11], "label": [0, 1],
        "cmc@1_a": [0, 0], "cmc@1_b": [1, 0], "cmc@1_change": [1, 0],
        "map@5_a": [0, 0], "map@5_b": [0.25, -0.5], "map@5_change": [0.25, -0.5],
    }  # fmt: skip
    paths = [f"{i}.jpg" for i in range(12)]
    assert comparison_of(x=[1.0, 0.0]).to_table(paths)["path"].tolist() == ["10.jpg", "11.jpg"]


def test_the_picture_has_both_results_of_each_query(tmp_path: Path) -> None:
    """Images of one colour each: the picture shows the colours of what was found."""
    colours = [(250, 10 * i, 5) for i in range(6)]
    paths = []
    for i, colour in enumerate(colours):
        paths.append(tmp_path / f"{i}.png")
        Image.new("RGB", (8, 8), colour).save(paths[-1])
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    a = searched(torch.tensor([0.0, 1.0, 2.0, 3.1, 4.0, 5.0])[:, None], labels, top_k=2)
    b = searched(torch.tensor([0.0, 7.0, 8.0, 1.0, 2.0, 9.0])[:, None], labels, top_k=2)
    comparison = compare_results(permuted(a, torch.arange(6).flip(0)), b)
    picture = draw_changes(permuted(a, torch.arange(6).flip(0)), b, comparison, paths, rows=[0], n_instances=1)
    middle = picture.height // 2
    shown = [
        {colours.index(c) for _, c in half.getcolors(2**20) or [] if c in colours}
        for half in (picture.crop((0, 0, picture.width, middle)), picture.crop((0, middle, *picture.size)))
    ]
    assert shown == [{0, 1, 2}, {0, 1, 2, 3}]  # the query, its nearest and the two that it should find
    two = draw_changes(a, b, comparison, paths, rows=[0, 4], n_instances=1)
    assert two.width == picture.width
    assert two.height > 2 * picture.height
    with pytest.raises(ValueError, match="needs rows of queries to draw"):
        draw_changes(a, b, comparison, paths, rows=[])
