"""An end to runs that get no better."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning import callbacks


class EarlyStopping(callbacks.EarlyStopping):
    """Lightning's callback, which also stops a run that was stopped before and resumes.

    To let such a run go on, resume it with more ``patience``.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up how long the run has waited; the patience is that of today."""
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop before the first step if the patience is over."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True
