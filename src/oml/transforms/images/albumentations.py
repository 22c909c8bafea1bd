"""The named sets of image transforms on albumentations 2, which the extra ``albumentations`` brings.

They are called as ``transforms(image=array)["image"]``: a uint8 array (height, width, 3) in RGB order in, a
normalised float32 tensor (3, height, width) out. Data sets do so through
:func:`oml.transforms.images.utils.as_callable`, which also sees to it that worker processes draw different
augmentations. Importing this module does not import albumentations.

The sets were first written for albumentations 1. Where its defaults have changed since, the former ones are spelt out.
The Gaussian noise could not be kept entirely: its variance was drawn evenly from the range, now its standard deviation
is, and the library cuts off the fractions of the noise, so that the variance is 8 to 45 where 10 to 50 is asked for.
"""

import os
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from oml.const import CROP_KEY, MEAN, MEAN_CLIP, PAD_COLOR, STD, STD_CLIP
from oml.transforms.images.utils import AlbumentationsCall, seed_albumentations

if TYPE_CHECKING:
    from albumentations import BasicTransform, Compose
else:
    BasicTransform = Compose = Any  # the package may not be there

TTransformsList = list[BasicTransform]

_HOLE = 20  # side in pixels


def get_spatials() -> TTransformsList:
    """Slight changes of perspective, shear and place; what comes into sight is white."""
    A = _albumentations()  # noqa: N806 (as everyone calls it)
    shift, angle = (-0.05, 0.05), (-7, 7)
    return [
        A.Perspective(scale=(0.06, 0.07), fill=PAD_COLOR, p=0.5),
        # x and y apart: each axis draws its own value
        A.Affine(
            rotate=(-0.1, 0.1),
            translate_percent={"x": shift, "y": shift},
            shear={"x": angle, "y": angle},
            fill=PAD_COLOR,
            p=0.5,
        ),
        A.GridDistortion(num_steps=5, distort_limit=(-0.1, 0.1), normalized=False, fill=PAD_COLOR, p=0.5),
    ]


def get_blurs() -> TTransformsList:
    """Blurs over 3 to 7 pixels."""
    A = _albumentations()  # noqa: N806
    return [
        A.MotionBlur(blur_limit=(3, 7), p=0.5),
        A.MedianBlur(blur_limit=(3, 7), p=0.5),
        A.Blur(blur_limit=(3, 7), p=0.5),
        A.GaussianBlur(blur_limit=(3, 7), sigma_limit=(0.7, 2.0), p=0.5),
    ]


def get_colors_level() -> TTransformsList:
    """Changes of colour, brightness, contrast and sharpness."""
    A = _albumentations()  # noqa: N806
    around_1 = (0.6, 1.4)
    return [
        A.ColorJitter(brightness=around_1, contrast=around_1, saturation=around_1, hue=(-0.1, 0.1), p=0.5),
        A.HueSaturationValue(hue_shift_limit=(-20, 20), sat_shift_limit=(-30, 30), val_shift_limit=(-20, 20), p=0.1),
        A.CLAHE(clip_limit=(1, 4), tile_grid_size=(8, 8), p=0.1),
        A.Sharpen(alpha=(0.2, 0.5), lightness=(0.5, 1.0), p=0.1),
        A.Emboss(alpha=(0.2, 0.5), strength=(0.2, 0.7), p=0.1),
        A.RandomBrightnessContrast(brightness_limit=(-0.2, 0.2), contrast_limit=(-0.2, 0.2), p=0.1),
    ]


def get_noises() -> TTransformsList:
    """Three white squares of 20 pixels, or Gaussian noise with a variance of 10 to 50 (of 255 squared)."""
    A = _albumentations()  # noqa: N806
    return [
        A.CoarseDropout(
            num_holes_range=(3, 3), hole_height_range=(_HOLE,) * 2, hole_width_range=(_HOLE,) * 2, fill=PAD_COLOR, p=0.3
        ),
        A.GaussNoise(std_range=(10**0.5 / 255, 50**0.5 / 255), mean_range=(0, 0), per_channel=True, p=0.7),
    ]


def get_noise_channels() -> TTransformsList:
    """Colours lost or exchanged; mostly the image turns grey."""
    A = _albumentations()  # noqa: N806
    return [
        A.ChannelDropout(channel_drop_range=(1, 1), fill=0, p=0.1),
        A.ToGray(num_output_channels=3, p=0.8),
        A.ChannelShuffle(p=0.1),
    ]


def get_augs_albu(
    im_size: int, mean: Sequence[float] = MEAN, std: Sequence[float] = STD, seed: int | None = None
) -> Compose:
    """Padded with white to a square of ``im_size`` pixels, mirrored, distorted, blurred, coloured, noised; normalised.

    Mirrored left to right half of the time; then, with the probability in brackets, one of :func:`get_spatials`
    (0.5), of :func:`get_blurs` (0.5), of :func:`get_colors_level` (0.8), of :func:`get_noise_channels` (0.2) and of
    :func:`get_noises` (0.25). Within a group the ``p`` of its members are weights.

    Args:
        im_size: the longer side of the image, and both of the result; 20 pixels at least, as the white squares have.
        mean, std: by channel, for pixels between 0 and 1.
        seed: the same one draws the same augmentations; by default they differ from run to run. How workers of a
            ``DataLoader`` are seeded says :class:`oml.transforms.images.utils.AlbumentationsCall`.

    Raises:
        ValueError: for a smaller ``im_size``.
    """
    if im_size < _HOLE:
        raise ValueError(
            f"get_augs_albu needs an im_size of {_HOLE} at least, the side of its white squares; got {im_size}."
        )
    A = _albumentations()  # noqa: N806
    compose = A.Compose(
        [
            *_padded_square(im_size),
            A.HorizontalFlip(p=0.5),
            A.OneOf(get_spatials(), p=0.5),
            A.OneOf(get_blurs(), p=0.5),
            A.OneOf(get_colors_level(), p=0.8),
            A.OneOf(get_noise_channels(), p=0.2),
            A.OneOf(get_noises(), p=0.25),
            *_to_normalised(mean, std),
        ],
        seed=seed,
    )
    if seed is not None:
        seed_albumentations(compose, seed)
    return compose


def get_normalisation_albu(mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Compose:
    """Normalised by channel; the size stays."""
    return _albumentations().Compose(_to_normalised(mean, std))


def get_normalisation_resize_albu(im_size: int, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Compose:
    """The longer side resized to ``im_size`` pixels, the rest of the square white on both sides; normalised.

    Proportions are kept. The resizing is OpenCV's bilinear one, which is not antialiased.
    """
    return _albumentations().Compose([*_padded_square(im_size), *_to_normalised(mean, std)])


def get_normalisation_resize_albu_clip(im_size: int) -> Compose:
    """The longer side resized to ``im_size`` pixels, the rest of the square white; normalised as for CLIP."""
    return get_normalisation_resize_albu(im_size, MEAN_CLIP, STD_CLIP)


class Crop:
    """``Crop()(image=array, crop=(x1, y1, x2, y2))["image"]`` is the part inside the box.

    It may be a step of a ``Compose``. Whatever else is given passes through.

    Args:
        crop_key: the name under which the box comes.

    Raises:
        ValueError: when called with a box that is empty or leaves the image.

    Example:
        >>> Crop()(image=np.arange(12).reshape(3, 4), crop=(1, 0, 3, 2))["image"]
        array([[1, 2], [5, 6]])
    """

    def __init__(self, crop_key: str = CROP_KEY) -> None:
        self.crop_key = crop_key
        self.available_keys = {"image", crop_key}  # Compose asks its steps for this

    def __call__(self, **data: Any) -> dict[str, Any]:
        """The data with the image cropped."""
        image, box = _image_and_box(self, data)
        x1, y1, x2, y2 = box
        return {**data, "image": image[y1:y2, x1:x2]}


class RandomSizedBBoxSafeCropPatched:
    """A random part of the image that holds the box, resized to a square. Returns ``{"image": ...}`` and nothing else.

    Called as :class:`Crop` is. The part's sides are independent, so proportions change.

    Args:
        size: side of the result in pixels.
        erosion_rate: the share of the box that may be cut off, from 0 to 1.
        crop_key: the name under which the box comes.
        seed: as that of :func:`get_augs_albu`.

    Raises:
        ValueError: when called with a box that is empty or leaves the image.
    """

    def __init__(self, size: int, erosion_rate: float, crop_key: str = CROP_KEY, seed: int | None = None) -> None:
        A = _albumentations()  # noqa: N806
        self.crop_key = crop_key
        self.available_keys = {"image", crop_key}
        crop = A.RandomSizedBBoxSafeCrop(height=size, width=size, erosion_rate=erosion_rate)
        compose = A.Compose([crop], bbox_params=A.BboxParams("pascal_voc", label_fields=[]), seed=seed)
        self._cropped = AlbumentationsCall(compose)

    def __call__(self, **data: Any) -> dict[str, Any]:
        """The cropped and resized image, under ``image``."""
        image, box = _image_and_box(self, data)
        return {"image": self._cropped(image, bboxes=np.array([box], dtype=float))}


def _image_and_box(
    owner: Crop | RandomSizedBBoxSafeCropPatched, data: dict[str, Any]
) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    name = type(owner).__name__
    if missing := [key for key in ("image", owner.crop_key) if key not in data]:
        raise ValueError(f"{name} needs {' and '.join(missing)}, called as crop(image=..., {owner.crop_key}=...).")
    image, (x1, y1, x2, y2) = data["image"], (int(side) for side in data[owner.crop_key])
    height, width = image.shape[:2]
    if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
        raise ValueError(
            f"{name} needs a box x1, y1, x2, y2 inside the image of width {width} and height {height}, "
            f"got {(x1, y1, x2, y2)}."
        )
    return image, (x1, y1, x2, y2)


def _padded_square(im_size: int) -> TTransformsList:
    A = _albumentations()  # noqa: N806
    return [A.LongestMaxSize(im_size), A.PadIfNeeded(im_size, im_size, fill=PAD_COLOR)]


def _to_normalised(mean: Sequence[float], std: Sequence[float]) -> TTransformsList:
    A = _albumentations()  # noqa: N806
    return [A.Normalize(tuple(mean), tuple(std)), A.ToTensorV2()]


def _albumentations() -> ModuleType:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or importing it asks PyPI for its latest version
    try:
        import albumentations
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "These transforms need albumentations: pip install 'open-metric-learning[albumentations]'."
        ) from error
    return albumentations
