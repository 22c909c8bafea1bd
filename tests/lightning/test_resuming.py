"""A run that was interrupted and resumes is the run that was not interrupted."""

import random
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler
from torchvision.transforms import v2

from oml.datasets.base import DatasetWithLabels
from oml.lightning.resuming import RandomState, TrainingLoader, training_loader
from oml.samplers.balance import BalanceSampler
from oml.transforms.images.utils import as_callable
from oml.utils.download_mock_dataset import download_mock_dataset


@pytest.fixture(autouse=True)
def _lightning_warns_of_what_tests_want() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        yield


class Drawn(Dataset):
    """Items say what they are and what they drew, from each of the generators."""

    def __init__(self) -> None:
        import albumentations

        noise = [albumentations.GaussNoise(p=1.0)]
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
    ours.batch_sampler.sampler.set_epoch(2)  # as Lightning does
    assert taken(ours, 1) == expected[2:]
    ours.load_state_dict({**ours.state_dict(), "epoch": 1, "batches_done": 4})
    ours.batch_sampler.sampler.set_epoch(1)
    assert taken(ours, 1) == [expected[1][4:]]
    ours.batch_sampler.sampler.set_epoch(0)
    assert taken(ours, 1) == expected[:1]


def test_the_generators_of_the_process_are_left_alone() -> None:
    def drawn() -> tuple[float, float, Tensor]:
        return random.random(), np.random.rand(), torch.rand(())

    loaders = [loader(FromGlobalGenerator(), n_workers) for n_workers in (0, 1)]
    state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    expected = drawn()
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])
    for each in loaders:
        taken(each, 1)
    assert drawn() == expected


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

    random.gauss(), np.random.randn()
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
