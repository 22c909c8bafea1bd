"""Handwritten digits: real images that need no download, those that come with scikit-learn."""

import io
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import PIL
from jaxtyping import Int, UInt8
from numpy import ndarray
from PIL import Image

from oml.const import (
    CACHE_PATH,
    IS_GALLERY_COLUMN,
    IS_QUERY_COLUMN,
    LABELS_COLUMN,
    PATHS_COLUMN,
    SPLIT_COLUMN,
    TRAIN_SPLIT,
    VALIDATION_SPLIT,
)
from oml.datasets._cached import (
    check_folder,
    digest,
    read_manifest,
    recipe_key,
    split_table,
    table_bytes,
    write_folder,
)

__all__ = ["Digits", "load_digits_dataset"]

DIGITS = "digits"
FORMAT = 1  # raise it whenever the same recipe would give other images or another table
TABLE = "df.csv"


class Digits(NamedTuple):
    """Where the images are, and the tables of the two splits; ``root / path`` is an image."""

    root: Path
    df_train: pd.DataFrame
    df_val: pd.DataFrame


def load_digits_dataset(
    root: str | Path | None = None, *, image_size: int = 32, train_labels: Collection[int] = (0, 1, 2, 3, 4)
) -> Digits:
    """1,797 handwritten digits of 43 people, written as images on first use and then kept. Needs the extra ``demo``.

    These are the test digits of the UCI set "Optical Recognition of Handwritten Digits" as scikit-learn has them,
    of 8x8 pixels and 17 shades, enlarged (bicubic). The label is the digit; a digit is in train or in validation, so
    that the validation is on labels never seen, and "1 vs rest": each image is query and gallery. With ten labels in
    all this is for trying things out on real data, not for figures.

    Args:
        root: Folder of the data set. ``None`` is a folder in the cache, named after all that the content depends on:
            the arguments below, the digits themselves, and the version of Pillow.
        image_size: Side of the square images in pixels, 8 to 1024. Grey PNG, light on dark.
        train_labels: Digits of the train split, some and not all of 0 to 9; the others are for validation.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
        ValueError: An argument is out of its range; or ``root`` is damaged, or was made with other arguments.
        FileExistsError: ``root`` holds something else. Nothing was touched.
        OSError: The files could not be written, and nothing was left.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     digits = load_digits_dataset(folder, train_labels=range(8))
        >>> len(digits.df_train), len(digits.df_val), digits.df_val["label"].unique()
        (1443, 354, array([8, 9]))
    """
    if not 8 <= image_size <= 1024:
        raise ValueError(f"The digits need an image_size of 8 to 1024 pixels, got {image_size}.")
    train = sorted({int(label) for label in train_labels})
    if not train or not set(train) < set(range(10)):
        raise ValueError(f"The digits need train_labels of 0 to 9, one or more and not all, got {list(train_labels)}.")
    images, labels = read_digits()
    recipe = {
        "dataset": DIGITS,
        "format": FORMAT,
        "image_size": image_size,
        "train_labels": train,
        "digits": digest(images.tobytes() + labels.tobytes()),
        "pillow": PIL.__version__,
    }
    folder = CACHE_PATH / DIGITS / f"{image_size}px-{recipe_key(recipe)}" if root is None else Path(root)
    if read_manifest(folder, DIGITS) is None:
        write_folder(folder, recipe, digit_files(images, labels, image_size, train))
    check_folder(folder, recipe)
    return Digits(folder, *split_table(pd.read_csv(folder / TABLE)))


def read_digits() -> tuple[UInt8[ndarray, "item 8 8"], Int[ndarray, " item"]]:
    """The digits of scikit-learn: their pixels, 0 for the paper to 255, and their labels."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "load_digits_dataset needs scikit-learn: pip install 'open-metric-learning[demo]'."
        ) from error
    pixels, labels = map(np.asarray, load_digits(return_X_y=True))
    return np.rint(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8), labels.astype(np.int64)


def digit_files(
    images: UInt8[ndarray, "item 8 8"], labels: Int[ndarray, " item"], image_size: int, train_labels: Collection[int]
) -> Iterator[tuple[str, bytes]]:
    """The images and, at last, the table of the data set: relative paths and contents. Train rows come first."""
    df = pd.DataFrame({LABELS_COLUMN: labels})
    df[PATHS_COLUMN] = [f"images/{label}/{i:04}.png" for i, label in enumerate(labels)]
    for path, pixels in zip(df[PATHS_COLUMN], images, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(pixels).resize((image_size, image_size), Image.Resampling.BICUBIC).save(buffer, format="PNG")
        yield path, buffer.getvalue()

    is_train = df[LABELS_COLUMN].isin(list(train_labels))
    df[SPLIT_COLUMN] = is_train.map({True: TRAIN_SPLIT, False: VALIDATION_SPLIT})
    df[IS_QUERY_COLUMN] = df[IS_GALLERY_COLUMN] = is_train.map({True: None, False: True})
    yield TABLE, table_bytes(df.sort_values([SPLIT_COLUMN, LABELS_COLUMN], kind="stable"))
