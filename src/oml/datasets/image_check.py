"""Reads the images of a retrieval table, and remarks what only the files themselves tell."""

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Int
from numpy import ndarray
from pandas import DataFrame, Series

from oml.const import (
    BBOXES_COLUMNS,
    PATHS_COLUMN,
    SPLIT_COLUMN,
    TRAIN_SPLIT,
    VALIDATION_SPLIT,
    X2_COLUMN,
    Y2_COLUMN,
)
from oml.datasets._missing import missing_files
from oml.datasets._table_rules import is_path, rows_where, usable
from oml.utils.images.images import imread_pillow

_AT_ONCE = 1024  # images handed to the threads at a time
_MOST_NAMED = 1000  # unreadable images


class ImageFile(NamedTuple):
    """What reading an image file gave."""

    size: tuple[int, int] | None
    """width and height as data sets see the image; ``None`` if it cannot be read"""
    error: str
    """why it cannot be read, else empty"""
    digest: bytes
    """of the content, if the file can be read and another one has the same length; else empty"""


def read_images(
    paths: Sequence[Path], on_progress: Callable[[int, int], None] | None = None, workers: int | None = None
) -> list[ImageFile]:
    """Read and decode image files in threads; memory holds as many images as there are threads.

    Args:
        paths: of existing files.
        on_progress: called with how many of how many are done.
        workers: threads; by default as many as the machine has processors.
    """
    lengths = np.array([_length(path) for path in paths], dtype=np.int64)
    _, groups, counts = np.unique(lengths, return_inverse=True, return_counts=True)
    shared = counts[groups] > 1  # only files of equal length can be copies, so only those are hashed
    files: list[ImageFile] = []
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, on files that it reads nevertheless
        for start in range(0, len(paths), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            files += pool.map(_read, paths[part], shared[part].tolist())
            if on_progress is not None:
                on_progress(len(files), len(paths))
    return files


def _length(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _read(path: Path, is_hashed: bool) -> ImageFile:
    try:
        content = path.read_bytes()
        size = imread_pillow(content).size
    except Exception as error:  # decoders have many kinds
        return ImageFile(None, " ".join(str(error).split()) or type(error).__name__, b"")
    return ImageFile(size, "", hashlib.blake2b(content, digest_size=16).digest() if is_hashed else b"")


def image_remarks(
    table: DataFrame,
    dataset_root: Path | str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
) -> list[str]:
    """Read every image of a table once; unreadable ones, boxes that leave their image, and copies are remarked.

    Files that do not exist are left to :func:`oml.datasets.table.inspect_table`.

    Args:
        table: of any state; what lacks the columns for a remark is passed over.
        dataset_root: the folder that relative paths refer to; the working directory by default.
        on_progress, workers: see :func:`read_images`.
    """
    table, _ = usable(table)
    if PATHS_COLUMN not in table.columns:
        return []
    table = table.assign(**{PATHS_COLUMN: table[PATHS_COLUMN].where(is_path(table[PATHS_COLUMN]))})
    missing = missing_files(table[PATHS_COLUMN], dataset_root)
    codes, found = pd.factorize(table[PATHS_COLUMN].mask(missing))  # -1 where there is nothing to read
    distinct = found.tolist()
    files = read_images([Path(dataset_root or "", path) for path in distinct], on_progress, workers)
    return [*_unreadable(files, codes, distinct), *_boxes_outside(files, codes, table), *_copies(files, codes, table)]


def _unreadable(files: Sequence[ImageFile], codes: Int[ndarray, " row"], distinct: Sequence[str]) -> Iterator[str]:
    numbers = [number for number, file in enumerate(files) if file.size is None]
    for number in numbers[:_MOST_NAMED]:
        where = rows_where(codes == number)
        yield f"the image {str(distinct[number])!r} cannot be read: {files[number].error}. It is in {where}."
    if len(numbers) > _MOST_NAMED:
        yield f"{len(numbers) - _MOST_NAMED:,} more images cannot be read."


def _boxes_outside(files: Sequence[ImageFile], codes: Int[ndarray, " row"], table: DataFrame) -> Iterator[str]:
    if not set(BBOXES_COLUMNS) <= set(table.columns):
        return
    unknown = (np.inf, np.inf)  # no box leaves an image that nobody could read, nor (the last one) a missing file
    sizes = np.array([*(file.size or unknown for file in files), unknown])[codes]
    sides = DataFrame({column: pd.to_numeric(table[column], errors="coerce") for column in (X2_COLUMN, Y2_COLUMN)})
    outside = np.asarray((sides.to_numpy(dtype=float, na_value=np.nan) > sizes).any(axis=1))
    if outside.any():
        first = np.flatnonzero(outside)[:3]
        # one of the two sides may be empty or infinite
        ends = [[int(x) if x % 1 == 0 else x for x in row] for row in sides.iloc[first].to_numpy(dtype=float).tolist()]
        those = sizes[first].astype(int).tolist()
        yield (
            f"{outside.sum():,} boxes leave their image: {rows_where(outside, table[PATHS_COLUMN])}; their x_2 and y_2 "
            f"are {ends}, width and height of the images {those}. Data sets cut them off where the image ends."
        )


def _copies(files: Sequence[ImageFile], codes: Int[ndarray, " row"], table: DataFrame) -> Iterator[str]:
    digests = Series([file.digest for file in files], dtype=object)
    content = pd.factorize(digests.where(digests != b""))[0]
    counts = np.bincount(content[content >= 0])
    if not (counts > 1).any():
        return
    content[counts[content] == 1] = -1  # and what was -1 stays so
    of_row = np.append(content, -1)[codes]
    rows = DataFrame({"content": of_row, "path": table[PATHS_COLUMN]})[of_row >= 0]
    paths = rows.drop_duplicates().groupby("content", sort=False)["path"].apply(list)
    yield (
        f"{sum(map(len, paths)) - len(paths):,} image files are copies of others: "
        f"{len(paths):,} contents go by several paths, such as {_named(paths)}."
    )
    if SPLIT_COLUMN in table.columns:
        split = table[SPLIT_COLUMN][of_row >= 0]
        train, validation = (rows["content"][split == part] for part in (TRAIN_SPLIT, VALIDATION_SPLIT))
        in_both = paths[paths.index.isin(train) & paths.index.isin(validation)]
        if len(in_both):
            yield (
                f"{len(in_both):,} contents occur in train and in validation, such as {_named(in_both)}: the figures "
                "will not tell how the model does on images it has never seen."
            )


def _named(paths: Series) -> str:
    return ", ".join(str([str(path) for path in some[:3]]) for some in paths.iloc[:3])
