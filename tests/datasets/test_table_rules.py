"""The rules against a literal reading of them, row by row, on tiny tables in which nearly anything may be wrong."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas import DataFrame

from oml.const import BBOXES_COLUMNS, OBLIGATORY_COLUMNS
from oml.datasets.table import inspect_table

Row = dict[str, Any]

CELLS = {
    "label": [0, 0, 0, 1, 1, 2],
    "path": ["a.jpg", "a.jpg", "a.jpg", "b.jpg", "c.jpg", None],
    "split": ["train", "validation", "validation", "validation", "test"],
    "is_query": [True, 1, 1.0, False, 0, None, None, "yes", "True"],
    "is_gallery": [True, True, False, 0.0, None, None, "False", 2],
    "category": ["x", "x", "y", None],
    "sequence": [None, "s", "t"],
    "x_1": [None, None, 0, 1, 2],
    "x_2": [None, None, 2, 3, 0.5],
    "y_1": [None, None, 0, -1, np.inf],
    "y_2": [None, None, 2, 1],
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rules")
    for name in ("a.jpg", "b.jpg"):
        (root / name).touch()
    return root


def empty(cell: Any) -> bool:
    return cell is None or cell != cell


def true(cell: Any) -> bool:
    return cell in (True, "True")


def false(cell: Any) -> bool:
    return cell in (False, "False")


def bad_role(rows: list[Row], role: str) -> Callable[[Row], bool]:
    """Text of the right words is told apart from other cells, if it may be text for their sake."""
    validation = [row[role] for row in rows if row["split"] == "validation"]
    others = [cell for cell in validation if not empty(cell) and not true(cell) and not false(cell)]
    right = (True, False, "True", "False") if others else (True, False)
    return lambda row: row["split"] == "validation" and row[role] not in right


def expected_violations(rows: list[Row], columns: set[str], root: Path) -> dict[str, list[int]]:
    """How a violation begins -> the rows that it is about."""
    found: dict[str, list[int]] = {}

    def rule(text: str, needed: set[str], is_broken: Callable[[Row], bool]) -> None:
        if needed <= columns and (bad := [i for i, row in enumerate(rows) if is_broken(row)]):
            found[text] = bad

    def may_be_found(row: Row, query: Row) -> bool:
        if row is query or row["label"] != query["label"] or row["split"] == "train" or false(row["is_gallery"]):
            return False  # a gallery cell or split that is wrong may become right, and counts
        return "sequence" not in columns or empty(query["sequence"]) or row["sequence"] != query["sequence"]

    def is_half_a_box(row: Row) -> bool:
        sides = [row[column] for column in BBOXES_COLUMNS]
        return not all(map(empty, sides)) and any(empty(side) or side % 1 != 0 for side in sides)

    rule("split must", {"split"}, lambda row: row["split"] not in ("train", "validation"))
    for role in ("is_query", "is_gallery"):
        rule(
            f"{role} must be empty",
            {"split", role},
            lambda row, role=role: row["split"] == "train" and not empty(row[role]),
        )
        rule(f"{role} must be true", {"split", role}, bad_role(rows, role))
    rule(
        "a validation row must",
        {"split", "is_query", "is_gallery"},
        lambda row: row["split"] == "validation" and false(row["is_query"]) and false(row["is_gallery"]),
    )
    rule(
        "every query",
        {"split", "is_query", "is_gallery", "label"},
        lambda row: (
            row["split"] == "validation" and true(row["is_query"]) and not any(may_be_found(r, row) for r in rows)
        ),
    )
    rule("category must", {"category"}, lambda row: empty(row["category"]))
    rule("path must be text", {"path"}, lambda row: empty(row["path"]))
    rule("path must be a file", {"path"}, lambda row: not empty(row["path"]) and not (root / row["path"]).is_file())
    rule("a box needs", set(BBOXES_COLUMNS), is_half_a_box)
    for low, high in (("x_1", "x_2"), ("y_1", "y_2")):
        rule(
            f"{low} must be below",
            {low, high},
            lambda row, low=low, high=high: not empty(row[low]) and not empty(row[high]) and row[low] >= row[high],
        )
    present = columns & set(BBOXES_COLUMNS)
    rule("boxes must not", set(), lambda row: any(not empty(row[side]) and row[side] < 0 for side in present))
    return found


def named(text: str) -> tuple[list[int], int]:
    """The rows that a text names, and how many more it speaks of."""
    match = re.search(r"rows? (\d+(?:, \d+)*)(?: \(and (\d+) more\))?", text)
    assert match, text
    return [int(row) for row in match[1].split(", ")], int(match[2] or 0)


ROWS = st.lists(
    st.fixed_dictionaries({column: st.sampled_from(cells) for column, cells in CELLS.items()}), min_size=1, max_size=6
)


@settings(max_examples=200)
@given(rows=ROWS, dropped=st.sets(st.sampled_from(list(CELLS)), max_size=3))
def test_violations_follow_the_definition(rows: list[Row], dropped: set[str], root: Path) -> None:
    columns = set(CELLS) - dropped
    table = DataFrame({column: pd.Series([row[column] for row in rows], dtype=object) for column in CELLS})
    table = table.astype({"label": np.int64})[[column for column in CELLS if column in columns]]
    if (boxes := [column for column in BBOXES_COLUMNS if column in columns]) and len(rows) % 2:
        table = table.astype(dict.fromkeys(boxes, float))  # as they come from a CSV file
    violations = inspect_table(table, root).violations

    expected = expected_violations(rows, columns, root)
    whole = [text for text in violations if text.startswith(("columns", "boxes need"))]
    assert len(whole) == (not columns >= set(OBLIGATORY_COLUMNS)) + (0 < len(columns & set(BBOXES_COLUMNS)) < 4)
    found = {text: named(text) for text in violations if text not in whole}
    for start, bad in expected.items():
        [text] = [text for text in found if text.startswith(start)]
        assert found[text] == (bad[:3], max(len(bad) - 3, 0)), text
    assert len(found) == len(expected)


def expected_remarks(rows: list[Row], columns: set[str]) -> dict[str, int]:
    """The end of what is counted in a remark -> the count."""
    train = [row["label"] for row in rows if row["split"] == "train"]
    validation = [row["label"] for row in rows if row["split"] == "validation"]
    items = [tuple(row[column] for column in ("path", *BBOXES_COLUMNS) if column in columns) for row in rows]
    categories = {label: {r["category"] for r in rows if r["label"] == label and r["category"]} for label in range(3)}
    counts = {
        "labels occur in train and": len(set(train) & set(validation)),
        "labels have a single row": sum(train.count(label) == 1 for label in set(train)),
        "labels occur in several": sum(len(some) > 1 for some in categories.values()),
        "rows have the path": sum(item[0] is not None and item in items[:i] for i, item in enumerate(items)),
    }
    return {text: n for text, n in counts.items() if n}


@settings(max_examples=100)
@given(rows=ROWS, drop_boxes=st.booleans())
def test_remarks_follow_the_definition(rows: list[Row], drop_boxes: bool, root: Path) -> None:
    columns = set(CELLS) - (set(BBOXES_COLUMNS) if drop_boxes else set())
    table = DataFrame(rows)[[column for column in CELLS if column in columns]]
    remarks = inspect_table(table, root).remarks
    expected = expected_remarks(rows, columns)
    for text, n in expected.items():
        assert len([remark for remark in remarks if remark.startswith(f"{n} {text}")]) == 1, (text, remarks)
    assert len(remarks) == len(expected)
