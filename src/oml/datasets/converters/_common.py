"""What the converters share: finding and reading the files of an archive, and the columns of the table."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from pandas import DataFrame, Series

from oml.const import (
    IS_GALLERY_COLUMN,
    IS_QUERY_COLUMN,
    LABELS_COLUMN,
    PATHS_COLUMN,
    SPLIT_COLUMN,
    TRAIN_SPLIT,
    VALIDATION_SPLIT,
)
from oml.datasets.table import check_retrieval_dataframe_format

Mask = Series | np.ndarray
"""A bool for each row."""


class Source(NamedTuple):
    """A public data set: its name, where to get it and what ROOT is, images per split and labels as published."""

    name: str
    archive: str
    n_train: int
    n_validation: int
    n_labels: int

    def find(self, root: Path | str, files: Sequence[str], folders: Sequence[str] = ()) -> Path:
        """``root`` as a path, given that it has all these files and folders.

        Raises:
            FileNotFoundError: names what is missing, and where the archive comes from.
        """
        root = Path(root)
        if not root.is_dir():
            what = "it is a file" if root.exists() else "there is no such folder"
            raise FileNotFoundError(f"The root of {self.name} must be a folder; {str(root)!r}: {what}. {self.archive}")
        lost_files = [name for name in files if not (root / name).is_file()]
        lost_folders = [name for name in folders if not (root / name).is_dir()]
        if not (lost := lost_files + [f"{name}/" for name in lost_folders]):
            return root
        inner = sorted(path for path in root.iterdir() if all((path / name).exists() for name in (*files, *folders)))
        hint = f" They are in {str(inner[0])!r}: is that the root?" if inner else ""
        raise FileNotFoundError(
            f"{self.name} needs {', '.join(map(repr, lost))} in the root {str(root)!r}, but not there.{hint} "
            f"{self.archive}"
        )

    def compare(self, labels: Series, is_train: Series) -> None:
        """Warn if there are other numbers of images or labels than those that were published."""
        n_train = int(is_train.sum())
        found = self._replace(n_train=n_train, n_validation=len(labels) - n_train, n_labels=labels.nunique())
        if found != self:
            warnings.warn(
                f"{self.name} was published with {self._counts()}; found {found._counts()}. Are the files complete?",
                stacklevel=3,
            )

    def _counts(self) -> str:
        return f"{self.n_train:,} train and {self.n_validation:,} validation images of {self.n_labels:,} labels"


def read_cells(path: Path, columns: Sequence[str]) -> DataFrame:
    """The whitespace-separated cells of a text file, all as text; the index holds the line numbers, from 1.

    Raises:
        ValueError: a line has another number of cells than there are columns; or the file is no text, or empty.
    """
    return _split_lines(path, _read_lines(path), columns)


def read_cells_with_header(path: Path, needed: Sequence[str], header_line: int = 1) -> DataFrame:
    """As :func:`read_cells`, of a file that names its columns in a line of its own; what is before it is left out.

    Raises:
        ValueError: also, if a needed column is not there.
    """
    lines = _read_lines(path, header_line)
    header = lines.iloc[0].split()
    lacks = np.array([not set(needed) <= set(header)])
    refuse(path, lacks, lines, f"the columns {' '.join(needed)} are to be named here")
    return _split_lines(path, lines.iloc[1:], header)


def _read_lines(path: Path, first: int = 1) -> Series:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be a text file, but is not: {error}.") from error
    lines = text.rstrip().splitlines()  # so that empty lines at the end are no matter
    if len(lines) < first:
        raise ValueError(f"{path} has {len(lines)} lines: is it whole?")
    return Series(lines[first - 1 :], range(first, len(lines) + 1), dtype=str)


def _split_lines(path: Path, lines: Series, columns: Sequence[str]) -> DataFrame:
    cells = lines.str.split()
    refuse(path, cells.map(len) != len(columns), lines, f"a line has {len(columns)} cells: {' '.join(columns)}")
    return DataFrame(cells.tolist(), lines.index, list(columns), dtype=str)


def refuse(path: Path, bad: Mask, values: Series, rule: str, unit: str = "line") -> None:
    """Raise a ``ValueError`` with the rule if any row is bad: says how many, and the line and value of the first."""
    positions = np.flatnonzero(bad)
    if len(positions):
        line, value = values.index[positions[0]], values.iloc[positions[:1]].tolist()[0]
        more = f" (and {len(positions) - 1:,} more)" if len(positions) > 1 else ""
        raise ValueError(f"{path}, {unit} {line}{more}: {rule}; got {value!r}.")


def numbers(path: Path, cells: Series, whole: bool = True, unit: str = "line") -> Series:
    """The cells of a column as int64, or as float64 unless ``whole``; an error names the line."""
    found = pd.to_numeric(cells, errors="coerce").astype(float)
    bad = ~np.isfinite(found) | (whole & (found % 1 != 0))
    refuse(path, bad, cells, f"{cells.name} must be a {'whole ' if whole else ''}number", unit)
    return found.astype(np.int64) if whole else found


def check_distinct(path: Path, cells: Series) -> None:
    """Raise a ``ValueError`` if a cell of a column occurs twice; it names the line."""
    refuse(path, cells.duplicated(), cells, f"{cells.name} must not occur twice")


def join(left: DataFrame, right: DataFrame, key: str, left_path: Path, right_path: Path) -> DataFrame:
    """The rows of ``left`` in their order, with the columns of ``right``; each key must be in both, once.

    Raises:
        ValueError: names the file and the line of a key that the other file lacks, or that occurs twice.
    """
    check_distinct(left_path, left[key])
    check_distinct(right_path, right[key])
    refuse(left_path, ~left[key].isin(right[key]), left[key], f"{key} must be in {right_path.name} as well")
    refuse(right_path, ~right[key].isin(left[key]), right[key], f"{key} must be in {left_path.name} as well")
    return left.join(right.set_index(key), on=key)


def first_half(labels: Series) -> Series:
    """Where a label is among the first half of the distinct ones, in their order: the train labels of papers."""
    distinct = np.sort(labels.unique())
    return labels.isin(distinct[: len(distinct) // 2])


def checked_table(
    root: Path,
    labels: Series,
    paths: Series,
    is_train: Series,
    is_query: Series | None = None,
    is_gallery: Series | None = None,
    **others: Series,
) -> DataFrame:
    """The retrieval table of these columns, rows numbered from 0; a validation row is query and gallery by default.

    Raises:
        TableError: the table breaks the format: files are missing, boxes are out of order and so on.
    """
    both = Series(True, index=labels.index)
    columns = {
        LABELS_COLUMN: labels,
        PATHS_COLUMN: paths,
        SPLIT_COLUMN: is_train.map({True: TRAIN_SPLIT, False: VALIDATION_SPLIT}),
        IS_QUERY_COLUMN: (both if is_query is None else is_query).astype(object).where(~is_train, None),
        IS_GALLERY_COLUMN: (both if is_gallery is None else is_gallery).astype(object).where(~is_train, None),
        **others,
    }
    table = DataFrame(columns).reset_index(drop=True)
    check_retrieval_dataframe_format(table, root, verbose=False)
    return table
