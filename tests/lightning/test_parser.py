"""Parts of a training by the config's fields."""

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR, OneCycleLR, ReduceLROnPlateau

from oml.const import CATEGORIES_COLUMN
from oml.datasets.base import DatasetWithLabels
from oml.lightning.pipelines.parser import (
    check_is_config_for_ddp,
    parse_ckpt_callback_from_config,
    parse_engine_params_from_config,
    parse_logger_from_config,
    parse_precision_from_config,
    parse_sampler_from_config,
    parse_scheduler_from_config,
)
from oml.samplers.balance import BalanceSampler
from oml.samplers.category_balance import CategoryBalanceSampler
from oml.utils.download_mock_dataset import download_mock_dataset

LEFT_OUT = object()


def engine(accelerator: Any, devices: Any) -> dict[str, Any]:
    fields = {"accelerator": accelerator, "devices": devices}
    return parse_engine_params_from_config({key: value for key, value in fields.items() if value is not LEFT_OUT})


@pytest.mark.parametrize("accelerator", ["cpu", "gpu", None, "auto", LEFT_OUT])
@pytest.mark.parametrize("devices", [1, 2, [0], [0, 1], [1, 3, 4], None, LEFT_OUT])
@pytest.mark.parametrize("n_gpus", [0, 1, 4])
def test_engine_parameters(accelerator: Any, devices: Any, n_gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The definition, case by case."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: n_gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
    params = engine(accelerator, devices)
    assert set(params) == {"accelerator", "devices", "strategy", "use_distributed_sampler"}
    assert params["use_distributed_sampler"] is False

    assert params["accelerator"] == (accelerator if accelerator in ("cpu", "gpu") else "gpu" if n_gpus else "cpu")
    if isinstance(devices, int):
        expected: Any = devices
    elif isinstance(devices, list):
        expected = len(devices) if params["accelerator"] == "cpu" else devices
    else:
        expected = n_gpus if params["accelerator"] == "gpu" and n_gpus else 1
    assert params["devices"] == expected
    n_devices = len(expected) if isinstance(expected, list) else expected
    assert params["strategy"] == ("ddp" if n_devices > 1 else "auto")
    assert check_is_config_for_ddp(params) == (n_devices > 1)


def test_engine_parameters_of_a_dictconfig() -> None:
    config = OmegaConf.create({"n": 2, "accelerator": "cpu", "devices": [0, "${n}"]})
    assert parse_engine_params_from_config(config)["devices"] == 2


def test_no_device_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"needs one device or more, got devices=\[\]"):
        engine("cpu", [])


@pytest.mark.parametrize(("given", "accelerator", "expected"), [
    (None, "cpu", 32), (32, "cpu", 32), (16, "cpu", "bf16-mixed"), ("16", "cpu", "bf16-mixed"),
    ("bf16-mixed", "cpu", "bf16-mixed"), (16, "gpu", "16-mixed"), ("16-true", "gpu", "16-true"),
])  # fmt: skip
def test_precision(given: Any, accelerator: str, expected: Any) -> None:
    assert parse_precision_from_config({"precision": given, "accelerator": accelerator}) == expected


def test_loggers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    by_default = parse_logger_from_config({"run_dir": tmp_path / "run"})
    assert isinstance(by_default, TensorBoardLogger)
    assert Path(by_default.save_dir) == tmp_path / "run"
    assert Path(str(parse_logger_from_config({"logger": None}).save_dir)) == tmp_path
    chosen = parse_logger_from_config({"logger": {"name": "csv", "args": {"save_dir": "logs"}}, "run_dir": "run"})
    assert isinstance(chosen, CSVLogger)
    assert Path(str(chosen.save_dir)) == tmp_path / "run" / "logs"


def sgd(*rates: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates], lr=1)


def scheduling(name: str, args: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"scheduling": {"scheduler": {"name": name, "args": args or {}}, **more}}


@pytest.mark.parametrize("config", [{}, {"scheduling": None}])
def test_no_scheduler(config: dict[str, Any]) -> None:
    assert parse_scheduler_from_config(config, sgd(0.1)) == {"scheduler": None}


def test_a_scheduler_with_all_its_fields() -> None:
    config = scheduling(
        "reduce_on_plateau", {"patience": 2}, scheduler_interval="epoch", scheduler_frequency=3, monitor_metric="loss"
    )
    parsed = parse_scheduler_from_config(OmegaConf.create(config), sgd(0.1))
    scheduler = parsed.pop("scheduler")
    assert isinstance(scheduler, ReduceLROnPlateau)
    assert scheduler.patience == 2
    assert parsed == {"scheduler_interval": "epoch", "scheduler_frequency": 3, "scheduler_monitor_metric": "loss"}
    parsed = parse_scheduler_from_config(scheduling("multi_step", {"milestones": [2]}), sgd(0.1))
    assert isinstance(parsed.pop("scheduler"), MultiStepLR)
    assert parsed == {"scheduler_interval": "step", "scheduler_frequency": 1, "scheduler_monitor_metric": None}


@pytest.mark.parametrize(
    ("interval", "frequency", "n"), [("step", 1, 40), ("step", 4, 10), ("epoch", 1, 5), ("epoch", 2, 2)]
)
def test_schedules_end_with_the_run(interval: str, frequency: int, n: int) -> None:
    more = {"scheduler_interval": interval, "scheduler_frequency": frequency}
    cosine = parse_scheduler_from_config(scheduling("cosine_annealing", **more), sgd(0.1), 40, 5)["scheduler"]
    assert isinstance(cosine, CosineAnnealingLR)
    assert cosine.T_max == n
    one_cycle = parse_scheduler_from_config(scheduling("one_cycle", **more), sgd(0.1), 40, 5)["scheduler"]
    assert isinstance(one_cycle, OneCycleLR)
    rates = []
    for _ in range(n):
        rates += one_cycle.get_last_lr()
        one_cycle.optimizer.step()
        one_cycle.step()  # never beyond its end, which is an error of torch
    assert max(rates) <= 0.1
    assert one_cycle.get_last_lr()[0] < 1e-6


def test_the_length_of_the_config_comes_first() -> None:
    given = scheduling("cosine_annealing", {"T_max": 7})
    assert parse_scheduler_from_config(given, sgd(0.1), 40, 5)["scheduler"].T_max == 7
    given = scheduling("one_cycle", {"max_lr": 1.0, "epochs": 2, "steps_per_epoch": 3})
    assert parse_scheduler_from_config(given, sgd(0.1), 40, 5)["scheduler"].total_steps == 6


def test_a_length_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(ValueError, match="'one_cycle' needs total_steps: the run's length is not known"):
        parse_scheduler_from_config(scheduling("one_cycle"), sgd(0.1))


@pytest.mark.parametrize("args", [{}, {"max_lr": 0.1}])
def test_groups_keep_their_factor_under_a_schedule(args: dict[str, Any]) -> None:
    optimizer = sgd(0.1, 1.0)
    one_cycle = parse_scheduler_from_config(scheduling("one_cycle", args), optimizer, 10)["scheduler"]
    for _ in range(3):
        small, large = one_cycle.get_last_lr()
        assert large == pytest.approx(10 * small)
        optimizer.step()
        one_cycle.step()
    cyclic = scheduling("cyclic", {"base_lr": 0.01, "max_lr": 0.1})
    assert parse_scheduler_from_config(cyclic, sgd(0.1, 1.0))["scheduler"].get_last_lr() == pytest.approx([0.01, 0.1])


@pytest.fixture
def plain(mock_root: Path) -> DatasetWithLabels:
    train = download_mock_dataset(mock_root)[0]
    return DatasetWithLabels(train.drop(columns=CATEGORIES_COLUMN, errors="ignore"), dataset_root=mock_root)


@pytest.fixture
def categorised(plain: DatasetWithLabels, mock_root: Path) -> DatasetWithLabels:
    table = plain.df.assign(**{CATEGORIES_COLUMN: [f"category {label % 2}" for label in plain.df["label"]]})
    return DatasetWithLabels(table, dataset_root=mock_root)


def test_no_sampler(plain: DatasetWithLabels, categorised: DatasetWithLabels) -> None:
    assert parse_sampler_from_config({"sampler": None}, plain) is None
    assert parse_sampler_from_config({"sampler": None}, categorised) is None


def test_samplers_get_labels_and_the_seed(plain: DatasetWithLabels) -> None:
    def batches(**config: Any) -> list[list[int]]:
        sampler = parse_sampler_from_config({"sampler": {"name": "balance", "args": args}, **config}, plain)
        assert isinstance(sampler, BalanceSampler)
        return list(sampler)

    args = {"n_labels": 2, "n_instances": 2}
    assert batches(seed=3) == batches(seed=3) != batches(seed=4)
    assert all(len(set(plain.get_labels()[batch])) == 2 for batch in batches())
    of_config = batches(seed=3)
    args["seed"] = 3
    assert batches(seed=4) == of_config


def test_samplers_by_categories_need_some(plain: DatasetWithLabels, categorised: DatasetWithLabels) -> None:
    args = {"n_labels": 2, "n_instances": 2, "n_categories": 1}
    for name, more in (("category_balance", {}), ("distinct_category_balance", {"epoch_size": 2})):
        config = {"sampler": {"name": name, "args": {**args, **more}}}
        with pytest.raises(ValueError, match=f"{name!r} needs categories, and the table has no column 'category'"):
            parse_sampler_from_config(config, plain)
        assert parse_sampler_from_config(config, categorised) is not None
    config = {"sampler": {"name": "oml.samplers.category_balance.CategoryBalanceSampler", "args": args}}
    with pytest.raises(ValueError, match="needs categories"):
        parse_sampler_from_config(config, plain)
    assert isinstance(parse_sampler_from_config(config, categorised), CategoryBalanceSampler)


@pytest.mark.parametrize(("monitor", "mode", "at_epoch_end"), [
    ("OVERALL/cmc/1", "max", False), ("other/OVERALL/map/5", "max", False), ("OVERALL/fnmr@fmr/0.01", "min", False),
    ("triplet_loss_epoch", "min", True),
])  # fmt: skip
def test_the_best_checkpoint(
    monitor: str, mode: str, at_epoch_end: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for config in ({}, {"run_dir": tmp_path}, {"run_dir": None}):
        best = parse_ckpt_callback_from_config({"metric_for_checkpointing": monitor, **config})
        assert (best.dirpath, best.filename) == (str(tmp_path / "checkpoints"), "best")
        assert (best.monitor, best.mode, best.save_top_k) == (monitor, mode, 1)
        assert best._save_on_train_epoch_end is at_epoch_end
