"""Validating an extractor by a config, on one table or several."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.utils.data import DataLoader

from oml.const import SPLIT_COLUMN, VALIDATION_SPLIT, TCfg
from oml.datasets.base import DatasetQueryGallery
from oml.datasets.table import TableError, check_retrieval_dataframe_format, read_table
from oml.inference.convolutions import lay_out
from oml.interfaces.retrieval import IDistancesPostprocessor
from oml.lightning.callbacks.checkpoints import BEST
from oml.lightning.callbacks.metric import MetricValCallback, MetricValCallbackDDP
from oml.lightning.modules.extractor import ExtractorModuleDDP
from oml.lightning.pipelines.checks import checked
from oml.lightning.pipelines.parser import (
    CHECKPOINTS_FOLDER,
    parse_engine_params_from_config,
    parse_logger_from_config,
    parse_precision_from_config,
    parse_strategy_from_config,
    run_folder,
)
from oml.lightning.pipelines.schema import VALIDATION
from oml.lightning.quiet import quiet_lightning
from oml.metrics.embeddings import EmbeddingMetrics, EmbeddingMetricsDDP
from oml.metrics.table import joined_metrics_table, print_metrics_table, write_metrics
from oml.registry.arguments import parameters_of
from oml.registry.models import PAIRWISE_MODELS_REGISTRY, get_extractor_by_cfg
from oml.registry.postprocessors import POSTPROCESSORS_REGISTRY
from oml.registry.transforms import get_transforms_by_cfg
from oml.retrieval.postprocessors.base import Postprocessor
from oml.retrieval.postprocessors.k_reciprocal import KReciprocalPostprocessor
from oml.utils.misc import dictconfig_to_dict


def extractor_validation_pipeline(cfg: TCfg) -> tuple[pl.Trainer, list[dict[str, float]]]:
    """Compute the metrics of an extractor on the validation part of a table, or of several, and show them.

    Everything comes from the config, which is checked before anything is loaded; its fields are those of
    ``oml.lightning.pipelines.schema.VALIDATION``. Metrics of the main table are called ``OVERALL/cmc/1`` and the like,
    those of each of the ``validation_tables`` ``<name>/OVERALL/cmc/1``. With a ``run_dir``, the files ``metrics.csv``
    and ``metrics.json`` go there, with intervals, see :func:`oml.metrics.table.write_metrics`. Metrics and pictures go
    to the ``logger``, if there is one; for ``log_images`` it is TensorBoard's unless the config says another.

    A ``postprocessor`` re-ranks what was found, in every table. Then metrics are those after re-ranking, and what is
    shown and written has those before too, with the paired difference, its interval and p-value, see
    :func:`oml.metrics.table.metrics_table`. Its network works on the trainer's device: in float16, with a ``precision``
    of 16 on a GPU, unless its ``use_fp16`` says otherwise, and in float32 with any other.

    Several devices share out the items, the search and the re-ranking: the numbers are those of one.

    Returns:
        The trainer, and the metrics of every table by their names. Of ``trainer.callbacks`` each
        ``MetricValCallback`` has a ``metric`` with all that was computed, to plot from.

    Raises:
        ConfigError: with all that is wrong with the config.

    Example:
        ::

            trainer, logs = extractor_validation_pipeline(config)
            callback = next(each for each in trainer.callbacks if isinstance(each, MetricValCallback))
            callback.metric.get_plot_for_worst_queries("OVERALL/map/5", n_queries=5, n_instances=5)
    """
    config = dictconfig_to_dict(checked(cfg, VALIDATION))
    precision = parse_precision_from_config(config)
    postprocessor = _postprocessor(config.get("postprocessor"), precision)
    loaders, callbacks = validation_parts(config, postprocessor=postprocessor)
    has_logger = bool(config.get("logger") or config.get("log_images"))
    settings = {
        **parse_engine_params_from_config(config),
        "precision": precision,
        "default_root_dir": run_folder(config),
        "logger": parse_logger_from_config(config) if has_logger else False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        **(config.get("lightning_trainer_extra_args") or {}),
        "strategy": parse_strategy_from_config(config),
        "callbacks": [_OnDevice(postprocessor), *callbacks],  # to which Lightning adds its own
    }
    module = ExtractorModuleDDP(None, loaders, lay_out(get_extractor_by_cfg(config["extractor"])))
    with quiet_lightning():
        trainer = pl.Trainer(**settings)
        logs = trainer.validate(module, verbose=False)
    metrics = {each.name or "": each.metric for each in callbacks if isinstance(each.metric, EmbeddingMetrics)}
    if trainer.is_global_zero:
        print_metrics_table(joined_metrics_table(metrics))
        if hint := _hint(postprocessor, metrics[""]):
            print(hint)  # noqa: T201 (as the table)
        if config.get("run_dir"):
            write_metrics(config["run_dir"], metrics)
    return trainer, [dict(each) for each in logs]


class _OnDevice(pl.Callback):
    """Moves the networks of a postprocessor to the device of the module before a validation."""

    def __init__(self, postprocessor: object) -> None:
        self.networks = list(_networks(postprocessor))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Move them."""
        for network in self.networks:
            network.to(pl_module.device)


def _networks(value: object) -> Iterator[nn.Module]:
    """Those of a postprocessor, and of others within it."""
    if isinstance(value, nn.Module):
        yield value
    elif isinstance(value, list | tuple | Postprocessor | IDistancesPostprocessor):
        for part in value if isinstance(value, list | tuple) else vars(value).values():
            yield from _networks(part)


def _hint(postprocessor: object, metric: EmbeddingMetrics) -> str:
    """What to try if k-reciprocal re-ranking looks at more neighbours than labels have items."""
    labels = torch.as_tensor(metric.acc.storage[metric.labels_key])
    n_items = max(2, int(labels.unique(return_counts=True)[1].median()))
    for each in getattr(postprocessor, "postprocessors", [postprocessor]):
        if isinstance(each, KReciprocalPostprocessor) and each.k1 > n_items:
            return (
                f"k_reciprocal looks at k1={each.k1} neighbours, and half of the labels have {n_items} items or fewer, "
                f"so that many of them are wrong. Try k1={n_items} and k2={max(1, round(n_items / 3))}."
            )
    return ""


def _postprocessor(config: dict[str, Any] | None, precision: int | str) -> Any:
    """What re-ranks, if anything does."""
    if not config:
        return None
    for one in POSTPROCESSORS_REGISTRY.components(config):
        if one.constructor is not None and "use_fp16" in parameters_of(one.constructor):
            one.args.setdefault("use_fp16", str(precision).startswith("16"))
    return POSTPROCESSORS_REGISTRY.build(config)


def validation_config_of(run: Path | str) -> DictConfig:
    """The config to validate what a training made, on its own table: with the weights of its best checkpoint.

    Of a training of a re-ranker, it re-ranks what the extractor finds on top of which that was trained.

    Args:
        run: the folder of the training, with ``config.yaml`` and ``checkpoints/best.ckpt``.

    Returns:
        Fields of ``oml.lightning.pipelines.schema.VALIDATION``, for one device of any kind, without a logger.

    Raises:
        FileNotFoundError: there is no such folder, or it lacks one of these files.
    """
    config, _ = _config_and_checkpoint(run)
    if config.get("postprocessor"):
        config |= {"transforms_val": config["transforms_extraction"], "bs_val": config["batch_size_inference"]}
        config["postprocessor"] = postprocessor_of_run(run)
    else:
        config = config_of_run(run)
    fields = ("dataset_root", "dataframe_name", "transforms_val", "bs_val", "num_workers", "extractor", "precision")
    fields += ("metric_args", "validation_tables", "postprocessor")
    return OmegaConf.create({**{key: config[key] for key in fields if key in config}, "devices": 1})


def postprocessor_of_run(run: Path | str) -> dict[str, Any]:
    """The config of the postprocessor that a training of a re-ranker made, with the weights of its best checkpoint.

    Args:
        run: the folder of the training, with ``config.yaml`` and ``checkpoints/best.ckpt``.

    Returns:
        ``{name, args}``, for :func:`oml.registry.postprocessors.get_postprocessor_by_cfg`.

    Raises:
        FileNotFoundError: there is no such folder, or it lacks one of these files.
        ValueError: it is of a training of something else, or the model cannot take weights.
    """
    config, checkpoint = _config_and_checkpoint(run)
    postprocessor = config.get("postprocessor")
    if not isinstance(postprocessor, Mapping):
        raise ValueError(
            f"The run {str(run)!r} is of an extractor, and has no re-ranker. `oml train-reranker` trains one."
        )
    args = dict(postprocessor.get("args") or {})
    model = _without_weights(args.get("pairwise_model") or {})
    args["pairwise_model"] = _with_weights(model, str(checkpoint))
    return {**postprocessor, "args": args}


def _with_weights(model: Mapping[str, Any], weights: str) -> dict[str, Any]:
    """The config of a pairwise model that takes weights; one of nothing but an extractor leaves that to it."""
    args = dict(model.get("args") or {})
    if "weights" in parameters_of(PAIRWISE_MODELS_REGISTRY.find(model.get("name", ""))):
        return {**model, "args": {**args, "weights": weights}}
    inner = args.get("extractor")
    if not isinstance(inner, Mapping):
        raise ValueError(f"The pairwise model {model.get('name')!r} has no argument 'weights', so it cannot take any.")
    args["extractor"] = {**inner, "args": {**(inner.get("args") or {}), "weights": weights}}
    return {**model, "args": args}


def config_of_run(run: Path | str) -> dict[str, Any]:
    """The config of a training, whose extractor takes the weights of the best checkpoint.

    Raises:
        FileNotFoundError: there is no such folder, or it lacks its config or checkpoint.
        ValueError: the training was of a re-ranker, whose checkpoint has no extractor.
    """
    config, checkpoint = _config_and_checkpoint(run)
    if config.get("postprocessor"):
        raise ValueError(
            f"The run {str(run)!r} is of a re-ranker, which makes no embeddings: name the run of the extractor."
        )
    extractor = _without_weights(config["extractor"])
    return {**config, "extractor": {**extractor, "args": {**extractor["args"], "weights": str(checkpoint)}}}


def _config_and_checkpoint(run: Path | str) -> tuple[dict[str, Any], Path]:
    """Of the folder of a training: its config, and where its best checkpoint is."""
    run = Path(run)
    for file in (run / "config.yaml", checkpoint := run / CHECKPOINTS_FOLDER / BEST):
        if not file.is_file():
            raise FileNotFoundError(
                f"The folder of a training has config.yaml and {CHECKPOINTS_FOLDER}/{BEST}, but there is no "
                f"{str(file)!r}. The training writes it when it is validated first."
            )
    config = dictconfig_to_dict(OmegaConf.load(run / "config.yaml"))  # pyright: ignore[reportArgumentType]
    return config, checkpoint.absolute()  # pyright: ignore[reportReturnType]


def _without_weights(extractor: Mapping[str, Any]) -> dict[str, Any]:
    """The config of an extractor, and of those within it, that loads none: those of a checkpoint are for all."""
    args = dict(extractor.get("args") or {})
    if "weights" in args:
        args["weights"] = None
    if isinstance(inner := args.get("extractor"), Mapping):
        args["extractor"] = _without_weights(inner)
    return {**extractor, "args": args}


def validation_parts(
    cfg: TCfg,
    dataset: DatasetQueryGallery | None = None,
    postprocessor: Postprocessor | IDistancesPostprocessor | None = None,
    dataset_type: type[DatasetQueryGallery] = DatasetQueryGallery,
    callback_type: type[MetricValCallbackDDP] = MetricValCallbackDDP,
) -> tuple[list[DataLoader], list[MetricValCallback]]:
    """The loaders of all validation tables of a config, and for each a callback with its metric.

    The first ones are of the main table, whose metrics are called ``OVERALL/cmc/1`` and the like. Those of each of
    the ``validation_tables``, ``{name: {dataset_root, dataframe_name}}``, follow; its metrics are
    ``<name>/OVERALL/cmc/1`` and the like.

    Args:
        cfg: with ``dataset_root``, ``dataframe_name``, ``transforms_val``, ``bs_val`` and ``num_workers``; and maybe
            ``validation_tables``, ``metric_args``, ``log_images``, ``cache_size`` and ``show_dataset_warnings``.
        dataset: the validation part of the main table, if it is there already.
        postprocessor: what re-ranks, in all tables.
        dataset_type: what items come from.
        callback_type: what feeds the metrics.

    Raises:
        TableError: a table breaks the format, or has no validation rows.
    """
    config: dict[str, Any] = dictconfig_to_dict(cfg)  # pyright: ignore[reportArgumentType]
    main = {key: config[key] for key in ("dataset_root", "dataframe_name")}
    tables = {"": main, **{name: {**main, **own} for name, own in (config.get("validation_tables") or {}).items()}}
    loaders, callbacks = [], []
    for i, (name, table) in enumerate(tables.items()):
        items = dataset if dataset is not None and i == 0 else _dataset(table, config, dataset_type)
        loaders.append(DataLoader(items, batch_size=config["bs_val"], num_workers=config["num_workers"]))
        metric = _metric(items, {"postprocessor": postprocessor, **(config.get("metric_args") or {})})
        callbacks.append(callback_type(metric, bool(config.get("log_images")), loader_idx=i, name=name))
    return loaders, callbacks


def _dataset(
    table: Mapping[str, str | Path], config: Mapping[str, Any], dataset_type: type[DatasetQueryGallery]
) -> DatasetQueryGallery:
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
    return dataset_type(rows, None, root, transform, cache_size=config.get("cache_size"))


def _metric(dataset: DatasetQueryGallery, args: Mapping[str, Any]) -> EmbeddingMetricsDDP:
    of_data: dict[str, Any] = {
        "extra_keys": (dataset.paths_key, *dataset.bboxes_keys),
        "categories_key": dataset.categories_key,
        "sequence_key": dataset.sequence_key,
        "verbose": False,  # the table of metrics shows them
    }
    return EmbeddingMetricsDDP(**(of_data | dict(args)))
