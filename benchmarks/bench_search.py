"""Exact search and its metrics against the bare matrix product and the peers.

Every item is query and gallery, itself ignored; unit vectors of 384 numbers, 5 around the centre of each label. The
task is the list of the 10 nearest with cmc@1, cmc@5, precision@5 and map@5; faiss makes the lists and cmc only,
pytorch-metric-learning computes precision@1 (which is cmc@1) and MAP@R. Another one is a validation end to end:
embeddings come in batches of 64, metrics are computed. The floor is the float32 product of all pairs in blocks of
1024 x 1024 and nothing else.

Prints a JSON line per task, size and contender, after comparing lists and metrics with float64: our own lists must be
equal to those of distances evaluated in float64 and rounded, ties by id. Contenders are processes of their own;
rounds are interleaved, ratios are taken round by round, times are CPU seconds of the process. The peers' environment
is made the first time, which takes minutes and GB, see peers.py.

    python benchmarks/bench_search.py                      # 5,000, 20,000 and 60,502 items, one thread: an hour
    python benchmarks/bench_search.py --quick              # a minute, to see that it runs
    python benchmarks/bench_search.py --sizes 60502 --rounds 5 --threads 2 --contenders product "oml, a set"
    python benchmarks/bench_search.py --million            # 10,000 queries in 1,000,000 galleries, ours alone, once
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

from common import circumstances, peak_growth, timed
from contest import take_turns
from oml.functional.ranking import average_precision_at_k, cmc_at_k, precision_at_k
from oml.functional.search import exact_search
from search_worker import BLOCK, CMC, CONTENDERS, MAP, PRECISION, TOP, TOP_K

FLOOR = next(iter(CONTENDERS))
OURS = tuple(name for name in CONTENDERS if name.startswith("oml, "))
PEERS = tuple(name for name, (is_peer, *_) in CONTENDERS.items() if is_peer)
DIM = 384
N_PER_LABEL = 5
N_CHECKED = 200  # queries whose lists are compared with float64
TOLERANCE = 1e-4  # of the peers' metrics, which rank near ties by the rounding of their products
VALIDATED = 20_000  # items of the validation end to end


def unit_vectors(n: int, dim: int, seed: int) -> Tensor:
    """Rows of length 1 around the centres of their labels, as embeddings of a trained model are."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(-(-n // N_PER_LABEL), dim, generator=generator).repeat_interleave(N_PER_LABEL, dim=0)[:n]
    return torch.nn.functional.normalize(centres + 0.7 * torch.randn(n, dim, generator=generator))


def reference(queries: Tensor, galleries: Tensor, own: Tensor | None) -> Tensor:
    """The lists of some queries by distances evaluated in float64, row by row."""
    lists = []
    for i, query in enumerate(queries.double()):
        distances = torch.cat([(query - part.double()).square().sum(dim=1) for part in galleries.split(2**14)])
        distances = distances.sqrt().float()
        if own is not None:
            distances[own[i]] = torch.inf
        # no more than the first hundred, with all ties
        near = (distances <= distances.kthvalue(min(100, len(distances))).values).nonzero().squeeze(1)
        lists.append(near[distances[near].sort(stable=True).indices][:TOP_K])
    return torch.stack(lists)


def metrics_of(ids: Tensor, labels: Tensor) -> dict[str, float]:
    """From complete lists, by the formulas that tests compare with their definitions."""
    found = labels[ids] == labels[:, None]
    n_relevant = labels.bincount()[labels] - 1
    values = {f"cmc@{k}": cmc_at_k(found, k) for k in CMC}
    values |= {f"precision@{k}": precision_at_k(found, n_relevant, k) for k in PRECISION}
    values |= {f"map@{k}": average_precision_at_k(found, k) for k in MAP}
    return {name: value.mean().item() for name, value in values.items()}


def check(answers: dict[str, dict[str, Any]], x: Tensor, labels: Tensor) -> dict[str, dict[str, float]]:
    """For each contender the share of checked lists that are right, and the largest deviation of its metrics."""
    rows = torch.linspace(0, len(x) - 1, N_CHECKED).long().unique()
    right = reference(x[rows], x, rows)
    checks: dict[str, dict[str, float]] = {}
    expected: dict[str, float] = {}
    for name, answer in answers.items():
        result = {}
        if "ids" in answer:
            ids = torch.from_numpy(np.load(answer["ids"]))
            shutil.rmtree(Path(answer["ids"]).parent)
            result["right_lists"] = (ids[rows] == right).all(dim=1).float().mean().item()
            if name in OURS:
                expected = expected or metrics_of(ids, labels)
                if result["right_lists"] < 1:
                    sys.exit(f"{name} is wrong for some of {len(rows)} queries among {len(x)}: {result}")
        checks[name] = result
    for name, answer in answers.items():
        common = expected.keys() & answer["metrics"].keys()
        if common:
            checks[name]["deviation"] = max(abs(expected[key] - answer["metrics"][key]) for key in common)
            if checks[name]["deviation"] > TOLERANCE:
                sys.exit(f"The metrics of {name} for {len(x)} items are {answer['metrics']}, but should be {expected}")
    return checks


def bench(n: int, names: list[str], rounds: int, threads: int, about: dict[str, Any]) -> None:
    x, labels = unit_vectors(n, DIM, seed=0), torch.arange(n) // N_PER_LABEL
    if n % N_PER_LABEL == 1:
        labels[-1] = labels[-2]  # a lone label would have nothing to find
    checks, turns = take_turns(
        "search_worker.py",
        {name: CONTENDERS[name][0] for name in names},
        x,
        labels,
        rounds,
        threads,
        lambda answers: check(answers, x, labels),
    )
    for name in names:
        task = CONTENDERS[name][1]
        result = {
            "benchmark": "search",
            "task": task,
            "contender": name,
            "n": n,
            "dim": DIM,
            "top_k": TOP_K,
            "dtype": "float32",
        }
        peers = [peer for peer in PEERS if CONTENDERS[peer][1] == task]
        print(json.dumps(result | turns.figures(name, FLOOR, peers) | checks[name] | about), flush=True)


def bench_million(threads: int, about: dict[str, Any]) -> None:
    """In this process: the galleries take 1.5 GB."""
    n_queries, n_galleries, n_bare = 10_000, 1_000_000, 100_000
    galleries, queries = torch.empty(n_galleries, DIM), unit_vectors(n_queries, DIM, seed=0)
    for i, part in enumerate(galleries.split(n_bare)):
        part.copy_(unit_vectors(len(part), DIM, seed=i + 1))
    galleries[::100] = torch.nn.functional.normalize(queries + 0.1 * galleries[::100])
    torch.set_num_threads(threads)

    def bare() -> None:
        product = torch.empty(BLOCK, BLOCK)
        for rows in queries.split(BLOCK):
            for columns in galleries[:n_bare].split(BLOCK):
                torch.mm(rows, columns.T, out=product[: len(rows), : len(columns)])

    for product_dtype in (torch.float32, torch.bfloat16):
        floor = timed(bare)[0] * n_galleries / n_bare
        found: dict[str, Any] = {}

        def search(product_dtype: torch.dtype = product_dtype, found: dict[str, Any] = found) -> None:
            found["seconds"] = timed(
                lambda: found.update(exact_search(queries, galleries, TOP_K, product_dtype=product_dtype)._asdict())
            )

        growth = peak_growth(search)
        rows = torch.linspace(0, n_queries - 1, 20).long()
        right_lists = (found["ids"][rows] == reference(queries[rows], galleries, None)).all(dim=1).float().mean().item()
        if right_lists < 1:
            sys.exit(f"The search in {n_galleries} galleries is wrong: {right_lists} of {len(rows)} lists are right.")
        result = {
            "benchmark": "search",
            "task": "million",
            "contender": "oml, queries and galleries" + (", bfloat16" if product_dtype == torch.bfloat16 else ""),
            "n_queries": n_queries,
            "n_galleries": n_galleries,
            "dim": DIM,
            "top_k": TOP_K,
            "dtype": "float32",
            "rounds": 1,
            "cpu_seconds": round(found["seconds"][0], 2),
            "wall_seconds": round(found["seconds"][1], 2),
            "bare_product_scaled_from": n_bare,
            "to_bare_product": round(found["seconds"][0] / floor, 3),
            "peak_growth_mib": growth,
            "right_lists": right_lists,
        }
        print(json.dumps(result | about), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[5_000, VALIDATED, 60_502])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--contenders", nargs="+", default=[""], help="only those whose name has one of these texts")
    parser.add_argument("--million", action="store_true", help="nothing but 1,000,000 galleries")
    parser.add_argument("--quick", action="store_true", help="2,000 items, two rounds")
    args = parser.parse_args()
    about = circumstances(args.threads, "torch")
    if args.million:
        bench_million(args.threads, about)
        return
    if args.quick:
        args.sizes, args.rounds = [2_000], 2
    chosen = [name for name in CONTENDERS if any(text in name for text in args.contenders)]
    for n in args.sizes:
        names = [name for name in chosen if CONTENDERS[name][1] == TOP or (n == VALIDATED or args.quick)]
        bench(n, names, args.rounds, args.threads, about)


if __name__ == "__main__":
    main()
