"""Verification over all pairs (fnmr@fmr, tar@far, eer, roc_auc) against the bare matrix product and the peer.

Every item is query and gallery, itself ignored; unit vectors of 384 numbers, 5 around the centre of each label, so far
that fnmr@fmr=0.01 is about 0.05. The floor is the float32 product of all pairs in blocks of 1024 x 1024 and nothing
else. The peer keeps all distances, so it takes part up to 10,000 items.

Prints a JSON line per size and contender. Before, all metrics of a small set are compared with those of the list of
its distances in float64, then at each size those of 200 queries in the whole gallery, and the metrics of all pairs with
what they have in common. Contenders are processes of their own; rounds are interleaved, ratios are taken round by
round, times are CPU seconds of the process. The peer's environment is made the first time, which takes minutes and GB,
see peers.py.

    python benchmarks/bench_verification.py            # 5,000, 10,000, 20,000 and 60,502 items: an hour
    python benchmarks/bench_verification.py --quick    # a minute, to see that it runs
    python benchmarks/bench_verification.py --sizes 60502 --contenders "bare product" "oml, a set with itself"
"""

import argparse
import json
import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common import circumstances
from contest import take_turns
from oml.functional.verification import verification_metrics
from verification_worker import CONTENDERS, FMR, SEVERAL, flat

FLOOR, OURS, *_, PEER = CONTENDERS
DIM = 384
N_PER_LABEL = 5
N_CHECKED = 200  # queries whose pairs are compared with a list
MOST_OF_PEER = 10_000
AREA_TOLERANCE = 1e-3  # of roc_auc, which may be by bins
SAMPLE_TOLERANCE = 0.03  # of metrics of 200 queries against those of all


def unit_vectors(n: int) -> tuple[Tensor, Tensor]:
    """Vectors around the centres of their labels, in an order of no meaning, and the labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randperm(n, generator=generator) // N_PER_LABEL
    labels[labels == n // N_PER_LABEL] = 0  # no label is alone
    centres = torch.randn(n // N_PER_LABEL, DIM, generator=generator)
    return torch.nn.functional.normalize(centres[labels] / 2 + torch.randn(n, DIM, generator=generator)), labels


def reference(x: Tensor, labels: Tensor, rows: Tensor) -> dict[str, float]:
    """The metrics of some queries by the list of their distances, evaluated in float64 and rounded, with numpy."""
    lists: dict[bool, list[np.ndarray]] = {True: [], False: []}
    for row in rows.tolist():
        distances = (x[row].double() - x.double()).square().sum(dim=1).sqrt().float().double().numpy()
        same = (labels == labels[row]).numpy()
        lists[False].append(distances[~same])
        same[row] = False
        lists[True].append(distances[same])
    positives, negatives = np.concatenate(lists[True]), np.sort(np.concatenate(lists[False]))
    values = {}
    for fmr in SEVERAL["fmr_vals"]:
        values[f"fnmr@fmr@{fmr}"] = (positives >= np.quantile(negatives, fmr)).mean()
    for far in SEVERAL["far_vals"]:
        values[f"tar@far@{far}"] = (positives < negatives[int(far * len(negatives))]).mean()
    points = np.unique(positives)
    missed = np.array([(positives > point).mean() for point in points])
    matched = np.searchsorted(negatives, points, side="right") / len(negatives)
    at = np.abs(missed - matched).argmin()
    values["eer"] = (missed[at] + matched[at]) / 2
    nearer = len(negatives) - np.searchsorted(negatives, positives, side="left")
    nearer = nearer + len(negatives) - np.searchsorted(negatives, positives, side="right")
    values["roc_auc"] = nearer.mean() / 2 / len(negatives)
    return {name: float(value) for name, value in values.items()}


def compare(values: dict[str, float], expected: dict[str, float], n_positives: int) -> None:
    """Equal, but for eer, whose reference is within one positive, and for roc_auc, within what bins allow."""
    allowed = {"eer": 1 / n_positives, "roc_auc": AREA_TOLERANCE}
    off = {name: abs(values[name] - expected[name]) for name in values}
    if wrong := {name: value for name, value in off.items() if value > max(allowed.get(name, 0), 1e-6)}:
        sys.exit(f"Verification is off by {wrong}: {values} instead of {expected}.")


def check(x: Tensor, labels: Tensor) -> dict[str, float]:
    """The metrics of some queries, after comparing ours with them."""
    rows = torch.linspace(0, len(x) - 1, min(N_CHECKED, len(x))).long().unique()
    items = torch.arange(len(x))
    arguments: dict[str, Any] = {"roc_auc": True, "query_items": items[rows], "gallery_items": items, **SEVERAL}
    values = flat(verification_metrics(x[rows], x, labels[rows], labels, **arguments))
    expected = reference(x, labels, rows)
    n_positives = int(sum((labels == labels[row]).sum() - 1 for row in rows))
    compare(values, expected, n_positives)
    return expected


def check_small() -> None:
    """All the pairs of a set, each of which counts twice."""
    x, labels = unit_vectors(2_003)
    items = torch.arange(len(x))
    arguments: dict[str, Any] = {"roc_auc": True, "query_items": items, "gallery_items": items, **SEVERAL}
    values = flat(verification_metrics(x, x, labels, labels, **arguments))
    compare(values, reference(x, labels, items), len(x) * (N_PER_LABEL - 1))


def bench(n: int, names: list[str], rounds: int, threads: int, about: dict[str, Any]) -> None:
    x, labels = unit_vectors(n)
    expected = check(x, labels)

    def check_answers(answers: dict[str, Any]) -> dict[str, Any]:
        for name, answer in answers.items():
            # a threshold that few pairs decide on, such as that of tar@far, differs between sets of queries
            for metric in {f"fnmr@fmr@{FMR}", "eer", "roc_auc"} & answer.keys():
                if abs(answer[metric] - expected[metric]) > SAMPLE_TOLERANCE:
                    sys.exit(f"{metric} of {name} is {answer[metric]}, but {expected[metric]} for some queries.")
        return answers

    is_peer = {name: CONTENDERS[name][0] for name in names}
    answers, turns = take_turns("verification_worker.py", is_peer, x, labels, rounds, threads, check_answers)
    for name in names:
        result = {
            "benchmark": "verification",
            "contender": name,
            "n": n,
            "dim": DIM,
            "fmr": FMR,
            "dtype": "float32",
            "values": {metric: round(value, 6) for metric, value in answers[name].items()},
        }
        peers = [PEER] if CONTENDERS[name][1] else []
        print(json.dumps(result | turns.figures(name, FLOOR, peers) | about), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[5_000, 10_000, 20_000, 60_502])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
    parser.add_argument("--quick", action="store_true", help="2,000 items, two rounds")
    args = parser.parse_args()
    if args.quick:
        args.sizes, args.rounds = [2_000], 2
    about = circumstances(args.threads, "torch")
    check_small()
    for n in args.sizes:
        names = [name for name in args.contenders if name != PEER or n <= MOST_OF_PEER]
        bench(n, names, args.rounds, args.threads, about)


if __name__ == "__main__":
    main()
