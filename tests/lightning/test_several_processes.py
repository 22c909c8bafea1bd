"""Training and validation by several processes, against one."""

import os
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from tests.processes import run_processes
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from oml.interfaces.models import IExtractor
from oml.lightning.callbacks.checkpoints import LastCheckpoint
from oml.lightning.callbacks.metric import MetricValCallback, MetricValCallbackDDP
from oml.lightning.modules.extractor import ExtractorModuleDDP
from oml.lightning.modules.fsdp import fsdp_strategy
from oml.lightning.resuming import RandomState, training_loader
from oml.losses.arcface import ArcFaceLoss
from oml.losses.contrastive import SupConLoss
from oml.metrics.embeddings import EmbeddingMetrics, EmbeddingMetricsDDP

SIZES = [(2, 1), (3, 2), (4, 3), (7, 2), (8, 4), (23, 5)]  # of data sets and batches
METRICS: dict[str, Any] = {"cmc_top_k": (1,), "map_top_k": (3,), "pfc_variance": (0.9,), "verbose": False}


@pytest.fixture(autouse=True)
def _lightning_warns_of_what_tests_want() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        yield


class Points(Dataset):
    """Points around centres, some far from their own; all are queries and galleries."""

    def __init__(self, n: int) -> None:
        generator = torch.Generator().manual_seed(n)
        self.labels = torch.arange(n) % max(1, n // 2)
        self.points = torch.randn(n, 4, generator=generator)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, Any]:
        roles = {"is_query": True, "is_gallery": True}
        return {"input_tensors": self.points[i], "labels": self.labels[i], "idx": i, **roles}


class Net(IExtractor):
    """Linear, with a buffer, which takes in what is trained on if that is wanted."""

    shift: Tensor
    takes_in = False

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("shift", torch.zeros(3))
        with torch.no_grad():
            self.layer.weight.copy_(torch.arange(12).reshape(3, 4) % 5 - 2.0)
            self.layer.bias.zero_()

    @property
    def feat_dim(self) -> int:
        return 3

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.takes_in:
            self.shift += x.mean()
        return self.layer(x) + self.shift


def trainer(rank: int, n: int, *callbacks: pl.Callback, **settings: Any) -> pl.Trainer:
    if n > 1:  # as a launcher tells its processes
        os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE=str(n))
        settings = {"devices": n, "strategy": "ddp", **settings}
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return pl.Trainer(accelerator="cpu", **{"devices": 1, **quiet, "callbacks": [*callbacks], **settings})


def validated(rank: int, n: int, size: int, batch_size: int) -> EmbeddingMetrics:
    metric = EmbeddingMetricsDDP(**METRICS)
    module = ExtractorModuleDDP(None, DataLoader(Points(size), batch_size), Net())
    trainer(rank, n, MetricValCallbackDDP(metric)).validate(module, verbose=False)
    return metric


def trained(rank: int, n: int, criterion: str, global_batch: bool = False, **settings: Any) -> dict[str, Tensor]:
    torch.manual_seed(0)
    net, points = Net(), Points(24)
    points.labels %= 3
    loss: nn.Module = SupConLoss() if criterion == "supcon" else ArcFaceLoss(3, 3)
    optimizer = torch.optim.SGD([*net.parameters(), *loss.parameters()], lr=0.1, momentum=0.9)
    loader = training_loader(points, None, 8 // n, seed=0, num_workers=0)
    module = ExtractorModuleDDP(loader, None, net, loss, optimizer, global_batch=global_batch)
    run = trainer(rank, n, max_epochs=3, gradient_clip_val=1.0, **settings)
    run.fit(module)
    losses = {name: value for name, value in run.callback_metrics.items() if name.endswith("loss_epoch")}
    return {**run.strategy.lightning_module_state_dict(), **losses}


def _validate(rank: int, folder: str) -> None:
    found = []
    for size, batch_size in SIZES:
        metric = validated(rank, 3, size, batch_size)
        found.append((metric.metrics, metric.acc.storage["idx"], metric.acc.storage["embeddings"]))
    torch.save(found, Path(folder) / f"{rank}.pt")


def test_three_processes_evaluate_each_item_once_and_find_what_one_does(tmp_path: Path) -> None:
    run_processes(_validate, str(tmp_path), folder=tmp_path, n=3)
    for rank in range(3):
        for (size, batch_size), (metrics, ids, embeddings) in zip(SIZES, load(tmp_path, rank), strict=True):
            of_one = validated(0, 1, size, batch_size)
            assert torch.equal(ids, torch.arange(size))
            torch.testing.assert_close(embeddings, of_one.acc.storage["embeddings"], rtol=0, atol=0)
            assert metrics == of_one.metrics  # tensors of one number


def _train(rank: int, folder: str) -> None:
    runs = [trained(rank, 2, criterion, shared) for criterion in ("supcon", "arcface") for shared in (True, False)]
    torch.save(runs, Path(folder) / f"{rank}.pt")
    of_shares = trained(rank, 2, "arcface", strategy=fsdp_strategy(2))  # whole in rank 0
    torch.save(of_shares, Path(folder) / f"fsdp{rank}.pt")

    net, metric = Net(), EmbeddingMetricsDDP(**METRICS)
    net.takes_in = True
    loaders = training_loader(Points(24), None, 4, 0, 0), DataLoader(Points(23), 5)
    module = ExtractorModuleDDP(*loaders, net, SupConLoss(), torch.optim.SGD(net.parameters(), lr=0.0))
    module.global_batch = True
    trainer(rank, 2, MetricValCallbackDDP(metric), max_epochs=1, strategy=fsdp_strategy(2)).fit(module)
    torch.save((net.shift, metric.acc.storage["embeddings"]), Path(folder) / f"buffers{rank}.pt")


def test_two_processes_train_as_one_does_with_the_batches_of_both(tmp_path: Path) -> None:
    run_processes(_train, str(tmp_path), folder=tmp_path)
    by_rank = [load(tmp_path, rank) for rank in (0, 1)]
    supcon, arcface = trained(0, 1, "supcon"), trained(0, 1, "arcface")
    for shared, alone, shared_too, plain in by_rank:
        torch.testing.assert_close(shared, supcon)
        torch.testing.assert_close(plain, arcface)
        torch.testing.assert_close(shared_too, arcface)
        assert not torch.allclose(alone["model.layer.weight"], supcon["model.layer.weight"], rtol=1e-3)
    torch.testing.assert_close(by_rank[0], by_rank[1], rtol=0, atol=0)
    torch.testing.assert_close(torch.load(tmp_path / "fsdp0.pt"), arcface)
    net = Net()
    net.shift, embeddings = torch.load(tmp_path / "buffers0.pt")
    assert net.shift.abs().min() > 0
    for each in (embeddings, torch.load(tmp_path / "buffers1.pt")[1]):  # those of the first process are in checkpoints
        torch.testing.assert_close(each, net.extract(Points(23).points))


def _refused(rank: int, folder: str) -> None:
    """What each way of giving loaders that are not shared out comes to."""
    loader, texts = DataLoader(Points(8), 2), []
    names = {"fit": "val_dataloaders", "validate": "dataloaders"}
    for settings in ({}, {"use_distributed_sampler": False}):
        for run, name in names.items():
            module = ExtractorModuleDDP(
                training_loader(Points(8), None, 2, 0, 0), None, net := Net(), SupConLoss(),
                torch.optim.SGD(net.parameters(), lr=0.1),
            )  # fmt: skip
            callback = MetricValCallbackDDP(EmbeddingMetricsDDP(**METRICS))
            start = getattr(trainer(rank, 2, callback, max_epochs=1, num_sanity_val_steps=0, **settings), run)
            with pytest.raises(RuntimeError) as caught:
                start(module, **{name: loader})
            texts.append(str(caught.value))
    module, of_one = ExtractorModuleDDP(None, loader, Net()), MetricValCallback(EmbeddingMetrics(**METRICS))
    with pytest.raises(ValueError, match="each sees a part: they need MetricValCallbackDDP"):
        trainer(rank, 2, of_one).validate(module)
    torch.save(texts, Path(folder) / f"{rank}.pt")


def test_loaders_that_are_not_shared_out(tmp_path: Path) -> None:
    run_processes(_refused, str(tmp_path), folder=tmp_path)
    texts = [*load(tmp_path, 0), *load(tmp_path, 1)]
    assert len(texts) == 8
    assert all("ExtractorModuleDDP" in text and "use_distributed_sampler=False" in text for text in texts)


def test_shares_of_a_training_loader_are_the_batches_of_one() -> None:
    items = Points(22)
    whole = training_loader(items, batches := Batches(), None, 0, 0)
    shares = [training_loader(items, batches, None, 0, 0).shared_out(3, rank) for rank in range(3)]
    of_shares = [[batch["idx"].tolist() for batch in share] for share in shares]
    of_one = [batch["idx"].tolist() for batch in whole]
    assert [len(share) for share in shares] == [3, 3, 3]
    dealt = [batch for step in zip(*of_shares, strict=True) for batch in step]
    assert dealt == [*of_one, of_one[0], of_one[1]]


class Batches(Sampler[list[int]]):
    """7 batches."""

    def __len__(self) -> int:
        return 7

    def __iter__(self) -> Iterator[list[int]]:
        yield from torch.randperm(21).reshape(7, 3).tolist()


def test_a_share_goes_on_where_it_was() -> None:
    def shares(n: int) -> list[Any]:
        return [training_loader(Points(40), None, 2, 5, 0).shared_out(n, rank) for rank in range(n)]

    whole = [[batch["idx"].tolist() for batch in each] for each in shares(2)]
    half = shares(2)[0]
    begun = iter(half)
    _ = [next(begun) for _ in range(4)]
    state = half.state_dict()
    again = shares(2)
    for each in again:
        each.load_state_dict(state)
    assert [[batch["idx"].tolist() for batch in each] for each in again] == [each[4:] for each in whole]
    of_all = [batch for step in zip(*whole, strict=True) for batch in step]
    further = shares(3)  # 8 batches are done, 6 of them are 2 of each
    for each in further:
        each.load_state_dict(state)
    found = zip(*([batch["idx"].tolist() for batch in each] for each in further), strict=True)
    assert [batch for step in found for batch in step] == of_all[6:18]


class Stop(Exception):
    """Of a run."""


def test_a_run_goes_on_in_another_number_of_processes(tmp_path: Path) -> None:
    """A process with every second batch, that is interrupted; then one with all."""

    class Noting(ExtractorModuleDDP):
        ids: list[list[int]]
        stop_after = 1000

        def training_step(self, batch: dict[str, Any], batch_idx: int = 0, *_: Any) -> Tensor:
            if len(self.ids) == self.stop_after:
                raise Stop
            self.ids.append(batch["idx"].tolist())
            return super().training_step(batch, batch_idx)

    def run(loader: DataLoader, stop_after: int = 1000, checkpoint: Path | None = None) -> Noting:
        net, loss = Net(), ArcFaceLoss(3, 20)
        module = Noting(loader, None, net, loss, torch.optim.SGD([*net.parameters(), *loss.parameters()], 0.1))
        module.ids, module.stop_after = [], stop_after
        fit = trainer(0, 1, RandomState(), LastCheckpoint(tmp_path, 3), max_epochs=2, enable_checkpointing=True).fit
        with pytest.raises(Stop) if stop_after < 1000 else nullcontext():
            fit(module, ckpt_path=checkpoint)
        return module

    whole = training_loader(Points(40), None, 2, 0, 0)
    of_first_epoch, of_second_epoch = ([batch["idx"].tolist() for batch in whole] for _ in range(2))
    assert run(training_loader(Points(40), None, 2, 0, 0).shared_out(2, 0), 5).ids == of_first_epoch[:10:2]
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=False)
    assert (checkpoint["n_processes"], checkpoint["global_step"]) == (1, 3)
    torch.save({**checkpoint, "n_processes": 2}, tmp_path / "of_two.ckpt")
    module = run(training_loader(Points(40), None, 2, 0, 0), checkpoint=tmp_path / "of_two.ckpt")
    assert module.ids == [*of_first_epoch[6:], *of_second_epoch]
    assert (module.trainer.current_epoch, module.trainer.global_step) == (2, 3 + 14 + 20)


def test_too_few_items_for_a_batch_in_each_process() -> None:
    with pytest.raises(ValueError, match="by 3 processes needs a batch for each, and 8 items make 2"):
        training_loader(Points(8), None, 4, 0, 0).shared_out(3, 0)


def load(folder: Path, rank: int) -> Any:
    return torch.load(folder / f"{rank}.pt", weights_only=False)
