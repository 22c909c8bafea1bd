"""The retrieval table: one row an item, or a box of one. Its format is described in docs/data_format.md."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from pandas import DataFrame, Series

from oml.const import (
    BBOXES_COLUMNS,
    CATEGORIES_COLUMN,
    IS_GALLERY_COLUMN,
    IS_QUERY_COLUMN,
    LABELS_COLUMN,
    OBLIGATORY_COLUMNS,
    PATHS_COLUMN,
    SPLIT_COLUMN,
    TRAIN_SPLIT,
    VALIDATION_SPLIT,
    X1_COLUMN,
    X2_COLUMN,
    Y1_COLUMN,
    Y2_COLUMN,
)


class TableError(ValueError, AssertionError):
    """A table breaks the format. Also an ``AssertionError``, which callers of older versions catch."""


class Findings(NamedTuple):
    """What a check found: ``violations`` of the format, and ``remarks`` on what is legal but seldom meant."""

    violations: list[str]
    remarks: list[str]


def check_retrieval_dataframe_format(
    df: Path | str | DataFrame, dataset_root: Path | str | None = None, sep: str = ",", verbose: bool = True
) -> None:
    """Check a retrieval table against its format, all rules at once.

    Args:
        df: the table, or the path of a CSV file.
        dataset_root: the folder that relative paths refer to; the working directory by default.
        sep: of the CSV file.
        verbose: warn of what is legal but seldom meant, such as labels shared by train and validation.

    Raises:
        TableError: with every violation, each with its first rows and their number.
    """
    table = df if isinstance(df, DataFrame) else pd.read_csv(df, sep=sep, index_col=None)
    findings = inspect_table(table, dataset_root)
    if findings.violations:
        shown = "\n".join(f"  - {violation}" for violation in findings.violations)
        raise TableError(f"The table breaks {len(findings.violations)} rules of the format:\n{shown}")
    if verbose:
        for remark in findings.remarks:
            warnings.warn(remark, stacklevel=2)


def inspect_table(table: DataFrame, dataset_root: Path | str | None = None) -> Findings:
    """Violations and remarks of a table, for those who want to show them their own way."""
    table = table.reset_index(drop=True)  # an index with repeats would mark the wrong rows
    if twice := table.columns[table.columns.duplicated()].tolist():
        return Findings([f"columns {twice} occur twice."], [])
    if missing := [column for column in OBLIGATORY_COLUMNS if column not in table.columns]:
        return Findings([f"columns {missing} are missing; the table has {list(table.columns)}."], [])
    if table.empty:
        return Findings(["the table has no rows."], [])
    rules = (_bad_splits, _bad_roles, _bad_labels, _bad_categories, _bad_boxes)
    violations = [text for rule in rules for text in rule(table)] + list(_bad_paths(table, dataset_root))
    return Findings(violations, [] if violations else list(_remarks(table)))


def rows_where(mask: Series | np.ndarray, values: Series | None = None) -> str:
    """``rows 3, 8, 11 (and 40 more)``, with the values found there if given."""
    positions = np.flatnonzero(np.asarray(mask))
    shown = ", ".join(str(position) for position in positions[:3])
    more = f" (and {len(positions) - 3} more)" if len(positions) > 3 else ""
    found = f" with {values.iloc[positions[:3]].tolist()}" if values is not None else ""
    return f"{'row' if len(positions) == 1 else 'rows'} {shown}{more}{found}"


def _bad_splits(table: DataFrame) -> Iterator[str]:
    split = table[SPLIT_COLUMN]
    if (bad := ~split.isin([TRAIN_SPLIT, VALIDATION_SPLIT])).any():
        yield f"split must be {TRAIN_SPLIT!r} or {VALIDATION_SPLIT!r}; it is not in {rows_where(bad, split)}."


def _bad_roles(table: DataFrame) -> Iterator[str]:
    is_train, is_validation = (table[SPLIT_COLUMN] == split for split in (TRAIN_SPLIT, VALIDATION_SPLIT))
    legal = True
    for column in (IS_QUERY_COLUMN, IS_GALLERY_COLUMN):
        role = table[column]
        if (bad := is_train & role.notna()).any():
            yield f"{column} must be empty in train rows; it is not in {rows_where(bad, role)}."
        # text such as "True" is no bool, and isin must not take it for one
        if (bad := is_validation & ~role.astype(object).isin([True, False])).any():
            legal = False
            yield f"{column} must be true or false in validation rows; it is not in {rows_where(bad, role)}."
    if legal:
        roles = table[[IS_QUERY_COLUMN, IS_GALLERY_COLUMN]].astype(object) == True  # noqa: E712
        if (bad := is_validation & ~roles.any(axis=1)).any():
            yield f"a validation row must be a query or a gallery or both; neither is {rows_where(bad)}."
        is_query, is_gallery = (is_validation & roles[column] for column in (IS_QUERY_COLUMN, IS_GALLERY_COLUMN))
        others = (
            is_gallery.groupby(table[LABELS_COLUMN], sort=False).transform("sum") - is_gallery
        )  # an item never finds itself
        if (bad := is_query & (others == 0)).any():
            yield (
                "the label of every query must occur in the gallery, in another row than its own; it does not for "
                f"{rows_where(bad, table[LABELS_COLUMN])}."
            )


def _bad_labels(table: DataFrame) -> Iterator[str]:
    if table[LABELS_COLUMN].dtype != np.int64:
        yield f"label must be a column of whole numbers (int64); it is of type {table[LABELS_COLUMN].dtype}."


def _bad_categories(table: DataFrame) -> Iterator[str]:
    if CATEGORIES_COLUMN in table.columns and (bad := table[CATEGORIES_COLUMN].isna()).any():
        yield f"category must be given in every row, or the column left out; it is empty in {rows_where(bad)}."


def _bad_paths(table: DataFrame, dataset_root: Path | str | None) -> Iterator[str]:
    root = Path() if dataset_root is None else Path(dataset_root)
    paths = table[PATHS_COLUMN]
    if (bad := ~paths.map(lambda path: isinstance(path, str | Path))).any():
        yield f"path must be text; it is not in {rows_where(bad, paths)}."
        return
    exists = {path: (root / path).is_file() for path in paths.unique()}
    if (bad := ~paths.map(exists).astype(bool)).any():
        yield (
            f"path must be a file below the data set root, {str(root)!r}; there is none for {rows_where(bad, paths)}."
        )


def _bad_boxes(table: DataFrame) -> Iterator[str]:
    present = [column for column in BBOXES_COLUMNS if column in table.columns]
    if not present:
        return
    if len(present) < len(BBOXES_COLUMNS):
        yield f"boxes need all the columns {BBOXES_COLUMNS} or none; the table has only {present}."
        return
    try:
        boxes = table[BBOXES_COLUMNS].astype(float)
    except (TypeError, ValueError) as error:
        yield f"boxes must be numbers: {error}."
        return
    given = boxes.notna()
    whole = boxes.isna() | (boxes % 1 == 0)
    if (bad := given.any(axis=1) & ~(given.all(axis=1) & whole.all(axis=1))).any():
        yield f"a box needs four whole numbers, or four empty cells for the whole image; not so in {rows_where(bad)}."
    for low, high in ((X1_COLUMN, X2_COLUMN), (Y1_COLUMN, Y2_COLUMN)):
        if (bad := boxes[low] >= boxes[high]).any():
            yield f"{low} must be below {high}; it is not in {rows_where(bad)}."
    if (bad := (boxes < 0).any(axis=1)).any():
        yield f"boxes must not be negative; they are in {rows_where(bad)}."


def _remarks(table: DataFrame) -> Iterator[str]:
    label, split = table[LABELS_COLUMN], table[SPLIT_COLUMN]
    train = label[split == TRAIN_SPLIT]
    if shared := sorted(set(train) & set(label[split == VALIDATION_SPLIT])):
        yield (
            f"{len(shared)} labels occur in train and in validation, such as {shared[:3]}: the figures will not tell "
            "how the model does on labels it has never seen."
        )
    counts = train.value_counts()
    if lone := sorted(counts.index[counts == 1]):
        yield f"{len(lone)} labels have a single row in train, such as {lone[:3]}: they give no positive pair."
    if CATEGORIES_COLUMN in table.columns:
        n_categories = table.groupby(LABELS_COLUMN)[CATEGORIES_COLUMN].nunique()
        if several := sorted(n_categories.index[n_categories > 1]):
            yield f"{len(several)} labels occur in several categories, such as {several[:3]}."
