"""Calibrating the distances of an extractor, re-ranked or not, by a config."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from oml.configs import ConfigError
from oml.const import TCfg
from oml.inference._content_key import digest_of_model
from oml.lightning.callbacks.metric import MetricValCallback
from oml.lightning.modules.extractor import ExtractorModule
from oml.lightning.pipelines.validate import extractor_validation_pipeline
from oml.metrics.embeddings import EmbeddingMetrics
from oml.retrieval.calibration import Calibration, Method
from oml.utils.io import calc_file_hash
from oml.utils.misc import dictconfig_to_dict

#: what a calibration does not need of the metrics
_NO_METRICS: dict[str, Any] = {
    **{f"{name}_top_k": [] for name in ("precision", "map", "recall", "ndcg", "mrr")},
    "fmr_vals": [],
    "pfc_variance": [],
    "categories_key": None,
}


def calibration_pipeline(
    cfg: TCfg,
    *,
    method: Method = "isotonic",
    fmr_vals: Sequence[float | int] = (0.01, 0.001, 0.0001),
    top_k: int = 10,
    seed: int = 0,
) -> Calibration:
    """Fit a calibration to what an extractor finds on the validation part of a table.

    The table is embedded and searched as by :func:`oml.lightning.pipelines.validate.extractor_validation_pipeline`, and
    re-ranked if the config has a ``postprocessor``; cmc is shown. Then see
    :meth:`oml.retrieval.calibration.Calibration.from_results`: thresholds are of all pairs, or for re-ranked results
    of those that were retrieved, so that others do not match.

    Args:
        cfg: fields of ``oml.lightning.pipelines.schema.VALIDATION``; of the tables, the main one counts.
        method, fmr_vals, top_k, seed: of ``Calibration.from_results``.

    Raises:
        ConfigError: with all that is wrong with the config; or if the table has too few labels or pairs.

    Example:
        ::

            calibration_pipeline(validation_config_of("runs/my_run")).save("runs/my_run/calibration.json")
    """
    config: dict[str, Any] = dictconfig_to_dict(cfg)  # pyright: ignore[reportArgumentType]
    metric_args = {**(config.get("metric_args") or {}), **_NO_METRICS, "cmc_top_k": sorted({1, top_k})}
    config |= {"metric_args": metric_args, "validation_tables": {}}
    trainer, _ = extractor_validation_pipeline(config)
    callbacks: Sequence[Any] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    metric = next(each.metric for each in callbacks if isinstance(each, MetricValCallback))
    assert isinstance(metric, EmbeddingMetrics), "that is what the pipeline computes"
    assert metric.results is not None, "that it has computed"
    module = trainer.lightning_module
    assert isinstance(module, ExtractorModule), "that it validated"
    is_reranked = metric.postprocessor is not None
    try:
        return Calibration.from_results(
            metric.results,
            top_k=min(top_k, metric.results.retrieved_ids.shape[1]),
            fmr_vals=fmr_vals,
            embeddings=None if is_reranked else torch.as_tensor(metric.acc.storage[metric.embeddings_key]),
            method=method,
            seed=seed,
            distance=f"by {type(metric.postprocessor).__name__}" if is_reranked else "L2",
            extractor=digest_of_model(module.model),
            table=calc_file_hash(Path(config["dataset_root"]) / config["dataframe_name"], "sha256")[:16],
        )
    except ValueError as error:
        raise ConfigError(f"dataframe_name: {error}") from error
