"""A loss that is one minus a smooth recall@k."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from oml.functional.arguments import whole_numbers
from oml.functional.distances import normalise
from oml.functional.labels import checked_labels
from oml.functional.precision import in_full_precision
from oml.functional.surrogates import surrogate_recall
from oml.interfaces.miners import TLabels
from oml.losses._instances import NeedsInstances


class RecallAtKSurrogate(NeedsInstances):
    """``1 - recall@k`` of the batch searched in itself, with sigmoids in place of steps.

    Patel, Tolias, Matas, "Recall@k Surrogate Loss with Large Batches and Similarity Mixup", CVPR 2022; see
    :func:`oml.functional.surrogates.surrogate_recall` for the formula. Similarities are cosines. An item never finds
    itself: it is neither in the ranks nor among what is relevant for it. The loss is the mean over ``k_values`` and
    over the items that have a positive in the batch; without any it is 0.

    Because an item of rank exactly ``k`` counts by half, as in the paper, the loss of a perfect ranking is above 0.

    Needs several instances of a label in a batch, which ``BalanceSampler`` provides (4 in the paper), and no miner.
    The paper's gains come with batches of thousands: see :class:`~oml.models.gradient_cache.GradientCache`.

    Args:
        k_values: the cut-offs, each above 0.
        temperature1: of the comparison of ranks with ``k``.
        temperature2: of the comparison of cosines.

    After each call, ``last_logs`` has ``n_anchors``: how many items had a positive in the batch.

    Raises:
        TypeError: ``k_values`` are no sequence of ints.
        ValueError: there are no ``k_values``, or one or a temperature is not above 0.

    Example:
        >>> criterion = RecallAtKSurrogate(k_values=[2], temperature1=0.1)
        >>> criterion(torch.eye(2)[[0, 0, 1, 1]], torch.tensor([5, 5, 7, 7]))  # each positive has rank 1
        tensor(4.5419e-05)
    """

    criterion_name = "recall_surrogate"

    def __init__(
        self,
        k_values: Sequence[int] = (1, 2, 4, 8, 16),
        temperature1: int | float = 1.0,
        temperature2: int | float = 0.01,
    ) -> None:
        super().__init__()
        self.k_values = whole_numbers("RecallAtKSurrogate", "k_values", k_values)
        if not (temperature1 > 0 and temperature2 > 0):
            raise ValueError(f"RecallAtKSurrogate needs temperatures above 0, got {temperature1} and {temperature2}.")
        self.temperature1 = temperature1
        self.temperature2 = temperature2
        self.last_logs: dict[str, Tensor] = {}

    @in_full_precision
    def forward(self, features: Float[Tensor, "batch dim"], labels: TLabels) -> Float[Tensor, ""]:
        """The loss of the batch; ``labels`` are integers, one per embedding."""
        labels = checked_labels("RecallAtKSurrogate", features, labels)
        self._look_at_first(labels)
        embeddings = normalise(features)
        itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        similarities = (embeddings @ embeddings.T).masked_fill(itself, -torch.inf)
        mask_gt = (labels[:, None] == labels) & ~itself
        is_anchor = mask_gt.any(dim=1)
        n_anchors = is_anchor.sum()
        self.last_logs = {"n_anchors": n_anchors.float()}
        recalls = surrogate_recall(similarities, mask_gt, self.k_values, self.temperature1, self.temperature2)
        return ((1 - recalls) * is_anchor).sum() / n_anchors.clamp(min=1)
