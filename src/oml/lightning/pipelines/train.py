"""Training an extractor by a config."""

import math
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import Timer
from pytorch_lightning.utilities.rank_zero import rank_zero_info  # pyright: ignore[reportPrivateImportUsage]
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from oml.const import LABELS_COLUMN, TCfg
from oml.datasets.base import DatasetQueryGallery, DatasetWithLabels, get_retrieval_datasets
from oml.inference.convolutions import lay_out
from oml.lightning.callbacks.checkpoints import LAST, AtomicCheckpointIO, LastCheckpoint, is_of_training, mode_of
from oml.lightning.callbacks.early_stopping import EarlyStopping
from oml.lightning.callbacks.ema import EMACallback
from oml.lightning.callbacks.final_validation import FinalValidation
from oml.lightning.loggers.experiment import finish
from oml.lightning.modules.extractor import ExtractorModuleDDP
from oml.lightning.pipelines.checks import checked
from oml.lightning.pipelines.parser import (
    CHECKPOINTS_FOLDER,
    initialize_logging,
    n_processes,
    parse_ckpt_callback_from_config,
    parse_engine_params_from_config,
    parse_precision_from_config,
    parse_sampler_from_config,
    parse_scheduler_from_config,
    parse_strategy_from_config,
    run_folder,
)
from oml.lightning.pipelines.schema import TRAINING
from oml.lightning.pipelines.validate import validation_parts
from oml.lightning.quiet import quiet_lightning
from oml.lightning.resuming import RandomState, TrainingLoader, training_loader
from oml.metrics.embeddings import EmbeddingMetrics
from oml.metrics.table import METRICS_FILES, write_metrics
from oml.registry.losses import get_criterion_by_cfg
from oml.registry.models import get_extractor_by_cfg
from oml.registry.optimizers import get_optimizer_by_cfg
from oml.registry.transforms import get_transforms_by_cfg
from oml.utils.io import atomic_path
from oml.utils.launched import is_first_process
from oml.utils.misc import dictconfig_to_dict, load_dotenv, set_global_seed

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


def extractor_training_pipeline(cfg: TCfg) -> TrainingReport:
    """Train an extractor, validate it as it learns, and keep its best checkpoint.

    Everything comes from the config, which is checked before anything is loaded or written; its fields are those of
    ``oml.lightning.pipelines.schema.TRAINING``. The folder of the run, ``run_dir``, by default the current one, gets

    - ``config.yaml``: the config with everything resolved;
    - ``checkpoints/best.ckpt``: of the validation with the best ``metric_for_checkpointing``; the extractor's weights
      are under ``model.``, those of the criterion under ``criterion.``. An extractor takes the path as ``weights``;
    - ``checkpoints/last.ckpt``: to go on from after an interruption, by ``resume=<folder of the run>``;
    - ``metrics.csv``, ``metrics.json``: the metrics of ``best.ckpt`` with intervals;
    - the files of the logger.

    A run is validated every ``valid_period`` epochs and once more where it ends, be it by ``max_steps`` or
    ``max_time``. With ``accumulate_grad_batches`` in ``lightning_trainer_extra_args``, gradients are added up over
    batches, but miners and losses see one batch at a time: accumulation makes up for a small batch in the noise of its
    gradient, not in the choice of negatives. For that there is :class:`oml.models.gradient_cache.GradientCache`.

    Raises:
        ConfigError: with all that is wrong with the config.
        ValueError: if the parts do not fit each other.
    """
    load_dotenv()  # keys of loggers may be in it
    cfg = checked(cfg, TRAINING)
    config: dict[str, Any] = dictconfig_to_dict(cfg)
    run = run_folder(config)
    checkpoint = _checkpoint_to_resume(config)
    set_global_seed(config["seed"])

    train, validation = _datasets(config)
    loader = _train_loader(config, train)
    loaders_val, callbacks_val = validation_parts(config, validation)
    extra = dict(config["lightning_trainer_extra_args"])
    n_batches = len(loader.shared_out(n_processes(config), rank=0))  # for each process
    module = _module(config, train, (loader, loaders_val), *_run_length(config, extra, n_batches))
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
        "strategy": parse_strategy_from_config(config),
        "callbacks": [
            *averages,
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


def get_retrieval_loaders(cfg: TCfg) -> tuple[DataLoader, DataLoader]:
    """The loaders of the train and the validation part of the config's table.

    The train loader has the batches of the ``sampler``; without one, random ones of ``bs_train`` items, and what is
    left over at the end of an epoch is dropped.

    Args:
        cfg: fields of a training: ``dataset_root``, ``dataframe_name``, ``transforms_train``, ``transforms_val``,
            ``sampler`` or ``bs_train``, ``bs_val``, ``num_workers``; and maybe ``cache_size``, ``seed`` and
            ``show_dataset_warnings``.

    Raises:
        ValueError: if there is no sampler and the train part is smaller than a batch; TableErrors are of this kind.
    """
    config: dict[str, Any] = dictconfig_to_dict(cfg)  # pyright: ignore[reportArgumentType]
    train, validation = _datasets(config)
    return _train_loader(config, train), validation_parts({**config, "validation_tables": None}, validation)[0][0]


def _datasets(config: dict[str, Any]) -> tuple[DatasetWithLabels, DatasetQueryGallery]:
    return get_retrieval_datasets(
        dataset_root=config["dataset_root"],
        dataframe_name=config["dataframe_name"],
        transforms_train=get_transforms_by_cfg(config["transforms_train"]),
        transforms_val=get_transforms_by_cfg(config["transforms_val"]),
        cache_size=config.get("cache_size") or 0,
        verbose=config.get("show_dataset_warnings", True),
    )


def _train_loader(config: dict[str, Any], train: DatasetWithLabels) -> TrainingLoader:
    sampler = parse_sampler_from_config(config, train)
    return training_loader(train, sampler, config.get("bs_train"), config.get("seed") or 0, config["num_workers"])


def _module(
    config: dict[str, Any],
    train: DatasetWithLabels,
    loaders: tuple[DataLoader, list[DataLoader]],
    n_steps: int,
    n_epochs: int | None,
) -> ExtractorModuleDDP:
    extractor = lay_out(get_extractor_by_cfg(config["extractor"]))
    criterion = _criterion(config["criterion"], train, extractor.feat_dim)
    optimizer = _optimizer(config, extractor, criterion)
    return ExtractorModuleDDP(
        *loaders,
        extractor=extractor,
        criterion=criterion,
        optimizer=optimizer,
        freeze_n_epochs=config["freeze_n_epochs"],
        global_batch=config["global_batch"],
        **parse_scheduler_from_config(config, optimizer, n_steps, n_epochs),
    )


def _criterion(config: dict[str, Any], train: DatasetWithLabels, in_features: int) -> nn.Module:
    """The loss; its sizes, if the config leaves them out, are those of the data and the extractor."""
    sizes = {"num_classes": train.df[LABELS_COLUMN].nunique(), "in_features": in_features}
    left_out = {key: size for key, size in sizes.items() if not _has(config, key)}
    return get_criterion_by_cfg(config, label2category=train.get_label2category(), **left_out)


def _has(config: dict[str, Any], key: str) -> bool:
    """Whether a config, or one within it, has a value for the argument."""
    args = config.get("args") or {}
    inner = [each for value in args.values() for each in (value if isinstance(value, list) else [value])]
    return args.get(key) is not None or any(_has(each, key) for each in inner if isinstance(each, dict))


def _optimizer(config: dict[str, Any], extractor: nn.Module, criterion: nn.Module) -> Optimizer:
    """With a group of parameters of the extractor and, if there are any, one of those of the criterion."""
    groups = [{"params": params} for each in (extractor, criterion) if (params := list(each.parameters()))]
    if len(groups) == 1:  # not all optimizers know of groups
        return get_optimizer_by_cfg(config["optimizer"], params=groups[0]["params"])
    optimizer = get_optimizer_by_cfg(config["optimizer"], params=groups)
    optimizer.param_groups[-1]["lr"] *= config["criterion_lr_factor"]
    return optimizer


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
