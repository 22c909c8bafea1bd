"""``oml check``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from oml.datasets.table_summary import TableSummary

_BAR = 20  # characters of the longest bar


def check(
    table: Annotated[Path, typer.Argument(help="CSV or Parquet file.")],
    root: Annotated[
        Path | None, typer.Option(help="Folder that relative paths refer to; by default the one that holds the table.")
    ] = None,
    images: Annotated[bool, typer.Option("--images", help="Also read every image.")] = False,
    sep: Annotated[str, typer.Option(help="Separator of the cells of a CSV file.")] = ",",
    workers: Annotated[int | None, typer.Option(min=1, help="Threads that read images, by default one a core.")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,  # noqa: ARG001 (see main)
) -> None:
    """Check a table of images: what breaks the format, what it holds, and what is legal but trains badly.

    Leaves with code 1 if the table breaks the format, else with 0. Rows are counted from 0, the header left out.

    Examples:

    - `oml check my_data/df.csv`
    - `oml check tables/df.parquet --root my_data --images`
    """
    from rich.console import Console

    from oml.datasets.table import inspect_table, read_table
    from oml.datasets.table_summary import summarise_table

    folder = table.parent if root is None else root
    if not folder.is_dir():
        raise typer.BadParameter(f"there is no folder {str(folder)!r} for --root.")
    try:
        content = read_table(table, sep)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        raise typer.BadParameter(str(error)) from error

    violations, remarks = inspect_table(content, folder)
    if images:
        from oml.datasets.image_check import image_remarks
        from oml.utils.progress import progress_bar

        with progress_bar("reading images", Console(stderr=True)) as on_progress:
            remarks = remarks + image_remarks(content, folder, on_progress, workers)

    console = Console(markup=False, highlight=False, emoji=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 200  # a file has no edge; rich would take 80
    console.print(f"{table}, its paths below {str(folder)!r}, rows counted from 0")
    console.print()
    _list(console, _counted(len(violations), "violation") + " of the format", violations)
    _show(console, summarise_table(content))
    _list(console, _counted(len(remarks), "remark") + " on what is legal but trains badly", remarks)
    if not images:
        console.print("Images were not read; --images reads them all.")
    raise typer.Exit(code=1 if violations else 0)


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _list(console: "Console", title: str, texts: list[str]) -> None:
    console.print(f"{title}{':' if texts else '.'}")
    for number, text in enumerate(texts, start=1):
        console.print(f"{number:>4}. {text}")
    console.print()


def _show(console: "Console", summary: "TableSummary") -> None:
    from rich.box import SIMPLE
    from rich.table import Table

    counts = Table("", title="What the table holds", title_justify="left", box=SIMPLE)
    for heading in summary._fields:
        counts.add_column(heading, justify="right")
    for name in ("items", "images", "labels", "categories", "queries", "galleries", "boxes"):
        numbers = [getattr(part, name) for part in summary]
        counts.add_row(name, *("-" if number is None else f"{number:,}" for number in numbers))
    console.print(counts)

    parts = {name: part for name, part in summary._asdict().items() if part.items_per_label and name != "whole"}
    parts = parts or {"whole": summary.whole}  # without a split
    bars = Table("items", title="Labels by their number of items", title_justify="left", box=SIMPLE)
    for name in parts:
        bars.add_column(name, justify="right")
        bars.add_column("", min_width=_BAR)
    block = "█" if "utf" in console.encoding else "#"
    longest = max([1, *(n for part in parts.values() for n in part.items_per_label.values())])
    for low, high in sorted({pair for part in parts.values() for pair in part.items_per_label}):
        numbers = [part.items_per_label.get((low, high), 0) for part in parts.values()]
        cells = [cell for n in numbers for cell in (f"{n:,}", block * -(-n * _BAR // longest))]
        bars.add_row(str(low) if low == high else f"{low} to {high}", *cells)
    if bars.rows:
        console.print(bars)
