import io
import math
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from oml.utils.images import decoding
from oml.utils.images.images import (
    ShrinkingReader,
    crop_image,
    draw_bbox,
    find_broken_images,
    get_img_with_bbox,
    image_size,
    imread_pillow,
    imread_tensor,
    square_pad,
    tensor_to_numpy_image,
    try_to_open_image,
)

RED = (255, 0, 0)


def ramps(width: int, height: int, orientation: int = 1, **options: Any) -> bytes:
    """A JPEG file whose upright pixels tell where they are: red is twice the column, green twice the row."""
    rows, columns = np.mgrid[:height, :width] * 2
    pixels = np.stack([columns, rows, (rows * columns) % 256], axis=2).astype(np.uint8)
    turn = {
        1: lambda upright: upright,
        2: lambda upright: upright[:, ::-1],
        3: lambda upright: upright[::-1, ::-1],
        4: lambda upright: upright[::-1],
        5: lambda upright: upright.transpose(1, 0, 2),
        6: lambda upright: np.rot90(upright),
        7: lambda upright: np.rot90(upright, 2).transpose(1, 0, 2),
        8: lambda upright: np.rot90(upright, -1),
    }[orientation]
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(turn(pixels))).save(file, "JPEG", exif=exif, **options)
    return file.getvalue()


@contextmanager
def decoder(with_simplejpeg: bool) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if not with_simplejpeg:
            patch.setattr(decoding, "_simplejpeg", lambda: None)
        yield


@settings(deadline=None)
@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    corners=st.tuples(*[st.integers(0, 89)] * 4) | st.none(),
    min_side=st.integers(1, 24),
    subsampling=st.sampled_from([0, 2]),
    with_simplejpeg=st.booleans(),
)
def test_the_smallest_scale_that_keeps_the_box(
    size: tuple[int, int],
    corners: tuple[int, ...] | None,
    min_side: int,
    subsampling: int,
    with_simplejpeg: bool,
) -> None:
    width, height = size
    box = None
    if corners is not None:
        (x1, x2), (y1, y2) = (
            sorted((corners[0] % width, corners[1] % width)),
            sorted((corners[2] % height, corners[3] % height)),
        )
        box = (x1, y1, x2 + 1, y2 + 1)
    content = ramps(width, height, quality=90, subsampling=subsampling)
    expected = None
    for scale in (8, 4, 2, 1):
        if scale > min(size):
            continue
        image = Image.open(io.BytesIO(content))
        image.draft(None, (width // scale, height // scale))
        reduced = np.asarray(image)
        assert reduced.shape == (math.ceil(height / scale), math.ceil(width / scale), 3)
        x1, y1, x2, y2 = (math.floor(side / scale + 0.5) for side in box or (0, 0, width, height))
        if scale == 1 or (x2 - x1 >= min_side and y2 - y1 >= min_side):
            whole = box is None or box == (0, 0, width, height)
            expected = reduced if whole else reduced[y1:y2, x1:x2]
            break
    with decoder(with_simplejpeg):
        pixels, full_size = ShrinkingReader(min_side).read(content, box)
    assert full_size == size
    assert expected is not None
    np.testing.assert_array_equal(pixels.permute(1, 2, 0).numpy(), expected)


@settings(deadline=None)
@given(
    size=st.tuples(st.integers(112, 127), st.integers(112, 127)),
    corners=st.tuples(*[st.integers(8, 40)] * 2, *[st.integers(64, 104)] * 2),  # edges have fewer pixels to average
    orientation=st.integers(1, 8),
    min_side=st.sampled_from([3, 7, 13, 60]),
    with_simplejpeg=st.booleans(),
)
def test_boxes_are_those_of_the_upright_image(
    size: tuple[int, int], corners: tuple[int, int, int, int], orientation: int, min_side: int, with_simplejpeg: bool
) -> None:
    x1, y1, x2, y2 = corners
    content = ramps(*size, orientation, quality=98, subsampling=0)
    with decoder(with_simplejpeg):
        pixels, full_size = ShrinkingReader(min_side).read(content, corners)
    assert full_size == size
    _, n_rows, n_columns = pixels.shape
    scale = min((1, 2, 4, 8), key=lambda scale: abs((x2 - x1) / scale - n_columns))
    assert abs((y2 - y1) / scale - n_rows) < 1
    for found, first, n in ((pixels[0].float().mean(0), x1, n_columns), (pixels[1].float().mean(1), y1, n_rows)):
        # a pixel is the mean of scale x scale, and corners were moved by half of that at most
        centres = first - 0.5 + (torch.arange(n) + 0.5) * scale
        assert (found / 2 - centres).abs().max() <= scale / 2 + 1


def test_shrinking_reader_goes_to_workers_and_refuses_nonsense() -> None:
    reader = pickle.loads(pickle.dumps(ShrinkingReader(min_side=20)))
    assert repr(reader) == "ShrinkingReader(min_side=20)"
    content = ramps(100, 80)
    assert reader(content).shape == (3, 20, 25)
    with pytest.raises(ValueError, match="min_side of 1 pixel or more, got 0"):
        ShrinkingReader(min_side=0)
    for box in [(0, 0, 101, 80), (-1, 0, 50, 50), (10, 10, 10, 20)]:
        with pytest.raises(ValueError, match=r"ShrinkingReader needs a box .* 100 x 80 pixels, got \("):
            reader.read(content, box)


@pytest.mark.parametrize(("mode", "kind"), [("CMYK", "JPEG"), ("RGB", "MPO")])
def test_all_kinds_of_jpeg_are_reduced(mode: str, kind: str) -> None:
    file = io.BytesIO()
    image = Image.new("RGB", (64, 48), (200, 100, 50)).convert(mode)
    image.save(file, kind, **({"save_all": True, "append_images": [image]} if kind == "MPO" else {}))
    pixels = ShrinkingReader(min_side=12)(file.getvalue())
    assert pixels.shape == (3, 12, 16)
    assert (pixels.float().mean(dim=(1, 2)) - torch.tensor([200.0, 100.0, 50.0])).abs().max() < 3


def test_other_formats_are_not_reduced() -> None:
    file = io.BytesIO()
    Image.fromarray(np.arange(40 * 30 * 3, dtype=np.uint8).reshape(30, 40, 3)).save(file, "PNG")
    content = file.getvalue()
    pixels, full_size = ShrinkingReader(min_side=2).read(content, (4, 2, 33, 28))
    assert full_size == (40, 30)
    assert torch.equal(pixels, imread_tensor(content)[:, 2:28, 4:33])


@pytest.mark.parametrize(
    "convert", [np.asarray, Image.fromarray, lambda array: torch.from_numpy(array).permute(2, 0, 1)]
)
def test_sizes_and_crops_of_what_readers_give(convert: Any) -> None:
    array = np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)
    image = convert(array)
    assert image_size(image) == (30, 20)
    part = crop_image(image, (3, 4, 13, 10))
    assert type(part) is type(image)
    assert image_size(part) == (10, 6)
    pixels = part.permute(1, 2, 0).numpy() if isinstance(part, torch.Tensor) else np.asarray(part)
    np.testing.assert_array_equal(pixels, array[4:10, 3:13])
    for box in [(0, 0, 31, 20), (0, -1, 30, 20), (5, 0, 5, 20)]:
        with pytest.raises(ValueError, match="crop_image needs a box .* 30 x 20 pixels"):
            crop_image(image, box)


def test_tensors_become_images() -> None:
    image = torch.tensor([[[-2.0, 0.0]], [[1.0, 2.0]], [[3.0, 8.0]]])  # 3 channels, 1 row, 2 columns
    expected = [[[0, round(3 * 25.5), round(5 * 25.5)], [round(2 * 25.5), round(4 * 25.5), 255]]]
    assert tensor_to_numpy_image(image).tolist() == expected
    for constant in (torch.full((3, 2, 2), 0.7), torch.zeros(1, 2, 2), torch.full((3, 1, 1), 5)):
        assert not tensor_to_numpy_image(constant).any()
    with pytest.raises(ValueError, match="finite"):
        tensor_to_numpy_image(torch.tensor([[[0.0, torch.nan]]]))


def test_a_frame_lies_just_inside_of_the_box() -> None:
    image = np.full((40, 60, 3), 9, dtype=np.uint8)
    framed = draw_bbox(image, torch.tensor([10, 5, 50.4, 30]), RED)
    expected = image.copy()
    expected[5:30, 10:50] = RED
    expected[8:27, 13:47] = 9
    np.testing.assert_array_equal(framed, expected)
    assert (image == 9).all()

    large = draw_bbox(np.zeros((200, 100, 3), dtype=np.uint8), torch.full((4,), torch.nan), RED)
    assert (large[..., 0] == 255).sum() == 200 * 100 - (200 - 14) * (100 - 14)  # int(0.05 * 300 / 2) = 7 pixels
    with pytest.raises(ValueError, match=r"four numbers.*\[1.0, nan, 5.0, 5.0\]"):
        draw_bbox(image, torch.tensor([1, torch.nan, 5, 5]), RED)
    with pytest.raises(ValueError, match="x1 < x2"):
        draw_bbox(image, torch.tensor([5, 1, 5, 5]), RED)


def test_a_frame_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.new("RGB", (30, 20)).save(path)
    box = torch.tensor([2, 3, 20, 15])
    expected = draw_bbox(np.zeros((20, 30, 3), dtype=np.uint8), box, RED)
    np.testing.assert_array_equal(get_img_with_bbox(path, box, RED), expected)


@pytest.mark.parametrize(("height", "width", "top", "left"), [(3, 6, 1, 0), (6, 3, 0, 1), (4, 4, 0, 0)])
def test_padding_to_a_square(height: int, width: int, top: int, left: int) -> None:
    image = np.zeros((height, width, 3), dtype=np.uint8)
    expected = np.full((max(height, width),) * 2 + (3,), 255, dtype=np.uint8)
    expected[top : top + height, left : left + width] = 0
    np.testing.assert_array_equal(square_pad(image), expected)


def test_broken_images_are_found_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(7)]
    for path in paths:
        Image.new("RGB", (3, 2)).save(path)
    paths[2].write_text("no image")
    paths[5].unlink()
    broken = [str(paths[2]), str(paths[5])]
    assert find_broken_images(paths, imread_pillow) == broken
    assert find_broken_images(map(str, paths), lambda path: imread_tensor(path), num_processes=1) == broken
    assert find_broken_images(paths[:2], imread_tensor) == find_broken_images([], imread_tensor) == []
    assert "Reading images" in capsys.readouterr().out
    with pytest.raises(ValueError, match="one process or more, got 0"):
        find_broken_images(paths, imread_pillow, num_processes=0)

    assert try_to_open_image(paths[0], imread_pillow) is None
    assert try_to_open_image(paths[2], imread_pillow) == broken[0]
