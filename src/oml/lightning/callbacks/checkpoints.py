"""Checkpoints of a run: the best and the last, never half-written."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from torch import Tensor

from oml.utils.io import atomic_path

BEST, LAST = "best.ckpt", "last.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the final name and renames, so that after a kill or a full disk the former checkpoint is there.

    Lightning's own goes through the folder for temporary files, and from there copies if that is another disk.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint."""
        with atomic_path(path) as temporary:
            torch.save(checkpoint, temporary)


def mode_of(monitor: str) -> str:
    """Whether a metric is to be large, ``max``, or small, ``min``: losses and error rates.

    Example:
        >>> mode_of("OVERALL/cmc/1"), mode_of("OVERALL/fnmr@fmr/0.01"), mode_of("triplet_loss_epoch")
        ('max', 'min', 'min')
    """
    return "min" if "fnmr@fmr" in monitor or is_of_training(monitor) else "max"


def is_of_training(monitor: str) -> bool:
    """Whether a metric is the loss, which is known at the end of an epoch, rather than one of validation."""
    return "/" not in monitor


class BestCheckpoint(ModelCheckpoint):
    """Keeps ``best.ckpt``, the checkpoint of the validation with the best value of a metric; of equals the first.

    A value that is not a number is never better than a number. In a run that resumes, also in a folder that was moved
    or is another one, the best value stands until a better one comes.

    Args:
        folder: of the file.
        monitor: the metric; large values are good ones but of losses and error rates, see :func:`mode_of`.
        on_best: called after ``best.ckpt`` was written.
    """

    def __init__(self, folder: Path, monitor: str, on_best: Callable[[], None] | None = None) -> None:
        super().__init__(
            folder,
            filename=Path(BEST).stem,
            monitor=monitor,
            mode=mode_of(monitor),
            verbose=True,
            save_on_train_epoch_end=is_of_training(monitor),
            enable_version_counter=False,
        )
        self.on_best = on_best

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the best value of the run that resumes, with its file."""
        assert self.dirpath is not None, "given to the constructor"
        old, new = Path(state_dict["best_model_path"] or "nothing"), Path(self.dirpath) / BEST
        if not new.is_file() and old.is_file():  # the run goes on in another folder
            with atomic_path(new) as temporary:
                shutil.copyfile(old, temporary)
        if new.is_file() and state_dict["best_model_path"]:
            score = state_dict["best_model_score"]
            here = {"best_model_path": str(new), "kth_best_model_path": str(new), "best_k_models": {str(new): score}}
            super().load_state_dict({**state_dict, **here, "dirpath": self.dirpath})

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        if self.on_best is not None:
            self.on_best()


class LastCheckpoint(Checkpoint):
    """Keeps ``last.ckpt``, from which a run resumes: written at the end of epochs, and within long ones.

    At the end of an epoch, Lightning tells schedulers such as ``ReduceLROnPlateau`` what they watch after checkpoints
    are written, and not again in a run that resumes: here the checkpoint has it, and the run makes up for it.

    Args:
        folder: of the file.
        every_n_steps: after how many steps of the optimizer it is written within an epoch; steps whose gradients are
            accumulated from several batches are never split.
    """

    def __init__(self, folder: Path, every_n_steps: int = 500) -> None:
        super().__init__()
        if every_n_steps < 1:
            raise ValueError(f"LastCheckpoint needs every_n_steps of 1 or more, got {every_n_steps}.")
        self.path = folder / LAST
        self.every_n_steps = every_n_steps
        self._saved_step = 0
        self._due: list[tuple[int, Tensor]] = []  # which scheduler, and what it is to be told

    def state_dict(self) -> dict[str, Any]:
        """What schedulers are about to be told."""
        return {"due": self._due}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Note what schedulers were not told before."""
        self._due = state_dict["due"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell schedulers what they missed; count from the step at which the run starts or resumes."""
        due, self._due = self._due, []
        for i, value in due:
            trainer.lr_scheduler_configs[i].scheduler.step(value)  # pyright: ignore[reportArgumentType]
        self._saved_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time, but not before the epoch's end, where it is saved anyway."""
        accumulates = (batch_idx + 1) % trainer.accumulate_grad_batches != 0
        due = trainer.global_step - self._saved_step >= self.every_n_steps
        if due and not accumulates and not trainer.is_last_batch:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save."""
        metrics, n_epochs = trainer.callback_metrics, trainer.current_epoch + 1
        self._due = [
            (i, metrics[each.monitor])
            for i, each in enumerate(trainer.lr_scheduler_configs)
            if each.reduce_on_plateau and each.interval == "epoch" and n_epochs % each.frequency == 0
            if each.monitor in metrics
        ]
        self._save(trainer)
        self._due = []

    def _save(self, trainer: pl.Trainer) -> None:
        if trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
            return
        self._saved_step = trainer.global_step
        trainer.save_checkpoint(self.path, weights_only=False)
