"""Averages of weights."""

import warnings
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EMAWeightAveraging
from torch.optim.swa_utils import AveragedModel

from oml.ddp.sharded_classes import shard_classes


class EMACallback(EMAWeightAveraging):
    """Validation uses, and checkpoints hold, the exponential moving average of the weights.

    Lightning's callback with what embeddings need: only parameters are averaged, those of the loss too. Buffers are
    copied as they are: the running statistics of batch normalisations, which are averages already, and the banks of
    losses and miners, whose labels have no average and whose size shows with the first batch only.

    During the fit the plain weights learn; ``average = decay * average + (1 - decay) * weights`` after every step, and
    the average starts as the weights after the first one. Checkpoints have the averages under ``state_dict``, so that
    extractors load them, and the plain weights beside, so that a run resumes. After the fit, the module has the
    averages.

    Args:
        decay: the nearer to 1, the more steps count: about ``1 / (1 - decay)`` of them.
        kwargs: further ones of Lightning's ``EMAWeightAveraging``, such as ``update_every_n_steps``.

    Example:
        >>> trainer = pl.Trainer(callbacks=[EMACallback(decay=0.999)], logger=False)
    """

    def __init__(self, decay: float = 0.999, **kwargs: Any) -> None:
        super().__init__(decay=decay, use_buffers=False, **kwargs)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Make the average; of proxies that are shared out, of those only that the module is about to keep."""
        shard_classes(pl_module)
        with warnings.catch_warnings():  # what ExtractorModule does there is for strategies that share out parameters
            warnings.filterwarnings("ignore", "You're using the WeightAveraging callback with a model that overrides")
            super().setup(trainer, pl_module, stage)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the step's weights into the average."""
        self._copy_buffers(pl_module)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the weights as they are: a checkpoint is written yet, from which the run may go on."""

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the module the averages."""
        super().on_train_end(trainer, pl_module)

    def _copy_buffers(self, pl_module: pl.LightningModule) -> None:
        """Lightning copies buffers where the average is updated, but fails on those that have changed their size."""
        assert isinstance(self._average_model, AveragedModel), "made in setup"
        for averaged, buffer in zip(self._average_model.module.buffers(), pl_module.buffers(), strict=True):
            averaged.data = buffer.detach().to(averaged.device, copy=True)
