"""What a retrieval table holds, in numbers."""

from typing import NamedTuple

import numpy as np
from pandas import DataFrame

from oml.const import (
    BBOXES_COLUMNS,
    CATEGORIES_COLUMN,
    IS_GALLERY_COLUMN,
    IS_QUERY_COLUMN,
    LABELS_COLUMN,
    PATHS_COLUMN,
    SPLIT_COLUMN,
    TRAIN_SPLIT,
    VALIDATION_SPLIT,
)
from oml.datasets._table_rules import is_role, usable


class ItemCounts(NamedTuple):
    """What some rows of a table hold; ``None`` for what it has no column for."""

    items: int
    images: int | None
    """distinct paths"""
    labels: int | None
    categories: int | None
    queries: int | None
    galleries: int | None
    boxes: int
    """items that are a part of their image"""
    items_per_label: dict[tuple[int, int], int]
    """(fewest, most) items -> number of labels with so many; the ranges are 1, 2, 3 to 4, 5 to 8, 9 to 16 ..."""


class TableSummary(NamedTuple):
    """What a table holds: the whole of it, and its two splits."""

    whole: ItemCounts
    train: ItemCounts
    validation: ItemCounts


def summarise_table(table: DataFrame) -> TableSummary:
    """Count what a table holds; one that breaks the format is counted as far as it goes.

    Example:
        >>> table = DataFrame({"label": [0, 0, 1], "path": ["a", "b", "c"], "split": "train"})
        >>> summary = summarise_table(table)
        >>> summary.train.labels, summary.train.items_per_label, summary.validation.items
        (2, {(1, 1): 1, (2, 2): 1}, 0)
    """
    table, _ = usable(table)
    split = table[SPLIT_COLUMN] if SPLIT_COLUMN in table.columns else table.index
    return TableSummary(_count(table), *(_count(table[split == part]) for part in (TRAIN_SPLIT, VALIDATION_SPLIT)))


def _count(table: DataFrame) -> ItemCounts:
    def distinct(column: str) -> int | None:
        return table[column].nunique() if column in table.columns else None

    def true(column: str) -> int | None:
        return int(is_role(table[column], True).sum()) if column in table.columns else None

    has_boxes = set(BBOXES_COLUMNS) <= set(table.columns)
    counts = table[LABELS_COLUMN].value_counts().to_numpy() if LABELS_COLUMN in table.columns else np.zeros(0, int)
    counts = counts[counts > 0]  # a categorical column may know labels that no row has
    powers, n_labels = np.unique(np.ceil(np.log2(counts)).astype(int), return_counts=True)
    ranges = [(2**power // 2 + 1, 2**power) for power in powers.tolist()]  # 2 ** 0 // 2 is 0
    return ItemCounts(
        items=len(table),
        images=distinct(PATHS_COLUMN),
        labels=distinct(LABELS_COLUMN),
        categories=distinct(CATEGORIES_COLUMN),
        queries=true(IS_QUERY_COLUMN),
        galleries=true(IS_GALLERY_COLUMN),
        boxes=int(table[BBOXES_COLUMNS].notna().all(axis=1).sum()) if has_boxes else 0,
        items_per_label=dict(zip(ranges, n_labels.tolist(), strict=True)),
    )
