"""``oml convert``."""

import shlex
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from pandas import DataFrame

_IMAGE_LEVEL = (
    "Protocol: the official split of images; all classes are in train and in validation. Papers on metric learning "
    "split by class instead (--zero-shot): figures are not comparable with theirs."
)
_ZERO_SHOT = "Protocol: as in papers on metric learning, train is the first half of the classes, validation the others."
_OFFICIAL = "Protocol: the official split, by label, as in papers on metric learning."


def convert(
    dataset: Annotated[Literal["cub", "cars", "sop", "inshop"], typer.Argument(help="Which data set.")],
    root: Annotated[Path, typer.Argument(help="Folder with its unpacked files.")],
    no_bboxes: Annotated[bool, typer.Option("--no-bboxes", help="Leave the boxes out.")] = False,
    zero_shot: Annotated[
        bool, typer.Option("--zero-shot", help="Of cub and cars: split by class, as papers do, and not by image.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write; by default df.csv or df_with_bboxes.csv in ROOT."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", "--force", help="Replace the file if there is one.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,  # noqa: ARG001 (see main)
) -> None:
    """Make the table of a public data set: CUB-200-2011, CARS196, Stanford Online Products, DeepFashion InShop.

    Nothing is downloaded: what is missing is named, with the page that has it. Paths in the table are relative to
    ROOT. Boxes are in the table unless there are none (sop). cars needs the extra 'convert'.

    Examples:

    - `oml convert sop Stanford_Online_Products`
    - `oml convert cub CUB_200_2011 --zero-shot --output CUB_200_2011/df_zero_shot.csv`
    """
    if zero_shot and dataset in ("sop", "inshop"):
        raise typer.BadParameter(f"{dataset} is split by label anyway: --zero-shot is for cub and cars.")
    has_boxes = not no_bboxes and dataset != "sop"
    output = output or root / ("df_with_bboxes.csv" if has_boxes else "df.csv")
    if output.suffix.lower() != ".csv":
        raise typer.BadParameter(f"the output is a CSV file, call it so instead of {output.name!r}.")
    if output.exists() and not overwrite:
        raise typer.BadParameter(f"there is a file {str(output)!r} already; give --output or --overwrite.")

    from oml.datasets.converters import convert_cars, convert_cub, convert_inshop, convert_sop
    from oml.utils.io import atomic_path

    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        if dataset == "sop":
            table = convert_sop(root)
        elif dataset == "inshop":
            table = convert_inshop(root, has_boxes)
        else:
            table = {"cub": convert_cub, "cars": convert_cars}[dataset](root, has_boxes, zero_shot)
    try:
        with atomic_path(output) as temporary:
            table.to_csv(temporary, index=False, lineterminator="\n")
    except (FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        reason = (error.strerror or str(error)).lower()
        raise typer.BadParameter(f"cannot write to {str(output)!r}: {reason}. Name another file.") from error

    for line in _summary(table):
        typer.echo(line)
    by_image = _ZERO_SHOT if zero_shot else _IMAGE_LEVEL
    typer.echo(f"- {by_image if dataset in ('cub', 'cars') else _OFFICIAL}")
    for note in notes:
        typer.echo(f"- {note.message}")
    check = ["oml", "check", str(output), *(["--root", str(root)] if output.parent != root else []), "--images"]
    typer.echo(f"{output}\nTry next: {shlex.join(check)}")


def _summary(table: "DataFrame") -> list[str]:
    train, validation = (table[table["split"] == split] for split in ("train", "validation"))
    queries, galleries = (validation[role].astype(bool).sum() for role in ("is_query", "is_gallery"))
    return [
        f"{len(table):,} items of {table['label'].nunique():,} labels.",
        f"- train: {len(train):,} items of {train['label'].nunique():,} labels",
        f"- validation: {len(validation):,} items of {validation['label'].nunique():,} labels, "
        f"{queries:,} queries, {galleries:,} galleries",
    ]
