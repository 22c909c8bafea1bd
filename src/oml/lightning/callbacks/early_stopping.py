"""An end to runs that get no better."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning import callbacks

from oml.lightning.callbacks.checkpoints import is_validated


class EarlyStopping(callbacks.EarlyStopping):
    """Lightning's callback, which also stops a run that was stopped before and resumes.

    To let such a run go on, resume it with more ``patience``. Losses, too, count in epochs with a validation only, so
    that a run ends with one.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up how long the run has waited; the patience is that of today."""
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop before the first step if the patience is over."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the loss, if it is watched."""
        if is_validated(trainer):
            super().on_train_epoch_end(trainer, pl_module)
