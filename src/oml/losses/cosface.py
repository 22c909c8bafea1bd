"""CosFace: classification with a margin on cosines."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from oml.functional.losses import Reduction
from oml.functional.proxies import cosface_logits
from oml.losses._proxies import MarginSoftmaxLoss


class CosFaceLoss(MarginSoftmaxLoss):
    """Cross-entropy over ``s * cos(angle)`` to a proxy per label, with ``s * (cos(angle) - m)`` for the own label.

    Wang et al. 2018, "CosFace: Large margin cosine loss for deep face recognition". Needs labels from 0 to
    ``num_classes - 1``, no miner and no special sampler; its proxies (``weight``) are parameters, so give them to the
    optimizer. ``last_logs`` holds the ``accuracy`` without the margin.

    Args:
        in_features: size of the embeddings.
        num_classes: number of labels.
        m: margin, from 0 to 2: what the cosine with the own proxy must win by.
        s: scale of the cosines, above 0.
        smoothing_epsilon: share of the probability that other labels get, at least 0 and below 1; ``None`` is 0.
        label2category: the category of each label; with it, smoothing stays inside the label's category.
        reduction: ``mean``, ``sum`` or ``none`` over the batch.

    Raises:
        ValueError: an argument is out of its range, or ``label2category`` lacks labels.
        TypeError: categories cannot be sorted.

    Example:
        >>> criterion = CosFaceLoss(in_features=2, num_classes=2, m=0.2, s=1)
        >>> _ = criterion.load_state_dict({"weight": torch.eye(2)})
        >>> criterion(torch.tensor([[3.0, 4.0]]), torch.tensor([1]))  # log(1 + exp(0.6 - (0.8 - 0.2)))
        tensor(0.6931, grad_fn=<NllLossBackward0>)
    """

    criterion_name = "cosface"

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        m: int | float = 0.35,
        s: int | float = 64,
        smoothing_epsilon: int | float | None = 0,
        label2category: Mapping[int, Any] | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(in_features, num_classes, m, 2, s, smoothing_epsilon, label2category, reduction)

    def _logits(
        self, cosines: Float[Tensor, "batch label"], labels: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch label"]:
        return cosface_logits(cosines, labels, self.m, self.rescale)
