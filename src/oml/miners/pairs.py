"""Pairs of a batch, for models that tell whether two items have one label."""

from jaxtyping import Float
from torch import Tensor

from oml.functional.distances import pairwise_dist
from oml.functional.labels import checked_labels
from oml.functional.triplets import Pairs, all_pairs, hardest_triplets, pairs_of_triplets
from oml.interfaces.miners import TLabels


class PairsMiner:
    """The pairs that are in a triplet of the batch, each once; or in a hardest one.

    Args:
        hard_mining: of each item take its farthest positive and its nearest negative only.

    Example:
        >>> import torch
        >>> PairsMiner().sample(torch.tensor([[0.0], [1.0], [5.0]]), [0, 0, 1])
        Pairs(ids1=tensor([0, 0, 1]), ids2=tensor([1, 2, 2]), is_negative=tensor([False,  True,  True]))
    """

    def __init__(self, hard_mining: bool = True) -> None:
        self.hard_mining = hard_mining

    def sample(self, features: Float[Tensor, "batch dim"], labels: TLabels) -> Pairs:
        """Positions of the pairs and, for each, whether its items differ in label: positive pairs come first.

        Raises:
            ValueError: There is not one integer label per embedding.
        """
        labels = checked_labels(type(self).__name__, features, labels)
        if not self.hard_mining:
            return all_pairs(labels)
        features = features.detach()
        return pairs_of_triplets(hardest_triplets(pairwise_dist(features, features), labels), len(features))
