"""``oml calibrate``."""

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from oml.cli.composing import Debug, Recipe, compose_for, import_from_here, is_run, load_source, loading, split_words
from oml.cli.validate import PostprocessorOption, with_postprocessor

if TYPE_CHECKING:
    from oml.retrieval.calibration import Calibration

_FMRS = (0.01, 0.001, 0.0001)
_FEW = 30  # with fewer false matches or labels, rates and intervals are not to be relied on


def calibrate(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG|RUN] [KEY=VALUE]...",
            help="The folder of a training, for its best checkpoint, or a YAML file. Then overrides of fields.",
        ),
    ] = None,
    recipe: Recipe = None,
    method: Annotated[
        Literal["isotonic", "platt"], typer.Option(help="A curve of any shape, or a sigmoid for few pairs.")
    ] = "isotonic",
    fmr: Annotated[
        list[float] | None,
        typer.Option(min=0, max=1, help="False match rate to find a threshold for; may be repeated."),
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="As many results of a query probabilities are for.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Tells which half of the labels judges.")] = 0,
    postprocessor: PostprocessorOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder to write to; by default that of the run, or a new one in runs, named after the time."
        ),
    ] = None,
    debug: Debug = False,  # noqa: ARG001 (see main)
) -> None:
    """Tell how likely results of a search are right, by their distances, and find thresholds for false match rates.

    Embeds the validation split as `oml validate` does and fits a curve from the distance of a query and one of its
    first results to the probability that it is right. It is judged on half of the labels, after fitting it to the
    others. Writes calibration.json, which the postprocessor `calibrated_threshold` takes, and the picture
    reliability.png. With --postprocessor, or of a run of `oml train-reranker`, distances are the re-ranked ones, and
    files calibration_reranked.json and reliability_reranked.png: for a `calibrated_threshold` after it in a `chain`.
    Overrides are as in `oml train --help`.

    Examples:

    - `oml calibrate runs/cub-2030-01-01_12-00-00`
    - `oml calibrate runs/cub-2030-01-01_12-00-00 --method platt --fmr 0.01 --fmr 0.001`
    - `oml calibrate runs/cub-2030-01-01_12-00-00 dataset_root=other_data --out other_calibration`
    - `oml calibrate --recipe cub_validate extractor.args.weights=best.ckpt`
    """
    import_from_here()
    source, overrides = split_words(words, recipe)
    with loading():
        from oml.lightning.pipelines.calibrate import calibration_pipeline
        from oml.lightning.pipelines.validate import validation_config_of
        from oml.report.calibration import draw_reliability
    loaded = load_source(source, overrides, validation_config_of)
    config = compose_for(loaded, with_postprocessor(postprocessor, overrides), ["validate"]).config
    calibration = calibration_pipeline(config, method=method, fmr_vals=fmr or _FMRS, top_k=top_k, seed=seed)

    from oml.utils.io import atomic_path, new_folder
    from oml.utils.launched import is_first_process

    if not is_first_process():
        return
    ending = "_reranked" if (is_reranked := bool(config.get("postprocessor"))) else ""
    try:
        if out is None:
            out = Path(source) if is_run(source) else new_folder("runs", time.strftime("calibration-%Y-%m-%d_%H-%M-%S"))
        calibration.save(file := out / f"calibration{ending}.json")
        with atomic_path(picture := out / f"reliability{ending}.png") as path:
            draw_reliability(calibration, title=str(source)).savefig(path, dpi=120)
    except (FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        reason = (error.strerror or str(error)).lower()
        raise typer.BadParameter(f"cannot write to {str(out or 'runs')!r}: {reason}. Name another folder.") from error
    _tell(calibration)
    typer.echo(f"{file}\n{picture}")
    if not is_reranked:
        words = ["oml", "validate", *(["--recipe"] if recipe else []), str(source), *overrides]
        words += ["--postprocessor", "calibrated_threshold", f"postprocessor.args.calibration={file}"]
        typer.echo(f"Try next:\n  {shlex.join([*words, f'postprocessor.args.fmr={calibration.thresholds[0].fmr:g}'])}")


def _tell(calibration: "Calibration") -> None:
    import torch
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, width=1000, soft_wrap=True)  # lines are not broken, whatever the window
    table = Table(box=SIMPLE)
    for heading in ("FMR", "threshold", "probability", "FNMR", "95 % interval", "held out: FMR", "FNMR"):
        table.add_column(heading, justify="right")
    for each in calibration.thresholds:
        probability = calibration.probability(torch.tensor(each.distance, dtype=torch.float64)).item()
        table.add_row(
            f"{each.fmr:g}",
            f"{each.distance:.4f}",
            f"{probability:.3f}",
            f"{each.fnmr:.4f}",
            f"{each.low:.4f} to {each.high:.4f}",
            "" if each.held_out_fmr is None else f"{each.held_out_fmr:.2g}",
            "" if each.held_out_fnmr is None else f"{each.held_out_fnmr:.4f}",
        )
    console.print(table)
    console.print(
        "Pairs nearer than the threshold match. FMR: share of wrong pairs that do; FNMR: of right ones that do not."
    )
    quality, on = calibration.quality, calibration.fitted_on
    assert quality is not None, "results have labels"
    console.print(
        f"Fitted to {on.n_pairs:,} pairs of {on.n_queries:,} queries of {on.n_labels:,} labels and their first "
        f"{on.top_k} results, {on.n_relevant / on.n_pairs:.1%} right.\n"
        f"Judged on {quality.n_pairs:,} pairs of {quality.n_labels:,} labels held out: ECE {quality.ece:.4f} (distance "
        f"scaled to 0 ... 1: {quality.ece_before:.4f}), Brier {quality.brier:.4f} ({quality.brier_before:.4f}), log "
        f"loss {quality.log_loss:.4f}."
    )
    if few := [each for each in calibration.thresholds if each.fmr * each.n_wrong < _FEW]:
        console.print(
            f"A false match rate of {few[0].fmr:g} is {few[0].fmr * few[0].n_wrong:.1f} of {few[0].n_wrong:,} wrong "
            f"pairs. With fewer than {_FEW}, its threshold is not to be relied on."
        )
    if quality.brier > quality.brier_before:
        hint = " Try --method platt, which needs fewer pairs." if calibration.method == "isotonic" else ""
        console.print(f"For labels held out, probabilities are no better than the scaled distance.{hint}")
    if quality.n_labels < _FEW:
        console.print(f"With fewer than {_FEW} labels the intervals are too narrow.")
