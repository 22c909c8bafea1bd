"""What makes embeddings."""

from abc import ABC, abstractmethod
from difflib import get_close_matches
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

TExtractor = TypeVar("TExtractor", bound="IExtractor")


class IExtractor(nn.Module, ABC):
    """A model that maps a batch of inputs to embeddings of shape ``(batch, feat_dim)``."""

    #: name of pretrained weights -> ``{"init_args": {...}}``, the constructor's further arguments
    pretrained_models: ClassVar[dict[str, dict[str, Any]]] = {}

    @property
    @abstractmethod
    def feat_dim(self) -> int:
        """Size of an embedding."""

    def extract(self, x: Tensor) -> Tensor:
        """Embeddings at inference; the same as :meth:`forward` unless overridden."""
        return self.forward(x)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute activations twice in training instead of keeping them: less memory, the same gradients.

        Batch normalisations of timm's networks take up the statistics of each batch twice.

        Raises:
            ValueError: if the network inside cannot do so.
        """
        for module in self.modules():
            if module is not self and hasattr(module, "set_grad_checkpointing"):
                module.set_grad_checkpointing(enable)  # pyright: ignore[reportCallIssue]
                return
        raise ValueError(f"{type(self).__name__} holds no network that can do gradient checkpointing.")

    @classmethod
    def from_pretrained(cls: type[TExtractor], weights: str) -> TExtractor:
        """The extractor with pretrained weights, by a name out of ``pretrained_models``.

        Raises:
            KeyError: if there is no such name; the text lists those there are.
        """
        if weights not in cls.pretrained_models:
            near = get_close_matches(weights, cls.pretrained_models)
            raise KeyError(
                f"{cls.__name__} has no pretrained weights {weights!r}{f', did you mean {near[0]!r}' if near else ''}; "
                f"there are: {', '.join(cls.pretrained_models) or 'none'}."
            )
        return cls(weights=weights, **cls.pretrained_models[weights]["init_args"])


class IFreezable(ABC):
    """A model whose backbone can be kept from learning for a while."""

    @abstractmethod
    def freeze(self) -> None:
        """From now on the backbone does not learn."""

    @abstractmethod
    def unfreeze(self) -> None:
        """From now on the backbone learns."""


class IPairwiseModel(nn.Module, ABC):
    """A model that maps the pairs of two batches to distances of shape ``(batch,)``: the larger, the less alike."""

    @abstractmethod
    def forward(self, x1: Any, x2: Any) -> Tensor:
        """Distances, or their logits, in training."""

    @abstractmethod
    def predict(self, x1: Any, x2: Any) -> Tensor:
        """Distances at inference."""
