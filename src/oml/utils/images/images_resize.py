"""Resizing that keeps the proportions ("ka"), and what it does to boxes, both ways.

An image of ``src_hw`` is scaled by ``min(new_h / src_h, new_w / src_w)``, its sides truncated to whole pixels, and put
into the middle of zeros of ``new_hw``; an odd pixel of padding goes right or below. Images are arrays (height, width)
or (height, width, channel), and tensors (height, width), (channel, height, width) or (batch, channel, height, width).
Boxes are rows of x1, y1, x2, y2.
"""

from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Shaped
from numpy import ndarray
from torch import Tensor

SizeHW = tuple[int, int]
ImageType = TypeVar("ImageType", ndarray, Tensor)
BboxesType = TypeVar("BboxesType", ndarray, Tensor)


_LARGEST_WHOLE = 2**53  # up to which float64 holds every whole number


class KaResizeParam(NamedTuple):
    """How an image comes to lie in another: its scale, its size there, and the padding above and left of it."""

    scale: float
    hw: SizeHW
    top: int
    left: int


def get_karesize_param(src_hw: SizeHW, new_hw: SizeHW) -> KaResizeParam:
    """How an image of ``src_hw`` comes to lie in one of ``new_hw``.

    Raises:
        ValueError: if a side is less than 1.

    Example:
        >>> get_karesize_param(src_hw=(40, 60), new_hw=(30, 30))
        KaResizeParam(scale=0.5, hw=(20, 30), top=5, left=0)
    """
    if min(*src_hw, *new_hw) < 1:
        raise ValueError(f"Keep-aspect resizing needs sides of 1 pixel or more, got {src_hw} -> {new_hw}.")
    (src_h, src_w), (new_h, new_w) = src_hw, new_hw
    # in whole numbers, as src_h * (new_h / src_h) may come out below new_h and be truncated; a side never vanishes
    if new_h * src_w <= new_w * src_h:
        h, w = new_h, max(1, src_w * new_h // src_h)
    else:
        h, w = max(1, src_h * new_w // src_w), new_w
    return KaResizeParam(min(new_h / src_h, new_w / src_w), (h, w), (new_h - h) // 2, (new_w - w) // 2)


def get_image_hw(image: Any) -> SizeHW:
    """``(height, width)``.

    Raises:
        TypeError: for anything but an array or a tensor.
        ValueError: for another number of dimensions than the module says.
    """
    if not isinstance(image, ndarray | Tensor):
        raise TypeError(f"Keep-aspect resizing needs an array or a tensor, got {type(image).__name__}.")
    if image.ndim not in ((2, 3) if isinstance(image, ndarray) else (2, 3, 4)):
        raise ValueError(
            "Keep-aspect resizing needs an array of 2 or 3 dimensions, or a tensor of 2, 3 or 4, "
            f"got shape {tuple(image.shape)}."
        )
    height, width = image.shape[:2] if isinstance(image, ndarray) else image.shape[-2:]
    return height, width


def karesize_image(image: ImageType, new_hw: SizeHW) -> ImageType:
    """The image in the middle of zeros of ``new_hw``.

    Example:
        >>> karesize_image(torch.ones(2, 4), new_hw=(4, 4))
        tensor([[0., 0., 0., 0.],
                [1., 1., 1., 1.],
                [1., 1., 1., 1.],
                [0., 0., 0., 0.]])
    """
    param = get_karesize_param(get_image_hw(image), new_hw)
    h, w = param.hw
    if isinstance(image, Tensor):
        framed = image.new_zeros((*image.shape[:-2], *new_hw))
        framed[..., param.top : param.top + h, param.left : param.left + w] = resize_tensor(image, param.hw)
    else:
        framed = np.zeros((*new_hw, *image.shape[2:]), dtype=image.dtype)
        framed[param.top : param.top + h, param.left : param.left + w] = resize_ndarray(image, param.hw)
    return framed


def inverse_karesize_image(image: ImageType, src_hw: SizeHW) -> ImageType:
    """The image without its padding, resized to ``src_hw``, the size that it had before :func:`karesize_image`."""
    param = get_karesize_param(src_hw, get_image_hw(image))
    rows, columns = slice(param.top, param.top + param.hw[0]), slice(param.left, param.left + param.hw[1])
    if isinstance(image, Tensor):
        return resize_tensor(image[..., rows, columns], src_hw)
    return resize_ndarray(image[rows, columns], src_hw)


def karesize_bboxes(boxes: BboxesType, src_hw: SizeHW, new_hw: SizeHW) -> BboxesType:
    """Where boxes of the image of ``src_hw`` lie after :func:`karesize_image`: scaled, then shifted."""
    param = get_karesize_param(src_hw, new_hw)
    return boxes * param.scale + _shift(boxes, param)


def inverse_karesize_bboxes(boxes: BboxesType, curr_hw: SizeHW, src_hw: SizeHW) -> BboxesType:
    """Where boxes of the resized image, of ``curr_hw`` pixels, lie in that of ``src_hw`` it was made from.

    Example:
        >>> boxes = torch.tensor([[10.0, 20.0, 30.0, 40.0]])
        >>> inverse_karesize_bboxes(karesize_bboxes(boxes, (40, 60), (30, 30)), (30, 30), (40, 60))
        tensor([[10., 20., 30., 40.]])
    """
    param = get_karesize_param(src_hw, curr_hw)
    return (boxes - _shift(boxes, param)) / param.scale


def resize_tensor(t: Shaped[Tensor, "..."], hw: SizeHW) -> Shaped[Tensor, "..."]:
    """Resized to ``(height, width)``; the values stay between the smallest and the largest of the input.

    Bicubic, corner pixels on corner pixels. The type stays; of bool, what reaches half is true.

    Raises:
        ValueError: for whole numbers beyond 2**53, which the arithmetic would change.
    """
    get_image_hw(t)
    values = _bicubic(t[(None,) * (4 - t.ndim)], hw, align_corners=True).reshape(*t.shape[:-2], *hw)
    values = values.clamp(t.min().to(values), t.max().to(values))
    return _cast(values, t.dtype)


def resize_ndarray(a: Shaped[ndarray, "..."], hw: SizeHW) -> Shaped[ndarray, "..."]:
    """Resized to ``(height, width)`` as ``cv2.resize(..., interpolation=cv2.INTER_CUBIC)`` does.

    Bicubic, edges on edges. The type stays; whole numbers are rounded and stay in its range; of bool, what reaches
    half is true.

    Raises:
        ValueError: for whole numbers beyond 2**53, which the arithmetic would change.
    """
    get_image_hw(a)
    t = torch.from_numpy(np.ascontiguousarray(a))
    t = (t[..., None] if a.ndim == 2 else t).permute(2, 0, 1)
    values = _cast(_bicubic(t[None], hw, align_corners=False)[0], t.dtype).permute(1, 2, 0)
    return np.ascontiguousarray(values.reshape(*hw, *a.shape[2:]).numpy())


def _bicubic(t: Shaped[Tensor, "batch channel height width"], hw: SizeHW, align_corners: bool) -> Tensor:
    is_wide = not t.dtype.is_floating_point and t.element_size() >= 4  # float32 counts to 2**24
    if is_wide and t.numel() and max(abs(int(t.amin())), abs(int(t.amax()))) > _LARGEST_WHOLE:
        raise ValueError(f"Resizing needs whole numbers up to 2**53, got {int(t.amin())} to {int(t.amax())}.")
    values = t if t.dtype in (torch.float32, torch.float64) else t.double() if is_wide else t.float()
    return F.interpolate(values, hw, mode="bicubic", align_corners=align_corners)


def _cast(values: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype == torch.bool:
        return values >= 0.5
    if not dtype.is_floating_point:
        info = torch.iinfo(dtype)
        low, high = max(info.min, -_LARGEST_WHOLE), min(info.max, _LARGEST_WHOLE)
        values = values.round().clamp(low, high)
    return values.to(dtype)


def _shift(boxes: Any, param: KaResizeParam) -> Any:
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"Boxes are rows of x1, y1, x2, y2, got shape {tuple(boxes.shape)}.")
    shift = (param.left, param.top, param.left, param.top)
    return boxes.new_tensor(shift) if isinstance(boxes, Tensor) else np.array(shift, dtype=boxes.dtype)
