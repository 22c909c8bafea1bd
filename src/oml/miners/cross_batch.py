"""All triplets of a batch, and random ones with earlier batches."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from oml.functional.triplets import Triplets, all_triplets, draw_triplets
from oml.interfaces.miners import ITripletsMinerByIds, MinedTriplets, TLabels
from oml.miners._draws import Draws
from oml.miners.bank import Bank


class TripletMinerWithMemory(nn.Module, ITripletsMinerByIds):
    """All ``n`` triplets of the batch, and ``(tri_expand_k - 1) n`` random ones with embeddings of earlier batches.

    Of these, one half are positive pairs of the batch with a negative from the bank, the other half positive pairs
    of the bank with a negative from the batch: each half is drawn uniformly among all such triplets, without
    repetition; if there are fewer, all are taken. So there are ``tri_expand_k * n`` triplets, but for rounding and for
    banks that lack such triplets. At the very first batch, when the bank is empty, the batch itself stands in for it.

    Embeddings in the bank have no gradient, and lag behind the weights (Wang et al. 2020, "Cross-batch memory"): use a
    large bank after a warm-up or from pretrained weights, it may collapse a training from scratch. Triplets are listed,
    so keep batches small: ``tri_expand_k`` times the number of all triplets of the batch.
    The bank and the state of the draws are part of ``state_dict``; in a process group the bank holds the batches of
    all ranks, see :class:`~oml.miners.bank.Bank`.

    Args:
        bank_size_in_batches: how many batches of the size of the first one to keep.
        tri_expand_k: how many times the batch's own triplets to give, 1 or more.
        seed: of the draws.

    Example:
        >>> miner = TripletMinerWithMemory(bank_size_in_batches=2, tri_expand_k=3)
        >>> *_, is_original = miner.sample(torch.eye(4), [0, 0, 1, 1])
        >>> len(is_original), int(is_original.sum())
        (24, 8)
    """

    def __init__(self, bank_size_in_batches: int, tri_expand_k: int, seed: int = 0) -> None:
        super().__init__()
        if bank_size_in_batches < 1 or tri_expand_k < 1:
            raise ValueError(
                "TripletMinerWithMemory needs bank_size_in_batches and tri_expand_k of 1 or more, "
                f"got {bank_size_in_batches} and {tri_expand_k}."
            )
        self.bank_size_in_batches = bank_size_in_batches
        self.tri_expand_k = tri_expand_k
        self.bank = Bank(n_batches=bank_size_in_batches)
        self.draws = Draws(seed)

    def pick(self, features: Float[Tensor, "batch dim"], labels: TLabels) -> MinedTriplets:
        """Positions among the batch and, behind it, the bank, which in training mode takes in the batch then.

        First come those of pairs of the batch, then those of pairs of the bank, then the batch's own, which alone are
        original.

        Raises:
            ValueError: There is not one integer label per embedding.
        """
        labels = self.checked(features, labels)
        candidates, all_labels = self.bank.joined(features, labels)
        n = len(features)
        if len(candidates) == n:
            candidates, all_labels = torch.cat([features, features.detach()]), labels.repeat(2)
        of_batch, of_bank = labels, all_labels[n:]
        own = all_triplets(of_batch)
        n_each = len(own.anchor) * (self.tri_expand_k - 1) // 2
        anchor, positive, negative = draw_triplets(of_batch, n_each, self.draws.generator, of_bank)
        bank_negatives = Triplets(anchor, positive, negative + n)
        anchor, positive, negative = draw_triplets(of_bank, n_each, self.draws.generator, of_batch)
        bank_pairs = Triplets(anchor + n, positive + n, negative)
        if self.training:
            self.bank.push(features, labels)
        triplets = Triplets(*(torch.cat(ids) for ids in zip(bank_negatives, bank_pairs, own, strict=True)))
        is_original = torch.arange(len(triplets.anchor), device=labels.device) >= len(triplets.anchor) - len(own.anchor)
        return MinedTriplets(candidates, triplets, is_original)
