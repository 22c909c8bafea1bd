"""Whether the parts of a config agree with each other and with the table; nothing is loaded but tables."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args

import numpy as np
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pandas import DataFrame
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from oml.const import (
    CATEGORIES_COLUMN,
    CATEGORIES_KEY,
    IS_QUERY_COLUMN,
    LABELS_COLUMN,
    OVERALL_CATEGORIES_KEY,
    PATHS_KEY,
    SPLIT_COLUMN,
    TRAIN_SPLIT,
    VALIDATION_SPLIT,
)
from oml.datasets.base import DatasetWithLabels
from oml.datasets.table import inspect_table, read_table
from oml.interfaces.models import IExtractor, IFreezable
from oml.lightning.callbacks.checkpoints import mode_of
from oml.lightning.pipelines.parser import parse_sampler_from_config, parse_scheduler_from_config
from oml.metrics.embeddings import EmbeddingMetrics
from oml.metrics.per_query import OfReturned
from oml.models.meta.siamese import LinearTrivialDistanceSiamese
from oml.models.zoo import check_weights
from oml.registry.arguments import parameters_of
from oml.registry.losses import LOSSES_REGISTRY
from oml.registry.models import EXTRACTORS_REGISTRY
from oml.registry.optimizers import get_optimizer_by_cfg
from oml.registry.postprocessors import POSTPROCESSORS_REGISTRY
from oml.registry.registry import Registry
from oml.retrieval.postprocessors.pairwise import PairwiseEmbeddingsPostprocessor, PairwiseImagesPostprocessor

_T = TypeVar("_T")
_EXPECTED = (ValueError, TypeError, KeyError, ImportError, OSError, MisconfigurationException)
#: arguments of losses that are sizes: ours, and those of pytorch-metric-learning
_N_LABELS, _DIMS = ("num_classes",), ("in_features", "embedding_size")


class Labels(DatasetWithLabels):
    """The labels of the train rows as a training has them, without images: what samplers ask for."""

    def __init__(self, rows: DataFrame) -> None:
        self.df = rows.assign(**{LABELS_COLUMN: np.unique(rows[LABELS_COLUMN], return_inverse=True)[1]})
        self.categories_key = CATEGORIES_KEY if CATEGORIES_COLUMN in rows.columns else None

    def __len__(self) -> int:
        return len(self.df)


class TableFacts(NamedTuple):
    """What a table has for the other parts to agree with."""

    train: Labels
    query_categories: list[Any]
    """distinct ones; none if the table has no categories"""


def said(error: BaseException) -> str:
    """The text of an error, in one line."""
    text = " ".join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())
    return text if text and isinstance(error, _EXPECTED) else f"{type(error).__name__}: {text}"


def tried(problems: list[str], place: str, make: Callable[[], _T], on_meta: bool = False) -> _T | None:
    """What comes of a call; if it raises, ``None``, and a finding.

    Args:
        problems: gets the finding.
        place: where the config says it.
        make: the call.
        on_meta: make tensors of shapes alone. What some code cannot do with those is no finding.
    """
    try:
        with warnings.catch_warnings(), torch.device("meta") if on_meta else nullcontext():
            warnings.simplefilter("ignore")
            return make()
    except Exception as error:  # constructors of users raise what they like
        if isinstance(error, _EXPECTED) or not on_meta:
            problems.append(f"{place}: {said(error)}")
        return None


def near(name: str, known: Iterable[str]) -> str:
    """``did you mean ...?``, or the first of those there are."""
    known = list(known)
    if close := get_close_matches(name, known):
        return f"did you mean {' or '.join(close)}?"
    return f"there are {', '.join(known[:8])}{' ...' if len(known) > 8 else ''}."


def read_facts(problems: list[str], root: Path, name: str, splits: Sequence[str], place: str = "") -> TableFacts | None:
    """What a table holds, ``None`` if something is wrong with it. Its images are looked for, not opened.

    Args:
        problems: gets all that is wrong with it.
        root, name: of the table.
        splits: which it is to have rows of.
        place: where the config has these two.
    """
    if not root.is_dir():
        problems.append(f"{place}dataset_root: there is no folder {str(root)!r}.")
        return None
    table = tried(problems, f"{place}dataframe_name", lambda: read_table(root / name))
    if table is None:
        return None
    if violations := inspect_table(table, root).violations:
        problems += [f"{place}dataframe_name: in {str(root / name)!r}, {text}" for text in violations]
        return None
    of_split = {split: table[table[SPLIT_COLUMN] == split] for split in (TRAIN_SPLIT, VALIDATION_SPLIT)}
    if lacking := [split for split in splits if of_split[split].empty]:
        problems += [
            f"{place}dataframe_name: {str(root / name)!r} has no {split} rows. `oml split` makes some."
            for split in lacking
        ]
        return None
    rows = of_split[VALIDATION_SPLIT]
    queries = rows[rows[IS_QUERY_COLUMN].astype(object).isin([True])]
    has_categories = CATEGORIES_COLUMN in table.columns
    return TableFacts(
        train=Labels(of_split[TRAIN_SPLIT]),
        query_categories=queries[CATEGORIES_COLUMN].unique().tolist() if has_categories else [],
    )


def weights_problems(registry: Registry, config: Mapping[str, Any], place: str) -> list[str]:
    """Weights that are neither names nor files, and names of another architecture's, in a config or one within it."""
    problems: list[str] = []
    for one in registry.components(config, place):
        weights, arch = one.args.get("weights"), one.args.get("arch")
        if not isinstance(weights, str | Path) or one.constructor is None:
            continue
        at = f"{one.place}.args.weights"
        entry = tried(problems, at, lambda weights=weights: check_weights(weights))
        own = entry.init_args.get("arch") if entry and entry.extractor == one.constructor.__name__ else None
        if own and isinstance(arch, str) and own.partition(".")[0] != arch.partition(".")[0]:
            problems.append(f"{at}: {weights!r} are weights of the architecture {own!r}, got arch={arch!r}.")
    return problems


def build_without_weights(problems: list[str], config: Mapping[str, Any]) -> IExtractor | None:
    """The extractor, of shapes alone; ``None`` if it cannot be told."""
    return tried(problems, "extractor", lambda: EXTRACTORS_REGISTRY.build(without_weights(config)), on_meta=True)


def without_weights(value: Any) -> Any:
    """A config in which no model, at any depth, has weights to load."""
    if isinstance(value, Mapping):
        return {
            k: None if k == "weights" and isinstance(v, str | Path) else without_weights(v) for k, v in value.items()
        }
    return [without_weights(each) for each in value] if isinstance(value, list) else value


def size_problems(criterion: dict[str, Any], n_labels: int | None, dim: int | None) -> list[str]:
    """Sizes in a loss's config that do not fit the data or the extractor; those that are left out are filled in.

    Args:
        criterion: config; losses within it count as well.
        n_labels: of the train rows.
        dim: of the embeddings.
    """
    problems = []
    dims: dict[str, int | None] = {}  # by place; a loss of prefixes says those of the losses within
    for one in LOSSES_REGISTRY.components(criterion, "criterion"):
        if one.constructor is None:
            continue
        outer = [at for at in dims if one.place.startswith(at)]
        dim = dims.setdefault(one.place, dims[max(outer, key=len)] if outer else dim)
        known = parameters_of(one.constructor)
        for keys, size, of in (
            (_N_LABELS, n_labels, "labels in the train split"),
            (_DIMS, dim, "numbers in an embedding"),
        ):
            for key in (key for key in keys if key in known):
                if one.args.get(key) is None:
                    one.args[key] = size or 1  # what is not known is a finding elsewhere
                elif size is not None and one.args[key] != size:
                    problems.append(
                        f"{one.place}.args.{key}: there are {size} {of}, got {one.args[key]}. Set it to null, "
                        "and it is right."
                    )
        prefixes: Any = one.args.get("dims")
        if "criterion" in one.nested and _are_counts(prefixes):
            if dim is not None and max(prefixes) > dim:
                problems.append(f"{one.place}.args.dims: there are {dim} numbers in an embedding, got {prefixes}.")
            inner = one.args.get("criterion")
            for i, prefix in enumerate(prefixes):
                dims[f"{one.place}.args.criterion" + (f"[{i}]" if isinstance(inner, list) else "")] = prefix
    return problems


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and all(type(each) is int for each in values)


def build_criterion(problems: list[str], config: Mapping[str, Any], facts: TableFacts | None) -> nn.Module | None:
    """The loss, of shapes alone; ``None`` if it cannot be told."""
    offered = {} if facts is None else {"label2category": facts.train.get_label2category()}
    return tried(problems, "criterion", lambda: LOSSES_REGISTRY.build(config, **offered), on_meta=True)


def sampler_problems(config: Mapping[str, Any], facts: TableFacts) -> list[str]:
    """What keeps the sampler from making batches of the train rows."""
    problems: list[str] = []
    n_items = len(facts.train)
    if not config.get("sampler"):
        if not (size := config.get("bs_train")):
            problems.append("bs_train: must be given if there is no sampler.")
        elif size > n_items:
            problems.append(f"bs_train: there are {n_items} train rows, and only whole batches are used; got {size}.")
        return problems
    sampler = tried(problems, "sampler", lambda: parse_sampler_from_config(config, facts.train))
    n_instances, most = getattr(sampler, "n_instances", 0), facts.train.df[LABELS_COLUMN].value_counts().max()
    if n_instances > most:
        problems.append(
            f"sampler.args.n_instances: no label has more than {most} train rows, so that items of a batch would be "
            f"repeated for every label; got {n_instances}."
        )
    return problems


def picture_problems(logger: Callable[..., Any]) -> list[str]:
    """A logger that cannot log pictures."""
    from oml.lightning.loggers.figures import log_figure  # imports the packages of loggers

    if not isinstance(logger, type) or log_figure.dispatch(logger) is not log_figure.dispatch(object):
        return []
    return [
        f"log_images: how {logger.__name__} logs pictures is not known. Tell it, by @log_figure.register of "
        "oml.lightning.loggers.figures, or set it to false."
    ]


def postprocessor_problems(config: dict[str, Any], dim: int | None) -> list[str]:
    """What is wrong with a re-ranker: its arguments, its model, and whether that takes embeddings of such a size.

    Args:
        config: of the postprocessor.
        dim: of the extractor's embeddings; ``None`` if it is not known.
    """
    problems = POSTPROCESSORS_REGISTRY.problems(config, (), "postprocessor")
    problems += weights_problems(POSTPROCESSORS_REGISTRY, config, "postprocessor")
    if problems:
        return problems
    build = partial(POSTPROCESSORS_REGISTRY.build, without_weights(config))
    model = getattr(tried(problems, "postprocessor", build, on_meta=True), "model", None)
    if isinstance(model, LinearTrivialDistanceSiamese) and dim not in (None, model.feat_dim):
        problems.append(
            f"postprocessor.args.pairwise_model.args.feat_dim: there are {dim} numbers in an embedding, got "
            f"{model.feat_dim}."
        )
    return problems


def reranker_problems(config: Mapping[str, Any]) -> list[str]:
    """Why the model of a postprocessor, which has nothing wrong with it, cannot be trained as the config says."""
    name, problems = config["postprocessor"]["name"], []
    build = partial(POSTPROCESSORS_REGISTRY.build, without_weights(config["postprocessor"]))
    postprocessor = tried([], "", build, on_meta=True)
    if postprocessor is None:
        return []
    if not isinstance(postprocessor, PairwiseImagesPostprocessor | PairwiseEmbeddingsPostprocessor):
        return [f"postprocessor.name: {name!r} is not trained; pairwise_images is, and pairwise_embeddings."]
    if isinstance(postprocessor, PairwiseImagesPostprocessor) and config.get("transforms_train") is None:
        problems.append(f"transforms_train: must be given, as {name} compares images.")
    if (frozen := config.get("freeze_n_epochs")) and not isinstance(postprocessor.model, IFreezable):
        problems.append(
            f"freeze_n_epochs: {type(postprocessor.model).__name__} cannot be frozen, concat_siamese can; got {frozen}."
        )
    if (config.get("lightning_trainer_extra_args") or {}).get("strategy") == "fsdp":
        problems.append(
            "lightning_trainer_extra_args.strategy: fsdp shares out a model that each process needs whole, to re-rank "
            "queries of its own. Take ddp."
        )
    return problems


def build_metric(problems: list[str], args: Mapping[str, Any]) -> EmbeddingMetrics | None:
    """The metric, as of a table with categories."""
    of_data = {"extra_keys": (PATHS_KEY,), "categories_key": CATEGORIES_KEY}
    return tried(problems, "metric_args", lambda: EmbeddingMetrics(**(of_data | dict(args))))


def metric_names(metric: EmbeddingMetrics, categories: Sequence[Any], table: str) -> list[str]:
    """What the validation of a table with these categories logs: ``OVERALL/cmc/1`` and the like."""
    cuts: dict[str, Sequence[Any]] = {**metric.top_k, "fnmr@fmr": metric.fmr_vals, "pcf": metric.pfc_variance}
    if metric.returned_metrics:
        cuts["returned"] = get_args(OfReturned)
    by_category = metric.categories_key is not None and not metric.return_only_main_category
    told = [OVERALL_CATEGORIES_KEY, *(categories if by_category else [])]
    prefix = f"{table}/" if table else ""
    return [f"{prefix}{one}/{name}/{k}" for one in told for name, ks in cuts.items() for k in ks]


def build_scheduler(problems: list[str], config: Mapping[str, Any]) -> LRScheduler | None:
    """The scheduler, of an optimizer that has next to nothing to learn."""
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = tried(problems, "optimizer", lambda: get_optimizer_by_cfg(config["optimizer"], params=[parameter]))
    if optimizer is None:
        return None
    place, length = "scheduling.scheduler", config.get("max_epochs", 1)
    parsed = tried(problems, place, lambda: parse_scheduler_from_config(config, optimizer, 1000 * length, length))
    return (parsed or {}).get("scheduler")


def monitor_problems(
    config: Mapping[str, Any], scheduler: LRScheduler | None, metrics: Sequence[str], criterion_name: str | None
) -> list[str]:
    """Metrics that something watches and nothing computes.

    Args:
        config: of the training.
        scheduler: of its ``scheduling``.
        metrics: all that validations log.
        criterion_name: the loss is logged as ``<criterion_name>_loss``; ``None`` if it is not known.
    """
    problems = []
    if criterion_name is None:  # any name of a loss may be right
        losses = [name for name in (config["metric_for_checkpointing"], _watched(config)) if "/" not in name]
        metrics = [*metrics, *losses]
    loss = f"{criterion_name}_loss" if criterion_name else "loss"
    by_epoch = [*metrics, loss, f"{loss}_epoch"]
    monitor = config["metric_for_checkpointing"]
    if monitor not in by_epoch:
        problems.append(f"metric_for_checkpointing: {monitor!r} will not be computed; {near(monitor, by_epoch)}")
    if not isinstance(scheduler, ReduceLROnPlateau):
        return problems
    scheduling, place = config["scheduling"], "scheduling.monitor_metric"
    monitor = scheduling["monitor_metric"]
    is_by_step, frequency = scheduling["scheduler_interval"] == "step", scheduling["scheduler_frequency"]
    known = [loss, f"{loss}_step"] if is_by_step else by_epoch
    if monitor is None:
        problems.append(f"{place}: reduce_on_plateau needs one, such as {known[0]}.")
    elif is_by_step and monitor in by_epoch and monitor not in known:
        problems.append(
            f"scheduling.scheduler_interval: {monitor!r} is there by epoch only, so must be the interval; got 'step'."
        )
    elif monitor not in known:
        problems.append(f"{place}: {monitor!r} will not be computed; {near(monitor, known)}")
    elif monitor in metrics and frequency < config["valid_period"]:
        problems.append(
            f"scheduling.scheduler_frequency: {monitor!r} is there every {config['valid_period']} epochs only, by "
            f"valid_period; got {frequency}."
        )
    if monitor is not None and "mode" not in (scheduling["scheduler"].get("args") or {}) and mode_of(monitor) == "max":
        problems.append(
            f"scheduling.scheduler.args.mode: of {monitor!r} large values are good, and reduce_on_plateau takes small "
            "ones for good unless it is told mode: max."
        )
    return problems


def _watched(config: Mapping[str, Any]) -> str:
    return (config.get("scheduling") or {}).get("monitor_metric") or ""


def freezing_problems(config: Mapping[str, Any], extractor: IExtractor | None) -> list[str]:
    """An extractor that is to be frozen and cannot be."""
    if not config.get("freeze_n_epochs") or extractor is None or isinstance(extractor, IFreezable):
        return []
    return [
        f"freeze_n_epochs: {type(extractor).__name__} cannot be frozen, extractor_with_mlp around it can; "
        f"got {config['freeze_n_epochs']}."
    ]
