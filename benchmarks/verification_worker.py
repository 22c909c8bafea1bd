"""One contender of bench_verification.py, in a process of its own: the peer has other packages, and memory is measured.

A check is answered with the metrics.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from contest import serve
from search_worker import bare_product, peers_dataset

FMR = 0.01
SEVERAL = {"fmr_vals": (0.001, 0.01, 0.1), "far_vals": (1e-5,), "eer": True}

TRun = Callable[[Tensor, Tensor], dict[str, float]]


def flat(metrics: dict[str, Any]) -> dict[str, float]:
    return {
        f"{name}{'' if at is None else f'@{at}'}": float(value)
        for name, values in metrics.items()
        for at, value in (values.items() if isinstance(values, dict) else [(None, values)])
    }


def ours(with_itself: bool, **asked: Any) -> TRun:
    from oml.functional.verification import verification_metrics

    def run(x: Tensor, labels: Tensor) -> dict[str, float]:
        items, galleries = torch.arange(len(x)), x if with_itself else x.clone()
        return flat(verification_metrics(x, galleries, labels, labels, query_items=items, gallery_items=items, **asked))

    return run


def our_histograms(x: Tensor, labels: Tensor) -> dict[str, float]:
    from oml.functional.verification import distance_histograms

    items = torch.arange(len(x))
    found = distance_histograms(x, x, labels, labels, query_items=items, gallery_items=items)
    return {"pairs": float(found.positives.sum() + found.negatives.sum())}


def peer(x: Tensor, labels: Tensor) -> dict[str, float]:
    from oml.metrics import calc_fnmr_at_fmr_rr  # pyright: ignore[reportAttributeAccessIssue]
    from oml.retrieval import RetrievalResults

    results: Any = RetrievalResults.from_embeddings(x, peers_dataset(labels), n_items=len(x))  # pyright: ignore[reportCallIssue]
    return flat(calc_fnmr_at_fmr_rr(results, fmr_vals=(FMR,)))


#: name -> whether it runs in the environment of the peers, whether only fnmr@fmr, and what makes it
CONTENDERS: dict[str, tuple[bool, bool, Callable[[], TRun]]] = {
    "bare product": (False, False, lambda: lambda x, labels: bare_product(x, labels).metrics),
    "oml, a set with itself": (False, True, lambda: ours(True, fmr_vals=(FMR,))),
    "oml, queries and galleries": (False, True, lambda: ours(False, fmr_vals=(FMR,))),
    "oml, several thresholds": (False, False, lambda: ours(True, **SEVERAL)),
    "oml, several thresholds and roc_auc": (False, False, lambda: ours(True, roc_auc=True, **SEVERAL)),
    "oml, histograms": (False, False, lambda: our_histograms),
    "oml 4.0.0": (True, True, lambda: peer),
}


def main() -> None:
    serve(CONTENDERS[sys.argv[1]][2](), dict)


if __name__ == "__main__":
    main()
