"""Training an extractor by a config."""

from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from oml.const import LABELS_COLUMN, TCfg
from oml.datasets.base import DatasetQueryGallery, DatasetWithLabels, get_retrieval_datasets
from oml.inference.convolutions import lay_out
from oml.lightning.modules.extractor import ExtractorModuleDDP
from oml.lightning.pipelines.checks import checked
from oml.lightning.pipelines.fitting import TrainingReport, fit, train_loader
from oml.lightning.pipelines.parser import parse_scheduler_from_config
from oml.lightning.pipelines.schema import TRAINING
from oml.lightning.pipelines.validate import validation_parts
from oml.registry.losses import get_criterion_by_cfg
from oml.registry.models import get_extractor_by_cfg
from oml.registry.optimizers import get_optimizer_by_cfg
from oml.registry.transforms import get_transforms_by_cfg
from oml.utils.misc import dictconfig_to_dict, load_dotenv, set_global_seed

__all__ = ["TrainingReport", "extractor_training_pipeline", "get_retrieval_loaders"]


def extractor_training_pipeline(cfg: TCfg) -> TrainingReport:
    """Train an extractor, validate it as it learns, and keep its best checkpoint.

    Everything comes from the config, which is checked before anything is loaded or written; its fields are those of
    ``oml.lightning.pipelines.schema.TRAINING``. The folder of the run, ``run_dir``, by default the current one, gets

    - ``config.yaml``: the config with everything resolved;
    - ``checkpoints/best.ckpt``: of the validation with the best ``metric_for_checkpointing``; the extractor's weights
      are under ``model.``, those of the criterion under ``criterion.``. An extractor takes the path as ``weights``;
    - ``checkpoints/last.ckpt``: to go on from after an interruption, by ``resume=<folder of the run>``;
    - ``metrics.csv``, ``metrics.json``: the metrics of ``best.ckpt`` with intervals;
    - the files of the logger.

    A run is validated every ``valid_period`` epochs and once more where it ends, be it by ``max_steps`` or
    ``max_time``. With ``accumulate_grad_batches`` in ``lightning_trainer_extra_args``, gradients are added up over
    batches, but miners and losses see one batch at a time: accumulation makes up for a small batch in the noise of its
    gradient, not in the choice of negatives. For that there is :class:`oml.models.gradient_cache.GradientCache`.

    Raises:
        ConfigError: with all that is wrong with the config.
        ValueError: if the parts do not fit each other.
    """
    load_dotenv()  # keys of loggers may be in it
    cfg = checked(cfg, TRAINING)
    config: dict[str, Any] = dictconfig_to_dict(cfg)
    set_global_seed(config["seed"])
    train, validation = _datasets(config)
    loader = train_loader(config, train)
    loaders_val, callbacks_val = validation_parts(config, validation)

    def module(n_steps: int, n_epochs: int | None) -> ExtractorModuleDDP:
        return _module(config, train, (loader, loaders_val), n_steps, n_epochs)

    return fit(config, loader, loaders_val, callbacks_val, module)


def get_retrieval_loaders(cfg: TCfg) -> tuple[DataLoader, DataLoader]:
    """The loaders of the train and the validation part of the config's table.

    The train loader has the batches of the ``sampler``; without one, random ones of ``bs_train`` items, and what is
    left over at the end of an epoch is dropped.

    Args:
        cfg: fields of a training: ``dataset_root``, ``dataframe_name``, ``transforms_train``, ``transforms_val``,
            ``sampler`` or ``bs_train``, ``bs_val``, ``num_workers``; and maybe ``cache_size``, ``seed`` and
            ``show_dataset_warnings``.

    Raises:
        ValueError: if there is no sampler and the train part is smaller than a batch; TableErrors are of this kind.
    """
    config: dict[str, Any] = dictconfig_to_dict(cfg)  # pyright: ignore[reportArgumentType]
    train, validation = _datasets(config)
    return train_loader(config, train), validation_parts({**config, "validation_tables": None}, validation)[0][0]


def _datasets(config: dict[str, Any]) -> tuple[DatasetWithLabels, DatasetQueryGallery]:
    return get_retrieval_datasets(
        dataset_root=config["dataset_root"],
        dataframe_name=config["dataframe_name"],
        transforms_train=get_transforms_by_cfg(config["transforms_train"]),
        transforms_val=get_transforms_by_cfg(config["transforms_val"]),
        cache_size=config.get("cache_size") or 0,
        verbose=config.get("show_dataset_warnings", True),
    )


def _module(
    config: dict[str, Any],
    train: DatasetWithLabels,
    loaders: tuple[DataLoader, list[DataLoader]],
    n_steps: int,
    n_epochs: int | None,
) -> ExtractorModuleDDP:
    extractor = lay_out(get_extractor_by_cfg(config["extractor"]))
    criterion = _criterion(config["criterion"], train, extractor.feat_dim)
    optimizer = _optimizer(config, extractor, criterion)
    return ExtractorModuleDDP(
        *loaders,
        extractor=extractor,
        criterion=criterion,
        optimizer=optimizer,
        freeze_n_epochs=config["freeze_n_epochs"],
        global_batch=config["global_batch"],
        **parse_scheduler_from_config(config, optimizer, n_steps, n_epochs),
    )


def _criterion(config: dict[str, Any], train: DatasetWithLabels, in_features: int) -> nn.Module:
    """The loss; its sizes, if the config leaves them out, are those of the data and the extractor."""
    sizes = {"num_classes": train.df[LABELS_COLUMN].nunique(), "in_features": in_features}
    left_out = {key: size for key, size in sizes.items() if not _has(config, key)}
    return get_criterion_by_cfg(config, label2category=train.get_label2category(), **left_out)


def _has(config: dict[str, Any], key: str) -> bool:
    """Whether a config, or one within it, has a value for the argument."""
    args = config.get("args") or {}
    inner = [each for value in args.values() for each in (value if isinstance(value, list) else [value])]
    return args.get(key) is not None or any(_has(each, key) for each in inner if isinstance(each, dict))


def _optimizer(config: dict[str, Any], extractor: nn.Module, criterion: nn.Module) -> Optimizer:
    """With a group of parameters of the extractor and, if there are any, one of those of the criterion."""
    groups = [{"params": params} for each in (extractor, criterion) if (params := list(each.parameters()))]
    if len(groups) == 1:  # not all optimizers know of groups
        return get_optimizer_by_cfg(config["optimizer"], params=groups[0]["params"])
    optimizer = get_optimizer_by_cfg(config["optimizer"], params=groups)
    optimizer.param_groups[-1]["lr"] *= config["criterion_lr_factor"]
    return optimizer
