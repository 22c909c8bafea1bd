"""Sets of image transforms by name, and those that pretrained extractors were trained with."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from oml.models.zoo import ZOO, find_entry
from oml.registry.registry import Registry
from oml.transforms.images.albumentations import (
    get_augs_albu,
    get_normalisation_albu,
    get_normalisation_resize_albu,
    get_normalisation_resize_albu_clip,
)
from oml.transforms.images.torchvision import (
    get_augs_crop,
    get_augs_hypvit,
    get_augs_torch,
    get_normalisation_resize_hypvit,
    get_normalisation_resize_timm,
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
        "augs_crop_torch": get_augs_crop,
        "augs_hypvit_torch": get_augs_hypvit,
        "augs_torch": get_augs_torch,
        "norm_resize_hypvit_torch": get_normalisation_resize_hypvit,
        "norm_resize_timm": get_normalisation_resize_timm,
        "norm_resize_torch": get_normalisation_resize_torch,
        "norm_torch": get_normalisation_torch,
        "unicom_transforms": get_transforms_unicom,
    },
)
TRANSFORMS_REGISTRY = Registry("transform", {**TRANSFORMS_ALBU, **TRANSFORMS_TORCH}, base=nn.Module)


def get_transforms(name: str, **kwargs: Any) -> TTransforms:
    """A set of transforms by its name and arguments."""
    return TRANSFORMS_REGISTRY.build({"name": name, "args": kwargs})


def get_transforms_by_cfg(cfg: Mapping[str, Any]) -> TTransforms:
    """The set of transforms that ``{name, args}`` describes."""
    return TRANSFORMS_REGISTRY.build(cfg)


class TransformsForPretrained(Mapping[str, TTransforms]):
    """The transforms of all weights of the zoo's table by name; made when they are asked for."""

    def __getitem__(self, weights: str) -> TTransforms:
        return get_transforms_by_cfg(find_entry(weights).transforms)

    def __contains__(self, weights: object) -> bool:
        return weights in ZOO  # without making them

    def __iter__(self) -> Iterator[str]:
        return iter(ZOO)

    def __len__(self) -> int:
        return len(ZOO)


TRANSFORMS_FOR_PRETRAINED = TransformsForPretrained()


def get_transforms_for_pretrained(weights: str) -> tuple[TTransforms, TImReader]:
    """The transforms that belong to pretrained weights, and the reader whose images they take.

    Those of timm's weights do what timm does to evaluate them, by their own configuration: size, crop, interpolation,
    mean and deviation.

    Args:
        weights: a name out of an extractor's ``pretrained_models``, or any of timm's such as
            ``convnext_tiny.fb_in1k``.

    Raises:
        KeyError: if there is no such name; the text has the near ones.
        ModuleNotFoundError: if the transforms need the extra ``albumentations``.

    Example:
        >>> transforms, reader = get_transforms_for_pretrained("vits16_dino")
        >>> reader.__name__
        'imread_tensor'
        >>> get_transforms_for_pretrained("convnext_tiny.fb_in1k")[0].transforms[1:3]
        [Resize(size=[256], interpolation=InterpolationMode.BICUBIC, antialias=True), CenterCrop(size=[224, 224])]
    """
    transforms = TRANSFORMS_FOR_PRETRAINED[weights]
    return transforms, get_im_reader_for_transforms(transforms)
