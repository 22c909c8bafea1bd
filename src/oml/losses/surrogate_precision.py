"""A loss that is one minus a smooth precision@k."""

from jaxtyping import Float
from torch import Tensor, nn

from oml.functional.distances import pairwise_dist
from oml.functional.labels import checked_labels
from oml.functional.losses import Reduction, check_reduction, get_reduced, surrogate_precision
from oml.functional.precision import in_full_precision
from oml.interfaces.miners import TLabels


class SurrogatePrecision(nn.Module):
    """``1 - precision@k`` of the batch searched in itself, with sigmoids in place of steps.

    See :func:`oml.functional.losses.surrogate_precision` for the formula; after Patel et al., "Recall@k Surrogate
    Loss with Large Batches and Similarity Mixup", 2022. Distances are L2. An item finds itself first, at distance 0,
    and counts as relevant for itself, so the first ``k + 1`` ranks are looked at. The lone item of a label is relevant
    only for itself, and learns to have no duplicates.

    As relevant items beyond the cut-off count a little too, the loss may fall slightly below 0.

    Needs several instances of a label in a batch, which ``BalanceSampler`` provides, and no miner. Large batches are
    better rankings: see :class:`~oml.models.gradient_cache.GradientCache`. ``temperature2`` is in the unit of the
    distances; the default suits normalised embeddings.

    Args:
        k: the cut-off, above 0; good values are near the number of instances of a label in a batch.
        temperature1: of the comparison of ranks with ``k``.
        temperature2: of the comparison of distances.
        reduction: ``mean``, ``sum`` or ``none`` over the items of the batch.

    Raises:
        ValueError: ``k`` or a temperature is not above 0, or the reduction is unknown.

    Example:
        >>> criterion = SurrogatePrecision(k=1, temperature1=0.1)
        >>> criterion(torch.eye(2)[[0, 0, 1, 1]], torch.tensor([5, 5, 7, 7]))  # ranks 1, 1, 3, 3 for k + 1 = 2
        tensor(4.5419e-05)
    """

    criterion_name = "surrogate_precision"

    def __init__(
        self,
        k: int,
        temperature1: int | float = 1.0,
        temperature2: int | float = 0.01,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        check_reduction("SurrogatePrecision", reduction)
        if not (k > 0 and temperature1 > 0 and temperature2 > 0):
            raise ValueError(
                f"SurrogatePrecision needs k and temperatures above 0, got {k}, {temperature1} and {temperature2}."
            )
        self.k = k
        self.temperature1 = temperature1
        self.temperature2 = temperature2
        self.reduction: Reduction = reduction
        self.last_logs: dict[str, Tensor] = {}

    @in_full_precision
    def forward(self, features: Float[Tensor, "batch dim"], labels: TLabels) -> Float[Tensor, "..."]:
        """The loss of the batch, or one per item if the reduction is ``none``; one integer label per embedding."""
        labels = checked_labels("SurrogatePrecision", features, labels)
        distances, mask_gt = pairwise_dist(features, features), labels[:, None] == labels
        precisions = surrogate_precision(
            distances, mask_gt, self.k + 1, self.temperature1, self.temperature2, reduction="none"
        )
        if len(precisions) == 0 and self.reduction != "none":
            return precisions.sum()  # the mean over nothing is NaN; the sum is 0 and keeps the graph
        return get_reduced(1 - precisions, self.reduction)
