"""Decoded images kept between epochs, in one file that all worker processes share."""

import os
import shutil
import struct
import tempfile
import threading
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
        self._process = -1
        with self._path.open("wb") as file:
            file.truncate(self._first)
        weakref.finalize(self, _remove, folder, os.getpid())

    @property
    def n_bytes_used(self) -> int:
        """Bytes of the pixels that are kept or being written."""
        file = self._opened()
        with self._one_thread:
            return _COUNTER.unpack(_read(file, 0, _COUNTER.size))[0]

    def get(self, number: int) -> Decoded | None:
        """The image of that number, or ``None`` if it is not kept."""
        file = self._opened()
        with self._one_thread:
            record = _read(file, _COUNTER.size + number * _RECORD.size, _RECORD.size)
            start, kind, height, width, *full_size = _RECORD.unpack(record)
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
        """Keep an image if there is room, and it is of a type that can be kept."""
        kind = next((kind for kind, known in enumerate(_TYPES) if isinstance(decoded.image, known)), None)
        pixels = np.ascontiguousarray(pixels_of(decoded.image))
        if kind is None or pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            return
        if self.n_bytes_used + pixels.nbytes > self._n_bytes:
            return
        file = self._opened()
        with self._one_process, self._one_thread:
            used = _COUNTER.unpack(_read(file, 0, _COUNTER.size))[0]
            if used + pixels.nbytes > self._n_bytes:
                return
            _write(file, 0, _COUNTER.pack(used + pixels.nbytes))
        start = self._first + used
        record = _RECORD.pack(start, kind, *pixels.shape[:2], *decoded.full_size)
        try:
            with self._one_thread:
                _write(file, start, pixels.data)
                # the first number last: whoever reads it finds the rest
                place = _COUNTER.size + number * _RECORD.size
                _write(file, place + _COUNTER.size, record[_COUNTER.size :])
                _write(file, place, record[: _COUNTER.size])
        except OSError as error:
            self._n_bytes = 0
            warnings.warn(
                f"The image cache in {self._path.parent} keeps no more than it has, {used} bytes: {error.strerror}. "
                "Choose a smaller cache_size, or name a folder on another disk in the environment variable TMPDIR.",
                stacklevel=2,
            )

    def _opened(self) -> FileIO:
        """The file as this process has opened it: after a fork, parent and child would share one position in it."""
        if self._process != os.getpid():
            self._file = FileIO(self._path, "r+")
            weakref.finalize(self, self._file.close)
            self._one_thread = threading.Lock()
            self._one_process = FileLock(self._path.with_suffix(".lock"))
            self._process = os.getpid()
        return self._file

    def __getstate__(self) -> dict[str, Any]:
        return {"_path": self._path, "_n_bytes": self._n_bytes, "_first": self._first, "_process": -1}


def pixels_of(image: Any) -> np.ndarray:
    """An image of Pillow, an array, or a tensor (channel, height, width) as an array (height, width, channel)."""
    return image.permute(1, 2, 0).numpy() if isinstance(image, Tensor) and image.ndim == 3 else np.asarray(image)


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
