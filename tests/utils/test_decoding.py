"""Files of every kind come out of all readers as the same upright RGB pixels."""

import io
import pickle
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg
import torch
from numpy import ndarray
from PIL import Image

from oml.utils.images import decoding
from oml.utils.images.images import ShrinkingReader, imread_cv2, imread_pillow, imread_tensor

HEIGHT, WIDTH = 24, 38
READERS: dict[str, Callable[[Any], Any]] = {
    "imread_pillow": imread_pillow,
    "imread_cv2": imread_cv2,
    "imread_tensor": imread_tensor,
    "ShrinkingReader": ShrinkingReader(min_side=HEIGHT),
}


def scene() -> ndarray:
    """Smooth, so that JPEG keeps it; no mirrored or turned version of it equals another."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([columns * 6, rows * 10, 255 - columns * 3 - rows * 4], axis=2).astype(np.uint8)


def array_of(image: Any) -> ndarray:
    """What any of the readers gave, as (height, width, 3)."""
    return np.asarray(image) if isinstance(image, Image.Image | ndarray) else image.permute(1, 2, 0).numpy()


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def rgb() -> Image.Image:
    return Image.fromarray(scene())


def gray() -> Image.Image:
    return Image.fromarray(scene()[..., 0])


def few_colours() -> Image.Image:
    return Image.fromarray(scene() // 64 * 64)


def with_alpha(image: Image.Image) -> Image.Image:
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def palette(image: Image.Image) -> Image.Image:
    """With colours as they are, for they are few."""
    return image.quantize(256, dither=Image.Dither.NONE)


def ycck() -> bytes:
    """As Adobe writes it: inverted, and the inverted colours as luminance and chrominance; no black.

    Pillow inverts what it writes, and marks it as plain CMYK.
    """
    stored = np.dstack([np.asarray(Image.fromarray(255 - scene()).convert("YCbCr")), np.full((HEIGHT, WIDTH), 255)])
    content = bytearray(encoded(Image.fromarray((255 - stored).astype(np.uint8), "CMYK"), "JPEG", quality=98))
    transform = content.index(b"Adobe") + 11
    assert content[transform] == 0
    content[transform] = 2
    return bytes(content)


def in_gray(pixels: ndarray) -> ndarray:
    return np.repeat(pixels[..., None], 3, axis=2)


def png16(pixels: ndarray) -> bytes:
    """Of pixels with 16 bits, whose channels cv2 wants in the order blue, green, red."""
    assert pixels.dtype == np.uint16
    return cv2.imencode(".png", pixels[..., ::-1] if pixels.ndim == 3 else pixels)[1].tobytes()


LOW = np.uint16(173)  # the lower byte of 16 bits
FINE_GRAY, FINE = (scene()[..., 0].astype(np.uint16) << 8) + LOW, (scene().astype(np.uint16) << 8) + LOW
SMOOTH = {"quality": 98, "subsampling": 0}
GRAY = in_gray(scene()[..., 0])
BLACK_OR_WHITE = in_gray(np.where(scene()[..., 0] >= 128, 255, 0))
FEW = scene() // 64 * 64

#: name -> bytes of the file, the pixels in it, by how much a lossy one may miss them
KINDS: dict[str, tuple[Callable[[], bytes], ndarray, int]] = {
    "PNG": (lambda: encoded(rgb(), "PNG"), scene(), 0),
    "PNG, alpha": (lambda: encoded(with_alpha(rgb()), "PNG"), scene(), 0),
    "PNG, one colour is transparent": (lambda: encoded(rgb(), "PNG", transparency=(0, 0, 255)), scene(), 0),
    "PNG, gray": (lambda: encoded(gray(), "PNG"), GRAY, 0),
    "PNG, gray and alpha": (lambda: encoded(with_alpha(gray()), "PNG"), GRAY, 0),
    "PNG, 1 bit": (lambda: encoded(gray().point(lambda value: 255 * (value >= 128), "1"), "PNG"), BLACK_OR_WHITE, 0),
    "PNG, palette": (lambda: encoded(palette(few_colours()), "PNG"), FEW, 0),
    "PNG, palette, one is transparent": (lambda: encoded(palette(few_colours()), "PNG", transparency=0), FEW, 0),
    "PNG, palette with alpha": (
        lambda: encoded(palette(few_colours()), "PNG", transparency=bytes(range(0, 250, 10))),
        FEW,
        0,
    ),
    "PNG, gray, 16 bits": (lambda: png16(FINE_GRAY), GRAY, 0),
    "PNG, 16 bits": (lambda: png16(FINE), scene(), 0),
    "BMP": (lambda: encoded(rgb(), "BMP"), scene(), 0),
    "PPM": (lambda: encoded(rgb(), "PPM"), scene(), 0),
    "PGM, 16 bits": (lambda: b"P5 %d %d 65535\n" % (WIDTH, HEIGHT) + FINE_GRAY.astype(">u2").tobytes(), GRAY, 0),
    "GIF, the first of two frames": (
        lambda: encoded(palette(few_colours()), "GIF", save_all=True, append_images=[gray()]),
        FEW,
        0,
    ),
    "TIFF": (lambda: encoded(rgb(), "TIFF", compression="tiff_lzw"), scene(), 0),
    "TIFF, the first of two": (lambda: encoded(rgb(), "TIFF", save_all=True, append_images=[gray()]), scene(), 0),
    "TIFF, gray, 16 bits": (lambda: encoded(Image.fromarray(FINE_GRAY), "TIFF"), GRAY, 0),
    "TIFF, gray, 16 bits, big end first": (lambda: encoded(Image.fromarray(FINE_GRAY.astype(">u2")), "TIFF"), GRAY, 0),
    "WebP, lossless": (lambda: encoded(rgb(), "WEBP", lossless=True), scene(), 0),
    "WebP, the first of two frames": (
        lambda: encoded(rgb(), "WEBP", lossless=True, save_all=True, append_images=[gray()]),
        scene(),
        0,
    ),
    "WebP": (lambda: encoded(rgb(), "WEBP", quality=98), scene(), 16),
    "JPEG": (lambda: encoded(rgb(), "JPEG", **SMOOTH), scene(), 4),
    "JPEG, chroma halved": (lambda: encoded(rgb(), "JPEG", quality=98, subsampling=2), scene(), 12),
    "JPEG, progressive": (lambda: encoded(rgb(), "JPEG", progressive=True, **SMOOTH), scene(), 4),
    "JPEG, gray": (lambda: encoded(gray(), "JPEG", quality=98), GRAY, 4),
    "JPEG, CMYK": (lambda: encoded(rgb().convert("CMYK"), "JPEG", **SMOOTH), scene(), 6),
    "JPEG, YCCK": (ycck, scene(), 12),
    "JPEG, the first of two (MPO)": (
        lambda: encoded(rgb(), "MPO", save_all=True, append_images=[gray()], **SMOOTH),
        scene(),
        4,
    ),
    "JPEG, something behind it": (lambda: encoded(rgb(), "JPEG", **SMOOTH) + b"\xff\xd8\xff and more", scene(), 4),
}


@pytest.fixture(params=["simplejpeg", "torchvision", "Pillow alone"])
def _decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "simplejpeg":
        assert decoding._simplejpeg() is not None
        return
    monkeypatch.setattr(decoding, "_simplejpeg", lambda: None)
    if request.param == "Pillow alone":
        monkeypatch.setattr(decoding, "_torchvision_decoder", lambda: None)
    else:
        assert decoding._torchvision_decoder() is not None


def test_fast_decoders_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    monkeypatch.setattr(torch.ops, "image", object())
    assert decoding._simplejpeg.__wrapped__() is None
    assert decoding._torchvision_decoder.__wrapped__() is None


def test_the_fastest_decoder_is_asked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    content = KINDS["JPEG"][0]()
    asked = []
    real = decoding._torchvision_decoder()
    assert real is not None
    monkeypatch.setattr(decoding, "_torchvision_decoder", lambda: lambda *args: (asked.append(args), real(*args))[1])
    imread_tensor(content)
    assert not asked
    monkeypatch.setattr(decoding, "_simplejpeg", lambda: None)
    imread_tensor(content)
    assert len(asked) == 1


@pytest.mark.usefixtures("_decoder")
@pytest.mark.parametrize("kind", KINDS)
def test_all_readers_see_what_is_in_the_file(kind: str, tmp_path: Path) -> None:
    make, expected, tolerance = KINDS[kind]
    content = make()
    path = tmp_path / "image.whatever"  # the content counts, not the suffix
    path.write_bytes(content)
    reference = array_of(imread_pillow(content))
    assert reference.dtype == np.uint8
    assert reference.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(reference.astype(int) - expected).max() <= tolerance
    for read in READERS.values():
        for source in (content, path, str(path)):
            np.testing.assert_array_equal(array_of(read(source)), reference)


def test_images_may_be_written_to_and_pickled() -> None:
    for kind in ("PNG", "PNG, gray", "JPEG", "BMP", "JPEG, CMYK"):
        content = KINDS[kind][0]()
        image, array, tensor = imread_pillow(content), imread_cv2(content), imread_tensor(content)
        assert (image.mode, array.flags.writeable, array.flags.c_contiguous) == ("RGB", True, True)
        array[0, 0], tensor[:, 0, 0] = 7, 7
        assert np.array_equal(array_of(tensor), array)
        assert np.array_equal(array_of(pickle.loads(pickle.dumps(image))), array_of(image))


@pytest.mark.parametrize(
    "kind", ["JPEG", "JPEG, chroma halved", "JPEG, progressive", "JPEG, gray", "PNG", "PNG, 16 bits"]
)
def test_pixels_are_those_of_opencv(kind: str) -> None:
    content = KINDS[kind][0]()
    np.testing.assert_array_equal(
        imread_cv2(content), cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
    )


# how a scene has to be stored, so that it is upright with this orientation
STORED: dict[int, Callable[[ndarray], ndarray]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright),  # the camera lay on its right side
    7: lambda upright: np.rot90(upright, 2).transpose(1, 0, 2),
    8: lambda upright: np.rot90(upright, -1),
}


def turned(orientation: int, kind: str, upright: ndarray | None = None, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.ascontiguousarray(STORED.get(orientation, STORED[1])(scene() if upright is None else upright))
    return encoded(Image.fromarray(pixels), kind, exif=exif, **options)


@pytest.mark.usefixtures("_decoder")
@pytest.mark.parametrize("orientation", range(10))  # 0 and 9 mean nothing
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_images_are_upright(kind: str, orientation: int) -> None:
    options = SMOOTH if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    content = turned(orientation, kind, **options)
    for read in READERS.values():
        difference = np.abs(array_of(read(content)).astype(int) - scene())
        assert difference.max() <= (4 if kind == "JPEG" else 0)


def test_broken_exif_data_do_not_matter() -> None:
    content = encoded(rgb(), "PNG", exif=b"Exif\0\0nonsense")
    for read in READERS.values():
        np.testing.assert_array_equal(array_of(read(content)), scene())


BROKEN = {
    "half a JPEG": lambda: KINDS["JPEG"][0]()[:-300],
    "a JPEG without its end": lambda: KINDS["JPEG"][0]()[:-2],
    "half a header": lambda: KINDS["JPEG"][0]()[:30],
    "half a PNG": lambda: encoded(Image.effect_noise((64, 64), 50), "PNG")[:2000],
    "a PNG with a broken chunk": lambda: encoded(rgb(), "PNG").replace(b"IDAT", b"\xff\xff\xff\xff"),
    "half a WebP": lambda: KINDS["WebP"][0]()[:100],
    "a web page": lambda: b"<html>404</html>",
    "nothing": lambda: b"",
    "floating point numbers": lambda: encoded(Image.new("F", (3, 4)), "TIFF"),
    "whole numbers of 32 bits": lambda: encoded(Image.new("I", (3, 4), 70_000), "TIFF"),
    "negative numbers": lambda: encoded(Image.new("I", (3, 4), -1), "TIFF"),
}


@pytest.mark.usefixtures("_decoder")
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("fault", BROKEN)
def test_faults_are_one_line_that_names_the_file(reader: str, fault: str, tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(BROKEN[fault]())
    with pytest.raises(OSError) as caught:  # noqa: PT011 (looked at below)
        READERS[reader](path)
    prefix = f"{reader} cannot decode {path}: "
    assert str(caught.value).startswith(prefix)
    assert len(str(caught.value)) > len(prefix) + 10
    assert "\n" not in str(caught.value)
    with pytest.raises(OSError, match=f"{reader} cannot decode an image of {path.stat().st_size} bytes: "):
        READERS[reader](path.read_bytes())


@pytest.mark.usefixtures("_decoder")
def test_what_pillow_can_still_read_is_read() -> None:
    whole = KINDS["JPEG"][0]()
    damaged = whole[:-200] + whole[-2:]  # it says that it ends where it does not
    with pytest.raises(ValueError, match="Corrupt"):
        simplejpeg.decode_jpeg(damaged)
    expected = np.asarray(Image.open(io.BytesIO(damaged)))
    for read in READERS.values():
        np.testing.assert_array_equal(array_of(read(damaged)), expected)


@pytest.mark.parametrize("reader", READERS)
def test_missing_files_and_other_sources(reader: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        READERS[reader](tmp_path / "nowhere.png")
    with pytest.raises(OSError):  # noqa: PT011 (the system's own text)
        READERS[reader](tmp_path)
    with pytest.raises(TypeError):  # the type checker of the test run says it before the function does
        READERS[reader](3)
    with pytest.raises(TypeError, match="Unsupported type int: mine needs a path or the bytes of a file"):
        decoding.EncodedImage(3, "mine")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP"])
@pytest.mark.parametrize("factor", [1, 3])  # where Pillow would warn, and where it would raise
def test_a_bomb_does_not_go_off(reader: str, kind: str, factor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(Image.new("RGB", (10, 10 * factor + 1)), kind)
    expected = f"has 10 x {10 * factor + 1} pixels" if (kind, factor) != ("WEBP", 3) else "310 pixels"  # Pillow's own
    with monkeypatch.context() as limited:
        limited.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        with pytest.raises(OSError, match=rf"{expected}.* limit of .*set PIL.Image.MAX_IMAGE_PIXELS"):
            READERS[reader](content)
        READERS[reader](encoded(Image.new("RGB", (10, 10)), kind))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    READERS[reader](content)


def test_a_bomb_is_known_by_its_header_alone() -> None:
    content = encoded(Image.new("RGB", (10, 10)), "PNG")
    assert content[12:16] == b"IHDR"
    header = b"IHDR" + (50_000).to_bytes(4) * 2 + content[24:29]
    bomb = content[:12] + header + zlib.crc32(header).to_bytes(4) + content[33:]
    with pytest.raises(OSError, match="50000 x 50000 pixels"):
        imread_tensor(bomb)
