"""Checkpoints of a run: the best and the last, never half-written."""

import shutil
from collections.abc import Callable
from math import inf
from pathlib import Path
from pickle import UnpicklingError
from time import monotonic
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from oml.utils.io import atomic_path

BEST, LAST = "best.ckpt", "last.ckpt"
_REST = 20  # times as long as it took to write a checkpoint
_N_PROCESSES = "n_processes"  # in checkpoints
_BETWEEN_EPOCHS, _WITHIN_EPOCH = "between epochs", "within an epoch"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the final name and renames, so that after a kill or a full disk the former checkpoint is there.

    Lightning's own goes through the folder for temporary files, and from there copies if that is another disk.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint.

        Raises:
            OSError: the disk is full, for one; the file that was there stays.
        """
        with atomic_path(path) as temporary:
            try:
                with temporary.open("wb") as file:
                    torch.save(checkpoint, file)
            except (OSError, RuntimeError) as error:  # in the place of the first, torch raises the second
                reason = error if isinstance(error, OSError) else error.__context__
                if not isinstance(reason, OSError):
                    raise
                raise OSError(reason.errno, reason.strerror, str(path)) from error

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint.

        Raises:
            ValueError: the file is damaged, or is something else.
        """
        try:
            return super().load_checkpoint(path, *args, **kwargs)
        except (UnpicklingError, EOFError, RuntimeError) as error:
            raise ValueError(
                f"A training cannot go on from {str(path)!r}, which is damaged or no checkpoint: "
                f"{' '.join(str(error).split())[:100]} ... Resume from another file, such as best.ckpt, or train anew."
            ) from error


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


def is_validated(trainer: pl.Trainer) -> bool:
    """Whether this epoch has a validation."""
    every = trainer.check_val_every_n_epoch
    return every is None or (trainer.current_epoch + 1) % every == 0


class BestCheckpoint(ModelCheckpoint):
    """Keeps ``best.ckpt``, the checkpoint of the validation with the best value of a metric; of equals the first.

    A loss counts at the end of epochs that have a validation. A value that is not a number is never better than a
    number. In a run that resumes, also in a folder that was moved or is another one, the best value stands until a
    better one comes.

    Args:
        folder: of the file.
        monitor: the metric; large values are good ones but of losses and error rates, see :func:`mode_of`.
        on_best: called after ``best.ckpt`` was written.
    """

    def __init__(self, folder: Path, monitor: str, on_best: Callable[[], Any] | None = None) -> None:
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

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save, if it is by the loss, and the metrics of this epoch are known as well."""
        if is_validated(trainer):
            super().on_train_epoch_end(trainer, pl_module)

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        if self.on_best is not None:
            self.on_best()


class LastCheckpoint(Checkpoint):
    """Keeps ``last.ckpt``, from which a run resumes: written between epochs, within long ones, and at the end.

    Short epochs share one, of fewer steps than a tenth of ``every_n_steps``, as long as writing would take more than
    a twentieth of the time.

    A run that resumes from it does what the run would have done, bit for bit on the same machine, with
    :class:`oml.lightning.resuming.RandomState` and a loader such as :func:`oml.lightning.resuming.training_loader`.
    Whenever the process is killed, what was logged up to the checkpoint is on the disk.

    Args:
        folder: of the file; it belongs to this run.
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
        self._saved_at, self._seconds = -inf, 0.0  # when, and how long that took
        self._pending = folder / f"{LAST}.part"
        self._is_pending = False
        self._place: str | None = None  # of the checkpoint that is being written, or was loaded

    def state_dict(self) -> dict[str, Any]:
        """Where in the run the checkpoint is; ``None`` in those that others write."""
        return {"place": self._place}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Note where the run resumes."""
        self._place = state_dict.get("place")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count from the step at which the run starts or resumes; remove what a kill has left half-written."""
        place, self._place = self._place, None
        if place is not None:  # or Lightning would leave out a step of ReduceLROnPlateau at the end of the epoch
            trainer.fit_loop._restarting = False
        if place == _BETWEEN_EPOCHS:  # or Lightning would, with max_steps, take the next epoch for done
            trainer.fit_loop.epoch_loop.restarting = False
        self._saved_step = trainer.global_step
        if trainer.is_global_zero:
            for scratch in self.path.parent.glob(".*.ckpt*"):
                shutil.rmtree(scratch)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save: all that belongs to the epoch before is done, as it is not in ``on_train_epoch_end``."""
        few = trainer.global_step - self._saved_step < self.every_n_steps // 10
        soon = few and monotonic() - self._saved_at < _REST * self._seconds
        if not trainer.strategy.broadcast(soon):
            self._save_between_epochs(trainer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Let the checkpoint after the last step count: Lightning has logged this step only now."""
        self._publish(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time, and the next batch follows at once."""
        accumulates = (batch_idx + 1) % trainer.accumulate_grad_batches != 0
        due = trainer.global_step - self._saved_step >= self.every_n_steps
        if due and not accumulates and not _validation_or_end_follows(trainer):
            self._save(trainer, self._pending, _WITHIN_EPOCH)
            self._is_pending = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save."""
        self._save_between_epochs(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Let the checkpoint after the last step count."""
        self._publish(trainer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Between epochs, say that none is under way, and as everywhere which one was trained last."""
        checkpoint[_N_PROCESSES] = trainer.world_size
        if self._place == _BETWEEN_EPOCHS:
            for progress in checkpoint["loops"]["fit_loop"]["epoch_progress"].values():
                progress["ready"] = progress["started"] = progress["completed"]
            checkpoint["epoch"] = max(0, checkpoint["epoch"] - 1)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Count the batches of an epoch that were trained on as those of as many processes as there are today."""
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
        done = progress["ready"]
        today = done * checkpoint.get(_N_PROCESSES, trainer.world_size) // trainer.world_size
        progress.update({stage: max(0, n + today - done) for stage, n in progress.items() if stage != "is_last_batch"})

    def _save_between_epochs(self, trainer: pl.Trainer) -> None:
        self._flush(trainer)
        self._save(trainer, self.path, _BETWEEN_EPOCHS)
        self._is_pending = False
        if trainer.is_global_zero:
            self._pending.unlink(missing_ok=True)

    def _publish(self, trainer: pl.Trainer) -> None:
        if self._is_pending:
            self._is_pending = False
            self._flush(trainer)
            if trainer.is_global_zero:
                self._pending.replace(self.path)

    def _flush(self, trainer: pl.Trainer) -> None:
        for logger in trainer.loggers:
            logger.save()

    def _save(self, trainer: pl.Trainer, path: Path, place: str) -> None:
        if trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
            return
        self._saved_step, self._place, start = trainer.global_step, place, monotonic()
        trainer.save_checkpoint(path, weights_only=False)
        self._place, self._saved_at = None, monotonic()
        self._seconds = self._saved_at - start


def _validation_or_end_follows(trainer: pl.Trainer) -> bool:
    """Whether anything but the next batch comes after this one: a run that resumes would leave it out."""
    if trainer.is_last_batch or trainer.should_stop or trainer.global_step == trainer.max_steps:
        return True
    loop, every = trainer.fit_loop, trainer.val_check_batch
    n_batches = (loop.total_batch_idx if trainer.check_val_every_n_epoch is None else loop.batch_idx) + 1
    return every is not None and n_batches % every == 0
