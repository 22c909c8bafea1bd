"""Models of pairs: how unlike two items are."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import MLP

from oml.functional.distances import elementwise_dist
from oml.interfaces.models import IExtractor, IPairwiseModel
from oml.models.meta.backbone import WithBackbone
from oml.models.utils import check_image_pairs, load_weights

_Images = Float[Tensor, "batch channel height width"]
_Distances = Float[Tensor, " batch"]


class LinearTrivialDistanceSiamese(IPairwiseModel):
    """Euclidean distances between embeddings after a linear map without bias, the same for both sides.

    Args:
        feat_dim: size of the embeddings, before the map and after.
        identity_init: start with the identity, so with plain distances, not with random weights.
        weights: the path of a checkpoint to load instead.

    Raises:
        ValueError: The checkpoint does not fit, see :func:`oml.models.utils.load_weights`.
        FileNotFoundError: There is no file ``weights``.

    Example:
        >>> model = LinearTrivialDistanceSiamese(feat_dim=2, identity_init=True)
        >>> model.predict(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]])).detach()
        tensor([5.])
    """

    pretrained_models: ClassVar[dict[str, dict[str, Any]]] = {}

    def __init__(self, feat_dim: int, identity_init: bool, weights: Path | str | None = None) -> None:
        super().__init__()
        self.feat_dim = feat_dim
        self.proj = nn.Linear(feat_dim, feat_dim, bias=False)
        if identity_init:
            nn.init.eye_(self.proj.weight)
        if weights is not None:
            load_weights(self, weights)

    def forward(self, x1: Float[Tensor, "batch dim"], x2: Float[Tensor, "batch dim"]) -> _Distances:
        """Distances of embeddings."""
        return elementwise_dist(self.proj(x1), self.proj(x2))

    def predict(self, x1: Float[Tensor, "batch dim"], x2: Float[Tensor, "batch dim"]) -> _Distances:
        """The same as :meth:`forward`."""
        return self.forward(x1, x2)


class TrivialDistanceSiamese(IPairwiseModel):
    """Euclidean distances between the embeddings that an extractor makes.

    Args:
        extractor: makes the embeddings.

    Example:
        >>> from oml.models import TimmExtractor
        >>> model = TrivialDistanceSiamese(TimmExtractor(None, "resnet10t")).eval()
        >>> images = torch.randn(2, 3, 32, 32)
        >>> model.predict(images, images).detach()
        tensor([0., 0.])
    """

    pretrained_models: ClassVar[dict[str, dict[str, Any]]] = {}

    def __init__(self, extractor: IExtractor) -> None:
        super().__init__()
        self.extractor = extractor

    def forward(self, x1: _Images, x2: _Images) -> _Distances:
        """Distances of images."""
        return elementwise_dist(self.extractor(x1), self.extractor(x2))

    def predict(self, x1: _Images, x2: _Images) -> _Distances:
        """The same as :meth:`forward`."""
        return self.forward(x1, x2)


class ConcatSiamese(WithBackbone, IPairwiseModel):
    """How unlike two images are, of both in one picture: the first above the second, so layers see them together.

    An extractor makes an embedding of the picture of twice the height, and a perceptron a logit of it. Train the
    logits to tell negative pairs from positive ones, with ``BCEWithLogitsLoss``; the sigmoid that :meth:`predict`
    gives is a distance from 0 to 1.

    A frozen backbone gets no gradients and is in evaluation mode also in training, see :meth:`freeze`.

    Args:
        extractor: makes embeddings of pictures of any height.
        mlp_hidden_dims: sizes of the hidden layers of the perceptron, which have sigmoids and dropout.
        use_tta: predict the mean for both orders of the images, so that it does not depend on the order.
        weights: ``None``, to leave those of ``extractor`` and have a random perceptron, or the path of a checkpoint
            of both.

    Raises:
        ValueError: The checkpoint does not fit, see :func:`oml.models.utils.load_weights`.
        FileNotFoundError: There is no file ``weights``.

    Example:
        >>> from oml.models import TimmExtractor
        >>> model = ConcatSiamese(TimmExtractor(None, "resnet10t"), mlp_hidden_dims=[64]).eval()
        >>> model.predict(torch.randn(2, 3, 32, 32), torch.randn(2, 3, 32, 32)).shape
        torch.Size([2])
    """

    pretrained_models: ClassVar[dict[str, dict[str, Any]]] = {}

    def __init__(
        self,
        extractor: IExtractor,
        mlp_hidden_dims: Sequence[int],
        use_tta: bool = False,
        weights: Path | str | None = None,
    ) -> None:
        super().__init__(extractor, train_backbone=True)
        self.use_tta = use_tta
        self.head = MLP(extractor.feat_dim, [*mlp_hidden_dims, 1], activation_layer=nn.Sigmoid, dropout=0.5)
        # a logit has no threshold to shift, and noise on it is none that a layer could learn to bear
        self.head[-2] = nn.Linear([extractor.feat_dim, *mlp_hidden_dims][-1], 1, bias=False)
        self.head[-1] = nn.Identity()
        if weights is not None:
            load_weights(self, weights)

    def forward(self, x1: _Images, x2: _Images) -> _Distances:
        """Logits of being a negative pair."""
        check_image_pairs(self, x1, x2)
        return self.head(self.run_backbone(torch.cat([x1, x2], dim=2)))[:, 0]

    def predict(self, x1: _Images, x2: _Images) -> _Distances:
        """Distances from 0 to 1."""
        distances = self.forward(x1, x2).sigmoid()
        return (distances + self.forward(x2, x1).sigmoid()) / 2 if self.use_tta else distances
