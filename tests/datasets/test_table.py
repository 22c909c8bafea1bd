import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pandas import DataFrame

from oml.datasets.splitting import number_labels
from oml.datasets.table import (
    TableError,
    check_items,
    check_retrieval_dataframe_format,
    inspect_table,
    read_table,
)
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
    "huge label": (
        lambda t: t.assign(label=(t.label.astype("uint64") + 2**63)),
        r"up to 2\*\*63 - 1; larger are rows 0, 1, 2 \(and 5 more\) with \[9223372036854775808,",
    ),
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
        r"neither in row 7",
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


def test_a_missing_column_or_a_bad_split_hides_nothing_else(table: DataFrame, root: Path) -> None:
    broken = table.drop(columns="is_query").assign(
        split=["val", *table.split[1:]], label=[0, 0, 2, 2, 2, 2, 3, 3], x_1=[-1.0, *table.x_1[1:]], path="none"
    )
    violations, remarks = inspect_table(broken, root)
    for start in (
        "columns ['is_query'] are missing",
        "split must",
        "a box needs",
        "boxes must not",
        "path must be a file",
    ):
        assert any(text.startswith(start) for text in violations), (start, violations)
    assert len(violations) == 5
    assert [text[:18] for text in remarks] == [
        "1 labels occur in ",  # train and validation
        "1 labels have a si",
        "1 labels occur in ",  # several categories
        "2 rows have the pa",
    ]


def test_boxes_are_checked_as_far_as_there_are_columns(table: DataFrame, root: Path) -> None:
    violations = inspect_table(table.drop(columns="y_2").assign(x_1=9), root).violations
    assert violations[0].startswith("boxes need all the columns")
    assert violations[1].startswith("x_1 must be below x_2; it is not in rows 1, 2, 3 (and 4 more) with [[9.0, 5.0], ")
    assert len(violations) == 2


def test_remarks_stand_beside_violations(table: DataFrame, root: Path) -> None:
    broken = table.assign(split=["test", *table.split[1:]])
    with pytest.raises(TableError, match="split must") as error:
        check_retrieval_dataframe_format(broken, root)
    assert "legal but seldom meant" in str(error.value)
    assert "1 labels have a single row in train, such as [0]" in str(error.value)
    with pytest.raises(TableError) as error:
        check_retrieval_dataframe_format(broken, root, verbose=False)
    assert "legal" not in str(error.value)


def test_true_and_false_as_text(table: DataFrame, root: Path, tmp_path: Path) -> None:
    table = table.astype({"is_query": object})
    table.loc[7, "is_query"] = "yes"
    table.to_csv(tmp_path / "df.csv", index=False)
    [text] = inspect_table(read_table(tmp_path / "df.csv"), root).violations
    assert "not in row 7 with ['yes']. Beside such cells, true and false were read as text in 3 rows" in text
    [text] = inspect_table(table.assign(is_query=[None] * 4 + ["True", "False", "True", "True"]), root).violations
    assert (
        "rows 4, 5, 6 (and 1 more) with ['True', 'False', 'True']. Text is no truth value; convert it: df[\"is_q"
        in text
    )


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ([0, 0, 1, None, 2, 2, 3, 3], r"\(int64\); it is empty in row 3"),
        ([0, 0, 1, 1.5, 2, 2, 3, 3], r"\(int64\); it is not whole in row 3 with \[1.5\]"),
        ([0, 0, 1, np.inf, 2, 2, 3, 3], r"\(int64\); it is not whole in row 3 with \[inf\]"),
        ([0, 0, 1, "x", 2, 2, 3, 3], r"\(int64\); it is not in row 3 with \['x'\]. Texts are numbered by"),
        (list("00112233"), r'\(int64\); it is of type \w+. Convert it: df\["label"\] = df\["label"\].astype'),
        (pd.array([0, 0, 1, 1, 2, 2, 3, 3], dtype="Int64"), r"\(int64\); it is of type Int64. Convert it"),
        (np.array([0, 0, 1, 1, 2, 2, 3, 3], dtype=np.int32), r"\(int64\); it is of type int32. Convert it"),
        ([False, False, True, True, False, False, True, True], r"\(int64\); it is of type bool. Convert it"),
    ],
)
def test_labels_of_other_types(table: DataFrame, root: Path, labels: list, text: str) -> None:
    violations = inspect_table(table.assign(label=labels), root).violations
    assert len([found for found in violations if re.search(text, found)]) == 1, violations
    assert len([found for found in violations if found.startswith("label must")]) == 1


def test_nullable_and_categorical_columns_do(table: DataFrame, root: Path) -> None:
    kinds = {
        "path": "string",
        "split": "category",
        "is_query": "boolean",
        "is_gallery": "boolean",
        "category": "string",
    }
    kinds |= {"x_1": "Int64", "x_2": "Float64", "y_1": "Int64", "y_2": object}
    check_retrieval_dataframe_format(table.astype(kinds), root)
    check_retrieval_dataframe_format(table.set_index(pd.Index([7] * 8)), root)
    broken = table.assign(x_1=[None, 0, 1, 0, 0, 0, 0, None], path=[*table.path[:7], "none.jpg"]).astype(kinds)
    violations = inspect_table(broken, root).violations
    assert [text for text in violations if "a box needs" in text and "row 7" in text]
    assert [text for text in violations if "below the data set root" in text and "row 7 with ['none.jpg']" in text]
    assert len(violations) == 2


def test_cells_that_no_rule_can_read(table: DataFrame, root: Path) -> None:
    broken = table.assign(category=[["a"], *table.category[1:]], path=[*table.path[:7], [1]], y_1=["a", *table.y_1[1:]])
    assert inspect_table(broken, root).violations == [
        "path must hold single values; not so in row 7 with [[1]].",
        "category must hold single values; not so in row 0 with [['a']].",
        "boxes must be numbers; not so y_1 in row 0 with ['a'].",
    ]


def test_a_wrong_separator_is_guessed(table: DataFrame, root: Path, tmp_path: Path) -> None:
    table.to_csv(tmp_path / "df.csv", index=False, sep=";")
    with pytest.raises(TableError, match="Are its cells separated by ';'"):
        check_retrieval_dataframe_format(tmp_path / "df.csv", root)


def test_a_wrong_root_is_guessed(table: DataFrame, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twice = table.assign(path=[f"{root.name}/{path}" for path in table.path])
    [text] = inspect_table(twice, root).violations
    assert f"'{root.name}/0.jpg' there is a file below '{root.parent}': is that the root?" in text
    check_retrieval_dataframe_format(twice, root.parent)
    monkeypatch.chdir(root)
    [text] = inspect_table(table, "elsewhere").violations
    assert f"'0.jpg' there is a file below '{root}'" in text
    monkeypatch.chdir(root.parent)
    check_retrieval_dataframe_format(table, root.name)  # relative roots do


def test_queries_need_another_sequence(table: DataFrame, root: Path) -> None:
    table = table[table.split == "validation"].assign(is_query=True, is_gallery=True, label=[0, 0, 1, 1])
    for sequence in (["a", "b", "a", "b"], [None] * 4, [1.0, np.nan, 1.0, np.nan], ["a", None, "a", "b"]):
        check_retrieval_dataframe_format(table.assign(sequence=sequence), root)
    [text] = inspect_table(table.assign(sequence=["a", "b", "c", "c"]), root).violations
    assert "of its label in another row than its own and of another sequence; there is none for rows 2, 3" in text


def test_rows_that_stand_there_twice_are_remarked(table: DataFrame, root: Path) -> None:
    twice = pd.concat([table, table.iloc[[3, 5]].assign(x_1=[0, 1])])
    remarks = inspect_table(twice, root).remarks
    assert [text for text in remarks if "1 rows have the path and box of an earlier row: row 8 with ['3.jpg']" in text]
    assert not [text for text in inspect_table(table, root).remarks if "earlier" in text]


def test_read_table_reads_many_kinds(table: DataFrame, tmp_path: Path) -> None:
    table = table.drop(columns=["is_query", "is_gallery"])
    table.to_csv(tmp_path / "a.csv", index=False)
    table.to_csv(tmp_path / "a.csv.gz", index=False)
    table.to_csv(tmp_path / "A.TSV", index=False, sep="\t")
    table.to_csv(tmp_path / "b.tsv.zip", index=False, sep=";")
    table.astype({"label": "int32"}).to_parquet(tmp_path / "a.parquet")
    table.astype({"label": "Int64"}).to_parquet(tmp_path / "b.parquet")
    for name, sep in (("a.csv", ","), ("a.csv.gz", ","), ("A.TSV", ","), ("b.tsv.zip", ";"), ("a.parquet", ",")):
        pd.testing.assert_frame_equal(read_table(tmp_path / name, sep), table)
        pd.testing.assert_frame_equal(read_table(str(tmp_path / name), sep), table)
    pd.testing.assert_frame_equal(read_table(tmp_path / "b.parquet"), table)
    table.to_csv(tmp_path / "tabs.txt", index=False, sep="\t")
    pd.testing.assert_frame_equal(read_table(tmp_path / "tabs.txt", r"\t"), table)
    assert read_table(table) is table


def test_tables_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = {
        "empty.csv": b"",
        "ragged.csv": b"label,path\n1,a.jpg\n2,b.jpg,c,d\n",
        "long.csv": b"label,path\n1,a.jpg,x\n2,b.jpg,y\n",
        "latin.csv": "label,path\n1,\xe9.jpg\n".encode("latin-1"),
        "no.csv.gz": b"label",
        "no.zip": b"label",
        "no.csv.xz": b"label",
        "no.parquet": b"label",
        "photo.jpg": b"label",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"table.*{name}") as error:
            read_table(tmp_path / name)
        assert "\n" not in str(error.value)
        assert isinstance(error.value, TableError) == (name not in ("photo.jpg", "no.zip"))
    with pytest.raises(TableError, match="more cells than its header"):
        read_table(tmp_path / "long.csv")
    with pytest.raises(FileNotFoundError, match=r"none.csv': there is no such file"):
        read_table(tmp_path / "none.csv")
    with pytest.raises(FileNotFoundError, match="it is a folder"):
        read_table(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs pyarrow .* pip install 'open-metric-learning\[parquet\]'"):
        read_table(tmp_path / "no.parquet")


def test_separators_at_the_ends_of_rows_do_not_shift_them(tmp_path: Path) -> None:
    (tmp_path / "df.csv").write_text("label,path\n0,a.jpg,\n1,b.jpg,\n")
    assert read_table(tmp_path / "df.csv").to_dict("list") == {"label": [0, 1], "path": ["a.jpg", "b.jpg"]}


def test_long_columns_have_one_type(tmp_path: Path) -> None:
    """pandas reads in parts by default: the first ones of only empty cells, the last ones of True and False."""
    rows = ["1,a.jpg,train,,"] * 300_000 + ["1,a.jpg,validation,True,False"] * 2
    (tmp_path / "df.csv").write_text("\n".join(["label,path,split,is_query,is_gallery", *rows]))
    assert read_table(tmp_path / "df.csv").is_query.iloc[-1] is True


def test_check_items(table: DataFrame, root: Path) -> None:
    check_items("Set", table[["label", "path"]].astype({"label": "int32"}), root)
    check_items("Set", table.assign(label="none"), root, whole_labels=False)
    broken = table.assign(label="a", path="x", x_1=9).set_index(pd.Index([3] * 8))
    with pytest.raises(TableError, match="^Set cannot use its table") as error:
        check_items("Set", broken, str(root))
    assert len(str(error.value).splitlines()) == 5  # path, half a box, order, label


def test_labels_too_large_for_int64_do_not_become_negative(table: DataFrame, root: Path, tmp_path: Path) -> None:
    table["label"] = table.label.astype("uint64") + 2**63
    table.to_parquet(tmp_path / "df.parquet")
    with pytest.raises(TableError, match="larger are rows 0, 1, 2"):
        check_retrieval_dataframe_format(tmp_path / "df.parquet", root)
    with pytest.raises(ValueError, match=r"up to 2\*\*63 - 1, or texts; larger are rows 0, 1, 2"):
        number_labels(table)
