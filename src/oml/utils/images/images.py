"""Reading of images, and small things to do with them.

The three readers take a path or the bytes of a file, and differ only in what holds the pixels. All give three channels
of 8 bits, turned upright as the EXIF orientation says. Transparency is dropped: what counts is the colour stored below.
"""

import multiprocessing.pool
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from numpy import ndarray
from PIL import Image, ImageDraw
from torch import Tensor

from oml.const import PAD_COLOR, TColor
from oml.utils.images.decoding import EncodedImage, TBox

TImage = Image.Image | ndarray | Tensor
TImReader = Callable[[Path | str | bytes], Any]


def imread_pillow(im_src: Path | str | bytes) -> Image.Image:
    """An image file, or the bytes of one, as a PIL image in RGB mode.

    Raises:
        TypeError: for anything but a path or bytes.
        OSError: if there is no such file, it cannot be decoded, or has more than ``PIL.Image.MAX_IMAGE_PIXELS`` pixels.
            The readers below raise the same.
    """
    return EncodedImage(im_src, "imread_pillow").pillow()


def imread_cv2(im_src: Path | str | bytes) -> UInt8[ndarray, "height width 3"]:
    """An image file, or the bytes of one, as an array in the manner of OpenCV, but for the channels: red, green, blue.

    The pixels are those that ``cv2.imdecode`` gives for JPEG and PNG files of 8 bits. OpenCV itself is not needed: it
    would hide faults of files, and disagrees with Pillow on some kinds.
    """
    return EncodedImage(im_src, "imread_cv2").pixels()


def imread_tensor(im_src: Path | str | bytes) -> UInt8[Tensor, "3 height width"]:
    """An image file, or the bytes of one, as a tensor; for transforms of tensors this is the fastest reader.

    In memory the channels come last, which is how decoders write them and how torch resizes fastest.
    """
    return _as_tensor(EncodedImage(im_src, "imread_tensor").pixels())


class ShrinkingReader:
    """A reader of uint8 tensors (3, height, width) that decodes JPEG files at a reduced scale, which takes less time.

    The scale is the smallest among 1, 1/2, 1/4 and 1/8 at which both sides keep ``min_side`` pixels. Files of other
    formats, and smaller images, are read in full, as by :func:`imread_tensor`.

    It is for transforms that shrink images anyway. ``min_side`` is the size that the transforms need: ``im_size`` if
    they resize the whole image to a square of ``im_size`` pixels, and ``im_size / sqrt(min_scale)`` if they take a
    random part that covers ``min_scale`` of the area or more, such as ``RandomResizedCrop``.

    Args:
        min_side: pixels that both sides keep at least.

    Raises:
        ValueError: if ``min_side`` is less than 1.

    Example:
        >>> from io import BytesIO
        >>> file = BytesIO()
        >>> Image.new("RGB", (1600, 1200)).save(file, "JPEG")
        >>> read = ShrinkingReader(min_side=224)
        >>> read(file.getvalue()).shape
        torch.Size([3, 300, 400])
        >>> pixels, full_size = read.read(file.getvalue(), box=(0, 0, 800, 800))
        >>> pixels.shape, full_size
        (torch.Size([3, 400, 400]), (1600, 1200))
    """

    def __init__(self, min_side: int) -> None:
        if min_side < 1:
            raise ValueError(f"ShrinkingReader needs a min_side of 1 pixel or more, got {min_side}.")
        self.min_side = min_side

    def __call__(self, im_src: Path | str | bytes) -> UInt8[Tensor, "3 height width"]:
        """The whole image, reduced."""
        return self.read(im_src)[0]

    def read(
        self, im_src: Path | str | bytes, box: TBox | None = None
    ) -> tuple[UInt8[Tensor, "3 height width"], tuple[int, int]]:
        """The pixels of a box, reduced, and ``(width, height)`` of the full image.

        Args:
            im_src: a path, or the bytes of a file.
            box: x1, y1, x2, y2 in the full image; the scale is chosen so that the *box* keeps ``min_side`` pixels on
                both sides. Its corners are rounded to whole pixels of the reduced image. ``None``: the whole image.

        Raises:
            ValueError: if the box is empty or leaves the image.
            OSError: as :func:`imread_pillow`.
        """
        image = EncodedImage(im_src, "ShrinkingReader")
        return _as_tensor(image.pixels(box, self.min_side)), image.size

    def __repr__(self) -> str:
        return f"ShrinkingReader(min_side={self.min_side})"


def image_size(image: TImage) -> tuple[int, int]:
    """``(width, height)`` of a PIL image, an array (height, width, ...) or a tensor (..., height, width).

    Example:
        >>> image_size(np.zeros((4, 5, 3))), image_size(torch.zeros(3, 4, 5)), image_size(Image.new("RGB", (5, 4)))
        ((5, 4), (5, 4), (5, 4))
    """
    if isinstance(image, Image.Image):
        return image.size
    height, width = image.shape[-2:] if isinstance(image, Tensor) else image.shape[:2]
    return width, height


def crop_image(image: TImage, box: TBox) -> TImage:
    """The part of an image from x1, y1 up to x2, y2, which are not part of it; images as in :func:`image_size`.

    Arrays and tensors share their memory with the image.

    Raises:
        ValueError: if the box is empty or leaves the image.

    Example:
        >>> crop_image(torch.zeros(3, 40, 50), (10, 5, 30, 40)).shape
        torch.Size([3, 35, 20])
    """
    x1, y1, x2, y2 = box
    width, height = image_size(image)
    if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
        raise ValueError(f"crop_image needs a box x1, y1, x2, y2 inside of {width} x {height} pixels, got {box}.")
    if isinstance(image, Image.Image):
        return image.crop(box)
    return image[..., y1:y2, x1:x2] if isinstance(image, Tensor) else image[y1:y2, x1:x2]


def tensor_to_numpy_image(img: Shaped[Tensor, "channel height width"]) -> UInt8[ndarray, "height width channel"]:
    """Any numbers as an image: its smallest value becomes 0, its largest 255. A constant image becomes black.

    Raises:
        ValueError: if a value is not finite.

    Example:
        >>> tensor_to_numpy_image(torch.tensor([[[-1.0, 0.0, 3.0]]])).flatten()
        array([  0,  64, 255], dtype=uint8)
    """
    values = img.detach().cpu().double()
    if not values.isfinite().all():
        raise ValueError("tensor_to_numpy_image needs finite values.")
    values = values - values.amin()
    return (
        (values * (255 / values.amax().clamp(min=torch.finfo(values.dtype).tiny)))
        .round()
        .byte()
        .permute(1, 2, 0)
        .numpy()
    )


def draw_bbox(im: UInt8[ndarray, "height width 3"], bbox: Shaped[Tensor, "4"], color: TColor) -> ndarray:
    """A copy of an image with a frame just inside of a box, 5 % of the mean side wide, at least 3 pixels.

    Args:
        im: stays as it is.
        bbox: x1, y1, x2, y2; all NaN for a frame around the whole image.
        color: red, green, blue.

    Raises:
        ValueError: if some, but not all, numbers of the box are NaN, or the box is empty.
    """
    height, width = im.shape[:2]
    missing = bbox.isnan()
    if missing.all():
        bbox = torch.tensor([0, 0, width, height])
    elif missing.any():
        raise ValueError(f"draw_bbox needs four numbers, or NaN four times for the whole image, got {bbox.tolist()}.")
    x1, y1, x2, y2 = (round(side) for side in bbox.tolist())
    if x1 >= x2 or y1 >= y2:
        raise ValueError(f"draw_bbox needs x1 < x2 and y1 < y2 in whole pixels, got {bbox.tolist()}.")
    picture = Image.fromarray(im)
    thickness = max(3, int(0.05 * (height + width) / 2))
    ImageDraw.Draw(picture).rectangle((x1, y1, x2 - 1, y2 - 1), outline=color, width=thickness)
    return np.array(picture)


def get_img_with_bbox(im_path: Path | str, bbox: Shaped[Tensor, "4"], color: TColor) -> ndarray:
    """The image of a file with a frame, see :func:`draw_bbox`."""
    return draw_bbox(imread_cv2(im_path), bbox, color)


def square_pad(img: Shaped[ndarray, "height width channel"]) -> Shaped[ndarray, "side side channel"]:
    """The image in the middle of a white square, whose side is the longer one; an odd pixel goes right or below.

    Example:
        >>> square_pad(np.zeros((1, 3, 3), dtype=np.uint8))[:, 0, 0]
        array([255,   0, 255], dtype=uint8)
    """
    height, width, channels = img.shape
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    square = np.full((side, side, channels), PAD_COLOR[0], dtype=img.dtype)
    square[top : top + height, left : left + width] = img
    return square


def try_to_open_image(path: Path | str, f_imread: TImReader) -> str | None:
    """``None`` if the reader can read the image, its path if it raises."""
    try:
        f_imread(path)
    except Exception:  # readers are users' own functions, too
        return str(path)
    return None


def find_broken_images(
    images_list: Iterable[Path | str], f_imread: TImReader = imread_tensor, num_processes: int = 10
) -> list[str]:
    """The paths of those images that the reader cannot read, in their order; shows a progress bar.

    Args:
        images_list: paths.
        f_imread: any reader, such as those above. It is called by threads, and need not be picklable.
        num_processes: images are read by so many threads: decoders let others work meanwhile.

    Raises:
        ValueError: if ``num_processes`` is less than 1.
    """
    from oml.utils.progress import progress_bar

    if num_processes < 1:
        raise ValueError(f"find_broken_images needs one process or more, got {num_processes}.")
    paths = list(images_list)
    broken = []
    with (
        progress_bar("Reading images") as on_progress,
        multiprocessing.pool.ThreadPool(num_processes) as pool,
    ):
        for done, path in enumerate(pool.imap(lambda path: try_to_open_image(path, f_imread), paths), start=1):
            on_progress(done, len(paths))
            if path is not None:
                broken.append(path)
    return broken


def _as_tensor(pixels: UInt8[ndarray, "height width 3"]) -> UInt8[Tensor, "3 height width"]:
    return torch.from_numpy(pixels).permute(2, 0, 1)
