"""Makes the retrieval table from what people have: a folder for each label, or a table of paths and labels."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int
from numpy import ndarray
from pandas import DataFrame, Series
from pandas.api.types import is_integer_dtype, is_numeric_dtype

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
)
from oml.datasets._table_rules import is_path, rows_where

LABEL_NAMES_COLUMN = "label_name"
IMAGE_SUFFIXES = (".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
Protocol = Literal["one-vs-rest", "query-gallery"]


class Made(NamedTuple):
    """A table, and ``notes`` on what a person should know of how it was made."""

    table: DataFrame
    notes: list[str]


def table_from_folder(folder: Path | str) -> Made:
    """A row for each image of a tree ``LABEL/image`` or ``CATEGORY/LABEL/image``, not yet split.

    The columns are ``label`` (folders numbered from 0 in their sorted order), ``path`` (relative to ``folder``, with
    slashes), ``label_name`` (of the folder) and, in a tree of two levels, ``category``. Images are told by their
    suffixes; other files, and names that begin with a dot, are left out and counted in the notes. Links are followed.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if there are no images, or they do not all lie one or all lie two folders deep.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"table_from_folder needs a folder, there is none at {str(root)!r}.")
    where: list[str] = []
    names: list[str] = []
    empty: list[str] = []
    n_others = n_loose = 0
    for inner, files, is_leaf in _walk(root):
        images = [name for name in files if not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES)]
        n_others += len(files) - len(images)
        if not inner:
            n_loose = len(images)
            continue
        where += [inner] * len(images)
        names += images
        if is_leaf and not images:
            empty.append(inner)
    example_of_depth = {inner.count("/") + 1: inner for inner in sorted(set(where), reverse=True)}
    if len(example_of_depth) != 1 or max(example_of_depth) > 2:
        found = ", and ".join(f"images in {inner!r}" for _, inner in sorted(example_of_depth.items()))
        raise ValueError(
            f"table_from_folder needs images as LABEL/image or all as CATEGORY/LABEL/image below {str(root)!r}, found "
            f"{found or f'none, of the suffixes {list(IMAGE_SUFFIXES)}'}."
        )
    paths = [f"{inner}/{name}" for inner, name in zip(where, names, strict=True)]
    if unwritable := [path for path in paths if path.encode(errors="replace").decode() != path]:
        raise ValueError(
            f"table_from_folder needs names of files in UTF-8; {len(unwritable):,} are not, such as {unwritable[:3]}. "
            "Rename them."
        )
    labels, folders = pd.factorize(np.array(where, dtype=object), sort=True)
    parts = [inner.split("/") for inner in folders]
    table = DataFrame({LABELS_COLUMN: labels.astype(np.int64), PATHS_COLUMN: paths})
    table[LABEL_NAMES_COLUMN] = np.array([part[-1] for part in parts], dtype=object)[labels]
    notes = []
    if len(parts[0]) == 2:
        table[CATEGORIES_COLUMN] = np.array([part[0] for part in parts], dtype=object)[labels]
        if repeats := len(parts) - len({part[1] for part in parts}):
            notes.append(f"{repeats:,} label folders are named like one elsewhere: each is a label of its own.")
    if n_others:
        notes.append(f"{n_others:,} files are no images by their names; they were left out.")
    if n_loose:
        notes.append(f"{n_loose:,} images lie in {str(root)!r} itself, so have no label; they were left out.")
    if empty:
        notes.append(f"{len(empty):,} folders hold no images, such as {empty[:3]}.")
    return Made(table, notes)


def _walk(root: Path) -> Iterator[tuple[str, list[str], bool]]:
    """Folders from ``root`` down to the third level, sorted: relative path, names of files, has it no folders."""
    for where, folders, files in os.walk(root, followlinks=True):
        inner = Path(where).relative_to(root).as_posix().removeprefix(".")
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        yield inner, sorted(files), not folders
        if inner.count("/") == 2:
            folders.clear()  # two levels are meant, so the third one tells enough; and links may go in circles


def number_labels(table: DataFrame) -> DataFrame:
    """The table with whole numbers (int64) as labels; texts are numbered in sorted order, and kept as ``label_name``.

    Example:
        >>> number_labels(DataFrame({"path": ["1.jpg", "2.jpg"], "label": ["oak", "ash"]}))
            path  label label_name
        0  1.jpg      1        oak
        1  2.jpg      0        ash

    Raises:
        ValueError: if a label is empty, or texts would replace a column ``label_name``.
    """
    label = table[LABELS_COLUMN]
    if (empty := label.isna()).any():
        raise ValueError(f"Every row needs a label; it is empty in {rows_where(empty)}. Fill it in or drop the rows.")
    is_whole = is_integer_dtype(label) or (is_numeric_dtype(label) and (label % 1 == 0).all())
    if is_whole and (label > np.iinfo(np.int64).max).any():
        raise ValueError(
            f"Labels are whole numbers up to 2**63 - 1, or texts; larger are {rows_where(label > 2**63 - 1, label)}."
        )
    if is_whole:
        return table.assign(**{LABELS_COLUMN: label.astype(np.int64)})
    if LABEL_NAMES_COLUMN in table.columns:
        raise ValueError(
            f"Labels are texts, such as {str(label.iloc[0])!r}, and would be kept in a column {LABEL_NAMES_COLUMN}, "
            "which the table has already. Rename or drop it."
        )
    names = label.astype(str)
    return table.assign(
        **{LABELS_COLUMN: pd.factorize(names, sort=True)[0].astype(np.int64), LABEL_NAMES_COLUMN: names}
    )


def assign_splits(
    items: DataFrame,
    validation_share: float = 0.5,
    seed: int = 0,
    protocol: Protocol = "one-vs-rest",
    n_queries: int = 1,
    keep_categories: bool = False,
) -> Made:
    """Divide labels between train and validation at random, and give validation items their roles.

    The table that comes back has the items in their order, in the columns of the format, with ``items``' other
    columns after them. No label is in both splits. A label with a single item (or all items in one sequence) has no
    query, so it goes to train, or is a mere gallery if its category has to stay whole.

    Args:
        items: with the columns ``path`` and ``label``; text labels are numbered, see :func:`number_labels`. Columns
            ``split``, ``is_query`` and ``is_gallery``, if there are any, are replaced.
        validation_share: of the labels; the nearest share that can be had is taken. Between 0 and 1, both splits
            get at least one label if that can be.
        seed: the same one gives the same table.
        protocol: ``one-vs-rest``: every validation item is a query and a gallery. ``query-gallery``: ``n_queries``
            items of a label are queries, the others (one at least) are galleries.
        n_queries: for a label, in ``query-gallery``.
        keep_categories: whole categories go to one split.

    Raises:
        ValueError: for a missing column or an argument out of its range; with ``keep_categories`` also for labels of
            several categories or none.
    """
    if not 0 <= validation_share <= 1:
        raise ValueError(f"assign_splits needs a validation_share from 0 to 1, got {validation_share}.")
    if protocol not in get_args(Protocol):
        raise ValueError(f"assign_splits knows the protocols {list(get_args(Protocol))}, got {protocol!r}.")
    if n_queries < 1:
        raise ValueError(f"assign_splits needs n_queries of 1 or more, got {n_queries}.")
    needed = [PATHS_COLUMN, LABELS_COLUMN, *([CATEGORIES_COLUMN] if keep_categories else [])]
    if missing := [column for column in needed if column not in items.columns]:
        raise ValueError(f"assign_splits needs the columns {missing}; the table has {list(items.columns)}.")
    if items.empty:
        raise ValueError("assign_splits needs at least one row; the table has none.")
    if (bad := ~is_path(items[PATHS_COLUMN])).any():
        raise ValueError(f"Every row needs a path; it is missing in {rows_where(bad)}. Fill it in or drop the rows.")

    notes = []
    roles = [column for column in (SPLIT_COLUMN, IS_QUERY_COLUMN, IS_GALLERY_COLUMN) if column in items.columns]
    if roles:
        notes.append(f"the columns {roles} of the table were replaced.")
    table = number_labels(items.drop(columns=roles).reset_index(drop=True))
    rng = np.random.default_rng(seed)
    labels, distinct = pd.factorize(table[LABELS_COLUMN], sort=True)
    groups = _groups(table, labels)
    has_query = np.bincount(labels[np.unique(groups, return_index=True)[1]]) > 1
    if keep_categories:
        categories = _category_of_labels(table, labels)
        is_validation = _draw_categories(categories, has_query, validation_share, rng)[categories]
    else:
        is_validation = _draw_labels(has_query, validation_share, rng)
    if n_lone := np.count_nonzero(~has_query):
        place = "in train, or mere galleries if their category is in validation" if keep_categories else "in train"
        notes.append(f"{n_lone:,} labels have one item, or one sequence, so nothing to be found by: they are {place}.")
    n = np.count_nonzero(is_validation)
    notes.append(f"validation has {n:,} of {len(distinct):,} labels, {n / len(distinct):.1%} of them.")

    is_gallery = is_validation[labels]
    is_query = is_gallery & has_query[labels]
    if protocol == "query-gallery":
        is_query &= _rank_by_chance(labels, rng) < np.minimum(n_queries, np.bincount(labels)[labels] - 1)
        is_gallery &= ~is_query
        # with sequences, all galleries may be of the query's own
        found = np.bincount(labels[is_gallery], minlength=len(distinct))[labels]
        own = np.bincount(groups[is_gallery], minlength=groups.max() + 1)[groups]
        lost = is_query & (found == own)
        is_query &= ~lost
        is_gallery |= lost
        if lost.any():
            notes.append(f"{np.count_nonzero(lost):,} queries would find their own sequence only: they are galleries.")
    table[SPLIT_COLUMN] = np.where(is_validation[labels], VALIDATION_SPLIT, TRAIN_SPLIT)
    for column, role in ((IS_QUERY_COLUMN, is_query), (IS_GALLERY_COLUMN, is_gallery)):
        table[column] = Series(role, dtype=object).where(is_validation[labels], None)
    known = [*OBLIGATORY_COLUMNS, CATEGORIES_COLUMN, SEQUENCE_COLUMN, *BBOXES_COLUMNS]
    order = [column for column in known if column in table.columns]
    return Made(table[[*order, *(column for column in table.columns if column not in order)]], notes)


def _groups(table: DataFrame, labels: Int[ndarray, " row"]) -> Int[ndarray, " row"]:
    """Equal for rows of one label and one sequence, which do not find each other; else a row is a group of its own."""
    sequences = np.full(len(table), -1)
    if SEQUENCE_COLUMN in table.columns:
        sequences = pd.factorize(table[SEQUENCE_COLUMN])[0]
    alone = sequences.max() + 1 + np.arange(len(table))
    sequences = np.where(sequences >= 0, sequences, alone)
    return pd.factorize(labels * (sequences.max() + 1) + sequences)[0]


def _category_of_labels(table: DataFrame, labels: Int[ndarray, " row"]) -> Int[ndarray, " label"]:
    """The number of each label's category."""
    cells = table[CATEGORIES_COLUMN]
    if (empty := cells.isna()).any():
        raise ValueError(f"Keeping categories whole needs one for every row; it is empty in {rows_where(empty)}.")
    pairs = DataFrame({"label": labels, "category": pd.factorize(cells, sort=True)[0]}).drop_duplicates()
    if (several := pairs["label"].duplicated()).any():
        bad = table[LABELS_COLUMN].isin(table[LABELS_COLUMN].iloc[pairs.index[several]])
        raise ValueError(
            "Keeping categories whole needs labels of one category each; "
            f"not so in {rows_where(bad, table[[LABELS_COLUMN, CATEGORIES_COLUMN]])}."
        )
    return pairs.sort_values("label")["category"].to_numpy()


def _draw_labels(has_query: Bool[ndarray, " label"], share: float, rng: np.random.Generator) -> Bool[ndarray, " label"]:
    low, high = _bounds(len(has_query), share)
    n = min(max(int(share * len(has_query) + 0.5), low), high)
    chosen = np.zeros(len(has_query), dtype=bool)
    chosen[rng.permutation(np.flatnonzero(has_query))[:n]] = True
    return chosen


def _draw_categories(
    categories: Int[ndarray, " label"], has_query: Bool[ndarray, " label"], share: float, rng: np.random.Generator
) -> Bool[ndarray, " category"]:
    """Categories with as near as can be to the share of the labels in them; none without any query."""
    sizes = np.bincount(categories)
    n_labels = len(categories)
    # of every number of labels that some categories make up: the last of those categories
    last = np.full(n_labels + 1, -1)
    reached = np.zeros(n_labels + 1, dtype=bool)
    reached[0] = True
    for category in rng.permutation(np.unique(categories[has_query])):
        new = ~reached
        new[: sizes[category]] = False
        new[sizes[category] :] &= reached[: -sizes[category]]
        last[new] = category
        reached |= new
    low, high = _bounds(n_labels, share)
    within = np.flatnonzero(reached[low : high + 1]) + low
    if not len(within):
        within = np.flatnonzero(reached)
    n = within[np.abs(within - share * n_labels).argmin()]
    chosen = np.zeros(len(sizes), dtype=bool)
    while n:
        chosen[last[n]] = True
        n -= sizes[last[n]]
    return chosen


def _bounds(n_labels: int, share: float) -> tuple[int, int]:
    """Fewest and most labels of validation: neither split is empty if the share is neither 0 nor 1."""
    return int(share > 0), max(n_labels - int(share < 1), int(share > 0))


def _rank_by_chance(labels: Int[ndarray, " row"], rng: np.random.Generator) -> Int[ndarray, " row"]:
    """The place of each row in a random order of the rows of its label."""
    order = np.lexsort((rng.random(len(labels)), labels))
    counts = np.bincount(labels)
    ranks = np.empty(len(labels), dtype=np.int64)
    ranks[order] = np.arange(len(labels)) - np.repeat(counts.cumsum() - counts, counts)
    return ranks


def rebase_paths(table: DataFrame, root: Path | str, new_root: Path | str) -> DataFrame:
    """The table with paths that mean below ``new_root`` what they meant below ``root``.

    They stay relative if ``root`` is ``new_root`` or lies in it, and become absolute else. Absolute ones stay.

    Example:
        >>> rebase_paths(DataFrame({"path": ["1.jpg", "/2.jpg"]}), root="data/photos", new_root="data")["path"].tolist()
        ['photos/1.jpg', '/2.jpg']
    """
    old, new = Path(os.path.abspath(root)), Path(os.path.abspath(new_root))  # noqa: PTH100 (links stay links)
    prefix = old.relative_to(new) if old.is_relative_to(new) else old
    paths = table[PATHS_COLUMN]
    return table.assign(**{PATHS_COLUMN: [(prefix / path).as_posix() for path in paths]})
