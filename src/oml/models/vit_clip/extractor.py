"""The vision transformers of CLIP, on timm's."""

import re
from collections.abc import Callable, Mapping
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
from oml.models.utils import VIT_SIZES, TStateDict, build, check_images, unknown_arch, whole_patches
from oml.models.zoo import pretrained_models_of

# OpenAI's names of modules and tensors, and timm's
_NAMES = {
    "class_embedding": "cls_token",
    "positional_embedding": "pos_embed",
    "conv1": "patch_embed.proj",
    "ln_pre": "norm_pre",
    "transformer.resblocks": "blocks",
    "ln_1": "norm1",
    "attn.in_proj_weight": "attn.qkv.weight",
    "attn.in_proj_bias": "attn.qkv.bias",
    "attn.out_proj": "attn.proj",
    "ln_2": "norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "ln_post": "norm",
}
_NAME = re.compile(rf"(?<![^.])({'|'.join(map(re.escape, _NAMES))})(?![^.])")

_EMBEDDING = {"b": 512, "l": 768}


class _CLIPTransformer(VisionTransformer):
    """timm's vision transformer as CLIP has it: a norm before the blocks, quick-GELU, a projection without bias."""

    def __init__(self, size: str, patch: int, image: int) -> None:
        super().__init__(
            img_size=image,
            patch_size=patch,
            num_classes=_EMBEDDING[size],
            pre_norm=True,
            norm_layer=partial(LayerNormFp32, eps=1e-5),
            act_layer="quick_gelu",
            dynamic_img_size=True,
            **VIT_SIZES[size],
        )
        self.head = nn.Linear(self.embed_dim, self.num_classes, bias=False)
        nn.init.normal_(self.head.weight, std=self.embed_dim**-0.5)

    @staticmethod
    def translate(checkpoint: Mapping[str, Tensor]) -> TStateDict:
        """OpenAI's checkpoint, whatever prefix its names have, with timm's names and shapes."""
        state = {}
        for name, tensor in checkpoint.items():
            prefix, _, last = name.rpartition(".")
            if last == "proj":
                name, tensor = f"{prefix}.head.weight".removeprefix("."), tensor.T
            elif last == "class_embedding":
                tensor = tensor[None, None]
            elif last == "positional_embedding":
                tensor = tensor[None]
            state[_NAME.sub(lambda match: _NAMES[match[1]], name)] = tensor
        return state


class ViTCLIPExtractor(IExtractor):
    """Visual tower of CLIP; the embedding is the projection of the class token, which CLIP compares with texts.

    Takes images of the size for which it was built and of any other with at least one patch: then position embeddings
    are resampled as timm does, bicubically with antialiasing, and pixels beyond the last whole patch, right and below,
    are left out. (The original takes one size only.) Norms are computed in float32, also under autocast.

    Source: Radford et al. 2021, "Learning transferable visual models from natural language supervision".

    Args:
        weights: ``None`` for random weights, a name out of ``pretrained_models``, or the path of a checkpoint: one of
            OpenAI, be it a TorchScript archive or a ``state_dict``, with or without the text tower, or of our own.
        arch: ``vit``, ``b`` (base, embeddings of 512 numbers) or ``l`` (large, 768), the side of a patch (14, 16
            or 32 pixels) and the one of images (224 or 336) that position embeddings are made for; ``vitb16_224``, say.
        normalise_features: whether embeddings are scaled to unit length.

    Attributes:
        visual: timm's module, whose ``set_grad_checkpointing()`` trades time for memory in training.

    Raises:
        KeyError: There is no such architecture.
        ValueError: The checkpoint is of another architecture.
        FileNotFoundError: There is no such file, nor such a name in the zoo.

    Example:
        >>> import torch
        >>> extractor = ViTCLIPExtractor(None, "vitb32_224")
        >>> extractor(torch.randn(2, 3, 224, 224)).norm(dim=1).allclose(torch.ones(2))
        True
    """

    constructors: ClassVar[dict[str, Callable[[], nn.Module]]] = {
        f"vit{size}{patch}_{image}": partial(_CLIPTransformer, size, patch, image)
        for size in _EMBEDDING
        for patch in (14, 16, 32)
        for image in (224, 336)
    }
    pretrained_models: ClassVar[dict[str, dict[str, Any]]] = pretrained_models_of("ViTCLIPExtractor")

    def __init__(self, weights: Path | str | None, arch: str, normalise_features: bool = True) -> None:
        super().__init__()
        if arch not in self.constructors:
            raise KeyError(unknown_arch("ViTCLIPExtractor", arch, self.constructors))
        self.visual = build(self.constructors[arch], weights)
        self.arch = arch
        self.patch_size = int(arch[len("vitb") :].partition("_")[0])
        self.normalise_features = normalise_features

    @property
    def feat_dim(self) -> int:
        """Size of an embedding."""
        return int(self.visual.num_classes)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch dim"]:
        """Embeddings of normalised images.

        Raises:
            TypeError, ValueError: if these are no images, or smaller than a patch.
        """
        check_images(self, x)
        embeddings = self.visual(whole_patches(f"ViTCLIPExtractor({self.arch})", x, self.patch_size))
        return normalise(embeddings) if self.normalise_features else embeddings

    def draw_attention(self, image: TPicture) -> TPicture:
        """The image under a heat map of where the class token attends to, see :func:`oml.models.pictures.vis_vit`.

        Args:
            image: uint8, ``(height, width, 3)``, or of PIL, of any size with at least one patch; not normalised.

        Returns:
            A picture of the same type and size.
        """
        return vis_vit(self.visual, image, MEAN_CLIP, STD_CLIP)
