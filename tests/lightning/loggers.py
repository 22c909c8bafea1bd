"""A training that takes a second, for what loggers make of it, and clients of services that stay at home."""

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers.logger import Logger
from tests.lightning.tiny import Tiny
from torch.utils.data import DataLoader

from oml.datasets.base import DatasetQueryGallery, DatasetWithLabels
from oml.lightning.callbacks.metric import MetricValCallback
from oml.lightning.modules.extractor import ExtractorModule
from oml.losses.triplet import TripletLossWithMiner
from oml.metrics.embeddings import EmbeddingMetrics
from oml.samplers.balance import BalanceSampler
from oml.utils.download_mock_dataset import download_mock_dataset


def tiny_training(
    mock_root: Path, logger: Logger | Sequence[Logger], epochs: int = 2, log_images: bool = False, **settings: Any
) -> pl.Trainer:
    """Two batches an epoch, each step logged."""
    df_train, df_val = download_mock_dataset(mock_root)
    train, val = (
        DatasetWithLabels(df_train, dataset_root=mock_root),
        DatasetQueryGallery(df_val, dataset_root=mock_root),
    )
    torch.manual_seed(0)
    extractor = Tiny()
    optimizer = torch.optim.SGD(extractor.parameters(), lr=0.01)
    module = ExtractorModule(extractor, TripletLossWithMiner(margin=None), optimizer)
    metric = EmbeddingMetrics(
        extra_keys=("paths",),
        cmc_top_k=(1,),
        fmr_vals=(0.1,),
        metrics_to_exclude_from_visualization=["cmc", "precision"],
        verbose=False,
    )
    callbacks = [MetricValCallback(metric, log_images), *settings.pop("callbacks", ())]
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=logger,
        callbacks=callbacks,
        log_every_n_steps=1,
        enable_checkpointing=any(isinstance(each, ModelCheckpoint) for each in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    sampler = BalanceSampler(train.get_labels(), n_labels=2, n_instances=3)
    trainer.fit(module, DataLoader(train, batch_sampler=sampler), DataLoader(val, batch_size=5))
    return trainer


@contextmanager
def quiet(home: Path) -> Iterator[None]:
    """Clients write to ``home`` what they write there, ask no server, and end their helpers."""
    home.mkdir()
    before = dict(os.environ)
    names = ["WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "XDG_CONFIG_HOME"]
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        for name in ["HOME", *names]:
            patch.setenv(name, str(home))
        for name in ("WANDB_API_KEY", "NEPTUNE_API_TOKEN", "CLEARML_API_ACCESS_KEY", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        patch.setenv("WANDB_MODE", "offline")  # Lightning sets it, and leaves it so
        patch.setenv("WANDB_SILENT", "true")
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        warnings.filterwarnings("ignore", "jsonschema.RefResolver is deprecated", DeprecationWarning)  # neptune
        warnings.filterwarnings("ignore", "'.*deprecated", DeprecationWarning)  # clearml, of pyparsing
        yield
        end_helpers()
    for name in os.environ.keys() - before.keys():  # clients tell their helpers there
        del os.environ[name]


def end_helpers() -> None:
    """The process with which wandb writes; until it has ended, files may lack what is in them later."""
    if wandb := sys.modules.get("wandb"):
        wandb.teardown()
