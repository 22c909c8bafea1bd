"""ResNets of torchvision."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torchvision
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.resnet import ResNet

from oml.functional.distances import normalise
from oml.interfaces.models import IExtractor
from oml.models.fine_tuning import checkpoint_stages
from oml.models.pictures import TPicture, draw_gradcam
from oml.models.resnet.pooling import GEM
from oml.models.utils import build, check_images, unknown_arch
from oml.models.zoo import pretrained_models_of


def resnet50_projector() -> ResNet:
    """ResNet50 with the head of MoCo v2 (Chen et al. 2020) in place of the classifier: two layers, to 128 numbers."""
    model = torchvision.models.resnet50()
    width = model.fc.in_features
    model.fc = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 128))  # pyright: ignore[reportAttributeAccessIssue]
    return model


def _torchvision_resnets() -> dict[str, Callable[[], ResNet]]:
    names = torchvision.models.list_models(torchvision.models)
    constructors = {name: getattr(torchvision.models, name) for name in names}
    return {name: one for name, one in constructors.items() if one.__module__ == ResNet.__module__}


class ResnetExtractor(IExtractor):
    """A ResNet of torchvision; takes images of any size. See :class:`TimmExtractor` for other convolutional networks.

    Args:
        weights: ``None`` for random weights, a name out of ``pretrained_models``, or the path of a checkpoint; if
            ``remove_fc``, it may be one with or without ``fc``.
        arch: a name out of ``constructors``: torchvision's, such as ``resnet18`` or ``resnet50``, or
            ``resnet50_projector``, whose ``fc`` is the two-layer head of MoCo v2.
        gem_p: power of the generalised mean that pools the last feature map, see :class:`GEM`; ``None`` for the
            average.
        remove_fc: whether embeddings are the pooled feature map (512 numbers for ``resnet18`` and ``resnet34``, else
            2048), without ``fc`` (1000, or 128 for ``resnet50_projector``).
        normalise_features: whether embeddings are scaled to unit length.

    Raises:
        ValueError: There is no such architecture, the named weights are of another one, or the checkpoint does not
            fit, see :func:`oml.models.utils.load_weights`.
        FileNotFoundError: ``weights`` is neither a name nor a file.

    Example:
        >>> extractor = ResnetExtractor(None, "resnet18", gem_p=3, remove_fc=True, normalise_features=True).eval()
        >>> extractor(torch.randn(2, 3, 64, 48)).shape
        torch.Size([2, 512])
    """

    constructors: ClassVar[dict[str, Callable[[], ResNet]]] = {
        **_torchvision_resnets(),
        "resnet50_projector": resnet50_projector,
    }
    pretrained_models: ClassVar[dict[str, dict[str, Any]]] = pretrained_models_of("ResnetExtractor")

    def __init__(
        self,
        weights: Path | str | None,
        arch: str,
        gem_p: int | float | None,
        remove_fc: bool,
        normalise_features: bool,
    ) -> None:
        super().__init__()
        if arch not in self.constructors:
            raise ValueError(unknown_arch("ResnetExtractor", arch, self.constructors))
        if weights in self.pretrained_models:
            own = self.pretrained_models[str(weights)]["init_args"]["arch"]
            if own != arch:
                raise ValueError(f"The weights {weights!r} are of the architecture {own!r}, got arch={arch!r}.")

        def make() -> ResNet:
            model = self.constructors[arch]()
            if gem_p is not None:
                model.avgpool = GEM(gem_p)  # pyright: ignore[reportAttributeAccessIssue]
            if remove_fc:
                model.fc = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
            return model

        self.model = build(make, weights)
        self.arch = arch
        self.gem_p = gem_p
        self.remove_fc = remove_fc
        self.normalise_features = normalise_features

    @property
    def feat_dim(self) -> int:
        """Size of an embedding."""
        linear = [layer for layer in self.model.fc.modules() if isinstance(layer, nn.Linear)]
        return linear[-1].out_features if linear else self.get_last_conv_channels()

    def get_last_conv_channels(self) -> int:
        """Channels of the last feature map."""
        block: Any = self.model.layer4[-1]
        return (block.conv3 if hasattr(block, "conv3") else block.conv2).out_channels

    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch dim"]:
        """Embeddings of normalised images."""
        check_images(self, x)
        embeddings = self.model(x)
        return normalise(embeddings) if self.normalise_features else embeddings

    def draw_gradcam(self, image: TPicture, target: TPicture | None = None) -> TPicture:
        """The image under a heat map of what speaks for its class, see :func:`oml.models.pictures.draw_gradcam`.

        Args:
            image: uint8, ``(height, width, 3)``, or of PIL, of any size; not normalised.
            target: a second image: then the map shows what makes the embeddings of both alike.

        Returns:
            A picture of the same type and size.

        Raises:
            ValueError: There are no classes, as ``fc`` is removed, and no second image.
        """
        if target is None and self.remove_fc:
            raise ValueError(
                "ResnetExtractor.draw_gradcam shows what speaks for a class, and with remove_fc=True there is none: "
                "build the extractor with remove_fc=False, or give a second image as target."
            )
        return draw_gradcam(self, image, target)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory in training, see :func:`oml.models.fine_tuning.checkpoint_stages`."""
        checkpoint_stages(self.model, enable)
