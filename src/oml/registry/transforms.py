"""Sets of image transforms by name, and those that pretrained extractors were trained with."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from oml.registry.registry import Registry
from oml.transforms.images.albumentations import (
    get_augs_albu,
    get_normalisation_albu,
    get_normalisation_resize_albu,
    get_normalisation_resize_albu_clip,
)
from oml.transforms.images.torchvision import (
    get_augs_hypvit,
    get_augs_torch,
    get_normalisation_resize_hypvit,
    get_normalisation_resize_torch,
    get_normalisation_torch,
    get_transforms_unicom,
)
from oml.transforms.images.utils import TTransforms, get_im_reader_for_transforms
from oml.utils.images.images import TImReader

TRANSFORMS_ALBU = Registry(
    "transform",
    {
        "augs_albu": get_augs_albu,
        "norm_albu": get_normalisation_albu,
        "norm_resize_albu": get_normalisation_resize_albu,
        "norm_resize_albu_clip": get_normalisation_resize_albu_clip,
    },
)
TRANSFORMS_TORCH = Registry(
    "transform",
    {
        "augs_hypvit_torch": get_augs_hypvit,
        "augs_torch": get_augs_torch,
        "norm_resize_hypvit_torch": get_normalisation_resize_hypvit,
        "norm_resize_torch": get_normalisation_resize_torch,
        "norm_torch": get_normalisation_torch,
        "unicom_transforms": get_transforms_unicom,
    },
)
TRANSFORMS_REGISTRY = Registry("transform", {**TRANSFORMS_ALBU, **TRANSFORMS_TORCH})


def get_transforms(name: str, **kwargs: Any) -> TTransforms:
    """A set of transforms by its name and arguments."""
    return TRANSFORMS_REGISTRY.build({"name": name, "args": kwargs})


def get_transforms_by_cfg(cfg: Mapping[str, Any]) -> TTransforms:
    """The set of transforms that ``{name, args}`` describes."""
    return TRANSFORMS_REGISTRY.build(cfg)


class TransformsForPretrained(Mapping[str, TTransforms]):
    """The transforms of pretrained weights by the name of the weights; made when they are asked for.

    Args:
        configs: name of the weights -> ``{name, args}`` of the transforms.
    """

    def __init__(self, configs: Mapping[str, Mapping[str, Any]]) -> None:
        self.configs = configs

    def __getitem__(self, weights: str) -> TTransforms:
        if weights not in self.configs:
            near = get_close_matches(weights, self.configs)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(self.configs)}."
            raise KeyError(f"No transforms are known for the weights {weights!r}; {hint}")
        return get_transforms_by_cfg(self.configs[weights])

    def __contains__(self, weights: object) -> bool:
        return weights in self.configs  # without making them

    def __iter__(self) -> Iterator[str]:
        return iter(self.configs)

    def __len__(self) -> int:
        return len(self.configs)


def _configs(names: str, transforms: str, **args: Any) -> dict[str, dict[str, Any]]:
    return {name: {"name": transforms, "args": args} for name in names.split()}


_RESNETS = (
    "resnet50_moco_v2 resnet18_imagenet1k_v1 resnet34_imagenet1k_v1 resnet50_imagenet1k_v1 resnet101_imagenet1k_v1 "
    "resnet152_imagenet1k_v1"
)
_CLIP_224 = "openai_vitb16_224 openai_vitb32_224 openai_vitl14_224 sber_vitb16_224 sber_vitb32_224 sber_vitl14_224"
TRANSFORMS_FOR_PRETRAINED = TransformsForPretrained(
    {
        **_configs(_RESNETS, "norm_resize_hypvit_torch", im_size=256, crop_size=224),
        **_configs("vits8_dino vits16_dino vitb8_dino vitb16_dino", "norm_resize_torch", im_size=224),
        **_configs(_CLIP_224, "norm_resize_albu_clip", im_size=224),
        **_configs("openai_vitl14_336", "norm_resize_albu_clip", im_size=336),
        **_configs("vits16_inshop vits16_sop", "norm_resize_hypvit_torch", im_size=224, crop_size=224),
        **_configs("vits16_cars vits16_cub", "norm_resize_albu", im_size=224),
        **_configs("vits16_224_mlp_384_inshop", "norm_resize_hypvit_torch", im_size=256, crop_size=224),
        **_configs("vitb32_unicom vitb16_unicom vitl14_unicom", "unicom_transforms", im_size=224),
        **_configs("vitl14_336px_unicom", "unicom_transforms", im_size=336),
        **_configs(
            "efficientnet_lite0_imagenet",
            "norm_resize_torch",
            im_size=224,
            mean=[127 / 255] * 3,
            std=[128 / 255] * 3,
        ),
    }
)


def get_transforms_for_pretrained(weights: str) -> tuple[TTransforms, TImReader]:
    """The transforms that belong to pretrained weights, and the reader whose images they take.

    Args:
        weights: a name out of an extractor's ``pretrained_models``.

    Raises:
        KeyError: if there is no such name; the text has the near ones.
        ModuleNotFoundError: if the transforms need the extra ``albumentations``.

    Example:
        >>> transforms, reader = get_transforms_for_pretrained("vits16_dino")
        >>> reader.__name__
        'imread_tensor'
    """
    transforms = TRANSFORMS_FOR_PRETRAINED[weights]
    return transforms, get_im_reader_for_transforms(transforms)
