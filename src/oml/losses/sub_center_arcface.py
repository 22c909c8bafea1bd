"""Sub-center ArcFace: several proxies per label."""

import math
from collections.abc import Mapping
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from oml.functional.losses import Reduction
from oml.functional.proxies import arcface_logits
from oml.losses._proxies import MarginSoftmaxLoss


class SubCenterArcFaceLoss(MarginSoftmaxLoss):
    """:class:`~oml.losses.arcface.ArcFaceLoss` with ``n_centers`` proxies per label, of which the nearest counts.

    Deng et al. 2020, "Sub-center ArcFace: Boosting face recognition by large-scale noisy web faces": wrong labels and
    unusual items gather around centers of their own rather than pull at the main one. Needs labels from 0 to
    ``num_classes - 1``, no miner and no special sampler; its centers (``weight``, those of label 0 first) are
    parameters, so give them to the optimizer. ``last_logs`` holds the ``accuracy`` without the margin.

    Args:
        in_features: size of the embeddings.
        num_classes: number of labels.
        n_centers: proxies per label; 1 is plain ArcFace.
        m: margin in radians, from 0 to pi.
        s: scale of the cosines, above 0.
        smoothing_epsilon: share of the probability that other labels get, at least 0 and below 1; ``None`` is 0.
        label2category: the category of each label; with it, smoothing stays inside the label's category.
        reduction: ``mean``, ``sum`` or ``none`` over the batch.

    Raises:
        ValueError: an argument is out of its range, or ``label2category`` lacks labels.
        TypeError: categories cannot be sorted.

    Example:
        >>> criterion = SubCenterArcFaceLoss(in_features=2, num_classes=2, n_centers=2, m=0.0, s=1)
        >>> centers = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
        >>> _ = criterion.load_state_dict({"weight": centers})
        >>> criterion(torch.tensor([[3.0, 4.0]]), torch.tensor([0]))  # log(1 + exp(-0.6 - 0.8))
        tensor(0.2204, grad_fn=<NllLossBackward0>)
    """

    criterion_name = "sub_center_arcface"

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        n_centers: int = 3,
        m: int | float = 0.5,
        s: int | float = 64,
        smoothing_epsilon: int | float | None = 0,
        label2category: Mapping[int, Any] | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            in_features, num_classes, m, math.pi, s, smoothing_epsilon, label2category, reduction, n_centers
        )

    def _logits(
        self, cosines: Float[Tensor, "batch label"], labels: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch label"]:
        return arcface_logits(cosines, labels, self.m, self.rescale)
