from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from oml.datasets.base import get_retrieval_datasets
from oml.datasets.table import read_table

Oml = Callable[..., tuple[int, str, str]]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six labels of three images each, in two categories."""
    for i, category in enumerate(["cat", "dog"]):
        for label in range(3):
            folder = tmp_path / "photos" / category / f"{category} {label}"
            folder.mkdir(parents=True)
            for k in range(3):
                image = np.full((6, 8, 3), 100 * i + 30 * label + 10 * k, dtype=np.uint8)
                Image.fromarray(image).save(folder / f"{k}.PNG")
    return tmp_path / "photos"


def test_from_a_folder_to_data_sets(photos: Path, oml: Oml) -> None:
    (photos / "cat" / "notes.txt").touch()
    code, out, _ = oml("split", photos, "--seed", "1")
    assert code == 0
    assert "18 items of 6 labels, seed 1." in out
    assert "- 1 files are no images by their names; they were left out." in out
    assert "- validation has 3 of 6 labels, 50.0% of them." in out
    assert f"Try next: oml check {photos / 'df.csv'} --images" in out
    code, out, _ = oml("check", photos / "df.csv", "--images")
    assert code == 0
    assert "0 remarks" in out
    train, validation = get_retrieval_datasets(photos, None, None)
    assert len(train) == len(validation) == 9
    assert set(train.df.label_name) | set(validation.df.label_name) == {
        f"{c} {i}" for c in ("cat", "dog") for i in range(3)
    }


def test_files_are_kept_unless_asked(photos: Path, oml: Oml) -> None:
    assert oml("split", photos)[0] == 0
    before = (photos / "df.csv").read_bytes()
    code, _, err = oml("split", photos, "--seed", "7")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "there is a file" in err
    assert (photos / "df.csv").read_bytes() == before
    for flag in ("--force", "--overwrite"):
        assert oml("split", photos, flag)[0] == 0
        assert (photos / "df.csv").read_bytes() == before  # the same seed
    assert oml("split", photos, "--seed", "7", "--force")[0] == 0
    assert (photos / "df.csv").read_bytes() != before


@pytest.mark.parametrize("where", ["photos/tables/df.csv", "df.csv", "photos/df.csv", "elsewhere/a b.csv"])
def test_from_a_table(where: str, photos: Path, oml: Oml, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the output's folder, the table can be checked right away."""
    monkeypatch.chdir(photos.parent)
    paths = sorted(path.relative_to(photos) for path in photos.rglob("*.PNG"))
    table = pd.DataFrame({"path": map(str, paths), "label": [path.parent.name for path in paths]})
    table["category"] = [path.parts[0] for path in paths]
    table["sequence"] = [path.name for path in paths]
    table.to_csv("labels.csv", index=False, sep=";")
    options = ["--validation-share", "0.3", "--protocol", "query-gallery", "--queries", "2", "--keep-categories"]
    arguments = ["split", "labels.csv", "--root", "photos", "--sep", ";", "-o", where, *options]
    code, out, err = oml(*arguments)
    assert (code, err) == (0, "")
    assert "validation has 3 of 6 labels" in out
    assert oml("check", where, "--images")[0] == 0
    made = pd.read_csv(where)
    assert made.groupby("category").split.nunique().tolist() == [1, 1]
    assert made[made.split == "validation"].is_query.sum() == 6
    assert made.sequence.tolist() == table.sequence.tolist()
    assert made.label_name.tolist() == table.label.tolist()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["none"], "there is no such file"),
        (["photos", "--root", "photos"], "--root is for the paths of a TABLE"),
        (["photos", "-o", "df.parquet"], "a CSV file, call it so instead of 'df.parquet'"),
        (["photos/cat/cat 0"], "as LABEL/image"),
        (["photos", "--validation-share", "1.5"], "--validation-share"),
        (["photos", "--protocol", "all"], "--protocol"),
        (["names.csv"], "needs the columns ['path']"),
        (["photos", "-o", "names.csv/df.csv"], "cannot write to 'names.csv/df.csv': file exists. Name another file"),
    ],
)
def test_what_is_not_understood(
    arguments: list[str],
    text: str,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    oml: Oml,
) -> None:
    monkeypatch.chdir(photos.parent)
    Path("names.csv").write_text("label\n1\n")
    code, out, err = oml("split", *arguments)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert text in err
    assert len(list(Path().rglob("*.csv"))) == 1


def test_what_would_not_pass_the_check_is_not_written(photos: Path, oml: Oml) -> None:
    (photos / "labels.csv").write_text("path,label\ncat/cat 0/0.PNG,a\ncat/none.PNG,a\n")
    code, _, err = oml("split", photos / "labels.csv")
    assert code == 1
    assert "there is none for row 1 with ['cat/none.PNG']" in err
    assert not (photos / "df.csv").exists()


def test_names_that_look_like_empty_cells_or_numbers_stay_names(photos: Path, oml: Oml) -> None:
    (photos / "cat").rename(photos / "NA")
    assert oml("split", photos)[0] == 0
    assert "NA" in set(read_table(photos / "df.csv")["category"])
    (photos / "codes.csv").write_text(
        "path,label\n" + "".join(f"{i}.png,{'007' if i < 2 else '7'}\n" for i in range(4))
    )
    for i in range(4):
        Image.new("RGB", (4, 4)).save(photos / f"{i}.png")
    assert oml("split", photos / "codes.csv", "-o", photos / "codes_split.csv")[0] == 0
    assert read_table(photos / "codes_split.csv")["label"].tolist() == [0, 0, 1, 1]


def test_an_empty_path_is_named(photos: Path, oml: Oml) -> None:
    (photos / "holes.csv").write_text("path,label\na.png,x\n,x\nb.png,y\n")
    code, _, err = oml("split", photos / "holes.csv")
    assert code == 2
    assert "Every row needs a path; it is missing in row 1." in err
