import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pandas import DataFrame

from oml.datasets.table import check_retrieval_dataframe_format, inspect_table
from oml.utils import dataframe_format


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("table")
    for i in range(8):
        (root / f"{i}.jpg").touch()
    return root


@pytest.fixture
def table() -> DataFrame:
    return DataFrame(
        {
            "label": [0, 0, 1, 1, 2, 2, 3, 3],
            "path": [f"{i}.jpg" for i in range(8)],
            "split": ["train"] * 4 + ["validation"] * 4,
            "is_query": [np.nan] * 4 + [True, False, True, True],
            "is_gallery": [np.nan] * 4 + [False, True, True, True],
            "category": ["a", "a", "b", "b", "a", "a", "a", "a"],
            "x_1": [np.nan, 0, 1, 0, 0, 0, 0, 0],
            "x_2": [np.nan, 5, 6, 7, 8, 9, 9, 9],
            "y_1": [np.nan, 0, 1, 0, 0, 0, 0, 0],
            "y_2": [np.nan, 5, 6, 7, 8, 9, 9, 9],
        }
    )


def test_a_good_table_passes(table: DataFrame, root: Path) -> None:
    check_retrieval_dataframe_format(table, root)
    check_retrieval_dataframe_format(table, str(root))
    check_retrieval_dataframe_format(table[table.split == "train"], root)
    check_retrieval_dataframe_format(table[table.split == "validation"], root)
    check_retrieval_dataframe_format(table.drop(columns=["category", "x_1", "x_2", "y_1", "y_2"]), root)
    assert dataframe_format.check_retrieval_dataframe_format is check_retrieval_dataframe_format


@pytest.mark.parametrize("values", [(1, 0), (1.0, 0.0), (True, False)])
def test_roles_may_be_numbers(table: DataFrame, root: Path, values: tuple) -> None:
    for column in ("is_query", "is_gallery"):
        table[column] = table[column].map({True: values[0], False: values[1]})
    check_retrieval_dataframe_format(table, root)


def test_a_csv_file_passes(table: DataFrame, root: Path, tmp_path: Path) -> None:
    table.to_csv(tmp_path / "df.csv", index=False, sep=";")
    check_retrieval_dataframe_format(tmp_path / "df.csv", root, sep=";")
    check_retrieval_dataframe_format(str(tmp_path / "df.csv"), str(root), sep=";")


def test_the_caller_keeps_the_table(table: DataFrame, root: Path) -> None:
    before = table.copy()
    check_retrieval_dataframe_format(table, root)
    pd.testing.assert_frame_equal(table, before)


BREAKS = {
    "no column": (lambda t: t.drop(columns="split"), r"columns \['split'\] are missing"),
    "split": (lambda t: t.assign(split=["test", *t.split[1:]]), r"split must be .* row 0 with \['test'\]"),
    "query on train": (
        lambda t: t.assign(is_query=[True, *t.is_query[1:]]),
        r"is_query must be empty in train .* row 0",
    ),
    "gallery on train": (
        lambda t: t.assign(is_gallery=[False, *t.is_gallery[1:]]),
        r"is_gallery must be empty in train",
    ),
    "text role": (
        lambda t: t.assign(is_query=[*t.is_query[:7], "True"]),
        r"is_query must be true or false.*\['True'\]",
    ),
    "number role": (
        lambda t: t.assign(is_gallery=[*t.is_gallery[:7], 123]),
        r"is_gallery must be true or false.*\[123\]",
    ),
    "empty role": (lambda t: t.assign(is_query=[*t.is_query[:7], None]), r"is_query must be true or false.* row 7"),
    "no role": (
        lambda t: t.assign(
            label=t.label.clip(upper=2), is_query=[*t.is_query[:7], False], is_gallery=[*t.is_gallery[:7], False]
        ),
        r"neither is row 7",
    ),
    "no gallery": (
        lambda t: t.assign(is_gallery=[*t.is_gallery[:6], False, False]),
        r"every query .* rows 6, 7 with \[3, 3\]",
    ),
    "nothing but itself": (
        lambda t: t.assign(label=[*t.label[:7], 4]),
        r"in another row than its own; there is none for rows 6, 7 with \[3, 4\]",
    ),
    "category": (lambda t: t.assign(category=[None, *t.category[1:]]), r"category must be given .* row 0"),
    "columns twice": (lambda t: t[[*t.columns, "label"]], r"columns \['label'\] occur more than once"),
    "no rows": (lambda t: t.iloc[:0], r"no rows"),
    "float label": (lambda t: t.assign(label=t.label.astype(float)), r"whole numbers \(int64\); it is of type float64"),
    "text label": (lambda t: t.assign(label=t.label.astype(str)), r"whole numbers \(int64\)"),
    "no file": (lambda t: t.assign(path=["x.jpg", *t.path[1:]]), r"there is none for row 0 with \['x.jpg'\]"),
    "no path": (lambda t: t.assign(path=[None, *t.path[1:]]), r"path must be text; it is not in row 0"),
    "box column": (lambda t: t.drop(columns="y_2"), r"boxes need all the columns"),
    "half a box": (lambda t: t.assign(x_1=[1, *t.x_1[1:]]), r"four whole numbers.* row 0"),
    "fraction": (lambda t: t.assign(x_1=[*t.x_1[:7], 0.5]), r"four whole numbers.* row 7"),
    "no width": (lambda t: t.assign(x_1=[*t.x_1[:7], 9]), r"x_1 must be below x_2; it is not in row 7"),
    "inverted": (lambda t: t.assign(y_1=[*t.y_1[:7], 10]), r"y_1 must be below y_2; it is not in row 7"),
    "negative": (lambda t: t.assign(x_1=[*t.x_1[:7], -1]), r"must not be negative; they are in row 7"),
    "text box": (lambda t: t.assign(x_1=["a"] * 8), r"boxes must be numbers"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_each_rule_is_checked(table: DataFrame, root: Path, name: str) -> None:
    break_it, text = BREAKS[name]
    with pytest.raises(AssertionError, match=text) as error:
        check_retrieval_dataframe_format(break_it(table.astype({"is_query": object, "is_gallery": object})), root)
    assert isinstance(error.value, ValueError)
    assert "breaks 1 rules" in str(error.value)  # and no other


def test_all_violations_come_at_once(table: DataFrame, root: Path) -> None:
    table = table.assign(label=table.label.astype(float), split=["test"] * 8, path="none", x_1=-1)
    assert len(inspect_table(table, root).violations) == 5  # label, split, path, half a box, negative


def test_the_first_rows_and_their_number_are_named(root: Path) -> None:
    table = DataFrame({"label": range(9), "path": "0.jpg", "split": "train?", "is_query": None, "is_gallery": None})
    assert "rows 0, 1, 2 (and 6 more) with ['train?', 'train?', 'train?']" in inspect_table(table, root).violations[0]


def test_what_is_seldom_meant_is_remarked(table: DataFrame, root: Path) -> None:
    table["label"] = [0, 0, 2, 9, 2, 2, 3, 3]
    table["category"] = ["a", "b", *table.category[2:]]
    with pytest.warns(UserWarning, match="labels") as caught:
        check_retrieval_dataframe_format(table, root)
    text = "\n".join(str(warning.message) for warning in caught)
    assert "1 labels occur in train and in validation, such as [2]" in text
    assert "2 labels have a single row in train, such as [2, 9]" in text
    assert "labels occur in several categories, such as [0, 2]" in text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_retrieval_dataframe_format(table, root, verbose=False)


def test_relative_paths_refer_to_the_working_directory(
    table: DataFrame, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    check_retrieval_dataframe_format(table)


def test_absolute_paths_need_no_root(table: DataFrame, root: Path) -> None:
    check_retrieval_dataframe_format(table.assign(path=[str(root / path) for path in table.path]), "/somewhere/else")
