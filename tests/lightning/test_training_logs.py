"""What training steps log, when, and at what cost."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LambdaCallback
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader

from oml.interfaces.models import IExtractor
from oml.lightning.modules.extractor import ExtractorModule
from oml.losses.arcface import ArcFaceLoss
from oml.losses.contrastive import SupConLoss
from oml.losses.triplet import TripletLossWithMiner
from oml.miners.inbatch_hard_tri import HardTripletsMiner

N_STEPS = 7  # batches of 6 items, the last one of 5


class Linear(IExtractor):
    """4 numbers of 4."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    @property
    def feat_dim(self) -> int:
        return 4

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Seen(pl.Callback):
    """What callbacks find after each step, and the loss that the step had."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.metrics: list[dict[str, float]] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(outputs["loss"].detach())
        self.metrics.append({name: float(value) for name, value in trainer.callback_metrics.items()})


@pytest.fixture(autouse=True)
def _lightning_warns_of_what_tests_want() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        yield


@pytest.fixture
def loader() -> DataLoader:
    x = torch.randn(6 * N_STEPS - 1, 4, generator=torch.Generator().manual_seed(0))
    items: Any = [{"input_tensors": row, "labels": i % 2} for i, row in enumerate(x)]
    return DataLoader(items, batch_size=6)


def module(criterion: nn.Module | None = None) -> ExtractorModule:
    torch.manual_seed(0)
    extractor = Linear()
    optimizer = torch.optim.SGD(extractor.parameters(), lr=0.1)
    criterion = criterion or TripletLossWithMiner(margin=None, miner=HardTripletsMiner(), need_logs=True)
    return ExtractorModule(extractor, criterion, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5))


def trainer(folder: Path, **kwargs: Any) -> pl.Trainer:
    settings = {
        "accelerator": "cpu", "max_epochs": 1, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": folder,
    }  # fmt: skip
    return pl.Trainer(**(settings | kwargs))


@pytest.mark.parametrize("bar", [False, True])
@pytest.mark.parametrize("every", [1, 3, 100])
def test_each_row_has_the_values_of_its_step(bar: bool, every: int, loader: DataLoader, tmp_path: Path) -> None:
    seen, logger = Seen(), CSVLogger(tmp_path, name=None, version="log")
    settings: Any = {"callbacks": [seen], "logger": logger, "log_every_n_steps": every, "enable_progress_bar": bar}
    trainer(tmp_path, **settings).fit(module(), loader)
    log = pd.read_csv(tmp_path / "log" / "metrics.csv")
    written = list(range(every - 1, N_STEPS, every))
    if written:
        rows = log.dropna(subset="triplet_loss_step")
        assert rows["step"].tolist() == written
        assert rows["triplet_loss_step"].tolist() == pytest.approx([seen.losses[i].item() for i in written])
        assert rows["lr"].tolist() == pytest.approx([0.1 * 0.5**i for i in written])
        assert rows["n_triplets"].tolist() == [5 if i == N_STEPS - 1 else 6 for i in written]
    sizes = torch.tensor([6.0] * (N_STEPS - 1) + [5.0])
    mean = (torch.stack(seen.losses) * sizes).sum() / sizes.sum()
    assert log["triplet_loss_epoch"].dropna().tolist() == pytest.approx([mean.item()])


def test_callbacks_find_the_first_and_last_step_of_an_epoch(loader: DataLoader, tmp_path: Path) -> None:
    seen = Seen()
    training = trainer(tmp_path, callbacks=[seen], max_epochs=2)
    training.fit(module(), loader)
    for i in (0, N_STEPS - 1, N_STEPS, 2 * N_STEPS - 1):
        assert seen.metrics[i]["triplet_loss_step"] == pytest.approx(seen.losses[i].item())
        assert seen.metrics[i]["lr"] == pytest.approx(0.1 * 0.5**i)
    assert training.callback_metrics["triplet_loss_epoch"] == training.callback_metrics["triplet_loss"]
    assert training.callback_metrics["active_tri"] == 1  # the soft form has no margin


@pytest.mark.parametrize("stop", [{"max_steps": 3}, {"limit_train_batches": 3}])
def test_callbacks_find_the_last_step_of_a_short_run(stop: dict[str, Any], loader: DataLoader, tmp_path: Path) -> None:
    seen = Seen()
    training = trainer(tmp_path, callbacks=[seen], **stop)
    training.fit(module(), loader)
    assert len(seen.losses) == 3
    assert seen.metrics[2]["lr"] == pytest.approx(0.1 * 0.5**2)
    assert training.callback_metrics["triplet_loss_epoch"] == pytest.approx(torch.stack(seen.losses).mean().item())


@pytest.mark.parametrize("seconds", [-1, 1000])
def test_the_bar_has_a_recent_loss(
    seconds: int, loader: DataLoader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oml.lightning.modules.training._BAR_SECONDS", seconds)
    shown, seen = [], Seen()
    look = LambdaCallback(on_train_batch_end=lambda trainer, *_: shown.append(dict(trainer.progress_bar_metrics)))
    trainer(tmp_path, callbacks=[seen, look], enable_progress_bar=True).fit(module(), loader)
    of_step = [i if seconds < 0 or i == N_STEPS - 1 else 0 for i in range(N_STEPS)]  # that all show, or first and last
    assert [values["triplet_loss_step"] for values in shown] == pytest.approx([seen.losses[i].item() for i in of_step])
    assert "lr" in shown[0]


def test_steps_that_nobody_writes_wait_for_no_device(
    loader: DataLoader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To read a number is to wait for the device; to have it logged takes Lightning a third of a millisecond."""
    items, logs = [], []
    plain_item, plain_log = torch.Tensor.item, pl.LightningModule.log
    monkeypatch.setattr(torch.Tensor, "item", lambda x: items.append(1) or plain_item(x))
    monkeypatch.setattr(pl.LightningModule, "log", lambda *args, **kwargs: logs.append(1) or plain_log(*args, **kwargs))
    logger = CSVLogger(tmp_path, name=None, version="log")
    counts = []
    count = LambdaCallback(on_train_batch_end=lambda *_: counts.append((len(items), len(logs))))
    trainer(tmp_path, callbacks=[count], logger=logger, log_every_n_steps=100).fit(module(), loader)
    assert counts[0][1] > 0
    assert counts[0] == counts[N_STEPS - 2]  # neither in between


@pytest.mark.parametrize("named", [True, False])
def test_losses_without_a_name_or_logs(named: bool, loader: DataLoader, tmp_path: Path) -> None:
    class Norm(nn.Module):
        def forward(self, embeddings: Tensor, _: Tensor) -> Tensor:
            return embeddings.square().mean()

    criterion = Norm()
    if named:
        criterion.criterion_name = "norm"  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    training = trainer(tmp_path)
    training.fit(module(criterion), loader)
    name = "norm_loss" if named else "loss"
    assert set(training.callback_metrics) == {name, f"{name}_step", f"{name}_epoch", "lr"}


@pytest.mark.parametrize("every", [1, 2])
def test_accumulated_and_clipped_gradients(every: int, loader: DataLoader, tmp_path: Path) -> None:
    """Each micro-batch is mined by itself; a step has the mean of their gradients, cut to length."""
    seen, logger = Seen(), CSVLogger(tmp_path, name=None, version="log")
    settings: Any = {"callbacks": [seen], "logger": logger, "log_every_n_steps": every}
    settings |= {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1, "limit_train_batches": 6}
    pl_module = module()
    trainer(tmp_path, **settings).fit(pl_module, loader)

    plain = module()
    assert plain.criterion is not None
    assert isinstance(plain.optimizer, torch.optim.Optimizer)
    for i, batch in zip(range(6), loader, strict=False):
        (plain.criterion(plain(batch["input_tensors"]), batch["labels"]) / 2).backward()
        if i % 2:
            nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
            plain.optimizer.step()
            plain.optimizer.zero_grad()
            plain.optimizer.param_groups[0]["lr"] *= 0.5
    torch.testing.assert_close(pl_module.state_dict(), plain.state_dict())

    rows = pd.read_csv(tmp_path / "log" / "metrics.csv").dropna(subset="lr")
    steps = list(range(every - 1, 3, every))
    assert rows["step"].tolist() == steps
    assert rows["lr"].tolist() == pytest.approx([0.1 * 0.5**i for i in steps])


@pytest.mark.parametrize(
    "criterion",
    [TripletLossWithMiner(margin=0.2, need_logs=True), ArcFaceLoss(in_features=4, num_classes=2), SupConLoss()],
    ids=["all triplets", "arcface", "supcon"],
)
def test_mixed_precision(criterion: nn.Module, loader: DataLoader, tmp_path: Path) -> None:
    """The network works in bfloat16, the loss in float32, parameters keep their type."""
    pl_module = module(criterion)
    assert pl_module.optimizer is not None
    if learnt := [*criterion.parameters()]:
        pl_module.optimizer.add_param_group({"params": learnt})
    before, types = [parameter.clone() for parameter in pl_module.parameters()], []
    pl_module.model.register_forward_hook(lambda _, __, output: types.append(output.dtype))
    training = trainer(tmp_path, precision="bf16-mixed", max_epochs=2)
    training.fit(pl_module, loader)
    assert set(types) == {torch.bfloat16}
    name = getattr(criterion, "criterion_name", "")
    assert training.callback_metrics[f"{name}_loss" if name else "loss"].isfinite()
    for old, new in zip(before, pl_module.parameters(), strict=True):
        assert new.dtype == torch.float32
        assert new.isfinite().all()
        assert (old != new).any()


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_a_plateau_lowers_the_learning_rate(interval: str, loader: DataLoader, tmp_path: Path) -> None:
    """Also of a loss by step, which is as good as logged only now and then."""
    pl_module, seen = module(), Seen()
    assert pl_module.optimizer is not None
    pl_module = ExtractorModule(
        pl_module.model,
        pl_module.criterion,
        pl_module.optimizer,
        ReduceLROnPlateau(pl_module.optimizer, factor=0.5, patience=0),
        scheduler_interval=interval,
        scheduler_monitor_metric=f"triplet_loss_{interval}",
    )
    trainer(tmp_path, callbacks=[seen], max_epochs=3, log_every_n_steps=100).fit(pl_module, loader)
    values = torch.stack(seen.losses)
    if interval == "epoch":
        weights = torch.tensor([6.0] * (N_STEPS - 1) + [5.0])
        values = (values.view(3, N_STEPS) * weights).sum(dim=1) / weights.sum()
    best, n_worse = torch.inf, 0
    for value in values.tolist():
        better = value < best * (1 - 1e-4)
        best, n_worse = (value, n_worse) if better else (best, n_worse + 1)
    assert pl_module.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**n_worse)  # pyright: ignore[reportOptionalMemberAccess]
    assert interval == "epoch" or n_worse > 3


def test_a_plateau_needs_something_to_watch() -> None:
    pl_module = module()
    assert pl_module.optimizer is not None
    scheduler = ReduceLROnPlateau(pl_module.optimizer)
    with pytest.raises(ValueError, match="needs a scheduler_monitor_metric for ReduceLROnPlateau"):
        ExtractorModule(pl_module.model, pl_module.criterion, pl_module.optimizer, scheduler)
