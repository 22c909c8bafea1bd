"""Whether this machine has what a config asks for."""

import tempfile
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.accelerators import AcceleratorRegistry

from oml.lightning.pipelines.agreement import tried
from oml.lightning.pipelines.parser import n_processes, parse_engine_params_from_config
from oml.lightning.quiet import quiet_lightning
from oml.registry.arguments import argument_problems
from oml.utils.launched import n_processes_of_launcher

#: arguments of Lightning's Trainer -> the field that says so; "": the pipelines' own
_TRAINER_FIELDS = {
    "accelerator": "accelerator",
    "callbacks": "",
    "check_val_every_n_epoch": "valid_period",
    "default_root_dir": "run_dir",
    "devices": "devices",
    "logger": "logger",
    "max_epochs": "max_epochs",
    "plugins": "",
    "precision": "precision",
}


def machine_problems(config: Mapping[str, Any]) -> list[str]:
    """What is wrong with ``accelerator``, ``devices`` and ``precision``, and the strategy of several processes.

    Args:
        config: with all or some of these.
    """
    problems: list[str] = []
    known = sorted({*AcceleratorRegistry.available_accelerators(), "gpu", "auto"})
    if (name := config.get("accelerator")) not in (None, *known):
        near = get_close_matches(name, known)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}."
        return [f"accelerator: there is no {name!r}; {hint}"]
    engine = tried(problems, "devices", lambda: parse_engine_params_from_config(config))
    if engine is None:
        return problems
    name, devices = engine["accelerator"], engine["devices"]
    kinds = ("cuda", "mps") if name == "gpu" else (name,)
    kind = next((kind for kind in kinds if AcceleratorRegistry[kind]["accelerator"].is_available()), None)
    if kind is None:
        return [f"accelerator: this machine has no {name}. It has accelerator=cpu."]
    ids = list(range(devices)) if isinstance(devices, int) else devices
    n_there = torch.cuda.device_count() if kind == "cuda" else len(ids)
    if lacking := [i for i in ids if i >= n_there]:
        problems.append(f"devices: this machine has {n_there} GPUs, numbered from 0, and lacks {lacking}.")
    n_started, n_nodes = n_processes_of_launcher(), n_processes(config) // len(ids)
    if n_started > 1 and n_started != len(ids) * n_nodes:
        problems.append(
            f"devices: {n_started} processes were started, and there is one for each device: {len(ids)} devices on "
            f"{n_nodes} nodes (lightning_trainer_extra_args.num_nodes) do not fit."
        )
    if (config.get("lightning_trainer_extra_args") or {}).get("strategy") == "fsdp" and config.get("ema_decay"):
        problems.append(
            "ema_decay: averages are of whole parameters, and strategy=fsdp shares them out. Set it to null."
        )
    precision = str(config.get("precision") or 32)
    if kind == "cpu" and precision in ("16-mixed", "16-true"):
        problems.append(f"precision: a CPU has no {precision!r}. It has bf16-mixed and 32.")
    elif kind == "cuda" and precision.startswith("bf16") and not torch.cuda.is_bf16_supported():
        problems.append(f"precision: this GPU has no {precision!r}. It has 16-mixed and 32.")
    elif kind == "mps" and precision.startswith("64"):
        problems.append(f"precision: MPS has no {precision!r}. It has 32.")
    return problems


def trainer_problems(args: Mapping[str, Any], place: str) -> list[str]:
    """What is wrong with further arguments of Lightning's ``Trainer``."""
    problems = [f"{place}.{text}" for text in _not_for_users(args)]
    texts = argument_problems("Lightning's Trainer", pl.Trainer, args)
    problems += [f"{place}: {text}" for text in texts]
    if not problems and args:
        quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
        trainer: dict[str, Any] = {"accelerator": "cpu", "devices": 1, **quiet, **args}
        if args.get("strategy") == "fsdp":  # the pipelines make one of their own of that
            del trainer["strategy"]
        with quiet_lightning():
            tried(problems, place, lambda: pl.Trainer(**trainer))
    return problems


def _not_for_users(args: Mapping[str, Any]) -> Iterator[str]:
    for name in args:
        if field := _TRAINER_FIELDS.get(name):
            yield f"{name}: set the field {field} instead."
        elif field == "":
            yield f"{name}: is up to the pipeline."
    limit = args.get("limit_val_batches")  # 1 is one batch, 1.0 are all
    is_limited = limit is not None and (limit != 1 or isinstance(limit, int))
    if is_limited or args.get("overfit_batches") not in (None, 0, 0.0):
        yield "limit_val_batches, overfit_batches: metrics of a part of the validation would mislead, leave them out."
    if args.get("fast_dev_run"):
        yield "fast_dev_run: there would be neither checkpoints nor metrics, take max_steps: 1 instead."
    if args.get("enable_checkpointing") is False:
        yield "enable_checkpointing: the best and the last checkpoint are kept in any case, so leave it out."


def why_not_writable(folder: Path) -> str | None:
    """Why files cannot be put into a folder, or one that is to be made; ``None`` if they can. Nothing stays there."""
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return f"{folder} cannot be written to ({error.strerror})"
