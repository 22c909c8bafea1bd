"""Entry point: the commands, and how their errors reach a person."""

import errno
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

import oml
from oml.cli.audit import audit
from oml.cli.calibrate import calibrate
from oml.cli.check import check
from oml.cli.compare import compare
from oml.cli.config import config
from oml.cli.convert import convert
from oml.cli.demo import demo
from oml.cli.predict import predict
from oml.cli.registry import registry
from oml.cli.split import split
from oml.cli.train import train
from oml.cli.train_reranker import train_reranker
from oml.cli.transforms import transforms
from oml.cli.validate import validate
from oml.cli.zoo import zoo
from oml.configs import ConfigError
from oml.utils.launched import is_first_process

app = typer.Typer(
    name="oml",
    help="Train, validate, search and ship models that produce embeddings.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.command()(audit)
app.command()(calibrate)
app.command()(check)
app.command()(compare)
app.command()(convert)
app.command()(demo)
app.command()(predict)
app.command()(registry)
app.command()(split)
app.command()(train)
app.command()(train_reranker)
app.command()(validate)
app.add_typer(config)
app.add_typer(transforms)
app.add_typer(zoo)


def _show_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"oml {oml.__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True)] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options of all commands; main() looks at --debug itself."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; leaves with 0, with 2 if the command was not understood, with 1 if it failed."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments  # an option of every command, looked at here
    if not is_first_process():  # of several that do the same: one tells of it
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 (until the end)
        warnings.simplefilter("ignore")
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # not that it could not cache its list of fonts
    try:
        code = app(args=arguments, prog_name="oml", standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        _say("stopped.")
        sys.exit(130)
    except typer.TyperException as error:
        if debug:
            raise
        if not error.format_message():  # the help was shown, as there were no arguments
            sys.exit(2)
        context = getattr(error, "ctx", None)
        text = error.format_message()
        stop = "" if text.endswith((".", "?")) else "."
        _say(f"{text}{stop} See {context.command_path if context else 'oml'} --help.")
        sys.exit(2)
    except ConfigError as error:
        if debug:
            raise
        for finding in error.findings:
            _say(finding)
        sys.exit(2)
    except Exception as error:
        if debug:
            raise
        _say(f"{_one_line(error)} (--debug shows where)")
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        file = f" {error.filename}" if error.filename else ""
        return f"cannot write{file}: {error.strerror}. Free some space or name a folder on another disk, and run again."
    text = " ".join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())
    expected = isinstance(error, OSError | ValueError | TypeError | KeyError | ModuleNotFoundError)
    return text if expected and text else f"{type(error).__name__}: {text}"


def _say(message: str) -> None:
    print(f"oml: {message}", file=sys.stderr)  # noqa: T201 (this is where errors go)
