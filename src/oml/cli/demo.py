"""``oml demo``."""

import os
import shlex
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from oml.lightning.pipelines.demo import DemoReport


def demo(
    output: Annotated[Path, typer.Option(help="Folder in which to make the run's own folder.")] = Path("runs"),
    data: Annotated[Path | None, typer.Option(help="Folder for the images; by default one of the cache.")] = None,
    labels: Annotated[
        int, typer.Option(min=60, max=2900, help="Characters of Glyphs to use; there are about 3,000.")
    ] = 2000,
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 200,
    image_size: Annotated[int, typer.Option(min=32, max=1024, help="Side of the images in pixels.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Of the training; the same seed gives the same figures.")] = 0,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,  # noqa: ARG001 (see main)
) -> None:
    """Fine-tune a pretrained network to recognise characters it has never seen, and measure it.

    Draws the data set Glyphs from the fonts that matplotlib ships, evaluates EfficientNet-Lite0 on it, trains it
    with hard triplets and evaluates again, on labels that the training has not seen. Takes two to four minutes on
    two CPU cores and leaves the config, the checkpoint, the figures, the embeddings, what was retrieved and a picture
    of the worst mistakes in a new folder. Needs the extra 'demo'.

    Examples:

    - `oml demo`
    - `oml demo --labels 400 --steps 60 --output /tmp/runs`
    """
    from oml.utils.io import new_folder

    try:
        run = new_folder(output, time.strftime("demo-%Y-%m-%d_%H-%M-%S"))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise typer.BadParameter(f"cannot write to {str(output)!r}: {reason}. Name another folder.") from error

    from rich.console import Console

    # Before torch is loaded. Its threads wait for each other by spinning: on a machine where another process takes
    # one of two cores, training was 25 times slower. With short spins it was 3 times, and 1.5 on a quiet machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    console = Console()
    with console.status("Loading torch and Lightning"):
        from oml.lightning.pipelines.demo import demo_pipeline, load_demo_config
    config = load_demo_config({"n_labels": labels, "steps": steps, "image_size": image_size, "seed": seed})
    try:
        report = demo_pipeline(config, run, data, console)
    except BaseException:
        with suppress(OSError):
            run.rmdir()  # if it is empty
        raise
    _show(report, steps, console)


def _show(report: "DemoReport", steps: int, console: "Console") -> None:
    from rich.table import Table

    table = Table(
        title=f"{report.n_queries:,} queries of {report.n_labels:,} labels never seen in training, 95 % intervals"
    )
    for heading in ("metric", "before", "after"):
        table.add_column(heading, justify="left" if heading == "metric" else "right")
    for name, before in report.before.items():
        cells = (f"{part.mean:.3f} ({part.low:.3f} to {part.high:.3f})" for part in (before, report.after[name]))
        table.add_row(name, *cells)
    console.print(table)
    console.print("Seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in report.seconds.items()))
    for name, path in report.files.items():
        console.print(f"{name:>14}: {path}", soft_wrap=True, highlight=False)
    before = report.files["results before"].parent
    arguments = f"{str(report.files['checkpoint'])!r}, arch='efficientnet_lite0', normalise_features=True"
    console.print(
        "\nTry next:\n"
        "  look at the worst queries: what would you have answered?\n"
        f"  what has changed:     {shlex.join(['oml', 'compare', str(before), str(before.parent)])}\n"
        f"  train for longer:     oml demo --steps {2 * steps}\n"
        f"  load the network:     oml.models.TimmExtractor({arguments})\n"
        "  use your own images:  docs/data_format.md, and 'Training' in README.md",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
