"""One contender of bench_search.py, in a process of its own: the peers have other packages, and memory is measured.

A check is answered with the metrics, and the name of a file of the ids it found, if it makes lists.
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from contest import saved, serve

TOP_K = 10
CMC, PRECISION, MAP = (1, 5), (5,), (5,)
BATCH = 64  # of a validation
BLOCK = 1024


class Found(NamedTuple):
    metrics: dict[str, float]
    ids: Any = None


TRun = Callable[[Tensor, Tensor], Found]


def bare_product(x: Tensor, _: Tensor) -> Found:
    product = torch.empty(BLOCK, BLOCK)
    for rows in x.split(BLOCK):
        for columns in x.split(BLOCK):
            torch.mm(rows, columns.T, out=product[: len(rows), : len(columns)])
    return Found({})


def flat(metrics: Mapping[str, Mapping[Any, Tensor]]) -> dict[str, float]:
    return {f"{name}@{k}": value.float().mean().item() for name, by_k in metrics.items() for k, value in by_k.items()}


def ours(product_dtype: torch.dtype, with_itself: bool) -> TRun:
    from oml.functional.search import exact_search
    from oml.metrics.per_query import ranking_metrics
    from oml.retrieval import RetrievalResults

    def run(x: Tensor, labels: Tensor) -> Found:
        items, galleries = torch.arange(len(x)), x if with_itself else x.clone()
        ids, distances = exact_search(
            x, galleries, TOP_K, query_items=items, gallery_items=items, product_dtype=product_dtype
        )
        results = RetrievalResults(items, labels, items, labels, ids, distances)
        metrics = ranking_metrics(results, cmc_top_k=CMC, precision_top_k=PRECISION, map_top_k=MAP)
        return Found(flat(metrics), ids.numpy())

    return run


def ours_end_to_end(x: Tensor, labels: Tensor) -> Found:
    from oml.metrics.embeddings import EmbeddingMetrics

    metrics = EmbeddingMetrics(cmc_top_k=CMC, precision_top_k=PRECISION, map_top_k=MAP, pfc_variance=(), verbose=False)
    metrics.setup(len(x))
    everyone = torch.ones(BATCH, dtype=torch.bool)
    for batch, of_batch in zip(x.split(BATCH), labels.split(BATCH), strict=True):
        roles = everyone[: len(batch)]
        metrics.update_data({"embeddings": batch, "labels": of_batch, "is_query": roles, "is_gallery": roles})
    return Found(flat(metrics.compute_metrics()["OVERALL"]))  # pyright: ignore[reportArgumentType]


def peers_dataset(labels: Tensor) -> Any:
    from oml.interfaces.datasets import (  # pyright: ignore[reportMissingImports]
        IQueryGalleryLabeledDataset,  # pyright: ignore[reportAttributeAccessIssue]
    )

    class Dataset(IQueryGalleryLabeledDataset):
        extra_data: dict[str, Any] = {}  # noqa: RUF012 (as the peer reads it)

        def __getitem__(self, item: int) -> dict[str, Any]:
            raise NotImplementedError

        def __len__(self) -> int:
            return len(labels)

        def get_labels(self) -> np.ndarray:
            return labels.numpy()

        def get_label2category(self) -> None:
            return None

        def get_query_ids(self) -> Tensor:
            return torch.arange(len(labels))

        def get_gallery_ids(self) -> Tensor:
            return torch.arange(len(labels))

    return Dataset()


def peer(x: Tensor, labels: Tensor) -> Found:
    from oml.metrics import calc_retrieval_metrics_rr  # pyright: ignore[reportAttributeAccessIssue]
    from oml.retrieval import RetrievalResults

    results: Any = RetrievalResults.from_embeddings(x, peers_dataset(labels), n_items=TOP_K)  # pyright: ignore[reportCallIssue]
    metrics = calc_retrieval_metrics_rr(results, cmc_top_k=CMC, precision_top_k=PRECISION, map_top_k=MAP, verbose=False)
    return Found(flat(metrics), torch.stack(list(results.retrieved_ids)).numpy())


def peer_end_to_end(x: Tensor, labels: Tensor) -> Found:
    from oml.metrics.embeddings import EmbeddingMetrics

    peers_metrics: Any = EmbeddingMetrics
    metrics = peers_metrics(
        peers_dataset(labels), cmc_top_k=CMC, precision_top_k=PRECISION, map_top_k=MAP, pcf_variance=(), verbose=False
    )
    metrics.setup(len(x))
    for batch, ids in zip(x.split(BATCH), torch.arange(len(x)).split(BATCH), strict=True):
        metrics.update(batch, ids)
    return Found(flat(metrics.compute_metrics()["OVERALL"]))


def pytorch_metric_learning(x: Tensor, labels: Tensor) -> Found:
    from pytorch_metric_learning.utils.accuracy_calculator import (  # pyright: ignore[reportMissingImports]
        AccuracyCalculator,
    )

    calculator = AccuracyCalculator(include=("precision_at_1", "mean_average_precision_at_r"))
    values = calculator.get_accuracy(x, labels)
    return Found({"cmc@1": values["precision_at_1"], "map@r": values["mean_average_precision_at_r"]})


def faiss_flat(x: Tensor, labels: Tensor) -> Found:
    import faiss  # pyright: ignore[reportMissingImports]

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(x.shape[1])
    index.add(x.numpy())
    ids = index.search(x.numpy(), TOP_K + 1)[1]
    own = ids == np.arange(len(x))[:, None]
    own[~own.any(axis=1), -1] = True  # behind its copies
    ids = ids[~own].reshape(len(x), TOP_K)
    found = labels.numpy()[ids] == labels.numpy()[:, None]
    return Found({f"cmc@{k}": float(found[:, :k].any(axis=1).mean()) for k in CMC}, ids)


#: name -> whether it runs in the environment of the peers, its tasks, and what makes it
TOP, END_TO_END = "top_k", "validation"
CONTENDERS: dict[str, tuple[bool, str, Callable[[], TRun]]] = {
    "bare product": (False, TOP, lambda: bare_product),
    "oml, a set with itself": (False, TOP, lambda: ours(torch.float32, True)),
    "oml, a set with itself, bfloat16": (False, TOP, lambda: ours(torch.bfloat16, True)),
    "oml, queries and galleries": (False, TOP, lambda: ours(torch.float32, False)),
    "oml, queries and galleries, bfloat16": (False, TOP, lambda: ours(torch.bfloat16, False)),
    "oml 4.0.0": (True, TOP, lambda: peer),
    "pytorch-metric-learning 2.9.0": (True, TOP, lambda: pytorch_metric_learning),
    "faiss.IndexFlatL2": (True, TOP, lambda: faiss_flat),
    "oml, EmbeddingMetrics": (False, END_TO_END, lambda: ours_end_to_end),
    "oml 4.0.0, EmbeddingMetrics": (True, END_TO_END, lambda: peer_end_to_end),
}


def answer(found: Found) -> dict[str, Any]:
    return {"metrics": found.metrics} | ({} if found.ids is None else {"ids": saved("ids", found.ids)})


def main() -> None:
    serve(CONTENDERS[sys.argv[1]][2](), answer)


if __name__ == "__main__":
    main()
