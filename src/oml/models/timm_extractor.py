"""Any backbone of timm as an extractor."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar

import timm
import torch
from jaxtyping import Float
from timm.layers import AttentionPool2d, AttentionPoolLatent, RotAttentionPool2d  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor, nn

from oml.const import TNormParam
from oml.functional.distances import normalise
from oml.interfaces.models import IExtractor
from oml.models.efficientnet_lite0 import packaged_efficientnet_lite0
from oml.models.pictures import TPicture, draw_gradcam, vis_vit
from oml.models.resnet.pooling import GEM
from oml.models.utils import TStateDict, check_images, load_weights, read_checkpoint, whole_patches
from oml.models.zoo import ZooEntry, find_entry, pretrained_models_of, weights_path

POOLINGS = ("default", "cls", "avg", "gem", "cls+avg")
_PACKAGED = "efficientnet_lite0_imagenet"


class TimmExtractor(IExtractor):
    """A backbone of timm without its classifier, pooled as you like, with an embedding head if you like.

    Vision transformers take images of any size: their position embeddings are resampled, and pixels beyond the last
    whole patch, right and below, are left out. Convolutional networks take any size too; for networks that are built
    for one (BEiT, Hiera, MaxViT ...) that is ``image_size``.

    Args:
        weights: ``None`` for random weights; a name out of ``pretrained_models``, or any of timm's such as
            ``convnext_tiny.fb_in1k``, whose file is downloaded; or the path of a checkpoint of this extractor or,
            without an embedding head and a learnable power, of the bare backbone, with or without its classifier.
            With weights by name, the embedding head is random.
        arch: timm's name of the architecture, such as ``resnet50`` or ``vit_small_patch16_224``. With a tag, as
            ``convnext_tiny.fb_in1k``, it is that architecture: the tag alone loads no weights.
        normalise_features: whether embeddings are scaled to unit length.
        pooling: what becomes of the last feature map or the last tokens:

            - ``default``: what timm does for this architecture;
            - ``cls``: the class token;
            - ``avg``: the mean over positions, without class and register tokens;
            - ``gem``: the generalised mean over positions, see :class:`oml.models.resnet.pooling.GEM`; for
              convolutional networks, as tokens of transformers have negative values, which it clips;
            - ``cls+avg``: both, one after the other, as for linear probes of DINOv2: twice as many numbers.

            Layers that timm has between its pooling and the classifier, such as ConvNeXt's norm, follow all of them;
            only where timm pools by attention, they take the attention's place.
        gem_p: power of ``gem``.
        learn_gem_p: whether that is a parameter, which starts there.
        embedding_dim: size of the embeddings if they are to be projected by a linear layer.
        batch_norm: whether BatchNorm follows; also without ``embedding_dim``, as the neck of re-identification models
            (Luo et al. 2019).
        dropout: share of the pooled numbers that are dropped in training, before the linear layer.
        image_size: side of the images, or (height, width), of architectures that are built for one size.

    Attributes:
        model: timm's module. Convolutional ones are about twice as fast on a CPU after
            ``extractor.to(memory_format=torch.channels_last)``.

    Raises:
        ValueError: There is no such architecture or pooling, or the architecture has none such; the named weights are
            of another architecture, or the checkpoint does not fit, see :func:`oml.models.utils.load_weights`.
        FileNotFoundError: ``weights`` is neither a name nor a file.
        ModuleNotFoundError: The weights come with a package that is not installed; the text names the extra.

    Example:
        >>> extractor = TimmExtractor(None, "resnet10t", pooling="gem", embedding_dim=64, batch_norm=True).eval()
        >>> extractor(torch.randn(2, 3, 64, 48)).shape
        torch.Size([2, 64])
    """

    pretrained_models: ClassVar[dict[str, dict[str, Any]]] = pretrained_models_of("TimmExtractor")

    def __init__(
        self,
        weights: str | Path | None,
        arch: str,
        normalise_features: bool = False,
        pooling: str = "default",
        gem_p: int | float = 3.0,
        learn_gem_p: bool = False,
        embedding_dim: int | None = None,
        batch_norm: bool = False,
        dropout: int | float = 0.0,
        image_size: int | tuple[int, int] | list[int] | None = None,
    ) -> None:
        super().__init__()
        _check_arch(arch)
        entry = _named(weights)
        if entry is not None:
            _check_entry(entry, arch)
        self.arch = arch
        self.normalise_features = normalise_features
        self.pooling = pooling
        self.image_size = image_size

        packaged = entry is not None and entry.name == _PACKAGED
        self.model, self._patch = (_packaged(), 1) if packaged else self._create()
        self._pools_by_attention = any(
            isinstance(part, AttentionPool2d | AttentionPoolLatent | RotAttentionPool2d)
            for part in self.model.modules()
        )
        self._check_pooling()
        self.gem = GEM(gem_p, learnable=learn_gem_p) if pooling == "gem" else None
        pooled = self._pooled_dim()
        layers = []
        if dropout:
            layers.append(nn.Dropout(dropout))
        if embedding_dim is not None:
            layers.append(nn.Linear(pooled, embedding_dim, bias=not batch_norm))
        if batch_norm:
            layers.append(nn.BatchNorm1d(embedding_dim or pooled))
        self.head = nn.Sequential(*layers)
        self._feat_dim = embedding_dim or pooled
        # pretrained_cfg is of the architecture's first weights; those that are meant can differ
        config: Any = self.model.pretrained_cfg
        config = {**config, **(entry.transforms["args"] if entry else {})}
        self._mean_and_std: tuple[TNormParam, TNormParam] = tuple(config["mean"]), tuple(config["std"])
        if weights is not None and not packaged:
            self._load(weights, entry)

    @property
    def feat_dim(self) -> int:
        """Size of an embedding."""
        return self._feat_dim

    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch dim"]:
        """Embeddings of normalised images."""
        check_images(self, x)
        x = whole_patches(f"TimmExtractor({self.arch})", x, self._patch)
        try:
            embeddings = self.head(self._pool(x))
        except (AssertionError, RuntimeError) as error:
            if not self._refuses(x, error):
                raise
            reason = str(error).rstrip(".") or "it is built for one size"
            raise ValueError(
                f"TimmExtractor({self.arch}) does not take images of shape {tuple(x.shape)}: {reason}. "
                "Resize them, or build it with image_size=(height, width)."
            ) from error
        return normalise(embeddings) if self.normalise_features else embeddings

    def draw_attention(self, image: TPicture) -> TPicture:
        """The image under a heat map of where a vision transformer looks, see :func:`oml.models.pictures.vis_vit`.

        Args:
            image: uint8, ``(height, width, 3)``, or of PIL; not normalised, as the weights' configuration says how.

        Returns:
            A picture of the same type and size.

        Raises:
            ValueError: The backbone is no vision transformer, or its attention is of another kind.
        """
        return vis_vit(self, image, *self._mean_and_std)

    def draw_gradcam(self, image: TPicture, target: TPicture | None = None) -> TPicture:
        """The image under a heat map of what makes its embedding long, see :func:`oml.models.pictures.draw_gradcam`.

        A backbone without its classifier has no classes, and the more it recognises the longer its embedding is.

        Args:
            image: uint8, ``(height, width, 3)``, or of PIL; not normalised, as the weights' configuration says how.
            target: a second image: then the map shows what makes the embeddings of both alike.

        Returns:
            A picture of the same type and size.

        Raises:
            ValueError: The backbone ends in no feature map, as vision transformers do.
        """
        goal = target if target is not None else lambda embeddings: embeddings.norm(dim=1)
        return draw_gradcam(self, image, goal, *self._mean_and_std)

    @classmethod
    def from_pretrained(cls, weights: str) -> "TimmExtractor":
        """The extractor with pretrained weights, by a name out of ``pretrained_models`` or any of timm's.

        Example, which downloads::

            extractor = TimmExtractor.from_pretrained("convnext_tiny.fb_in1k")

        Raises:
            KeyError: There is no such name; the text has the near ones.
        """
        try:
            entry = find_entry(weights)
        except KeyError as error:
            raise KeyError(f"{cls.__name__} has no pretrained weights {weights!r}. {error.args[0]}") from None
        if entry.extractor != "TimmExtractor":
            raise KeyError(
                f"{cls.__name__} has no pretrained weights {weights!r}, they are for {entry.extractor}: "
                f"{entry.extractor}.from_pretrained({weights!r})."
            )
        return cls(weights, **entry.init_args)

    def _create(self, **args: Any) -> tuple[nn.Module, int]:
        """timm's module, and the side of the patches that images are to consist of."""
        if self.image_size is not None:
            args["img_size"] = self.image_size
        args.setdefault("num_classes", 0)
        try:
            model = timm.create_model(self.arch, dynamic_img_size=True, **args)
        except TypeError:  # constructors of other architectures have no such argument
            try:
                return timm.create_model(self.arch, **args), 1
            except TypeError as error:
                if "img_size" not in str(error):
                    raise
                raise ValueError(
                    f"TimmExtractor({self.arch}) takes images of any size: leave image_size out, got {self.image_size}."
                ) from error
        patch: Any = getattr(model.patch_embed, "patch_size", 1)
        return model, patch if isinstance(patch, int) else max(patch)

    def _check_pooling(self) -> None:
        if self.pooling not in POOLINGS:
            near = get_close_matches(self.pooling, POOLINGS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(POOLINGS)}."
            raise ValueError(f"TimmExtractor has no pooling {self.pooling!r}; {hint}")
        has_token = getattr(self.model, "cls_token", None) is not None and hasattr(self.model, "num_prefix_tokens")
        if "cls" in self.pooling and not has_token:
            raise ValueError(f"{self.arch} has no class token, which the pooling {self.pooling!r} needs.")

    def _pooled_dim(self) -> int:
        model: Any = self.model
        without_head = self._pools_by_attention and self.pooling != "default"
        dim = model.num_features if without_head else model.head_hidden_size
        return dim * (2 if self.pooling == "cls+avg" else 1)

    def _pool(self, x: Tensor) -> Tensor:
        model: Any = self.model
        if self.pooling == "default":
            return model(x)
        features = model.forward_features(x)
        tokens = isinstance(features, Tensor) and features.ndim == 3 and hasattr(model, "num_prefix_tokens")
        if not tokens and not (isinstance(features, Tensor) and features.ndim == 4):
            raise ValueError(
                f"TimmExtractor({self.arch}) has neither a feature map nor tokens that are known to be positions, "
                f"which the pooling {self.pooling!r} needs: use 'default'."
            )
        channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
        if tokens:
            positions = features[:, model.num_prefix_tokens :].transpose(1, 2)
        else:
            positions = (features.permute(0, 3, 1, 2) if channels_last else features).flatten(2)

        pooled = []
        if "cls" in self.pooling:
            pooled.append(features[:, 0])
        if "avg" in self.pooling:
            pooled.append(positions.mean(dim=2))
        if self.gem is not None:
            pooled.append(self.gem(positions))
        if self._pools_by_attention:
            return torch.cat(pooled, dim=1)
        # A map of one position, or tokens that are all the same, are not changed by timm's pooling.
        if tokens:
            maps = [one[:, None].expand(-1, model.num_prefix_tokens + 1, -1) for one in pooled]
        else:
            maps = [one[:, None, None] if channels_last else one[..., None, None] for one in pooled]
        return torch.cat([model.forward_head(one) for one in maps], dim=1)

    def _refuses(self, x: Tensor, error: Exception) -> bool:
        """Whether an error is timm's way to say that images have the wrong size."""
        config: Any = self.model.pretrained_cfg
        return isinstance(error, AssertionError) or (
            config["fixed_input_size"]
            and tuple(x.shape[-2:]) != tuple(config["input_size"][1:])
            and not isinstance(error, torch.OutOfMemoryError)
        )

    def _load(self, weights: str | Path, entry: ZooEntry | None) -> None:
        further = [name for name in self.state_dict() if not name.startswith("model.")]
        module: nn.Module = self
        if not further or (entry is not None and not _has_any(weights_path(weights), further)):
            module = self.model
        load_weights(module, weights, translate=self._through_timm)

    def _through_timm(self, checkpoint: TStateDict) -> TStateDict:
        """The backbone's tensors out of a file of another code base, or for another image size, as timm reads it."""
        classifier = self.model.pretrained_cfg.get("classifier") or ()  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
        names = (classifier,) if isinstance(classifier, str) else classifier
        try:
            # classes as many as in the configuration: if they are not, timm would not mind missing tensors
            args: Any = {"state_dict": dict(checkpoint), "custom_load": False}
            model, _ = self._create(pretrained=True, pretrained_cfg_overlay=args, num_classes=None)
        except Exception:  # on foreign tensors, timm's filters raise whatever they stumble over
            ends = tuple(f"{name}.{kind}" for name in names for kind in ("weight", "bias"))
            return {name: tensor for name, tensor in checkpoint.items() if not name.endswith(ends)}
        model.reset_classifier(0)  # pyright: ignore[reportCallIssue]
        return model.state_dict()


def _packaged() -> nn.Module:
    model = packaged_efficientnet_lite0()
    model.reset_classifier(0)  # pyright: ignore[reportCallIssue]
    return model


def _check_arch(arch: str) -> None:
    base = arch.split(".")[0]
    if not timm.is_model(base):
        near, what = get_close_matches(base, timm.list_models(), n=3), "architecture"
    elif base != arch and not timm.models.is_model_pretrained(arch):
        near, what = timm.list_pretrained(f"{base}.*"), "weights"
    else:
        return
    hint = f"; did you mean {' or '.join(near)}?" if near else "."
    raise ValueError(f"timm has no {what} {arch!r}{hint}")


def _named(weights: str | Path | None) -> ZooEntry | None:
    """The entry of weights that are given by name."""
    if not isinstance(weights, str):
        return None
    try:
        return find_entry(weights)
    except KeyError:
        return None


def _check_entry(entry: ZooEntry, arch: str) -> None:
    if entry.extractor != "TimmExtractor":
        raise ValueError(f"The weights {entry.name!r} are for {entry.extractor}, not for TimmExtractor.")
    own = entry.init_args["arch"]
    if own.split(".")[0] != arch.split(".")[0]:
        raise ValueError(f"The weights {entry.name!r} are of the architecture {own!r}, got arch={arch!r}.")


def _has_any(path: Path, names: list[str]) -> bool:
    return any(key.endswith(tuple(names)) for key in read_checkpoint(path))
