"""A run that was interrupted and resumes is the run that was not interrupted."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.data import _set_sampler_epoch
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, TensorDataset
from torchvision.transforms import v2

from oml.datasets.base import DatasetWithLabels
from oml.lightning.callbacks.checkpoints import AtomicCheckpointIO, BestCheckpoint, LastCheckpoint
from oml.lightning.callbacks.early_stopping import EarlyStopping
from oml.lightning.pipelines.validate import extractor_validation_pipeline, validation_config_of
from oml.lightning.resuming import RandomState, TrainingLoader, training_loader
from oml.samplers.balance import BalanceSampler
from oml.transforms.images.utils import as_callable
from oml.utils.download_mock_dataset import download_mock_dataset
from oml.utils.randomness import draws_of


@pytest.fixture(autouse=True)
def _lightning_warns_of_what_tests_want() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        yield


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of runs that were not interrupted, by their kind."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in ("plain", "everything")}
    with start("plain", folders["plain"]) as plain, start("everything", folders["everything"]) as everything:
        assert (plain.wait(), everything.wait()) == (0, 0)
    return folders


class Drawn(Dataset):
    """Items say what they are and what they drew, from each of the generators."""

    def __init__(self) -> None:
        import albumentations

        noise: list[Any] = [albumentations.GaussNoise(p=1.0)]
        self.views = [as_callable(albumentations.Compose(noise)) for _ in range(2)]

    def __len__(self) -> int:
        return 26

    def __getitem__(self, idx: int) -> list[float]:
        views = [int(view(np.full((2, 2, 3), 127, np.uint8)).sum()) for view in self.views]
        return [idx, random.random(), np.random.rand(), float(torch.rand(())), *views]


class FromGlobalGenerator(BatchSampler):
    """A sampler without a state."""

    def __init__(self) -> None:
        super().__init__(RandomSampler(range(26)), 4, drop_last=True)


class FromOwnGenerator(BatchSampler):
    """A sampler whose state nobody can ask for."""

    def __init__(self) -> None:
        super().__init__(RandomSampler(range(26), generator=torch.Generator().manual_seed(3)), 4, drop_last=True)


class FromEpoch(FromGlobalGenerator):
    """A sampler that wants to be told the epoch."""

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        return iter(torch.randperm(24, generator=torch.Generator().manual_seed(self.epoch)).view(6, 4).tolist())


def balanced() -> BalanceSampler:
    return BalanceSampler([idx // 2 for idx in range(24)], n_labels=2, n_instances=2, seed=5)


def loader(sampler: Any = None, n_workers: int = 0, seed: int = 1) -> TrainingLoader:
    return training_loader(Drawn(), sampler, 4, seed, n_workers)


def taken(loader: DataLoader, n_epochs: int) -> list[Any]:
    return [[torch.stack(batch, dim=1).tolist() for batch in loader] for _ in range(n_epochs)]


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker")
@pytest.mark.parametrize("n_workers", [1, 4])
def test_batches_are_the_same_with_any_number_of_workers(n_workers: int) -> None:
    alone = taken(loader(), 2)
    assert taken(loader(n_workers=n_workers), 2) == alone


def test_everything_is_drawn_anew_for_each_item_epoch_and_seed() -> None:
    values = torch.tensor([taken(loader(seed=seed), 2) for seed in (1, 2)])
    assert values.shape == (2, 2, 6, 4, 6)  # seeds, epochs, batches, items
    for column in range(1, 4):
        assert len(values[..., column].unique()) == values[..., column].numel()
    assert (values[..., 4] != values[..., 5]).float().mean() > 0.9  # two transforms, two draws
    assert len(values[..., 4].unique()) > 30  # sums of few noisy pixels agree now and then
    for seed in range(2):
        first, second = values[seed, :, ..., 0].flatten(1).tolist()
        assert first != second
        assert len(set(first)) == len(set(second)) == 24  # none twice, two of 26 left out


@pytest.mark.parametrize("sampler", [lambda: None, balanced, FromGlobalGenerator, FromOwnGenerator, FromEpoch])
@pytest.mark.parametrize(("epoch", "done", "n_workers"), [(0, 0, 0), (0, 2, 0), (2, 5, 0), (1, 3, 2), (1, 6, 0)])
def test_an_epoch_goes_on_where_it_was_left(sampler: Any, epoch: int, done: int, n_workers: int) -> None:
    expected = taken(loader(sampler()), 4)
    first = loader(sampler(), n_workers)
    taken(first, epoch)
    before = [torch.stack(batch, dim=1).tolist() for batch in islice(first, done)] if done else []
    assert before == expected[epoch][:done]
    second = loader(sampler(), seed=9 if sampler is not FromGlobalGenerator else 1)
    second.load_state_dict(first.state_dict() if done or not epoch else {**first.state_dict(), "batches_done": 0})
    rest = expected[epoch][done:]
    assert len(second) == len(expected[epoch]) == 6
    assert taken(second, 2)[: 2 if rest else 1] == ([rest, expected[epoch + 1]] if rest else [expected[epoch + 1]])


def test_lightning_says_which_epoch_it_is() -> None:
    expected, ours = taken(loader(balanced()), 3), loader(balanced())
    _set_sampler_epoch(ours, 2)
    assert taken(ours, 1) == expected[2:]
    ours.load_state_dict({**ours.state_dict(), "epoch": 1, "batches_done": 4})
    _set_sampler_epoch(ours, 1)
    assert taken(ours, 1) == [expected[1][4:]]
    _set_sampler_epoch(ours, 0)
    assert taken(ours, 1) == expected[:1]


class Trained(pl.LightningModule):
    """Keeps its batches, and which processes were there meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.batches: list[list[list[float]]] = []
        self.workers: set[int | None] = set()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.batches.append(torch.stack(batch, dim=1).tolist())
        self.workers |= {process.pid for process in multiprocessing.active_children()}
        return self.layer(torch.ones(1)).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def test_workers_stay_for_all_epochs_of_a_fit(tmp_path: Path) -> None:
    """Also where Lightning leaves epochs early."""
    module, ours = Trained(), loader(balanced(), 2)
    for _ in range(2):
        module.batches, module.workers = [], set()
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=3, limit_train_batches=2, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(module, ours)
        assert module.batches == [batch for epoch in taken(loader(balanced()), 3) for batch in epoch[:2]]
        assert len(module.workers) == 2
        assert not {process.pid for process in multiprocessing.active_children()} & module.workers


def test_the_generators_of_the_process_are_left_alone() -> None:
    def drawn() -> tuple[float, Tensor]:  # not of Python's, which the type checks of tests draw from
        return np.random.randn(), torch.rand(())

    loaders = [loader(FromGlobalGenerator(), n_workers) for n_workers in (0, 1)]
    state = np.random.get_state(), torch.get_rng_state()
    expected = drawn()
    np.random.set_state(state[0])
    torch.set_rng_state(state[1])
    for each in loaders:
        taken(each, 1)
    assert drawn() == expected
    python = random.getstate()
    with draws_of(0, 1):
        random.gauss()
    assert random.getstate() == python


def test_images_are_augmented_alike_by_one_process_and_by_two(mock_root: Path) -> None:
    transform = v2.Compose([v2.ToImage(), v2.RandomCrop(8), v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32)])
    data = DatasetWithLabels(download_mock_dataset(mock_root)[0], dataset_root=mock_root, transform=transform)
    one, two = ([batch["input_tensors"] for batch in training_loader(data, None, 6, 0, n)] for n in (0, 2))
    assert torch.equal(torch.cat(one), torch.cat(two))
    assert len({image.numpy().tobytes() for image in torch.cat(one)}) > len(data) / 2


def test_a_batch_without_unreadable_items_is_asked_for_as_a_whole() -> None:
    class ByBatch(Drawn):
        def __getitems__(self, ids: list[int]) -> list[list[float]]:
            return [self[idx] for idx in ids[1:]]

    assert {len(batch[0]) for batch in training_loader(ByBatch(), None, 4, 0, 0)} == {3}


@pytest.mark.parametrize("size", [None, 0, 27])
def test_a_batch_has_a_size(size: int | None) -> None:
    with pytest.raises(ValueError, match=f"of 1 or more and no more than the 26 items.*got {size}"):
        training_loader(Drawn(), None, size, 0, 0)


def test_states_of_generators_travel_in_files(tmp_path: Path) -> None:
    def drawn() -> list[Any]:
        return [random.random(), random.gauss(), np.random.randn(), torch.rand(3).tolist(), torch.randn(20).tolist()]

    _ = random.gauss(), np.random.randn()  # these draw two at a time, and keep one
    torch.save(RandomState().state_dict(), tmp_path / "state.pt")
    expected = drawn()
    callback = RandomState()
    callback.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    drawn()
    trainer = pl.Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path)
    callback.on_train_start(trainer, pl.LightningModule())
    assert drawn() == expected
    callback.on_train_start(trainer, pl.LightningModule())  # of the next fit
    assert drawn() != expected


class Noisy(pl.LightningModule):
    """Notes what it does."""

    def __init__(self, plateau: bool) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(4, 1))
        self.plateau = plateau
        self.notes: list[tuple[Any, ...]] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self.layers(batch[0]).square().mean()
        step, rate = self.trainer.global_step, self.trainer.optimizers[0].param_groups[0]["lr"]
        self.notes.append((self.current_epoch, batch_idx, step, rate, loss.item()))
        self.log("loss", loss, on_step=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("OVERALL/cmc/1", self.layers(batch[0]).mean())

    def on_validation_epoch_end(self) -> None:
        self.notes.append((self.current_epoch, "validation", self.trainer.global_step))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), 0.1)
        if not self.plateau:
            return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)]
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, patience=0, threshold=1e9
        )  # never good enough
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "OVERALL/cmc/1"}}


class Copies(AtomicCheckpointIO):
    """Keeps every ``last.ckpt``, and how much was noted until then."""

    def __init__(self, module: Noisy) -> None:
        super().__init__()
        self.module = module
        self.files: list[tuple[Path, int]] = []

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        super().save_checkpoint(checkpoint, path, storage_options)
        if Path(path).name.startswith("last"):
            copy = Path(path).parent / f"copy{len(self.files)}"
            self.files.append((Path(shutil.copy(path, copy)), len(self.module.notes)))


@pytest.mark.parametrize(("settings", "n_checkpoints"), [
    ({}, 7),
    ({"plateau": True}, 7),
    ({"max_steps": 8, "max_epochs": -1}, 4),
    ({"max_steps": 10, "max_epochs": -1}, 5),
    ({"accumulate_grad_batches": 2, "every": 1}, 10),
    ({"val_check_interval": 2, "every": 2}, 7),
    ({"check_val_every_n_epoch": 2}, 7),
    ({"n_items": 4, "check_val_every_n_epoch": 2}, 4),
    ({"n_items": 4, "max_steps": 3, "max_epochs": -1}, 4),
    ({"patience": 1, "max_epochs": 9}, 5),
])  # fmt: skip
def test_every_checkpoint_goes_on_alike(settings: dict[str, Any], n_checkpoints: int, tmp_path: Path) -> None:
    """No validation, step or step of a scheduler is left out or repeated, nor is anything logged otherwise."""
    settings = {"n_items": 20, "plateau": False, "patience": 0, "max_epochs": 3, "every": 3, **settings}
    n_items, plateau, patience, every = (settings.pop(key) for key in ("n_items", "plateau", "patience", "every"))

    def run(name: str, checkpoint: Path | None = None) -> tuple[Noisy, Copies, pd.DataFrame]:
        torch.manual_seed(0 if checkpoint is None else 1)
        data, module = TensorDataset(torch.arange(4.0 * n_items).view(-1, 4)), Noisy(plateau)
        copies, logger = Copies(module), CSVLogger(tmp_path, name="", version=name)
        folder = tmp_path / name / "checkpoints"
        callbacks = [
            RandomState(), *([EarlyStopping("OVERALL/cmc/1", patience=patience, min_delta=1e9)] if patience else []),
            BestCheckpoint(folder, "OVERALL/cmc/1"), LastCheckpoint(folder, every),
        ]  # fmt: skip
        trainer = pl.Trainer(
            accelerator="cpu", callbacks=callbacks, plugins=[copies], logger=logger, log_every_n_steps=1,
            enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=tmp_path,
            **settings,
        )  # fmt: skip
        trainer.fit(module, training_loader(data, None, 4, 0, 0), DataLoader(data, 4), ckpt_path=checkpoint)
        log = tmp_path / name / "metrics.csv"
        return module, copies, pd.read_csv(log) if log.exists() else pd.DataFrame()

    whole, copies, log = run("whole")
    assert len(copies.files) == n_checkpoints
    for i, (file, n_notes) in enumerate(copies.files):
        module, _, new_log = run(f"resumed{i}", file)
        assert module.notes == whole.notes[n_notes:]
        if len(new_log):
            common = log[log["step"] >= new_log["step"].min()].reset_index(drop=True)
            pd.testing.assert_frame_equal(new_log, common[new_log.columns], check_exact=True)


def start(*arguments: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.lightning.resuming_run", *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def kill(*arguments: Any, of_two: bool = False) -> None:
    """Start a run, let it come to the point where it waits, and kill it; or the second of its two processes."""
    with start(*arguments) as process:
        assert process.stdout is not None
        while (line := process.stdout.readline()) != "here\n":
            assert line, "it ended before it came there"
        if of_two:
            (second,) = subprocess.check_output(["pgrep", "-P", str(process.pid)], text=True).split()
            os.kill(int(second), signal.SIGKILL)
            assert process.wait(timeout=60) != 0
        else:
            process.kill()
            assert process.wait() == -9


def losses_of(folder: Path) -> dict[int, str]:
    lines = (folder / "losses").read_text().splitlines()
    return {int(line.split()[0]): line for line in lines}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "wait", "step", "goes_on_from"), [
    ("plain", "--wait-at", 13, 9),  # the checkpoint after step 13 is written, but not yet what was logged up to it
    ("plain", "--write-until", 13, 9),
    ("everything", "--wait-at", 15, 13),
    ("everything", "--wait-at", 24, 22),  # in the last epoch, whose mean loss is compared
])  # fmt: skip
def test_a_run_that_was_killed_goes_on_bit_for_bit(
    kind: str, wait: str, step: int, goes_on_from: int, tmp_path: Path, unbroken: dict[str, Path]
) -> None:
    kill(kind, tmp_path, wait, step)
    expected, before = losses_of(unbroken[kind]), losses_of(tmp_path)
    assert list(before) == list(range(1, step + 1))
    assert before.items() <= expected.items()
    (tmp_path / "losses").unlink()
    with start(kind, tmp_path) as process:
        assert process.wait() == 0
    assert losses_of(tmp_path) == {n: loss for n, loss in expected.items() if n > goes_on_from}
    result, expected_result = (torch.load(folder / "result.pt") for folder in (tmp_path, unbroken[kind]))
    assert any(key.endswith("loss_epoch") for key in result)
    torch.testing.assert_close(result, expected_result, rtol=0, atol=0)
    assert [file.name for file in tmp_path.glob("*last*")] == ["last.ckpt"]


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2])
def test_a_training_by_a_config_that_was_killed_goes_on_bit_for_bit(n: int, mock_root: Path, tmp_path: Path) -> None:
    """On one device and on two: whichever process is killed, none of them stays."""
    size = {"im_size": 32}
    config = {
        "seed": 0, "accelerator": "cpu", "devices": n, "dataset_root": str(mock_root), "dataframe_name": "df.csv",
        "cache_size": 0, "num_workers": 4 // n - 2, "sampler": None, "bs_train": 4 // n, "bs_val": 8,
        "global_batch": n > 1,
        "transforms_train": {"name": "augs_torch", "args": size},
        "transforms_val": {"name": "norm_resize_torch", "args": size},
        "extractor": {"name": "timm", "args": {"arch": "test_resnet", "weights": None, "normalise_features": False}},
        "optimizer": {"name": "adamw", "args": {"lr": 0.001}}, "ema_decay": 0.9, "checkpoint_every_n_steps": 2,
        "scheduling": {"scheduler_interval": "step", "scheduler": {"name": "one_cycle", "args": {"max_lr": 0.01}}},
        "metric_args": {"cmc_top_k": [1], "verbose": False}, "metric_for_checkpointing": "OVERALL/cmc/1",
        "max_epochs": 3, "valid_period": 2, "logger": {"name": "csv", "args": {"name": "", "version": "log"}},
        "lightning_trainer_extra_args": {
            "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1
        },
    }  # fmt: skip
    logs, checkpoints, scores = [], [], []
    for name, n_starts in (("unbroken", 1), ("broken", 2)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        if n_starts == 2:
            kill("pipeline", folder, "--wait-at", 9, of_two=n == 2)  # 6 steps make an epoch
            assert torch.load(folder / "run" / "checkpoints" / "last.ckpt")["global_step"] == 8
        with start("pipeline", folder) as process:
            assert process.wait() == 0
        logs.append(pd.read_csv(folder / "run" / "log" / "metrics.csv"))
        checkpoints.append(torch.load(folder / "run" / "checkpoints" / "last.ckpt"))
        scores.append(pd.read_csv(folder / "run" / "metrics.csv"))
    pd.testing.assert_frame_equal(logs[1], logs[0], check_exact=True)
    assert logs[0]["triplet_loss_step"].dropna().nunique() == 18
    torch.testing.assert_close(checkpoints[1]["state_dict"], checkpoints[0]["state_dict"], rtol=0, atol=0)
    pd.testing.assert_frame_equal(scores[1], scores[0], check_exact=True)
    if n == 2:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            alone = validation_config_of(tmp_path / "unbroken" / "run")
            alone.accelerator, alone.run_dir = "cpu", str(tmp_path)
            extractor_validation_pipeline(alone)  # pyright: ignore[reportArgumentType]
        pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "metrics.csv"), scores[0], check_exact=True)
        states = checkpoints[0]["callbacks"]["RandomState"]
        assert not torch.equal(states["torch"], states["of_further_processes"][0]["torch"])
