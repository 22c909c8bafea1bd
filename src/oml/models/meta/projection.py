"""An extractor with a head that makes embeddings out of its embeddings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor
from torchvision.ops import MLP

from oml.interfaces.models import IExtractor
from oml.models.meta.backbone import WithBackbone
from oml.models.resnet.extractor import ResnetExtractor
from oml.models.timm_extractor import TimmExtractor
from oml.models.utils import load_weights
from oml.models.vit_clip.extractor import ViTCLIPExtractor
from oml.models.vit_dino.extractor import ViTExtractor
from oml.models.vit_unicom.extractor import ViTUnicomExtractor
from oml.models.zoo import pretrained_models_of

#: extractors by the names that configs know them by
BACKBONES: dict[str, type[IExtractor]] = {
    "resnet": ResnetExtractor,
    "timm": TimmExtractor,
    "vit": ViTExtractor,
    "vit_clip": ViTCLIPExtractor,
    "vit_unicom": ViTUnicomExtractor,
}


class ExtractorWithMLP(WithBackbone, IExtractor):
    """An extractor, and a perceptron that projects its embeddings: linear layers with ReLU in between.

    Unless ``train_backbone``, only the projection learns until :meth:`unfreeze`. A frozen backbone gets no gradients
    and is in evaluation mode also in training, so that statistics of its BatchNorm layers stay as they are, and its
    dropout is off.

    Args:
        extractor: the backbone.
        mlp_features: sizes of the layers; the last one is that of the embeddings.
        weights: ``None``, to leave those of ``extractor`` and have a random projection; a name out of
            ``pretrained_models``; or the path of a checkpoint of both.
        train_backbone: whether the backbone learns as well.

    Raises:
        ValueError: ``mlp_features`` is empty, or the checkpoint does not fit, see
            :func:`oml.models.utils.load_weights`.
        FileNotFoundError: ``weights`` is neither a name nor a file.

    Example:
        >>> backbone = ResnetExtractor(None, "resnet18", gem_p=None, remove_fc=True, normalise_features=False)
        >>> extractor = ExtractorWithMLP(backbone, mlp_features=[256, 64]).eval()
        >>> extractor(torch.randn(2, 3, 64, 64)).shape
        torch.Size([2, 64])
    """

    pretrained_models: ClassVar[dict[str, dict[str, Any]]] = pretrained_models_of("ExtractorWithMLP")

    def __init__(
        self,
        extractor: IExtractor,
        mlp_features: Sequence[int],
        weights: Path | str | None = None,
        train_backbone: bool = False,
    ) -> None:
        super().__init__(extractor, train_backbone)
        if not mlp_features:
            raise ValueError("ExtractorWithMLP needs the size of one layer or more as mlp_features, got none.")
        self.mlp_features = list(mlp_features)
        self.projection = MLP(extractor.feat_dim, self.mlp_features)
        if weights is not None:
            load_weights(self, weights)

    @property
    def feat_dim(self) -> int:
        """Size of an embedding."""
        return self.mlp_features[-1]

    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch dim"]:
        """Embeddings of normalised images."""
        return self.projection(self.run_backbone(x))

    @classmethod
    def from_pretrained(cls, weights: str) -> "ExtractorWithMLP":
        """The extractor with pretrained weights, by a name out of ``pretrained_models``.

        Raises:
            KeyError: There is no such name; the text has the near ones.
        """
        if weights not in cls.pretrained_models:
            return super().from_pretrained(weights)
        args = dict(cls.pretrained_models[weights]["init_args"])
        backbone = args.pop("extractor")
        return cls(BACKBONES[backbone["name"]](**backbone["args"]), weights=weights, **args)
