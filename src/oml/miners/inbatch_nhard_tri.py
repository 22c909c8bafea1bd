"""The hardest triplets of each anchor."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from oml.functional.distances import euclidean_pairs
from oml.functional.triplets import Triplets, n_hardest_triplets
from oml.interfaces.miners import ITripletsMinerInBatch, MinedTriplets, TLabels

_NUMBERS = 2**21  # of distances at a time: 8 MiB


class NHardTripletsMiner(ITripletsMinerInBatch):
    """For each anchor its hardest positives, the farthest first, each with its hardest negatives, the nearest first.

    Anchors keep the order of the batch. One that has fewer positives or negatives than asked for gives what it has;
    with none of the ranks asked for it is left out. With ``(1, 1)`` this is
    :class:`~oml.miners.inbatch_hard_tri.HardTripletsMiner`, with numbers of the size of the batch it gives all
    triplets. Hardest negatives alone may collapse a training from scratch (Schroff et al. 2015, section 3.2); ranks
    such as ``(2, 5)`` leave out the very hardest, which wrong labels are often among.

    Args:
        n_positive: how many positives; or the first and the last rank of them, from 1, both taken.
        n_negative: the same of negatives.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [3.0], [9.0]])
        >>> miner = NHardTripletsMiner(n_positive=(2, 5), n_negative=1)
        >>> miner.mine(x, torch.tensor([0, 0, 0, 1])).positive
        tensor([1, 0, 1])
    """

    def __init__(self, n_positive: int | Sequence[int] = 1, n_negative: int | Sequence[int] = 1) -> None:
        self.positive_slice = _ranks("n_positive", n_positive)
        self.negative_slice = _ranks("n_negative", n_negative)

    def mine(self, features: Float[Tensor, "batch dim"], labels: Int[Tensor, " batch"]) -> Triplets:
        """Positions of the triplets, by the L2 distances of ``features``."""
        return self.mine_among(features, labels, len(features)).triplets

    def pick(self, features: Float[Tensor, "batch dim"], labels: TLabels) -> MinedTriplets:
        """The triplets and their distances; as :meth:`~oml.interfaces.miners.ITripletsMinerInBatch.pick`."""
        return self.mine_among(features, self.checked(features, labels), len(features))

    def mine_among(
        self, candidates: Float[Tensor, "candidate dim"], labels: Int[Tensor, " candidate"], n_anchors: int
    ) -> MinedTriplets:
        """The triplets of the first ``n_anchors`` candidates, with all of them as positives and negatives."""
        x = candidates.detach()
        size = max(1, _NUMBERS // max(1, len(x)))
        parts = []
        for anchors in torch.arange(n_anchors, device=labels.device).split(size):
            one_set = len(anchors) == len(x)  # whose distances take fewer steps
            distances = (euclidean_pairs(x) if one_set else euclidean_pairs(x[anchors], x)).distances
            ids = n_hardest_triplets(distances, labels, self.positive_slice, self.negative_slice, anchors)
            row = ids.anchor if len(anchors) == n_anchors else ids.anchor - anchors[0]
            parts.append((*ids, distances[row, ids.positive], distances[row, ids.negative]))
        *ids, to_positives, to_negatives = (
            values[0] if len(values) == 1 else torch.cat(values) for values in zip(*parts, strict=True)
        )
        return MinedTriplets(candidates, Triplets(*ids), distances=(to_positives, to_negatives))

    def takes_all(self, n: int) -> bool:
        """Whether of ``n`` items no anchor can have more positives or negatives than are taken."""
        return all(ranks.start == 0 and ranks.stop >= n - 2 for ranks in (self.positive_slice, self.negative_slice))


def _ranks(name: str, value: object) -> slice:
    pair = (1, value) if isinstance(value, int) else tuple(value) if isinstance(value, Sequence) else ()
    if len(pair) != 2 or not all(isinstance(rank, int) and not isinstance(rank, bool) for rank in pair):
        raise TypeError(
            f"NHardTripletsMiner needs {name} to be a number or a pair of ranks such as (1, 3), got {value!r}."
        )
    first, last = pair
    if not 1 <= first <= last:
        raise ValueError(
            f"NHardTripletsMiner needs {name} of 1 or more, or two ranks from 1 on in order, got {value!r}."
        )
    return slice(first - 1, last)
