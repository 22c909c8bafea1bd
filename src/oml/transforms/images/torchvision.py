"""The named sets of image transforms, on torchvision v2: a PIL image in, a normalised float tensor out."""

from collections.abc import Sequence

import torch
from torchvision.transforms import v2

from oml.const import MEAN, STD


def get_normalisation_torch(mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> v2.Compose:
    """To a float tensor ``(3, height, width)``, normalised by channel; the size stays."""
    return v2.Compose([*_to_normalised(mean, std)])


def get_normalisation_resize_torch(
    im_size: int, mean: Sequence[float] = MEAN, std: Sequence[float] = STD
) -> v2.Compose:
    """Resized to a square of ``im_size`` pixels (bilinear, antialiased, whatever the proportions), normalised."""
    return v2.Compose([_squared(im_size), *_to_normalised(mean, std)])


def get_augs_torch(im_size: int, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> v2.Compose:
    """Resized to a square, mirrored left to right half of the time, normalised."""
    return v2.Compose([_squared(im_size), v2.RandomHorizontalFlip(), *_to_normalised(mean, std)])


def _squared(im_size: int) -> v2.Resize:
    return v2.Resize((im_size, im_size), antialias=True)


def _to_normalised(mean: Sequence[float], std: Sequence[float]) -> tuple[v2.Transform, ...]:
    return v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))
