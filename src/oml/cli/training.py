"""What the commands that train share: a config, a folder for the run, the training, and what came of it."""

import os
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oml.cli.composing import (
    best_pipeline,
    compose_for,
    fields_of,
    import_from_here,
    is_run,
    load_source,
    loading,
    pipelines,
    split_words,
)
from oml.utils.launched import RUN_FOLDER_VARIABLE, is_first_process, n_processes_of_launcher

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from oml.lightning.pipelines.fitting import TrainingReport
    from oml.lightning.pipelines.schema import Pipeline

_COMMANDS = ("train", "train-reranker")

Resume = Annotated[Path | None, typer.Option(metavar="RUN", help="Folder of an interrupted run to go on with.")]
Multirun = Annotated[
    bool, typer.Option("--multirun", "-m", help="Train once for each choice of overrides such as seed=0,1,2.")
]


def train_by(
    command: str,
    words: Sequence[str] | None,
    recipe: str | None,
    resume: Path | None,
    multirun: bool,
    of_run: Callable[[Path], Any] | None = None,
) -> None:
    """Do what a command says.

    Args:
        command: its name, which is that of a pipeline.
        words: the source of the config and the overrides, as they stand on the command line.
        recipe, resume, multirun: its options.
        of_run: makes the config out of the folder of a run that is named as the source, see :func:`load_source`.
    """
    from omegaconf import open_dict

    import_from_here()
    source, overrides = split_words(words, recipe, resume)
    if resume is not None:
        _check_resumable(resume, multirun)
    loaded = load_source(source, overrides, None if resume else of_run)
    if multirun:
        _sweep(command, loaded, overrides)
        return
    composed = compose_for(loaded, overrides, [command])
    config = composed.config
    checked, run = _load(composed.pipeline)
    with open_dict(config):
        if resume is not None:
            for name in set(config) - fields_of([command]):  # other fields referred to it, when it was a recipe's
                del config[name]
            config.resume = str(resume)
            folder = nullcontext(resume)
            checked(config, composed.pipeline)
        else:
            folder = _run_folder(checked(config, composed.pipeline), composed.folder, Path(source).stem, command)
        with folder as path, _told_how_to_go_on(path, command):
            config.run_dir = str(path)
            report = run(config)
    if is_first_process():
        _show(report, command)


def _load(pipeline: "Pipeline") -> tuple[Callable[..., "DictConfig"], Callable[["DictConfig"], Any]]:
    """What checks a config, and the function of the pipeline."""
    # see demo.py
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    with loading():
        from oml.lightning.pipelines import schema
        from oml.lightning.pipelines.checks import checked

        if pipeline is schema.TRAINING:
            from oml.lightning.pipelines.train import extractor_training_pipeline as run
        else:
            from oml.lightning.pipelines.train_postprocessor import postprocessor_training_pipeline as run
    return checked, run


def _check_resumable(folder: Path, multirun: bool) -> None:
    if multirun:
        raise typer.BadParameter("--resume goes on with one run, --multirun makes new ones; give one of them.")
    if not is_run(folder):
        what = "has no config.yaml" if folder.is_dir() else "is no folder"
        raise typer.BadParameter(f"{str(folder)!r} {what}, so it is no run to resume.")


@contextmanager
def _run_folder(config: "DictConfig", of_hydra: str | None, name: str, command: str) -> Iterator[Path]:
    """A folder for a new run. If nothing comes to be in it, it does not stay, and what was raised is a ConfigError."""
    from oml.configs import ConfigError
    from oml.utils.io import new_folder

    wanted = config.get("run_dir") or config.get("hydra_dir") or of_hydra
    if wanted is None and n_processes_of_launcher() > 1:
        raise ConfigError("run_dir: several processes need one folder for all. Name it by run_dir=...")
    if not is_first_process():  # the first one sees to the folder, whose name may have the time in it
        yield Path(os.environ.get(RUN_FOLDER_VARIABLE) or wanted or ".")
        return
    folder = Path(wanted or Path("runs", f"{config.get('postfix') or name}-{time.strftime('%Y-%m-%d_%H-%M-%S')}"))
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        if wanted:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        else:
            folder = new_folder(folder.parent, folder.name)
            made = [folder, *(path for path in made if path in folder.parents)]
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"cannot write to {str(folder)!r}: {reason}. Name another folder by run_dir=...") from error
    if is_run(folder) or (folder / "checkpoints").exists():
        hint = f"Name another folder, or go on by: oml {command} --resume {_as_typed(folder)}"
        raise ConfigError(f"{str(folder)!r} has a run already. {hint}")
    try:
        os.environ[RUN_FOLDER_VARIABLE] = str(folder)
        yield folder
    except (OSError, ValueError, TypeError, KeyError, ImportError, NotImplementedError) as error:
        if any(folder.iterdir()):
            raise
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        raise ConfigError(" ".join(str(text).split())) from error
    finally:
        with suppress(OSError):
            for path in made:
                path.rmdir()  # as long as they are empty


@contextmanager
def _told_how_to_go_on(folder: Path, command: str) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        if is_first_process() and (folder / "checkpoints" / "last.ckpt").exists():
            typer.echo(f"It goes on from its last checkpoint by: oml {command} --resume {_as_typed(folder)}", err=True)
        if isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt):
            raise typer.Abort from error  # of that Lightning makes an exit
        raise


def _sweep(command: str, source: Any, overrides: Sequence[str]) -> None:
    """A multirun, once the configs of all its jobs were checked."""
    from oml.configs import ConfigError
    from oml.configs.composing import multirun, sweep_overrides

    jobs = sweep_overrides(overrides)
    found: dict[str, list[list[str]]] = {}
    for job in jobs:
        for finding in _problems(command, source, job):
            found.setdefault(finding, []).append(job)
    of_all = set.intersection(*map(set, jobs))
    where = {text: " ".join(each for each in of[0] if each not in of_all) for text, of in found.items()}
    if found:
        raise ConfigError(text if len(of) == len(jobs) else f"{where[text]}: {text}" for text, of in found.items())
    multirun(source, overrides, _job, fields_of([command]))


def _problems(command: str, source: Any, overrides: Sequence[str]) -> list[str]:
    from oml.configs import ConfigError

    try:
        composed = compose_for(source, overrides, [command])
        config = _load(composed.pipeline)[0](composed.config, composed.pipeline)
    except ConfigError as error:
        return error.findings
    from oml.lightning.pipelines.parser import n_processes

    n = n_processes(config)  # each of which would start the multirun again
    return [f"devices: a job of --multirun is one process, not {n}. Take devices=1, or start runs one by one."][: n - 1]


def _job(config: "DictConfig") -> float:
    """A job of a multirun, maybe in another process; returns the score, for sweepers that optimise."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import open_dict

    import_from_here()
    folder = Path(HydraConfig.get().runtime.output_dir)
    with open_dict(config):
        config.run_dir = str(folder)
    pipeline = best_pipeline(config, _COMMANDS)
    (command,) = (name for name in _COMMANDS if pipelines()[name] is pipeline)
    _, run = _load(pipeline)
    try:
        with _told_how_to_go_on(folder, command):
            report = run(config)
    except Exception as error:  # Hydra goes on with the other jobs, and raises the first error at the end
        typer.echo(f"{' '.join(HydraConfig.get().overrides.task)}: {' '.join(str(error).split())}", err=True)
        raise
    _show(report, command)
    return report.score


def _show(report: "TrainingReport", command: str) -> None:
    """What came of a run."""
    from oml.metrics.table import print_metrics_table, read_metrics

    typer.echo("\nMetrics of the best checkpoint")
    print_metrics_table(read_metrics(report.run))
    run = _as_typed(report.run)
    typer.echo(f"\nIn {run}: {', '.join(str(path.relative_to(report.run)) for path in report.files.values())}")
    further = {
        "train": f"  oml validate {run}\n  oml train-reranker {run}\n  oml predict {run} data_dir=FOLDER",
        "train-reranker": f"  oml validate {run}",
    }
    typer.echo(f"Try next:\n{further[command]}")


def _as_typed(path: Path) -> str:
    """A path in a command of the shell."""
    return shlex.quote(os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path))
