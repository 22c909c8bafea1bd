"""Training a model of pairs, without images."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.lightning.test_several_processes import trainer
from tests.processes import run_processes
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from oml.interfaces.models import IFreezable, IPairwiseModel
from oml.lightning.modules.pairwise_postprocessing import PairwiseModule, PairwiseModuleDDP
from oml.lightning.resuming import training_loader
from oml.miners.pairs import PairsMiner


@pytest.fixture(autouse=True)
def _lightning_warns_of_what_tests_want() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        yield


class Logit(IPairwiseModel, IFreezable):
    """Of the products of what two items have; the same weights every time."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, -1.0, 2.0]))
        self.is_frozen: list[bool] = []

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        return (x1 * x2) @ self.weight

    def predict(self, x1: Tensor, x2: Tensor) -> Tensor:
        return self.forward(x1, x2).sigmoid()

    def freeze(self) -> None:
        self.is_frozen.append(True)

    def unfreeze(self) -> None:
        self.is_frozen.append(False)


class Items(Dataset):
    """Inputs, and other points as embeddings, for labels of one's choice."""

    def __init__(self, labels: list[int]) -> None:
        generator = torch.Generator().manual_seed(len(labels))
        self.labels = torch.tensor(labels)
        self.inputs, self.embeddings = torch.randn(2, len(labels), 3, generator=generator)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"input_tensors": self.inputs[i], "embeddings": self.embeddings[i], "labels": self.labels[i], "idx": i}


def module(hard_mining: bool = False, **kwargs: Any) -> PairwiseModule:
    model = Logit()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return PairwiseModule(model, PairsMiner(hard_mining), nn.BCEWithLogitsLoss(), optimizer, **kwargs)


def batch_of(labels: list[int]) -> dict[str, Any]:
    items = Items(labels)
    return {"input_tensors": items.inputs, "embeddings": items.embeddings, "labels": items.labels}


def loss_by_definition(batch: dict[str, Any], pairs: set[tuple[int, int]]) -> Tensor:
    losses, x, labels = [], batch["input_tensors"], batch["labels"]
    for i, j in pairs:
        probability = (Logit().weight * x[i] * x[j]).sum().sigmoid()
        losses.append(-(probability if labels[i] != labels[j] else 1 - probability).log())
    return torch.stack(losses).mean()


def test_the_loss_is_of_all_pairs_in_triplets() -> None:
    batch = batch_of([0, 0, 1, 1, 2])
    pairs = {(i, j) for i in range(5) for j in range(i + 1, 5)}
    found = module().training_step(batch)
    torch.testing.assert_close(found, loss_by_definition(batch, pairs))
    assert found > 0.1


def test_pairs_are_picked_by_the_embeddings_of_the_batch() -> None:
    """Not by the inputs: those are other points."""
    batch, pairs = batch_of([0, 0, 0, 1, 1, 2]), set()
    distances, labels = torch.cdist(batch["embeddings"], batch["embeddings"]), batch["labels"]
    for i in range(5):
        positives = [j for j in range(6) if labels[i] == labels[j] and i != j]
        negatives = [j for j in range(6) if labels[i] != labels[j]]
        for j in (max(positives, key=lambda j: distances[i, j]), min(negatives, key=lambda j: distances[i, j])):
            pairs.add((min(i, j), max(i, j)))
    torch.testing.assert_close(module(hard_mining=True).training_step(batch), loss_by_definition(batch, pairs))


@pytest.mark.parametrize("hard_mining", [True, False])
@pytest.mark.parametrize("labels", [[1, 1, 1], [0, 1, 2], [5]])
def test_a_batch_without_pairs(labels: list[int], hard_mining: bool) -> None:
    learner = module(hard_mining)
    loss = learner.training_step(batch_of(labels))
    assert loss == 0
    loss.backward()
    assert torch.equal(learner.model.weight.grad, torch.zeros(3))  # pyright: ignore[reportArgumentType]


def test_in_half_precision_the_loss_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = module()
    monkeypatch.setattr(learner.model, "forward", lambda x1, x2: Logit()(x1, x2).bfloat16())
    assert learner.training_step(batch_of([0, 0, 1])).dtype == torch.float32


def test_validation_leaves_the_batch_as_it_is() -> None:
    batch = batch_of([0, 1])
    assert module().validation_step(batch) is batch


def test_what_is_logged() -> None:
    learner = module()
    learner.scheduler = torch.optim.lr_scheduler.StepLR(learner.optimizer, 1)  # pyright: ignore[reportArgumentType]
    run = trainer(0, 1, max_epochs=1, log_every_n_steps=1)
    labels = [0, 0, 1, 1, 2, 2, 3, 3, 3]
    run.fit(learner, DataLoader(Items(labels), 5))
    assert {"loss", "loss_step", "loss_epoch", "lr"} <= set(run.callback_metrics)
    first, second = losses(labels)
    expected = (10 * first + 6 * second) / 16  # pairs of each
    torch.testing.assert_close(run.callback_metrics["loss_epoch"], expected)


def losses(labels: list[int]) -> list[Tensor]:
    """Of two batches, one after the other."""
    learner, found = module(), []
    for batch in DataLoader(Items(labels), 5):
        assert learner.optimizer is not None
        learner.optimizer.zero_grad()
        found.append(learner.training_step(batch))
        found[-1].backward()
        learner.optimizer.step()
    return [each.detach() for each in found]


def test_an_epoch_without_pairs_has_a_loss_of_0() -> None:
    run = trainer(0, 1, max_epochs=1)
    run.fit(module(), DataLoader(Items([0, 1, 2, 3]), 2))
    assert run.callback_metrics["loss_epoch"] == 0


def test_freezing() -> None:
    learner = module(freeze_n_epochs=2)
    trainer(0, 1, max_epochs=3).fit(learner, DataLoader(Items([0, 0, 1, 1]), 4))
    model: Any = learner.model
    by_epoch = list(dict.fromkeys(zip(model.is_frozen, (0, 0, 1, 2), strict=True)))
    assert by_epoch == [(True, 0), (True, 1), (False, 2)]


def test_what_a_plateau_watches() -> None:
    model = Logit()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler: Any = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    with pytest.raises(ValueError, match="PairwiseModule needs a scheduler_monitor_metric"):
        PairwiseModule(model, PairsMiner(), nn.BCEWithLogitsLoss(), optimizer, scheduler)


def trained(rank: int, n: int) -> dict[str, Tensor]:
    """Of one process with batches of 8, or of two with half of them each, whose pairs are as many."""
    model = Logit()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = training_loader(Items([0, 0, 1, 1] * 4), Batches(n), None, 0, 0)
    learner = PairwiseModuleDDP(loader, None, model, PairsMiner(False), nn.BCEWithLogitsLoss(), optimizer)
    run = trainer(rank, n, max_epochs=3)
    run.fit(learner)
    return {**learner.state_dict(), "loss": run.callback_metrics["loss_epoch"]}


class Batches(torch.utils.data.Sampler[list[int]]):
    """4 items each; the second of two has no pairs."""

    def __init__(self, n: int) -> None:
        self.batches = [[0, 1, 2, 3], [4, 5, 8, 9]] if n == 2 else [[0, 1, 2, 3]]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


def _train(rank: int, folder: str) -> None:
    torch.save(trained(rank, 2), Path(folder) / f"{rank}.pt")


def test_a_process_without_pairs_waits_for_nobody(tmp_path: Path) -> None:
    """It counts as a gradient of zero, so that two processes take half the steps of the one that has pairs."""
    run_processes(_train, str(tmp_path), folder=tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    model = Logit()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    items = Items([0, 0, 1, 1] * 4)
    batch = {
        name: torch.stack([items[i][name] for i in range(4)]) for name in ("input_tensors", "embeddings", "labels")
    }
    of_one = PairwiseModule(model, PairsMiner(False), nn.BCEWithLogitsLoss(), optimizer)
    loss = torch.zeros(())
    for _ in range(3):
        optimizer.zero_grad()
        loss = of_one.training_step(batch)
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(first["model.weight"], model.weight.detach())
    torch.testing.assert_close(first["loss"], loss.detach())  # the mean over pairs: of the other there are none
