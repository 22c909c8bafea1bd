"""Training and validation under Lightning, on the mock data set with a tiny network."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from oml.datasets.base import DatasetQueryGallery, DatasetWithLabels
from oml.interfaces.models import IExtractor
from oml.lightning.callbacks.metric import MetricValCallback
from oml.lightning.modules.extractor import ExtractorModule
from oml.losses.arcface import ArcFaceLoss
from oml.losses.contrastive import SupConLoss
from oml.losses.triplet import TripletLossWithMiner
from oml.metrics.embeddings import EmbeddingMetrics
from oml.models.utils import load_weights
from oml.samplers.balance import BalanceSampler
from oml.utils.download_mock_dataset import download_mock_dataset


class Tiny(IExtractor):
    """8 numbers per image."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 5, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    @property
    def feat_dim(self) -> int:
        return 8

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@pytest.fixture(autouse=True)
def _lightning_warns_of_what_tests_want() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        yield


@pytest.fixture
def train_loader(mock_root: Path) -> DataLoader:
    train = DatasetWithLabels(download_mock_dataset(mock_root)[0], dataset_root=mock_root)
    return DataLoader(train, batch_sampler=BalanceSampler(train.get_labels(), n_labels=2, n_instances=3))


@pytest.fixture
def val_loader(mock_root: Path) -> DataLoader:
    return DataLoader(DatasetQueryGallery(download_mock_dataset(mock_root)[1], dataset_root=mock_root), batch_size=5)


def module(lr: float = 0.01, **kwargs: Any) -> ExtractorModule:
    torch.manual_seed(0)
    extractor = Tiny()
    optimizer = torch.optim.SGD(extractor.parameters(), lr=lr)
    return ExtractorModule(extractor, TripletLossWithMiner(margin=None, need_logs=True), optimizer, **kwargs)


def trainer(folder: Path, **kwargs: Any) -> pl.Trainer:
    settings = {
        "accelerator": "cpu", "max_epochs": 2, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": folder,
    }  # fmt: skip
    return pl.Trainer(**(settings | kwargs))


def metric(**kwargs: Any) -> EmbeddingMetrics:
    return EmbeddingMetrics(extra_keys=("paths",), cmc_top_k=(1, 5), verbose=False, **kwargs)


def test_fit_logs_losses_and_metrics(train_loader: DataLoader, val_loader: DataLoader, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name=None, version="log")
    callback = MetricValCallback(metric())
    pl_module = module()
    before = [parameter.clone() for parameter in pl_module.parameters()]
    trainer(tmp_path, callbacks=[callback], logger=logger, log_every_n_steps=1).fit(pl_module, train_loader, val_loader)
    assert any((old != new).any() for old, new in zip(before, pl_module.parameters(), strict=True))

    log = pd.read_csv(tmp_path / "log" / "metrics.csv")
    for name in ("triplet_loss_step", "triplet_loss_epoch", "active_tri", "pos_dist", "OVERALL/cmc/1", "OVERALL/map/5"):
        assert log[name].notna().any(), name
    assert log["OVERALL/cmc/1"].dropna().iloc[-1] == pytest.approx(callback.metric.metrics["OVERALL"]["cmc"][1].item())  # pyright: ignore[reportAttributeAccessIssue]
    assert log["OVERALL/cmc/1"].notna().sum() == 2  # once an epoch: the sanity check is passed over


def test_validation_agrees_with_a_plain_loop(val_loader: DataLoader, tmp_path: Path) -> None:
    pl_module, plain = module(), metric()
    plain.setup(len(val_loader.dataset))  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        for batch in val_loader:
            plain.update_data({**batch, "embeddings": pl_module.model(batch["input_tensors"])})
    plain.compute_metrics()
    logged = trainer(tmp_path, callbacks=[MetricValCallback(metric())]).validate(pl_module, val_loader, verbose=False)[
        0
    ]
    assert logged["OVERALL/map/5"] == pytest.approx(plain.metrics["OVERALL"]["map"][5].item())
    assert logged["OVERALL/pcf/0.5"] == pytest.approx(plain.metrics["OVERALL"]["pcf"][0.5].item())


def test_two_loaders_are_told_apart(val_loader: DataLoader, tmp_path: Path) -> None:
    callbacks = [MetricValCallback(metric(), loader_idx=i) for i in range(2)]
    logged = trainer(tmp_path, callbacks=callbacks).validate(module(), [val_loader, val_loader], verbose=False)
    assert logged[0]["OVERALL/cmc/1/dataloader_idx_0"] == logged[1]["OVERALL/cmc/1/dataloader_idx_1"]


def test_named_loaders_are_told_apart(val_loader: DataLoader, tmp_path: Path) -> None:
    callback = MetricValCallback(metric(), loader_idx=1)
    loaders = {"first": val_loader, "second": val_loader}
    logged = trainer(tmp_path, callbacks=[callback]).validate(module(), loaders, verbose=False)
    assert "OVERALL/cmc/1/dataloader_idx_1" in logged[1]


def test_named_metrics_are_told_apart_by_their_names(val_loader: DataLoader, tmp_path: Path) -> None:
    metrics = [metric(metrics_to_exclude_from_visualization=["cmc", "precision"]) for _ in range(2)]
    callbacks = [MetricValCallback(metrics[i], True, loader_idx=i, name=name) for i, name in enumerate([None, "other"])]
    checkpoints = ModelCheckpoint(tmp_path, monitor="other/OVERALL/cmc/1", mode="max")
    logger = CSVLogger(tmp_path, name=None, version="log")
    logged = trainer(tmp_path, callbacks=[*callbacks, checkpoints], logger=logger, enable_checkpointing=True).validate(
        module(), [val_loader, val_loader], verbose=False
    )
    assert "OVERALL/cmc/1/dataloader_idx_0" in logged[0]
    assert logged[1]["other/OVERALL/cmc/1"] == logged[0]["OVERALL/cmc/1/dataloader_idx_0"]
    title = "top 5 worst by OVERALL_map_5"
    assert (tmp_path / "log" / "image_logs" / title / "0.png").is_file()
    assert (tmp_path / "log" / "image_logs" / "other" / title / "0.png").is_file()


def test_pictures_are_closed(val_loader: DataLoader, tmp_path: Path) -> None:
    """Those of pyplot stay in memory otherwise, more with each epoch."""

    class Drawing(EmbeddingMetrics):
        def visualize(self) -> tuple[list[Figure], list[str]]:
            return [plt.figure()], ["mine"]

    callback = MetricValCallback(Drawing(extra_keys=("paths",), verbose=False), log_images=True)
    logger = CSVLogger(tmp_path, name=None, version="log")
    trainer(tmp_path, callbacks=[callback], logger=logger).validate(module(), val_loader, verbose=False)
    assert (tmp_path / "log" / "image_logs" / "mine" / "0.png").is_file()
    assert plt.get_fignums() == []


def test_a_loader_that_is_not_there_is_an_error(val_loader: DataLoader, tmp_path: Path) -> None:
    """Its metric would be missing, and nothing would tell."""
    callback = MetricValCallback(metric(), loader_idx=1)
    with pytest.raises(ValueError, match="loader_idx=1, the trainer has 1 validation loaders"):
        trainer(tmp_path, callbacks=[callback]).validate(module(), val_loader, verbose=False)


def test_steps_must_return_batches(val_loader: DataLoader, tmp_path: Path) -> None:
    pl_module = module()
    pl_module.validation_step = lambda *_: None  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(TypeError, match="needs validation steps that return their batch .* got NoneType"):
        trainer(tmp_path, callbacks=[MetricValCallback(metric())]).validate(pl_module, val_loader, verbose=False)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_validation_in_half_precision(precision: str, val_loader: DataLoader, tmp_path: Path) -> None:
    plain, half = (
        trainer(tmp_path, callbacks=[MetricValCallback(metric())], precision=asked).validate(
            module(), val_loader, verbose=False
        )[0]
        for asked in ("32-true", precision)
    )
    assert half == pytest.approx(plain, abs=0.2)


@pytest.mark.parametrize("samples_in_getitem", [2, 3])
def test_a_wrong_count_is_an_error(samples_in_getitem: int, val_loader: DataLoader, tmp_path: Path) -> None:
    callback = MetricValCallback(metric(), samples_in_getitem=samples_in_getitem)
    with pytest.raises(ValueError, match=rf"EmbeddingMetrics expected {12 * samples_in_getitem} items .* 12 came"):
        trainer(tmp_path, callbacks=[callback]).validate(module(), val_loader, verbose=False)


def test_a_part_of_the_data_is_an_error(val_loader: DataLoader, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected 12 items .* 5 came"):
        trainer(tmp_path, callbacks=[MetricValCallback(metric())], limit_val_batches=1).validate(
            module(), val_loader, verbose=False
        )


def test_the_best_checkpoint_is_found_and_loads(
    train_loader: DataLoader, val_loader: DataLoader, tmp_path: Path
) -> None:
    checkpoints = ModelCheckpoint(tmp_path, filename="best", monitor="OVERALL/cmc/1", mode="max")
    pl_module = module()
    trainer(
        tmp_path, callbacks=[MetricValCallback(metric()), checkpoints], enable_checkpointing=True, max_epochs=1
    ).fit(pl_module, train_loader, val_loader)
    assert checkpoints.best_model_path == str(tmp_path / "best.ckpt")
    extractor = Tiny()
    load_weights(extractor, tmp_path / "best.ckpt")
    for ours, theirs in zip(extractor.parameters(), pl_module.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_images_reach_tensorboard(val_loader: DataLoader, tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="log")
    callback = MetricValCallback(metric(metrics_to_exclude_from_visualization=["cmc", "precision"]), log_images=True)
    trainer(tmp_path, callbacks=[callback], logger=logger).validate(module(), val_loader, verbose=False)
    logger.experiment.flush()
    events = EventAccumulator(str(tmp_path / "log")).Reload()
    assert events.Tags()["images"] == ["image_logs/top 5 worst by OVERALL_map_5"]
    assert events.Images("image_logs/top 5 worst by OVERALL_map_5")[0].width > 500


def test_images_need_a_logger_and_paths(val_loader: DataLoader, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs 'paths' among its extra_keys"):
        MetricValCallback(EmbeddingMetrics(), log_images=True)
    callback = MetricValCallback(metric(), log_images=True)
    with pytest.raises(ValueError, match=r"needs loggers that take pictures, the trainer has \[\]"):
        trainer(tmp_path, callbacks=[callback]).validate(module(), val_loader, verbose=False)


def test_predictions_hold_embeddings(val_loader: DataLoader, tmp_path: Path) -> None:
    batches = trainer(tmp_path).predict(module(), val_loader)
    assert batches is not None
    assert sum(len(batch["embeddings"]) for batch in batches) == 12  # pyright: ignore[reportArgumentType, reportCallIssue]


@pytest.mark.parametrize(
    "criterion", [ArcFaceLoss(in_features=8, num_classes=4), SupConLoss(bank_size=4)], ids=["parameters", "bank"]
)
def test_a_checkpoint_serves_without_the_criterion(
    criterion: nn.Module, train_loader: DataLoader, val_loader: DataLoader, tmp_path: Path
) -> None:
    extractor, path = Tiny(), tmp_path / "last.ckpt"
    optimizer = torch.optim.SGD([*extractor.parameters(), *criterion.parameters()], lr=0.1)
    training = trainer(tmp_path, max_epochs=1)
    training.fit(ExtractorModule(extractor, criterion, optimizer), train_loader)
    training.save_checkpoint(path)
    loaded = ExtractorModule.load_from_checkpoint(path, extractor=Tiny(), weights_only=True)
    torch.testing.assert_close(loaded.model.state_dict(), extractor.state_dict(), rtol=0, atol=0)
    predicting = ExtractorModule(Tiny())
    trainer(tmp_path).predict(predicting, val_loader, ckpt_path=path, weights_only=True)
    torch.testing.assert_close(predicting.model.state_dict(), extractor.state_dict(), rtol=0, atol=0)


def test_the_scheduler_steps_and_is_logged(train_loader: DataLoader, tmp_path: Path) -> None:
    pl_module = module(lr=0.1)
    assert pl_module.optimizer is not None
    pl_module.scheduler = torch.optim.lr_scheduler.StepLR(pl_module.optimizer, step_size=1, gamma=0.5)
    logger = CSVLogger(tmp_path, name=None, version="log")
    trainer(tmp_path, logger=logger, log_every_n_steps=1, max_epochs=1).fit(pl_module, train_loader)
    steps = len(train_loader)
    assert pl_module.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**steps)
    rates = pd.read_csv(tmp_path / "log" / "metrics.csv")["lr"].dropna().tolist()
    assert rates == pytest.approx([0.1 * 0.5**i for i in range(steps)])


def test_training_needs_a_criterion_and_an_optimizer(train_loader: DataLoader, tmp_path: Path) -> None:
    extractor = Tiny()
    with pytest.raises(ValueError, match="needs an optimizer"):
        trainer(tmp_path).fit(ExtractorModule(extractor), train_loader)
    optimizer = torch.optim.SGD(extractor.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="needs a criterion"):
        trainer(tmp_path).fit(ExtractorModule(extractor, optimizer=optimizer), train_loader)


def test_parameters_of_the_loss_want_an_optimizer() -> None:
    """Those of ArcFace would stay random, and nothing would tell."""
    extractor, criterion = Tiny(), ArcFaceLoss(in_features=8, num_classes=4)
    optimizer = torch.optim.SGD(extractor.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match="does not hold the parameters weight of ArcFaceLoss"):
        ExtractorModule(extractor, criterion, optimizer).configure_optimizers()
    optimizer.add_param_group({"params": list(criterion.parameters())})
    ExtractorModule(extractor, criterion, optimizer).configure_optimizers()  # warnings are errors here
