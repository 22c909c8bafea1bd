"""A model around an extractor that can be frozen."""

import torch
from torch import Tensor, nn

from oml.interfaces.models import IExtractor, IFreezable


class WithBackbone(nn.Module, IFreezable):
    """A model that has an extractor as its backbone: ``train_backbone`` says whether it learns.

    A frozen backbone gets no gradients, and is in evaluation mode whatever the mode of the whole: otherwise the
    statistics of its BatchNorm layers would follow the data, and dropout would make noise that teaches it nothing.
    Within ``no_grad`` there are no gradients either way.
    """

    def __init__(self, extractor: IExtractor, train_backbone: bool) -> None:
        super().__init__()
        self.extractor = extractor
        self.train_backbone = train_backbone
        extractor.train(train_backbone)

    def train(self, mode: bool = True) -> "WithBackbone":
        """Training or evaluation mode; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        self.extractor.train(mode and self.train_backbone)
        return self

    def freeze(self) -> None:
        """From now on the backbone does not learn, and is in evaluation mode."""
        self.train_backbone = False
        self.extractor.eval()

    def unfreeze(self) -> None:
        """From now on the backbone learns, and is in the mode of the whole."""
        self.train_backbone = True
        self.extractor.train(self.training)

    def run_backbone(self, x: Tensor) -> Tensor:
        """Embeddings of the backbone, with gradients if it learns."""
        with torch.set_grad_enabled(self.train_backbone and torch.is_grad_enabled()):
            return self.extractor(x)
