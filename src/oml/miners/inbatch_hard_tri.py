"""The hardest triplet of each anchor."""

from jaxtyping import Float, Int
from torch import Tensor

from oml.functional.triplets import Triplets
from oml.interfaces.miners import ITripletsMinerInBatch, MinedTriplets, TLabels
from oml.miners._hardest import hardest_among


class HardTripletsMiner(ITripletsMinerInBatch):
    """For each anchor its farthest positive and its nearest negative (Hermans et al. 2017, "batch hard").

    Anchors keep the order of the batch; those without a positive or a negative are left out.
    """

    def mine(self, features: Float[Tensor, "batch dim"], labels: Int[Tensor, " batch"]) -> Triplets:
        """Positions of one triplet per anchor, by the L2 distances of ``features``."""
        return hardest_among(features, labels, len(features)).triplets

    def pick(self, features: Float[Tensor, "batch dim"], labels: TLabels) -> MinedTriplets:
        """The triplets and their distances; as :meth:`~oml.interfaces.miners.ITripletsMinerInBatch.pick`."""
        return hardest_among(features, self.checked(features, labels), len(features))
