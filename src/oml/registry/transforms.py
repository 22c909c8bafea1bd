"""Sets of image transforms by name."""

from collections.abc import Mapping
from typing import Any

from torchvision.transforms.v2 import Compose

from oml.registry.registry import Registry
from oml.transforms.images.torchvision import (
    get_augs_torch,
    get_normalisation_resize_torch,
    get_normalisation_torch,
)

TRANSFORMS_TORCH = Registry(
    "transform",
    {
        "augs_torch": get_augs_torch,
        "norm_resize_torch": get_normalisation_resize_torch,
        "norm_torch": get_normalisation_torch,
    },
)
TRANSFORMS_REGISTRY = TRANSFORMS_TORCH


def get_transforms(name: str, **kwargs: Any) -> Compose:
    """A set of transforms by its name and arguments."""
    return TRANSFORMS_REGISTRY.build({"name": name, "args": kwargs})


def get_transforms_by_cfg(cfg: Mapping[str, Any]) -> Compose:
    """The set of transforms that ``{name, args}`` describes."""
    return TRANSFORMS_REGISTRY.build(cfg)
