"""Trainings whose proxies are shared out over processes: they are those of one, and go on in another number."""

import os
import warnings
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from tests.processes import run_processes
from torch import Tensor, nn
from torch.utils.data import Dataset

from oml.ddp.sharded_classes import ShardedArcFaceLoss
from oml.interfaces.models import IExtractor
from oml.lightning.callbacks.checkpoints import LastCheckpoint
from oml.lightning.callbacks.ema import EMACallback
from oml.lightning.modules.extractor import ExtractorModuleDDP
from oml.lightning.resuming import training_loader
from oml.losses.arcface import ArcFaceLoss

DIM, N_LABELS, BATCH = 3, 5, 8
PROXIES = torch.arange(N_LABELS * DIM).reshape(N_LABELS, DIM) % 4 - 1.3


@pytest.fixture(autouse=True)
def _lightning_warns_of_what_tests_want() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        warnings.filterwarnings("error", "You're using the WeightAveraging callback")
        yield


class Points(Dataset):
    def __init__(self) -> None:
        self.points = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"input_tensors": self.points[i], "labels": i % N_LABELS}


class Net(IExtractor):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, DIM)
        with torch.no_grad():
            self.layer.weight.copy_(torch.arange(4 * DIM).reshape(DIM, 4) % 5 - 2.0)
            self.layer.bias.zero_()

    @property
    def feat_dim(self) -> int:
        return DIM

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def trained(
    rank: int, n: int, criterion: nn.Module, folder: Path, epochs: int, resume: Path | None = None
) -> dict[str, Tensor]:
    """The module at the end: the averages of the weights."""
    if n > 1:  # as a launcher tells its processes
        os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE=str(n))
    criterion.load_state_dict({"weight": PROXIES})
    net = Net()
    optimizer = torch.optim.Adam([*net.parameters(), *criterion.parameters()], lr=0.1)
    loader = training_loader(Points(), None, BATCH // n, seed=0, num_workers=0)
    module = ExtractorModuleDDP(loader, None, net, criterion, optimizer, global_batch=True)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=n,
        strategy="ddp" if n > 1 else "auto",
        max_epochs=epochs,
        gradient_clip_val=0.1,
        callbacks=[EMACallback(decay=0.8), LastCheckpoint(folder)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, ckpt_path=resume)
    return module.state_dict()


def train_in_a_process(rank: int, whole: ShardedArcFaceLoss, folder: Path) -> None:
    halfway = folder / "halfway"
    trained(rank, 2, deepcopy(whole), halfway, 2)  # built before the group, as under Lightning's launcher
    again = ShardedArcFaceLoss(DIM, N_LABELS, s=4)
    found = trained(rank, 2, again, folder / "resumed", 4, halfway / "last.ckpt")
    torch.save(found, folder / f"{rank}.pt")


@pytest.mark.slow
def test_two_processes_train_as_one_and_go_on_in_two_or_one(tmp_path: Path) -> None:
    expected = trained(0, 1, ArcFaceLoss(DIM, N_LABELS, s=4), tmp_path / "one", 4)
    assert (expected["criterion.weight"] - PROXIES).abs().max() > 0.1
    run_processes(train_in_a_process, ShardedArcFaceLoss(DIM, N_LABELS, s=4), tmp_path, folder=tmp_path)
    by_rank = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    assert [len(found["criterion.weight"]) for found in by_rank] == [3, 2]
    proxies = torch.cat([found["criterion.weight"] for found in by_rank])
    for found in by_rank:
        torch.testing.assert_close({**found, "criterion.weight": proxies}, expected)
    goes_on = trained(0, 1, ArcFaceLoss(DIM, N_LABELS, s=4), tmp_path / "again", 4, tmp_path / "halfway" / "last.ckpt")
    torch.testing.assert_close(goes_on, expected)
