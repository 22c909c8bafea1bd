"""``oml split``."""

import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer


def split(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER|TABLE", help="Folder with one sub-folder a label, or table of paths and labels."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; by default df.csv in FOLDER or beside TABLE.")
    ] = None,
    validation_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the labels that go to validation.")
    ] = 0.5,
    seed: Annotated[int, typer.Option(min=0, help="Of the drawing; the same seed gives the same table.")] = 0,
    protocol: Annotated[
        Literal["one-vs-rest", "query-gallery"],
        typer.Option(help="Every validation item is a query and a gallery, or it is one of the two."),
    ] = "one-vs-rest",
    queries: Annotated[int, typer.Option(min=1, help="Queries of each label with --protocol query-gallery.")] = 1,
    keep_categories: Annotated[
        bool, typer.Option("--keep-categories", help="Put whole categories into train or into validation.")
    ] = False,
    root: Annotated[
        Path | None, typer.Option(help="Folder that the paths of TABLE refer to; by default the one that holds it.")
    ] = None,
    sep: Annotated[str, typer.Option(help="Separator of the cells of a CSV file.")] = ",",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", "--force", help="Replace the file if there is one.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,  # noqa: ARG001 (see main)
) -> None:
    """Make a table of images, divided into train and validation with no label in both.

    FOLDER holds images as LABEL/image or as CATEGORY/LABEL/image. TABLE is a CSV or Parquet file with the columns
    path and label; text labels are numbered, and further columns, such as category, sequence and boxes, are kept.
    Paths are written as they are found from the folder of the output file.

    Examples:

    - `oml split photos`
    - `oml split labels.csv --validation-share 0.3 --protocol query-gallery --output tables/df.csv`
    """
    is_folder = source.is_dir()
    if is_folder and root is not None:
        raise typer.BadParameter("--root is for the paths of a TABLE; those of a FOLDER refer to itself.")
    root = source if is_folder else source.parent if root is None else root
    output = output or (source if is_folder else source.parent) / "df.csv"
    if output.suffix.lower() != ".csv":
        raise typer.BadParameter(f"the output is a CSV file, call it so instead of {output.name!r}.")
    if output.exists() and not overwrite:
        raise typer.BadParameter(f"there is a file {str(output)!r} already; give --output or --overwrite.")

    from oml.datasets.splitting import assign_splits, rebase_paths, table_from_folder
    from oml.datasets.table import TableError, inspect_table, read_table
    from oml.utils.io import atomic_path

    try:
        items, found = table_from_folder(source) if is_folder else (read_table(source, sep, label_texts=True), [])
        table, notes = assign_splits(items, validation_share, seed, protocol, queries, keep_categories)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        raise typer.BadParameter(str(error)) from error
    table = rebase_paths(table, root, output.parent)
    try:
        with atomic_path(output) as temporary:
            table.to_csv(temporary, index=False, lineterminator="\n")
            # as it will be read
            if violations := inspect_table(read_table(temporary), output.parent).violations:
                raise TableError(f"The table would break the format, so it is not written: {' '.join(violations)}")
    except (FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        reason = (error.strerror or str(error)).lower()
        raise typer.BadParameter(f"cannot write to {str(output)!r}: {reason}. Name another file.") from error
    typer.echo(f"{len(table):,} items of {table['label'].nunique():,} labels, seed {seed}.")
    for note in (*found, *notes):
        typer.echo(f"- {note}")
    typer.echo(f"{output}\nTry next: {shlex.join(['oml', 'check', str(output), '--images'])}")
