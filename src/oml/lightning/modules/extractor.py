"""Training an extractor under Lightning."""

from typing import Any

from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from oml.const import EMBEDDINGS_KEY, INPUT_TENSORS_KEY, LABELS_KEY
from oml.ddp.global_batch import global_batch as of_all_processes
from oml.ddp.sharded_classes import clip_norm_with_shards, gather_shards, shard_classes, take_shards
from oml.ddp.utils import get_world_size_safe
from oml.interfaces.models import IExtractor, IFreezable
from oml.lightning.modules.ddp import ModuleDDP
from oml.lightning.modules.training import TrainingModule


class ExtractorModule(TrainingModule):
    """An extractor, its loss and its optimizer.

    Training steps log ``<criterion_name>_loss`` (``loss`` if the criterion has no name) by step and epoch, the
    criterion's ``last_logs`` and, with a scheduler, the learning rate ``lr`` by step: see :class:`TrainingModule` for
    when that is.

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

    model: IExtractor  # pyright: ignore[reportIncompatibleVariableOverride] (never set again)

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
        if freeze_n_epochs and not isinstance(extractor, IFreezable):
            raise ValueError(
                f"ExtractorModule can freeze extractors that are IFreezable, {type(extractor).__name__} is not, got "
                f"freeze_n_epochs={freeze_n_epochs}. Wrap it in ExtractorWithMLP, or take the callback "
                "FreezingSchedule."
            )
        super().__init__(
            extractor,
            criterion,
            optimizer,
            scheduler,
            scheduler_interval,
            scheduler_frequency,
            scheduler_monitor_metric,
            freeze_n_epochs,
        )
        self.input_tensors_key = input_tensors_key
        self.labels_key = labels_key
        self.embeddings_key = embeddings_key
        self.global_batch = global_batch
        self._sharded: list[str] = []

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
        if self._sharded and self._trainer is not None and isinstance(self._trainer.strategy, ModelParallelStrategy):
            raise ValueError(
                f"{type(self.criterion).__name__} shares out its proxies itself: that goes with strategy='ddp', "
                "not with fsdp."
            )
        super().configure_model()

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
        self.log_training(f"{prefix}loss", loss, len(embeddings), batch_idx)
        return loss

    def validation_step(self, batch: dict[str, Any], *_: Any) -> dict[str, Any]:
        """The batch and its embeddings."""
        return {**batch, self.embeddings_key: self.model.extract(batch[self.input_tensors_key])}

    def predict_step(self, batch: dict[str, Any], *_: Any) -> dict[str, Any]:
        """The batch and its embeddings."""
        return self.validation_step(batch)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the mean loss of the epoch has taken in so far, and the proxies of all processes."""
        super().on_save_checkpoint(checkpoint)
        if self._sharded:
            gather_shards(self, self.optimizer, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out the state of the criterion, if there is none here: embeddings do not need it."""
        super().on_load_checkpoint(checkpoint)
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


class ExtractorModuleDDP(ModuleDDP, ExtractorModule):
    """An :class:`ExtractorModule` that has its loaders itself, see :class:`oml.lightning.modules.ddp.ModuleDDP`.

    Args:
        loaders_train, loaders_val: as of ``ModuleDDP``.
        args, kwargs: of ``ExtractorModule``.
    """
