"""The ViTs of DINO (Caron et al. 2021), on timm's vision transformer."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import ClassVar

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from oml.functional.distances import normalise
from oml.interfaces.models import IExtractor
from oml.models.utils import load_weights


def _vit(size: str, patch: int) -> nn.Module:
    return timm.create_model(f"vit_{size}_patch{patch}_224", num_classes=0, dynamic_img_size=True)


class ViTExtractor(IExtractor):
    """Vision transformer; the embedding is the class token after the last norm.

    Takes images of any size with at least one patch: position embeddings are interpolated, and pixels beyond the
    last whole patch, right and below, are left out.

    Args:
        weights: ``None`` for random weights, or the path of a checkpoint.
        arch: ``vits8``, ``vits16``, ``vitb8`` or ``vitb16``: small (384 numbers an embedding) or base (768), and
            the side of a patch.
        normalise_features: whether embeddings are scaled to unit length.
        use_multi_scale: average the embeddings at the scales 1, 1/sqrt(2) and 1/2.
    """

    constructors: ClassVar[dict[str, Callable[[], nn.Module]]] = {
        "vits8": partial(_vit, "small", 8),
        "vits16": partial(_vit, "small", 16),
        "vitb8": partial(_vit, "base", 8),
        "vitb16": partial(_vit, "base", 16),
    }

    def __init__(
        self, weights: Path | str | None, arch: str, normalise_features: bool, use_multi_scale: bool = False
    ) -> None:
        super().__init__()
        if arch not in self.constructors:
            raise ValueError(f"ViTExtractor has no architecture {arch!r}; there are {', '.join(self.constructors)}.")
        self.model = self.constructors[arch]()
        if weights is not None:
            load_weights(self.model, weights)
        self.arch = arch
        self.patch_size = int(arch.removeprefix("vits").removeprefix("vitb"))
        self.normalise_features = normalise_features
        self.mscale = use_multi_scale

    @property
    def feat_dim(self) -> int:
        """Size of an embedding."""
        return int(self.model.num_features)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch dim"]:
        """Embeddings of normalised images."""
        if self.mscale:
            scales = (1.0, 2**-0.5, 0.5)
            embeddings = torch.stack([self._embed(_scaled(x, scale)) for scale in scales]).mean(dim=0)
        else:
            embeddings = self._embed(x)
        return normalise(embeddings) if self.normalise_features else embeddings

    def _embed(self, x: Tensor) -> Tensor:
        height, width = (side // self.patch_size * self.patch_size for side in x.shape[-2:])
        if not height or not width:
            raise ValueError(
                f"ViTExtractor({self.arch}) needs images of at least one patch, {self.patch_size} x {self.patch_size} "
                f"pixels at each scale, got {tuple(x.shape)}."
            )
        return self.model(x[..., :height, :width])


def _scaled(x: Tensor, scale: float) -> Tensor:
    return x if scale == 1 else F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)
