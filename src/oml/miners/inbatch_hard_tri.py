"""The hardest triplet of each anchor."""

from jaxtyping import Float, Int
from torch import Tensor

from oml.functional.distances import euclidean_pairs
from oml.functional.triplets import Triplets, hardest_triplets
from oml.interfaces.miners import ITripletsMinerInBatch, MinedTriplets, TLabels


class HardTripletsMiner(ITripletsMinerInBatch):
    """For each anchor its farthest positive and its nearest negative (Hermans et al. 2017, "batch hard").

    Anchors keep the order of the batch; those without a positive or a negative are left out.
    """

    def mine(self, features: Float[Tensor, "batch dim"], labels: Int[Tensor, " batch"]) -> Triplets:
        """Positions of one triplet per anchor, by the L2 distances of ``features``."""
        return hardest_triplets(euclidean_pairs(features).distances, labels)

    def pick(self, features: Float[Tensor, "batch dim"], labels: TLabels) -> MinedTriplets:
        """The triplets and their distances; as :meth:`~oml.interfaces.miners.ITripletsMinerInBatch.pick`."""
        labels = self.checked(features, labels)
        distances = euclidean_pairs(features).distances
        ids = hardest_triplets(distances, labels)
        known = distances[ids.anchor, ids.positive], distances[ids.anchor, ids.negative]
        return MinedTriplets(features, ids, distances=known)
