"""What picks triplets inside a batch."""

import warnings
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Tensor

from oml.functional.triplets import Triplets, lone_labels

TTriplets = tuple[Tensor, Tensor, Tensor]
TLabels = Tensor | list[int]


class ITripletsMiner(ABC):
    """Turns labelled embeddings into triplets of embeddings."""

    @abstractmethod
    def sample(self, features: Float[Tensor, "batch dim"], labels: TLabels) -> TTriplets:
        """Anchors, positives and negatives, each of shape ``(triplet, dim)``; gradients flow to ``features``."""


class ITripletsMinerInBatch(ITripletsMiner):
    """A miner that looks at nothing but the batch. To write one, implement :meth:`mine`."""

    def __init__(self) -> None:
        self._told_of_lone_labels = False

    @abstractmethod
    def mine(self, features: Float[Tensor, "batch dim"], labels: Int[Tensor, " batch"]) -> Triplets:
        """Positions of the triplets in the batch, on the device of ``features``."""

    def sample(self, features: Float[Tensor, "batch dim"], labels: TLabels) -> TTriplets:
        """The mined triplets' embeddings. A batch without a triplet gives three tensors of shape ``(0, dim)``.

        Labels with one instance in the batch are named in a warning, once; they serve as negatives.

        Raises:
            ValueError: if there is not one integer label per embedding.
        """
        ids = self.mine(features.detach(), self._checked_labels(features, labels))
        # not features[ids]: on several threads its backward pass adds in an order that differs from run to run
        return (
            features.index_select(0, ids.anchor),
            features.index_select(0, ids.positive),
            features.index_select(0, ids.negative),
        )

    def _checked_labels(self, features: Tensor, labels: TLabels) -> Tensor:
        labels = torch.as_tensor(labels, device=features.device)
        if labels.shape != features.shape[:1] or labels.is_floating_point():
            raise ValueError(
                f"{type(self).__name__} needs one integer label per embedding, got embeddings of shape "
                f"{tuple(features.shape)} and labels of shape {tuple(labels.shape)} and type {labels.dtype}."
            )
        if not self._told_of_lone_labels and len(lone := lone_labels(labels)):
            self._told_of_lone_labels = True
            warnings.warn(
                f"{type(self).__name__} met {len(lone)} labels with a single instance in the batch, such as "
                f"{lone[:3].tolist()}: they give no positive pair and serve as negatives only. A batch sampler "
                "such as BalanceSampler forms batches with several instances a label. This is said once.",
                stacklevel=4,
            )
        return labels
