"""The vision transformers of DINO, on timm's."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from oml.functional.distances import normalise
from oml.interfaces.models import IExtractor
from oml.models.pictures import TPicture, vis_vit
from oml.models.utils import PATCHES, VIT_SIZES, build, check_images, unknown_arch, whole_patches
from oml.models.zoo import pretrained_models_of


class _DINOTransformer(VisionTransformer):
    """timm's vision transformer with DINO's interpolation of position embeddings, which differs from timm's."""

    def __init__(self, size: str, patch: int) -> None:
        super().__init__(patch_size=patch, num_classes=0, dynamic_img_size=True, **VIT_SIZES[size])
        assert self.cls_token is not None, "it is built with one"
        nn.init.trunc_normal_(self.cls_token, std=0.02)

    def _pos_embed(self, x: Tensor) -> Tensor:
        assert self.cls_token is not None, "it is built with one"
        batch, height, width, _ = x.shape
        tokens = torch.cat([self.cls_token.expand(batch, -1, -1), x.flatten(1, 2)], dim=1)
        return self.pos_drop(tokens + self._positions(height, width))

    def _positions(self, height: int, width: int) -> Tensor:
        """The position embeddings of a grid of patches; :class:`ViTExtractor` has the formula."""
        assert self.pos_embed is not None, "it is built with some"
        grid = self.patch_embed.grid_size
        if (height, width) == grid:
            return self.pos_embed
        token, patches = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        # not all devices have a bicubic kernel for half precision
        patches = patches.float().unflatten(1, grid).permute(0, 3, 1, 2)
        scale = ((height + 0.1) / grid[0], (width + 0.1) / grid[1])
        patches = F.interpolate(patches, scale_factor=scale, mode="bicubic").flatten(2).transpose(1, 2)
        return torch.cat([token, patches.to(token.dtype)], dim=1)


class ViTExtractor(IExtractor):
    """Vision transformer, as DINO trains it; the embedding is the class token after the last norm.

    Takes images of any size with at least one patch. Position embeddings, learnt for a grid of N = n x n patches of an
    image of 224 x 224 pixels, are interpolated bicubically as DINO does: by the scales (height + 0.1) / n and
    (width + 0.1) / n, where height and width count patches. Pixels beyond the last whole patch, right and below, are
    left out.

    Sources: Dosovitskiy et al. 2021, "An image is worth 16x16 words: transformers for image recognition at scale";
    Caron et al. 2021, "Emerging properties in self-supervised vision transformers" (DINO).

    Args:
        weights: ``None`` for random weights, a name out of ``pretrained_models``, or the path of a checkpoint with
            the names of timm and DINO, under whatever prefix.
        arch: ``vit``, a letter for the size and the side of a patch: of ``t`` (tiny, embeddings of 192 numbers),
            ``s`` (small, 384), ``b`` (base, 768) and ``l`` (large, 1024), and 8, 14, 16 and 32 pixels; ``vits16``, say.
        normalise_features: whether embeddings are scaled to unit length.
        use_multi_scale: average the embeddings of the image at the scales 1, 1/sqrt(2) and 1/2, resized bilinearly.

    Attributes:
        model: timm's module, whose ``set_grad_checkpointing()`` trades time for memory in training.

    Raises:
        ValueError: There is no such architecture, or the checkpoint is of another one.
        FileNotFoundError: There is no such file, nor such a name in the zoo.

    Example:
        >>> extractor = ViTExtractor(None, "vits16", normalise_features=True)
        >>> extractor(torch.randn(2, 3, 32, 48)).shape
        torch.Size([2, 384])
    """

    constructors: ClassVar[dict[str, Callable[[], nn.Module]]] = {
        f"vit{size}{patch}": partial(_DINOTransformer, size, patch) for size in VIT_SIZES for patch in PATCHES
    }
    pretrained_models: ClassVar[dict[str, dict[str, Any]]] = pretrained_models_of("ViTExtractor")

    def __init__(
        self, weights: Path | str | None, arch: str, normalise_features: bool, use_multi_scale: bool = False
    ) -> None:
        super().__init__()
        if arch not in self.constructors:
            raise ValueError(unknown_arch("ViTExtractor", arch, self.constructors))
        self.model = build(self.constructors[arch], weights)
        self.arch = arch
        self.patch_size = int(arch[len("vits") :])
        self.normalise_features = normalise_features
        self.mscale = use_multi_scale

    @property
    def feat_dim(self) -> int:
        """Size of an embedding."""
        return int(self.model.num_features)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch dim"]:
        """Embeddings of normalised images.

        Raises:
            TypeError, ValueError: if these are no images, or smaller than a patch.
        """
        check_images(self, x)
        if self.mscale:
            scales = (1.0, 2**-0.5, 0.5)
            embeddings = torch.stack([self._embed(_scaled(x, scale)) for scale in scales]).mean(dim=0)
        else:
            embeddings = self._embed(x)
        return normalise(embeddings) if self.normalise_features else embeddings

    def draw_attention(self, image: TPicture) -> TPicture:
        """The image under a heat map of where the class token attends to, see :func:`oml.models.pictures.vis_vit`.

        Args:
            image: uint8, ``(height, width, 3)``, or of PIL, of any size with at least one patch; not normalised.

        Returns:
            A picture of the same type and size.
        """
        return vis_vit(self.model, image)

    def _embed(self, x: Tensor) -> Tensor:
        return self.model(whole_patches(f"ViTExtractor({self.arch})", x, self.patch_size))


def _scaled(x: Tensor, scale: float) -> Tensor:
    return x if scale == 1 else F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)
