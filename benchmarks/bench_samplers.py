"""Batch samplers, built and run for one epoch, against a floor and the peers.

The floor sorts the labels, permutes them, gathers items and makes lists of them, and chooses nothing; it has the
fastest sort we know of, our own; a second one has numpy's. Batches are of 32 labels with 4 items each; those of
the category samplers of 4 categories out of 100 with 8 labels each. Every contender is a process of its own with one
thread; rounds are interleaved. Prints a JSON line per sampler, size and contender, after checking the batches of an
epoch. The peers are left out above 40,000 labels, where an epoch would take them hours. Their environment is made the
first time, which takes minutes and GB, see peers.py.

    python benchmarks/bench_samplers.py            # several minutes
    python benchmarks/bench_samplers.py --quick    # seconds, to see that it runs
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from common import Worker, circumstances, spread
from peers import python_with
from samplers_worker import CONTENDERS, LABELS_PER_BATCH, N_INSTANCES, SHAPE, n_batches

N_CATEGORIES = 100
MOST_LABELS_OF_PEERS = 40_000
FLOOR, OURS, PEER = "floor", "oml", "oml 4.0.0"


def make(n_labels: int, n_items: int) -> tuple[np.ndarray, np.ndarray]:
    """The label of every item, each at least twice, and the category of every label, each 16 times at least."""
    rng = np.random.default_rng(0)
    labels = np.concatenate([np.arange(n_labels).repeat(2), rng.integers(0, n_labels, n_items - 2 * n_labels)])
    categories = np.concatenate([np.arange(N_CATEGORIES).repeat(16), rng.integers(0, N_CATEGORIES, n_labels)])
    return rng.permutation(labels), rng.permutation(categories[:n_labels])


def deviations(sampler: str, batches: np.ndarray, labels: np.ndarray, categories: np.ndarray) -> list[str]:
    """What is not as the sampler promises."""
    found = []
    if len(batches) != n_batches(sampler, len(categories)):
        found.append(f"{len(batches)} batches")
    items = np.sort(batches.reshape(-1, N_INSTANCES), axis=1)
    by_item = labels[items]
    if (by_item != by_item[:, :1]).any():
        found.append("items of a label stand apart")
    n_distinct = 1 + (items[:, 1:] != items[:, :-1]).sum(axis=1)
    if (n_distinct != np.minimum(np.bincount(labels)[by_item[:, 0]], N_INSTANCES)).any():
        found.append("items repeated though there are enough")
    by_batch = np.sort(by_item[:, 0].reshape(-1, LABELS_PER_BATCH), axis=1)
    if (by_batch[:, 1:] == by_batch[:, :-1]).any():
        found.append("labels repeated in a batch")
    if sampler == "balance":
        if len(np.unique(by_batch)) < by_batch.size:
            found.append("labels come back within the epoch")
    else:
        by_category = np.sort(categories[by_batch], axis=1)  # in each batch, runs of n_labels that differ
        runs = by_category.reshape(-1, SHAPE["n_categories"], SHAPE["n_labels"])
        if (runs != runs[:, :, :1]).any() or (runs[:, 1:, 0] == runs[:, :-1, 0]).any():
            found.append(f"not {SHAPE['n_labels']} labels of {SHAPE['n_categories']} categories")
    return found


def bench(sampler: str, n_labels: int, n_items: int, rounds: int, workers: dict[str, Worker], about: Any) -> None:
    labels, categories = make(n_labels, n_items)
    with tempfile.TemporaryDirectory() as folder:
        request = {"sampler": sampler}
        for name, array in (("labels", labels), ("categories", categories)):
            np.save(Path(folder) / f"{name}.npy", array)
            request[name] = str(Path(folder) / f"{name}.npy")
        checks = {}
        for name, worker in workers.items():  # the check warms up as well
            path = Path(worker({**request, "what": "check"}))
            checks[name] = deviations(sampler, np.load(path), labels, categories)
            shutil.rmtree(path.parent)
        if checks[OURS]:
            sys.exit(f"The batches of {sampler} are wrong: {checks[OURS]}")
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in workers}
        for _ in range(rounds):
            for name, worker in workers.items():
                seconds[name].append(worker({**request, "what": "time"}))
        memory = {name: worker({**request, "what": "memory"}) for name, worker in workers.items()}
    totals = {name: [total for _, total in times] for name, times in seconds.items()}
    for name, times in totals.items():
        result = {
            "benchmark": "samplers",
            "sampler": sampler,
            "contender": name,
            "n_labels": n_labels,
            "n_items": n_items,
            "n_batches": n_batches(sampler, n_labels),
            "batch_size": LABELS_PER_BATCH * N_INSTANCES,
            "rounds": rounds,
            "build_cpu_seconds": spread([build for build, _ in seconds[name]]),
            "cpu_seconds": spread(times),
            "to_floor": spread([cpu / floor for cpu, floor in zip(times, totals[FLOOR], strict=True)]),
            "peak_growth_mib": memory[name],
        }
        if PEER in totals:
            result["peer_to_this"] = spread([peer / cpu for cpu, peer in zip(times, totals[PEER], strict=True)])
        if not name.startswith(FLOOR):
            result["deviations"] = checks[name]
        print(json.dumps(result | about), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, nargs="+", default=[10_000, 40_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="2,000 labels, two rounds")
    args = parser.parse_args()
    if args.quick:
        args.labels, args.rounds = [2_000], 2
    about = circumstances(1, "numpy")
    script = Path(__file__).with_name("samplers_worker.py")
    for n_labels in args.labels:
        for sampler in ("balance", "category_balance", "distinct_category_balance"):
            workers = {
                name: Worker(script, name, python_with() if is_peer else Path(sys.executable))
                for name, (is_peer, _) in CONTENDERS.items()
                if not is_peer or n_labels <= MOST_LABELS_OF_PEERS
                if sampler == "balance" or not name.startswith("pytorch-metric-learning")
            }
            try:
                n_items = n_labels * (5 if n_labels > MOST_LABELS_OF_PEERS else 6)
                bench(sampler, n_labels, n_items, args.rounds, workers, about)
            finally:
                for worker in workers.values():
                    worker.close()


if __name__ == "__main__":
    main()
