"""k-reciprocal re-ranking of a search, against the matrices of all pairs that re-identification code makes.

Every item is query and gallery, itself ignored; unit vectors of 384 numbers, 5 around the centre of each label, with so
much noise that about half of the first ranks are wrong. Ours makes sparse rows; what is timed includes the search for
the 10 nearest that it re-ranks. The dense reference follows the published method with numpy: float32 matrices of all
pairs, a Python loop over their rows. The floor is our search for the 10 nearest alone.

Prints a JSON line per size and contender. The first round comes with a comparison of all lists: the distances of every
rank must be those of the dense matrix, within 1e-5. Contenders are processes of their own; rounds are interleaved,
ratios are taken round by round, times are CPU seconds of the process; memory is what the same runs add. Beyond 10,000
items the dense reference has one round.

    python benchmarks/bench_reranking.py            # 5,000 and 20,000 items: a quarter of an hour
    python benchmarks/bench_reranking.py --quick    # half a minute, to see that it runs
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
from reranking_worker import CONTENDERS, K1, K2, LAMBDA, TOP_K

FLOOR, OURS, DENSE = CONTENDERS
DIM = 384
N_PER_LABEL = 5
MOST_ROUNDS_OF_DENSE = 10_000  # items, beyond which one round of it has to do
TOLERANCE = 1e-5  # of distances: the dense ones are float32, of products in float32


def unit_vectors(n: int) -> tuple[Tensor, Tensor]:
    """Vectors around the centres of their labels, in an order of no meaning, and the labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randperm(n, generator=generator) // N_PER_LABEL
    centres = torch.randn(-(-n // N_PER_LABEL), DIM, generator=generator)
    return torch.nn.functional.normalize(centres[labels] + 2.5 * torch.randn(n, DIM, generator=generator)), labels


def loaded(path: str) -> np.ndarray:
    array = np.load(path)
    shutil.rmtree(Path(path).parent)
    return array


def check(answers: dict[str, dict[str, Any]], labels: Tensor) -> dict[str, dict[str, float]]:
    """The share of queries with the same list, the largest deviation of distances, and what the lists are worth."""
    found = {name: (loaded(each["ids"]), loaded(each["distances"])) for name, each in answers.items() if "ids" in each}
    checks: dict[str, dict[str, float]] = {name: {} for name in answers}
    for name, (ids, _) in found.items():
        relevant = labels[torch.from_numpy(ids)] == labels[:, None]
        checks[name]["cmc@1"] = round(relevant[:, 0].float().mean().item(), 5)
        checks[name]["found_of_4"] = round(relevant.sum(dim=1).float().mean().item() / (N_PER_LABEL - 1), 5)
    if OURS in found and DENSE in found:
        (ids, distances), (dense_ids, dense_distances) = found[OURS], found[DENSE]
        # rank by rank, the distances are those of the dense matrix, whatever order near ties are in
        checks[OURS]["deviation"] = float(np.abs(distances - dense_distances).max())
        checks[OURS]["same_lists"] = float((ids == dense_ids).all(axis=1).mean())
        if checks[OURS]["deviation"] > TOLERANCE:
            sys.exit(f"{OURS} does not find what the dense reference finds: {checks}")
    return checks


def bench(n: int, names: list[str], rounds: int, threads: int, about: dict[str, Any]) -> None:
    x, labels = unit_vectors(n)
    workers = {
        name: Worker(Path(__file__).with_name("reranking_worker.py"), name, Path(sys.executable)) for name in names
    }
    with tempfile.TemporaryDirectory() as folder:
        request = {"threads": threads, "embeddings": str(Path(folder) / "embeddings.npy")}
        np.save(request["embeddings"], x.numpy())
        try:
            runs = {name: [worker(request)] for name, worker in workers.items()}
            checks = check({name: of_name[0] for name, of_name in runs.items()}, labels)
            for _ in range(rounds - 1):
                for name, worker in workers.items():
                    if name != DENSE or n <= MOST_ROUNDS_OF_DENSE:
                        runs[name].append(worker(request))
                        for file in ("ids", "distances"):
                            if file in runs[name][-1]:
                                loaded(runs[name][-1][file])
        finally:
            for worker in workers.values():
                worker.close()
    cpu = {name: [run["seconds"][0] for run in of_name] for name, of_name in runs.items()}
    for name in names:
        result = {"benchmark": "reranking", "contender": name, "n": n, "dim": DIM, "top_k": TOP_K}
        result |= {"k1": K1, "k2": K2, "lambda": LAMBDA, "dtype": "float32", "rounds": len(cpu[name])}
        result |= {
            "cpu_seconds": spread(cpu[name]),
            "wall_seconds": spread([run["seconds"][1] for run in runs[name]]),
            "peak_growth_mib": max(run["growth"] or 0 for run in runs[name]),
        }
        for field, above, below in (("to_search_alone", name, FLOOR), ("dense_to_this", DENSE, name)):
            if above in cpu and below in cpu:
                pairs = zip(cpu[above], cpu[below], strict=False)  # of the rounds that both had
                result[field] = spread([a / b for a, b in pairs])
        print(json.dumps(result | checks[name] | about), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[5_000, 20_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--contenders", nargs="+", default=[""], help="only those whose name has one of these texts")
    parser.add_argument("--quick", action="store_true", help="1,500 items, one round")
    args = parser.parse_args()
    if args.quick:
        args.sizes, args.rounds = [1_500], 1
    about = circumstances(args.threads, "torch", "numpy")
    names = [name for name in CONTENDERS if any(text in name for text in args.contenders)]
    for n in args.sizes:
        bench(n, names, args.rounds, args.threads, about)


if __name__ == "__main__":
    main()
