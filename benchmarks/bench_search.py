"""Exact search against the bare matrix product and scikit-learn.

Prints a JSON line per contender and size, after checking its result against float64. CPU seconds are those of the
process; `to_gemm` is the ratio to the product of all pairs and nothing else, round by round. Rounds are interleaved.

    python benchmarks/bench_search.py            # 5,000 and 20,000 items, one thread: several minutes
    python benchmarks/bench_search.py --quick    # seconds, to see that it runs
    python benchmarks/bench_search.py --sizes 60502 --rounds 3 --threads 2
"""

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits
from torch import Tensor

from common import circumstances, peak_growth, spread, timed
from oml.functional.search import exact_search

N_CHECKED = 200  # queries whose neighbours are compared with float64
N_PER_LABEL = 5


def unit_vectors(n: int, dim: int, seed: int) -> Tensor:
    """Rows of length 1 around the centres of their labels, as embeddings of a trained model are."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(-(-n // N_PER_LABEL), dim, generator=generator).repeat_interleave(N_PER_LABEL, dim=0)[:n]
    return torch.nn.functional.normalize(centres + 0.7 * torch.randn(n, dim, generator=generator))


def gemm(x: Tensor, top_k: int) -> None:  # noqa: ARG001 (contenders share their arguments)
    for rows in x.split(1024):
        for columns in x.split(1024):
            _ = rows @ columns.T


def ours(x: Tensor, top_k: int) -> Tensor:
    items = torch.arange(len(x))
    return exact_search(x, x, top_k, query_items=items, gallery_items=items).ids


def sklearn_brute(x: Tensor, top_k: int) -> Tensor:
    search = NearestNeighbors(n_neighbors=top_k, algorithm="brute").fit(x.numpy())
    return torch.from_numpy(search.kneighbors(return_distance=False))  # leaves out the query itself


CONTENDERS: dict[str, Callable[[Tensor, int], Tensor | None]] = {
    "gemm": gemm,
    "oml.functional.search.exact_search": ours,
    "sklearn.neighbors.NearestNeighbors(brute)": sklearn_brute,
}


def share_of_right_rows(x: Tensor, ids: Tensor) -> float:
    """The share of checked queries whose ranking is that of the distances measured in float64."""
    rows = torch.linspace(0, len(x) - 1, N_CHECKED).long().unique()
    right = 0
    for row in rows:
        distances = (x[row].double() - x.double()).square().sum(dim=1).sqrt().float()
        distances[row] = torch.inf
        right += torch.equal(distances.sort(stable=True).indices[: ids.shape[1]], ids[row])
    return right / len(rows)


def bench(n: int, dim: int, top_k: int, rounds: int, seed: int, about: dict[str, Any]) -> None:
    x = unit_vectors(n, dim, seed)
    checks = {}
    for name, contender in CONTENDERS.items():  # the check warms up as well
        if (ids := contender(x, top_k)) is not None:
            checks[name] = share_of_right_rows(x, ids)
    if checks["oml.functional.search.exact_search"] < 1:
        sys.exit(f"exact_search is wrong for some of {N_CHECKED} queries: {checks}")

    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in CONTENDERS}
    for _ in range(rounds):
        for name, contender in CONTENDERS.items():
            seconds[name].append(timed(lambda contender=contender: contender(x, top_k)))
    floor = [cpu for cpu, _ in seconds["gemm"]]
    for name, contender in CONTENDERS.items():
        result = {
            "benchmark": "search",
            "contender": name,
            "n": n,
            "dim": dim,
            "top_k": top_k,
            "dtype": "float32",
            "rounds": rounds,
            "rows_as_in_float64": checks.get(name),
            "cpu_seconds": spread([cpu for cpu, _ in seconds[name]]),
            "wall_seconds": spread([wall for _, wall in seconds[name]]),
            "to_gemm": spread([cpu / bare for (cpu, _), bare in zip(seconds[name], floor, strict=True)]),
            "peak_growth_mib": peak_growth(lambda contender=contender: contender(x, top_k)),
        }
        print(json.dumps(result | about), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[5_000, 20_000])
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--top-k", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="1,500 items, two rounds")
    args = parser.parse_args()
    if args.quick:
        args.sizes, args.rounds = [1_500], 2
    torch.set_num_threads(args.threads)
    with threadpool_limits(args.threads):
        for n in args.sizes:
            bench(n, args.dim, args.top_k, args.rounds, args.seed, circumstances(args.threads, "torch", "scikit-learn"))


if __name__ == "__main__":
    main()
