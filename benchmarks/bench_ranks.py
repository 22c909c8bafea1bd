"""Map over the whole gallery, by the ranks of the relevant items, against the bare matrix product and the peers.

Every item is query and gallery, itself ignored; unit vectors of 384 numbers. Embeddings are ``separate`` (5 around the
centre of each label, nearly all of them nearer than others), ``overlapping`` (the same with more noise, as those of a
trained model often are), ``random`` (with labels of 5), or ``few labels`` (overlapping, 10 labels in all). The floor is
the float32 product of all pairs in blocks of 1024 x 1024 and nothing else. The peers keep the distances of all pairs,
so they are asked for 5,000 items at most.

Prints a JSON line per kind, size and contender, after comparing ranks and metric with float64: our own ranks must be
those of distances evaluated in float64 and rounded, ties by id. Contenders are processes of their own; rounds are
interleaved, ratios are taken round by round, times are CPU seconds of the process. The peers' environment is made the
first time, which takes minutes and GB, see peers.py.

    python benchmarks/bench_ranks.py                      # 5,000, 20,000 and 60,502 items, one thread: an hour or two
    python benchmarks/bench_ranks.py --quick              # a minute, to see that it runs
    python benchmarks/bench_ranks.py --sizes 60502 --kinds separate --contenders product "a set"
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common import circumstances
from contest import take_turns
from ranks_worker import CONTENDERS

FLOOR = next(iter(CONTENDERS))
PEERS = tuple(name for name, (is_peer, _) in CONTENDERS.items() if is_peer)
MOST_FOR_PEERS = 5_000
DIM = 384
N_CHECKED = 100  # queries whose ranks are compared with float64
TOLERANCE = 1e-4  # of the peers' metric: they rank near ties by the rounding of their products
#: kind -> how many items a label has, or how many labels there are, and the noise around their centres
KINDS = {
    "separate": (5, None, 0.7),
    "overlapping": (5, None, 2.0),
    "random": (5, None, 1e9),
    "few labels": (None, 10, 2.0),
}


def embeddings(kind: str, n: int) -> tuple[Tensor, Tensor]:
    n_per_label, n_labels, noise = KINDS[kind]
    labels = torch.arange(n) // n_per_label if n_per_label else torch.arange(n) % n_labels
    if n % 5 == 1:
        labels[-1] = labels[-2]  # a lone label would have nothing to find
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(int(labels.amax()) + 1, DIM, generator=generator)
    x = centres[labels] + noise * torch.randn(n, DIM, generator=generator)
    return torch.nn.functional.normalize(x), labels


def check_ranks(path: str, x: Tensor, labels: Tensor) -> tuple[float, float]:
    """The share of checked queries whose ranks are those of float64, and the metric that all ranks give."""
    query, rank = torch.from_numpy(np.load(path))
    shutil.rmtree(Path(path).parent)
    checked = torch.linspace(0, len(x) - 1, N_CHECKED).long().unique()
    n_right = 0
    for i in checked:
        distances = torch.cat([(x[i].double() - part.double()).square().sum(dim=1) for part in x.split(2**14)])
        distances = distances.sqrt().float()
        distances[i] = torch.inf
        found = labels[distances.sort(stable=True).indices[:-1]] == labels[i]
        n_right += torch.equal(found.nonzero().squeeze(1) + 1, rank[query == i])
    n_relevant = labels.bincount()[labels] - 1
    number = torch.arange(1, len(query) + 1) - (n_relevant.cumsum(0) - n_relevant)[query]
    precisions = torch.zeros(len(x), dtype=torch.float64).index_add_(0, query, number.double() / rank)
    return n_right / len(checked), (precisions / n_relevant).mean().item()


def check(answers: dict[str, Any], x: Tensor, labels: Tensor) -> dict[str, dict[str, float]]:
    checks: dict[str, dict[str, float]] = {name: {} for name in answers}
    expected = None
    for name, answer in answers.items():
        if "hits" in answer:
            checks[name]["right_ranks"], expected = check_ranks(answer["hits"], x, labels)
            if checks[name]["right_ranks"] < 1:
                sys.exit(f"{name} is wrong for some of {N_CHECKED} queries among {len(x)}: {checks[name]}")
    for name, answer in answers.items():
        if expected is not None and answer["map"] is not None:
            checks[name] |= {"map": round(answer["map"], 5), "deviation": abs(answer["map"] - expected)}
            if checks[name]["deviation"] > TOLERANCE:
                sys.exit(f"The map of {name} for {len(x)} items is {answer['map']}, but should be {expected}.")
    return checks


def bench(kind: str, n: int, names: list[str], rounds: int, threads: int, about: dict[str, Any]) -> None:
    x, labels = embeddings(kind, n)
    is_peer = {name: CONTENDERS[name][0] for name in names}
    checks, turns = take_turns(
        "ranks_worker.py", is_peer, x, labels, rounds, threads, lambda answers: check(answers, x, labels)
    )
    for name in names:
        result = {
            "benchmark": "ranks",
            "kind": kind,
            "contender": name,
            "n": n,
            "n_labels": int(labels.amax()) + 1,
            "dim": DIM,
            "dtype": "float32",
        }
        print(json.dumps(result | turns.figures(name, FLOOR, PEERS) | checks[name] | about), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[5_000, 20_000, 60_502])
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--contenders", nargs="+", default=[""], help="only those whose name has one of these texts")
    parser.add_argument("--quick", action="store_true", help="1,500 items, two rounds")
    args = parser.parse_args()
    if args.quick:
        args.sizes, args.rounds = [1_500], 2
    about = circumstances(args.threads, "torch")
    chosen = [name for name in CONTENDERS if any(text in name for text in args.contenders)]
    for n in args.sizes:
        names = [name for name in chosen if n <= MOST_FOR_PEERS or name not in PEERS]
        for kind in args.kinds:
            bench(kind, n, names, args.rounds, args.threads, about)


if __name__ == "__main__":
    main()
