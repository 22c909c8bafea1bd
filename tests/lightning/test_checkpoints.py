"""The best and the last checkpoint of a run."""

import itertools
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LambdaCallback
from torch.utils.data import DataLoader, TensorDataset

from oml.lightning.callbacks.checkpoints import AtomicCheckpointIO, BestCheckpoint, LastCheckpoint

NAN = float("nan")
ON_A_FULL_DISK = """
import resource, signal, sys, torch
from oml.lightning.callbacks.checkpoints import AtomicCheckpointIO

AtomicCheckpointIO().save_checkpoint({"a": torch.zeros(10)}, "last.ckpt")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))
try:
    AtomicCheckpointIO().save_checkpoint({"a": torch.zeros(5_000)}, "last.ckpt")
except OSError as error:
    print(error.filename)
print(torch.load("last.ckpt")["a"].shape)
"""


@pytest.fixture(autouse=True)
def _lightning_warns_of_what_tests_want() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        yield


class Scripted(pl.LightningModule):
    """Its validations have the values that it is given, by epoch."""

    def __init__(self, values: Sequence[float]) -> None:
        super().__init__()
        self.values = values
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.layer(batch[0]).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("OVERALL/cmc/1", self.values[self.current_epoch])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.layer.parameters(), lr=0.1)


@pytest.mark.slow
def test_a_full_disk(tmp_path: Path) -> None:
    command = [sys.executable, "-B", "-c", ON_A_FULL_DISK]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "last.ckpt\ntorch.Size([10])\n", done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def fit(
    folder: Path,
    values: Sequence[float],
    n_batches: int = 3,
    resume: Path | None = None,
    every: int = 500,
    **kwargs: Any,
) -> BestCheckpoint:
    data = DataLoader(TensorDataset(torch.ones(n_batches, 1)), batch_size=1)
    best = BestCheckpoint(folder, "OVERALL/cmc/1")
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=len(values), num_sanity_val_steps=0, logger=False, enable_progress_bar=False,
        enable_model_summary=False, plugins=[AtomicCheckpointIO()], callbacks=[best, LastCheckpoint(folder, every)],
        default_root_dir=folder, **kwargs,
    )  # fmt: skip
    trainer.fit(Scripted(values), data, data, ckpt_path=resume)
    return best


def epoch_of(file: Path) -> int:
    return torch.load(file, weights_only=True)["epoch"]


@pytest.mark.parametrize(("values", "epoch"), [
    ([0.1, 0.5, 0.3], 1), ([0.5, 0.5, 0.5], 0), ([NAN, 0.1, NAN], 1), ([0.1, NAN, 0.1], 0), ([NAN, NAN], 0),
])  # fmt: skip
def test_the_first_of_the_best_is_kept(values: list[float], epoch: int, tmp_path: Path) -> None:
    best = fit(tmp_path, values)
    assert epoch_of(tmp_path / "best.ckpt") == epoch
    assert best.best_model_path == str(tmp_path / "best.ckpt")
    assert epoch_of(tmp_path / "last.ckpt") == len(values) - 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["best.ckpt", "last.ckpt"]


@pytest.mark.parametrize("where", ["here", "moved", "elsewhere"])
def test_the_best_value_stands_when_a_run_resumes(where: str, tmp_path: Path) -> None:
    old = new = tmp_path / "run"
    fit(old, [0.3, 0.9, 0.5])
    if where == "moved":
        new = old.rename(tmp_path / "renamed")
    if where == "elsewhere":
        new = tmp_path / "new"
    resume = (old if where == "elsewhere" else new) / "last.ckpt"
    best = fit(new, [0.3, 0.9, 0.5, 0.6], resume=resume)
    assert epoch_of(new / "best.ckpt") == 1
    assert best.best_model_score == pytest.approx(0.9)
    assert best.best_model_path == str(new / "best.ckpt")
    fit(new, [0.3, 0.9, 0.5, 0.6, 1.0], resume=new / "last.ckpt")
    assert epoch_of(new / "best.ckpt") == 4


def test_a_run_whose_best_was_deleted_finds_another(tmp_path: Path) -> None:
    fit(tmp_path, [0.9])
    (tmp_path / "best.ckpt").unlink()
    fit(tmp_path, [0.9, 0.5], resume=tmp_path / "last.ckpt")
    assert epoch_of(tmp_path / "best.ckpt") == 1


def steps_of_last_checkpoints(
    folder: Path, every: int, *callbacks: pl.Callback, n_batches: int, max_epochs: int = 1, **kwargs: Any
) -> list[int]:
    saved = []

    class Watch(AtomicCheckpointIO):
        def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
            super().save_checkpoint(checkpoint, path, storage_options)
            if Path(path).name.startswith("last.ckpt"):
                saved.append(checkpoint["global_step"])

    data = DataLoader(TensorDataset(torch.ones(n_batches, 1)), batch_size=1)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=max_epochs, logger=False, enable_progress_bar=False, enable_model_summary=False,
        plugins=[Watch()], callbacks=[*callbacks, LastCheckpoint(folder, every)], default_root_dir=folder, **kwargs,
    )  # fmt: skip
    trainer.fit(Scripted([]), data)
    return saved


@pytest.mark.parametrize(("every", "accumulate", "steps"), [(2, 1, [2, 4]), (1, 2, [1, 2]), (3, 2, []), (500, 1, [])])
def test_long_epochs_have_checkpoints_within(every: int, accumulate: int, steps: list[int], tmp_path: Path) -> None:
    """Before the first step; at steps, not in the midst of an accumulation; not at the end, where one is anyway."""
    saved = steps_of_last_checkpoints(tmp_path, every, n_batches=5, accumulate_grad_batches=accumulate)
    assert saved == [0, *steps, {1: 5, 2: 3}[accumulate]]
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize(("every", "seconds", "steps"), [
    (500, 1, [0, 8]), (500, 21, [0, 2, 4, 6, 8]), (29, 1, [0, 2, 4, 6, 8]), (30, 1, [0, 4, 8])
])  # fmt: skip
def test_short_epochs_share_a_checkpoint(
    every: int, seconds: int, steps: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writing takes a second, on a clock that goes on by so many when an epoch begins."""
    now = itertools.count()
    monkeypatch.setattr("oml.lightning.callbacks.checkpoints.monotonic", lambda: float(next(now)))
    wait = LambdaCallback(on_train_epoch_start=lambda *_: [next(now) for _ in range(seconds - 1)])
    assert steps_of_last_checkpoints(tmp_path, every, wait, n_batches=2, max_epochs=4) == steps


@pytest.mark.parametrize("content", [b"", b"nothing", b"PK\x03\x04 half a file"])
def test_a_damaged_checkpoint_is_called_so(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "last.ckpt"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"cannot go on from '{file}', which is damaged.* best.ckpt"):
        AtomicCheckpointIO().load_checkpoint(file)


def test_a_checkpoint_that_cannot_be_written_leaves_the_former(tmp_path: Path) -> None:
    writer, file = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    writer.save_checkpoint({"epoch": 0}, file)
    with pytest.raises(Exception, match="pickle"):
        writer.save_checkpoint({"weights": torch.zeros(1000), "epoch": lambda: None}, file)
    assert epoch_of(file) == 0
    assert [each.name for each in tmp_path.iterdir()] == ["last.ckpt"]


def test_periods_are_positive(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="every_n_steps of 1 or more, got 0"):
        LastCheckpoint(tmp_path, 0)


def test_the_old_folder_is_left_as_it_was(tmp_path: Path) -> None:
    fit(tmp_path / "a", [0.9, 0.1])
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    fit(tmp_path / "b", [0.9, 0.1, 1.0], resume=tmp_path / "a" / "last.ckpt")
    for name in ("best.ckpt", "last.ckpt"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "copy" / name).read_bytes()
