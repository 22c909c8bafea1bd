"""Training a model of pairs under Lightning."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from oml.const import EMBEDDINGS_KEY, INPUT_TENSORS_KEY, LABELS_KEY
from oml.interfaces.models import IPairwiseModel
from oml.lightning.modules.ddp import ModuleDDP
from oml.lightning.modules.training import TrainingModule
from oml.miners.pairs import PairsMiner


class PairwiseModule(TrainingModule):
    """A model of pairs that learns to tell those of one label from others, to re-rank what an extractor has found.

    Training steps take the embeddings as they stand in the batch, made before by that extractor: by them the miner
    picks pairs, and ``criterion(pairwise_model(x1, x2), is_negative.float())`` of the pairs' inputs is the loss. It is
    logged as ``loss`` by step and epoch, and the learning rate as ``lr``, see :class:`TrainingModule` for when. The
    loss by epoch is the mean over all pairs. A batch without any pair has a loss of 0.

    Validation steps return the batch as it is: re-ranking is up to the metric, such as
    ``EmbeddingMetrics(postprocessor=...)`` with the same model.

    Args:
        pairwise_model: what learns; checkpoints hold its weights under ``model.``.
        pairs_miner: its ``sample(embeddings, labels)`` picks pairs.
        criterion: loss of what the model makes of pairs and of their being negative, 1 or 0, such as
            ``BCEWithLogitsLoss``.
        optimizer: of the model's parameters, and of the criterion's if it has any.
        scheduler, scheduler_interval, scheduler_frequency, scheduler_monitor_metric: see
            :class:`~oml.lightning.modules.extractor.ExtractorModule`.
        input_tensors_key: entry of a batch with the inputs of the model, images or embeddings.
        labels_key, embeddings_key: further entries.
        freeze_n_epochs: so many epochs the model is frozen, if it is an ``IFreezable`` such as ``ConcatSiamese``.

    Raises:
        ValueError: ``ReduceLROnPlateau`` has nothing to watch.
    """

    def __init__(
        self,
        pairwise_model: IPairwiseModel,
        pairs_miner: PairsMiner,
        criterion: nn.Module,
        optimizer: Optimizer,
        scheduler: LRScheduler | None = None,
        scheduler_interval: str = "step",
        scheduler_frequency: int = 1,
        input_tensors_key: str = INPUT_TENSORS_KEY,
        labels_key: str = LABELS_KEY,
        embeddings_key: str = EMBEDDINGS_KEY,
        scheduler_monitor_metric: str | None = None,
        freeze_n_epochs: int = 0,
    ) -> None:
        super().__init__(
            pairwise_model,
            criterion,
            optimizer,
            scheduler,
            scheduler_interval,
            scheduler_frequency,
            scheduler_monitor_metric,
            freeze_n_epochs,
        )
        self.miner = pairs_miner
        self.input_tensors_key = input_tensors_key
        self.labels_key = labels_key
        self.embeddings_key = embeddings_key

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        """What the model makes of pairs, in training."""
        return self.model(x1, x2)

    def training_step(self, batch: dict[str, Any], batch_idx: int = 0, *_: Any) -> Tensor:
        """The loss of the pairs of a batch."""
        x = batch[self.input_tensors_key]
        ids1, ids2, is_negative = self.miner.sample(batch[self.embeddings_key], batch[self.labels_key])
        if n_pairs := len(ids1):
            loss = self._loss(x[ids1], x[ids2], is_negative)
        else:  # of each item with itself: other processes wait for a gradient, of all that learns
            loss = 0 * self._loss(x, x, torch.zeros(len(x), dtype=torch.bool, device=x.device))
        self.log_training("loss", loss, n_pairs, batch_idx)
        return loss

    def _loss(self, x1: Tensor, x2: Tensor, is_negative: Tensor) -> Tensor:
        assert self.criterion is not None, "the constructor takes no None"
        made = self.model(x1, x2)
        made = made.to(torch.promote_types(made.dtype, torch.float32))  # of half of it, in mixed precision
        return self.criterion(made, is_negative.to(made))

    def validation_step(self, batch: dict[str, Any], *_: Any) -> dict[str, Any]:
        """The batch as it is."""
        return batch


class PairwiseModuleDDP(ModuleDDP, PairwiseModule):
    """A :class:`PairwiseModule` that has its loaders itself, see :class:`oml.lightning.modules.ddp.ModuleDDP`.

    Args:
        loaders_train, loaders_val: as of ``ModuleDDP``.
        args, kwargs: of ``PairwiseModule``.
    """
