"""Images of files, or of boxes in them: read, decoded, kept, cut."""

import errno
import warnings
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from oml.datasets.image_cache import Decoded, DecodedImageCache
from oml.utils.images.images import ShrinkingReader, TImReader, crop_image, image_size

Box = tuple[int, int, int, int]
OnUnreadable = Literal["raise", "skip"]

_TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)


class UnreadableImageError(OSError):
    """The file of an item cannot be read or decoded."""


class _OutsideError(ValueError):
    """Nothing of a box lies inside its image."""


class ImageFiles:
    """Images by number; what a data set asks for the pixels of its items.

    Args:
        owner: who is speaking in error messages.
        paths: of the image files; one may occur several times, with different boxes.
        boxes: x1, y1, x2, y2 of the part to take from each, NaN for the whole image; ``None`` if there are none at all.
        f_imread: the bytes of a file -> image. A :class:`~oml.utils.images.images.ShrinkingReader` is told the box.
        cache_size: bytes of decoded pixels to keep between epochs, shared by all worker processes; 0 keeps none.
        rows: what the owner's user calls the items, for messages; by default their numbers.

    Raises:
        ValueError: for a negative ``cache_size``.
    """

    def __init__(
        self,
        owner: str,
        paths: Sequence[str],
        boxes: Float[ndarray, "item 4"] | None,
        f_imread: TImReader,
        cache_size: int | None = 0,
        rows: Sequence[Hashable] | None = None,
    ) -> None:
        cache_size = cache_size or 0
        if cache_size < 0:
            raise ValueError(f"{owner} needs a cache_size of 0 or more bytes, got {cache_size}.")
        self._owner = owner
        self._rows = range(len(paths)) if rows is None else rows
        self._has_cut_boxes = False
        self._paths = list(paths)
        self._boxes = boxes
        self._f_imread = f_imread
        self._numbers: list[int] = []
        self._cache: DecodedImageCache | None = None
        if cache_size > 0:
            # a shrinking reader gives another image for each box, others one for each file
            by_row = boxes is not None and isinstance(f_imread, ShrinkingReader)
            numbers = np.arange(len(paths)) if by_row else np.unique(self._paths, return_inverse=True)[1]
            self._numbers = numbers.tolist()
            self._cache = DecodedImageCache(len(paths), cache_size)

    def __len__(self) -> int:
        return len(self._paths)

    def load(self, idx: int) -> tuple[Any, Box]:
        """The pixels of an item, and the box they are from: x1, y1, x2, y2 in the full image.

        Raises:
            UnreadableImageError: if there is no such file or it cannot be decoded.
            ValueError: if the box lies outside of the image. What sticks out of the image is cut off.
        """
        decoded = None
        if self._cache is not None:
            decoded = self._cache.get(self._numbers[idx])
            if decoded is None:
                decoded = self._decode(idx)
                self._cache.put(self._numbers[idx], decoded)
        decoded = decoded or self._decode(idx)
        box = self._box_inside(idx, decoded.full_size)
        if box == (0, 0, *decoded.full_size) or isinstance(self._f_imread, ShrinkingReader):
            return decoded.image, box
        return crop_image(decoded.image, box), box

    def _decode(self, idx: int) -> Decoded:
        try:
            content = Path(self._paths[idx]).read_bytes()
            if isinstance(self._f_imread, ShrinkingReader):
                return self._shrunk(self._f_imread, content, idx)
            image = self._f_imread(content)
            return Decoded(image, image_size(image))
        except Exception as error:  # readers are users' own functions, too
            if isinstance(error, MemoryError | _OutsideError) or getattr(error, "errno", None) in _TOO_MANY_FILES:
                raise  # it is not the file's fault
            raise UnreadableImageError(
                f"{self._owner} cannot read the image of row {self._rows[idx]}, {self._paths[idx]}: "
                f"{' '.join(str(error).split())}. Replace the file, or leave it out."
            ) from error

    def _shrunk(self, reader: ShrinkingReader, content: bytes, idx: int) -> Decoded:
        try:
            return Decoded(*reader.read(content, self._given_box(idx)))
        except ValueError:  # the box leaves the image, whose size we know now
            full_size = reader.read(content)[1]
            return Decoded(*reader.read(content, self._box_inside(idx, full_size)))

    def _given_box(self, idx: int) -> Box | None:
        if self._boxes is None or np.isnan(self._boxes[idx]).any():
            return None
        x1, y1, x2, y2 = (int(side) for side in self._boxes[idx])
        return x1, y1, x2, y2

    def _box_inside(self, idx: int, full_size: tuple[int, int]) -> Box:
        width, height = full_size
        box = self._given_box(idx) or (0, 0, width, height)
        if box[2] <= width and box[3] <= height:
            return box
        what = (
            f"{self._owner} got a box that leaves its image in row {self._rows[idx]}, {self._paths[idx]}: the box "
            f"ends at {box[2:]}, the image has {width} x {height} pixels."
        )
        if box[0] >= width or box[1] >= height:
            raise _OutsideError(f"{what} Nothing of it lies inside.")
        if not self._has_cut_boxes:
            self._has_cut_boxes = True
            warnings.warn(
                f"{what} What sticks out is cut off, here and elsewhere; `oml check TABLE --images` lists such boxes.",
                stacklevel=2,
            )
        return box[0], box[1], min(box[2], width), min(box[3], height)


def readable_batch(item: Callable[[int], Any], ids: Sequence[int], on_unreadable: OnUnreadable) -> list[Any]:
    """What ``item`` gives for each of the ids; without those whose image cannot be read, if they are to be skipped.

    Raises:
        UnreadableImageError: if ``on_unreadable`` is ``raise``, or nothing is left.
    """
    items, errors = [], []
    for idx in ids:
        try:
            items.append(item(idx))
        except UnreadableImageError as error:
            if on_unreadable == "raise":
                raise
            errors.append(error)
    if errors and not items:
        raise errors[0]
    for error in errors:
        warnings.warn(f"{error} It is skipped.", stacklevel=3)
    return items
