"""What a framework adds to a training step and to a validation epoch, against bare loops and the peer.

Training: a network of 64, 128 and 64 numbers, batches of 32 labels with 4 items, hard triplets, SGD, a learning rate
that changes by step, logs into a CSV file every 50 steps; once without and once with a progress bar. The bare loop and
bare Lightning, which logs the loss, have a loss of a few lines of PyTorch; OML logs all that it does by default, and
what its loss tells with ``need_logs=True``. Validation: an epoch of items that are embeddings already, in batches of
64, all query and gallery, through ``MetricValCallback`` with the default metrics; the bare ones only go through the
batches. The peer runs with the Lightning that it asks for, so that bare Lightning is there in that version too.

Prints a JSON line per task and contender, after comparing the losses of the first steps, and the metrics with the
peer's. Every contender is a process of its own with one thread; rounds are interleaved. The peer's environment is made
the first time, which takes minutes and GB, see peers.py.

    python benchmarks/bench_training_step.py            # two minutes
    python benchmarks/bench_training_step.py --quick    # seconds, to see that it runs
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from common import Worker, circumstances, spread
from peers import OML_PEER, python_with
from training_step_worker import CONTENDERS, DIM, N_INSTANCES, N_LABELS

BARE, LIGHTNING, OURS, PEER_LIGHTNING, PEER = CONTENDERS
PEER_WITH_LIGHTNING = (*OML_PEER, "pytorch-lightning==2.1.2", "hydra-core==1.3.0", "wandb", "neptune<1.10.1")
TASKS = ("training", "training, progress bar", "validation")
METRICS = ("OVERALL/cmc/5", "OVERALL/precision/5", "OVERALL/map/5")
TOLERANCE = 1e-5


def make(n_labels: int, n_instances: int) -> tuple[np.ndarray, np.ndarray]:
    """Items around a centre for each label, label by label, and their labels."""
    rng = np.random.default_rng(0)
    labels = np.arange(n_labels).repeat(n_instances)
    x = rng.standard_normal((n_labels, DIM))[labels] + 1.5 * rng.standard_normal((len(labels), DIM))
    return x.astype(np.float32), labels


def check(task: str, answers: dict[str, Any]) -> None:
    """Leave the program if contenders do not do the same."""
    if task == "validation":
        values = {name: [answers[name][metric] for metric in METRICS] for name in (OURS, PEER)}
    else:
        values = answers
    expected = np.array(values[OURS])
    for name, of_contender in values.items():
        worst = np.abs(np.array(of_contender) - expected).max()
        if not worst <= TOLERANCE:
            sys.exit(f"{name} and {OURS} differ by {worst:.1e} in {task}: {of_contender}, {values[OURS]}")


def bench(task: str, n_labels: int, n_instances: int, rounds: int, workers: dict[str, Worker], about: Any) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    with tempfile.TemporaryDirectory() as folder:
        request = {"task": task}
        for name, array in zip(("x", "labels"), make(n_labels, n_instances), strict=True):
            np.save(Path(folder) / f"{name}.npy", array)
            request[name] = str(Path(folder) / f"{name}.npy")
        # the check warms up as well
        check(task, {name: worker({**request, "what": "check"}) for name, worker in workers.items()})
        for _ in range(rounds):
            for name, worker in workers.items():
                seconds[name].append(worker({**request, "what": "time"}))
    n_items = n_labels * n_instances
    is_training = task != "validation"
    n_batches = n_items // (N_LABELS * N_INSTANCES) if is_training else 1
    for name, times in seconds.items():
        per_batch = {"cpu_milliseconds_per_batch": spread([1e3 * cpu / n_batches for cpu in times])}
        result = {
            "benchmark": "training step",
            "task": task,
            "contender": name,
            "n_items": n_items,
            "dim": DIM,
            "rounds": rounds,
            **(per_batch if is_training else {"cpu_seconds": spread(times)}),
            **{
                f"to_{other.replace(' ', '_')}": spread([a / b for a, b in zip(times, seconds[other], strict=True)])
                for other in (BARE, LIGHTNING, PEER_LIGHTNING)
            },
            "peer_to_this": spread([peer / cpu for peer, cpu in zip(seconds[PEER], times, strict=True)]),
        }
        print(json.dumps(result | about), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="20 batches, 2,000 items, two rounds")
    args = parser.parse_args()
    n_batches, n_items, rounds = (20, 2_000, 2) if args.quick else (200, 20_000, args.rounds)
    about = circumstances(1, "torch", "pytorch-lightning")
    script = Path(__file__).with_name("training_step_worker.py")
    workers = {
        name: Worker(script, name, python_with(PEER_WITH_LIGHTNING) if is_peer else Path(sys.executable))
        for name, (is_peer, _) in CONTENDERS.items()
    }
    try:
        for task in args.tasks:
            shape = (n_items // 5, 5) if task == "validation" else (n_batches * N_LABELS, N_INSTANCES)
            bench(task, *shape, rounds, workers, about)
    finally:
        for worker in workers.values():
            worker.close()


if __name__ == "__main__":
    main()
