"""What loggers get to know of an experiment, and how runs that resume find theirs."""

import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from functools import singledispatch
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from pytorch_lightning.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

import oml
from oml.const import TCfg
from oml.lightning.loggers.clearml import ClearMLLogger
from oml.lightning.loggers.neptune import NeptuneLogger
from oml.lightning.loggers.resilience import attempt, keep_training
from oml.utils.io import atomic_path, calc_file_hash
from oml.utils.misc import dictconfig_to_dict, flatten_dict

#: in the folder of a run: class of the logger -> arguments by which it goes on with the run that it has
LOGGER_FILE = "logger.json"
_ID_ARGUMENTS = {
    ClearMLLogger: "task_id",
    CSVLogger: "version",
    MLFlowLogger: "run_id",
    NeptuneLogger: "with_id",
    TensorBoardLogger: "version",
    WandbLogger: "id",
}


@rank_zero_only
def log_experiment(logger: Logger, cfg: TCfg, run_dir: str | Path, tables: Sequence[str | Path] = ()) -> None:
    """Start the logger's run, and log what the experiment is: config, versions of the code, and tables.

    Neptune gets files too, as in earlier versions: code, tables, and the transforms of Albumentations; and tags.

    What goes wrong at this start is an error. From then on the logger stops no training, see
    :func:`oml.lightning.loggers.resilience.keep_training`. Which run it has is kept for :func:`resume_arguments`.

    Args:
        logger: of Lightning.
        cfg: becomes flat: ``extractor|args|arch``.
        run_dir: folder of the run; its name is logged as ``dir``.
        tables: files; their SHA-256 are logged.

    Raises:
        ValueError: The logger does not start; the text has the reason.
    """
    config, run_dir = dictconfig_to_dict(cfg), Path(run_dir).absolute()  # pyright: ignore[reportArgumentType]
    known = flatten_dict(config, sep="|") | {"dir": run_dir.name} | _versions()
    known |= {f"tables|{Path(table).name}|sha256": calc_file_hash(table, "sha256") for table in tables}
    try:
        _log_config(logger, known)
        remember(logger, run_dir)
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f"{type(logger).__name__} does not start: {type(error).__name__}: {error}") from error
    keep_training(logger)
    if isinstance(logger, NeptuneLogger):
        attempt(logger, _upload, logger, config, run_dir, tables)


@singledispatch
def _log_config(logger: Logger, known: dict[str, Any]) -> None:
    logger.log_hyperparams(known)


@_log_config.register
def _(logger: TensorBoardLogger, known: dict[str, Any]) -> None:
    """As a text: hyper-parameters want a metric beside them, which there is none of yet."""
    text = yaml.safe_dump(json.loads(json.dumps(known, default=str)), sort_keys=False)
    logger.experiment.add_text("config", "".join(f"    {line}" for line in text.splitlines(keepends=True)))


def _versions() -> dict[str, Any]:
    """Of the packages, and of the repository in which the user stands, if it is one."""
    known: dict[str, Any] = {f"code|{name}": version(name) for name in ("torch", "torchvision", "pytorch-lightning")}
    known |= {"code|oml": oml.__version__, "code|python": platform.python_version()}
    if commit := _git("rev-parse", "HEAD"):
        known |= {"code|commit": commit, "code|changed": bool(_git("status", "--porcelain", "--untracked-files=no"))}
    return known


def _git(*arguments: str) -> str | None:
    command = ["git", "--no-optional-locks", *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
    except (OSError, subprocess.CalledProcessError):  # no git, or no repository
        return None


def _upload(logger: NeptuneLogger, config: Mapping[str, Any], run_dir: Path, tables: Sequence[str | Path]) -> None:
    from neptune.types import File

    run = logger.experiment
    tags = [*(config.get("tags") or ()), config.get("postfix"), run_dir.name]
    run["sys/tags"].add([str(tag) for tag in tags if tag])
    for i, table in enumerate(tables):
        run[f"dataset_{i + 1}" if i else "dataset"].upload(str(table))
    tracked = _git("ls-files", "--", "*.py", "*.yaml")
    files = [Path(line) for line in tracked.splitlines()] if tracked else [*Path().glob("*.py"), *Path().glob("*.yaml")]
    if files := [str(file) for file in files if file.is_file()]:
        run["code"].upload_files(files)
    for key, value in config.items():
        if "transforms" in key and isinstance(value, Mapping) and (text := _albumentations_yaml(value)):
            run[key].upload(File.from_content(text, extension="yaml"))


def _albumentations_yaml(config: Mapping[str, Any]) -> str | None:
    from oml.registry.transforms import get_transforms_by_cfg

    transforms: Any = get_transforms_by_cfg(config)
    if not type(transforms).__module__.startswith("albumentations"):
        return None
    return yaml.safe_dump(json.loads(json.dumps(transforms.to_dict(), default=str)), sort_keys=False)


def remember(logger: Logger, run_dir: str | Path) -> None:
    """Keep in the folder of a run which one of its service the logger has, for :func:`resume_arguments`."""
    file = Path(run_dir) / LOGGER_FILE
    known = _known(file) | {type(logger).__name__: _identity(logger)}
    with atomic_path(file) as path:
        path.write_text(json.dumps(known, indent=2))


def resume_arguments(name: str, run_dir: str | Path) -> dict[str, Any]:
    """Arguments by which a new logger goes on with the run of the one before, for ``get_logger_by_cfg``.

    None, so that a new run starts, if ``run_dir`` knows of no such logger, or the run was offline and of Neptune or
    ClearML, which have no id for it. Steps between the last checkpoint and a kill are logged again: ``csv`` replaces
    them, others have them twice.

    Args:
        name: of the logger, as in the config.
        run_dir: folder of the run.
    """
    from oml.registry.loggers import LOGGERS_REGISTRY

    return _known(Path(run_dir) / LOGGER_FILE).get(LOGGERS_REGISTRY.find(name).__name__, {})


def _known(file: Path) -> dict[str, dict[str, Any]]:
    return json.loads(file.read_text()) if file.is_file() else {}


def _identity(logger: Logger) -> dict[str, Any]:
    argument = next((argument for kind, argument in _ID_ARGUMENTS.items() if isinstance(logger, kind)), None)
    return {} if argument is None or logger.version is None else {argument: logger.version}


def finish(logger: Logger) -> None:
    """End the run of a logger, so that the next one in this process gets a run of its own."""
    if isinstance(logger, NeptuneLogger | ClearMLLogger):
        attempt(logger, logger.close)
    elif isinstance(logger, WandbLogger) and logger.version is not None:
        attempt(logger, logger.experiment.finish)
