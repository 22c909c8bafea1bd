"""Metrics of a validation as a table with intervals: in memory, in files, on the terminal."""

import json
from collections.abc import Mapping
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING

from oml.metrics.embeddings import EmbeddingMetrics
from oml.utils.io import atomic_path

if TYPE_CHECKING:
    from pandas import DataFrame
    from rich.console import Console

METRICS_FILES = ("metrics.csv", "metrics.json")  # of write_metrics
_FEW_LABELS = 30  # with fewer, bootstrap intervals are too narrow
_MOST_ROWS = 60  # on a terminal
_HOW = "percentile bootstrap over queries, whole labels resampled; none for metrics without a value per query"


def metrics_table(metric: EmbeddingMetrics, confidence: float = 0.95) -> "DataFrame":
    """What a metric has computed, a row for each of its numbers, with how sure it is.

    =====================  ==================================================================================
    ``category``           ``OVERALL``, or a category, unless the metric returns the main one only
    ``metric``, ``k``      such as ``cmc`` and 5; ``k`` is also the false match rate, or the share of variance
    ``mean``               over queries
    ``low``, ``high``      ends of the interval, see :func:`oml.functional.statistics.bootstrap_interval`: whole
                           labels are resampled, for queries of one label resemble each other
    ``n_queries``          of the category
    ``n_labels``           of these queries: with fewer than about 30, intervals are too narrow
    =====================  ==================================================================================

    ``fnmr@fmr`` and ``pcf`` are no means over queries but one number of all pairs or items; their ``low`` and ``high``
    are NaN.

    Raises:
        ValueError: if nothing was computed yet, or ``confidence`` is outside (0, 1).

    Example:
        >>> import torch
        >>> everyone = torch.ones(6, dtype=torch.bool)
        >>> batch = {"labels": torch.tensor([0, 0, 1, 1, 2, 2]), "is_query": everyone, "is_gallery": everyone}
        >>> metric = EmbeddingMetrics(cmc_top_k=[1], precision_top_k=[], map_top_k=[], verbose=False)
        >>> metric.setup(6)
        >>> metric.update_data({"embeddings": torch.tensor([0.0, 1.0, 3.0, 4.0, 4.5, 9.0])[:, None], **batch})
        >>> _ = metric.compute_metrics()
        >>> metrics_table(metric)[["metric", "k", "mean", "low", "high", "n_queries", "n_labels"]].round(3)
          metric    k   mean  low  high  n_queries  n_labels
        0    cmc    1  0.667  0.5   1.0          6         3
        1    pcf  0.5  1.000  NaN   NaN          6         3
    """
    from pandas import DataFrame, Series

    intervals = metric.intervals(confidence)
    main = metric.overall_categories_key
    rows = [
        (category, name, k, *intervals[category].get(name, {}).get(k, (value.item(), float("nan"), float("nan"))))
        for category, by_metric in metric.metrics.items()
        if category == main or not metric.return_only_main_category
        for name, by_k in by_metric.items()
        for k, value in by_k.items()
    ]
    table = DataFrame(rows, columns=["category", "metric", "k", "mean", "low", "high"])
    table["k"] = Series([row[2] for row in rows], dtype=object)  # whole numbers stay so
    assert metric.results is not None, "there are intervals"
    labels = {category: metric.results.query_labels[rows] for category, rows in metric.query_rows.items()}
    table["n_queries"] = table["category"].map({category: len(of_it) for category, of_it in labels.items()})
    table["n_labels"] = table["category"].map({category: len(of_it.unique()) for category, of_it in labels.items()})
    return table


def write_metrics(run_dir: Path | str, metrics: Mapping[str, EmbeddingMetrics]) -> "DataFrame":
    """Write ``metrics.csv`` and ``metrics.json`` into a folder; returns what is in the former.

    The CSV file is :func:`joined_metrics_table`. The JSON file has the same by the names under which the metrics are
    logged: ``{"metrics": {"OVERALL/cmc/1": {"mean": 0.9, "low": 0.8, "high": 1.0, "n_queries": 100, "n_labels": 25},
    ...}}``.

    Args:
        run_dir: the folder; made if missing. Files of these names are replaced.
        metrics: name -> what computed them; the main table is called ``""``.
    """
    table = joined_metrics_table(metrics)
    csv, as_json = (Path(run_dir) / name for name in METRICS_FILES)
    with atomic_path(csv) as file:
        table.to_csv(file, index=False)
    numbers = table[["mean", "low", "high", "n_queries", "n_labels"]].astype(object)
    numbers = numbers.where(numbers.notna(), None).to_dict("records")
    content = {"intervals": f"95 %: {_HOW}", "metrics": dict(zip(_names(table), numbers, strict=True))}
    with atomic_path(as_json) as file:
        file.write_text(json.dumps(content, indent=2) + "\n")
    return table


def read_metrics(run_dir: Path | str) -> "DataFrame":
    """The table that :func:`write_metrics` has put into a folder; ``k`` are texts."""
    from pandas import read_csv

    return read_csv(
        Path(run_dir) / METRICS_FILES[0], dtype={"k": str}, keep_default_na=False, na_values={"low": "", "high": ""}
    )


def print_metrics_table(table: "DataFrame", console: "Console | None" = None) -> None:
    """Show what :func:`write_metrics` has written on the terminal.

    Args:
        table: what that returned, or :func:`read_metrics`.
        console: where to; standard output by default.
    """
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    console = console or Console()
    rows = table
    if is_long := len(rows) > _MOST_ROWS:
        rows = rows[rows["category"] == rows.groupby("table")["category"].transform("first")]
    shown = Table(box=SIMPLE)
    for heading in ("metric", "mean", "95 % interval", "queries", "labels"):
        shown.add_column(heading, justify="left" if heading == "metric" else "right")
    numbers = rows[["mean", "low", "high", "n_queries", "n_labels"]].to_dict("list")
    for name, mean, low, high, n_queries, n_labels in zip(_names(rows), *numbers.values(), strict=True):
        interval = "" if isnan(low) else f"{low:.4f} to {high:.4f}"
        shown.add_row(name, f"{mean:.4f}", interval, f"{n_queries:,}", f"{n_labels:,}")
    console.print(shown)
    if is_long:
        console.print("Categories are left out, as they are many.")
    if rows["n_labels"].min() < _FEW_LABELS:
        console.print(f"With fewer than {_FEW_LABELS} labels the intervals are too narrow.")


def joined_metrics_table(metrics: Mapping[str, EmbeddingMetrics]) -> "DataFrame":
    """The tables of several metrics in one, with the column ``table`` before the others.

    Args:
        metrics: name of a validation table -> what computed its metrics; the main one is called ``""``.
    """
    from pandas import concat

    tables = [metrics_table(metric) for metric in metrics.values()]
    return concat(tables, keys=list(metrics), names=["table", None]).reset_index(level="table").reset_index(drop=True)


def _names(table: "DataFrame") -> list[str]:
    """As they are logged."""
    rows = zip(table["table"], table["category"], table["metric"], table["k"], strict=True)
    return ["/".join(str(part) for part in row if part != "") for row in rows]
