"""Training by a config: on the mock data set, with tiny networks."""

import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torchvision.transforms import v2

from oml.configs import ConfigError
from oml.datasets.base import DatasetQueryGallery
from oml.inference.flat import extract_embeddings
from oml.lightning.pipelines.train import TrainingReport, extractor_training_pipeline, get_retrieval_loaders
from oml.losses.triplet import TripletLossWithMiner
from oml.metrics.per_query import ranking_metrics
from oml.registry.models import get_extractor_by_cfg
from oml.registry.transforms import TRANSFORMS_REGISTRY, get_transforms_by_cfg
from oml.retrieval import RetrievalResults
from oml.utils.download_mock_dataset import download_mock_dataset

Train = Callable[..., TrainingReport]


@pytest.fixture(autouse=True)
def _lightning_warns_of_what_tests_want() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        yield


def entity(name: str, /, **args: Any) -> dict[str, Any]:
    return {"name": name, "args": args}


TINY = entity("timm", arch="test_resnet", weights=None, normalise_features=False)
VIT = entity("vit", arch="vitt16", normalise_features=False, weights=None)  # without running statistics
MLP = entity("extractor_with_mlp", mlp_features=[16], weights=None, extractor=TINY)
ARCFACE = entity("arcface", in_features=16, num_classes=4)


@pytest.fixture
def config(mock_root: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "seed": 0, "accelerator": "cpu", "devices": 1, "run_dir": str(tmp_path / "run"),
        "dataset_root": str(mock_root), "dataframe_name": "df.csv", "cache_size": 0, "num_workers": 0, "bs_val": 8,
        "transforms_train": entity("norm_resize_torch", im_size=32),
        "transforms_val": entity("norm_resize_torch", im_size=32),
        "sampler": entity("balance", n_labels=2, n_instances=3), "extractor": TINY,
        "criterion": entity("triplet_with_miner", margin=None, need_logs=True, miner=entity("hard_triplets")),
        "optimizer": entity("sgd", lr=0.01), "metric_args": {"cmc_top_k": [1], "verbose": False},
        "metric_for_checkpointing": "OVERALL/cmc/1", "max_epochs": 2, "valid_period": 1,
        "logger": entity("csv", name="", version="log"),
        "lightning_trainer_extra_args": {
            "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1
        },
    }  # fmt: skip


@pytest.fixture
def train(config: dict[str, Any]) -> Train:
    """Trains by the config with some of its fields, and arguments of the trainer, changed."""

    def run(trainer: dict[str, Any] | None = None, **changes: Any) -> TrainingReport:
        extra = {**config["lightning_trainer_extra_args"], **(trainer or {})}
        return extractor_training_pipeline({**config, "lightning_trainer_extra_args": extra, **changes})

    return run


def log_of(report: TrainingReport) -> pd.DataFrame:
    return pd.read_csv(report.run / "log" / "metrics.csv")


def state(checkpoint: Path) -> dict[str, Any]:
    return torch.load(checkpoint, weights_only=True)


def test_a_run_leaves_its_files(train: Train, tmp_path: Path, mock_root: Path) -> None:
    report = train(logger=None)
    assert report.run == tmp_path / "run"
    names = {str(file.relative_to(report.run)) for file in report.run.rglob("*") if file.is_file()}
    assert {"config.yaml", "metrics.csv", "metrics.json", "checkpoints/best.ckpt", "checkpoints/last.ckpt"} <= names
    assert any(name.startswith("tensorboard/events.out.tfevents") for name in names)
    assert all(file.is_file() for file in report.files.values())
    assert (report.best, report.last) == (report.run / "checkpoints/best.ckpt", report.run / "checkpoints/last.ckpt")
    kept: Any = OmegaConf.load(report.run / "config.yaml")
    assert kept.dataset_root == str(mock_root)
    assert kept.extractor == TINY
    table = pd.read_csv(report.run / "metrics.csv")
    cmc = table[(table["metric"] == "cmc") & (table["k"].astype(float) == 1)]
    assert report.monitor == "OVERALL/cmc/1"
    assert cmc["mean"].item() == pytest.approx(report.score)
    assert state(report.last)["global_step"] == 2 * 2  # epochs x batches
    extractor_training_pipeline(
        {**kept, "run_dir": str(tmp_path / "again"), "max_epochs": 1}
    )  # what it wrote is complete


def test_without_a_run_dir_files_go_where_the_user_is(
    train: Train, config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    del config["lightning_trainer_extra_args"]["log_every_n_steps"]
    report = train(run_dir=None)
    assert report.run == tmp_path
    assert log_of(report)["triplet_loss_step"].notna().sum() == 2  # once an epoch, as epochs are short
    assert (tmp_path / "checkpoints" / "best.ckpt").is_file()
    assert Path.cwd() == tmp_path


@pytest.mark.parametrize(("extractor", "criterion"), [
    (entity("timm", arch="test_vit", weights=None, normalise_features=True), "triplet"),
    (entity("resnet", arch="resnet18", gem_p=3.0, remove_fc=True, normalise_features=True, weights=None), "triplet"),
    (entity("resnet", arch="resnet18", gem_p=None, remove_fc=False, normalise_features=True, weights=None), "arcface"),
    (VIT, "triplet"), (MLP, "triplet"), (MLP, "arcface"),
])  # fmt: skip
def test_best_checkpoints_load_as_weights(
    extractor: dict[str, Any], criterion: str, train: Train, config: dict[str, Any], mock_root: Path
) -> None:
    """The validation's figure comes out again, with an extractor that was built anew."""
    changes = {"criterion": entity("mlp_arcface", mlp_features=[8])} if criterion == "arcface" else {}
    report = train(
        extractor=extractor, max_epochs=1, optimizer=entity("adam", lr=1e-3), metric_for_checkpointing="OVERALL/map/5",
        **changes,
    )  # fmt: skip
    saved = state(report.best)["state_dict"]
    assert {key.split(".")[0] for key in saved} == ({"model", "criterion"} if changes else {"model"})

    again = get_extractor_by_cfg({**extractor, "args": {**extractor["args"], "weights": str(report.best)}})
    for key, value in again.state_dict().items():
        assert torch.equal(value, saved[f"model.{key}"]), key
    dataset = DatasetQueryGallery(
        download_mock_dataset(mock_root)[1], None, mock_root, get_transforms_by_cfg(config["transforms_val"])
    )
    embeddings = extract_embeddings(again, dataset)
    assert embeddings.std(dim=0).max() > 1e-4
    found = ranking_metrics(RetrievalResults.from_dataset(embeddings, dataset, top_k=5), map_top_k=[5])["map"][5]
    assert found.mean().item() == pytest.approx(report.score)


def test_parameters_of_the_criterion_learn_at_their_own_rate(train: Train) -> None:
    def proxies(**changes: Any) -> Tensor:
        return state(train(extractor=MLP, criterion=ARCFACE, **changes).last)["state_dict"]["criterion.weight"]

    at_rest, slow, fast = proxies(criterion_lr_factor=0.0), proxies(), proxies(criterion_lr_factor=10.0)
    moved = [(weight - at_rest).norm().item() for weight in (slow, fast)]
    assert 0 < 5 * moved[0] < moved[1]


def test_sizes_of_the_criterion_come_from_the_data(train: Train) -> None:
    for args in ({}, {"num_classes": None, "in_features": None}):
        report = train(extractor=MLP, criterion=entity("arcface", **args), max_epochs=1)
        assert state(report.best)["state_dict"]["criterion.weight"].shape == (4, 16)


def test_sizes_of_the_criterion_come_from_extractors_that_the_checks_cannot_make(train: Train) -> None:
    report = train(extractor={"name": f"{__package__}.tiny.ReadsNumbers"}, criterion=entity("arcface"), max_epochs=1)
    assert state(report.best)["state_dict"]["criterion.weight"].shape == (4, 8)


def test_a_run_that_is_over_resumes_to_the_same_report(train: Train) -> None:
    report = train()
    before = state(report.last)["state_dict"]
    assert train(resume=str(report.run)) == report
    after = state(report.last)["state_dict"]
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("max_epochs", [2, 3])
def test_a_run_goes_on_in_another_folder(max_epochs: int, train: Train, tmp_path: Path) -> None:
    report, other = train(), tmp_path / "other"
    again = train(resume=str(report.last), run_dir=str(other), max_epochs=max_epochs)
    assert again.run == other
    assert all(file.is_relative_to(other) and file.is_file() for file in again.files.values())
    assert state(again.last)["global_step"] == 2 * max_epochs
    assert again.score >= report.score
    assert (other / "metrics.json").is_file()


def test_a_run_that_goes_on_for_longer_has_the_schedule_of_the_longer_run(train: Train, tmp_path: Path) -> None:
    one_cycle = {"scheduling": {"scheduler": entity("one_cycle"), "scheduler_interval": "step"}}
    first, whole = train(**one_cycle), train(**one_cycle, max_epochs=4, run_dir=str(tmp_path / "whole"))
    rates = log_of(whole)["lr"].dropna().tolist()
    assert log_of(first)["lr"].dropna().tolist() != rates[:4]
    resumed = log_of(train(**one_cycle, max_epochs=4, resume=str(first.run)))["lr"].dropna().tolist()
    assert resumed[5:] == rates[5:]  # the first of its steps has the rate that was saved


def test_a_run_without_a_checkpoint_starts_again(train: Train, tmp_path: Path) -> None:
    report = train()
    shutil.rmtree(report.best.parent)
    again = train(resume=str(report.run))
    assert state(again.last)["global_step"] == 4
    assert log_of(again)["triplet_loss_step"].notna().sum() == 4  # in place of those from before


def test_gradients_clipped_and_accumulated_in_half_precision(train: Train) -> None:
    trainer = {"gradient_clip_val": 0.5, "accumulate_grad_batches": 2}
    schedule = {"scheduler": entity("one_cycle"), "scheduler_interval": "step"}
    report = train(trainer, precision=16, max_epochs=9, scheduling=schedule)
    assert state(report.last)["global_step"] == 9  # a step per two batches
    rates = log_of(report)["lr"].dropna()
    assert rates.max() == pytest.approx(0.01, rel=0.2)
    assert rates.iloc[-1] < 0.1 * rates.max()  # the schedule ends with the run


@pytest.mark.parametrize("monitor", ["triplet_loss_epoch", "OVERALL/cmc/1"])
def test_schedulers_that_watch_a_metric(monitor: str, train: Train, tmp_path: Path) -> None:
    scheduler = entity("reduce_on_plateau", factor=0.1, patience=0, threshold=1e9, mode="max")  # never good enough
    scheduling = {"scheduler": scheduler, "scheduler_interval": "epoch", "monitor_metric": monitor}
    log = log_of(train(scheduling=scheduling, max_epochs=3))
    rates = log["lr"].dropna().tolist()
    assert rates == pytest.approx([0.01] * 4 + [0.001] * 2)  # worse than the first: after the second epoch

    train(scheduling=scheduling, max_epochs=1, run_dir=str(tmp_path / "broken"))  # this is seen before the interruption
    broken = {"run_dir": str(tmp_path / "broken"), "resume": str(tmp_path / "broken")}
    again = log_of(train(scheduling=scheduling, max_epochs=3, **broken))
    assert again["lr"].dropna().tolist() == rates
    assert again["triplet_loss_step"].dropna().tolist() == log["triplet_loss_step"].dropna().tolist()


def test_memory_miners(train: Train) -> None:
    inner = entity("n_hard_triplets", n_positive=1, n_negative=1)
    for miner in (
        entity("triplets_with_memory", bank_size_in_batches=2, tri_expand_k=2),
        entity("miner_with_bank", bank_size_in_batches=2, miner=inner),
    ):
        report = train(criterion=entity("triplet_with_miner", margin=0.2, miner=miner))
        assert np.isfinite(log_of(report)["triplet_loss_step"].dropna()).all()
        assert any("bank" in key for key in state(report.last)["state_dict"])


def test_categories(train: Train) -> None:
    sampler = entity("category_balance", n_labels=2, n_instances=2, n_categories=1)
    table = {"dataframe_name": "df_with_category.csv", "show_dataset_warnings": False}
    smooth = entity("arcface", in_features=16, num_classes=4, smoothing_epsilon=0.2)
    report = train(**table, sampler=sampler, extractor=MLP, criterion=smooth)
    logged = log_of(report).columns
    assert [name for name in logged if name.endswith("/cmc/1") and not name.startswith("OVERALL")]


def test_without_a_sampler(train: Train, config: dict[str, Any]) -> None:
    changes: dict[str, Any] = {"extractor": MLP, "criterion": ARCFACE, "sampler": None}
    report = train(**changes, bs_train=10)
    assert state(report.last)["global_step"] == 2 * (24 // 10)
    loader, loader_val = get_retrieval_loaders({**config, "sampler": None, "bs_train": 10})
    assert [len(batch["labels"]) for batch in loader] == [10, 10]
    assert [len(batch["labels"]) for batch in loader_val] == [8, 4]
    for bs_train in (25, None):
        with pytest.raises(ConfigError, match="bs_train"):
            train(**changes, bs_train=bs_train)
        with pytest.raises(ValueError, match=rf"bs_train in a config, .* than the 24 items there are, got {bs_train}"):
            get_retrieval_loaders({**config, "sampler": None, "bs_train": bs_train})


def test_balanced_loaders(config: dict[str, Any]) -> None:
    loader, _ = get_retrieval_loaders(OmegaConf.create(config))
    for batch in loader:
        assert sorted(torch.unique(batch["labels"], return_counts=True)[1].tolist()) == [3, 3]


def test_boxes_with_transforms_of_the_user(train: Train, mock_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Registered as the program runs, and the root is a Path."""
    made = []

    def mine(size: int) -> nn.Module:
        made.append(size)
        return nn.Sequential(v2.ToImage(), v2.Resize((size, size)), v2.ToDtype(torch.float32, scale=True))

    monkeypatch.setitem(TRANSFORMS_REGISTRY, "mine", mine)
    report = train(
        dataset_root=mock_root, dataframe_name="df_with_bboxes.csv", transforms_train=entity("mine", size=24),
        transforms_val=entity("mine", size=24), show_dataset_warnings=False, log_images=True, logger=None, max_epochs=1,
        metric_args={"verbose": False, "cmc_top_k": [1], "metrics_to_exclude_from_visualization": ["map", "precision"]},
    )  # fmt: skip
    assert made
    assert set(made) == {24}
    assert OmegaConf.load(report.run / "config.yaml").dataset_root == str(mock_root)  # pyright: ignore[reportAttributeAccessIssue]


def test_frozen_epochs(train: Train) -> None:
    def weights(**changes: Any) -> dict[str, Tensor]:
        return state(train(extractor=MLP, criterion=ARCFACE, **changes).last)["state_dict"]

    once, frozen, unfrozen = (
        weights(max_epochs=1, freeze_n_epochs=1),
        weights(freeze_n_epochs=2),
        weights(freeze_n_epochs=1),
    )
    for key in once:
        if key.startswith("model.extractor") and once[key].is_floating_point():
            assert torch.equal(once[key], frozen[key]), key
    assert not torch.equal(once["model.projection.0.weight"], frozen["model.projection.0.weight"])
    assert any(not torch.equal(once[key], unfrozen[key]) for key in once if key.startswith("model.extractor"))


def test_averages_of_weights_are_what_is_kept(train: Train, tmp_path: Path) -> None:
    plain, averaged = train(), train(ema_decay=0.9, run_dir=str(tmp_path / "averaged"))
    kept = state(averaged.last)
    key = next(key for key, value in kept["state_dict"].items() if value.is_floating_point() and "weight" in key)
    assert not torch.equal(kept["state_dict"][key], kept["current_model_state"][key])
    assert torch.equal(kept["current_model_state"][key], state(plain.last)["state_dict"][key])


def test_early_stopping(train: Train) -> None:
    still = {"max_epochs": 20, "optimizer": entity("sgd", lr=0.0), "extractor": VIT}
    report = train(**still, early_stopping={"patience": 2})
    assert state(report.last)["epoch"] == 2  # the first value, and two that are no better
    assert state(report.best)["epoch"] == 0  # of equals the first
    train(**still, early_stopping={"patience": 2}, resume=str(report.run))
    assert state(report.last)["epoch"] == 2  # it had ended
    train(**still, early_stopping={"patience": 3}, resume=str(report.last))
    assert state(report.last)["epoch"] == 3


class Fails(TripletLossWithMiner):
    """At one of its steps."""

    def __init__(self, at: int) -> None:
        super().__init__(margin=None)
        self.at = at

    def forward(self, features: Tensor, labels: Any) -> Tensor:
        self.at -= 1
        if self.at == 0:
            raise RuntimeError("it fails")
        return super().forward(features, labels)


def test_a_run_that_resumes_within_its_last_epoch_is_validated(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = []
    monkeypatch.setattr("oml.lightning.pipelines.fitting.finish", ended.append)  # of loggers
    changes: dict[str, Any] = {"valid_period": 5, "checkpoint_every_n_steps": 1}
    with pytest.raises(RuntimeError, match="it fails"):
        train(**changes, criterion=entity(f"{__name__}.Fails", at=4))
    assert len(ended) == 1
    report = train(**changes, criterion=entity(f"{__name__}.Fails", at=0), resume=str(tmp_path / "run"))
    assert len(ended) == 2
    log = log_of(report)
    assert log.loc[log["OVERALL/cmc/1"].notna(), "step"].tolist() == [3]
    assert report.best.is_file()


@pytest.mark.parametrize(("trainer", "changes", "steps"), [
    ({"max_steps": 1}, {}, [1]),
    ({"max_steps": 3}, {"max_epochs": 9}, [2, 3]),
    ({}, {"max_epochs": 3, "valid_period": 2}, [4, 6]),
    ({}, {"max_epochs": 1, "valid_period": 5}, [2]),
])  # fmt: skip
def test_the_end_of_a_run_is_validated(
    trainer: dict[str, Any], changes: dict[str, Any], steps: list[int], train: Train
) -> None:
    report = train(trainer, **changes)
    log = log_of(report)
    assert [step + 1 for step in log.loc[log["OVERALL/cmc/1"].notna(), "step"]] == steps
    assert report.best.is_file()
    assert state(report.last)["global_step"] == steps[-1]


def test_a_loss_is_watched_where_there_is_a_validation(train: Train) -> None:
    """So that ``metrics.csv`` is of ``best.ckpt``."""
    watched = {"metric_for_checkpointing": "triplet_loss_epoch", "valid_period": 2, "optimizer": entity("sgd", lr=0.0)}
    report = train(**watched, max_epochs=5)
    log = log_of(report).groupby("epoch").max()
    assert log.index[log["OVERALL/cmc/1"].notna()].tolist() == [1, 3, 4]
    assert report.score == pytest.approx(log["triplet_loss_epoch"][[1, 3, 4]].min())
    assert state(report.best)["epoch"] == log["triplet_loss_epoch"][[1, 3, 4]].idxmin()
    assert (report.run / "metrics.csv").is_file()
    report = train(**watched, max_epochs=9, early_stopping={"patience": 1, "min_delta": 9.0})
    assert state(report.last)["epoch"] == 3


def test_a_run_that_is_out_of_time_is_validated(train: Train) -> None:
    report = train({"max_time": {"seconds": 1}}, max_epochs=1000, valid_period=1000)
    log = log_of(report)
    assert log["OVERALL/cmc/1"].notna().sum() == 1
    assert log["step"].iloc[-1] + 1 == log["step"].max() + 1 == state(report.best)["global_step"]
    with pytest.raises(ValueError, match="ended before its first step: max_time=00:00:00:00 is over"):
        train({"max_time": "00:00:00:00"})


def test_further_validation_tables_may_be_watched(train: Train, mock_root: Path) -> None:
    tables = {"boxes": {"dataset_root": str(mock_root), "dataframe_name": "df_with_bboxes.csv"}}
    monitor = "boxes/OVERALL/cmc/1"
    report = train(validation_tables=tables, metric_for_checkpointing=monitor, show_dataset_warnings=False)
    log = log_of(report)
    assert {monitor, "OVERALL/cmc/1"} <= set(log.columns)
    assert report.score == pytest.approx(log[monitor].max())
    assert set(pd.read_csv(report.run / "metrics.csv")["table"].fillna("")) == {"", "boxes"}


def test_a_wrong_config_leaves_nothing(train: Train, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="bs_valid"):
        train(bs_valid=8)
    with pytest.raises(ConfigError, match="no_run"):
        train(resume=str(tmp_path / "no_run"))
    for limit in (0, 0.1):
        with pytest.raises(ValueError, match=rf"limit_train_batches={limit} leaves none of the 2 batches of an epoch"):
            train({"limit_train_batches": limit})
    assert not (tmp_path / "run").exists()
