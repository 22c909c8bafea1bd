"""``oml compare``."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

if TYPE_CHECKING:
    from torch import Tensor

    from oml.metrics.comparison import Comparison
    from oml.retrieval import RetrievalResults

_RESULTS, _ITEMS = "results.safetensors", "items.csv"  # of a run folder
_PICTURES = (".png", ".jpg", ".jpeg", ".webp")
_FEW_LABELS = 30  # with fewer, bootstrap intervals are too narrow


class _Images(NamedTuple):
    """The files of all items of the data set, and their boxes if each has one."""

    paths: list[str]
    boxes: "Tensor | None"


def compare(
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A", help="Folder with results.safetensors, or such a file.")],
    run_b: Annotated[
        Path, typer.Argument(metavar="RUN_B", help="The other one: with more of a metric, B - A is positive.")
    ],
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            "-m",
            help="cmc, precision, map, recall, ndcg or mrr; map@10 has its own k, map@r and precision@r have the "
            "number of right items of each query. Repeatable.",
        ),
    ] = None,
    top_k: Annotated[
        list[int] | None, typer.Option("--top-k", "-k", help="Where to cut, by default at 5. Repeatable.")
    ] = None,
    show: Annotated[int, typer.Option(min=0, help="How many queries to show of those that changed most.")] = 5,
    table: Annotated[
        Path | None,
        typer.Option(help="CSV or Parquet file that has the paths; by default items.csv in the run's folder."),
    ] = None,
    root: Annotated[
        Path | None, typer.Option(help="Folder that its relative paths refer to; by default the one that holds it.")
    ] = None,
    sep: Annotated[str, typer.Option(help="Separator of the cells of a CSV file.")] = ",",
    csv: Annotated[Path | None, typer.Option(help="Write the change of every query to this file.")] = None,
    figure: Annotated[
        Path | None, typer.Option(help="Draw what the queries that changed most retrieve; needs paths.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", "--force", help="Replace files that are there.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,  # noqa: ARG001 (see main)
) -> None:
    """Compare two runs on the same queries: how far apart, how sure is that, and which queries changed.

    Intervals (95 %) and p-values come from whole labels, since queries of one label resemble each other. A p-value is
    that of a single test: of twenty metrics or runs without any difference, one has p below 0.05 by chance. Decide
    for one metric before you look, or multiply p by how many you look at.

    Both runs must have the same queries and galleries. `oml demo` leaves such folders; in Python,
    `RetrievalResults.save("my_run/results.safetensors")` does.

    Examples:

    - `oml compare runs/demo-1/before runs/demo-1`
    - `oml compare old new -m map -k 10 --table my_data/df.csv --csv changes.csv --figure changes.png`
    """
    for file, suffixes in ((csv, (".csv",)), (figure, _PICTURES)):
        if file is not None and file.suffix.lower() not in suffixes:
            raise typer.BadParameter(f"cannot write {file.name!r}: its name must end in {' or '.join(suffixes)}.")
        if file is not None and file.exists() and not overwrite:
            raise typer.BadParameter(f"there is a file {str(file)!r} already; name another one or give --overwrite.")
    files = [_results_file(run) for run in (run_a, run_b)]

    from oml.metrics.comparison import compare_results, draw_changes
    from oml.utils.io import atomic_path

    a, b = (_load(file) for file in files)
    comparison = compare_results(a, b, metrics=metric or (), top_k=top_k or ())
    tables = [table] if table else [file.parent / _ITEMS for file in files if (file.parent / _ITEMS).is_file()]
    images = _images(b, tables, root, sep)
    if figure is not None and images is None:
        raise typer.BadParameter("--figure needs the paths of the images: name the table that has them with --table.")
    paths = None if images is None else images.paths
    better, worse = comparison.most_changed(show)

    if as_json:
        typer.echo(json.dumps(_to_json(comparison, (run_a, run_b), better, worse, paths), indent=2))
    else:
        _show(comparison, (run_a, run_b), better, worse, paths)
    if csv is not None:
        with _named(csv), atomic_path(csv) as temporary:
            # values are float32: more digits are noise
            comparison.to_table(paths).round(6).to_csv(temporary, index=False, lineterminator="\n")
        typer.echo(f"every query: {csv}", err=as_json)
    if figure is not None and images is not None:
        rows = [*better.tolist(), *worse.tolist()]
        if not rows:
            typer.echo(f"No query to draw: {figure} was not made.", err=True)
            return
        picture = draw_changes(a, b, comparison, images.paths, rows, boxes=images.boxes)
        with _named(figure), atomic_path(figure) as temporary:
            picture.save(temporary)
        typer.echo(f"picture: {figure}", err=as_json)


def _results_file(run: Path) -> Path:
    if run.is_file():
        return run
    if not run.exists():
        raise typer.BadParameter(f"there is no folder or file {str(run)!r}.")
    if (run / _RESULTS).is_file():
        return run / _RESULTS
    text = f"the folder {str(run)!r} has no {_RESULTS}."
    if below := sorted(str(file.parent) for depth in ("*", "*/*") for file in run.glob(f"{depth}/{_RESULTS}")):
        raise typer.BadParameter(f"{text} Name one of those in it that have: {', '.join(below[-3:])}.")
    raise typer.BadParameter(f"{text} `oml demo` leaves one, and so does RetrievalResults.save in Python.")


def _load(file: Path) -> "RetrievalResults":
    from oml.retrieval import RetrievalResults

    try:
        return RetrievalResults.load(file)
    except (OSError, ValueError) as error:
        text = str(error)
        raise typer.BadParameter(text if str(file) in text else f"{str(file)!r}: {text}") from error


@contextmanager
def _named(file: Path) -> Iterator[None]:
    """A file that cannot be written is an option that was wrong."""
    try:
        yield
    except (FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        reason = (error.strerror or str(error)).lower()
        raise typer.BadParameter(f"cannot write to {str(file)!r}: {reason}. Name another file.") from error


def _images(results: "RetrievalResults", tables: list[Path], root: Path | None, sep: str) -> _Images | None:
    """Of the last of the tables. Their files may lie in different places, but must not have different names."""
    found = [_images_of(results, table, table.parent if root is None else root, sep) for table in tables]
    names = [[Path(path).name for path in images.paths] for images in found]
    if len(names) == 2 and names[0] != names[1]:
        i = next((i for i, pair in enumerate(zip(*names, strict=False)) if pair[0] != pair[1]), None)
        example = "" if i is None else f": item {i} is {found[0].paths[i]} in one and {found[1].paths[i]} in the other"
        raise typer.BadParameter(
            f"the runs are of different images, as their {_ITEMS} say{example}. --table overrules them."
        )
    return found[-1] if found else None


def _images_of(results: "RetrievalResults", table: Path, root: Path, sep: str) -> _Images:
    import pandas as pd
    import torch

    from oml.const import (
        LABELS_COLUMN,
        PATHS_COLUMN,
        SPLIT_COLUMN,
        VALIDATION_SPLIT,
        X1_COLUMN,
        X2_COLUMN,
        Y1_COLUMN,
        Y2_COLUMN,
    )
    from oml.datasets.table import read_table

    try:
        items = read_table(table, sep)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        raise typer.BadParameter(str(error)) from error
    if missing := [column for column in (PATHS_COLUMN, LABELS_COLUMN) if column not in items.columns]:
        raise typer.BadParameter(f"the table {str(table)!r} lacks the columns {', '.join(missing)}.")
    ids = torch.cat([results.query_ids, results.gallery_ids]).numpy()
    labels = torch.cat([results.query_labels, results.gallery_labels]).numpy()
    # the items of a data set for validation are the validation rows of its table, or all of them
    parts = [items]
    if SPLIT_COLUMN in items.columns:
        parts.insert(0, items[items[SPLIT_COLUMN] == VALIDATION_SPLIT])
    for part in parts:
        numbers = pd.to_numeric(part[LABELS_COLUMN], errors="coerce").to_numpy()
        if len(part) > ids.max() and (numbers[ids] == labels).all():
            break
    else:
        raise typer.BadParameter(
            f"the table {str(table)!r} is not that of these results: neither its validation rows nor all rows are "
            f"{ids.max() + 1} or more with the labels of the results, such as {labels[0]} of item {ids[0]}."
        )
    sides = [X1_COLUMN, Y1_COLUMN, X2_COLUMN, Y2_COLUMN]
    boxes = None
    if set(sides) <= set(part.columns) and part[sides].notna().all(axis=None):
        boxes = torch.from_numpy(part[sides].to_numpy(dtype=float))
    return _Images([str(root / path) for path in part[PATHS_COLUMN]], boxes)


def _show(
    comparison: "Comparison", runs: tuple[Path, Path], better: "Tensor", worse: "Tensor", paths: list[str] | None
) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    # lines of tables are not broken, whatever the window: the paths at their ends may be long
    console = Console(markup=False, highlight=False, emoji=False, soft_wrap=True, width=1000)
    n_labels = len(comparison.query_labels.unique())
    console.print(f"A: {runs[0]}\nB: {runs[1]}")
    console.print(f"{len(comparison.query_ids):,} queries of {n_labels:,} labels\n")
    table = Table(box=SIMPLE)
    for heading in ("metric", "A", "B", "B - A", "95 % interval", "p", "better", "worse"):
        table.add_column(heading, justify="left" if heading == "metric" else "right")
    for name, metric in comparison.metrics.items():
        test = metric.test
        means = (f"{values.double().mean():.4f}" for values in (metric.a, metric.b))
        interval = f"{test.low:+.4f} to {test.high:+.4f}"
        counts = (f"{int((sign * metric.change > 0).sum()):,}" for sign in (1, -1))
        table.add_row(name, *means, f"{test.difference:+.4f}", interval, f"{test.p_value:.4f}", *counts)
    console.print(table)
    if n_labels < _FEW_LABELS:
        console.print(f"With {n_labels} labels the intervals are too narrow; have {_FEW_LABELS} or more.\n")

    if not any(metric.change.any() for metric in comparison.metrics.values()):
        console.print("No query has changed.")
    folder = "" if paths is None else os.path.commonpath([Path(path).absolute().parent for path in paths])
    for title, rows in (("gained", better), ("lost", worse)):
        if len(rows) == 0:
            continue
        below = f"; paths below {folder}" if folder else ""
        table = Table(title=f"Queries that {title} most with B{below}", title_justify="left", box=SIMPLE)
        for heading in ("item", "label", *comparison.metrics):
            table.add_column(heading, justify="right")
        if paths is not None:
            table.add_column("path")
        for row in rows.tolist():
            item = int(comparison.query_ids[row])
            values = (f"{metric.a[row]:.2f} to {metric.b[row]:.2f}" for metric in comparison.metrics.values())
            path = [] if paths is None else [os.path.relpath(paths[item], folder)]
            table.add_row(str(item), str(int(comparison.query_labels[row])), *values, *path)
        console.print(table)


def _to_json(
    comparison: "Comparison", runs: tuple[Path, Path], better: "Tensor", worse: "Tensor", paths: list[str] | None
) -> dict[str, Any]:
    def queries(rows: "Tensor") -> list[dict[str, Any]]:
        return [
            {
                "item": (item := int(comparison.query_ids[row])),
                "label": int(comparison.query_labels[row]),
                **({} if paths is None else {"path": paths[item]}),
                **{name: [float(m.a[row]), float(m.b[row])] for name, m in comparison.metrics.items()},
            }
            for row in rows.tolist()
        ]

    return {
        "a": str(runs[0]),
        "b": str(runs[1]),
        "queries": len(comparison.query_ids),
        "labels": len(comparison.query_labels.unique()),
        "confidence": 0.95,
        "metrics": {
            name: {
                "a": float(metric.a.double().mean()),
                "b": float(metric.b.double().mean()),
                **metric.test._asdict(),
                "better": int((metric.change > 0).sum()),
                "worse": int((metric.change < 0).sum()),
            }
            for name, metric in comparison.metrics.items()
        },
        "better": queries(better),
        "worse": queries(worse),
    }
