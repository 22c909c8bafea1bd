"""Metrics over whole validation epochs under Lightning."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytorch_lightning as pl
import torch.distributed as dist

from oml.const import LOG_IMAGE_FOLDER
from oml.ddp.patching import check_loaders_is_patched
from oml.ddp.utils import get_world_size_safe, is_main_process
from oml.interfaces.metrics import IBasicMetric, IMetricDDP, IMetricVisualisable
from oml.lightning.loggers.figures import log_figure, takes_figures
from oml.lightning.loggers.resilience import attempt


class MetricValCallback(pl.Callback):
    """Feeds what validation steps return to a metric and logs it, as ``OVERALL/cmc/1`` and the like.

    The metric is computed with the last batch, so callbacks that watch it, such as ``ModelCheckpoint``, find it.
    Lightning's sanity check before training is passed over: it sees a part of the data only.

    Args:
        metric: what to compute.
        log_images: log the metric's pictures to all loggers of the trainer, under ``image_logs/<title>``, with the
            epoch as step; needs a metric that can draw, and loggers that :func:`log_figure` knows.
        loader_idx: which of several validation loaders to look at.
        samples_in_getitem: items in one entry of the data set: 1, 2 for pairs, 3 for triplets.
        name: of the data set: what is logged is ``<name>/OVERALL/cmc/1`` then, or ``OVERALL/cmc/1`` if it is empty.
            With ``None``, and several loaders, Lightning makes it ``OVERALL/cmc/1/dataloader_idx_0``.
    """

    def __init__(
        self,
        metric: IBasicMetric,
        log_images: bool = False,
        loader_idx: int = 0,
        samples_in_getitem: int = 1,
        name: str | None = None,
    ) -> None:
        if log_images and not (isinstance(metric, IMetricVisualisable) and metric.ready_to_visualize()):
            raise ValueError(
                f"MetricValCallback needs a metric that is ready to draw for log_images=True; {type(metric).__name__} "
                "is not. EmbeddingMetrics needs 'paths' among its extra_keys."
            )
        self.metric = metric
        self.log_images = log_images
        self.loader_idx = loader_idx
        self.samples_in_getitem = samples_in_getitem
        self.name = name
        self._expected = 0
        self._collected = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find out before the first epoch whether images can be logged."""
        loggers = trainer.loggers
        if self.log_images and not (loggers and all(takes_figures(logger) for logger in loggers)):
            names = [type(logger).__name__ for logger in loggers]
            raise ValueError(
                f"MetricValCallback with log_images=True needs loggers that take pictures, the trainer has {names}: "
                "take those of oml.registry.loggers, or tell how yours does, by @log_figure.register of "
                "oml.lightning.loggers.figures."
            )

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make sure that the loader is there: without it, the metric would be missing."""
        if self.loader_idx >= (n_loaders := len(_loaders(trainer))):
            raise ValueError(
                f"MetricValCallback for {type(self.metric).__name__} was built with loader_idx={self.loader_idx}, the "
                f"trainer has {n_loaders} validation loaders. They count from 0."
            )

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Start afresh with the first batch."""
        if trainer.sanity_checking or dataloader_idx != self.loader_idx or batch_idx != 0:
            return
        self._expected = self.samples_in_getitem * self._n_entries(_loaders(trainer)[dataloader_idx])
        self._collected = 0
        self.metric.setup(num_samples=self._expected)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take in a batch; compute and log with the last one."""
        if trainer.sanity_checking or dataloader_idx != self.loader_idx:
            return
        if not (isinstance(outputs, dict) and outputs):
            raise TypeError(
                "MetricValCallback needs validation steps that return their batch with the embeddings added, as those "
                f"of ExtractorModule, got {type(outputs).__name__}."
            )
        self._collected += len(next(iter(outputs.values())))
        if self._collected > self._expected:
            self._raise_on_count()
        self.metric.update_data(outputs)
        if self._collected == self._expected:
            self.calc_and_log_metrics(pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make sure that all items came."""
        if not trainer.sanity_checking and self._collected != self._expected:
            self._raise_on_count()

    def calc_and_log_metrics(self, pl_module: pl.LightningModule) -> None:
        """Compute the metric and log its values, and its pictures if asked to."""
        prefix = f"{self.name}/" if self.name else ""
        values = dict(_flat(self.metric.compute_metrics(), prefix))
        # each of several processes has the value: sync_dist says that this is known, rank_zero_only that all is done
        pl_module.log_dict(
            values, add_dataloader_idx=self.name is None, batch_size=1, rank_zero_only=True, sync_dist=True
        )
        if self.log_images and is_main_process():
            self._log_figures(pl_module.trainer, f"{LOG_IMAGE_FOLDER}/{prefix}")

    def _n_entries(self, loader: Any) -> int:
        """Of the data set, as many as come to this process."""
        return len(loader.dataset)

    def _log_figures(self, trainer: pl.Trainer, folder: str) -> None:
        import matplotlib.pyplot as plt

        assert isinstance(self.metric, IMetricVisualisable), "the constructor checks it"
        for figure, title in zip(*self.metric.visualize(), strict=True):
            for logger in trainer.loggers:
                attempt(logger, log_figure, logger, folder + title, figure, trainer.current_epoch)
            plt.close(figure)  # those that pyplot has made stay open otherwise

    def _raise_on_count(self) -> None:
        raise ValueError(
            f"{type(self.metric).__name__} expected {self._expected} items in the validation epoch and "
            f"{self._collected} came. Check samples_in_getitem ({self.samples_in_getitem}: items in one entry of the "
            "data set), and that the trainer limits neither limit_val_batches nor overfit_batches, and that "
            "drop_last is off: metrics over a part of the data would mislead. Of several processes that share the data "
            "set, each sees a part: they need MetricValCallbackDDP and a metric such as EmbeddingMetricsDDP."
        )


class MetricValCallbackDDP(MetricValCallback):
    """The same for one process or several, each of which validates its share: all compute, and log, the same values.

    A share has the same number of items in every process, those at the end twice; the metric is to count each once, as
    :class:`oml.metrics.embeddings.EmbeddingMetricsDDP` does. Buffers, such as the running statistics of batch
    normalisation, are those of rank 0 in all processes. Pictures are drawn by rank 0.

    Args:
        metric: what to compute.
        args, kwargs: of :class:`MetricValCallback`.

    Raises:
        TypeError: if the metric is none for several processes.
        RuntimeError: in training and validation, if a validation loader brings every process the whole data set.
    """

    metric: IMetricDDP

    def __init__(self, metric: IMetricDDP, *args: Any, **kwargs: Any) -> None:
        if not isinstance(metric, IMetricDDP):
            raise NoMetricDDPError(
                "MetricValCallbackDDP needs a metric of several processes, an IMetricDDP such as EmbeddingMetricsDDP; "
                f"{type(metric).__name__} is none."
            )
        super().__init__(metric, *args, **kwargs)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make sure that each process gets its share, if the loaders are there yet."""
        if trainer.val_dataloaders is not None:
            _check_shared_out(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make sure that each process gets its share."""
        super().on_validation_start(trainer, pl_module)
        _check_shared_out(trainer)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over the buffers of rank 0: each process has had other batches in training, and only DDP sees to it."""
        if get_world_size_safe() > 1:
            for buffer in getattr(pl_module, "model", pl_module).buffers():
                dist.broadcast(buffer, src=0)

    def calc_and_log_metrics(self, pl_module: pl.LightningModule) -> None:
        """Bring together what the processes have, then as in one."""
        self.metric.sync()
        super().calc_and_log_metrics(pl_module)

    def _n_entries(self, loader: Any) -> int:
        return -(-super()._n_entries(loader) // max(1, get_world_size_safe()))


class NoMetricDDPError(TypeError, ValueError, AssertionError):
    """A metric is none for several processes. Also an ``AssertionError``, which old callers catch."""


def err_message_loaders_is_not_patched() -> str:
    """What is wrong with loaders of which every process gets all, and what to do."""
    return (
        "MetricValCallbackDDP needs validation loaders of which each of several processes gets its share, and one here "
        "is none of them. Let the module have its loaders, as ExtractorModuleDDP(loaders_train, loaders_val, ...), and "
        "call trainer.fit(module) or trainer.validate(module) without loaders; or put them through "
        "oml.ddp.patching.patch_dataloader_to_ddp in its val_dataloader(), when the group of processes is there. Set "
        "use_distributed_sampler=False of the trainer: Lightning's own sampler takes the place of others."
    )


def _check_shared_out(trainer: pl.Trainer) -> None:
    if get_world_size_safe() > 1 and not check_loaders_is_patched(_loaders(trainer)):
        raise RuntimeError(err_message_loaders_is_not_patched())


def _loaders(trainer: pl.Trainer) -> list[Any]:
    loaders: Any = trainer.val_dataloaders
    if isinstance(loaders, Mapping):
        return list(loaders.values())
    return list(loaders) if isinstance(loaders, list | tuple) else [loaders]


def _flat(metrics: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value
