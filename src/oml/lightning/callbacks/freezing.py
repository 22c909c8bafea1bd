"""Layers that learn later than others."""

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from oml.interfaces.models import IFreezable
from oml.models.fine_tuning import freeze_below, number_layers


class FreezingSchedule(pl.Callback):
    """At first only the head learns, say, then the last blocks as well, then everything.

    Layers are those of :func:`oml.models.fine_tuning.number_layers`. A frozen layer keeps its weights and the running
    statistics of its batch normalisation, whatever the weight decay and momentum of the optimizer. The optimizer is
    to hold all parameters from the start, with those of the loss if it has any; these always learn. Resuming from a
    checkpoint goes on where the plan was, in the midst of an epoch too. After the fit, what required gradients before
    does so again; an ``IFreezable`` extractor, such as ``ExtractorWithMLP``, is unfrozen.

    Args:
        plan: epoch -> how many layers below the head learn from then on: 0 for the head alone, ``None`` for all. It
            starts with epoch 0. What did not require gradients before the fit never learns.

    Raises:
        ValueError: if the plan is of another form; at the start of an epoch, if nothing would learn in it, or several
            processes train by ``DistributedDataParallel`` without ``find_unused_parameters``.

    Example:
        >>> schedule = FreezingSchedule({0: 0, 2: 4, 5: None})  # the head; from epoch 2, four blocks; from 5, all
        >>> trainer = pl.Trainer(max_epochs=10, callbacks=[schedule], logger=False)
        >>> [schedule.n_layers(epoch) for epoch in range(6)]
        [0, 0, 4, 4, 4, None]
    """

    def __init__(self, plan: Mapping[int, int | None]) -> None:
        super().__init__()
        if 0 not in plan or min(plan) < 0 or any(n is not None and n < 0 for n in plan.values()):
            raise ValueError(
                "FreezingSchedule needs a plan from epochs, 0 among them, to numbers of layers that learn or None for "
                f"all of them, such as {{0: 0, 2: 4, 5: None}}, got {dict(plan)}."
            )
        self.plan = dict(plan)
        self._learning: list[nn.Parameter] = []
        self._stopped: list[nn.Module] = []

    def n_layers(self, epoch: int) -> int | None:
        """How many layers below the head learn in this epoch; ``None``: all."""
        return self.plan[max(start for start in self.plan if start <= epoch)]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make sure that the layers are known; note what learns without the plan, which alone decides from here on."""
        extractor = _extractor(pl_module)
        number_layers(extractor)
        if isinstance(extractor, IFreezable):
            extractor.unfreeze()
        self._learning = [parameter for parameter in pl_module.parameters() if parameter.requires_grad]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A run that resumes in the midst of an epoch has no start of this epoch."""
        self._freeze(trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Freeze what the plan says for this epoch, and nothing else."""
        self._freeze(trainer, pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the model as it was."""
        self._thaw()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the model as it was."""
        self._thaw()

    def _freeze(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._thaw()
        n_layers = self.n_layers(trainer.current_epoch)
        wrapper: Any = trainer.model
        if n_layers is not None and isinstance(wrapper, DistributedDataParallel) and not wrapper.find_unused_parameters:
            raise ValueError(
                "FreezingSchedule needs find_unused_parameters when several processes train: "
                "Trainer(strategy='ddp_find_unused_parameters_true')."
            )
        self._stopped = freeze_below(_extractor(pl_module), n_layers)
        if not any(parameter.requires_grad for parameter in self._learning):
            raise ValueError(
                f"FreezingSchedule leaves nothing that could learn in epoch {trainer.current_epoch}: neither has the "
                f"extractor a head nor the criterion parameters, and {n_layers} layers below the head learn. Let more."
            )

    def _thaw(self) -> None:
        for parameter in self._learning:
            parameter.requires_grad_(True)
        for module in self._stopped:
            module.train()
        self._stopped = []


def _extractor(pl_module: pl.LightningModule) -> nn.Module:
    return getattr(pl_module, "model", pl_module)
