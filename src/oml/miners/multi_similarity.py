"""Triplets of pairs that compare badly with the other pairs of their anchor."""

from jaxtyping import Float, Int
from torch import Tensor

from oml.functional.contrastive import combined_pairs, labelled_pairs, multi_similarity_pairs
from oml.functional.distances import normalise
from oml.functional.precision import in_full_precision
from oml.functional.triplets import Triplets
from oml.interfaces.miners import ITripletsMinerInBatch


class MultiSimilarityMiner(ITripletsMinerInBatch):
    """For each anchor, its informative positives, each with its informative negatives (Wang et al. 2019).

    A negative is informative if it is closer than the anchor's farthest positive, plus a margin; a positive, if it is
    farther than the nearest negative, less a margin; by cosines, as
    :func:`oml.functional.contrastive.multi_similarity_pairs` says. The paper picks pairs, for
    :class:`~oml.losses.multi_similarity.MultiSimilarityLoss`, which does so itself; for a loss of triplets all their
    combinations are taken. Those are every triplet ``(a, p, n)`` of which ``s(a, p) - s(a, n)`` is below
    ``epsilon``, and of the others those whose two pairs each occur in such a triplet, if with another partner.

    So an anchor that tells all its positives from all negatives by ``epsilon`` gives nothing: there are fewer triplets
    as training goes on. Of untrained embeddings they may be all of the batch, ``B (c - 1) (B - c)`` for ``B`` items
    with ``c`` instances a label.

    Args:
        epsilon: the margin, in cosines.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [0.0, 1.0]])
        >>> MultiSimilarityMiner(epsilon=0.1).mine(x, torch.tensor([0, 1, 0, 1])).anchor
        tensor([0, 1, 1, 2, 3, 3])
    """

    def __init__(self, epsilon: int | float = 0.1) -> None:
        self.epsilon = epsilon

    @in_full_precision
    def mine(self, features: Float[Tensor, "batch dim"], labels: Int[Tensor, " batch"]) -> Triplets:
        """Positions of the triplets, by the cosines of ``features``."""
        embeddings = normalise(features)
        pairs = multi_similarity_pairs(embeddings @ embeddings.T, *labelled_pairs(labels, labels), self.epsilon)
        return combined_pairs(*pairs)
