"""The named sets of image transforms, on torchvision v2.

All of them take a PIL image, a uint8 tensor (3, height, width) or a uint8 array (height, width, 3), and
give a normalised float32 tensor (3, height, width). The first step makes a uint8 tensor: torch resizes these,
antialiased, several times faster than Pillow does. Of the values less than one percent differ from Pillow's, by 1
(bilinear) or 2 (bicubic) of 255.

Random steps draw from torch's global generator, which a ``DataLoader`` seeds in each of its workers.
"""

from collections.abc import Sequence
from typing import Any

import PIL.Image
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torchvision.transforms import v2
from torchvision.tv_tensors import Image

from oml.const import MEAN, MEAN_CLIP, STD, STD_CLIP

_BICUBIC = v2.InterpolationMode.BICUBIC


class ToRGBImage(v2.ToImage):
    """To a uint8 tensor (3, height, width); PIL images of other modes become RGB before.

    Example:
        >>> from PIL import Image
        >>> ToRGBImage()(Image.new("L", (5, 4))).shape
        torch.Size([3, 4, 5])
    """

    def transform(self, inpt: Any, params: dict[str, Any]) -> Image:
        """What v2 calls for each image that it finds among its arguments."""
        return super().transform(inpt.convert("RGB") if isinstance(inpt, PIL.Image.Image) else inpt, params)


class Normalise(v2.Transform):
    """``(image / 255 - mean) / std`` of a uint8 image, by channel, as float32.

    One multiplication and one addition in place: on 224 x 224 pixels three to four times faster than torchvision's
    ``ToDtype`` and ``Normalize``, which pass over the memory for each operation. They agree to 1e-6.

    Args:
        mean, std: three numbers each, for pixels between 0 and 1.

    Raises:
        ValueError: if there are not three of each, or a deviation is not positive.
        TypeError: when called with anything but a uint8 tensor of three channels.

    Example:
        >>> image = torch.full((3, 1, 1), 255, dtype=torch.uint8)
        >>> Normalise(mean=(0.5, 0.5, 0.5), std=(0.5, 0.25, 0.1))(image).flatten()
        tensor([1., 2., 5.])
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"Normalise needs three means and three positive deviations, got {mean} and {std}.")
        self.mean, self.std = tuple(mean), tuple(std)
        means, deviations = (torch.tensor(values, dtype=torch.float64).reshape(3, 1, 1) for values in (mean, std))
        self._scale, self._shift = (1 / (255 * deviations)).float(), (-means / deviations).float()

    def transform(self, inpt: Any, params: dict[str, Any]) -> Tensor:  # noqa: ARG002 (the signature of v2)
        """What v2 calls for each image that it finds among its arguments."""
        if not isinstance(inpt, Tensor) or inpt.dtype != torch.uint8 or inpt.ndim != 3 or len(inpt) != 3:
            came = f"{inpt.dtype} {tuple(inpt.shape)}" if isinstance(inpt, Tensor) else type(inpt).__name__
            raise TypeError(f"Normalise needs a uint8 tensor (3, height, width), got {came}. Read images as RGB.")
        return self._of(inpt.as_subclass(Tensor))

    def _of(self, image: UInt8[Tensor, "3 height width"]) -> Float[Tensor, "3 height width"]:
        # images come from decoders with their channels last: conversion and rearrangement in one pass
        return torch.empty(image.shape).copy_(image).mul_(self._scale).add_(self._shift)

    def extra_repr(self) -> str:
        """For printing."""
        return f"mean={self.mean}, std={self.std}"


class _ResizeInProportion(v2.Transform):
    """Resized to cover (height, width), or to fit in."""

    def __init__(self, size: Sequence[int], interpolation: v2.InterpolationMode, fit_in: bool) -> None:
        super().__init__()
        self.size, self.interpolation, self.fit_in = size, interpolation, fit_in

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:  # noqa: ARG002 (the signature of v2)
        ratios = [side / target for side, target in zip(inpt.shape[-2:], self.size, strict=True)]
        ratio = max(ratios) if self.fit_in else min(ratios)
        size = [round(side / ratio) for side in inpt.shape[-2:]]
        return v2.functional.resize(inpt, size, interpolation=self.interpolation, antialias=True)


class _FillUp(v2.Transform):
    """Sides that are shorter than (height, width) filled up equally with a colour."""

    def __init__(self, size: Sequence[int], colour: list[int]) -> None:
        super().__init__()
        self.size, self.colour = size, colour

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:  # noqa: ARG002 (the signature of v2)
        missing = [max(target - side, 0) for side, target in zip(inpt.shape[-2:], self.size, strict=True)]
        (top, bottom), (left, right) = ((side // 2, (side + 1) // 2) for side in missing)
        return v2.functional.pad(inpt, [left, top, right, bottom], fill=self.colour)  # pyright: ignore[reportArgumentType]


def get_normalisation_torch(mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> v2.Compose:
    """Normalised by channel; the size stays."""
    return _compose([], mean, std)


def get_normalisation_resize_torch(
    im_size: int, mean: Sequence[float] = MEAN, std: Sequence[float] = STD
) -> v2.Compose:
    """Resized to a square of ``im_size`` pixels, whatever the proportions (bilinear, antialiased); normalised."""
    return _compose([_squared(im_size)], mean, std)


def get_normalisation_resize_hypvit(
    im_size: int = 224, crop_size: int = 224, mean: Sequence[float] = MEAN, std: Sequence[float] = STD
) -> v2.Compose:
    """The shorter side resized to ``im_size`` pixels (bicubic), the square of ``crop_size`` in the centre; normalised.

    Raises:
        ValueError: if ``crop_size`` is larger than ``im_size``: the crop would be padded with black.
    """
    return _compose([*_centre(im_size, crop_size)], mean, std)


def get_transforms_unicom(im_size: int) -> v2.Compose:
    """The shorter side resized to ``im_size`` pixels (bicubic), the square in the centre; normalised as for CLIP."""
    return _compose([*_centre(im_size, im_size)], MEAN_CLIP, STD_CLIP)


def get_normalisation_resize_timm(
    im_size: int | Sequence[int] = 224,
    crop_pct: int | float = 0.875,
    crop_mode: str = "center",
    interpolation: str = "bicubic",
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> v2.Compose:
    """As timm evaluates: resized to ``im_size / crop_pct`` pixels, what is in the centre cropped; normalised.

    The arguments are those of timm's configuration of pretrained weights; :func:`oml.registry.transforms.
    get_transforms_for_pretrained` takes them from there. Agrees with ``timm.data.create_transform`` but for the
    rounding of resized pixels.

    Args:
        im_size: side of the square that comes out, or (height, width).
        crop_pct: share of the resized sides that the crop keeps, above 0 and up to 1.
        crop_mode: ``center`` resizes the shorter side and cuts off what protrudes; ``squash`` resizes both, whatever
            the proportions; ``border`` resizes the longer side and fills up with the colour of ``mean``.
        interpolation: of resizing: ``bicubic``, ``bilinear``, ``nearest`` ...
        mean, std: see :class:`Normalise`.

    Raises:
        ValueError: if an argument is none of these.
    """
    height, width = (im_size, im_size) if isinstance(im_size, int) else im_size
    if not 0 < crop_pct <= 1:
        raise ValueError(f"crop_pct needs to be above 0 and at most 1, got {crop_pct}.")
    if interpolation not in (modes := [mode.value for mode in v2.InterpolationMode]):
        raise ValueError(f"There is no interpolation {interpolation!r}; there are {', '.join(modes)}.")
    larger, mode = [int(height / crop_pct), int(width / crop_pct)], v2.InterpolationMode(interpolation)
    if crop_mode == "squash":
        steps = [v2.Resize(larger, interpolation=mode, antialias=True)]
    elif crop_mode == "center" and height == width:
        steps = [v2.Resize(larger[0], interpolation=mode, antialias=True)]
    elif crop_mode == "center":
        steps = [_ResizeInProportion(larger, mode, fit_in=False)]
    elif crop_mode == "border":
        colour = [round(255 * value) for value in mean]
        steps = [_ResizeInProportion(larger, mode, fit_in=True), _FillUp([height, width], colour)]
    else:
        raise ValueError(f"There is no crop_mode {crop_mode!r}; there are center, squash, border.")
    return _compose([*steps, v2.CenterCrop([height, width])], mean, std)


def get_augs_torch(im_size: int, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> v2.Compose:
    """Resized to a square of ``im_size`` pixels, mirrored left to right half of the time; normalised.

    The set of this name had a ``ColorJitter()`` too. Without arguments it changes nothing, so it is left out.
    """
    return _compose([_squared(im_size), v2.RandomHorizontalFlip()], mean, std)


def get_augs_hypvit(
    im_size: int = 224, min_scale: float = 0.2, mean: Sequence[float] = MEAN, std: Sequence[float] = STD
) -> v2.Compose:
    """A random part of the image as a square of ``im_size`` pixels (bicubic), mirrored half of the time; normalised.

    The part covers between ``min_scale`` and all of the area, and its sides are in a ratio of 3:4 to 4:3.
    """
    crop = v2.RandomResizedCrop(im_size, scale=(min_scale, 1.0), interpolation=_BICUBIC, antialias=True)
    return _compose([crop, v2.RandomHorizontalFlip()], mean, std)


def get_augs_crop(
    im_size: int = 224, min_scale: float = 0.8, mean: Sequence[float] = MEAN, std: Sequence[float] = STD
) -> v2.Compose:
    """Most of the image as a square of ``im_size`` pixels (bilinear), never mirrored; normalised.

    The part covers between ``min_scale`` and all of the area, and its sides are in a ratio of 9:10 to 10:9.
    """
    crop = v2.RandomResizedCrop(im_size, scale=(min_scale, 1.0), ratio=(0.9, 1 / 0.9), antialias=True)
    return _compose([crop], mean, std)


def _compose(steps: Sequence[v2.Transform], mean: Sequence[float], std: Sequence[float]) -> v2.Compose:
    return v2.Compose([ToRGBImage(), *steps, Normalise(mean, std)])


def _squared(im_size: int) -> v2.Resize:
    return v2.Resize((im_size, im_size), antialias=True)


def _centre(im_size: int, crop_size: int) -> tuple[v2.Transform, ...]:
    if crop_size > im_size:
        raise ValueError(f"A crop of {crop_size} pixels needs a larger image: im_size is {im_size}.")
    return v2.Resize(im_size, interpolation=_BICUBIC, antialias=True), v2.CenterCrop(crop_size)
