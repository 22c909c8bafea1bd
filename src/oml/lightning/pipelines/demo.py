"""The demo: fine-tune a pretrained backbone on Glyphs, and tell how it does on labels it has never seen."""

import json
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pandas import DataFrame
from pytorch_lightning.callbacks import LambdaCallback, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader

import oml
from oml.const import CONFIGS_PATH, IS_GALLERY_COLUMN, IS_QUERY_COLUMN, LABELS_COLUMN, PATHS_COLUMN
from oml.datasets.base import DatasetQueryGallery, DatasetWithLabels
from oml.datasets.glyphs import load_glyphs
from oml.datasets.splitting import rebase_paths
from oml.functional.statistics import Interval, bootstrap_interval
from oml.inference.flat import extract_embeddings
from oml.interfaces.models import IExtractor
from oml.lightning.callbacks.metric import MetricValCallback
from oml.lightning.modules.extractor import ExtractorModule
from oml.lightning.quiet import quiet_lightning
from oml.metrics.embeddings import EmbeddingMetrics
from oml.metrics.per_query import ranking_metrics
from oml.registry.losses import get_criterion_by_cfg
from oml.registry.models import get_extractor_by_cfg
from oml.registry.optimizers import get_optimizer_by_cfg
from oml.registry.samplers import get_sampler_by_cfg
from oml.registry.transforms import get_transforms_by_cfg
from oml.retrieval import RetrievalResults
from oml.utils.io import atomic_path
from oml.utils.progress import progress_bar

N_IN_PICTURE = 5


class Evaluation(NamedTuple):
    """How an extractor does on a data set."""

    embeddings: Tensor
    results: RetrievalResults
    per_query: dict[str, Tensor]
    intervals: dict[str, Interval]


class DemoReport(NamedTuple):
    """What the demo found, and the files it wrote by what they are."""

    before: dict[str, Interval]
    after: dict[str, Interval]
    n_queries: int
    n_labels: int
    seconds: dict[str, float]
    files: dict[str, Path]


def load_demo_config(overrides: Mapping[str, Any] | None = None) -> DictConfig:
    """The packaged config of the demo, with some of its fields changed."""
    config = OmegaConf.load(CONFIGS_PATH / "demo.yaml")
    assert isinstance(config, DictConfig), "the packaged file is a mapping"
    OmegaConf.set_struct(config, True)
    return OmegaConf.merge(config, dict(overrides or {}))  # pyright: ignore[reportReturnType]


def demo_pipeline(
    config: DictConfig, run: Path, data_root: Path | None = None, console: Console | None = None
) -> DemoReport:
    """Evaluate, fine-tune, evaluate again, and write what came of it into the folder ``run``.

    The figures are of the validation half of Glyphs. The checkpoint is chosen on labels of the training half that
    are held out from training, so the validation half has no say in it.

    Args:
        config: see :func:`load_demo_config`.
        run: an empty folder.
        data_root: where Glyphs lies or is to lie; a folder of the cache by default.
        console: where to show what happens.
    """
    console = console or Console()
    seconds: dict[str, float] = {}
    torch.manual_seed(config.seed)

    with _stage("data", seconds), progress_bar("Glyphs: drawing, or checking what was drawn", console) as on_progress:
        root, df_train, df_val = load_glyphs(
            data_root, image_size=config.image_size, n_labels=config.n_labels, on_progress=on_progress
        )
        on_progress(len(df_train) + len(df_val), len(df_train) + len(df_val))
    extractor = _extractor(config)
    transform = get_transforms_by_cfg(config.transforms)
    df_train, df_held_out = _hold_out(df_train, config.n_labels_held_out, config.seed)
    train = DatasetWithLabels(df_train, dataset_root=root, transform=transform)
    held_out = DatasetQueryGallery(df_held_out, dataset_root=root, transform=transform)
    validation = DatasetQueryGallery(df_val, dataset_root=root, transform=transform)
    console.print(f"Train: {train}\nChoose the checkpoint: {held_out}\nReport: {validation}")

    with _stage("evaluation before", seconds):
        before = _evaluate(extractor, validation, config, "Before training", console)
    with _stage("training", seconds):
        checkpoint = _train(extractor, train, held_out, config, run, console)
    with _stage("evaluation after", seconds):
        # from the file, so that the figures are those of what the user keeps
        extractor = _extractor(config, weights=checkpoint)
        after = _evaluate(extractor, validation, config, "After training", console)

    with _stage("report", seconds):
        files = {
            "config": run / "config.yaml",
            "checkpoint": checkpoint,
            "metrics": run / "metrics.json",
            "embeddings": run / "embeddings.safetensors",
            "results": run / "results.safetensors",
            "results before": run / "before" / "results.safetensors",
            "worst queries": run / "worst_queries.png",
            "training log": run / "training" / "metrics.csv",
            "data set": root,
        }
        _write(files["config"], lambda path: OmegaConf.save(config, path, resolve=True))
        _write(files["embeddings"], lambda path: save_file(_for_users(after.embeddings, validation), path))
        # each with the table that its ids are rows of: `oml compare` reads such folders
        for results, path in ((after.results, files["results"]), (before.results, files["results before"])):
            results.save(path)
            items = rebase_paths(df_val, root, path.parent)
            _write(path.with_name("items.csv"), lambda file, items=items: items.to_csv(file, index=False))
        _write(files["worst queries"], lambda path: _draw_worst(after, validation).savefig(path, dpi=100))
    report = DemoReport(
        before=before.intervals,
        after=after.intervals,
        n_queries=len(after.results),
        n_labels=int(df_val[LABELS_COLUMN].nunique()),
        seconds={name: round(value, 2) for name, value in seconds.items()},
        files=files,
    )
    _write(files["metrics"], lambda path: path.write_text(json.dumps(_to_json(report, config), indent=2) + "\n"))
    return report


@contextmanager
def _stage(name: str, seconds: dict[str, float]) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


def _write(path: Path, write: Any) -> None:
    with atomic_path(path) as temporary:
        write(temporary)


def _extractor(config: DictConfig, weights: Path | None = None) -> Any:
    own = {} if weights is None else {"args": {"weights": str(weights)}}
    extractor = get_extractor_by_cfg(OmegaConf.merge(config.extractor, own))  # pyright: ignore[reportArgumentType]
    return extractor.to(memory_format=torch.channels_last) if config.channels_last else extractor


def _hold_out(df: DataFrame, n_labels: int, seed: int) -> tuple[DataFrame, DataFrame]:
    """The table without some of its labels (a fifth at most), and these, each item both query and gallery."""
    labels = np.random.default_rng(seed).permutation(df[LABELS_COLUMN].unique())
    labels = labels[: min(n_labels, len(labels) // 5)]
    chosen = df[LABELS_COLUMN].isin(labels)
    return df[~chosen], df[chosen].assign(**{IS_QUERY_COLUMN: True, IS_GALLERY_COLUMN: True})


def _evaluate(
    extractor: IExtractor, dataset: DatasetQueryGallery, config: DictConfig, title: str, console: Console
) -> Evaluation:
    with progress_bar(f"{title}: embedding the validation images", console) as on_progress:
        embeddings = extract_embeddings(extractor, dataset, config.batch_size_inference, on_progress=on_progress)
    top_k: Any = OmegaConf.to_container(config.metrics)
    results = RetrievalResults.from_dataset(
        embeddings, dataset, top_k=max(N_IN_PICTURE, *(k for cuts in top_k.values() for k in cuts))
    )
    per_query = {
        f"{name}@{k}": values for name, by_k in ranking_metrics(results, **top_k).items() for k, values in by_k.items()
    }
    intervals = {name: bootstrap_interval(values, clusters=results.query_labels) for name, values in per_query.items()}
    return Evaluation(embeddings, results, per_query, intervals)


def _train(
    extractor: Any,
    train: DatasetWithLabels,
    held_out: DatasetQueryGallery,
    config: DictConfig,
    run: Path,
    console: Console,
) -> Path:
    """Fine-tune the extractor in place; returns its best checkpoint on the labels held out."""
    sampler = get_sampler_by_cfg(config.sampler, labels=train.get_labels(), seed=config.seed)
    optimizer = get_optimizer_by_cfg(config.optimizer, params=extractor.parameters())
    module = ExtractorModule(
        extractor=extractor,
        criterion=get_criterion_by_cfg(config.criterion),
        optimizer=optimizer,
        scheduler=OneCycleLR(optimizer, max_lr=config.optimizer.args.lr, total_steps=config.steps + 1),
    )
    metric = MetricValCallback(EmbeddingMetrics(cmc_top_k=(1, 5), verbose=False))
    checkpoints = ModelCheckpoint(run, filename="best", monitor="OVERALL/cmc/1", mode="max", save_weights_only=True)
    with quiet_lightning(), progress_bar(f"Training: steps of {sampler.batch_size} images", console) as on_progress:
        trainer = pl.Trainer(
            accelerator="auto",
            devices=1,
            max_steps=config.steps,
            val_check_interval=max(1, config.steps // config.n_validations),
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            log_every_n_steps=10,
            callbacks=[
                metric,
                checkpoints,
                LambdaCallback(on_train_batch_end=lambda trainer, *_: on_progress(trainer.global_step, config.steps)),
            ],
            enable_progress_bar=False,
            logger=CSVLogger(run, name=None, version="training"),
            enable_model_summary=False,
        )
        trainer.fit(
            module,
            train_dataloaders=DataLoader(train, batch_sampler=sampler),
            val_dataloaders=DataLoader(held_out, batch_size=config.batch_size_inference),
        )
    return run / Path(checkpoints.best_model_path).name


def _for_users(embeddings: Tensor, dataset: DatasetQueryGallery) -> dict[str, Tensor]:
    return {"embeddings": embeddings, "labels": torch.from_numpy(dataset.get_labels())}


def _draw_worst(evaluation: Evaluation, dataset: DatasetQueryGallery) -> Any:
    """The queries with the lowest precision; among equals, those that are surest of their wrong first answer."""
    precision = next(values for name, values in evaluation.per_query.items() if name.startswith("precision"))
    order = np.lexsort((evaluation.results.distances[:, 0].numpy(), precision.numpy()))
    paths = dataset.df[PATHS_COLUMN].tolist()
    return evaluation.results.visualize(paths, order[:N_IN_PICTURE].tolist(), N_IN_PICTURE)


def _to_json(report: DemoReport, config: DictConfig) -> dict[str, Any]:
    def figures(intervals: Mapping[str, Interval]) -> dict[str, Any]:
        return {
            name: {key: float(value) for key, value in interval._asdict().items()}
            for name, interval in intervals.items()
        }

    packages = ("torch", "torchvision", "timm", "pytorch-lightning", "numpy", "pandas", "pillow")
    return {
        "before": figures(report.before),
        "after": figures(report.after),
        "interval": "bootstrap over queries, whole labels resampled, 95 %",
        "queries": report.n_queries,
        "labels": report.n_labels,
        "seed": config.seed,
        "seconds": report.seconds,
        "versions": {"oml": oml.__version__, "python": platform.python_version()}
        | {name: version(name) for name in packages},
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads()},
    }
