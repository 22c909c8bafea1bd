"""A training step of triplet losses (mining, loss, backward) against a floor and the peers.

The floor is the matrix of the distances in a batch, in float32, and one more product of the gradient's size. Tasks:
all triplets; the same with the soft margin; the hardest triplet of an anchor; its 3 hardest positives with its 10
hardest negatives; the hardest triplets of label means; the 3 x 10 hardest of the batch and the 8 batches before it;
the 1 x 1 hardest of those, which is what pytorch-metric-learning can do, without the part of the gradient that goes
to positives and negatives. Embeddings are unit vectors around a centre for each label; the cosine of two of a label is
about 0 to 0.53, evenly over the labels, so that half of all triplets are within the margin.

Prints a JSON line per task, size and contender, after comparing losses and gradients with the definition in float64.
Every contender is a process of its own with one thread; rounds are interleaved, with as many repetitions as make a
measurement long enough. The peers' environment is made the first time, which takes minutes and GB, see peers.py.

    python benchmarks/bench_triplets.py            # several minutes
    python benchmarks/bench_triplets.py --quick    # seconds, to see that it runs
    python benchmarks/bench_triplets.py --sizes 256 --tasks all soft
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common import Worker, circumstances, spread
from peers import python_with
from triplets_worker import ALL_TASKS, BANK_SIZE, CONTENDERS, DIM, MARGIN, N_HARD, N_INSTANCES

FLOOR, OURS, OML_PEER, PML_PEER = CONTENDERS
MOST_OF_ALL_TRIPLETS = 256  # the batch of which the peer's lists of all triplets, and their embeddings, fit a memory
SECONDS_OF_A_MEASUREMENT = 0.1
TOLERANCE = 1e-4


def make(size: int, n_batches: int) -> tuple[np.ndarray, np.ndarray]:
    """Batches ``(batch, item, dim)`` and the labels that each of them has."""
    rng = np.random.default_rng(0)
    n_labels = size // N_INSTANCES
    labels = rng.permutation(np.arange(n_labels).repeat(N_INSTANCES))
    cosine = np.linspace(0, 0.53, n_labels)[labels, None]
    centres = rng.standard_normal((n_labels, DIM))[labels]
    x = np.sqrt(cosine) * centres + np.sqrt(1 - cosine) * rng.standard_normal((n_batches, size, DIM))
    return (x / np.linalg.norm(x, axis=2, keepdims=True)).astype(np.float32), labels


def distances(a: Tensor, b: Tensor) -> Tensor:
    """L2, for autograd; those of an item to itself are not meant to be used."""
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).clamp(min=1e-12).sqrt()


def definition(task: str, batches: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """The loss of the last batch, its gradient, and the share of its triplets within the margin, in float64."""
    x = torch.from_numpy(batches[-1]).double().requires_grad_()
    ids = torch.from_numpy(labels)
    same = ids[:, None] == ids.repeat(len(batches))
    if task == "cluster":
        of_label = torch.nn.functional.one_hot(ids).T.bool()
        means = of_label.double() @ x / N_INSTANCES
        positive = distances(means, x)[of_label].view(len(means), -1)
        negative = distances(means, means)[~torch.eye(len(means), dtype=torch.bool)].view(len(means), -1)
        n_positive, n_negative = 1, 1
    else:
        d = distances(x, torch.cat([x, torch.from_numpy(batches[:-1]).double().flatten(0, 1)]))
        negative = d[~same].view(len(x), -1)  # every anchor has as many
        positive = d[same.fill_diagonal_(False)].view(len(x), -1)
        n_positive, n_negative = N_HARD.get(task, (positive.shape[1], negative.shape[1]))
    hardest = positive.topk(n_positive).values, negative.topk(n_negative, largest=False).values
    gap = hardest[0][:, :, None] - hardest[1][:, None, :]
    loss = torch.nn.functional.softplus(gap).mean() if task == "soft" else (gap + MARGIN).relu().mean()
    loss.backward()
    assert x.grad is not None
    return {"loss": loss.item(), "gradient": x.grad.numpy(), "active": (gap > -MARGIN).double().mean().item()}


def deviations(answer: dict[str, Any], expected: dict[str, Any]) -> dict[str, float]:
    """Relative ones, of the loss and of the gradient as a whole."""
    gradient = np.load(answer["gradient"])
    shutil.rmtree(Path(answer["gradient"]).parent)
    norm = np.linalg.norm(expected["gradient"])
    return {
        "loss": abs(answer["loss"] / expected["loss"] - 1),
        "gradient": float(np.linalg.norm(gradient - expected["gradient"]) / norm),
    }


def bench(task: str, size: int, rounds: int, workers: dict[str, Worker], about: dict[str, Any]) -> None:
    batches, labels = make(size, 1 + BANK_SIZE if task.startswith("bank") else 1)
    expected = definition(task, batches, labels)
    request: dict[str, Any] = {"task": task}
    checks, repetitions = {}, {}
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    with tempfile.TemporaryDirectory() as folder:
        for name, array in (("batches", batches), ("labels", labels)):
            np.save(Path(folder) / f"{name}.npy", array)
            request[name] = str(Path(folder) / f"{name}.npy")
        for name, worker in workers.items():  # the check warms up as well
            if answer := worker({**request, "what": "check"}):
                checks[name] = deviations(answer, expected)
    if max(checks[OURS].values()) > TOLERANCE:
        sys.exit(f"The loss or gradient of {task} is wrong for a batch of {size}: {checks[OURS]}")
    for name, worker in workers.items():
        once = worker({"what": "time", "repetitions": 1})
        repetitions[name] = max(1, min(200, round(SECONDS_OF_A_MEASUREMENT / once)))
    for _ in range(rounds):
        for name, worker in workers.items():
            seconds[name].append(worker({"what": "time", "repetitions": repetitions[name]}))
    for name, times in seconds.items():
        result = {
            "benchmark": "triplets",
            "task": task,
            "contender": name,
            "batch_size": size,
            "n_instances": N_INSTANCES,
            "dim": DIM,
            "dtype": "float32",
            "active_triplets": round(expected["active"], 3),
            "rounds": rounds,
            "repetitions": repetitions[name],
            "cpu_milliseconds": spread([1e3 * cpu for cpu in times]),
            "to_floor": spread([cpu / floor for cpu, floor in zip(times, seconds[FLOOR], strict=True)]),
            "peers_to_this": {
                peer: spread([other / cpu for cpu, other in zip(times, seconds[peer], strict=True)])
                for peer in (OML_PEER, PML_PEER)
                if peer in seconds
            },
            "peak_growth_mib": workers[name]({"what": "memory"}),
        }
        if name in checks:
            result["deviations"] = checks[name]
        print(json.dumps(result | about), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--tasks", nargs="+", choices=ALL_TASKS, default=ALL_TASKS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="batches of 64, two rounds")
    args = parser.parse_args()
    if args.quick:
        args.sizes, args.rounds = [64], 2
    about = circumstances(1, "torch")
    script = Path(__file__).with_name("triplets_worker.py")
    for size in args.sizes:
        workers = {
            name: Worker(script, name, python_with() if is_peer else Path(sys.executable))
            for name, (is_peer, _, _) in CONTENDERS.items()
        }
        try:
            for task in args.tasks:
                able = {name: worker for name, worker in workers.items() if task in CONTENDERS[name][1]}
                if task in ("all", "soft") and size > MOST_OF_ALL_TRIPLETS:
                    del able[OML_PEER]
                    n_bytes = 3 * 4 * DIM * size * (N_INSTANCES - 1) * (size - N_INSTANCES)
                    why = f"embeddings of all triplets would take {n_bytes / 2**30:.1f} GiB"
                    left_out = {"task": task, "contender": OML_PEER, "batch_size": size, "left_out": why}
                    print(json.dumps({"benchmark": "triplets"} | left_out | about), flush=True)
                bench(task, size, args.rounds, able, about)
        finally:
            for worker in workers.values():
                worker.close()


if __name__ == "__main__":
    main()
