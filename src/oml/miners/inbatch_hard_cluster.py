"""Triplets of means of labels."""

from jaxtyping import Float
from torch import Tensor

from oml.functional.triplets import cluster_triplets
from oml.interfaces.miners import ITripletsMiner, TLabels


class HardClusterMiner(ITripletsMiner):
    """For each label a triplet of its mean, its item farthest from the mean, and the nearest mean of another label.

    Labels may have any number of items. One with a single item gives no triplet, its mean serves as a negative.
    Gradients flow to all items of a label through its mean.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0], [4.0], [5.0], [9.0]])
        >>> HardClusterMiner().sample(x, [0, 0, 1, 1])
        (tensor([[2.],
                [7.]]), tensor([[0.],
                [5.]]), tensor([[7.],
                [2.]]))
    """

    def sample(self, features: Float[Tensor, "batch dim"], labels: TLabels) -> tuple[Tensor, ...]:
        """A triplet per label of two items or more, sorted by label; none if the batch has one label.

        Raises:
            ValueError: There is not one integer label per embedding.
        """
        triplets = cluster_triplets(features, self.checked(features, labels))
        return tuple(part.to(features.dtype) for part in triplets)
