"""Losses that mine what they learn from."""

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor, nn

from oml.interfaces.miners import TLabels


class ITripletLossWithMiner(nn.Module, ABC):
    """A loss on a batch of labelled embeddings that picks its own triplets."""

    @abstractmethod
    def forward(self, features: Float[Tensor, "batch dim"], labels: TLabels) -> Tensor:
        """The loss of the batch."""
