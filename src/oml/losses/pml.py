"""Losses of pytorch-metric-learning, with a miner."""

from inspect import signature
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from oml.functional.labels import checked_labels
from oml.functional.precision import in_full_precision
from oml.interfaces.miners import ITripletsMiner, ITripletsMinerInBatch, TLabels


class PMLLoss(nn.Module):
    """A loss of pytorch-metric-learning over what a miner picks, computed in float32 at least.

    Distances, reducers and regularisers are arguments of their losses::

        from pytorch_metric_learning import distances, losses, miners, reducers

        distance = distances.CosineSimilarity()
        loss = losses.TripletMarginLoss(margin=0.2, distance=distance, reducer=reducers.ThresholdReducer(low=0))
        miner = miners.TripletMarginMiner(margin=0.2, distance=distance, type_of_triplets="semihard")
        criterion = PMLLoss(loss, miner)

    The registry builds the same from a config, as criterion ``pml``. A loss alone may also be given to
    :class:`oml.lightning.modules.extractor.ExtractorModule` as it is, and is then called in the precision of the
    embeddings. Which labels and batches are needed is up to the loss and the miner; most need several instances of a
    label, which ``BalanceSampler`` provides. Losses with weights, such as ``ProxyAnchorLoss``, need these in the
    optimizer and labels of 0 to ``num_classes - 1``.

    Source: Musgrave et al. 2020, "PyTorch Metric Learning".

    Args:
        loss: called with embeddings, labels and, if there is a miner, its output as ``indices_tuple``.
        miner: one of pytorch-metric-learning or one of ours that works in the batch.

    Attributes:
        last_logs: with a miner, the numbers of what it found in the last call: ``n_triplets``, or
            ``n_positive_pairs`` and ``n_negative_pairs``.

    Raises:
        TypeError: ``loss`` or ``miner`` is of another kind, or the loss takes no labels, as ``SelfSupervisedLoss``.
    """

    criterion_name = "pml"

    def __init__(self, loss: nn.Module, miner: nn.Module | ITripletsMinerInBatch | None = None) -> None:
        super().__init__()
        if not isinstance(loss, nn.Module):
            raise TypeError(f"PMLLoss needs a loss of pytorch-metric-learning, got {type(loss).__name__}.")
        arguments = signature(loss.forward).parameters
        if "ref_emb" in arguments and "labels" not in arguments:
            raise TypeError(
                f"PMLLoss needs a loss of embeddings and labels, got {type(loss).__name__}, which compares two views "
                "of each item. Give the loss inside of it, and both views in one batch with equal labels."
            )
        if not isinstance(miner, ITripletsMinerInBatch | nn.Module | None) or (
            isinstance(miner, ITripletsMiner) and not isinstance(miner, ITripletsMinerInBatch)
        ):
            raise TypeError(
                "PMLLoss needs a miner of pytorch-metric-learning or one of ours that looks at nothing but the batch, "
                f"got {type(miner).__name__}."
            )
        self.loss = loss
        self.miner = miner
        self.last_logs: dict[str, Tensor] = {}

    @in_full_precision
    def forward(self, features: Float[Tensor, "batch dim"], labels: TLabels) -> Float[Tensor, ""]:
        """The loss of the batch; ``labels`` are integers, one per embedding.

        Raises:
            TypeError: the loss has a reducer that leaves more than a number.
            ValueError: there is not one integer label per embedding.
        """
        labels = checked_labels("PMLLoss", features, labels)
        if self.miner is None:
            loss = self.loss(features, labels)
        else:
            mined = self._mine(features, labels)
            names = {0: "n_triplets"} if len(mined) == 3 else {0: "n_positive_pairs", 2: "n_negative_pairs"}
            self.last_logs = {name: features.new_full((), float(len(mined[role]))) for role, name in names.items()}
            loss = self.loss(features, labels, mined)
        if not isinstance(loss, Tensor) or loss.ndim:
            raise TypeError(f"{type(self.loss).__name__} has a reducer that gives more than a number; choose another.")
        return loss

    def _mine(self, features: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """Three tensors of positions for triplets, four for pairs."""
        if isinstance(self.miner, ITripletsMinerInBatch):
            return self.miner.pick(features, labels).triplets
        miner: Any = self.miner
        return miner(features, labels)
