"""``oml registry``."""

import json
import shutil
import sys
import textwrap
from typing import Annotated, Any

import typer

from oml.const import CONFIGS_PATH


def _complete_kind(incomplete: str) -> list[str]:
    kinds = sorted({file.parent.name for file in CONFIGS_PATH.glob("*/*.yaml")} - {"recipes"})
    return [kind for kind in kinds if kind.startswith(incomplete)]


def _complete_name(ctx: Any, incomplete: str) -> list[str]:
    files = (CONFIGS_PATH / str(ctx.params.get("kind"))).glob("*.yaml")
    return sorted(file.stem for file in files if file.stem.startswith(incomplete))


def registry(
    kind: Annotated[
        str | None, typer.Argument(help="Such as criterion; without it, all are listed.", autocompletion=_complete_kind)
    ] = None,
    name: Annotated[
        str | None,
        typer.Argument(
            help="Of an entry, such as arcface, or an import path, which is imported.", autocompletion=_complete_name
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,  # noqa: ARG001 (see main)
) -> None:
    """Print what a config can name: losses, miners, extractors and so on, their arguments and packaged configs.

    Examples:

    - `oml registry`
    - `oml registry criterion`
    - `oml registry criterion arcface`
    - `oml registry extractor my_package.my_module.MyExtractor`
    """
    from oml.registry import REGISTRIES
    from oml.registry.overview import describe

    if kind is not None and kind not in REGISTRIES:
        raise typer.BadParameter(_no_kind(kind))
    if kind is None or name is None:
        kinds = REGISTRIES if kind is None else [kind]
        entries = [describe(REGISTRIES[kind], kind, name) for kind in kinds for name in REGISTRIES[kind]]
        if as_json:
            typer.echo(json.dumps(entries, indent=2))
        else:
            _print_entries(entries)
        return
    try:
        entry = describe(REGISTRIES[kind], kind, name)
    except (KeyError, TypeError, ImportError) as error:
        raise typer.BadParameter(str(error.args[0])) from error
    if as_json:
        typer.echo(json.dumps(entry, indent=2))
    else:
        _print_entry(entry)


def _no_kind(kind: str) -> str:
    from difflib import get_close_matches

    from oml.registry import REGISTRIES

    if having := [each for each, entries in REGISTRIES.items() if kind in entries]:
        return f"{kind!r} is no kind but a name: " + " or ".join(f"oml registry {each} {kind}" for each in having)
    near = get_close_matches(kind, REGISTRIES)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(REGISTRIES)}."
    return f"there is no kind {kind!r}; {hint}"


def _print_entries(entries: list[dict[str, Any]]) -> None:
    width = max(len(entry["name"]) for entry in entries) + 4
    kind = None
    for entry in entries:
        if entry["kind"] != kind:
            typer.echo(entry["kind"] if kind is None else f"\n{entry['kind']}")
            kind = entry["kind"]
        _print_wrapped(f"  {entry['name']}".ljust(width), entry["call"])
        _print_wrapped(" " * width, entry["summary"])


def _print_entry(entry: dict[str, Any]) -> None:
    typer.echo(f"{entry['kind']} {entry['name']}: {entry['constructor']}")
    if entry["summary"]:
        _print_wrapped("", entry["summary"])
    typer.echo("\nArguments:" if entry["arguments"] else "\nNo arguments.")
    for name, argument in entry["arguments"].items():
        of = f": {argument['type']}" if "type" in argument else ""
        default = f" = {argument['default']}" if "default" in argument else ""
        _print_wrapped("  ", f"{name}{of}{default}")
    if entry["config"] is None:
        typer.echo("\nThere is no packaged config.")
    else:
        file = CONFIGS_PATH / entry["kind"] / f"{entry['name']}.yaml"
        typer.echo(f"\n# {file}\n{file.read_text().rstrip()}")


def _print_wrapped(start: str, text: str) -> None:
    if not sys.stdout.isatty():  # a file has no edge
        typer.echo(f"{start}{text}")
        return
    lines = textwrap.wrap(
        text,
        shutil.get_terminal_size().columns,
        initial_indent=start,
        subsequent_indent=" " * (len(start) + 2),
        break_long_words=False,
        break_on_hyphens=False,
    )
    typer.echo("\n".join(lines))
