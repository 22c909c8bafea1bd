"""Reading of images."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from PIL import Image

TImage = Image.Image
TImReader = Callable[[Path | str | bytes], TImage]


def imread_pillow(im_src: Path | str | bytes) -> TImage:
    """An image file, or the bytes of one, as a PIL image in RGB mode.

    Raises:
        TypeError: for anything but a path or bytes.
        OSError: if there is no such file or Pillow cannot decode it. Its other errors come as OSError too.
    """
    if not isinstance(im_src, Path | str | bytes):
        raise TypeError(f"imread_pillow needs a path or the bytes of a file, got {type(im_src).__name__}.")
    try:
        with Image.open(BytesIO(im_src) if isinstance(im_src, bytes) else im_src) as image:
            return image.convert("RGB")
    except (SyntaxError, ValueError) as error:  # Pillow's PNG reader raises SyntaxError for a broken chunk
        raise OSError(str(error)) from error
