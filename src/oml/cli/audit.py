"""``oml audit``."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from oml.report.audit import Audit

_TABLE, _PAGE = "findings.csv", "audit.html"


def audit(
    table: Annotated[Path, typer.Argument(help="CSV or Parquet file.")],
    embeddings: Annotated[
        Path, typer.Option(help="File of embeddings: .safetensors, .npy or .parquet, a row for each of the table.")
    ],
    root: Annotated[
        Path | None, typer.Option(help="Folder that relative paths refer to; by default the one that holds the table.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to; by default a new one in runs, named after the time.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Split that the embeddings are of, if their number does not tell.")
    ] = None,
    neighbours: Annotated[int, typer.Option(min=1, max=100, help="How many neighbours of an item have a say.")] = 10,
    min_score: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Of wrong and of mixed labels, by default 0.4 and 0.5; the lower, the more."),
    ] = None,
    max_distance: Annotated[
        float | None, typer.Option(min=0, help="Up to which items are copies; by default the data tell.")
    ] = None,
    show: Annotated[int, typer.Option(min=0, help="Findings of each kind on the page; the table has all.")] = 50,
    sep: Annotated[str, typer.Option(help="Separator of the cells of a CSV file.")] = ",",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", "--force", help="Replace the files if there are some.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,  # noqa: ARG001 (see main)
) -> None:
    """Find likely wrong labels, copies and labels that are mixed, by the embeddings of a table's images.

    Embeddings belong to the rows of the table in their order, or to those of one split. Writes findings.csv, a row
    for each finding, and audit.html, a page of pictures that any browser shows. They are for a person to look at: the
    table stays as it is.

    Examples:

    - `oml audit my_data/df.csv --embeddings embeddings.npy`
    - `oml audit df.csv --embeddings runs/demo/embeddings.safetensors --root my_data --out audit`
    """
    from rich.console import Console

    folder = table.parent if root is None else root
    if not folder.is_dir():
        raise typer.BadParameter(f"there is no folder {str(folder)!r} for --root.")
    if out is not None and not overwrite and (there := [name for name in (_TABLE, _PAGE) if (out / name).exists()]):
        raise typer.BadParameter(f"there is {' and '.join(there)} in {str(out)!r}; give another --out or --overwrite.")

    console = Console(markup=False, highlight=False, emoji=False, soft_wrap=True)
    with console.status("Loading torch"):
        from oml.datasets.table import read_table
        from oml.inference.embedding_files import read_embeddings
        from oml.report.audit import audit_table
        from oml.report.audit_page import audit_page
        from oml.report.embedding_file import rows_of_embeddings
        from oml.utils.io import atomic_path, new_folder
    try:
        content = read_table(table, sep)
        vectors = read_embeddings(embeddings)
        rows = rows_of_embeddings(vectors, content, split)
        with console.status("Looking for neighbours"):
            found = audit_table(content, rows, vectors, k=neighbours, min_score=min_score, max_distance=max_distance)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        raise typer.BadParameter(str(error)) from error
    with console.status("Reading images"):
        page = audit_page(found, folder, table=str(table), embeddings=str(embeddings), n_shown=show)

    try:
        out = new_folder("runs", time.strftime("audit-%Y-%m-%d_%H-%M-%S")) if out is None else out
        with atomic_path(out / _TABLE) as csv, atomic_path(out / _PAGE) as html:
            found.findings.to_csv(csv, index=False, lineterminator="\n")
            html.write_text(page.html, encoding="utf-8")
    except (FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        reason = (error.strerror or str(error)).lower()
        raise typer.BadParameter(f"cannot write to {str(out or 'runs')!r}: {reason}. Name another folder.") from error
    _tell(found, len(page.missing))
    typer.echo(f"{out / _TABLE}\n{out / _PAGE}")


def _tell(found: "Audit", n_missing: int) -> None:
    groups = found.findings.groupby("kind")
    counts = {kind: (len(part), part["group"].nunique()) for kind, part in groups}
    names = {
        "wrong_label": "likely wrong labels",
        "copy_across": "pairs of copies across splits",
        "copy_within": "pairs of copies within a split",
        "mixed_labels": "pairs of labels that are mixed",
    }
    typer.echo(f"{len(found.items):,} items of {found.items['label'].nunique():,} labels.")
    for kind, name in names.items():
        n, n_groups = counts.get(kind, (0, 0))
        typer.echo(f"{n:>7,} {name}{f', in {n_groups:,} groups' if n_groups else ''}")
    typer.echo(
        f"The nearest neighbour carries the item's own label for {found.agreement:.1%} of the items "
        f"that could have one such ({found.chance:.1%} at random)."
    )
    if found.agreement < 0.2:
        typer.echo("That is little: are the embeddings good, and in the order of the table?")
    if n_missing:
        typer.echo(f"{n_missing:,} images could not be shown; the page says why.")
