"""One contender of bench_ranks.py, in a process of its own: the peers have other packages, and memory is measured.

A check is answered with the mean average precision over the whole gallery, and the name of a file of the ranks it
found, if it knows them.
"""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from contest import saved, serve
from search_worker import bare_product, peers_dataset


class Found(NamedTuple):
    map: float | None
    hits: Any = None


TRun = Callable[[Tensor, Tensor], Found]


def floor(x: Tensor, labels: Tensor) -> Found:
    bare_product(x, labels)
    return Found(None)


def ours(with_itself: bool) -> TRun:
    from oml.functional.ranking import average_precision_at_k
    from oml.functional.ranks import relevant_ranks

    def run(x: Tensor, labels: Tensor) -> Found:
        items, galleries = torch.arange(len(x)), x if with_itself else x.clone()
        hits = relevant_ranks(x, galleries, labels, labels, query_items=items, gallery_items=items)
        return Found(average_precision_at_k(hits, None).mean().item(), hits)

    return run


def peer(x: Tensor, labels: Tensor) -> Found:
    from oml.metrics import calc_retrieval_metrics_rr  # pyright: ignore[reportAttributeAccessIssue]
    from oml.retrieval import RetrievalResults

    n = len(x)
    results: Any = RetrievalResults.from_embeddings(x, peers_dataset(labels), n_items=n)  # pyright: ignore[reportCallIssue]
    metrics = calc_retrieval_metrics_rr(results, cmc_top_k=(), precision_top_k=(), map_top_k=(n,), verbose=False)
    return Found(float(metrics["map"][n]))


def pytorch_metric_learning(x: Tensor, labels: Tensor) -> Found:
    from pytorch_metric_learning.utils.accuracy_calculator import (  # pyright: ignore[reportMissingImports]
        AccuracyCalculator,
    )

    calculator = AccuracyCalculator(include=("mean_average_precision",), k=None)
    return Found(calculator.get_accuracy(x, labels)["mean_average_precision"])


#: name -> whether it runs in the environment of the peers, and what makes it
CONTENDERS: dict[str, tuple[bool, Callable[[], TRun]]] = {
    "bare product": (False, lambda: floor),
    "oml, a set with itself": (False, lambda: ours(True)),
    "oml, queries and galleries": (False, lambda: ours(False)),
    "oml 4.0.0": (True, lambda: peer),
    "pytorch-metric-learning 2.9.0": (True, lambda: pytorch_metric_learning),
}


def answer(found: Found) -> dict[str, Any]:
    if found.hits is None:
        return {"map": found.map}
    return {"map": found.map, "hits": saved("hits", torch.stack([found.hits.query, found.hits.rank]).numpy())}


def main() -> None:
    serve(CONTENDERS[sys.argv[1]][1](), answer)


if __name__ == "__main__":
    main()
