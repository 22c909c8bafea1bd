"""Hardest triplets among a batch and earlier ones."""

from jaxtyping import Float
from torch import Tensor, nn

from oml.functional.triplets import Triplets
from oml.interfaces.miners import ITripletsMinerByIds, MinedTriplets, TLabels
from oml.miners.bank import Bank
from oml.miners.inbatch_nhard_tri import NHardTripletsMiner


class MinerWithBank(nn.Module, ITripletsMinerByIds):
    """The hardest positives and negatives of the batch's items, among the batch and the batches before it.

    Embeddings of earlier batches have no gradient. They lag behind the weights, so this suits models whose embeddings
    move slowly: after a warm-up, or from pretrained weights (Wang et al. 2020, "Cross-batch memory"). Until the bank
    is full, triplets are those of the batch alone. An item whose label occurs once in the batch may have positives in
    the bank.

    The bank is part of ``state_dict``; in a process group it holds the batches of all ranks, see
    :class:`~oml.miners.bank.Bank`.

    Args:
        bank_size_in_batches: how many batches of the size of the first one to keep.
        miner: how many positives and negatives an anchor takes.
        need_logs: fill ``last_logs`` at each call: ``positives_from_bank``, ``positives_from_batch``,
            ``negatives_from_bank``, ``negatives_from_batch``, how many an anchor with triplets has on average.

    Example:
        >>> import torch
        >>> miner = MinerWithBank(1, NHardTripletsMiner())
        >>> x, labels = torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([0, 0, 1])
        >>> [len(miner.pick(x, labels).triplets.anchor) for _ in range(2)]
        [2, 3]
    """

    def __init__(self, bank_size_in_batches: int, miner: NHardTripletsMiner, need_logs: bool = True) -> None:
        super().__init__()
        if not isinstance(miner, NHardTripletsMiner):
            raise TypeError(f"MinerWithBank needs an NHardTripletsMiner, got {type(miner).__name__}.")
        if bank_size_in_batches < 1:
            raise ValueError(f"MinerWithBank needs bank_size_in_batches of 1 or more, got {bank_size_in_batches}.")
        self.bank_size_in_batches = bank_size_in_batches
        self.miner = miner
        self.need_logs = need_logs
        self.bank = Bank(n_batches=bank_size_in_batches)
        self.last_logs: dict[str, Tensor] = {}

    @property
    def is_accumulated(self) -> bool:
        """Whether the bank is full, that is: in use."""
        return self.bank.is_full

    def pick(self, features: Float[Tensor, "batch dim"], labels: TLabels) -> MinedTriplets:
        """Positions among the batch and, behind it, the bank, which in training mode takes in the batch then.

        Raises:
            ValueError: There is not one integer label per embedding.
        """
        candidates = features, self.checked(features, labels)
        if self.is_accumulated:
            candidates = self.bank.joined(*candidates)
        mined = self.miner.mine_among(*candidates, len(features))
        if self.need_logs:
            self.last_logs = _logs(mined.triplets, len(features), len(candidates[0]))
        if self.training:
            self.bank.push(features, candidates[1][: len(features)])
        return mined


def _logs(triplets: Triplets, n_batch: int, n_candidates: int) -> dict[str, Tensor]:
    n_anchors = max(1, len(triplets.anchor.unique_consecutive()))
    logs = {}
    for name, ids in (("positives", triplets.positive), ("negatives", triplets.negative)):
        item = (triplets.anchor * n_candidates + ids).unique() % n_candidates
        from_bank = (item >= n_batch).sum()
        logs[f"{name}_from_bank"] = from_bank / n_anchors
        logs[f"{name}_from_batch"] = (len(item) - from_bank) / n_anchors
    return logs
