"""What modules that train have in common: logging, the mean loss of an epoch, the schedule, freezing, resuming."""

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

from oml.ddp.utils import get_world_size_safe, is_main_process
from oml.interfaces.models import IFreezable
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
        """The mean of all items; 0 if there were none."""
        return self.total / self.n.clamp(min=1)


class TrainingModule(pl.LightningModule):
    """A model, its loss and its optimizer; what a step does is up to subclasses.

    Values by step are logged at those steps that loggers write, every ``log_every_n_steps`` of the trainer, and at the
    first and last step of an epoch: nothing else waits for the device. The loss in a progress bar is at most 0.2
    seconds old. The loss by epoch is the mean over all items, those of other processes too.

    Args:
        model: what learns; checkpoints hold its weights under ``model.``.
        criterion: the loss, with its own parameters, if any, under ``criterion.``.
        optimizer: needed to train.
        scheduler: of the learning rate.
        scheduler_interval: when it steps, ``step`` or ``epoch``.
        scheduler_frequency: after how many of these.
        scheduler_monitor_metric: what a scheduler such as ``ReduceLROnPlateau`` watches.
        freeze_n_epochs: so many epochs a model that is an ``IFreezable`` is frozen, and then no longer; 0 leaves it as
            it is.

    Raises:
        ValueError: if ``ReduceLROnPlateau`` has nothing to watch.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: nn.Module | None,
        optimizer: Optimizer | None,
        scheduler: LRScheduler | None,
        scheduler_interval: str,
        scheduler_frequency: int,
        scheduler_monitor_metric: str | None,
        freeze_n_epochs: int,
    ) -> None:
        super().__init__()
        if isinstance(scheduler, ReduceLROnPlateau) and scheduler_monitor_metric is None:
            raise ValueError(
                f"{type(self).__name__} needs a scheduler_monitor_metric for ReduceLROnPlateau: what it is to watch, "
                "such as 'OVERALL/cmc/1' with scheduler_interval='epoch'."
            )
        self.model = model
        self.criterion = criterion
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.scheduler_interval = scheduler_interval
        self.scheduler_frequency = scheduler_frequency
        self.monitor_metric = scheduler_monitor_metric
        self.freeze_n_epochs = freeze_n_epochs
        self._mean_loss = _Mean()
        self._last_log = 0.0

    def configure_model(self) -> None:
        """Share out parameters, if the trainer has the strategy for it."""
        strategy = None if self._trainer is None else self._trainer.strategy  # none: read from a checkpoint
        if isinstance(strategy, ModelParallelStrategy):
            networks = [each for each in (self.model, self.criterion) if each is not None]
            share_out_parameters(networks, self.optimizer, strategy.device_mesh["data_parallel"])

    def on_train_start(self) -> None:
        """Freeze or unfreeze: a run that resumes in the midst of an epoch has no start of this epoch."""
        self._freeze_or_unfreeze()

    def on_train_epoch_start(self) -> None:
        """Freeze the model in the first ``freeze_n_epochs`` epochs, unfreeze it afterwards."""
        self._mean_loss.reset()  # of a run that was interrupted
        self._freeze_or_unfreeze()

    def _freeze_or_unfreeze(self) -> None:
        if self.freeze_n_epochs and isinstance(self.model, IFreezable):
            if self.current_epoch < self.freeze_n_epochs:
                self.model.freeze()
            else:
                self.model.unfreeze()

    def log_training(self, name: str, loss: Tensor, n_items: int, batch_idx: int) -> None:
        """Log what a training step came to, if it is time: the loss, the criterion's ``last_logs``, and ``lr``.

        Args:
            name: of the loss.
            loss: the mean of ``n_items``.
            n_items: of the batch.
            batch_idx: number of the batch in its epoch.
        """
        on_bar, is_due = self._has_bar(), self._is_due(batch_idx)
        if is_due or (on_bar and time.monotonic() - self._last_log > _BAR_SECONDS):
            self._last_log = time.monotonic()
            self._mean_loss(loss, n_items)
            self.log(name, self._mean_loss, prog_bar=on_bar, on_step=True, on_epoch=True)
        else:
            self._mean_loss.update(loss, n_items)
        if is_due and (logs := getattr(self.criterion, "last_logs", None)):
            self.log_dict(logs, on_step=True, on_epoch=False, batch_size=n_items)
        if is_due and self.scheduler is not None:
            self.log("lr", self.scheduler.get_last_lr()[0], prog_bar=on_bar, on_step=True, on_epoch=False)

    def configure_optimizers(self) -> Any:
        """The optimizer, with the scheduler if there is one."""
        if self.optimizer is None:
            raise ValueError(f"{type(self).__name__} needs an optimizer to train; it was built without one.")
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
        """Keep what the mean loss of the epoch has taken in so far."""
        checkpoint[_MEAN_LOSS_KEY] = self._mean_loss.of_all_processes()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the mean loss of the epoch.

        Of a ``OneCycleLR`` that is longer or shorter than it was, the length of today counts, as of a run that goes on
        for more epochs.
        """
        if self.scheduler is not None:
            own = {key: value for key, value in self.scheduler.state_dict().items() if key in _LENGTH_KEYS}
            for state in checkpoint.get("lr_schedulers", ()):
                state.update(own)
        self._mean_loss.go_on_from(**(checkpoint.get(_MEAN_LOSS_KEY, {}) if is_main_process() else {}))

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
                "they will not learn. Build it of [*model.parameters(), *criterion.parameters()], or set their "
                "requires_grad to False.",
                stacklevel=2,
            )
