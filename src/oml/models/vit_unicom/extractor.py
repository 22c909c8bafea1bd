"""The vision transformers of Unicom, on timm's."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from jaxtyping import Float
from timm.layers.norm import LayerNormFp32
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from oml.const import MEAN_CLIP, STD_CLIP
from oml.functional.distances import normalise
from oml.interfaces.models import IExtractor
from oml.models.pictures import TPicture, vis_vit
from oml.models.utils import VIT_SIZES, build, check_images, unknown_arch
from oml.models.zoo import pretrained_models_of


class _UnicomTransformer(VisionTransformer):
    """timm's vision transformer as Unicom has it: no class token, ReLU6, and a head on all tokens together."""

    def __init__(self, size: str, patch: int, image: int, dim: int) -> None:
        super().__init__(
            img_size=image,
            patch_size=patch,
            num_classes=0,
            global_pool="",
            class_token=False,
            qkv_bias=False,
            drop_path_rate=0.1,
            norm_layer=partial(LayerNormFp32, eps=1e-5),
            act_layer=nn.ReLU6,
            **VIT_SIZES[size],
        )
        self.feature = nn.Sequential(
            nn.Linear(self.patch_embed.num_patches * self.embed_dim, self.embed_dim, bias=False),
            nn.BatchNorm1d(self.embed_dim, eps=2e-5),
            nn.Linear(self.embed_dim, dim, bias=False),
            nn.BatchNorm1d(dim, eps=2e-5),
        )

    @property
    def grad_checkpointing(self) -> bool:
        """Whether activations are computed anew in the backward pass: in training, if that is switched on."""
        return self.training and self._grad_checkpointing

    @grad_checkpointing.setter
    def grad_checkpointing(self, enable: bool) -> None:
        self._grad_checkpointing = enable

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:  # noqa: ARG002 (timm's signature)
        return self.feature(x.flatten(1))


class ViTUnicomExtractor(IExtractor):
    """Vision transformer of Unicom; the embedding is a small network's view of all tokens after the last norm.

    Takes images of the one size that it was built for, as the head has a weight for each patch. Norms are computed in
    float32, also under autocast; else it works in the precision of the trainer. In training it has stochastic
    depth (0 in the first block to 0.1 in the last) and batch normalisation, so that a batch needs two or more images.

    Source: An et al. 2023, "Unicom: universal and compact representation learning for image retrieval".

    Args:
        weights: ``None`` for random weights, a name out of ``pretrained_models``, or the path of a checkpoint with
            the names of Unicom, under whatever prefix.
        arch: ``vitb32_unicom`` (embeddings of 512 numbers), ``vitb16_unicom``, ``vitl14_unicom`` (768) for images of
            224 x 224 pixels, or ``vitl14_336px_unicom`` (768) for 336 x 336.
        normalise_features: whether embeddings are scaled to unit length.

    Attributes:
        model: timm's module, whose ``set_grad_checkpointing()`` trades time for memory in training; it is off at first.

    Raises:
        ValueError: There is no such architecture, or the checkpoint is of another one.
        FileNotFoundError: There is no such file, nor such a name in the zoo.

    Example:
        >>> import torch
        >>> extractor = ViTUnicomExtractor(None, "vitb32_unicom", normalise_features=False).eval()
        >>> extractor(torch.randn(2, 3, 224, 224)).shape
        torch.Size([2, 512])
    """

    constructors: ClassVar[dict[str, Callable[[], nn.Module]]] = {
        "vitb32_unicom": partial(_UnicomTransformer, "b", 32, 224, 512),
        "vitb16_unicom": partial(_UnicomTransformer, "b", 16, 224, 768),
        "vitl14_unicom": partial(_UnicomTransformer, "l", 14, 224, 768),
        "vitl14_336px_unicom": partial(_UnicomTransformer, "l", 14, 336, 768),
    }
    pretrained_models: ClassVar[dict[str, dict[str, Any]]] = pretrained_models_of("ViTUnicomExtractor")

    def __init__(self, weights: Path | str | None, arch: str, normalise_features: bool) -> None:
        super().__init__()
        if arch not in self.constructors:
            raise ValueError(unknown_arch("ViTUnicomExtractor", arch, self.constructors))
        self.model = build(self.constructors[arch], weights)
        self.arch = arch
        self.normalise_features = normalise_features

    @property
    def feat_dim(self) -> int:
        """Size of an embedding."""
        return self.model.feature[-1].num_features  # pyright: ignore[reportReturnType, reportIndexIssue, reportAttributeAccessIssue]

    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch dim"]:
        """Embeddings of normalised images.

        Raises:
            TypeError, ValueError: if these are no images, or of another size.
        """
        check_images(self, x)
        side = 336 if "336px" in self.arch else 224
        if x.shape[-2:] != (side, side):
            raise ValueError(
                f"ViTUnicomExtractor({self.arch}) needs images of {side} x {side} pixels, got {tuple(x.shape)}: "
                "resize them, or take an architecture of any size, such as ViTExtractor."
            )
        embeddings = self.model(x)
        return normalise(embeddings) if self.normalise_features else embeddings

    def draw_attention(self, image: TPicture) -> TPicture:
        """The image under a heat map of where the network attends to, see :func:`oml.models.pictures.vis_vit`.

        Args:
            image: uint8, ``(height, width, 3)``, or of PIL, of any size: it is resized; not normalised.

        Returns:
            A picture of the same type and size.
        """
        return vis_vit(self.model, image, MEAN_CLIP, STD_CLIP)
