"""Validating an extractor by a config, on one table or several."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from oml.const import SPLIT_COLUMN, VALIDATION_SPLIT, TCfg
from oml.datasets.base import DatasetQueryGallery
from oml.datasets.table import TableError, check_retrieval_dataframe_format, read_table
from oml.lightning.callbacks.metric import MetricValCallback
from oml.metrics.embeddings import EmbeddingMetrics
from oml.registry.transforms import get_transforms_by_cfg
from oml.utils.misc import dictconfig_to_dict


def validation_parts(
    cfg: TCfg, dataset: DatasetQueryGallery | None = None
) -> tuple[list[DataLoader], list[MetricValCallback]]:
    """The loaders of all validation tables of a config, and for each a callback with its metric.

    The first ones are of the main table, whose metrics are called ``OVERALL/cmc/1`` and the like. Those of each of
    the ``validation_tables``, ``{name: {dataset_root, dataframe_name}}``, follow; its metrics are
    ``<name>/OVERALL/cmc/1`` and the like.

    Args:
        cfg: with ``dataset_root``, ``dataframe_name``, ``transforms_val``, ``bs_val`` and ``num_workers``; and maybe
            ``validation_tables``, ``metric_args``, ``log_images``, ``cache_size`` and ``show_dataset_warnings``.
        dataset: the validation part of the main table, if it is there already.

    Raises:
        TableError: a table breaks the format, or has no validation rows.
    """
    config: dict[str, Any] = dictconfig_to_dict(cfg)  # pyright: ignore[reportArgumentType]
    main = {key: config[key] for key in ("dataset_root", "dataframe_name")}
    tables = {"": main, **{name: {**main, **own} for name, own in (config.get("validation_tables") or {}).items()}}
    loaders, callbacks = [], []
    for i, (name, table) in enumerate(tables.items()):
        items = dataset if dataset is not None and i == 0 else _dataset(table, config)
        loaders.append(DataLoader(items, batch_size=config["bs_val"], num_workers=config["num_workers"]))
        metric = _metric(items, config.get("metric_args") or {})
        callbacks.append(MetricValCallback(metric, bool(config.get("log_images")), loader_idx=i, name=name))
    return loaders, callbacks


def _dataset(table: Mapping[str, str], config: Mapping[str, Any]) -> DatasetQueryGallery:
    root = Path(table["dataset_root"])
    rows = read_table(root / table["dataframe_name"])
    check_retrieval_dataframe_format(rows, root, verbose=config.get("show_dataset_warnings", True))
    rows = rows[rows[SPLIT_COLUMN] == VALIDATION_SPLIT]
    if rows.empty:
        raise TableError(
            f"Validation needs rows whose {SPLIT_COLUMN} is {VALIDATION_SPLIT!r}, "
            f"{str(root / table['dataframe_name'])!r} has none. `oml split` makes some."
        )
    transform = get_transforms_by_cfg(config["transforms_val"])
    return DatasetQueryGallery(rows, None, root, transform, cache_size=config.get("cache_size"))


def _metric(dataset: DatasetQueryGallery, args: Mapping[str, Any]) -> EmbeddingMetrics:
    of_data: dict[str, Any] = {
        "extra_keys": (dataset.paths_key, *dataset.bboxes_keys),
        "categories_key": dataset.categories_key,
        "sequence_key": dataset.sequence_key,
    }
    return EmbeddingMetrics(**(of_data | dict(args)))
