"""One contender of bench_triplets.py, in a process of its own: the peers have other packages, and memory is measured.

Each line of standard input is a JSON object that names a task, the files of batches and labels, and what to do with
steps (mining, loss, backward): "check" starts anew, gives the loss all batches but the last, and answers with the
loss of the last one and the name of a file of its gradient; "time" answers with the CPU seconds of a step, "memory"
with the MiB that one adds. These go on with the batches in turn, so that a memory always holds the others.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common import peak_growth, timed

N_INSTANCES = 4
DIM = 384
MARGIN = 0.2
BANK_SIZE = 8  # batches
#: task -> positives and negatives of an anchor, from the hardest
N_HARD = {"hard": (1, 1), "n-hard": (3, 10), "bank": (3, 10), "bank 1x1": (1, 1)}

#: (embeddings, labels) -> loss
TLoss = Callable[[Tensor, Tensor], Tensor]


def oml(task: str) -> TLoss:
    """Ours and the peer's have the same names and arguments."""
    from oml.losses.triplet import TripletLossWithMiner

    return TripletLossWithMiner(None if task == "soft" else MARGIN, _miner(task))


def _miner(task: str) -> Any:
    if task in ("all", "soft"):
        from oml.miners.inbatch_all_tri import AllTripletsMiner

        return AllTripletsMiner()
    if task == "hard":
        from oml.miners.inbatch_hard_tri import HardTripletsMiner

        return HardTripletsMiner()
    if task == "cluster":
        from oml.miners.inbatch_hard_cluster import HardClusterMiner

        return HardClusterMiner()
    from oml.miners.inbatch_nhard_tri import NHardTripletsMiner

    miner = NHardTripletsMiner(*N_HARD[task])
    if not task.startswith("bank"):
        return miner
    from oml.miners.miner_with_bank import MinerWithBank

    return MinerWithBank(BANK_SIZE, miner, need_logs=False)


def pytorch_metric_learning(task: str) -> TLoss:
    from pytorch_metric_learning import distances, losses, miners, reducers  # pyright: ignore[reportMissingImports]

    distance = distances.LpDistance(normalize_embeddings=False)
    loss = losses.TripletMarginLoss(  # its default reducer averages over the active triplets
        margin=0 if task == "soft" else MARGIN,
        smooth_loss=task == "soft",
        distance=distance,
        reducer=reducers.MeanReducer(),
    )
    if task in ("all", "soft"):
        return loss
    miner = miners.BatchHardMiner(distance=distance)
    if task == "hard":
        return lambda x, labels: loss(x, labels, miner(x, labels))
    memory: Any = None

    def with_memory(x: Tensor, labels: Tensor) -> Tensor:
        nonlocal memory
        if memory is None:  # which holds the batch itself, too
            memory = losses.CrossBatchMemory(loss, DIM, memory_size=(BANK_SIZE + 1) * len(x), miner=miner)
        return memory(x, labels)

    return with_memory


def floor(_: str) -> TLoss:
    """The distances of the batch, and one product of the gradient's size."""

    @torch.no_grad()
    def products(x: Tensor, _: Tensor) -> Tensor:
        norms = x.square().sum(dim=1)
        squared = torch.addmm(norms[:, None] + norms, x, x.T, alpha=-2)
        return squared.clamp_(min=0).sqrt_() @ x

    return products


ALL_TASKS = ("all", "soft", "hard", "n-hard", "cluster", "bank", "bank 1x1")
#: name -> whether it runs in the environment of the peers, the tasks it knows, and how its losses are made
CONTENDERS: dict[str, tuple[bool, tuple[str, ...], Callable[[str], TLoss]]] = {
    "floor": (False, ALL_TASKS, floor),
    "oml": (False, ALL_TASKS, oml),
    "oml 4.0.0": (True, ("all", "soft", "hard", "n-hard", "cluster", "bank"), oml),
    "pytorch-metric-learning 2.9.0": (True, ("all", "soft", "hard", "bank 1x1"), pytorch_metric_learning),
}


class Steps:
    """A loss and the batches it gets, the last one first: it has seen the others already."""

    def __init__(self, loss: TLoss, batches: np.ndarray, labels: np.ndarray) -> None:
        self.loss, self.labels = loss, torch.from_numpy(labels)
        *earlier, last = (torch.from_numpy(batch).requires_grad_() for batch in batches)
        for batch in earlier:
            loss(batch, self.labels)
        self.batches = cycle([last, *earlier])

    def step(self) -> tuple[Tensor, Tensor]:
        batch = next(self.batches)
        batch.grad = None
        loss = self.loss(batch, self.labels)
        if loss.requires_grad:  # all but the floor
            loss.backward()
        return loss, batch

    def check(self) -> dict[str, Any]:
        loss, batch = self.step()
        if batch.grad is None:
            return {}
        path = Path(tempfile.mkdtemp()) / "gradient.npy"
        np.save(path, batch.grad.numpy())
        return {"loss": loss.item(), "gradient": str(path)}

    def seconds(self, repetitions: int) -> float:
        return timed(lambda: [self.step() for _ in range(repetitions)] and None)[0] / repetitions


def main() -> None:
    make = CONTENDERS[sys.argv[1]][2]
    steps = None
    for line in sys.stdin:
        request = json.loads(line)
        if request["what"] == "check":
            steps = Steps(make(request["task"]), np.load(request["batches"]), np.load(request["labels"]))
            answer = steps.check()
        else:
            assert steps is not None
            answer = steps.seconds(request["repetitions"]) if request["what"] == "time" else peak_growth(steps.step)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
