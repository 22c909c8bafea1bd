from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from oml.utils.images.images_resize import (
    get_image_hw,
    get_karesize_param,
    inverse_karesize_bboxes,
    inverse_karesize_image,
    karesize_bboxes,
    karesize_image,
    resize_ndarray,
    resize_tensor,
)

SIDES = st.tuples(st.integers(1, 40), st.integers(1, 40))
#: shapes by number of dimensions, for images of 12 x 20 pixels
ARRAYS = [(12, 20), (12, 20, 3), (12, 20, 1)]
TENSORS = [(12, 20), (3, 12, 20), (2, 3, 12, 20)]


def smooth(shape: tuple[int, ...]) -> torch.Tensor:
    """Ramps in all dimensions, between 0 and 1."""
    axes = [torch.linspace(0, 1, n) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).mean(0)


@given(src_hw=SIDES, new_hw=SIDES)
def test_the_image_lies_in_the_middle_as_large_as_it_can(src_hw: tuple[int, int], new_hw: tuple[int, int]) -> None:
    scale, (h, w), top, left = get_karesize_param(src_hw, new_hw)
    assert scale == min(new_hw[0] / src_hw[0], new_hw[1] / src_hw[1])
    assert h == max(1, int(src_hw[0] * scale + 1e-9))  # truncated, but for the rounding of the product
    assert w == max(1, int(src_hw[1] * scale + 1e-9))
    assert h == new_hw[0] or w == new_hw[1]
    assert new_hw[0] - h - top - top in (0, 1)
    assert new_hw[1] - w - left - left in (0, 1)


@given(src_hw=SIDES, new_hw=SIDES, as_tensor=st.booleans())
def test_boxes_survive_a_round_trip(src_hw: tuple[int, int], new_hw: tuple[int, int], as_tensor: bool) -> None:
    boxes: Any = np.array([[0, 0, src_hw[1], src_hw[0]], [0.5, 0.25, 1.5, 0.75]], dtype=np.float32)
    boxes = torch.from_numpy(boxes) if as_tensor else boxes
    there = karesize_bboxes(boxes, src_hw, new_hw)
    assert type(there) is type(boxes)
    assert there.dtype == boxes.dtype
    back = inverse_karesize_bboxes(there, new_hw, src_hw)
    np.testing.assert_allclose(np.asarray(back), np.asarray(boxes), rtol=1e-3, atol=1e-4)


def test_boxes_are_scaled_then_shifted() -> None:
    boxes = torch.tensor([[0.0, 0.0, 60.0, 40.0], [6.0, 4.0, 12.0, 8.0]])  # 40 x 60 -> 20 x 30 in 31 x 30: 5 above
    expected = torch.tensor([[0.0, 5.0, 30.0, 25.0], [3.0, 7.0, 6.0, 9.0]])
    assert torch.equal(karesize_bboxes(boxes, (40, 60), (31, 30)), expected)
    for change in (karesize_bboxes, inverse_karesize_bboxes):
        with pytest.raises(ValueError, match=r"rows of x1, y1, x2, y2, got shape \(4,\)"):
            change(boxes[0], (4, 4), (5, 5))


@pytest.mark.parametrize("new_hw", [(30, 30), (7, 7), (25, 9), (12, 20)])
@pytest.mark.parametrize(("kind", "shape"), [*(("array", s) for s in ARRAYS), *(("tensor", s) for s in TENSORS)])
def test_images_survive_a_round_trip(kind: str, shape: tuple[int, ...], new_hw: tuple[int, int]) -> None:
    image: Any = smooth(shape) if kind == "tensor" else smooth(shape).numpy()
    framed = karesize_image(image, new_hw)
    assert get_image_hw(image) == (12, 20)
    assert get_image_hw(framed) == new_hw
    assert framed.dtype == image.dtype
    _, (h, w), top, left = get_karesize_param((12, 20), new_hw)
    inside = np.zeros(new_hw, dtype=bool)
    inside[top : top + h, left : left + w] = True
    pixels = np.asarray(framed)
    pixels = np.moveaxis(pixels, (0, 1), (-2, -1)) if kind == "array" else pixels
    assert not pixels[..., ~inside].any()  # padding is zero
    assert pixels[..., inside].any()
    back = inverse_karesize_image(framed, (12, 20))
    assert back.shape == image.shape
    assert np.abs(np.asarray(back) - np.asarray(image)).mean() < 0.03


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8, torch.int64, torch.bool])
def test_tensors_keep_their_type_and_range(dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(0)
    image = (torch.rand(3, 9, 14, generator=rng) > 0.5).to(dtype) * torch.tensor(100).to(dtype)
    resized = resize_tensor(image, (13, 8))
    raw = F.interpolate(image.float()[None], (13, 8), mode="bicubic", align_corners=True)[0]
    assert raw.max() > image.max() + 0.01  # it overshoots, so clamping shows
    expected = raw.clamp(0, float(image.max()))
    if dtype == torch.bool:
        expected = expected >= 0.5
    elif not dtype.is_floating_point:
        expected = expected.round()
    assert resized.dtype == dtype
    assert torch.equal(resized, expected.to(dtype))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("shape", ARRAYS)
@pytest.mark.parametrize("hw", [(30, 31), (12, 20), (5, 9)])
def test_arrays_are_resized_as_opencv_does(dtype: Any, shape: tuple[int, ...], hw: tuple[int, int]) -> None:
    image = (np.random.default_rng(0).random(shape) * 255).astype(dtype)
    resized = resize_ndarray(image, hw)
    assert resized.dtype == dtype
    assert resized.shape == (*hw, *shape[2:])
    expected = cv2.resize(image, hw[::-1], interpolation=cv2.INTER_CUBIC).reshape(resized.shape)
    # for whole numbers, OpenCV reckons with fixed points
    atol = 1e-3 if np.issubdtype(dtype, np.floating) else 1
    np.testing.assert_allclose(resized.astype(float), expected.astype(float), atol=atol)


def test_masks_stay_masks() -> None:
    mask = np.zeros((8, 8), dtype=bool)
    mask[:4] = True
    resized = resize_ndarray(mask, (16, 12))
    assert resized.dtype == bool
    np.testing.assert_array_equal(resized, np.arange(16)[:, None].repeat(12, axis=1) < 8)


def test_what_is_no_image_is_refused() -> None:
    with pytest.raises(TypeError, match="array or a tensor, got list"):
        get_image_hw([[1]])
    for image in (np.zeros(3), np.zeros((1, 2, 3, 4)), torch.zeros(3), torch.zeros(1, 1, 1, 1, 1)):
        with pytest.raises(ValueError, match="dimensions"):
            get_image_hw(image)
    with pytest.raises(ValueError, match="sides of 1 pixel or more"):
        get_karesize_param((0, 3), (4, 4))


@pytest.mark.parametrize("value", [2**24 + 1, 2**31 - 1, -(2**31)])
def test_wide_whole_numbers_stay_what_they_are(value: int) -> None:
    """Maps of ids: as float32, or clamped to what float32 makes of the range, they would become others."""
    array = np.full((3, 4), value, dtype=np.int32)
    assert (resize_ndarray(array, (7, 9)) == value).all()
    for dtype in (torch.int32, torch.int64):
        assert (resize_tensor(torch.full((3, 4), value, dtype=dtype), (7, 9)) == value).all()


def test_whole_numbers_beyond_float64_are_refused() -> None:
    with pytest.raises(ValueError, match=r"whole numbers up to 2\*\*53, got 0 to 9007199254740993"):
        resize_tensor(torch.tensor([[0, 2**53 + 1]]), (2, 2))
    assert (resize_tensor(torch.full((2, 2), 2**53), (3, 3)) == 2**53).all()
