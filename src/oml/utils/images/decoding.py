"""Bytes of an image file -> 8-bit RGB pixels, as people see them.

Pillow reads the header of every file, and decodes all formats. JPEG pixels come from ``simplejpeg`` where that is
installed (extra ``fast``), or else from torchvision, as long as it decodes images. There is the same library
underneath, so pixels are the same to the last bit, but they are copied less often than out of Pillow.
"""

import functools
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from PIL.ImageFile import ImageFile
from torch import Tensor

TBox = tuple[int, int, int, int]

_ORIENTATION = 0x0112  # of the EXIF tags
_AS_RGB = 3  # to the decoder of torchvision
_IF_TRUSTED = "If you trust it, set PIL.Image.MAX_IMAGE_PIXELS to a larger number, or to None."
#: orientation -> how stored pixels become upright ones: rows and columns change places, then columns, rows are reversed
_UPRIGHT = {
    1: (False, False, False),
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}


class EncodedImage:
    """An image file whose header has been read, and whose pixels are still to be decoded.

    What comes out of it has three channels of 8 bits: transparency is dropped, of 16 bits the upper 8 are taken. It is
    turned upright as its EXIF orientation says; ``size`` and boxes mean the upright image. Of several frames it is
    the first.

    Args:
        source: a path, or the bytes of a file.
        reader: who is speaking in error messages.

    Raises:
        TypeError: for anything but a path or bytes.
        OSError: if there is no such file, it is no image, or one of more than ``PIL.Image.MAX_IMAGE_PIXELS`` pixels,
            which is found out before anything is decoded.
    """

    def __init__(self, source: Any, reader: str) -> None:
        if not isinstance(source, Path | str | bytes):
            raise TypeError(f"Unsupported type {type(source).__name__}: {reader} needs a path or the bytes of a file.")
        self._name = f"an image of {len(source)} bytes" if isinstance(source, bytes) else str(source)
        self._reader = reader
        self._content = source if isinstance(source, bytes) else Path(source).read_bytes()
        with self._one_error():
            self._image = _identified(self._content)
            _check_number_of_pixels(*self._image.size)
            self._is_jpeg = self._image.format in ("JPEG", "MPO")  # MPO: a JPEG with more images behind it
            if not self._is_jpeg:
                self._image.load()  # other formats may tell their orientation, or size, as late as that
            self._swapped, self._reversed_x, self._reversed_y = _UPRIGHT[_orientation(self._image)]
        width, height = self._image.size
        self.size = (height, width) if self._swapped else (width, height)

    def pillow(self) -> Image.Image:
        """The image as Pillow's, in mode RGB."""
        with self._one_error():
            self._image.load()
            return _rgb(ImageOps.exif_transpose(self._image) if self._turned else self._image)

    def pixels(self, box: TBox | None = None, min_side: int | None = None) -> UInt8[np.ndarray, "height width 3"]:
        """The pixels of a box, or all of them, in an array of their own.

        Args:
            box: x1, y1, x2, y2; the pixels of column x2 and row y2 are not part of it.
            min_side: decode a JPEG image at the smallest scale among 1, 1/2, 1/4 and 1/8 at which both sides of the
                box keep that many pixels; the corners are rounded to whole pixels of the reduced image.

        Raises:
            ValueError: if the box is empty or leaves the image.
            OSError: if the file cannot be decoded.
        """
        width, height = self.size
        box = box or (0, 0, width, height)
        if not (0 <= box[0] < box[2] <= width and 0 <= box[1] < box[3] <= height):
            raise ValueError(
                f"{self._reader} needs a box x1, y1, x2, y2 inside of {self._name}, "
                f"which has {width} x {height} pixels, got {box}."
            )
        whole = box == (0, 0, width, height)
        stored_box = self._stored(box)
        scale = 1 if min_side is None else self._scale(stored_box, min_side)
        with self._one_error():
            pixels = self._decoded(scale)
        if whole and not self._turned:
            return pixels
        if not whole:
            x1, y1, x2, y2 = _reduced(stored_box, scale)
            pixels = pixels[y1:y2, x1:x2]
        if self._swapped:
            pixels = pixels.transpose(1, 0, 2)
        pixels = pixels[:: -1 if self._reversed_y else 1, :: -1 if self._reversed_x else 1]
        return pixels.copy()

    @property
    def _turned(self) -> bool:
        return self._swapped or self._reversed_x or self._reversed_y

    def _stored(self, box: TBox) -> TBox:
        """The same box in the image as it is stored."""
        x1, y1, x2, y2 = box
        width, height = self.size
        if self._reversed_x:
            x1, x2 = width - x2, width - x1
        if self._reversed_y:
            y1, y2 = height - y2, height - y1
        return (y1, x1, y2, x2) if self._swapped else (x1, y1, x2, y2)

    def _scale(self, stored_box: TBox, min_side: int) -> int:
        for scale in (8, 4, 2):
            x1, y1, x2, y2 = _reduced(stored_box, scale)
            if self._is_jpeg and scale <= min(self._image.size) and min(x2 - x1, y2 - y1) >= min_side:
                return scale
        return 1

    def _decoded(self, scale: int) -> UInt8[np.ndarray, "height width 3"]:
        """All pixels as they are stored, writable."""
        width, height = self._image.size
        if self._is_jpeg:
            if self._image.mode in ("RGB", "L"):  # not CMYK
                smallest = (-(-width // scale), -(-height // scale)) if scale > 1 else None
                pixels = _jpeg_pixels(self._content, smallest)
                if pixels is not None:
                    return pixels
            if scale > 1:
                self._image.draft(None, (width // scale, height // scale))
        self._image.load()
        return np.array(_rgb(self._image))

    @contextmanager
    def _one_error(self) -> Iterator[None]:
        try:
            yield
        except Image.DecompressionBombError as error:  # of WebP, for one, Pillow checks the size itself
            raise OSError(f"{self._reader} cannot decode {self._name}: {error} {_IF_TRUSTED}") from error
        except Exception as error:  # decoders raise nearly everything for broken files
            raise OSError(f"{self._reader} cannot decode {self._name}: {' '.join(str(error).split())}") from error


def _jpeg_pixels(content: bytes, smallest: tuple[int, int] | None) -> UInt8[np.ndarray, "height width 3"] | None:
    """All pixels, or, of the images at reduced scales, the least one that is not below ``smallest`` (width, height).

    ``None`` if there is no decoder, or it finds a fault: whether the file can still be read is for Pillow to say.
    """
    try:
        if (simplejpeg := _simplejpeg()) is not None:
            width, height = smallest or (0, 0)
            return simplejpeg.decode_jpeg(content, min_width=width, min_height=height)
        if smallest is None and (decode := _torchvision_decoder()) is not None:
            pixels = decode(torch.frombuffer(bytearray(content), dtype=torch.uint8), _AS_RGB, False)
            return pixels.permute(1, 2, 0).numpy()
    except (ValueError, RuntimeError):
        pass
    return None


@functools.cache
def _simplejpeg() -> ModuleType | None:
    try:
        import simplejpeg
    except ModuleNotFoundError:
        return None
    return simplejpeg


@functools.cache
def _torchvision_decoder() -> Callable[..., Tensor] | None:
    # not torchvision.io.decode_jpeg, which calls the same but warns: it goes in some release after 0.29
    import torchvision  # noqa: F401 (brings the operator)

    return getattr(torch.ops.image, "decode_jpeg", None)


def _identified(content: bytes) -> ImageFile:
    """What ``PIL.Image.open`` does, but for its warning of large images.

    We raise an error instead, and ``warnings.catch_warnings``, which would keep the warning away, is not for threads.
    """
    why = []
    for load_plugins in (Image.preinit, Image.init):  # the common formats, all of them
        load_plugins()
        for name in Image.ID:
            factory, accepts = Image.OPEN[name]
            accepted = accepts is None or accepts(content[:16])
            if isinstance(accepted, str):
                why.append(accepted)
            elif accepted:
                try:
                    return factory(BytesIO(content), "")
                except (SyntaxError, IndexError, TypeError, struct.error) as error:
                    if accepts is not None:
                        why.append(f"{name}: {error}")
    raise OSError("; ".join(dict.fromkeys(why)) or "it is of no format that Pillow knows")


def _check_number_of_pixels(width: int, height: int) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise OSError(
            f"it has {width} x {height} pixels, more than the limit of {limit}: decoding it could fill the memory. "
            + _IF_TRUSTED
        )


def _orientation(image: ImageFile) -> int:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # broken EXIF data do not make an image unreadable
        return 1
    return orientation if orientation in _UPRIGHT else 1


def _rgb(image: Image.Image) -> Image.Image:
    """A loaded image in mode RGB; the image itself if it is in that mode."""
    if image.mode == "RGB":
        return image
    image.info.pop("transparency", None)  # which is dropped; Pillow would warn of it in palettes
    if image.mode == "F":
        raise OSError("its pixels are floating point numbers, and nothing says which of them is white")
    if image.mode.startswith("I"):  # Pillow would turn all above 255 to white
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise OSError("its pixels are whole numbers of 32 bits, and nothing says which of them is white")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    return image.convert("RGB")


def _reduced(box: TBox, scale: int) -> TBox:
    x1, y1, x2, y2 = ((2 * side + scale) // (2 * scale) for side in box)
    return x1, y1, x2, y2
