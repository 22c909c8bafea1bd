"""What every way of re-ranking changes on labels never seen, and what it costs: on Glyphs and on handwritten digits.

Glyphs: extractor, data and split are those of a run of `oml demo`; the figures are of its validation half, all items
queries and galleries, and the learned re-ranker learns from the labels that the extractor was trained on:
`CrossAttentionSiamese` around the frozen extractor, hard pairs, BCE. Its arguments were chosen on further labels of
Glyphs. Fusion is of the same demo with another seed, if its run is given.
Digits: the 64 pixels are the embeddings; 0 to 4 are for learning, a linear map, and 5 to 9 for the figures.
The arguments of all other methods are the defaults of their packaged configs, but those that a line names.

Prints a JSON line per method: cmc@1 and map@5 with intervals (95 %, whole labels drawn), the paired difference to what
was before, with its interval and p-value, and seconds per 1,000 queries of re-ranking alone, the least of up to 5 runs.
Those of the learned one are with reading the images and running the network; those of fusion are without the second
search. One thread.

    oml demo --output runs; oml demo --seed 1 --output runs
    python benchmarks/effect_reranking.py RUN [RUN_WITH_SEED_1] > reranking_effect.jsonl
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader

from common import circumstances, timed
from oml.const import EMBEDDINGS_KEY, LABELS_COLUMN, PATHS_COLUMN, PATHS_KEY
from oml.datasets.base import DatasetQueryGallery, DatasetWithLabels
from oml.datasets.digits import read_digits
from oml.datasets.glyphs import load_glyphs
from oml.functional.statistics import bootstrap_interval
from oml.inference.flat import extract_embeddings
from oml.lightning.pipelines.demo import _extractor, _hold_out
from oml.metrics.comparison import compare_results
from oml.miners.pairs import PairsMiner
from oml.models import CrossAttentionSiamese, LinearTrivialDistanceSiamese
from oml.registry.postprocessors import get_postprocessor
from oml.registry.transforms import get_transforms_by_cfg
from oml.retrieval import RetrievalResults
from oml.retrieval.fusion import fuse
from oml.samplers.balance import BalanceSampler

TOP_K = 100
TOP_N = 5
METRICS = ("cmc@1", "map@5")
LAYERS = ["model.blocks.2", "model.blocks.4"]
WITHOUT_TRAINING: list[tuple[str, dict[str, Any]]] = [
    ("k_reciprocal", {}),
    ("k_reciprocal", {"k1": 10, "k2": 3}),
    ("query_expansion", {}),
    ("database_augmentation", {}),
]


def searched(embeddings: Tensor, labels: Tensor) -> RetrievalResults:
    everyone = torch.ones(len(labels), dtype=torch.bool)
    return RetrievalResults.from_embeddings(embeddings, labels, everyone, everyone, top_k=TOP_K)


def learn(
    parameters: list[nn.Parameter], loss: Callable[[list[int]], Tensor], batches: Iterator[list[int]], n: int, lr: float
) -> None:
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01)
    scheduler = OneCycleLR(optimizer, max_lr=lr, total_steps=n + 1, pct_start=0.15)
    for _ in range(n):
        optimizer.zero_grad()
        loss(next(batches)).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        scheduler.step()


def endless(sampler: BalanceSampler) -> Iterator[list[int]]:
    while True:
        yield from sampler


def learned_of_images(extractor: Any, train: DatasetWithLabels, steps: int) -> CrossAttentionSiamese:
    """As the recipe `glyphs_reranker`; without augmentation a frozen network has to see each image once only."""
    torch.manual_seed(0)
    model = CrossAttentionSiamese(extractor, LAYERS).eval()
    with torch.no_grad():
        parts = [model.encode(batch[train.input_tensors_key]) for batch in DataLoader(train, batch_size=128)]
    embeddings, maps = (torch.cat(part) for part in zip(*parts, strict=True))
    labels, miner = torch.from_numpy(train.get_labels()), PairsMiner(hard_mining=True)
    criterion = nn.BCEWithLogitsLoss()

    def loss(batch: list[int]) -> Tensor:
        ids1, ids2, is_negative = miner.sample(embeddings[batch], labels[batch])
        return criterion(model.compare(embeddings[batch], maps[batch], ids1, ids2), is_negative.float())

    learns = [parameter for name, parameter in model.named_parameters() if not name.startswith("extractor.")]
    learn(learns, loss, endless(BalanceSampler(train.get_labels(), n_labels=48, n_instances=2)), steps, lr=3e-3)
    return model


def learned_of_vectors(embeddings: Tensor, labels: Tensor) -> LinearTrivialDistanceSiamese:
    model = LinearTrivialDistanceSiamese(embeddings.shape[1], identity_init=True)
    miner, criterion = PairsMiner(hard_mining=True), nn.BCEWithLogitsLoss()
    middle = nn.Parameter(torch.cdist(embeddings[:200], embeddings[:200]).mean())  # distances to logits

    def loss(batch: list[int]) -> Tensor:
        x = embeddings[batch]
        ids1, ids2, is_negative = miner.sample(x, labels[batch])
        return criterion(10 * (model(x[ids1], x[ids2]) / middle - 1), is_negative.float())

    sampler = BalanceSampler(labels.numpy(), n_labels=5, n_instances=10)
    learn([*model.parameters(), middle], loss, endless(sampler), 200, lr=1e-3)
    return model


class Table:
    """Prints a line for each method."""

    def __init__(self, before: RetrievalResults, **circumstances: Any) -> None:
        self.before, self.circumstances = before, circumstances

    def add(self, method: str, run: Callable[[], RetrievalResults], **arguments: Any) -> RetrievalResults:
        found: list[RetrievalResults] = []
        times = [timed(lambda: found.append(run()))]
        while sum(wall for _, wall in times) < 3 and len(times) < 5:
            times.append(timed(run))
        after, (cpu, wall) = found[0], min(times)
        line: dict[str, Any] = {"method": method, **arguments}
        for name, seconds in (("CPU seconds", cpu), ("wall seconds", wall)):
            line[f"{name} per 1,000 queries"] = round(seconds / len(after) * 1000, 3)
        for name, metric in compare_results(self.before, after, metrics=METRICS).metrics.items():
            interval = bootstrap_interval(metric.b, clusters=after.query_labels[after.query_ids.argsort()])
            line[name] = rounded(interval)
            if method != "before":
                line[f"{name} paired"] = rounded(metric.test)
        print(json.dumps({**line, **self.circumstances}), flush=True)
        return after

    def add_reranking(self, method: str, postprocessor: Any, data: dict[str, Any], **arguments: Any) -> None:
        self.add(method, lambda: postprocessor.rerank(self.before, data), **arguments)

    def add_without_training(self, data: dict[str, Any]) -> None:
        for name, arguments in WITHOUT_TRAINING:
            self.add_reranking(name, get_postprocessor(name, **arguments), data, **arguments)


def rounded(values: Any) -> dict[str, float]:
    return {name: round(float(value), 4) for name, value in values._asdict().items()}


def of_glyphs(run: Path, other_run: Path | None, steps: int, case: dict[str, Any]) -> None:
    config: Any = OmegaConf.load(run / "config.yaml")
    root, df_train, df_val = load_glyphs(image_size=config.image_size, n_labels=config.n_labels)
    df_train, _ = _hold_out(df_train, config.n_labels_held_out, config.seed)
    transform = get_transforms_by_cfg(config.transforms)
    validation = DatasetQueryGallery(df_val, dataset_root=root, transform=transform)
    labels = torch.from_numpy(validation.get_labels())
    extractor = _extractor(config, run / "best.ckpt").eval()
    embeddings = extract_embeddings(extractor, validation, 128)
    table = Table(
        searched(embeddings, labels),
        dataset="glyphs",
        queries=len(labels),
        labels=df_val[LABELS_COLUMN].nunique(),
        **case,
    )
    before = table.before
    table.add("before", lambda: before)
    data = {EMBEDDINGS_KEY: embeddings, PATHS_KEY: [str(root / path) for path in df_val[PATHS_COLUMN]]}
    table.add_without_training(data)
    start = time.perf_counter()
    model = learned_of_images(extractor, DatasetWithLabels(df_train, dataset_root=root, transform=transform), steps)
    seconds = round(time.perf_counter() - start)
    for top_n in (TOP_N, 10):
        reranker = get_postprocessor(
            "pairwise_images", top_n=top_n, pairwise_model=model, transforms=transform, batch_size=256, verbose=False
        )
        more = {"top_n": top_n, "steps": steps, "seconds to learn": seconds}
        table.add_reranking("learned: CrossAttentionSiamese", reranker, data, **more)
    if other_run is not None:
        other = _extractor(OmegaConf.load(other_run / "config.yaml"), other_run / "best.ckpt")  # pyright: ignore[reportArgumentType]
        second = searched(extract_embeddings(other, validation, 128), labels)
        table.add("second extractor alone", lambda: second)
        table.add("fusion of two extractors", lambda: fuse([before, second], "distance"), way="distance")
        table.add("fusion of two extractors", lambda: fuse([before, second], "reciprocal_rank"), way="reciprocal_rank")


def of_digits(case: dict[str, Any]) -> None:
    pixels, digits = read_digits()
    embeddings, labels = torch.from_numpy(pixels.reshape(-1, 64) / np.float32(255)), torch.from_numpy(digits)
    is_train = labels < 5
    model = learned_of_vectors(embeddings[is_train], labels[is_train])
    embeddings, labels = embeddings[~is_train], labels[~is_train]
    table = Table(searched(embeddings, labels), dataset="digits", queries=len(labels), labels=5, **case)
    table.add("before", lambda: table.before)
    data = {EMBEDDINGS_KEY: embeddings}
    table.add_without_training(data)
    reranker = get_postprocessor(
        "pairwise_embeddings", top_n=TOP_N, pairwise_model=model, num_workers=0, batch_size=1024
    )
    table.add_reranking("learned: LinearTrivialDistanceSiamese", reranker, data, top_n=TOP_N)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*", help="the folder of a run of the demo, and one of another seed")
    parser.add_argument("--steps", type=int, default=300, help="of the learned re-ranker of images")
    parser.add_argument("--data-sets", nargs="+", default=["digits", "glyphs"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    case = circumstances(1, "torch")
    if "digits" in arguments.data_sets:
        of_digits(case)
    if "glyphs" in arguments.data_sets:
        run, other, *_ = [*arguments.runs, None]
        of_glyphs(run, other, arguments.steps, case)


if __name__ == "__main__":
    main()
