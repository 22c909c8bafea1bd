"""One contender of bench_samplers.py, in a process of its own: the peers have other packages, and memory is measured.

Each line of standard input is a JSON object that names the sampler, the files of labels and categories, and what to do
with one epoch: "check" answers with the name of a file of its batches, "time" with the CPU seconds of building the
sampler and of building it and running the epoch, "memory" with the MiB that this adds.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from common import peak_growth, timed

N_INSTANCES = 4
LABELS_PER_BATCH = 32
SHAPE: dict[str, Any] = {"n_categories": 4, "n_labels": LABELS_PER_BATCH // 4, "n_instances": N_INSTANCES}
BATCHES_PER_BLOCK = 256

#: (sampler, labels, category of every label) -> batches of one epoch
TBuild = Callable[[str, np.ndarray, dict[int, str]], Iterable[list[int]]]


def n_batches(sampler: str, n_labels: int) -> int:
    return -(-n_labels // SHAPE["n_labels"]) if sampler == "category_balance" else n_labels // LABELS_PER_BATCH


def oml(sampler: str, labels: np.ndarray, categories: dict[int, str]) -> Iterable[list[int]]:
    """Ours and the peer's have the same arguments."""
    if sampler == "balance":
        from oml.samplers.balance import BalanceSampler

        return BalanceSampler(labels, n_labels=LABELS_PER_BATCH, n_instances=N_INSTANCES)
    if sampler == "category_balance":
        from oml.samplers.category_balance import CategoryBalanceSampler

        return CategoryBalanceSampler(labels, categories, **SHAPE)
    from oml.samplers.distinct_category_balance import DistinctCategoryBalanceSampler

    size = n_batches(sampler, len(categories))
    return DistinctCategoryBalanceSampler(labels, categories, **SHAPE, epoch_size=size)


def pytorch_metric_learning(sampler: str, labels: np.ndarray, categories: dict[int, str]) -> Iterable[list[int]]:
    from pytorch_metric_learning.samplers import MPerClassSampler  # pyright: ignore[reportMissingImports]

    assert sampler == "balance"
    size = LABELS_PER_BATCH * N_INSTANCES
    items = MPerClassSampler(
        labels, N_INSTANCES, batch_size=size, length_before_new_iter=n_batches(sampler, len(categories)) * size
    )

    class Batches:
        def __iter__(self) -> Iterator[list[int]]:
            return map(list, zip(*[iter(items)] * size, strict=True))

    return Batches()


class Floor:
    """Sorts the labels, permutes them, gathers the first items of each and makes lists: no choice of items at all."""

    def __init__(self, sort: Callable[[np.ndarray], np.ndarray], sampler: str, labels: np.ndarray, _: Any) -> None:
        self.items = sort(labels)
        in_order = labels[self.items]
        self.starts = np.concatenate([[0], np.flatnonzero(in_order[1:] != in_order[:-1]) + 1])
        self.n_batches = n_batches(sampler, len(self.starts))

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng(0)
        n_labels = self.n_batches * LABELS_PER_BATCH
        n_passes = -(-n_labels // len(self.starts))
        order = np.concatenate([rng.permutation(len(self.starts)) for _ in range(n_passes)])[:n_labels]
        for block in np.split(order, range(step := BATCHES_PER_BLOCK * LABELS_PER_BATCH, n_labels, step)):
            places = self.starts[block][:, None] + np.arange(N_INSTANCES)
            items = self.items.take(places, mode="clip")  # the last label may be small
            yield from items.reshape(-1, LABELS_PER_BATCH * N_INSTANCES).tolist()


def comparison_sort(labels: np.ndarray) -> np.ndarray:
    return np.argsort(labels, kind="stable").astype(np.int32)


def radix_sort(labels: np.ndarray) -> np.ndarray:
    from oml.samplers.instances import group

    return group(labels).members


#: name -> whether it runs in the environment of the peers, and what it does
CONTENDERS: dict[str, tuple[bool, TBuild]] = {
    "floor": (False, partial(Floor, radix_sort)),
    "floor with numpy.argsort": (False, partial(Floor, comparison_sort)),
    "oml": (False, oml),
    "oml 4.0.0": (True, oml),
    "pytorch-metric-learning 2.9.0": (True, pytorch_metric_learning),
}


def answer(build: TBuild, sampler: str, labels: np.ndarray, categories: dict[int, str], what: str) -> Any:
    def epoch() -> int:
        return sum(1 for _ in build(sampler, labels, categories))

    if what == "time":
        return timed(lambda: build(sampler, labels, categories))[0], timed(epoch)[0]
    if what == "memory":
        return peak_growth(epoch)
    batches = np.fromiter(chain.from_iterable(build(sampler, labels, categories)), np.int32)
    path = Path(tempfile.mkdtemp()) / "batches.npy"
    np.save(path, batches.reshape(-1, LABELS_PER_BATCH * N_INSTANCES))
    return str(path)


def main() -> None:
    build = CONTENDERS[sys.argv[1]][1]
    labels, categories, loaded = np.empty(0), {}, None
    for line in sys.stdin:
        request = json.loads(line)
        if request["labels"] != loaded:
            loaded = request["labels"]
            labels = np.load(loaded)
            categories = {label: f"category {i}" for label, i in enumerate(np.load(request["categories"]).tolist())}
        print(json.dumps(answer(build, request["sampler"], labels, categories, request["what"])), flush=True)


if __name__ == "__main__":
    main()
