"""A model of pairs that looks for the parts of one image in the other."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import interpolate, scaled_dot_product_attention

from oml.functional.distances import elementwise_dist, normalise
from oml.interfaces.models import IExtractor, IPairwiseModel
from oml.models.meta.backbone import WithBackbone
from oml.models.utils import check_image_pairs, load_weights

_Images = Float[Tensor, "batch channel height width"]
_Distances = Float[Tensor, " batch"]
_PROBE = 64  # side of the image that tells how many channels the layers have


class CrossAttentionSiamese(WithBackbone, IPairwiseModel):
    """How unlike two images are: the distance of their embeddings, put right by how their parts differ.

    An extractor sees each image on its own; feature maps of some of its layers become tokens, one for each position.
    Every token of an image attends to those of the other, to like ones and to those around the same place, and a
    perceptron compares it with what it found there. The mean and the maximum over positions, summed over both
    directions, make a correction of the distance. The logit of being a negative pair is
    ``scale * (distance - middle) + correction``, of embeddings scaled to unit length. The correction is 0 at first, so
    an untrained model ranks as the extractor does, and what it learns is where that is wrong. The order of the two
    images does not matter. Train it with ``BCEWithLogitsLoss``.

    The extractor sees an image once, in however many pairs of a batch it is;
    :class:`~oml.models.meta.siamese.ConcatSiamese` has to see every pair. With a frozen extractor that is all there is
    to compute but a small head.

    Aligning the parts of two images by attention is from LoFTR (Sun et al. 2021) and SuperGlue (Sarlin et al. 2020);
    here it is one layer. A comparison of aligned tokens is that of decomposable attention (Parikh et al. 2016).

    Args:
        extractor: makes embeddings of images.
        layers: names of submodules of ``extractor`` that make maps (batch, channel, height, width); maps of other sizes
            are resized to that of the first.
        dim: size of the tokens.
        n_heads: heads of the attention, a divisor of ``dim``; they start with different ideas of how near is near.
        train_backbone: whether the extractor learns too, see :meth:`freeze`.
        weights: ``None``, to leave those of ``extractor`` and have no correction yet, or the path of a checkpoint of
            both.

    Raises:
        ValueError: ``layers`` are not such, ``n_heads`` does not divide ``dim``, or the checkpoint does not fit, see
            :func:`oml.models.utils.load_weights`.
        FileNotFoundError: There is no file ``weights``.

    Example:
        >>> from oml.models import TimmExtractor
        >>> extractor = TimmExtractor(None, "resnet10t")
        >>> model = CrossAttentionSiamese(extractor, layers=["model.layer2", "model.layer3"]).eval()
        >>> model.predict(torch.randn(2, 3, 32, 32), torch.randn(2, 3, 32, 32)).shape
        torch.Size([2])
    """

    pretrained_models: ClassVar[dict[str, dict[str, Any]]] = {}

    def __init__(
        self,
        extractor: IExtractor,
        layers: Sequence[str],
        dim: int = 64,
        n_heads: int = 4,
        train_backbone: bool = False,
        weights: Path | str | None = None,
    ) -> None:
        super().__init__(extractor, train_backbone=train_backbone)
        if n_heads < 1 or dim % n_heads:
            raise ValueError(f"CrossAttentionSiamese needs n_heads that divide dim={dim}, got {n_heads}.")
        self.layers, self.n_heads = _checked_layers(extractor, layers), n_heads
        n_channels = self._n_channels()
        self.tokens = nn.Sequential(nn.LayerNorm(n_channels), nn.Linear(n_channels, dim))
        self.key = nn.Linear(dim, dim)
        self.log_width = nn.Parameter(torch.linspace(-0.5, 1.5, n_heads))  # in positions
        self.parts = nn.Sequential(nn.Linear(3 * dim, dim), nn.GELU(), nn.Linear(dim, dim), nn.GELU())
        self.correction = nn.Sequential(nn.Linear(2 * dim, dim), nn.GELU(), nn.Linear(dim, 1, bias=False))
        nn.init.zeros_(self.correction[2].weight)  # pyright: ignore[reportArgumentType]
        self.scale, self.middle = nn.Parameter(torch.tensor(10.0)), nn.Parameter(torch.tensor(0.7))
        if weights is not None:
            load_weights(self, weights)

    def forward(self, x1: _Images, x2: _Images) -> _Distances:
        """Logits of being a negative pair."""
        check_image_pairs(self, x1, x2)
        rows, places = torch.cat([x1, x2]).flatten(1).unique(dim=0, return_inverse=True)
        return self.compare(*self.encode(rows.view(-1, *x1.shape[1:])), *places.chunk(2))

    def predict(self, x1: _Images, x2: _Images) -> _Distances:
        """Distances from 0 to 1."""
        return self.forward(x1, x2).sigmoid()

    def encode(self, x: _Images) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch map row column"]]:
        """Embeddings of unit length, and the maps of all layers on top of each other."""
        with _outputs(self.extractor, self.layers) as found:
            embeddings = normalise(self.run_backbone(x))
        size = found[0].shape[2:]
        resized = [one if one.shape[2:] == size else interpolate(one, size, mode="bilinear") for one in found]
        return embeddings, torch.cat(resized, dim=1)

    def compare(
        self,
        embeddings: Float[Tensor, "image dim"],
        maps: Float[Tensor, "image map row column"],
        ids1: Int[Tensor, " pair"],
        ids2: Int[Tensor, " pair"],
    ) -> Float[Tensor, " pair"]:
        """Logits of pairs of images by what :meth:`encode` made of them, given their positions in it."""
        tokens = self.tokens(maps.flatten(2).transpose(1, 2))
        here, there = torch.cat([ids1, ids2]), torch.cat([ids2, ids1])
        keys = self._by_head(self.key(tokens))
        found = scaled_dot_product_attention(
            keys[here], keys[there], self._by_head(tokens)[there], attn_mask=self._nearness(maps)
        )
        own, found = tokens[here], found.transpose(1, 2).flatten(2)
        parts = self.parts(torch.cat([(own - found).abs(), own * found, own], dim=2))
        there_and_back = torch.cat([parts.mean(dim=1), parts.amax(dim=1)], dim=1).chunk(2)
        distances = elementwise_dist(embeddings[ids1], embeddings[ids2])
        return self.scale * (distances - self.middle) + self.correction(sum(there_and_back))[:, 0]

    def _by_head(self, tokens: Float[Tensor, "image place dim"]) -> Float[Tensor, "image head place part"]:
        return tokens.unflatten(2, (self.n_heads, -1)).transpose(1, 2)

    def _nearness(self, maps: Tensor) -> Float[Tensor, "head place place"]:
        """What the attention of each head adds to its logits: less the farther apart two positions are."""
        rows, columns = (torch.arange(n, device=maps.device, dtype=maps.dtype) for n in maps.shape[2:])
        places = torch.cartesian_prod(rows, columns)
        squares = (places[:, None] - places).square().sum(dim=2)
        return -squares / (2 * self.log_width.exp().square())[:, None, None]

    def _n_channels(self) -> int:
        like: Any = next(self.extractor.parameters(), torch.zeros(()))
        was_training = self.extractor.training
        with torch.no_grad(), _outputs(self.extractor.eval(), self.layers) as found:
            self.extractor(like.new_zeros(1, 3, _PROBE, _PROBE))
        self.extractor.train(was_training)
        for name, one in zip(self.layers, found, strict=True):
            if not isinstance(one, Tensor) or one.ndim != 4:
                what = tuple(one.shape) if isinstance(one, Tensor) else type(one).__name__
                raise ValueError(
                    "CrossAttentionSiamese needs layers that make maps (batch, channel, height, width), "
                    f"{name!r} makes {what}."
                )
        return sum(one.shape[1] for one in found)


def _checked_layers(extractor: nn.Module, layers: Sequence[str]) -> list[str]:
    if isinstance(layers, str) or not layers:
        raise ValueError(f"CrossAttentionSiamese needs a list of names of layers, one or more, got {layers!r}.")
    there = [name for name, _ in extractor.named_modules() if name]
    for name in layers:
        if name not in there:
            near = get_close_matches(name, there)
            hint = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(there[:20])} ..."
            raise ValueError(f"The {type(extractor).__name__} has no layer {name!r}; {hint}")
    return list(layers)


@contextmanager
def _outputs(extractor: nn.Module, layers: Sequence[str]) -> Iterator[list[Any]]:
    """What the layers give while the extractor runs in this context, in the order of ``layers``."""
    found: list[Any] = [None] * len(layers)

    def keeper(place: int) -> Any:
        def keep(_module: nn.Module, _args: Any, output: Any) -> None:
            found[place] = output

        return keep

    handles = [extractor.get_submodule(name).register_forward_hook(keeper(place)) for place, name in enumerate(layers)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
