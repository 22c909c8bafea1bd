import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pandas import DataFrame
from PIL import Image

Oml = Callable[..., tuple[int, str, str]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """0.png to 19.png, 8 x 6 pixels and different."""
    for i in range(20):
        Image.fromarray(np.full((6, 8, 3), 10 * i, dtype=np.uint8)).save(tmp_path / f"{i}.png")
    return tmp_path


@pytest.fixture
def table() -> DataFrame:
    """20 rows that are all right; labels 0 to 4 in train, 5 to 9 in validation, two items each."""
    return DataFrame(
        {
            "label": np.repeat(range(10), 2),
            "path": [f"{i}.png" for i in range(20)],
            "split": ["train"] * 10 + ["validation"] * 10,
            "is_query": pd.Series([None] * 10 + [True, False] * 5, dtype=object),
            "is_gallery": pd.Series([None] * 10 + [False, True] * 5, dtype=object),
            "category": ["a"] * 10 + ["b"] * 10,
            "x_1": 0,
            "x_2": 8,
            "y_1": 0,
            "y_2": 6,
        }
    )


def test_a_good_table(root: Path, table: DataFrame, oml: Oml) -> None:
    """Paths are looked for beside the table, wherever the command runs."""
    table.to_csv(root / "df.csv", index=False)
    code, out, err = oml("check", root / "df.csv", "--images")
    assert (code, "20/20" in err) == (0, True)
    assert "0 violations of the format." in out
    assert "0 remarks" in out
    words = [line.split() for line in out.splitlines()]
    for row in (
        ["whole", "train", "validation"],
        ["items", "20", "10", "10"],
        ["images", "20", "10", "10"],
        ["labels", "10", "5", "5"],
        ["categories", "2", "1", "1"],
        ["queries", "5", "0", "5"],
        ["galleries", "5", "0", "5"],
        ["boxes", "20", "10", "10"],
        ["2", "5", "█" * 20, "5", "█" * 20],
    ):
        assert row in words


def test_many_faults_in_one_run(root: Path, table: DataFrame) -> None:
    """As a person runs it: a process whose output goes to a file."""
    table["split"] = table["split"].where(table.index != 0, "test")
    table.loc[1, "is_query"] = True
    table.loc[10, "is_query"] = "yes"
    table.loc[12, ["is_query", "is_gallery"]] = False
    table.loc[15, "is_gallery"] = False  # so the query of row 14 finds nothing
    table["label"] = table["label"].where(table.index != 2, 1.5)
    table.loc[3, "category"] = None
    table.loc[4, "path"] = "none.png"
    table.loc[5, "x_1"] = 9
    table.loc[6, "y_1"] = -1
    table["y_2"] = table["y_2"].where(table.index != 7, 2.5)
    table.loc[8, "x_2"] = 99
    (root / "9.png").write_text("no image")
    (root / "19.png").write_bytes((root / "18.png").read_bytes())
    table.loc[11, ["path", "label"]] = ["16.png", 3]
    table.to_csv(root / "df.csv", index=False)

    code = "import sys; from oml.cli import main; main(sys.argv[1:])"
    environment = {**os.environ, "COLUMNS": "40", "NO_COLOR": "1"}
    command = [sys.executable, "-c", code, "check", "df.csv", "--images"]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    lines = done.stdout.splitlines()
    violations = (
        "split must be 'train' or 'validation'; it is not in row 0 with ['test'].",
        "is_query must be empty in train rows; it is not in row 1 with ['True'].",
        "is_query must be true or false in validation rows; it is not in row 10 with ['yes']. Beside such cells",
        "a validation row must be a query or a gallery or both; it is neither in rows 12, 15.",
        "every query needs a gallery item of its label in another row than its own; there is none for row 14",
        "label must be a column of whole numbers (int64); it is not whole in row 2 with [1.5].",
        "category must be given in every row, or the column left out; it is empty in row 3.",
        "a box needs four whole numbers, or four empty cells for the whole image; not so in row 7 with [[0.0, 8.0,",
        "x_1 must be below x_2; it is not in row 5 with [[9.0, 8.0]].",
        "boxes must not be negative; they are in row 6 with [[0.0, 8.0, -1.0, 6.0]].",
        "path must be a file below the data set root, '.'; there is none for row 4 with ['none.png'].",
    )
    remarks = (
        "1 labels occur in train and in validation, such as [3.0]: ",
        "3 labels have a single row in train, such as [0.0, 1.0, 1.5]: ",
        "1 labels occur in several categories, such as [3.0].",
        "the image '9.png' cannot be read: ",
        "1 boxes leave their image: row 8 with ['8.png']; their x_2 and y_2 are [[99, 6]], width and height",
        "1 image files are copies of others: 1 contents go by several paths, such as ['18.png', '19.png'].",
    )
    for text in (*violations, *remarks):
        assert [line for line in lines if line[6:].startswith(text)], (text, done.stdout)
    assert f"{len(violations)} violations of the format:" in lines


def test_remarks_alone_are_no_failure(root: Path, table: DataFrame, oml: Oml) -> None:
    table.iloc[1:].to_parquet(root / "df.parquet")
    (root / "9.png").write_text("no image")
    code, out, _ = oml("check", root / "df.parquet", "--images", "--workers", "1")
    assert code == 0
    assert "2 remarks on what is legal but trains badly:" in out
    assert "Images were not read" in oml("check", root / "df.parquet")[1]


def test_root_and_separator(root: Path, table: DataFrame, oml: Oml) -> None:
    (root / "tables").mkdir()
    table.to_csv(root / "tables" / "df.csv", index=False, sep=";")
    assert oml("check", root / "tables" / "df.csv", "--root", root, "--sep", ";")[0] == 0
    code, out, _ = oml("check", root / "tables" / "df.csv", "--sep", ";")
    assert code == 1
    assert f"there is a file below '{root}': is that the root?" in out


def test_a_table_of_one_column(tmp_path: Path, oml: Oml) -> None:
    (tmp_path / "df.csv").write_text("name\n[red]bold[/red] :smile:\n")
    code, out, _ = oml("check", tmp_path / "df.csv", "--images")
    assert code == 1
    assert "the table has ['name']" in out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["none.csv"], "not found at 'none.csv': there is no such file"),
        (["photo.jpg"], "a file of .csv, .tsv or .parquet, got 'photo.jpg'"),
        (["empty.csv"], "'empty.csv' cannot be read: No columns to parse from file"),
        (["empty.parquet"], "'empty.parquet' cannot be read: "),
        (["empty.csv", "--root", "none"], "there is no folder 'none'"),
        (["."], "it is a folder"),
        ([], "Missing argument"),
    ],
)
def test_what_is_not_understood_or_read(
    arguments: list[str],
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    oml: Oml,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("photo.jpg", "empty.csv", "empty.parquet"):
        Path(name).touch()
    code, out, err = oml("check", *arguments)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert text in err
