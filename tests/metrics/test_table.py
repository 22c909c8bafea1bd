import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from rich.console import Console

from oml.functional.statistics import bootstrap_interval
from oml.metrics.comparison import compare_results
from oml.metrics.embeddings import EmbeddingMetrics
from oml.metrics.table import joined_metrics_table, metrics_table, print_metrics_table, read_metrics, write_metrics
from oml.models import LinearTrivialDistanceSiamese
from oml.retrieval.postprocessors.pairwise import PairwiseEmbeddingsPostprocessor


def computed(n_labels: int = 12, n_categories: int = 2, **args: Any) -> EmbeddingMetrics:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n_labels).repeat_interleave(4)
    embeddings = torch.randn(n_labels, 4, generator=generator)[labels] + torch.randn(
        len(labels), 4, generator=generator
    )
    everyone = torch.ones(len(labels), dtype=torch.bool)
    metric = EmbeddingMetrics(
        cmc_top_k=(1,), map_top_k=("r",), fmr_vals=(0.1,), categories_key="categories", verbose=False, **args
    )
    metric.setup(len(labels))
    metric.update_data(
        {
            "embeddings": embeddings,
            "labels": labels,
            "is_query": everyone,
            "is_gallery": everyone,
            "categories": [f"c{label % n_categories}" for label in labels.tolist()],
        }
    )
    metric.compute_metrics()
    return metric


def test_a_row_for_every_number_with_the_interval_of_its_queries() -> None:
    metric = computed()
    table = metrics_table(metric)
    expected = [
        (category, name, k, value.item())
        for category, by_metric in metric.metrics.items()
        for name, by_k in by_metric.items()
        for k, value in by_k.items()
    ]
    assert list(zip(table["category"], table["metric"], table["k"], strict=True)) == [row[:3] for row in expected]
    assert table["mean"].tolist() == pytest.approx([row[3] for row in expected])
    assert table["category"].unique().tolist() == ["OVERALL", "c0", "c1"]
    assert table["n_queries"].tolist() == [48] * 5 + [24] * 10
    assert table["n_labels"].tolist() == [12] * 5 + [6] * 10
    assert metric.results is not None
    for category, every in (("OVERALL", 1), ("c1", 2)):
        of_it = metric.results.query_labels % every == every - 1
        values = metric.metrics_unreduced["OVERALL"]["map"]["r"][of_it]
        interval = bootstrap_interval(values, clusters=metric.results.query_labels[of_it])
        row = table[(table["category"] == category) & (table["metric"] == "map")].iloc[0]
        assert (row["low"], row["high"]) == pytest.approx(interval[1:])
        assert row["low"] < row["mean"] < row["high"]
    narrower = metrics_table(metric, confidence=0.5)
    assert narrower["high"][0] - narrower["low"][0] < table["high"][0] - table["low"][0]


def test_what_is_no_mean_over_queries_has_no_interval() -> None:
    table = metrics_table(computed())
    without = table["metric"].isin(["fnmr@fmr", "pcf"])
    assert without.sum() == 6
    assert table[without][["low", "high"]].isna().all(axis=None)
    assert table[~without].notna().all(axis=None)
    only = EmbeddingMetrics(cmc_top_k=(), precision_top_k=(), map_top_k=(), fmr_vals=(0.1,), verbose=False)
    only.setup(4)
    everyone = torch.ones(4, dtype=torch.bool)
    batch = {"labels": torch.tensor([0, 0, 1, 1]), "is_query": everyone, "is_gallery": everyone}
    only.update_data({"embeddings": torch.randn(4, 2), **batch})
    only.compute_metrics()
    assert metrics_table(only)["metric"].tolist() == ["fnmr@fmr", "pcf"]


def test_categories_go_if_the_metric_returns_the_main_one_only() -> None:
    assert set(metrics_table(computed(return_only_main_category=True))["category"]) == {"OVERALL"}


def test_files_hold_all_tables(tmp_path: Path) -> None:
    metrics = {"": computed(), "street": computed(n_labels=20)}
    run = tmp_path / "new" / "run"
    write_metrics(run, {"": metrics["street"]})
    returned = write_metrics(run, metrics)  # they are replaced
    assert sorted(file.name for file in run.iterdir()) == ["metrics.csv", "metrics.json"]

    table = pd.read_csv(run / "metrics.csv", keep_default_na=False, na_values={"low": "", "high": ""})
    assert table.columns.tolist() == [
        "table", "category", "metric", "k", "mean", "low", "high", "n_queries", "n_labels"
    ]  # fmt: skip
    assert table["table"].tolist() == [""] * 15 + ["street"] * 15
    assert table["k"].tolist()[:5] == ["1", "5", "r", "0.1", "0.5"]
    assert table["mean"].tolist() == pytest.approx(returned["mean"].tolist())

    content = json.loads((run / "metrics.json").read_text())
    assert "whole labels resampled" in content["intervals"]
    assert len(content["metrics"]) == 30
    cmc = content["metrics"]["street/c1/cmc/1"]
    row = metrics_table(metrics["street"]).set_index(["category", "metric", "k"]).loc[("c1", "cmc", 1)]
    assert cmc == pytest.approx(row.to_dict())
    assert (cmc["n_queries"], cmc["n_labels"]) == (40, 10)
    assert content["metrics"]["OVERALL/pcf/0.5"]["low"] is None
    assert content["metrics"]["OVERALL/cmc/1"]["mean"] == pytest.approx(metrics[""].metrics["OVERALL"]["cmc"][1].item())


def test_files_are_read_as_they_were_written(tmp_path: Path) -> None:
    written = write_metrics(tmp_path, {"": computed(), "street": computed(n_labels=30)})
    read = read_metrics(tmp_path)
    pd.testing.assert_frame_equal(read, written.assign(k=written["k"].astype(str)), check_dtype=False)


def test_nothing_computed_leaves_the_former_files(tmp_path: Path) -> None:
    write_metrics(tmp_path, {"": computed()})
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="compute_metrics"):
        write_metrics(tmp_path, {"": computed(), "street": EmbeddingMetrics()})
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def printed(**metrics: EmbeddingMetrics) -> str:
    text = io.StringIO()
    print_metrics_table(joined_metrics_table(metrics), Console(file=text, width=120))
    return text.getvalue()


def test_the_terminal_shows_all_rows_until_there_are_many() -> None:
    few = printed(main=computed(n_labels=30))
    row = next(line for line in few.splitlines() if "main/c1/cmc/1" in line)
    expected = metrics_table(computed(n_labels=30)).set_index(["category", "metric", "k"]).loc[("c1", "cmc", 1)]
    assert f"{expected['mean']:.4f}" in row
    assert f"{expected['low']:.4f} to {expected['high']:.4f}" in row
    assert "left out" not in few
    assert "fewer than 30 labels the intervals are too narrow" in few  # of a category

    many = printed(main=computed(n_labels=60, n_categories=20), street=computed(n_labels=30))
    assert "main/OVERALL/cmc/1" in many
    assert "street/OVERALL/cmc/1" in many
    assert "c1/cmc/1" not in many
    assert "Categories are left out" in many
    assert "too narrow" not in many


def reranked(**args: Any) -> EmbeddingMetrics:
    torch.manual_seed(0)
    model = LinearTrivialDistanceSiamese(4, identity_init=False)
    return computed(postprocessor=PairwiseEmbeddingsPostprocessor(5, model, num_workers=0, batch_size=64), **args)


CHANGE = ["before", "difference", "difference_low", "difference_high", "p_value"]


def test_before_and_after_re_ranking_stand_in_one_row(tmp_path: Path) -> None:
    metric, plain = reranked(), metrics_table(computed()).set_index(["category", "metric", "k"])
    table = metrics_table(metric).set_index(["category", "metric", "k"])
    assert table.columns.tolist() == [*plain.columns, *CHANGE]
    cmc, map_r = table.loc[("OVERALL", "cmc", 1)], table.loc[("c1", "map", "r")]
    assert metric.retrieved is not None
    assert metric.results is not None
    test = compare_results(metric.retrieved, metric.results, metrics=["cmc@1"]).metrics["cmc@1"].test
    assert cmc[CHANGE[1:]].tolist() == pytest.approx(list(test))
    assert test.difference != 0
    for row, before in ((cmc, plain.loc[("OVERALL", "cmc", 1)]), (map_r, plain.loc[("c1", "map", "r")])):
        assert row["before"] == pytest.approx(before["mean"])
        assert row["mean"] - row["before"] == pytest.approx(row["difference"])
    of_embeddings = table.index.get_level_values("metric").isin(["fnmr@fmr", "pcf"])
    assert table[of_embeddings][CHANGE].isna().all(axis=None)
    assert table[~of_embeddings].notna().all(axis=None)

    written = write_metrics(tmp_path, {"": metric})
    read = read_metrics(tmp_path)
    pd.testing.assert_frame_equal(read, written.assign(k=written["k"].astype(str)), check_dtype=False)
    content = json.loads((tmp_path / "metrics.json").read_text())["metrics"]
    assert content["OVERALL/cmc/1"]["before"] == pytest.approx(cmc["before"])
    assert content["OVERALL/cmc/1"]["p_value"] == pytest.approx(test.p_value)
    assert content["OVERALL/pcf/0.5"]["before"] is None


def test_the_terminal_shows_the_change() -> None:
    metric = reranked(n_labels=30, return_only_main_category=True)
    shown = printed(main=metric)
    row = next(line.split() for line in shown.splitlines() if "main/OVERALL/cmc/1" in line)
    expected = metrics_table(metric).set_index(["metric", "k"]).loc[("cmc", 1)]
    wanted = f"{expected['before']:.4f} {expected['mean']:.4f} {expected['difference']:+.4f}".split()
    wanted += (
        f"{expected['difference_low']:+.4f} to {expected['difference_high']:+.4f} {expected['p_value']:.4f}".split()
    )
    assert row[1:] == [*wanted, "120", "30"]
    assert "of the embeddings, which re-ranking leaves" in shown
    assert "before" not in printed(main=computed())
