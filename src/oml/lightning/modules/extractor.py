"""Training an extractor under Lightning."""

import time
import warnings
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torchmetrics import Metric

from oml.const import EMBEDDINGS_KEY, INPUT_TENSORS_KEY, LABELS_KEY
from oml.ddp.global_batch import global_batch as of_all_processes
from oml.ddp.sharded_classes import clip_norm_with_shards, gather_shards, shard_classes, take_shards
from oml.ddp.utils import get_world_size_safe, is_main_process
from oml.interfaces.models import IExtractor, IFreezable
from oml.lightning.modules.ddp import ModuleDDP
from oml.lightning.modules.fsdp import share_out_parameters

_MEAN_LOSS_KEY = "mean_loss"  # in checkpoints
_LENGTH_KEYS = {"total_steps", "_schedule_phases"}  # in the state of OneCycleLR
_BAR_SECONDS = 0.2  # how old the loss in a progress bar may be


class _Mean(Metric):
    """The mean of an epoch's values, of which only some are logged. Nothing waits for the device."""

    full_state_update = False
    total: Tensor
    n: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("n", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, value: Tensor, n: int) -> None:
        """Take in the mean of ``n`` items."""
        self.total = self.total + value.detach() * n
        self.n = self.n + n

    def go_on_from(self, total: Tensor | None = None, n: Tensor | None = None) -> None:
        """Take over a state, of all processes together; without one, start afresh."""
        self.reset()
        if total is not None and n is not None:
            self.total, self.n = total.to(self.total), n.to(self.n)

    def of_all_processes(self) -> dict[str, Tensor]:
        """The state, summed over processes; each has to call it."""
        both = torch.stack([self.total, self.n])
        if get_world_size_safe() > 1:
            dist.all_reduce(both)
        return {"total": both[0], "n": both[1]}

    def compute(self) -> Tensor:
        """The mean of all items."""
        return self.total / self.n


class ExtractorModule(pl.LightningModule):
    """An extractor, its loss and its optimizer.

    Training steps log ``<criterion_name>_loss`` (``loss`` if the criterion has no name) by step and epoch, the
    criterion's ``last_logs`` and, with a scheduler, the learning rate ``lr`` by step. Values by step are logged at
    those steps that loggers write, every ``log_every_n_steps`` of the trainer, and at the first and last step of an
    epoch: nothing else waits for the device. The loss in a progress bar is at most 0.2 seconds old. The loss by epoch
    is the mean over all items, those of other processes too.

    Validation and prediction steps return their batch with the embeddings added, which :class:`MetricValCallback`
    takes up.

    Args:
        extractor: makes the embeddings; checkpoints hold its weights under ``model.``.
        criterion: loss of embeddings and labels; needed to train, not to load a checkpoint and predict. Losses of
            pytorch-metric-learning fit as they are.
        optimizer: needed to train. Of losses with parameters of their own, such as ArcFace, it gets those too:
            ``SGD([*extractor.parameters(), *criterion.parameters()])``.
        scheduler: of the learning rate.
        scheduler_interval: when it steps, ``step`` or ``epoch``.
        scheduler_frequency: after how many of these.
        input_tensors_key, labels_key, embeddings_key: entries of a batch.
        scheduler_monitor_metric: what a scheduler such as ``ReduceLROnPlateau`` watches.
        freeze_n_epochs: so many epochs the extractor, which is to be an ``IFreezable`` such as ``ExtractorWithMLP``, is
            frozen, and then no longer; 0 leaves it as it is. :class:`FreezingSchedule` can do more.
        global_batch: let the loss of each of several processes see the batches of all, as if one process had them, see
            :func:`oml.ddp.global_batch.global_batch`. Otherwise each has a loss of its own batch.

    Several processes keep what the criterion remembers apart, such as the banks of miners, and leave proxies alone that
    are shared out, see :func:`oml.ddp.sharded_classes.shard_classes`.

    Raises:
        ValueError: if an extractor is to be frozen that cannot be, or ``ReduceLROnPlateau`` has nothing to watch.
    """

    def __init__(
        self,
        extractor: IExtractor,
        criterion: nn.Module | None = None,
        optimizer: Optimizer | None = None,
        scheduler: LRScheduler | None = None,
        scheduler_interval: str = "step",
        scheduler_frequency: int = 1,
        input_tensors_key: str = INPUT_TENSORS_KEY,
        labels_key: str = LABELS_KEY,
        embeddings_key: str = EMBEDDINGS_KEY,
        scheduler_monitor_metric: str | None = None,
        freeze_n_epochs: int = 0,
        global_batch: bool = False,
    ) -> None:
        super().__init__()
        if freeze_n_epochs and not isinstance(extractor, IFreezable):
            raise ValueError(
                f"ExtractorModule can freeze extractors that are IFreezable, {type(extractor).__name__} is not, got "
                f"freeze_n_epochs={freeze_n_epochs}. Wrap it in ExtractorWithMLP, or take the callback "
                "FreezingSchedule."
            )
        if isinstance(scheduler, ReduceLROnPlateau) and scheduler_monitor_metric is None:
            raise ValueError(
                "ExtractorModule needs a scheduler_monitor_metric for ReduceLROnPlateau: what it is to watch, such as "
                "'OVERALL/cmc/1' with scheduler_interval='epoch'."
            )
        self.model = extractor
        self.criterion = criterion
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.scheduler_interval = scheduler_interval
        self.scheduler_frequency = scheduler_frequency
        self.input_tensors_key = input_tensors_key
        self.labels_key = labels_key
        self.embeddings_key = embeddings_key
        self.monitor_metric = scheduler_monitor_metric
        self.freeze_n_epochs = freeze_n_epochs
        self.global_batch = global_batch
        self._sharded: list[str] = []
        self._mean_loss = _Mean()
        self._last_log = 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings."""
        return self.model(x)

    def setup(self, stage: str) -> None:
        """Of several processes, keep apart what is each one's own."""
        if get_world_size_safe() > 1 and self.criterion is not None:
            self._sharded = shard_classes(self)
            own = [f"criterion.{name}" for name, _ in self.criterion.named_buffers()]
            self._ddp_params_and_buffers_to_ignore = [*self._sharded, *own]  # by DistributedDataParallel

    def configure_model(self) -> None:
        """Share out parameters, if the trainer has the strategy for it."""
        strategy = None if self._trainer is None else self._trainer.strategy  # none: read from a checkpoint
        if isinstance(strategy, ModelParallelStrategy):
            if self._sharded:
                raise ValueError(
                    f"{type(self.criterion).__name__} shares out its proxies itself: that goes with strategy='ddp', "
                    "not with fsdp."
                )
            networks = [each for each in (self.model, self.criterion) if each is not None]
            share_out_parameters(networks, self.optimizer, strategy.device_mesh["data_parallel"])

    def on_train_start(self) -> None:
        """Freeze or unfreeze: a run that resumes in the midst of an epoch has no start of this epoch."""
        self._freeze_or_unfreeze()

    def on_train_epoch_start(self) -> None:
        """Freeze the extractor in the first ``freeze_n_epochs`` epochs, unfreeze it afterwards."""
        self._mean_loss.reset()  # of a run that was interrupted
        self._freeze_or_unfreeze()

    def _freeze_or_unfreeze(self) -> None:
        if self.freeze_n_epochs and isinstance(self.model, IFreezable):
            if self.current_epoch < self.freeze_n_epochs:
                self.model.freeze()
            else:
                self.model.unfreeze()

    def training_step(self, batch: dict[str, Any], batch_idx: int = 0, *_: Any) -> Tensor:
        """The loss of a batch."""
        if self.criterion is None:
            raise ValueError("ExtractorModule needs a criterion to train; it was built without one.")
        embeddings = self.model(batch[self.input_tensors_key])
        seen = embeddings, batch[self.labels_key]
        if self.global_batch and not self._sharded:  # losses with shared-out proxies gather themselves
            seen = of_all_processes(*seen)
        loss = self.criterion(*seen)

        prefix = f"{name}_" if (name := getattr(self.criterion, "criterion_name", "")) else ""
        size, on_bar, is_due = len(embeddings), self._has_bar(), self._is_due(batch_idx)
        if is_due or (on_bar and time.monotonic() - self._last_log > _BAR_SECONDS):
            self._last_log = time.monotonic()
            self._mean_loss(loss, size)
            self.log(f"{prefix}loss", self._mean_loss, prog_bar=on_bar, on_step=True, on_epoch=True)
        else:
            self._mean_loss.update(loss, size)
        if is_due and (logs := getattr(self.criterion, "last_logs", None)):
            self.log_dict(logs, on_step=True, on_epoch=False, batch_size=size)
        if is_due and self.scheduler is not None:
            self.log("lr", self.scheduler.get_last_lr()[0], prog_bar=on_bar, on_step=True, on_epoch=False)
        return loss

    def validation_step(self, batch: dict[str, Any], *_: Any) -> dict[str, Any]:
        """The batch and its embeddings."""
        return {**batch, self.embeddings_key: self.model.extract(batch[self.input_tensors_key])}

    def predict_step(self, batch: dict[str, Any], *_: Any) -> dict[str, Any]:
        """The batch and its embeddings."""
        return self.validation_step(batch)

    def configure_optimizers(self) -> Any:
        """The optimizer, with the scheduler if there is one."""
        if self.optimizer is None:
            raise ValueError("ExtractorModule needs an optimizer to train; it was built without one.")
        self._warn_of_idle_parameters(self.optimizer)
        if self.scheduler is None:
            return self.optimizer
        scheduler = {
            "scheduler": self.scheduler,
            "interval": self.scheduler_interval,
            "frequency": self.scheduler_frequency,
        }
        if self.monitor_metric is not None:
            scheduler["monitor"] = self.monitor_metric
        return {"optimizer": self.optimizer, "lr_scheduler": scheduler}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the mean loss of the epoch has taken in so far, and the proxies of all processes."""
        checkpoint[_MEAN_LOSS_KEY] = self._mean_loss.of_all_processes()
        if self._sharded:
            gather_shards(self, self.optimizer, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out the state of the criterion, if there is none here: embeddings do not need it.

        Of a ``OneCycleLR`` that is longer or shorter than it was, the length of today counts, as of a run that goes on
        for more epochs.
        """
        if self.scheduler is not None:
            own = {key: value for key, value in self.scheduler.state_dict().items() if key in _LENGTH_KEYS}
            for state in checkpoint.get("lr_schedulers", ()):
                state.update(own)
        self._mean_loss.go_on_from(**(checkpoint.get(_MEAN_LOSS_KEY, {}) if is_main_process() else {}))
        if self._sharded:
            take_shards(self, self.optimizer, checkpoint)
        if self.criterion is None:
            state = checkpoint["state_dict"]
            checkpoint["state_dict"] = {k: v for k, v in state.items() if not k.startswith("criterion.")}

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """As the trainer is asked to; the norm is that of the proxies of all processes too."""
        if self._sharded and gradient_clip_val and gradient_clip_algorithm in (None, "norm"):
            clip_norm_with_shards(self, optimizer, gradient_clip_val)
        else:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def _has_bar(self) -> bool:
        """Whether there is a progress bar: for its values Lightning waits for the device at every step."""
        trainer = self._trainer
        return trainer is not None and trainer.progress_bar_callback is not None

    def _is_due(self, batch_idx: int) -> bool:
        """Whether loggers write after this step, or it is the first or last one of an epoch, for callbacks.

        To log a value takes Lightning longer than a small network a forward pass.
        """
        trainer = self._trainer
        is_watched = self.monitor_metric is not None and self.scheduler_interval == "step"
        if trainer is None or is_watched or not self.automatic_optimization:
            return True
        step, every = trainer.global_step + 1, trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        is_last = trainer.is_last_batch or trainer.should_stop or step == trainer.max_steps
        return batch_idx == 0 or is_last or (every > 0 and step % every == 0)

    def _warn_of_idle_parameters(self, optimizer: Optimizer) -> None:
        optimized = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        named = [] if self.criterion is None else self.criterion.named_parameters()
        if idle := [name for name, parameter in named if parameter.requires_grad and id(parameter) not in optimized]:
            warnings.warn(
                f"The optimizer does not hold the parameters {', '.join(idle)} of {type(self.criterion).__name__}, so "
                "they will not learn. Build it of [*extractor.parameters(), *criterion.parameters()], or set their "
                "requires_grad to False.",
                stacklevel=2,
            )


class ExtractorModuleDDP(ModuleDDP, ExtractorModule):
    """An :class:`ExtractorModule` that has its loaders itself, see :class:`oml.lightning.modules.ddp.ModuleDDP`.

    Args:
        loaders_train, loaders_val: as of ``ModuleDDP``.
        args, kwargs: of ``ExtractorModule``.
    """
