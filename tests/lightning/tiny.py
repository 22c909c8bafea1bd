"""A network for pipelines that takes no time, and transforms for it."""

from pathlib import Path

import torch
from torch import Tensor, nn

from oml.interfaces.models import IExtractor
from oml.models.utils import load_weights

TRANSFORMS = {"name": "norm_resize_torch", "args": {"im_size": 16}}


class Tiny(IExtractor):
    """8 numbers per image; the same weights for a seed."""

    def __init__(self, weights: Path | str | None = None, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layers = nn.Sequential(nn.Conv2d(3, 8, 5, 2), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        if weights is not None:
            load_weights(self, weights)

    @property
    def feat_dim(self) -> int:
        return 8

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class ReadsNumbers(Tiny):
    """Cannot be made of shapes alone."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = torch.linspace(0, 1, 3)[1].item()
