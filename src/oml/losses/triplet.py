"""Triplet losses: over given triplets, over triplets in plain order, over triplets that a miner picks."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from oml.functional.distances import elementwise_dist
from oml.functional.losses import Reduction, check_reduction, get_reduced, triplet_loss
from oml.interfaces.criterions import ITripletLossWithMiner
from oml.interfaces.miners import ITripletsMiner, TLabels
from oml.miners.inbatch_all_tri import AllTripletsMiner

TLogs = dict[str, Tensor]


class TripletLoss(nn.Module):
    """``relu(d(a, p) - d(a, n) + margin)``, or ``log(1 + exp(d(a, p) - d(a, n)))`` if ``margin`` is ``None``.

    ``d`` is the unsquared L2 distance. The soft form suits embeddings that are not normalised; for normalised
    ones, a margin of about 0.2 is a good start. No triplets give a loss of 0 that still reaches the embeddings,
    so that a backward pass works.

    Args:
        margin: by how much the negative must be farther than the positive, above 0; ``None`` for the soft form.
        reduction: ``mean``, ``sum`` or ``none`` over the triplets.
        need_logs: fill ``last_logs`` at each call: ``active_tri`` (share of triplets with a loss above 0),
            ``pos_dist``, ``neg_dist`` (mean distances) and ``n_triplets``, as detached 0-d tensors on the
            embeddings' device, so that logging does not wait for the device. The three means are left out when
            there are no triplets.

    Example:
        >>> x = torch.eye(3)
        >>> TripletLoss(margin=0.5)(x[:1], x[:1], x[1:2])
        tensor(0.)
    """

    criterion_name = "triplet"

    def __init__(self, margin: float | None, reduction: Reduction = "mean", need_logs: bool = False) -> None:
        super().__init__()
        check_reduction(type(self).__name__, reduction)
        if margin is not None and not margin > 0:
            raise ValueError(f"TripletLoss needs a margin above 0, or None for the soft form, got {margin}.")
        self.margin = margin
        self.reduction = reduction
        self.need_logs = need_logs
        self.last_logs: TLogs = {}

    def forward(
        self,
        anchor: Float[Tensor, "triplet dim"],
        positive: Float[Tensor, "triplet dim"],
        negative: Float[Tensor, "triplet dim"],
    ) -> Float[Tensor, "..."]:
        """The reduced loss: a 0-d tensor, or one value per triplet if the reduction is ``none``."""
        positive_distances = elementwise_dist(anchor, positive)
        negative_distances = elementwise_dist(anchor, negative)
        losses = triplet_loss(positive_distances, negative_distances, self.margin)
        if self.need_logs:
            self.last_logs = _logs(losses, positive_distances, negative_distances)
        if len(losses) == 0 and self.reduction != "none":
            return losses.sum()  # the mean over nothing is NaN; the sum is 0 and keeps the graph
        return get_reduced(losses, self.reduction)


@torch.no_grad()
def _logs(losses: Tensor, positive_distances: Tensor, negative_distances: Tensor) -> TLogs:
    logs = {"n_triplets": torch.tensor(float(len(losses)), device=losses.device)}
    if len(losses):
        logs |= {
            "active_tri": (losses > 0).float().mean(),
            "pos_dist": positive_distances.detach().mean(),
            "neg_dist": negative_distances.detach().mean(),
        }
    return logs


class TripletLossPlain(nn.Module):
    """:class:`TripletLoss` over embeddings stacked as anchor, positive, negative, anchor, positive, negative, ...

    Takes the arguments of :class:`TripletLoss`; ``last_logs`` are those of the inner loss.

    Example:
        >>> TripletLossPlain(margin=None)(torch.zeros(6, 4))  # ln 2
        tensor(0.6931)
    """

    criterion_name = "triplet"

    def __init__(self, margin: float | None, reduction: Reduction = "mean", need_logs: bool = False) -> None:
        super().__init__()
        self.loss = TripletLoss(margin, reduction, need_logs)

    @property
    def last_logs(self) -> TLogs:
        """Of the last call."""
        return self.loss.last_logs

    def forward(self, features: Float[Tensor, "batch dim"]) -> Float[Tensor, "..."]:
        """The loss of ``batch / 3`` triplets.

        Raises:
            ValueError: if the number of embeddings is not divisible by 3.
        """
        if len(features) % 3:
            raise ValueError(f"TripletLossPlain needs 3 embeddings per triplet, got {len(features)} in the batch.")
        return self.loss(features[0::3], features[1::3], features[2::3])


class TripletLossWithMiner(ITripletLossWithMiner):
    """:class:`TripletLoss` over the triplets that a miner finds in the batch.

    Needs several instances of a label in a batch, which ``BalanceSampler`` provides. A batch without a valid
    triplet gives a loss of 0 connected to the embeddings, and ``n_triplets`` of 0 in the logs.

    Args:
        margin: as in :class:`TripletLoss`.
        miner: picks the triplets; all of the batch by default.
        reduction: as in :class:`TripletLoss`.
        need_logs: as in :class:`TripletLoss`; the miner's own ``last_logs`` are added, if it has any.
    """

    criterion_name = "triplet"

    def __init__(
        self,
        margin: float | None,
        miner: ITripletsMiner | None = None,
        reduction: Reduction = "mean",
        need_logs: bool = False,
    ) -> None:
        super().__init__()
        self.miner = AllTripletsMiner() if miner is None else miner
        self.loss = TripletLoss(margin, reduction, need_logs)
        self.last_logs: TLogs = {}

    def forward(self, features: Float[Tensor, "batch dim"], labels: TLabels) -> Float[Tensor, "..."]:
        """The loss of the batch; ``labels`` are integers, one per embedding."""
        loss = self.loss(*self.miner.sample(features, labels))
        if self.loss.need_logs:
            self.last_logs = {**self.loss.last_logs, **getattr(self.miner, "last_logs", {})}
        return loss
