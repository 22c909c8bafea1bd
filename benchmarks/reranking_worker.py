"""One contender of bench_reranking.py, in a process of its own: memory is measured.

Each line of standard input, a JSON object, names a file of embeddings and how many threads to use; the answer has CPU
and wall seconds of a run, the MiB that it added at most, and the names of files of the ids and distances it found.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common import peak_growth, timed
from contest import saved

TOP_K = 10
K1, K2, LAMBDA = 20, 6, 0.3

Found = tuple[np.ndarray, np.ndarray] | None


def nearest(x: Tensor) -> Tensor:
    from oml.functional.search import exact_search

    items = torch.arange(len(x))
    return exact_search(x, x, TOP_K, query_items=items, gallery_items=items).ids


def search(x: Tensor) -> Found:
    nearest(x)
    return None


def ours(x: Tensor) -> Found:
    from oml.functional.k_reciprocal import k_reciprocal_rerank

    items = torch.arange(len(x))
    ids, distances = k_reciprocal_rerank(
        x, items, items, nearest(x), query_items=items, gallery_items=items, k1=K1, k2=K2, lambda_value=LAMBDA
    )
    return ids.numpy(), distances.numpy()


def dense(x: Tensor) -> Found:
    """As re-identification code does it: matrices of all pairs in float32, and Python over their rows."""
    vectors = x.numpy()
    n = len(vectors)
    squares = (vectors**2).sum(axis=1)
    d = vectors @ vectors.T
    d *= -2
    d += squares
    d += squares[:, None]
    np.maximum(d, 0, out=d)
    np.fill_diagonal(d, 0)
    d /= d.max(axis=1, keepdims=True)
    ranking = np.empty((n, n), dtype=np.int32)
    for i in range(n):
        ranking[i] = np.argsort(d[i])

    def reciprocal(i: int, k: int) -> np.ndarray:
        near = ranking[i, : k + 1]
        return near[(ranking[near, : k + 1] == i).any(axis=1)]

    v = np.zeros((n, n), dtype=np.float32)
    for i in range(n):
        own = reciprocal(i, K1)
        parts = [own]
        for candidate in own:
            others = reciprocal(candidate, round(K1 / 2))
            if len(np.intersect1d(others, own)) > 2 / 3 * len(others):
                parts.append(others)
        expanded = np.unique(np.concatenate(parts))
        weights = np.exp(-d[i, expanded])
        v[i, expanded] = weights / weights.sum()
    expanded_rows = np.zeros_like(v)
    for i in range(n):
        expanded_rows[i] = v[ranking[i, :K2]].mean(axis=0)
    v = expanded_rows
    index = [np.where(v[:, i] != 0)[0] for i in range(n)]
    final = np.zeros_like(d)
    for i in range(n):
        shared = np.zeros(n, dtype=np.float32)
        for m in np.where(v[i] != 0)[0]:
            shared[index[m]] += np.minimum(v[i, m], v[index[m], m])
        final[i] = (1 - LAMBDA) * (1 - shared / (2 - shared))
    final += LAMBDA * d
    np.fill_diagonal(final, np.inf)
    ids = np.stack([np.argsort(row)[:TOP_K] for row in final])
    return ids, np.take_along_axis(final, ids, axis=1)


#: name -> how it is run
CONTENDERS: dict[str, Callable[[Tensor], Found]] = {
    "search alone": search,
    "oml, k-reciprocal": ours,
    "dense reference": dense,
}


def answer(run: Callable[[Tensor], Found], x: Tensor) -> dict[str, Any]:
    found: Found = None
    seconds = 0.0, 0.0

    def work() -> None:
        nonlocal found
        found = run(x)

    def timed_work() -> None:
        nonlocal seconds
        seconds = timed(work)

    growth = peak_growth(timed_work)
    files = {} if found is None else {"ids": saved("ids", found[0]), "distances": saved("distances", found[1])}
    return {"seconds": seconds, "growth": growth, **files}


def main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        torch.set_num_threads(request["threads"])
        x = torch.from_numpy(np.load(request["embeddings"]))
        print(json.dumps(answer(CONTENDERS[sys.argv[1]], x)), flush=True)


if __name__ == "__main__":
    main()
