"""What two processes bring together, and what they save each other, against one process.

Gathering: each of two processes has half of 60,502 embeddings of 384 numbers, their labels and roles, and both are to
have all. What OML does, tensors in chunks, against what the described system does, pickled dicts by torch's
``all_gather_object``; and against a bare ``all_gather`` of tensors whose sizes are known. Validation:
``EmbeddingMetrics`` of 20,000 embeddings in one process against ``EmbeddingMetricsDDP`` in two that have half each,
from the first batch to the metrics; all items are queries and galleries, or half of them are one and half the other.
Classes: a step, forward and backward, of ArcFace with 200,000 labels and a batch of 128 embeddings, in one process and
shared out over two, with all labels and with a tenth of them.

Prints a JSON line per contender, after checking that it found what it should. Every process has one thread, and a group
of gloo; rounds are interleaved. CPU seconds are those of the process that takes most, MiB those that a process adds at
most. Wall seconds of two processes say something only where two cores have nothing else to do.

    python benchmarks/bench_distributed.py            # a few minutes, and 3 GB of memory
    python benchmarks/bench_distributed.py --quick    # seconds, to see that it runs
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from common import Worker, circumstances, peak_growth, spread, timed

SIZES = {"gathering": 60_502, "validation": 20_000, "validation, separate": 20_000, "classes": 200_000}
DIMS = {"gathering": 384, "validation": 384, "validation, separate": 384, "classes": 128}
N_PROCESSES = 2
PROCESS = "process"
N_PER_LABEL = 5
BATCH = 128
TOLERANCE = 1e-5


class Contender(NamedTuple):
    """``run`` gets the sizes of the task, the rank and the number of processes; ``answer`` tells what it found."""

    n_processes: int
    prepare: Callable[[int, int, int, int], Callable[[], Any]]
    answer: Callable[[Any], Any]


def make(n: int, dim: int) -> dict[str, Tensor]:
    """Items around a centre for each label, in random order, all of them queries and galleries."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n)[torch.randperm(n, generator=generator)] // N_PER_LABEL
    centres = torch.randn(n // N_PER_LABEL + 1, dim, generator=generator)
    embeddings = centres[labels] + 1.5 * torch.randn(n, dim, generator=generator)
    role = torch.ones(n, dtype=torch.bool)
    return {
        "embeddings": embeddings,
        "labels": labels,
        "is_query": role,
        "is_gallery": role.clone(),
        "idx": torch.arange(n),
    }


def share(whole: dict[str, Tensor], rank: int, n_processes: int) -> dict[str, Tensor]:
    return {key: value.tensor_split(n_processes)[rank].clone() for key, value in whole.items()}


def gathering(gather: Callable[[dict[str, Tensor], int], dict[str, Tensor]]) -> Contender:
    def prepare(n: int, dim: int, rank: int, n_processes: int) -> Callable[[], dict[str, Tensor]]:
        own = share(make(n, dim), rank, n_processes)
        return lambda: gather(own, n)

    def answer(found: dict[str, Tensor]) -> bool:
        whole = make(*found["embeddings"].shape)
        return whole.keys() == found.keys() and all(torch.equal(found[key], whole[key]) for key in whole)

    return Contender(N_PROCESSES, prepare, answer)


def in_chunks(own: dict[str, Tensor], _: int) -> dict[str, Tensor]:
    from oml.ddp.utils import sync_dicts_ddp

    return sync_dicts_ddp(own, world_size=N_PROCESSES)


def pickled(own: dict[str, Tensor], _: int) -> dict[str, Tensor]:
    everyone: list[Any] = [None] * N_PROCESSES
    dist.all_gather_object(everyone, own)
    return {key: torch.cat([each[key] for each in everyone]) for key in own}


def bare(own: dict[str, Tensor], n: int) -> dict[str, Tensor]:
    found = {key: value.new_empty(n, *value.shape[1:]) for key, value in own.items()}
    for key, value in own.items():
        dist.all_gather(list(found[key].tensor_split(N_PROCESSES)), value)
    return found


def validating(n_processes: int, separate: bool = False) -> Contender:
    def prepare(n: int, dim: int, rank: int, n_processes: int) -> Callable[[], dict[str, float]]:
        from oml.metrics.embeddings import EmbeddingMetrics, EmbeddingMetricsDDP

        whole = make(n, dim)
        if separate:
            whole["is_query"] = torch.arange(n) % 2 == 0
            whole["is_gallery"] = ~whole["is_query"]
        own = share(whole, rank, n_processes)

        def run() -> dict[str, float]:
            kind = EmbeddingMetrics if n_processes == 1 else EmbeddingMetricsDDP
            metric = kind(cmc_top_k=(1, 5), map_top_k=(5,), on_missing="ignore", verbose=False)
            metric.setup(len(own["labels"]))
            for rows in torch.arange(len(own["labels"])).split(BATCH):
                metric.update_data({key: value[rows] for key, value in own.items()})
            if isinstance(metric, EmbeddingMetricsDDP):
                metric.sync()
            found = metric.compute_metrics()["OVERALL"]
            return {f"{name}@{k}": float(value) for name, by_k in found.items() for k, value in by_k.items()}

        return run

    return Contender(n_processes, prepare, lambda found: found)


def classifying(n_processes: int, name: str, **kwargs: Any) -> Contender:
    def prepare(n: int, dim: int, rank: int, n_processes: int) -> Callable[[], float]:
        from oml.registry.losses import get_criterion

        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(1)
        batch = {"x": torch.randn(BATCH, dim, generator=generator), "labels": torch.arange(BATCH) * (n // BATCH)}
        own = share(batch, rank, n_processes)
        loss = get_criterion(name, in_features=dim, num_classes=n, s=16, **kwargs)

        def run() -> float:
            loss.zero_grad()
            value = loss(own["x"].requires_grad_(), own["labels"])
            value.backward()
            return value.item()

        return run

    return Contender(n_processes, prepare, lambda found: found)


CONTENDERS = {
    "gathering": {
        "bare all_gather": gathering(bare),
        "oml": gathering(in_chunks),
        "pickled dicts": gathering(pickled),
    },
    "validation": {"one process": validating(1), "two processes": validating(N_PROCESSES)},
    "validation, separate": {"one process": validating(1, True), "two processes": validating(N_PROCESSES, True)},
    "classes": {
        "one process": classifying(1, "arcface"),
        "two processes": classifying(N_PROCESSES, "sharded_arcface"),
        "two processes, a tenth": classifying(N_PROCESSES, "sharded_arcface", sample_rate=0.1),
    },
}
#: whose figures others are divided by
BASES = dict.fromkeys(SIZES, ("one process",)) | {"gathering": ("bare all_gather", "pickled dicts")}


def check(task: str, answers: dict[str, list[Any]]) -> None:
    """Leave the program if processes, or contenders, did not find the same."""
    if task == "gathering":
        right = all(answer is True for of_contender in answers.values() for answer in of_contender)
    elif task.startswith("validation"):
        right = all(answer == answers["one process"][0] for of_contender in answers.values() for answer in of_contender)
    else:
        expected = answers["one process"][0]
        right = all(abs(answer / expected - 1) < TOLERANCE for answer in answers["two processes"])
    if not right:
        sys.exit(f"Contenders differ in {task}: {answers}")


class Group:
    """The processes of a contender."""

    def __init__(self, n: int, folder: str) -> None:
        self._pool = ThreadPoolExecutor(n)
        rendezvous = Path(folder) / f"rendezvous of {n}"
        self._workers = [
            Worker(Path(__file__), f"{PROCESS} {rank} {n} {rendezvous}", Path(sys.executable)) for rank in range(n)
        ]

    def __call__(self, request: Any) -> list[Any]:
        return list(self._pool.map(lambda worker: worker(request), self._workers))

    def close(self) -> None:
        for worker in self._workers:
            worker.close()


def work(rank: int, n_processes: int, rendezvous: str) -> None:
    """Be a process: each line of standard input says what to do for which contender."""
    torch.set_num_threads(1)
    if n_processes > 1:
        dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=n_processes)
    prepared: dict[Any, Callable[[], Any]] = {}
    for line in sys.stdin:
        what, task, name, n = json.loads(line)
        contender, key = CONTENDERS[task][name], (task, name)
        if key not in prepared:
            prepared = {other: run for other, run in prepared.items() if other[0] == task}
            prepared[key] = contender.prepare(n, DIMS[task], rank, n_processes)
        if what == "check":
            found: Any = contender.answer(prepared[key]())
        else:
            found = (timed if what == "time" else peak_growth)(prepared[key])
        print(json.dumps(found), flush=True)


def bench(task: str, n: int, rounds: int, groups: dict[int, Group], about: dict[str, Any]) -> None:
    def of(what: str, name: str) -> list[Any]:
        return groups[CONTENDERS[task][name].n_processes]((what, task, name, n))

    check(task, {name: of("check", name) for name in CONTENDERS[task]})  # warms up as well
    growth = {name: max(of("memory", name)) for name in CONTENDERS[task]}
    cpu: dict[str, list[float]] = {name: [] for name in CONTENDERS[task]}
    wall: dict[str, list[float]] = {name: [] for name in CONTENDERS[task]}
    for _ in range(rounds):
        for name in CONTENDERS[task]:
            times = of("time", name)
            cpu[name].append(max(seconds for seconds, _ in times))
            wall[name].append(max(seconds for _, seconds in times))
    for name, contender in CONTENDERS[task].items():
        table = -(-n // contender.n_processes) * DIMS[task] * 4 / 2**20
        result = {
            "benchmark": "distributed",
            "task": task,
            "contender": name,
            "n_processes": contender.n_processes,
            "n": n,
            "dim": DIMS[task],
            "rounds": rounds,
            "cpu_seconds_of_one": spread(cpu[name]),
            "wall_seconds": spread(wall[name]),
            **{
                f"{kind}_to_{base.replace(' ', '_')}": spread(
                    [a / b for a, b in zip(seconds[name], seconds[base], strict=True)]
                )
                for base in BASES[task]
                for kind, seconds in (("cpu", cpu), ("wall", wall))
            },
            "peak_growth_mib_of_one": growth[name],
            **({"proxies_mib_of_one": round(table, 1)} if task == "classes" else {}),
        }
        print(json.dumps(result | about), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="a twentieth of the items, two rounds")
    args = parser.parse_args()
    about = circumstances(1, "torch")
    with tempfile.TemporaryDirectory() as folder:
        groups = {n: Group(n, folder) for n in (1, N_PROCESSES)}
        try:
            for task in args.tasks:
                n, rounds = (SIZES[task] // 40 * 2, 2) if args.quick else (SIZES[task], args.rounds)
                bench(task, n, rounds, groups, about)
        finally:
            for group in groups.values():
                group.close()


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1].startswith(PROCESS):
        _, its_rank, of, its_rendezvous = sys.argv[1].split(" ", 3)
        work(int(its_rank), int(of), its_rendezvous)
    else:
        main()
