"""ArcFace: classification with an angular margin, straight on embeddings or behind an MLP."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torchvision.ops import MLP

from oml.functional.losses import Reduction
from oml.functional.proxies import arcface_logits
from oml.interfaces.miners import TLabels
from oml.losses._proxies import MarginSoftmaxLoss, check_sizes, checked_batch


class ArcFaceLoss(MarginSoftmaxLoss):
    """Cross-entropy over ``s * cos(angle)`` to a proxy per label, with ``s * cos(angle + m)`` for the own label.

    Deng et al. 2019, "ArcFace: Additive angular margin loss for deep face recognition"; where ``angle + m`` is above
    pi, ``cos(angle) - m * sin(m)`` takes its place. Embeddings and proxies need not be normalised.

    Needs labels from 0 to ``num_classes - 1``, no miner, and no special sampler: several instances of a label in a
    batch are of no use to it. Its proxies (``weight``) are parameters: give them to the optimizer.

    Args:
        in_features: size of the embeddings.
        num_classes: number of labels.
        m: margin in radians, from 0 to pi.
        s: scale of the cosines, above 0.
        smoothing_epsilon: share of the probability that other labels get, at least 0 and below 1; ``None`` is 0.
        label2category: the category of each label; with it, smoothing stays inside the label's category.
        reduction: ``mean``, ``sum`` or ``none`` over the batch.

    ``last_logs`` holds the ``accuracy`` of the last batch: the share of embeddings that are nearest to their own
    label's proxy, without the margin.

    Raises:
        ValueError: an argument is out of its range, or ``label2category`` lacks labels.
        TypeError: categories cannot be sorted.

    Example:
        >>> criterion = ArcFaceLoss(in_features=2, num_classes=2, m=0.0, s=1)
        >>> _ = criterion.load_state_dict({"weight": torch.eye(2)})
        >>> criterion(torch.tensor([[3.0, 4.0]]), torch.tensor([1]))  # log(1 + exp(0.6 - 0.8))
        tensor(0.5981, grad_fn=<NllLossBackward0>)
    """

    criterion_name = "arcface"

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        m: int | float = 0.5,
        s: int | float = 64,
        smoothing_epsilon: int | float | None = 0,
        label2category: Mapping[int, Any] | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(in_features, num_classes, m, math.pi, s, smoothing_epsilon, label2category, reduction)

    def _logits(
        self, cosines: Float[Tensor, "batch label"], labels: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch label"]:
        return arcface_logits(cosines, labels, self.m, self.rescale)


class ArcFaceLossWithMLP(nn.Module):
    """:class:`ArcFaceLoss` on the output of an MLP on the embeddings, which is thrown away after training.

    The MLP is linear layers with ReLUs between them, without dropout and in the precision of the model,
    or that of the layers if it is wider.

    Args:
        in_features: size of the embeddings.
        num_classes: number of labels.
        mlp_features: output sizes of the layers; the last one is the size of what ArcFace compares.
        m: see :class:`ArcFaceLoss`, as for the following.
        s: scale.
        smoothing_epsilon: share of the probability that other labels get.
        label2category: the category of each label.
        reduction: ``mean``, ``sum`` or ``none``.

    Raises:
        ValueError: there is no layer, or an argument is out of its range.

    Example:
        >>> criterion = ArcFaceLossWithMLP(in_features=8, num_classes=4, mlp_features=[6, 5])
        >>> criterion(torch.ones(3, 8), torch.tensor([0, 1, 1])).shape
        torch.Size([])
    """

    criterion_name = "arcface"

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        mlp_features: Sequence[int],
        m: int | float = 0.5,
        s: int | float = 64,
        smoothing_epsilon: int | float | None = 0,
        label2category: Mapping[int, Any] | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        if not mlp_features:
            raise ValueError("ArcFaceLossWithMLP needs at least one layer in mlp_features, got none.")
        check_sizes("ArcFaceLossWithMLP", in_features=in_features, smallest_of_mlp_features=min(mlp_features))
        self.mlp = MLP(in_features, list(mlp_features))
        self.arcface = ArcFaceLoss(mlp_features[-1], num_classes, m, s, smoothing_epsilon, label2category, reduction)
        self._in_features = in_features

    @property
    def last_logs(self) -> dict[str, Tensor]:
        """Of the last call."""
        return self.arcface.last_logs

    def forward(self, features: Float[Tensor, "batch dim"], labels: TLabels) -> Float[Tensor, "..."]:
        """The loss of the batch, or one per item if the reduction is ``none``; labels are 0 to ``num_classes - 1``."""
        n_labels = self.arcface.num_classes
        labels = checked_batch("ArcFaceLossWithMLP", features, labels, n_labels, self._in_features)
        # model and loss may differ in precision: the wider one counts
        dtype = torch.promote_types(features.dtype, self.arcface.weight.dtype)
        parameters = {name: parameter.to(dtype) for name, parameter in self.mlp.named_parameters()}
        return self.arcface.of_checked(functional_call(self.mlp, parameters, (features.to(dtype),)), labels)
