"""Decoded images kept between epochs, in one file that all worker processes share."""

import os
import shutil
import struct
import tempfile
import warnings
import weakref
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from torch import Tensor

_COUNTER = struct.Struct("<q")
# where its pixels begin (0: not kept), its type, height, width, and the width and height of the full image
_RECORD = struct.Struct("<6q")
_TYPES = (Image.Image, np.ndarray, Tensor)


class Decoded(NamedTuple):
    """An image as its reader gave it, and the ``(width, height)`` of the full image, of which it may be a part."""

    image: Any
    full_size: tuple[int, int]


class DecodedImageCache:
    """Keeps images by number, at most ``n_bytes`` of pixels in all; what does not fit any more is not kept.

    Nothing is ever thrown out: epochs visit every image once, in random order, so any full set of images is hit
    equally often, while "least recently used" would throw out just what comes next.

    The pixels lie in a temporary file (``$TMPDIR`` says where), which the operating system holds in memory as far
    as there is some. Processes that get a copy of this object, by fork or by pickling, share the file: what one
    worker has decoded the others need not. The file is removed with the object that made it.

    Kept are RGB images of Pillow, uint8 arrays (height, width, 3) and uint8 tensors (3, height, width).

    Args:
        n_images: images are numbered ``0 .. n_images - 1``.
        n_bytes: of pixels to keep at most.

    Example:
        >>> cache = DecodedImageCache(n_images=2, n_bytes=1_000)
        >>> cache.put(1, Decoded(np.zeros((4, 5, 3), dtype=np.uint8), full_size=(5, 4)))
        >>> cache.get(0), cache.get(1).image.shape, cache.n_bytes_used
        (None, (4, 5, 3), 60)
    """

    def __init__(self, n_images: int, n_bytes: int) -> None:
        folder = tempfile.mkdtemp(prefix="oml-images-")
        self._path = Path(folder) / "pixels"
        self._n_bytes = n_bytes
        self._first = _COUNTER.size + n_images * _RECORD.size
        with self._path.open("wb") as file:
            file.truncate(self._first)
        weakref.finalize(self, _remove, folder, os.getpid())

    @property
    def n_bytes_used(self) -> int:
        """Bytes of the pixels that are kept or being written."""
        with self._opened() as file:
            return _COUNTER.unpack(_read(file, 0, _COUNTER.size))[0]

    def get(self, number: int) -> Decoded | None:
        """The image of that number, or ``None`` if it is not kept."""
        try:
            file = self._opened()
        except FileNotFoundError:  # whoever made the cache of which this is a copy is gone
            return None
        with file:
            start, kind, height, width, *full_size = _RECORD.unpack(_read(file, _place(number), _RECORD.size))
            if start == 0:
                return None
            pixels = np.frombuffer(_read(file, start, height * width * 3), dtype=np.uint8).reshape(height, width, 3)
        full = (full_size[0], full_size[1])
        match _TYPES[kind]:
            case np.ndarray:
                return Decoded(pixels, full)
            case torch.Tensor:
                return Decoded(torch.from_numpy(pixels).permute(2, 0, 1), full)
            case _:
                return Decoded(Image.fromarray(pixels), full)

    def put(self, number: int, decoded: Decoded) -> None:
        """Keep an image if there is room, it is of a type that can be kept, and its number is not kept already."""
        image = decoded.image
        kind = next((kind for kind, known in enumerate(_TYPES) if isinstance(image, known)), None)
        pixels = np.ascontiguousarray(pixels_of(image))
        if kind is None or pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            return
        if isinstance(image, Image.Image) and image.mode != "RGB":
            return
        try:
            file = self._opened()
        except FileNotFoundError:
            return
        with file:
            start = self._reserved(file, number, pixels.nbytes)
            if start is None:
                return
            record = _RECORD.pack(start, kind, *pixels.shape[:2], *decoded.full_size)
            try:
                _write(file, start, pixels.data)
                # the first number last: whoever reads it finds the rest
                _write(file, _place(number) + _COUNTER.size, record[_COUNTER.size :])
                _write(file, _place(number), record[: _COUNTER.size])
            except OSError as error:
                self._n_bytes = 0
                self._warn(f"keeps no more images than it has: {error.strerror}.")

    def _reserved(self, file: FileIO, number: int, n_bytes: int) -> int | None:
        """Where an image may be written to, if it is to be kept."""

        def used() -> int:
            return _COUNTER.unpack(_read(file, 0, _COUNTER.size))[0]

        if used() + n_bytes > self._n_bytes:
            if 0 < self._n_bytes < n_bytes:
                self._warn(f"of {self._n_bytes:,} bytes has no room for an image of {n_bytes:,}.")
                self._n_bytes = 0
            return None
        with FileLock(self._path.with_suffix(".lock")):
            start = used()
            is_kept = _COUNTER.unpack(_read(file, _place(number), _COUNTER.size))[0] != 0
            if is_kept or start + n_bytes > self._n_bytes:
                return None
            _write(file, 0, _COUNTER.pack(start + n_bytes))
        return self._first + start

    def _opened(self) -> FileIO:
        """The file, for one call: open for longer, threads and forked processes would share a position in it."""
        return FileIO(self._path, "r+")

    def _warn(self, what: str) -> None:
        warnings.warn(
            f"The image cache in {self._path.parent} {what} cache_size is a number of bytes, of the decoded images; "
            "the environment variable TMPDIR says on which disk they lie.",
            stacklevel=4,
        )


def pixels_of(image: Any) -> np.ndarray:
    """An image of Pillow, an array, or a tensor (channel, height, width) as an array (height, width, channel)."""
    return image.permute(1, 2, 0).numpy() if isinstance(image, Tensor) and image.ndim == 3 else np.asarray(image)


def _place(number: int) -> int:
    """Where the record of an image stands."""
    return _COUNTER.size + number * _RECORD.size


def _read(file: FileIO, start: int, size: int) -> bytearray:
    content = bytearray(size)
    file.seek(start)
    if file.readinto(content) != size:
        raise OSError(f"The image cache {str(file.name)!r} is shorter than it was: somebody else changed it.")
    return content


def _write(file: FileIO, start: int, content: bytes | memoryview) -> None:
    file.seek(start)
    left = memoryview(content).cast("B")
    while left:
        left = left[file.write(left) :]


def _remove(folder: str, process: int) -> None:
    if os.getpid() == process:  # not in a worker that was forked off
        shutil.rmtree(folder, ignore_errors=True)
