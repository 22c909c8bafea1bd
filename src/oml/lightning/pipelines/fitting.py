"""What trainings by a config have in common: the run's folder, its checkpoints and its trainer."""

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import Timer
from pytorch_lightning.utilities.rank_zero import rank_zero_info  # pyright: ignore[reportPrivateImportUsage]
from torch.utils.data import DataLoader

from oml.datasets.base import DatasetWithLabels
from oml.lightning.callbacks.checkpoints import LAST, AtomicCheckpointIO, LastCheckpoint, is_of_training, mode_of
from oml.lightning.callbacks.early_stopping import EarlyStopping
from oml.lightning.callbacks.ema import EMACallback
from oml.lightning.callbacks.final_validation import FinalValidation
from oml.lightning.callbacks.metric import MetricValCallback
from oml.lightning.loggers.experiment import finish
from oml.lightning.modules.training import TrainingModule
from oml.lightning.pipelines.parser import (
    CHECKPOINTS_FOLDER,
    initialize_logging,
    n_processes,
    parse_ckpt_callback_from_config,
    parse_engine_params_from_config,
    parse_precision_from_config,
    parse_sampler_from_config,
    parse_strategy_from_config,
    run_folder,
)
from oml.lightning.quiet import quiet_lightning
from oml.lightning.resuming import RandomState, TrainingLoader, training_loader
from oml.metrics.embeddings import EmbeddingMetrics
from oml.metrics.table import METRICS_FILES, write_metrics
from oml.models.meta.backbone import WithBackbone
from oml.utils.io import atomic_path
from oml.utils.launched import is_first_process

_STEPS_BETWEEN_CHECKPOINTS = 500
_STEPS_BETWEEN_LOGS = 50


class TrainingReport(NamedTuple):
    """What came of a training.

    ``best`` is the checkpoint with the best value of ``monitor``, ``last`` the one to resume from; ``score`` is that
    best value. ``files`` are those of the run, by what they are.
    """

    run: Path
    best: Path
    last: Path
    monitor: str
    score: float
    files: dict[str, Path]


def fit(
    config: dict[str, Any],
    loader: TrainingLoader,
    loaders_val: Sequence[DataLoader],
    callbacks_val: Sequence[MetricValCallback],
    make_module: Callable[[int, int | None], TrainingModule],
    further: Sequence[pl.Callback] = (),
) -> TrainingReport:
    """Train and validate a module in the folder of the run, from its last checkpoint on if it resumes.

    Args:
        config: as checked, with ``resume``, ``max_epochs``, ``metric_for_checkpointing`` and what else is of the run.
        loader: of all batches of an epoch.
        loaders_val: of the tables to validate on.
        callbacks_val: with their metrics.
        make_module: of the number of steps of the run, and of its epochs; it has the loaders itself.
        further: callbacks.

    Raises:
        ValueError: if the run ends before its first step.
    """
    run, checkpoint = run_folder(config), _checkpoint_to_resume(config)
    extra = dict(config["lightning_trainer_extra_args"])
    n_batches = len(loader.shared_out(n_processes(config), rank=0))  # for each process
    module = make_module(*_run_length(config, extra, n_batches))
    logger = initialize_logging(config)
    if is_first_process():
        _save_config(config, run)
    if checkpoint is not None and is_first_process():
        _take_along(checkpoint, run)

    best = parse_ckpt_callback_from_config(config)
    metrics = {each.name or "": each.metric for each in callbacks_val if isinstance(each.metric, EmbeddingMetrics)}
    best.on_best = lambda: write_metrics(run, metrics) if is_first_process() else None
    last = LastCheckpoint(run / CHECKPOINTS_FOLDER, config["checkpoint_every_n_steps"] or _STEPS_BETWEEN_CHECKPOINTS)
    averages = [EMACallback(config["ema_decay"])] if config["ema_decay"] else []
    # not by Lightning, which would put it behind the callback that has to know of it
    timers = [Timer(max_time)] if (max_time := extra.pop("max_time", None)) else []
    settings = {
        **parse_engine_params_from_config(config),
        "precision": parse_precision_from_config(config),
        "max_epochs": config["max_epochs"],
        "check_val_every_n_epoch": config["valid_period"],
        "log_every_n_steps": min(_STEPS_BETWEEN_LOGS, n_batches),
        "num_sanity_val_steps": 0,
        "default_root_dir": run,
        "enable_model_summary": False,
        "logger": logger,
        "plugins": [AtomicCheckpointIO()],
        **extra,
        "strategy": _strategy(config, module),
        "callbacks": [
            *averages,
            *further,
            RandomState(),
            *callbacks_val,
            *_early_stopping(config),
            *timers,
            FinalValidation(),
            best,
            last,
        ],
    }
    with quiet_lightning():  # on what there is of hardware
        trainer = pl.Trainer(**settings)
    n_parameters = sum(parameter.numel() for parameter in module.model.parameters())
    by = f" by each of {trainer.world_size} processes" if trainer.world_size > 1 else ""
    rank_zero_info(
        f"{type(module.model).__name__} of {n_parameters:,} parameters learns with {type(module.criterion).__name__}, "
        f"{trainer.max_epochs} epochs of {n_batches} batches{by}; validated on "
        f"{' and '.join(f'{len(each.dataset):,}' for each in loaders_val)} items."  # pyright: ignore[reportArgumentType]
    )
    try:
        trainer.fit(module, ckpt_path=checkpoint)
    finally:
        finish(logger)
    if best.best_model_score is None:
        raise ValueError(f"The training ended before its first step: max_time={max_time} is over.")
    return TrainingReport(
        run=run,
        best=Path(best.best_model_path),
        last=last.path,
        monitor=config["metric_for_checkpointing"],
        score=float(best.best_model_score),
        files={
            "config": run / "config.yaml",
            "best checkpoint": Path(best.best_model_path),
            "last checkpoint": last.path,
            "metrics": run / "metrics.csv",
        },
    )


def train_loader(config: dict[str, Any], train: DatasetWithLabels) -> TrainingLoader:
    """The loader of a training: batches of the sampler or, if there is none, random ones of ``bs_train`` items."""
    sampler = parse_sampler_from_config(config, train)
    return training_loader(train, sampler, config.get("bs_train"), config.get("seed") or 0, config["num_workers"])


def _strategy(config: dict[str, Any], module: TrainingModule) -> Any:
    strategy = parse_strategy_from_config(config)
    stands_still = any(isinstance(each, WithBackbone) and not each.train_backbone for each in module.modules())
    return "ddp_find_unused_parameters_true" if strategy == "ddp" and stands_still else strategy


def _run_length(config: dict[str, Any], extra: dict[str, Any], n_batches: int) -> tuple[int, int | None]:
    """Steps of the optimizer, and epochs."""
    limit = 1.0 if (given := extra.get("limit_train_batches")) is None else given
    n_used = min(n_batches, limit) if isinstance(limit, int) else int(n_batches * limit)
    if n_used < 1:
        raise ValueError(f"limit_train_batches={limit} leaves none of the {n_batches} batches of an epoch.")
    per_epoch = math.ceil(n_used / (extra.get("accumulate_grad_batches") or 1))
    n_epochs, max_steps = config["max_epochs"], extra.get("max_steps") or -1
    n_steps = per_epoch * n_epochs
    if max_steps > 0:
        n_steps = min(n_steps, max_steps)
    return n_steps, min(n_epochs, math.ceil(n_steps / per_epoch))


def _early_stopping(config: dict[str, Any]) -> list[EarlyStopping]:
    asked: dict[str, Any] | None = config["early_stopping"]
    if asked is None:
        return []
    monitor = config["metric_for_checkpointing"]
    how = {"verbose": True, "log_rank_zero_only": True}
    args = {"mode": mode_of(monitor), "check_on_train_epoch_end": is_of_training(monitor), **how}
    return [EarlyStopping(monitor, **{**args, **{key: each for key, each in asked.items() if each is not None}})]


def _checkpoint_to_resume(config: dict[str, Any]) -> Path | None:
    """The checkpoint of ``resume``; a run that was interrupted before its first one starts again."""
    if config["resume"] is None:
        return None
    path = Path(config["resume"])
    if path.is_file():
        return path
    checkpoint = path / CHECKPOINTS_FOLDER / LAST
    if checkpoint.is_file():
        return checkpoint
    rank_zero_info(
        f"{str(path)!r} was interrupted before its first checkpoint: the training starts from the beginning."
    )
    return None


def _take_along(checkpoint: Path, run: Path) -> None:
    """What a run came to so far, if it goes on in another folder."""
    files = {run / CHECKPOINTS_FOLDER / LAST: checkpoint}
    files |= {run / name: checkpoint.parent.parent / name for name in METRICS_FILES}
    for new, old in files.items():
        if old.is_file() and not new.exists():
            with atomic_path(new) as temporary:
                shutil.copyfile(old, temporary)


def _save_config(config: dict[str, Any], run: Path) -> None:
    """The config as YAML; paths as texts. Whoever trains by it starts afresh."""

    def text(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: text(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [text(each) for each in value]
        return str(value) if isinstance(value, Path) else value

    with atomic_path(run / "config.yaml") as temporary:
        OmegaConf.save(OmegaConf.create(text({**config, "resume": None})), temporary)
