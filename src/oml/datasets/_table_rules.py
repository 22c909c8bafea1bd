"""The rules of the retrieval table, and what is remarked on it though it is legal.

A rule is a function from a table, numbered from 0, to one sentence for each way in which it is broken. It stands in
:data:`VIOLATIONS` or :data:`REMARKS` beside the columns it needs, and is asked whenever the table has those.
"""

import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from os import PathLike
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool
from numpy import ndarray
from pandas import DataFrame, Series
from pandas.api.types import infer_dtype, is_bool_dtype, is_numeric_dtype

from oml.const import (
    BBOXES_COLUMNS,
    CATEGORIES_COLUMN,
    IS_GALLERY_COLUMN,
    IS_QUERY_COLUMN,
    LABELS_COLUMN,
    OBLIGATORY_COLUMNS,
    PATHS_COLUMN,
    SEQUENCE_COLUMN,
    SPLIT_COLUMN,
    TRAIN_SPLIT,
    VALIDATION_SPLIT,
    X1_COLUMN,
    X2_COLUMN,
    Y1_COLUMN,
    Y2_COLUMN,
)
from oml.datasets._missing import missing_files

Rule = Callable[[DataFrame], Iterator[str]]
Mask = Bool[ndarray, " row"]
_ROLE_TEXTS = {True: ["True", "TRUE", "true"], False: ["False", "FALSE", "false"]}
_KNOWN_COLUMNS = [*OBLIGATORY_COLUMNS, CATEGORIES_COLUMN, SEQUENCE_COLUMN, *BBOXES_COLUMNS]


def rows_where(mask: Series | np.ndarray, values: Series | DataFrame | None = None) -> str:
    """``rows 3, 8, 11 (and 40 more)``, with the values found there if given. The first row is row 0.

    Example:
        >>> rows_where(np.array([False, True, True]), Series(["a", "b", "c"]))
        "rows 1, 2 with ['b', 'c']"
    """
    positions = np.flatnonzero(np.asarray(mask))
    first = positions[:3]
    shown = ", ".join(str(position) for position in first)
    more = f" (and {len(positions) - 3:,} more)" if len(positions) > 3 else ""
    found = ""
    if isinstance(values, DataFrame):
        found = f" with {[list(row) for row in values.iloc[first].itertuples(index=False)]}"
    elif values is not None:
        found = f" with {values.iloc[first].tolist()}"
    return f"{'row' if len(positions) == 1 else 'rows'} {shown}{more}{found}"


def usable(table: DataFrame) -> tuple[DataFrame, list[str]]:
    """The table without columns that no rule can work with, its rows numbered from 0; and a violation for each."""
    table = table.reset_index(drop=True)  # an index with repeats would mark the wrong rows
    violations = []
    if twice := table.columns[table.columns.duplicated()].unique().tolist():
        violations.append(f"columns {twice} occur more than once.")
    if missing := [column for column in OBLIGATORY_COLUMNS if column not in table.columns]:
        hint = ""
        if len(table.columns) == 1 and (signs := [sign for sign in ",;\t|" if sign in str(table.columns[0])]):
            hint = f" Are its cells separated by {signs[0]!r}? Then say so: sep={signs[0]!r}."
        violations.append(f"columns {missing} are missing; the table has {list(table.columns)}.{hint}")
    table = table.loc[:, ~table.columns.duplicated(keep=False)]
    for column in table.columns.intersection(_KNOWN_COLUMNS):
        cells = table[column]
        if cells.dtype == object and infer_dtype(cells, skipna=True) == "mixed":
            lists = np.fromiter((not isinstance(cell, Hashable) for cell in cells), dtype=bool, count=len(cells))
            if lists.any():
                violations.append(f"{column} must hold single values; not so in {rows_where(lists, cells)}.")
                table = table.drop(columns=column)
    if table.empty:
        violations.append("the table has no rows.")
    return table, violations


def apply(rules: Sequence[tuple[Rule, Sequence[str]]], table: DataFrame) -> list[str]:
    """What the rules say, of those whose columns the table has."""
    if table.empty:
        return []
    return [text for rule, needed in rules if table.columns.isin(needed).sum() == len(needed) for text in rule(table)]


def is_role(cells: Series, role: bool) -> Mask:
    """Where a cell is ``role``, or the text of it: a CSV file with one other text in a column gives texts for all."""
    return cells.astype(object).isin([role, *_ROLE_TEXTS[role]]).to_numpy()


def is_path(cells: Series) -> Mask:
    """Where a cell is text or a ``Path``."""
    if infer_dtype(cells, skipna=True) == "string":
        return cells.notna().to_numpy()
    codes, distinct = pd.factorize(cells)
    return np.array([*(isinstance(path, str | PathLike) for path in distinct), False])[codes]


def _bad_splits(table: DataFrame) -> Iterator[str]:
    split = table[SPLIT_COLUMN]
    if (bad := ~split.isin([TRAIN_SPLIT, VALIDATION_SPLIT])).any():
        yield f"split must be {TRAIN_SPLIT!r} or {VALIDATION_SPLIT!r}; it is not in {rows_where(bad, split)}."


def _bad_roles(column: str, table: DataFrame) -> Iterator[str]:
    is_train, is_validation = _splits(table)
    role = table[column]
    if (bad := is_train & role.notna().to_numpy()).any():
        yield f"{column} must be empty in train rows; it is not in {rows_where(bad, role)}."
    # as Python sees equality: 1 and 1.0 are true, and no text is
    bad = is_validation & ~role.astype(object).isin([True, False]).to_numpy()
    if not bad.any():
        return
    hint = ""
    as_text = bad & (is_role(role, True) | is_role(role, False))
    if as_text.any() and (bad & ~as_text & role.notna().to_numpy()).any():
        bad &= ~as_text
        hint = f" Beside such cells, true and false were read as text in {as_text.sum():,} rows."
    elif as_text.any():
        hint = f' Text is no truth value; convert it: df["{column}"].map({{"True": True, "False": False}}).'
    yield f"{column} must be true or false in validation rows; it is not in {rows_where(bad, role)}.{hint}"


def _rows_without_role(table: DataFrame) -> Iterator[str]:
    roles = [table[column] for column in (IS_QUERY_COLUMN, IS_GALLERY_COLUMN)]
    bad = _splits(table)[1] & is_role(roles[0], False) & is_role(roles[1], False)
    if bad.any():
        yield f"a validation row must be a query or a gallery or both; it is neither in {rows_where(bad)}."


def _queries_with_nothing_to_find(table: DataFrame) -> Iterator[str]:
    is_train, is_validation = _splits(table)
    labels = pd.factorize(table[LABELS_COLUMN])[0]
    is_query = is_validation & is_role(table[IS_QUERY_COLUMN], True) & (labels >= 0)
    # what breaks another rule may be a gallery once that is repaired
    is_gallery = ~is_train & ~is_role(table[IS_GALLERY_COLUMN], False) & (labels >= 0)
    found = _count_by(labels, is_gallery)
    itself = is_gallery.astype(np.int64)
    other = "another row than its own"
    if SEQUENCE_COLUMN in table.columns:
        sequences = pd.factorize(table[SEQUENCE_COLUMN])[0]
        pairs = pd.factorize(labels * (sequences.max(initial=0) + 2) + sequences)[0]  # -1 is a sequence here
        itself = np.where(sequences >= 0, _count_by(pairs, is_gallery), itself)
        other = "another row than its own and of another sequence"
    if (bad := is_query & (found == itself)).any():
        yield (
            f"every query needs a gallery item of its label in {other}; there is none for "
            f"{rows_where(bad, table[LABELS_COLUMN])}."
        )


def _count_by(groups: ndarray, mask: Mask) -> ndarray:
    """For each row, how many rows of its group the mask holds."""
    return np.bincount(groups[mask], minlength=groups.max(initial=0) + 1)[groups]


def bad_labels(table: DataFrame) -> Iterator[str]:
    """Labels are whole numbers."""
    label = table[LABELS_COLUMN]
    if label.dtype == np.int64:
        return
    must = "label must be a column of whole numbers (int64)"
    if (empty := label.isna()).any():
        yield f"{must}; it is empty in {rows_where(empty)}."
    if is_numeric_dtype(label) and not is_bool_dtype(label):
        if (bad := ~_is_whole(label.to_numpy(dtype=float, na_value=np.nan)) & ~empty.to_numpy()).any():
            yield f"{must}; it is not whole in {rows_where(bad, label)}."
        elif (bad := label > np.iinfo(np.int64).max).any():
            yield f"{must}, so of numbers up to 2**63 - 1; larger are {rows_where(bad, label)}."
        elif not empty.any():
            yield f'{must}; it is of type {label.dtype}. Convert it: df["label"] = df["label"].astype("int64").'
        return
    if (bad := ~empty & pd.to_numeric(label, errors="coerce").isna()).any():
        hint = 'Texts are numbered by pd.factorize(df["label"], sort=True)[0].'
        yield f"{must}; it is not in {rows_where(bad, label)}. {hint}"
    elif not empty.any():
        yield f'{must}; it is of type {label.dtype}. Convert it: df["label"] = df["label"].astype("int64").'


def _is_whole(numbers: ndarray) -> ndarray:
    return np.isfinite(numbers) & (numbers == np.floor(numbers))


def _empty_categories(table: DataFrame) -> Iterator[str]:
    if (bad := table[CATEGORIES_COLUMN].isna()).any():
        yield f"category must be given in every row, or the column left out; it is empty in {rows_where(bad)}."


def bad_paths(table: DataFrame, root: Path | str | None) -> Iterator[str]:
    """Paths are text, and name files."""
    paths = table[PATHS_COLUMN]
    bad = ~is_path(paths)
    if bad.any():
        yield f"path must be text; it is not in {rows_where(bad, paths)}."
    missing = np.zeros(len(paths), dtype=bool)
    missing[~bad] = missing_files(paths[~bad], root)
    if missing.any():
        root = Path() if root is None else Path(root)
        hint = ""
        first = paths.iloc[int(missing.argmax())]
        for other in (Path(), root.resolve().parent):  # the parent if the paths hold the root's name as well
            # unlike a Path, this takes names of any length
            if other.resolve() != root.resolve() and os.path.isfile(os.path.join(other, first)):  # noqa: PTH113, PTH118
                hint = f" For {str(first)!r} there is a file below {str(other.resolve())!r}: is that the root?"
        yield (
            f"path must be a file below the data set root, {str(root)!r}; "
            f"there is none for {rows_where(missing, paths)}.{hint}"
        )


def bad_boxes(table: DataFrame) -> Iterator[str]:
    """Boxes are four whole numbers, in order and not negative."""
    present = [column for column in BBOXES_COLUMNS if column in table.columns]
    if 0 < len(present) < len(BBOXES_COLUMNS):
        yield f"boxes need all the columns {BBOXES_COLUMNS} or none; the table has only {present}."
    boxes = DataFrame(index=table.index)
    unknown = np.zeros(len(table), dtype=bool)
    for column in present:
        cells = table[column]
        numbers = pd.to_numeric(cells, errors="coerce")
        boxes[column] = numbers.to_numpy(dtype=float, na_value=np.nan)
        if infer_dtype(cells, skipna=True) not in ("integer", "floating", "mixed-integer-float", "empty"):
            if (bad := (cells.notna() & boxes[column].isna()).to_numpy()).any():
                yield f"boxes must be numbers; not so {column} in {rows_where(bad, cells)}."
            else:
                yield f'boxes must be numbers; {column} is text. Convert it: pd.to_numeric(df["{column}"]).'
            unknown |= bad
    if len(present) == len(BBOXES_COLUMNS):
        given = boxes.notna().to_numpy()
        bad = ~unknown & given.any(axis=1) & ~_is_whole(boxes.to_numpy()).all(axis=1)
        if bad.any():
            yield (
                "a box needs four whole numbers, or four empty cells for the whole image; not so in "
                f"{rows_where(bad, boxes[BBOXES_COLUMNS])}."
            )
    for low, high in ((X1_COLUMN, X2_COLUMN), (Y1_COLUMN, Y2_COLUMN)):
        if {low, high} <= set(present) and (bad := boxes[low] >= boxes[high]).any():
            yield f"{low} must be below {high}; it is not in {rows_where(bad, boxes[[low, high]])}."
    if (bad := (boxes < 0).any(axis=1)).any():
        yield f"boxes must not be negative; they are in {rows_where(bad, boxes)}."


def _labels_of_both_splits(table: DataFrame) -> Iterator[str]:
    label = table[LABELS_COLUMN]
    train, validation = (Series(label[mask].unique()).dropna() for mask in _splits(table))
    shared = train[train.isin(validation)].tolist()
    if shared:
        yield (
            f"{len(shared):,} labels occur in train and in validation, such as {_first(shared)}: the figures will not "
            "tell how the model does on labels it has never seen."
        )


def _labels_with_one_train_row(table: DataFrame) -> Iterator[str]:
    counts = table[LABELS_COLUMN][_splits(table)[0]].value_counts()
    if lone := counts.index[counts == 1].tolist():
        yield f"{len(lone):,} labels have a single row in train, such as {_first(lone)}: they give no positive pair."


def _labels_of_several_categories(table: DataFrame) -> Iterator[str]:
    pairs = table[[LABELS_COLUMN, CATEGORIES_COLUMN]].dropna().drop_duplicates()
    counts = pairs[LABELS_COLUMN].value_counts()
    if several := counts.index[counts > 1].tolist():
        yield f"{len(several):,} labels occur in several categories, such as {_first(several)}."


def _repeated_items(table: DataFrame) -> Iterator[str]:
    columns = [PATHS_COLUMN, *(column for column in BBOXES_COLUMNS if column in table.columns)]
    repeated = table.duplicated(columns).to_numpy() & table[PATHS_COLUMN].notna().to_numpy()
    if repeated.any():
        what = "path and box" if len(columns) > 1 else "path"
        yield (
            f"{repeated.sum():,} rows have the {what} of an earlier row: {rows_where(repeated, table[PATHS_COLUMN])}. "
            "Such copies are found as right answers, or learned as positives, without a model knowing anything."
        )


def _splits(table: DataFrame) -> tuple[Mask, Mask]:
    train, validation = (table[SPLIT_COLUMN].isin([split]).to_numpy() for split in (TRAIN_SPLIT, VALIDATION_SPLIT))
    return train, validation


def _first(values: list) -> list:
    """The first three, sorted if they can be."""
    try:
        return sorted(values)[:3]
    except TypeError:
        return values[:3]


VIOLATIONS: Sequence[tuple[Rule, Sequence[str]]] = (
    (_bad_splits, [SPLIT_COLUMN]),
    (partial(_bad_roles, IS_QUERY_COLUMN), [SPLIT_COLUMN, IS_QUERY_COLUMN]),
    (partial(_bad_roles, IS_GALLERY_COLUMN), [SPLIT_COLUMN, IS_GALLERY_COLUMN]),
    (_rows_without_role, [SPLIT_COLUMN, IS_QUERY_COLUMN, IS_GALLERY_COLUMN]),
    (_queries_with_nothing_to_find, [SPLIT_COLUMN, IS_QUERY_COLUMN, IS_GALLERY_COLUMN, LABELS_COLUMN]),
    (bad_labels, [LABELS_COLUMN]),
    (_empty_categories, [CATEGORIES_COLUMN]),
    (bad_boxes, []),
)
REMARKS: Sequence[tuple[Rule, Sequence[str]]] = (
    (_labels_of_both_splits, [SPLIT_COLUMN, LABELS_COLUMN]),
    (_labels_with_one_train_row, [SPLIT_COLUMN, LABELS_COLUMN]),
    (_labels_of_several_categories, [LABELS_COLUMN, CATEGORIES_COLUMN]),
    (_repeated_items, [PATHS_COLUMN]),
)
