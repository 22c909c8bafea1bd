"""A validation where a run ends."""

from typing import Any

import pytorch_lightning as pl


class FinalValidation(pl.Callback):
    """Lets a run be validated where it ends, whatever the period of validations.

    Lightning validates at the end of every n-th epoch. A run whose epochs are no multiple of n, or that ends within an
    epoch by ``max_steps`` or ``max_time``, would lose what it learned after the last of these: its checkpoint would
    not be compared with the best one, and in a short run there would be none.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A run that resumes in the midst of an epoch has no start of this epoch."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Have the last epoch end with a validation."""
        if trainer.max_epochs is not None and trainer.current_epoch == trainer.max_epochs - 1:
            self._validate_next(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Have the last step followed by a validation."""
        if trainer.global_step == trainer.max_steps:
            trainer.should_stop = True  # a run that stops for another reason than its steps is validated by Lightning
        if trainer.should_stop:
            self._validate_next(trainer)

    def _validate_next(self, trainer: pl.Trainer) -> None:
        if trainer.check_val_every_n_epoch is not None:  # else validations go by steps, not by epochs
            trainer.check_val_every_n_epoch = 1
