"""Parts of a training by the config's fields: the engine, loggers, the sampler, the schedule, checkpoints."""

from collections.abc import Mapping
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_info  # pyright: ignore[reportPrivateImportUsage]
from torch.optim import Optimizer

from oml.const import TCfg
from oml.datasets.base import DatasetWithLabels
from oml.interfaces.samplers import IBatchSampler
from oml.lightning.callbacks.checkpoints import BestCheckpoint
from oml.lightning.modules.fsdp import fsdp_strategy
from oml.registry.samplers import SAMPLERS_CATEGORIES_BASED, SAMPLERS_REGISTRY, get_sampler_by_cfg
from oml.registry.schedulers import get_scheduler_by_cfg
from oml.utils.misc import dictconfig_to_dict

CHECKPOINTS_FOLDER = "checkpoints"
_DEFAULT_LOGGER = {"name": "tensorboard", "args": {"name": "tensorboard", "version": ""}}
#: schedules that end: their argument for the number of their steps
_LENGTH_ARGUMENTS = {"one_cycle": "total_steps", "cosine_annealing": "T_max"}


def parse_engine_params_from_config(cfg: TCfg) -> dict[str, Any]:
    """What the config says of the hardware, as arguments of Lightning's ``Trainer``.

    Args:
        cfg: ``accelerator``, by default ``gpu`` if CUDA is there and else ``cpu``; ``devices``, a number or a list of
            ids, by default all GPUs or one CPU. On a CPU, of a list only its length counts.

    Returns:
        ``accelerator``, ``devices``; ``strategy``: ``ddp`` for more than one device, ``auto`` for one;
        ``use_distributed_sampler``: ``False``, for Lightning's would take the place of balanced samplers.

    Example:
        >>> parse_engine_params_from_config({"accelerator": "cpu", "devices": [0, 1]})
        {'accelerator': 'cpu', 'devices': 2, 'strategy': 'ddp', 'use_distributed_sampler': False}
    """
    config: dict[str, Any] = _plain(cfg)
    accelerator, devices = config.get("accelerator"), config.get("devices")
    if accelerator in (None, "auto"):
        accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    if devices in (None, "auto", -1):
        devices = torch.cuda.device_count() if accelerator in ("gpu", "cuda") and torch.cuda.is_available() else 1
    if isinstance(devices, list | tuple) and accelerator == "cpu":
        devices = len(devices)
    n_devices = len(devices) if isinstance(devices, list | tuple) else int(devices)
    if n_devices < 1:
        raise ValueError(f"A training needs one device or more, got devices={config.get('devices')!r}.")
    return {
        "accelerator": accelerator,
        "devices": devices if isinstance(devices, list | tuple) else n_devices,
        "strategy": "ddp" if n_devices > 1 else "auto",
        "use_distributed_sampler": False,
    }


def n_processes(cfg: TCfg) -> int:
    """How many processes a pipeline runs in: one for each of the ``devices``, on all ``num_nodes`` of the trainer.

    Example:
        >>> n_processes({"accelerator": "cpu", "devices": 2, "lightning_trainer_extra_args": {"num_nodes": 4}})
        8
    """
    devices = parse_engine_params_from_config(cfg)["devices"]
    extra: dict[str, Any] = _plain(cfg).get("lightning_trainer_extra_args") or {}
    return (devices if isinstance(devices, int) else len(devices)) * (extra.get("num_nodes") or 1)


def parse_strategy_from_config(cfg: TCfg) -> Any:
    """How processes share the work, for Lightning's ``Trainer``: ``ddp``, unless the config says another.

    ``fsdp``, in ``lightning_trainer_extra_args``, is torch's FSDP2: parameters are shared out too.

    Example:
        >>> parse_strategy_from_config({"accelerator": "cpu", "devices": 2, "freeze_n_epochs": 1})
        'ddp_find_unused_parameters_true'
    """
    config = _plain(cfg)
    asked = (config.get("lightning_trainer_extra_args") or {}).get("strategy")
    if asked == "fsdp":
        return fsdp_strategy(n_processes(cfg))
    strategy = parse_engine_params_from_config(cfg)["strategy"] if asked is None else asked
    if strategy == "ddp" and config.get("freeze_n_epochs"):
        return "ddp_find_unused_parameters_true"  # those that are frozen get no gradients
    return strategy


def check_is_config_for_ddp(params: Mapping[str, Any]) -> bool:
    """Whether engine parameters are of several processes.

    Example:
        >>> check_is_config_for_ddp(parse_engine_params_from_config({"accelerator": "cpu", "devices": 1}))
        False
    """
    return str(params.get("strategy") or "auto").startswith("ddp")


def parse_precision_from_config(cfg: TCfg) -> int | str:
    """The precision for Lightning's ``Trainer``: the config's, 32 by default.

    On a CPU the number 16, which there is for GPUs only, becomes ``bf16-mixed``, with a notice.

    Example:
        >>> parse_precision_from_config({"accelerator": "cpu", "precision": 16})
        'bf16-mixed'
    """
    config = _plain(cfg)
    precision = config.get("precision") or 32
    if str(precision) != "16":
        return precision
    if parse_engine_params_from_config(config)["accelerator"] != "cpu":
        return "16-mixed"
    rank_zero_info("precision=16 is for GPUs; on this CPU it is bf16-mixed.")
    return "bf16-mixed"


def run_folder(cfg: TCfg) -> Path:
    """Where a run's files go: ``run_dir``, or the current folder if there is none."""
    return Path(cfg.get("run_dir") or Path.cwd()).absolute()


def parse_logger_from_config(cfg: TCfg) -> Logger:
    """The logger that ``logger: {name, args}`` describes; TensorBoard, in the run's folder, if there is none.

    With ``resume`` it goes on with the run that the logger of this folder had.

    Raises:
        KeyError, ValueError, ModuleNotFoundError: as :func:`oml.registry.loggers.get_logger_by_cfg`.
    """
    from oml.lightning.loggers.experiment import resume_arguments
    from oml.registry.loggers import get_logger_by_cfg

    config, run = _plain(cfg), run_folder(cfg)
    logger: dict[str, Any] = config.get("logger") or _DEFAULT_LOGGER
    of_run = resume_arguments(logger["name"], run) if config.get("resume") else {}
    return get_logger_by_cfg(logger, save_dir=str(run), **of_run)


def initialize_logging(cfg: TCfg) -> Logger:
    """The config's logger, once it has got the experiment: config, code version and tables.

    See :func:`oml.lightning.loggers.experiment.log_experiment`.
    """
    from oml.lightning.loggers.experiment import log_experiment

    config, logger = _plain(cfg), parse_logger_from_config(cfg)
    further = (config.get("validation_tables") or {}).values()
    main = {"dataset_root": config["dataset_root"], "dataframe_name": config["dataframe_name"]}
    tables = [Path(each["dataset_root"]) / each["dataframe_name"] for each in (main, *({**main, **t} for t in further))]
    log_experiment(logger, config, run_folder(config), tables)
    return logger


def parse_scheduler_from_config(
    cfg: TCfg, optimizer: Optimizer, n_steps: int | None = None, n_epochs: int | None = None
) -> dict[str, Any]:
    """What the config says of the learning rate, as arguments of :class:`ExtractorModule`.

    Args:
        cfg: ``scheduling``, ``null`` for a constant rate, or with ``scheduler: {name, args}``; ``scheduler_interval``,
            ``step`` or ``epoch``; ``scheduler_frequency``; and ``monitor_metric`` for ``reduce_on_plateau``.
        optimizer: whose rate it is. If its groups differ in it, so do they in ``max_lr`` and ``base_lr`` of a
            scheduler, by the same factors, where the config has one number for all.
        n_steps, n_epochs: of the run. Schedules that end, ``one_cycle`` and ``cosine_annealing``, do so with the run
            unless the config says how long they are. The peak of ``one_cycle`` is the optimizer's rate unless the
            config has a ``max_lr``.

    Raises:
        ValueError: if the length of a schedule is known neither from the config nor from the run.
    """
    scheduling: dict[str, Any] | None = _plain(cfg).get("scheduling")
    if not scheduling:
        return {"scheduler": None}
    scheduler = scheduling["scheduler"]
    interval, frequency = scheduling.get("scheduler_interval", "step"), scheduling.get("scheduler_frequency", 1)
    args = dict(scheduler.get("args") or {})

    length = _LENGTH_ARGUMENTS.get(scheduler["name"])
    if length is not None and args.get(length) is None and not {"epochs", "steps_per_epoch"} <= args.keys():
        of_run = n_steps if interval == "step" else n_epochs
        if of_run is None:
            raise ValueError(f"The scheduler {scheduler['name']!r} needs {length}: the run's length is not known here.")
        # one more, for torch counts the rate that follows on the last step as well
        args[length] = max(1, of_run // frequency) + (length == "total_steps")
    rates = [group["lr"] for group in optimizer.param_groups]
    if scheduler["name"] == "one_cycle":
        args.setdefault("max_lr", rates[0])
    for key in ("max_lr", "base_lr"):
        if isinstance(value := args.get(key), int | float) and len(set(rates)) > 1 and rates[0]:
            args[key] = [value * rate / rates[0] for rate in rates]
    return {
        "scheduler": get_scheduler_by_cfg({**scheduler, "args": args}, optimizer=optimizer),
        "scheduler_interval": interval,
        "scheduler_frequency": frequency,
        "scheduler_monitor_metric": scheduling.get("monitor_metric"),
    }


def parse_sampler_from_config(cfg: TCfg, dataset: DatasetWithLabels) -> IBatchSampler | None:
    """The batch sampler that ``sampler: {name, args}`` describes, for the labels of a data set.

    Args:
        cfg: ``sampler``, ``null`` for none; and ``seed``, 0 by default.
        dataset: gets asked for its labels and categories.

    Raises:
        ValueError: if the sampler needs categories and the data set has none; and as the sampler.
    """
    config = _plain(cfg)
    sampler = config.get("sampler")
    if not sampler:
        return None
    label2category = dataset.get_label2category()
    if label2category is None and _needs_categories(sampler["name"]):
        raise ValueError(
            f"The sampler {sampler['name']!r} needs categories, and the table has no column 'category'. Add it, or "
            "take sampler=balance."
        )
    offered: dict[str, Any] = {"labels": dataset.get_labels(), "label2category": label2category}
    if "seed" not in (sampler.get("args") or {}):
        offered["seed"] = config.get("seed") or 0
    return get_sampler_by_cfg(sampler, **offered)


def parse_ckpt_callback_from_config(cfg: TCfg) -> BestCheckpoint:
    """The callback that keeps the best checkpoint by ``metric_for_checkpointing``, as ``checkpoints/best.ckpt``."""
    return BestCheckpoint(run_folder(cfg) / CHECKPOINTS_FOLDER, monitor=cfg["metric_for_checkpointing"])


def _plain(cfg: TCfg | DictConfig) -> dict[str, Any]:
    return dictconfig_to_dict(cfg)  # pyright: ignore[reportArgumentType]


def _needs_categories(name: str) -> bool:
    asked = signature(SAMPLERS_REGISTRY.find(name)).parameters.get("label2category")
    return name in SAMPLERS_CATEGORIES_BASED or (asked is not None and asked.default is Parameter.empty)
