"""Freezing and averages of weights under Lightning."""

import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, StackDataset

from oml.lightning.callbacks.ema import EMACallback
from oml.lightning.callbacks.freezing import FreezingSchedule
from oml.lightning.modules.extractor import ExtractorModule
from oml.losses.arcface import ArcFaceLoss
from oml.losses.contrastive import SupConLoss
from oml.models import ExtractorWithMLP, TimmExtractor
from oml.models.fine_tuning import number_layers
from oml.models.utils import load_weights

Weights = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _lightning_warns_of_what_tests_want() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        yield


def loader() -> DataLoader:
    """Two batches of four images of two labels."""
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1] * 4)
    return DataLoader(StackDataset(input_tensors=images, labels=labels), batch_size=4)  # pyright: ignore[reportArgumentType]


def trainer(folder: Path, *callbacks: Callback, **kwargs: Any) -> pl.Trainer:
    settings = {
        "accelerator": "cpu", "max_epochs": 3, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": folder,
        "num_sanity_val_steps": 0,
    }  # fmt: skip
    return pl.Trainer(callbacks=list(callbacks), **(settings | kwargs))


def small(**kwargs: Any) -> TimmExtractor:
    """A network in which everything learns from the first step on: timm starts residual branches with zeros."""
    torch.manual_seed(0)
    extractor = TimmExtractor(None, "test_resnet", **kwargs)
    for part in extractor.model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.bias, 0.1, 0.5)
    return extractor


def module(head: bool = True, criterion: nn.Module | None = None) -> ExtractorModule:
    extractor = small(embedding_dim=8 if head else None, batch_norm=head)
    criterion = criterion or ArcFaceLoss(in_features=extractor.feat_dim, num_classes=2)
    parameters = [*extractor.parameters(), *criterion.parameters()]
    return ExtractorModule(extractor, criterion, torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1))


def copy_of(pl_module: nn.Module) -> Weights:
    return {name: tensor.clone() for name, tensor in pl_module.state_dict().items()}


class Diary(Callback):
    """The state after every batch, and the state that every validation sees."""

    def __init__(self) -> None:
        self.states: list[Weights] = []
        self.validated: list[Weights] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.states.append(copy_of(pl_module))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.states.append(copy_of(pl_module))

    def on_validation_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.validated.append(copy_of(pl_module))


def moved(one: Weights, two: Weights) -> set[str]:
    return {name for name in one if not torch.equal(one[name], two[name])}


PLAN = {0: 0, 1: 1, 2: None}


def expected_to_move(extractor: nn.Module, epoch: int) -> set[str]:
    layers, head = number_layers(extractor)
    n_layers = PLAN[epoch]
    learning = {f"model.{name}" for name, layer in layers.items() if n_layers is None or layer >= head - n_layers}
    return learning | {"criterion.weight"}


def test_layers_learn_when_the_plan_says(tmp_path: Path) -> None:
    pl_module, diary = module(), Diary()
    never = pl_module.model.model.layer4[0].conv1.weight.requires_grad_(False)  # pyright: ignore[reportAttributeAccessIssue, reportIndexIssue]
    # validations in the midst of an epoch: Lightning switches modes there and back
    fit = trainer(tmp_path, FreezingSchedule(PLAN), diary, val_check_interval=1)
    fit.fit(pl_module, loader(), loader())
    assert len(diary.states) == 7
    for step, (before, after) in enumerate(itertools.pairwise(diary.states)):
        # the first step of an epoch counts: later ones could undo it
        expected = expected_to_move(pl_module.model, step // 2) - {"model.model.layer4.0.conv1.weight"}
        assert moved(before, after) == expected
    assert [p for p in pl_module.parameters() if not p.requires_grad] == [never]
    assert all(part.training for part in pl_module.model.modules() if isinstance(part, nn.BatchNorm2d))


@pytest.mark.parametrize("step", [1, 2, 3, 5])
def test_a_resumed_plan_goes_on(step: int, tmp_path: Path) -> None:
    """From the end of an epoch and from the midst of one."""
    whole, saves = module(), ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    trainer(tmp_path, FreezingSchedule(PLAN), saves, enable_checkpointing=True).fit(whole, loader())

    resumed, diary = module(), Diary()
    fit = trainer(tmp_path, FreezingSchedule(PLAN), diary)
    fit.fit(resumed, loader(), ckpt_path=tmp_path / f"step={step}.ckpt", weights_only=True)
    assert len(diary.states) == 7 - step
    for done, (before, after) in enumerate(itertools.pairwise(diary.states), start=step):
        assert moved(before, after) == expected_to_move(resumed.model, done // 2), done


def test_an_interrupted_fit_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    class Stop(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise RuntimeError("stop")

    pl_module = module()
    with pytest.raises(RuntimeError, match="stop"):
        trainer(tmp_path, FreezingSchedule(PLAN), Stop()).fit(pl_module, loader())
    assert all(parameter.requires_grad for parameter in pl_module.parameters())


def test_a_plan_decides_over_a_wrapper(tmp_path: Path) -> None:
    extractor = ExtractorWithMLP(small(), [8], train_backbone=False)
    pl_module = ExtractorModule(extractor, SupConLoss(), torch.optim.SGD(extractor.parameters(), lr=0.1))
    diary = Diary()
    trainer(tmp_path, FreezingSchedule({0: 0, 1: 1}), diary, max_epochs=2).fit(pl_module, loader())
    layers, head = number_layers(extractor)
    assert moved(diary.states[1], diary.states[2]) == {"model.projection.0.weight", "model.projection.0.bias"}
    learning = {f"model.{name}" for name, layer in layers.items() if layer >= head - 1}
    assert moved(diary.states[2], diary.states[3]) == learning


def test_plans_that_cannot_be(tmp_path: Path) -> None:
    for plan in ({}, {1: 0}, {0: -1}, {-1: 0, 0: None}):
        with pytest.raises(ValueError, match="needs a plan from epochs, 0 among them"):
            FreezingSchedule(plan)
    extractor = small()
    pl_module = ExtractorModule(extractor, SupConLoss(), torch.optim.SGD(extractor.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="leaves nothing that could learn in epoch 0"):
        trainer(tmp_path, FreezingSchedule({0: 0})).fit(pl_module, loader())


def test_processes_must_look_for_unused_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process, in a group of its own: what it is told is what several would be."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    try:
        with pytest.raises(ValueError, match="ddp_find_unused_parameters_true"):
            trainer(tmp_path, FreezingSchedule(PLAN), strategy="ddp", devices=1).fit(module(), loader())
        pl_module, diary = module(), Diary()
        fit = trainer(tmp_path, FreezingSchedule(PLAN), diary, strategy="ddp_find_unused_parameters_true", devices=1)
        fit.fit(pl_module, loader())
    finally:
        torch.distributed.destroy_process_group()
    for step, (before, after) in enumerate(itertools.pairwise(diary.states)):
        assert moved(before, after) == expected_to_move(pl_module.model, step // 2)


# --- freeze_n_epochs


def test_frozen_epochs_of_the_module(tmp_path: Path) -> None:
    """Defect 2 of the described system: on Lightning 2 nothing was ever frozen."""

    def build() -> ExtractorModule:
        extractor = ExtractorWithMLP(small(), [8], train_backbone=True)
        return ExtractorModule(
            extractor, SupConLoss(), torch.optim.SGD(extractor.parameters(), lr=0.1), freeze_n_epochs=1
        )

    pl_module, diary = build(), Diary()
    saves = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    trainer(tmp_path, diary, saves, max_epochs=2, enable_checkpointing=True).fit(pl_module, loader())
    head = {"model.projection.0.weight", "model.projection.0.bias"}
    for step, (before, after) in enumerate(itertools.pairwise(diary.states)):
        assert moved(before, after) == (head if step < 2 else set(after))

    for step in (1, 2):
        resumed, diary = build(), Diary()
        path = tmp_path / f"step={step}.ckpt"
        trainer(tmp_path, diary, max_epochs=2).fit(resumed, loader(), ckpt_path=path, weights_only=True)
        first = moved(diary.states[0], diary.states[1])
        assert first == (head if step < 2 else set(diary.states[0]))


def test_only_freezable_extractors_are_frozen() -> None:
    extractor = TimmExtractor(None, "test_resnet")
    with pytest.raises(ValueError, match="TimmExtractor is not, got freeze_n_epochs=2. Wrap it"):
        ExtractorModule(extractor, freeze_n_epochs=2)


# --- averages of weights


DECAY = 0.6


def averages(states: list[Weights], names: set[str]) -> list[Weights]:
    """After each step, by definition: the first weights as they are, then a share of the new ones each time."""
    result = [states[0]]
    for state in states[1:]:
        old = result[-1]
        result.append({k: DECAY * old[k] + (1 - DECAY) * v if k in names else v for k, v in state.items()})
    return result


def test_averages_are_validated_saved_and_resumed(tmp_path: Path) -> None:
    def build() -> ExtractorModule:
        extractor = small()
        return ExtractorModule(extractor, SupConLoss(bank_size=6), torch.optim.SGD(extractor.parameters(), lr=0.1))

    pl_module, diary = build(), Diary()
    names = {name for name, _ in pl_module.named_parameters()}
    ema = EMACallback(decay=DECAY)
    saves = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_weights_only=False)
    fit = trainer(tmp_path, diary, ema, saves, max_epochs=3, val_check_interval=1, enable_checkpointing=True)
    fit.fit(pl_module, loader(), DataLoader(loader().dataset, batch_size=8))

    expected = averages(diary.states[1:], names)
    assert len(expected) == len(diary.validated) == 6
    assert moved(diary.validated[2], diary.states[3]) == names  # buffers, the bank's among them, are the newest
    torch.testing.assert_close(diary.validated, expected)
    assert int(diary.validated[-1]["criterion.bank.labels"].amax()) == 1
    torch.testing.assert_close(copy_of(pl_module), expected[-1])  # after the fit, the module has the averages

    extractor = TimmExtractor(None, "test_resnet")
    load_weights(extractor, tmp_path / "epoch=1.ckpt")
    for name, tensor in extractor.state_dict().items():
        torch.testing.assert_close(tensor, expected[3][f"model.{name}"])

    resumed, again = build(), Diary()
    fit = trainer(tmp_path, again, EMACallback(decay=DECAY), max_epochs=3)
    fit.fit(resumed, loader(), ckpt_path=tmp_path / "epoch=1.ckpt", weights_only=True)
    torch.testing.assert_close(again.states, diary.states[4:])
    torch.testing.assert_close(copy_of(resumed), expected[-1])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # of tracing
@pytest.mark.slow
def test_compiled_extractors_train_and_are_saved_under_their_names(tmp_path: Path) -> None:
    pl_module, plain = module(), module()
    pl_module.model.compile(backend="eager")
    for each in (pl_module, plain):
        ema = EMACallback(decay=DECAY)
        fit = trainer(tmp_path, ema, FreezingSchedule(PLAN))
        fit.fit(each, loader())
        fit.save_checkpoint(tmp_path / "last.ckpt")
        state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
        assert set(state) == set(plain.state_dict())
    torch.testing.assert_close(copy_of(pl_module), copy_of(plain))
    load_weights(TimmExtractor(None, "test_resnet", embedding_dim=8, batch_norm=True), tmp_path / "last.ckpt")
