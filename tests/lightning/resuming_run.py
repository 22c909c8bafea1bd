"""A training in a process of its own, which may be killed: ``python -m tests.lightning.resuming_run KIND FOLDER ...``.

Each step adds a line with its loss to ``FOLDER/losses``. At a step, or in the midst of the writing of a checkpoint, the
process may say so, and then do nothing more.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms import v2

from oml.interfaces.models import IExtractor
from oml.lightning.callbacks.checkpoints import AtomicCheckpointIO, LastCheckpoint
from oml.lightning.callbacks.ema import EMACallback
from oml.lightning.modules.extractor import ExtractorModule
from oml.lightning.pipelines.train import extractor_training_pipeline
from oml.lightning.resuming import RandomState, training_loader
from oml.losses.arcface import ArcFaceLoss
from oml.losses.triplet import TripletLossWithMiner
from oml.miners.cross_batch import TripletMinerWithMemory
from oml.miners.inbatch_nhard_tri import NHardTripletsMiner
from oml.miners.miner_with_bank import MinerWithBank
from oml.samplers.balance import BalanceSampler

N_LABELS, N_EPOCHS = 18, 3


def wait_for_the_end() -> None:
    """Tell who started this process that it is time to kill it."""
    print("here", flush=True)
    sys.stdin.read()


class WaitsAsItIsWritten:
    """No checkpoint with this in it comes to its end."""

    def __reduce__(self) -> Any:
        wait_for_the_end()
        return list, ()


class Images(Dataset):
    """Noisy colours, augmented."""

    def __init__(self) -> None:
        self.labels = [idx // 6 for idx in range(6 * N_LABELS)]
        self.images = torch.rand(len(self.labels), 3, 12, 12, generator=torch.Generator().manual_seed(0))
        self.augment = v2.Compose([v2.RandomCrop(8), v2.RandomHorizontalFlip(), v2.ColorJitter(0.5, 0.5)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        return {"input_tensors": self.augment(self.images[idx]), "labels": self.labels[idx]}


class Small(IExtractor):
    """8 numbers per image."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(dropout), nn.Linear(72, 8)
        )

    @property
    def feat_dim(self) -> int:
        return 8

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Sum(nn.Module):
    """Of losses with banks, draws and parameters of their own."""

    def __init__(self) -> None:
        super().__init__()
        miners = MinerWithBank(3, NHardTripletsMiner(), need_logs=False), TripletMinerWithMemory(2, 3)
        self.losses = nn.ModuleList([
            *(TripletLossWithMiner(0.3, miner) for miner in miners), ArcFaceLoss(8, N_LABELS)
        ])  # fmt: skip

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        return torch.stack([loss(embeddings, labels) for loss in self.losses]).sum()


class WaitingLoss(TripletLossWithMiner):
    """Stops the process at its step."""

    def __init__(self, wait_at: int | None) -> None:
        super().__init__(margin=None)
        self.wait_at, self.step = wait_at, 0

    def forward(self, features: Tensor, labels: Any) -> Tensor:
        if self.step == self.wait_at:
            wait_for_the_end()
        self.step += 1
        return super().forward(features, labels)


class Reports(pl.Callback):
    """Writes losses down, and stops the process at its step."""

    def __init__(self, folder: Path, wait_at: int | None, write_until: int | None) -> None:
        self.file, self.wait_at, self.write_until = folder / "losses", wait_at, write_until

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.wait_at:
            wait_for_the_end()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        with self.file.open("a") as file:
            print(trainer.global_step, outputs["loss"].item().hex(), float(rate).hex(), file=file)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Any) -> None:
        if trainer.global_step == self.write_until:
            checkpoint["wait"] = WaitsAsItIsWritten()


def run_pipeline(folder: Path, wait_at: int | None = None, **_: Any) -> None:
    """Train by ``FOLDER/config.json``, going on with the run in the folder if there is one."""
    torch.set_num_threads(1)
    config = json.loads((folder / "config.json").read_text())
    config["criterion"] = {"name": f"{__package__}.resuming_run.WaitingLoss", "args": {"wait_at": wait_at}}
    run = folder / "run"
    extractor_training_pipeline({**config, "run_dir": str(run), "resume": str(run) if run.exists() else None})


def run(kind: str, folder: Path, wait_at: int | None = None, write_until: int | None = None) -> None:
    """Train, from ``last.ckpt`` on if there is one."""
    torch.set_num_threads(1)
    pl.seed_everything(0, verbose=False)
    data, n_batches = Images(), 9  # an epoch
    averages: list[pl.Callback] = []
    if kind == "plain":
        extractor, criterion = Small(dropout=0), TripletLossWithMiner(None)
        module = ExtractorModule(extractor, criterion, torch.optim.SGD(extractor.parameters(), 0.05, 0.9))
        loader = training_loader(data, None, 12, 0, 0)
    else:
        extractor, criterion = Small(dropout=0.3), Sum()
        optimizer = torch.optim.AdamW([{"params": each.parameters()} for each in (extractor, criterion)], 0.01)
        rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=N_EPOCHS * n_batches)
        module = ExtractorModule(extractor, criterion, optimizer, rates)
        loader = training_loader(data, BalanceSampler(data.labels, 2, 6), None, 0, 2)
        averages = [EMACallback(0.9)]
    assert len(loader) == n_batches
    last = folder / "last.ckpt"
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=N_EPOCHS, logger=CSVLogger(folder, name="log"), log_every_n_steps=4,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, plugins=[AtomicCheckpointIO()],
        callbacks=[*averages, RandomState(), LastCheckpoint(folder, 4), Reports(folder, wait_at, write_until)],
    )  # fmt: skip
    trainer.fit(module, loader, ckpt_path=last if last.exists() else None)
    torch.save({**module.state_dict(), **trainer.callback_metrics}, folder / "result.pt")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("kind")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--wait-at", type=int)
    parser.add_argument("--write-until", type=int)
    arguments = vars(parser.parse_args())
    run_pipeline(**arguments) if arguments["kind"] == "pipeline" else run(**arguments)
