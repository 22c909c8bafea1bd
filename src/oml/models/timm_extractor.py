"""Any backbone of timm as an extractor."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar

import timm
from jaxtyping import Float
from torch import Tensor, nn

from oml.functional.distances import normalise
from oml.interfaces.models import IExtractor
from oml.models.efficientnet_lite0 import packaged_efficientnet_lite0
from oml.models.utils import load_weights


class TimmExtractor(IExtractor):
    """A backbone of timm, pooled as timm pools it, without its classifier.

    Args:
        weights: ``None`` for random weights, a name out of ``pretrained_models``, or the path of a checkpoint of
            this extractor or of the bare backbone.
        arch: timm's name of the architecture, such as ``resnet50`` or ``efficientnet_lite0``.
        normalise_features: whether embeddings are scaled to unit length.

    Attributes:
        model: timm's module. Convolutional ones are about twice as fast on a CPU after
            ``extractor.to(memory_format=torch.channels_last)``.
    """

    pretrained_models: ClassVar[dict[str, dict[str, Any]]] = {
        "efficientnet_lite0_imagenet": {"init_args": {"arch": "efficientnet_lite0"}},
    }

    def __init__(self, weights: str | Path | None, arch: str, normalise_features: bool = False) -> None:
        super().__init__()
        if not timm.is_model(arch):
            near = " or ".join(get_close_matches(arch, timm.list_models(), n=3))
            raise ValueError(f"timm has no architecture {arch!r}{f'; did you mean {near}?' if near else '.'}")
        if weights in self.pretrained_models:
            if arch != (own := self.pretrained_models[str(weights)]["init_args"]["arch"]):
                raise ValueError(f"The weights {weights!r} are of the architecture {own!r}, got arch={arch!r}.")
            self.model: nn.Module = packaged_efficientnet_lite0()
            self.model.reset_classifier(0)  # pyright: ignore[reportCallIssue]
        else:
            self.model = timm.create_model(arch, num_classes=0)
            if weights is not None:
                load_weights(self.model, weights)
        self.arch = arch
        self.normalise_features = normalise_features

    @property
    def feat_dim(self) -> int:
        """Size of an embedding."""
        return int(self.model.num_features)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch dim"]:
        """Embeddings of normalised images."""
        embeddings = self.model(x)
        return normalise(embeddings) if self.normalise_features else embeddings
