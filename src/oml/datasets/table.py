"""The retrieval table: one row an item, or a box of one. Its format is described in docs/data_format.md."""

import warnings
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pandas import DataFrame
from pandas.api.types import is_integer_dtype

from oml.const import CATEGORIES_COLUMN, LABELS_COLUMN, PATHS_COLUMN, SEQUENCE_COLUMN, SPLIT_COLUMN
from oml.datasets._table_rules import REMARKS, VIOLATIONS, apply, bad_boxes, bad_labels, bad_paths, usable

#: in columns of texts, NA and null may be names
_TEXT_COLUMNS = (LABELS_COLUMN, PATHS_COLUMN, SPLIT_COLUMN, CATEGORIES_COLUMN, SEQUENCE_COLUMN, "label_name")
_EMPTY_CELLS = ["", "NA", "N/A", "NaN", "nan", "None", "null", "NULL", "<NA>"]
_COMPRESSED = ("", ".gz", ".bz2", ".xz", ".zip")
_CSV_SUFFIXES = tuple(f"{kind}{packed}" for kind in (".csv", ".tsv", ".txt") for packed in _COMPRESSED)


class TableError(ValueError, AssertionError):
    """A table breaks the format. Also an ``AssertionError``, which callers of older versions catch."""


class Findings(NamedTuple):
    """What a check found: ``violations`` of the format, and ``remarks`` on what is legal but seldom meant."""

    violations: list[str]
    remarks: list[str]


def read_table(source: DataFrame | Path | str, sep: str = ",", label_texts: bool = False) -> DataFrame:
    """A table out of a CSV or Parquet file; a DataFrame comes back as it is.

    Args:
        source: a file whose name ends in .csv, .tsv or .txt, also compressed (.csv.gz and so on), or in .parquet.
        sep: between the cells of a CSV file; of a .tsv file it is the tabulator unless another one is given.
        label_texts: keep the labels of a CSV file as texts if as numbers they would read differently, such as 007.

    Labels that are whole numbers of another type, such as a Parquet file's int32, become int64.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for another suffix, and as a :class:`TableError` if the file cannot be read as what it should be.
        ModuleNotFoundError: for a Parquet file without the extra ``parquet``.
    """
    if isinstance(source, DataFrame):
        return source
    path = Path(source)
    name = path.name.lower()
    if not path.is_file():
        what = "it is a folder" if path.is_dir() else "there is no such file"
        raise FileNotFoundError(f"A table is needed, but not found at {str(path)!r}: {what}.")
    is_csv = name.endswith(_CSV_SUFFIXES)
    if not is_csv and not name.endswith((".parquet", ".pq")):
        raise ValueError(f"A table is a file of .csv, .tsv or .parquet, got {str(path)!r}.")
    try:
        if is_csv:
            if sep == "\\t" or (".tsv" in name and sep == ","):  # the former as typed in a shell
                sep = "\t"
            table = _read_csv(path, sep, label_texts)
        else:
            table = _read_parquet(path)
    except (ModuleNotFoundError, TableError):
        raise
    except UnicodeDecodeError as error:
        raise TableError(
            f"The table {str(path)!r} cannot be read: it is not UTF-8 ({error}). Save it as UTF-8."
        ) from error
    except pd.errors.ParserWarning as error:
        raise TableError(
            f"The table {str(path)!r} cannot be read: its rows have more cells than its header."
        ) from error
    except Exception as error:  # decompressors and parsers have many kinds
        raise TableError(f"The table {str(path)!r} cannot be read: {' '.join(str(error).split())}.") from error
    label = table.get(LABELS_COLUMN)
    largest = np.iinfo(np.int64).max  # beyond which a cast gives negative numbers
    if label is not None and is_integer_dtype(label) and not label.isna().any() and not (label > largest).any():
        table[LABELS_COLUMN] = label.astype(np.int64)
    return table


def _read_csv(path: Path, sep: str, label_texts: bool) -> DataFrame:
    how: dict[str, Any] = {"sep": sep, "index_col": False, "encoding": "utf-8-sig", "keep_default_na": False}
    header = pd.read_csv(path, header=None, nrows=1, dtype=str, **how).iloc[0]
    if (twice := header[header.duplicated()]).any():  # pandas would give the second one another name
        raise TableError(f"The table {str(path)!r} cannot be read: columns {twice.tolist()} occur more than once.")
    how["na_values"] = {name: [""] if name in _TEXT_COLUMNS else _EMPTY_CELLS for name in header}
    # Columns as the header has them: pandas would take the first one for an index where rows are longer.
    # And low_memory would read a long column in parts, each with a type of its own.
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Length of header", pd.errors.ParserWarning)  # cells would get lost
        try:
            table = pd.read_csv(path, low_memory=False, **how)
        except pd.errors.ParserWarning:  # a separator at the ends of rows makes one more column, empty if all is NA
            how = {**how, "keep_default_na": True, "na_values": None}
            table = pd.read_csv(path, low_memory=False, **how)
    if label_texts and LABELS_COLUMN in header.tolist():
        texts = pd.read_csv(path, usecols=[LABELS_COLUMN], dtype=str, **how)[LABELS_COLUMN]
        if not texts.equals(table[LABELS_COLUMN].astype(texts.dtype)):
            table[LABELS_COLUMN] = texts
    return table


def _read_parquet(path: Path) -> DataFrame:
    try:
        import pyarrow  # noqa: F401 (pandas would only say that some engine is missing)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "read_table needs pyarrow for Parquet files: pip install 'open-metric-learning[parquet]'."
        ) from error
    return pd.read_parquet(path, engine="pyarrow")


def check_retrieval_dataframe_format(
    df: Path | str | DataFrame, dataset_root: Path | str | None = None, sep: str = ",", verbose: bool = True
) -> None:
    """Check a retrieval table against its format, all rules at once.

    Args:
        df: the table, or the path of a file that :func:`read_table` reads.
        dataset_root: the folder that relative paths refer to; the working directory by default.
        sep: of the CSV file.
        verbose: also tell of what is legal but seldom meant, such as labels shared by train and validation: by
            warnings, or in the error if there is one.

    Raises:
        TableError: with every violation, each with its first rows and their number.
    """
    findings = inspect_table(read_table(df, sep), dataset_root)
    if findings.violations:
        text = _listed(f"The table breaks {len(findings.violations)} rules of the format", findings.violations)
        if verbose and findings.remarks:
            text += "\n" + _listed("What is legal but seldom meant", findings.remarks)
        raise TableError(text)
    if verbose:
        for remark in findings.remarks:
            warnings.warn(remark, stacklevel=2)


def inspect_table(table: DataFrame, dataset_root: Path | str | None = None) -> Findings:
    """Violations and remarks of a table, for those who want to show them their own way.

    Every rule is asked whose columns the table has. A row is named by its position, the first one being row 0.

    Example:
        >>> table = DataFrame({"label": [1], "path": [__file__], "split": ["test"], "is_query": None})
        >>> for violation in inspect_table(table).violations:
        ...     print(violation)
        columns ['is_gallery'] are missing; the table has ['label', 'path', 'split', 'is_query'].
        split must be 'train' or 'validation'; it is not in row 0 with ['test'].
    """
    table, violations = usable(table)
    rules = (*VIOLATIONS, (partial(bad_paths, root=dataset_root), [PATHS_COLUMN]))
    return Findings(violations + apply(rules, table), apply(REMARKS, table))


def check_items(owner: str, df: DataFrame, root: Path | str | None, whole_labels: bool = True) -> None:
    """Check what a data set of images needs of its rows: files, boxes and, if asked, labels that are whole numbers.

    Raises:
        TableError: names the ``owner`` and says all that is wrong.
    """
    rules = [(partial(bad_paths, root=root), [PATHS_COLUMN]), (bad_boxes, [])]
    # a data set takes integers of any width, unlike the table
    if whole_labels and not (isinstance(df[LABELS_COLUMN].dtype, np.dtype) and is_integer_dtype(df[LABELS_COLUMN])):
        rules.append((bad_labels, [LABELS_COLUMN]))
    if violations := apply(rules, df.reset_index(drop=True)):
        raise TableError(_listed(f"{owner} cannot use its table", violations))


def _listed(title: str, texts: list[str]) -> str:
    return "\n".join([f"{title} (the first row is row 0):", *(f"  - {text}" for text in texts)])
