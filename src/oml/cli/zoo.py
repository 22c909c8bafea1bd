"""``oml zoo``."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from oml.models.zoo import ZooEntry


class _Lists(TyperGroup):
    """Without the name of a command it is ``list``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        named = args and (args[0] in self.commands or args[0] == "--help")
        return super().parse_args(ctx, args if named else ["list", *args])


zoo = typer.Typer(
    name="zoo",
    cls=_Lists,
    help="Pretrained weights: list, look at, download. Without a command it lists.",
    rich_markup_mode="markdown",
)

_Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@zoo.command("list")
def list_(
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="[TEXT]...", help="All of them are in the entry, such as dinov3.")
    ] = None,
    extractor: Annotated[str | None, typer.Option(help="Name of the class, or a part of it, such as clip.")] = None,
    data_set: Annotated[
        str | None, typer.Option(help="With a figure for it, such as SOP; the highest ones come first.")
    ] = None,
    here: Annotated[bool, typer.Option("--here", help="Only those that need not be downloaded.")] = False,
    timm: Annotated[bool, typer.Option("--timm", help="Also the names of timm that the table does not have.")] = False,
    as_json: _Json = False,
    debug: _Debug = False,  # noqa: ARG001 (see main)
) -> None:
    """Name the weights of the zoo, with published figures.

    Examples:

    - `oml zoo`
    - `oml zoo dinov2`
    - `oml zoo list --data-set InShop`
    - `oml zoo list --timm convnext apache`
    """
    from oml.models.zoo import ZOO, find_entry, local_file

    entries = list(ZOO.values())
    if timm:
        from timm import list_pretrained

        entries += [find_entry(name) for name in list_pretrained() if name not in ZOO]
    if data_set is not None:
        known = sorted({figure.data_set for entry in entries for figure in entry.figures})
        if data_set.lower() not in map(str.lower, known):
            raise typer.BadParameter(f"there are no figures for {data_set!r}; there are some for {', '.join(known)}.")
        entries = [entry for entry in entries if _value(entry, data_set) is not None]
        entries.sort(key=lambda entry: -(_value(entry, data_set) or 0))
    wanted = [text.lower() for text in texts or ()]
    entries = [
        entry
        for entry in entries
        if all(text in _searched(entry) for text in wanted)
        and (extractor or "").lower() in entry.extractor.lower()
        and (not here or local_file(entry))
    ]
    if as_json:
        typer.echo(json.dumps([_to_json(entry) for entry in entries], indent=2))
    elif entries:
        _print_table(entries)
    else:
        hint = "." if timm else "; --timm looks through the names of timm as well."
        raise typer.BadParameter(f"the zoo has nothing like that{hint}")


@zoo.command()
def show(
    name: Annotated[str, typer.Argument(help="Of the weights; any name of timm will do as well.")],
    as_json: _Json = False,
    debug: _Debug = False,  # noqa: ARG001 (see main)
) -> None:
    """Print all that is known of some weights.

    Examples:

    - `oml zoo show vits16_dino`
    - `oml zoo show convnext_tiny.fb_in1k`
    """
    import yaml
    from timm.models import is_model_pretrained

    from oml.models.zoo import count_bytes, find_entry

    with _known_names():
        entry = find_entry(name)
    known = _to_json(entry)
    if entry.size is None and is_model_pretrained(name):
        known["size"] = count_bytes(name)
    if as_json:
        typer.echo(json.dumps(known, indent=2))
        return
    lines = {
        "extractor": f"{entry.extractor}.from_pretrained({entry.name!r})",
        "arguments": ", ".join(f"{key}={value!r}" for key, value in entry.init_args.items()),
        "sources": "\n".join(entry.sources),
        "hash": entry.hash or ("that of the Hugging Face Hub" if entry.sources[0].startswith("hf:") else "not known"),
        "size": f"about {known['size'] / 1e6:,.0f} MB" if known["size"] else "not known",
        "file": known["here"] or f"{entry.file}, not here",
        "licence": entry.licence or "not known",
        "page": entry.page or "not known",
        "transforms": yaml.safe_dump(entry.transforms, sort_keys=False, default_flow_style=None, width=88).rstrip(),
        "figures": "\n".join(
            f"{each.data_set} {each.metric} {each.value:.3f}, {each.image_size} px: {each.protocol}"
            for each in entry.figures
        )
        or "none",
    }
    typer.echo(entry.name)
    for title, text in lines.items():
        typer.echo(f"  {title:<11} " + text.replace("\n", "\n" + 14 * " "))


@zoo.command()
def fetch(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Of the weights.")],
    debug: _Debug = False,  # noqa: ARG001 (see main)
) -> None:
    """Download weights unless they are here, and print the paths of their files.

    A download that was ended goes on where it was when it is asked for again.

    Examples:

    - `oml zoo fetch vits16_dino resnet50_imagenet1k_v1`
    """
    from oml.models import zoo

    with _known_names():
        for name in names:
            zoo.find_entry(name)
    for name in names:
        typer.echo(zoo.fetch(name))


@contextmanager
def _known_names() -> Iterator[None]:
    """A name that there is not is an argument that was wrong."""
    try:
        yield
    except KeyError as error:
        raise typer.BadParameter(error.args[0]) from error


def _searched(entry: "ZooEntry") -> str:
    figures = (f"{figure.data_set} {figure.metric}" for figure in entry.figures)
    return " ".join([entry.name, entry.extractor, str(entry.init_args), entry.licence or "", *figures]).lower()


def _value(entry: "ZooEntry", data_set: str) -> float | None:
    return next((each.value for each in entry.figures if each.data_set.lower() == data_set.lower()), None)


def _to_json(entry: "ZooEntry") -> dict[str, Any]:
    from dataclasses import asdict

    from oml.models.zoo import local_file

    found = local_file(entry)
    return asdict(entry) | {"here": str(found) if found else None}


def _print_table(entries: "list[ZooEntry]") -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from oml.models.zoo import local_file

    console = Console(markup=False, highlight=False, emoji=False, soft_wrap=True)
    if not sys.stdout.isatty():
        console.width = 200  # a file has no edge; rich would take 80
    protocols = list(dict.fromkeys(figure.protocol for entry in entries for figure in entry.figures))
    titles = ["name", "extractor", "MB", "px", "licence", "here", "figures"]
    if console.width < 120:  # 'oml zoo show' and --json have the others
        titles = ["name", "MB", "px", "figures"]
    table = Table(box=SIMPLE)
    for title in titles:
        number = title in ("MB", "px")
        table.add_column(title, no_wrap=number or title == "name", justify="right" if number else "left")
    for entry in entries:
        args = entry.transforms["args"]
        side = args.get("crop_size", args.get("im_size", ""))
        figures = (
            f"{each.data_set} {each.metric} {each.value:.3f} "
            + ("" if each.image_size == side else f"at {each.image_size} px ")
            + f"[{protocols.index(each.protocol) + 1}]"
            for each in entry.figures
        )
        cells = {
            "name": entry.name,
            "extractor": entry.extractor,
            "MB": "" if entry.size is None else f"{entry.size / 1e6:,.0f}",
            "px": str(side),
            "licence": entry.licence or "",
            "here": "yes" if local_file(entry) else "",
            "figures": ", ".join(figures),
        }
        table.add_row(*(cells[title] for title in titles))
    console.print(table)
    for number, protocol in enumerate(protocols, start=1):
        console.print(f"[{number}] {protocol}")
