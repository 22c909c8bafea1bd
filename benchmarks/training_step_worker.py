"""One contender of bench_training_step.py, in a process of its own: the peer has other packages, of Lightning too.

Each line of standard input is a JSON object that names a task, the files of its data, and what to do: "check" answers
with what the task should agree on, "time" with the CPU seconds of an epoch. An epoch is timed from its first batch to
the end of it, without the making of data, network and trainer.
"""

import json
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LambdaCallback
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

N_LABELS, N_INSTANCES = 32, 4  # of a batch
DIM = 64
MARGIN = 0.2
LR = 0.05
N_CHECKED = 10  # steps whose losses are compared
VAL_BATCH = 64

TBatch = dict[str, Any]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(DIM, 2 * DIM), nn.ReLU(), nn.Linear(2 * DIM, DIM))


def hard_triplets(x: Tensor, labels: Tensor) -> Tensor:
    """What one would write oneself: for each anchor its farthest positive and nearest negative."""
    with torch.no_grad():
        distances = torch.cdist(x, x)
        same = labels[:, None] == labels
        positive = distances.masked_fill(~same, -torch.inf).argmax(dim=1)
        negative = distances.masked_fill(same, torch.inf).argmin(dim=1)
    to_positive, to_negative = (torch.linalg.vector_norm(x - x[ids], dim=1) for ids in (positive, negative))
    return (to_positive - to_negative + MARGIN).relu().mean()


class Items(Dataset):
    """Vectors, which are all query and gallery."""

    def __init__(self, x: Tensor, labels: Tensor) -> None:
        self.x, self.labels = x, labels.tolist()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, idx: int) -> TBatch:
        label = self.labels[idx]
        return {"input_tensors": self.x[idx], "labels": label, "idx": idx, "is_query": True, "is_gallery": True}


class Bare:
    """No framework."""

    def train(self, loader: DataLoader, **_: Any) -> tuple[list[Tensor], float]:
        model, losses = network(), []
        optimizer = torch.optim.SGD(model.parameters(), lr=LR)
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=len(loader))
        start = time.process_time()
        for batch in loader:
            loss = hard_triplets(model(batch["input_tensors"]), batch["labels"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            losses.append(loss.detach())
        return losses, time.process_time() - start

    def validate(self, loader: DataLoader) -> tuple[dict[str, float], float]:
        start = time.process_time()
        kept = [(batch["input_tensors"], batch["labels"]) for batch in loader]
        together = [torch.cat(parts) for parts in zip(*kept, strict=True)]
        assert len(together[0]) == len(loader.dataset)  # pyright: ignore[reportArgumentType]
        return {}, time.process_time() - start


class Watch(LambdaCallback):
    """Keeps the losses of the first training steps, and the time of an epoch."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.start = self.seconds = 0.0
        super().__init__(
            on_train_start=self._begin,
            on_train_batch_end=self._keep,
            on_train_end=self._end,
            on_validation_start=self._begin,
            on_validation_end=self._end,
        )

    def _begin(self, *_: Any) -> None:
        self.start = time.process_time()

    def _keep(self, *args: Any) -> None:
        if len(self.losses) < N_CHECKED:
            self.losses.append(args[2]["loss"].detach())

    def _end(self, *_: Any) -> None:
        self.seconds = time.process_time() - self.start


class BareModule(pl.LightningModule):
    """The least that trains: it logs the loss."""

    def __init__(self, model: nn.Module, n_steps: int) -> None:
        super().__init__()
        self.model, self.n_steps = model, n_steps

    def training_step(self, batch: TBatch, *_: Any) -> Tensor:
        loss = hard_triplets(self.model(batch["input_tensors"]), batch["labels"])
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: TBatch, *_: Any) -> TBatch:
        return {**batch, "embeddings": self.model(batch["input_tensors"])}

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.model.parameters(), lr=LR)
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=self.n_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class BareLightning:
    """Lightning, and nothing else."""

    def module(self, model: nn.Module, n_steps: int) -> pl.LightningModule:
        return BareModule(model, n_steps)

    def callbacks(self, loader: DataLoader) -> list[pl.Callback]:  # noqa: ARG002 (what others look at)
        return []

    def train(self, loader: DataLoader, bar: bool, folder: str) -> tuple[list[Tensor], float]:
        module, watch = self.module(network(), len(loader)), Watch()
        with _trainer([watch], folder, bar) as trainer:
            trainer.fit(module, loader)
        return watch.losses, watch.seconds

    def validate(self, loader: DataLoader) -> tuple[dict[str, float], float]:
        module, watch = self.module(nn.Identity(), 1), Watch()
        with _trainer([*self.callbacks(loader), watch], None, bar=False) as trainer:
            (logged,) = trainer.validate(module, loader, verbose=False) or ({},)
        return dict(logged), watch.seconds


class OML(BareLightning):
    """Ours and the peer's have the same names; their metrics differ in what they are given."""

    def module(self, model: nn.Module, n_steps: int) -> pl.LightningModule:
        from oml.interfaces.models import IExtractor
        from oml.lightning.modules.extractor import ExtractorModule
        from oml.losses.triplet import TripletLossWithMiner
        from oml.miners.inbatch_hard_tri import HardTripletsMiner

        class Extractor(IExtractor):
            def __init__(self) -> None:
                super().__init__()
                self.model = model

            @property
            def feat_dim(self) -> int:
                return DIM

            def forward(self, x: Tensor) -> Tensor:
                return self.model(x)

        extractor = Extractor()
        optimizer = torch.optim.SGD([*extractor.parameters()] or [nn.Parameter(torch.zeros(1))], lr=LR)
        criterion = TripletLossWithMiner(MARGIN, HardTripletsMiner(), need_logs=True)
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=n_steps)
        return ExtractorModule(extractor, criterion, optimizer, scheduler)

    def callbacks(self, loader: DataLoader) -> list[pl.Callback]:
        from oml.lightning.callbacks.metric import MetricValCallback
        from oml.metrics.embeddings import EmbeddingMetrics

        return [MetricValCallback(EmbeddingMetrics(**self.of_metrics(loader), verbose=False))]

    def of_metrics(self, loader: DataLoader) -> dict[str, Any]:  # noqa: ARG002 (the peer needs it)
        return {}


class OML4(OML):
    """The peer's metrics ask the data set."""

    def of_metrics(self, loader: DataLoader) -> dict[str, Any]:
        from oml.interfaces.datasets import (
            IQueryGalleryLabeledDataset,  # pyright: ignore[reportAttributeAccessIssue]
        )

        items: Any = loader.dataset

        class Labelled(IQueryGalleryLabeledDataset):
            extra_data: dict[str, Any] = {}  # noqa: RUF012 (the peer looks for sequences here)

            def get_labels(self) -> np.ndarray:
                return np.array(items.labels)

            def get_query_ids(self) -> Tensor:
                return torch.arange(len(items))

            get_gallery_ids = get_query_ids

            def __getitem__(self, idx: int) -> TBatch:
                return items[idx]

            def __len__(self) -> int:
                return len(items)

        return {"dataset": Labelled()}


#: name -> whether it runs in the environment of the peer, and what it is
CONTENDERS: dict[str, tuple[bool, Callable[[], Any]]] = {
    "bare loop": (False, Bare),
    "bare lightning": (False, BareLightning),
    "oml": (False, OML),
    "bare lightning of the peer": (True, BareLightning),
    "oml 4.0.0": (True, OML4),
}


@contextmanager
def _trainer(callbacks: list[pl.Callback], folder: str | None, bar: bool) -> Iterator[pl.Trainer]:
    """A trainer that writes a CSV file every 50 steps, Lightning's default, into the folder, and tells nobody."""
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield pl.Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=CSVLogger(folder) if folder else False,
            callbacks=callbacks,
            enable_progress_bar=bar,
            enable_model_summary=False,
            enable_checkpointing=False,
        )


def run(contender: Any, request: dict[str, Any]) -> tuple[Any, float]:
    x, labels = (torch.from_numpy(np.load(request[name])) for name in ("x", "labels"))
    if request["task"] == "validation":
        return contender.validate(DataLoader(Items(x, labels), batch_size=VAL_BATCH))
    batches = torch.arange(len(x)).view(-1, N_LABELS * N_INSTANCES).tolist()
    loader = DataLoader(Items(x, labels), batch_sampler=batches)
    with tempfile.TemporaryDirectory() as folder:
        losses, seconds = contender.train(loader, bar=request["task"].endswith("bar"), folder=folder)
    return [loss.item() for loss in losses[:N_CHECKED]], seconds


def main() -> None:
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    contender = CONTENDERS[sys.argv[1]][1]()
    for line in sys.stdin:
        request = json.loads(line)
        answer, seconds = run(contender, request)
        print(json.dumps(answer if request["what"] == "check" else seconds), flush=True)


if __name__ == "__main__":
    main()
