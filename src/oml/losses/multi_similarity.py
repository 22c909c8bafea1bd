"""Multi-Similarity: pairs weighted by how they compare with a base and with each other."""

from jaxtyping import Float
from torch import Tensor

from oml.functional.contrastive import labelled_pairs, multi_similarity_loss, multi_similarity_pairs
from oml.functional.distances import normalise
from oml.functional.labels import checked_labels
from oml.functional.precision import in_full_precision
from oml.interfaces.miners import TLabels
from oml.losses._instances import NeedsInstances


class MultiSimilarityLoss(NeedsInstances):
    """Soft maxima over the positive and over the negative pairs of each anchor, by their cosines.

    Wang et al. 2019, "Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning"; the formula stands
    at :func:`oml.functional.contrastive.multi_similarity_loss`, the mining of pairs at
    :func:`~oml.functional.contrastive.multi_similarity_pairs`. The mean is over all items of the batch, with 0 for
    those that have no pairs. With mining, an item that lacks positives or negatives has none, and a batch of such
    items gives 0, connected to the embeddings; without mining, it has those that there are.

    Needs several instances of a label in a batch, which ``BalanceSampler`` provides; it mines for itself. Embeddings
    need not be normalised.

    Args:
        alpha: scale of positive pairs, above 0.
        beta: scale of negative pairs, above 0.
        base: the cosine that positives should be above and negatives below.
        epsilon: margin of the mining, in cosines; ``None`` to take all pairs.

    After each call, ``last_logs`` has ``n_positives`` and ``n_negatives``: how many pairs took part, ordered ones.

    Raises:
        ValueError: ``alpha`` or ``beta`` is not above 0.

    Example:
        >>> criterion = MultiSimilarityLoss(alpha=1.0, beta=1.0, base=1.0, epsilon=None)
        >>> criterion(torch.ones(4, 3), torch.tensor([0, 0, 1, 1]))  # ln 2 + ln 3: all at the base
        tensor(1.7918)
    """

    criterion_name = "multi_similarity"

    def __init__(
        self,
        alpha: int | float = 2.0,
        beta: int | float = 50.0,
        base: int | float = 0.5,
        epsilon: int | float | None = 0.1,
    ) -> None:
        super().__init__()
        if not (alpha > 0 and beta > 0):
            raise ValueError(f"MultiSimilarityLoss needs alpha and beta above 0, got {alpha} and {beta}.")
        self.alpha = alpha
        self.beta = beta
        self.base = base
        self.epsilon = epsilon
        self.last_logs: dict[str, Tensor] = {}

    @in_full_precision
    def forward(self, features: Float[Tensor, "batch dim"], labels: TLabels) -> Float[Tensor, ""]:
        """The loss of the batch; ``labels`` are integers, one per embedding."""
        labels = checked_labels("MultiSimilarityLoss", features, labels)
        self._look_at_first(labels)
        embeddings = normalise(features)
        similarities = embeddings @ embeddings.T
        pairs = labelled_pairs(labels, labels)
        if self.epsilon is not None:
            pairs = multi_similarity_pairs(similarities.detach(), *pairs, self.epsilon)
        self.last_logs = {"n_positives": pairs[0].sum().float(), "n_negatives": pairs[1].sum().float()}
        losses = multi_similarity_loss(similarities, *pairs, self.alpha, self.beta, self.base)
        return losses.sum() / max(1, len(losses))
