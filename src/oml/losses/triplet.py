"""Triplet losses: over given triplets, over triplets in plain order, over triplets that a miner picks."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from oml.functional.distances import elementwise_dist, indexed_dist
from oml.functional.losses import Reduction, check_reduction, get_reduced, triplet_loss
from oml.functional.precision import in_full_precision
from oml.functional.triplet_sums import sum_over_all_triplets
from oml.interfaces.criterions import ITripletLossWithMiner
from oml.interfaces.miners import ITripletsMiner, ITripletsMinerByIds, TLabels
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

    @in_full_precision
    def forward(
        self,
        anchor: Float[Tensor, "triplet dim"],
        positive: Float[Tensor, "triplet dim"],
        negative: Float[Tensor, "triplet dim"],
    ) -> Float[Tensor, "..."]:
        """The reduced loss: a 0-d tensor, or one value per triplet if the reduction is ``none``."""
        return self.of_distances(elementwise_dist(anchor, positive), elementwise_dist(anchor, negative))

    def of_distances(
        self, positive_distances: Float[Tensor, " triplet"], negative_distances: Float[Tensor, " triplet"]
    ) -> Float[Tensor, "..."]:
        """The same for triplets whose distances are known."""
        losses = triplet_loss(positive_distances, negative_distances, self.margin)
        if self.need_logs:
            self.last_logs = _logs(losses, positive_distances, negative_distances)
        if len(losses) == 0 and self.reduction != "none":
            return losses.sum()  # the mean over nothing is NaN; the sum is 0 and keeps the graph
        return get_reduced(losses, self.reduction)


@torch.no_grad()
def _logs(losses: Tensor, positive_distances: Tensor, negative_distances: Tensor) -> TLogs:
    logs = {"n_triplets": losses.new_full((), float(len(losses)))}
    if len(losses):
        logs |= {
            "active_tri": (losses > 0).float().mean(),
            "pos_dist": positive_distances.detach().mean(),
            "neg_dist": negative_distances.detach().mean(),
        }
    return logs


def get_tri_ids_in_plain(n: int) -> tuple[list[int], list[int], list[int]]:
    """Positions of anchors, positives and negatives among ``n`` items in the order of :class:`TripletLossPlain`.

    Raises:
        ValueError: ``n`` is not divisible by 3.

    Example:
        >>> get_tri_ids_in_plain(6)
        ([0, 3], [1, 4], [2, 5])
    """
    if n % 3:
        raise ValueError(f"get_tri_ids_in_plain needs 3 items per triplet, got {n}.")
    return list(range(0, n, 3)), list(range(1, n, 3)), list(range(2, n, 3))


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

    Triplets are never gathered as embeddings, if the miner gives their positions: distances are computed once for
    each pair. The sum or mean over all triplets of a batch needs no list of them at all, see
    :func:`oml.functional.triplet_sums.sum_over_all_triplets`: time and memory are those of the batch's distances.

    Args:
        margin: as in :class:`TripletLoss`.
        miner: picks the triplets; all of the batch by default.
        reduction: as in :class:`TripletLoss`.
        need_logs: as in :class:`TripletLoss`; the miner's own ``last_logs`` are there in any case. If the miner
            tells triplets of the batch from those with embeddings of earlier ones: ``orig_active_tri``,
            ``pos_dist_orig``, ``neg_dist_orig`` and ``bank_active_tri``, ``pos_dist_bank``, ``neg_dist_bank`` too,
            as far as there are such triplets.
        strict: a batch without a triplet is an error.
    """

    criterion_name = "triplet"

    def __init__(
        self,
        margin: float | None,
        miner: ITripletsMiner | None = None,
        reduction: Reduction = "mean",
        need_logs: bool = False,
        strict: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(miner, ITripletsMiner | None):
            raise TypeError(
                f"TripletLossWithMiner needs a miner that is an ITripletsMiner, got {miner!r}. Miners of "
                "pytorch-metric-learning go into oml.miners.pml.PMLMiner; one of your own derives from "
                "ITripletsMinerInBatch; a name is for configs: {name: hard_triplets}."
            )
        self.miner = AllTripletsMiner() if miner is None else miner
        self.loss = TripletLoss(margin, reduction, need_logs)
        self.strict = strict
        self.last_logs: TLogs = {}

    @in_full_precision
    def forward(self, features: Float[Tensor, "batch dim"], labels: TLabels) -> Float[Tensor, "..."]:
        """The loss of the batch; ``labels`` are integers, one per embedding.

        Raises:
            ValueError: There is not one integer label per embedding; or no triplet, and the loss is ``strict``.
        """
        miner = self.miner
        if self.loss.reduction != "none" and miner.takes_all(len(features)):
            loss, n_triplets, logs = self._of_all(features, miner.checked(features, labels))
        else:
            is_original = None
            if isinstance(miner, ITripletsMinerByIds):
                candidates, (anchor, positive, negative), is_original, known = miner.pick(features, labels)
                ends = torch.cat([positive, negative])
                both = indexed_dist(
                    candidates, torch.cat([anchor, anchor]), ends, None if known is None else torch.cat(known)
                )
                to_positives, to_negatives = both.view(2, len(anchor)).unbind()
            else:
                anchors, positives, negatives = miner.sample(features, labels)[:3]
                to_positives, to_negatives = elementwise_dist(anchors, positives), elementwise_dist(anchors, negatives)
            loss, n_triplets = self.loss.of_distances(to_positives, to_negatives), len(to_positives)
            logs = self.loss.last_logs
            if self.loss.need_logs and is_original is not None:
                logs = logs | self._logs_by_origin(to_positives, to_negatives, is_original)
        if self.strict and not n_triplets:
            raise ValueError(
                f"{type(miner).__name__} found no triplet in a batch of {len(features)} embeddings, whose labels begin "
                f"with {torch.as_tensor(labels)[:5].tolist()}. A batch needs two labels, and two items of one of them, "
                "as BalanceSampler provides, and more of them if the miner asks for ranks behind the first; with "
                "strict=False such a batch has a loss of 0."
            )
        self.last_logs = {**(logs if self.loss.need_logs else {}), **getattr(miner, "last_logs", {})}
        return loss

    def _of_all(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, TLogs]:
        sums = sum_over_all_triplets(features, labels, self.loss.margin)
        n = sums.n_triplets.clamp(min=1)
        logs = {"n_triplets": sums.n_triplets}
        if self.loss.need_logs and sums.n_triplets:
            active, to_positives, to_negatives = sums.n_active, sums.positive_distances, sums.negative_distances
            logs |= {"active_tri": active / n, "pos_dist": to_positives / n, "neg_dist": to_negatives / n}
        return sums.loss / n if self.loss.reduction == "mean" else sums.loss, sums.n_triplets, logs

    @torch.no_grad()
    def _logs_by_origin(self, positive_distances: Tensor, negative_distances: Tensor, is_original: Tensor) -> TLogs:
        logs: TLogs = {}
        for name, mask in (("orig", is_original), ("bank", ~is_original)):
            of_group = positive_distances[mask], negative_distances[mask]
            group = _logs(triplet_loss(*of_group, self.loss.margin), *of_group)
            if "active_tri" in group:
                logs[f"{name}_active_tri"] = group["active_tri"]
                logs[f"pos_dist_{name}"], logs[f"neg_dist_{name}"] = group["pos_dist"], group["neg_dist"]
        return logs
