"""Metrics of a validation as a table with intervals: in memory, in files, on the terminal."""

import json
from collections.abc import Mapping
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oml.metrics.comparison import MetricChange
from oml.metrics.embeddings import EmbeddingMetrics
from oml.utils.io import atomic_path

if TYPE_CHECKING:
    from pandas import DataFrame
    from rich.console import Console

METRICS_FILES = ("metrics.csv", "metrics.json")  # of write_metrics
_FEW_LABELS = 30  # with fewer, bootstrap intervals are too narrow
_MOST_ROWS = 60  # on a terminal
_NAMES = ["table", "category", "metric", "k"]
_CHANGE = ["before", "difference", "difference_low", "difference_high", "p_value"]  # with re-ranking
_INTERVALS = ["low", "high", *_CHANGE]  # where there may be none
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

    A metric with a postprocessor has the values after re-ranking there, and five columns more at the end, which are NaN
    for these two: the mean ``before``; the ``difference`` that re-ranking makes, ``mean - before``, with its interval
    from ``difference_low`` to ``difference_high``; and the ``p_value`` of there being none. Both are those of the
    same queries, so the difference is surer than the two intervals look, see
    :func:`oml.functional.statistics.paired_test`.

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
    rows: list[tuple[Any, ...]] = [
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
    if metric.postprocessor is not None:
        changes = metric.compare(confidence)
        table[_CHANGE] = [_change(changes[category].get(name, {}).get(k)) for category, name, k, *_ in rows]
    return table


def _change(change: MetricChange | None) -> tuple[float, ...]:
    return (float("nan"),) * len(_CHANGE) if change is None else (change.a.double().mean().item(), *change.test)


def write_metrics(run_dir: Path | str, metrics: Mapping[str, EmbeddingMetrics]) -> "DataFrame":
    """Write ``metrics.csv`` and ``metrics.json`` into a folder; returns what is in the former.

    The CSV file is :func:`joined_metrics_table`. The JSON file has the same by the names under which the metrics are
    logged: ``{"metrics": {"OVERALL/cmc/1": {"mean": 0.9, "low": 0.8, "high": 1.0, "n_queries": 100, "n_labels": 25},
    ...}}``. With re-ranking both have the values before it and the differences too.

    Args:
        run_dir: the folder; made if missing. Files of these names are replaced.
        metrics: name -> what computed them; the main table is called ``""``.
    """
    table = joined_metrics_table(metrics)
    csv, as_json = (Path(run_dir) / name for name in METRICS_FILES)
    with atomic_path(csv) as file:
        table.to_csv(file, index=False)
    numbers = table.drop(columns=_NAMES).astype(object)
    numbers = numbers.where(numbers.notna(), None).to_dict("records")
    content = {"intervals": f"95 %: {_HOW}", "metrics": dict(zip(_names(table), numbers, strict=True))}
    with atomic_path(as_json) as file:
        file.write_text(json.dumps(content, indent=2) + "\n")
    return table


def read_metrics(run_dir: Path | str) -> "DataFrame":
    """The table that :func:`write_metrics` has put into a folder; ``k`` are texts."""
    from pandas import read_csv

    return read_csv(
        Path(run_dir) / METRICS_FILES[0],
        dtype={"k": str},
        keep_default_na=False,
        na_values=dict.fromkeys(_INTERVALS, ""),  # pyright: ignore[reportArgumentType]
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

    console = console or Console(width=1000, soft_wrap=True)  # lines are not broken, whatever the window
    rows = table
    if is_long := len(rows) > _MOST_ROWS:
        rows = rows[rows["category"] == rows.groupby("table")["category"].transform("first")]
    is_compared = "before" in table.columns
    shown = Table(box=SIMPLE)
    headings = ["before", "after", "change", "95 % interval", "p"] if is_compared else ["mean", "95 % interval"]
    for heading in ("metric", *headings, "queries", "labels"):
        shown.add_column(heading, justify="left" if heading == "metric" else "right")
    for name, row in zip(_names(rows), rows.to_dict("records"), strict=True):
        shown.add_row(
            name,
            *(_of_change(row) if is_compared else _of_mean(row)),
            *map("{:,}".format, (row["n_queries"], row["n_labels"])),
        )
    console.print(shown)
    if is_long:
        console.print("Categories are left out, as they are many.")
    if is_compared and rows["before"].isna().any():
        console.print("What has no value before is of the embeddings, which re-ranking leaves as they are.")
    if rows["n_labels"].min() < _FEW_LABELS:
        console.print(f"With fewer than {_FEW_LABELS} labels the intervals are too narrow.")


def _of_mean(row: Mapping[Any, Any]) -> list[str]:
    """The mean of a metric and its interval."""
    interval = "" if isnan(row["low"]) else f"{row['low']:.4f} to {row['high']:.4f}"
    return [f"{row['mean']:.4f}", interval]


def _of_change(row: Mapping[Any, Any]) -> list[str]:
    """The means before and after re-ranking, the difference with its interval, and its p-value."""
    if isnan(row["before"]):
        return ["", f"{row['mean']:.4f}", "", "", ""]
    interval = f"{row['difference_low']:+.4f} to {row['difference_high']:+.4f}"
    return [
        f"{row['before']:.4f}",
        f"{row['mean']:.4f}",
        f"{row['difference']:+.4f}",
        interval,
        f"{row['p_value']:.4f}",
    ]


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
