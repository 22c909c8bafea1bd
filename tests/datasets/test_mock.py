import io
import json
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from oml.const import BBOXES_COLUMNS, OBLIGATORY_COLUMNS
from oml.datasets._cached import MANIFEST
from oml.datasets.mock import download_mock_dataset, mock_files
from oml.utils import download_mock_dataset as old_path
from oml.utils.dataframe_format import check_retrieval_dataframe_format

TABLES = ["df.csv", "df_with_bboxes.csv", "df_with_category.csv"]


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_the_old_path_leads_here() -> None:
    assert old_path.download_mock_dataset is download_mock_dataset


@pytest.mark.parametrize("df_name", TABLES)
def test_tables_pass_the_check(mock_root: Path, df_name: str) -> None:
    check_retrieval_dataframe_format(mock_root / df_name, dataset_root=mock_root)


@pytest.mark.parametrize("df_name", TABLES)
def test_rows_of_the_splits(mock_root: Path, df_name: str) -> None:
    df_train, df_val = download_mock_dataset(mock_root, df_name=df_name)
    assert (df_train["split"] == "train").all()
    assert (df_val["split"] == "validation").all()
    assert df_train["label"].value_counts().to_dict() == dict.fromkeys(range(4), 6)
    assert df_val["label"].value_counts().to_dict() == dict.fromkeys(range(4, 8), 3)
    for df in (df_train, df_val):
        assert df.index.tolist() == list(range(len(df)))
        assert df.columns[:5].tolist() == OBLIGATORY_COLUMNS
        assert df["label"].dtype == np.int64
        assert df["path"].is_unique
    assert df_train[["is_query", "is_gallery"]].isna().all(axis=None)
    assert df_val["is_query"].dtype == df_val["is_gallery"].dtype == bool
    assert (df_val["is_query"] != df_val["is_gallery"]).all()
    assert df_val.groupby("label")["is_query"].sum().tolist() == [1, 1, 1, 1]


def test_figures_of_the_splits(mock_root: Path) -> None:
    figures = [
        {path[len("images/") : -len("_1.jpg")] for path in df["path"]} for df in download_mock_dataset(mock_root)
    ]
    assert figures == [{"circle", "rhombus", "cross", "arrow"}, {"hash_sign", "rectangle", "triangle", "star"}]
    assert (mock_root / "images" / "circle_1.jpg").is_file()


def test_categories_hold_two_labels(mock_root: Path) -> None:
    for df in download_mock_dataset(mock_root, df_name="df_with_category.csv"):
        assert (df.groupby("label")["category"].nunique() == 1).all()
        assert (df.groupby("category")["label"].nunique() == 2).all()
        assert df["category"].nunique() == 2


def test_boxes_are_squares_around_the_ink(mock_root: Path) -> None:
    df = pd.concat(download_mock_dataset(mock_root, df_name="df_with_bboxes.csv"))
    for path, x1, x2, y1, y2 in df[["path", *BBOXES_COLUMNS]].itertuples(index=False):
        assert 0 <= x1 < x2 <= 64
        assert 0 <= y1 < y2 <= 64
        assert x2 - x1 == y2 - y1
        ink = np.asarray(read((mock_root / path).read_bytes()).convert("L")) < 200  # JPEG leaves a little grey around
        inside = ink[y1:y2, x1:x2].sum()
        assert inside == ink.sum() > 50


def test_images_are_small_jpegs_and_all_differ(mock_root: Path) -> None:
    files = [path.read_bytes() for path in (mock_root / "images").iterdir()]
    assert len(files) == len(set(files)) == 36
    assert {(image.format, image.mode, image.size) for image in map(read, files)} == {("JPEG", "RGB", (64, 64))}


def test_making_it_twice_gives_the_same_bytes(mock_root: Path, tmp_path: Path) -> None:
    download_mock_dataset(tmp_path)  # exists and is empty: that is fine
    assert content(tmp_path) == content(mock_root)
    assert list(tmp_path.parent.glob(f".{tmp_path.name}*")) == []


def test_an_intact_folder_is_reused(mock_root: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = times(mock_root)
    with caplog.at_level(logging.INFO):
        download_mock_dataset(str(mock_root))
    assert times(mock_root) == before
    assert caplog.records == []


def test_damage_is_mended_and_reported(mock_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "mock"
    download_mock_dataset(root)
    (root / "images" / "star_1.jpg").unlink()
    (root / "df.csv").write_text("label,path")
    (root / "notes.txt").write_text("of the user")
    before = times(root)
    with caplog.at_level(logging.INFO):
        df_train, df_val = download_mock_dataset(root)
    assert (len(df_train), len(df_val)) == (24, 12)
    assert content(root) == content(mock_root) | {"notes.txt": b"of the user"}
    after = times(root)
    changed = {str(path.relative_to(root)) for path in after if path.is_file() and before.get(path) != after[path]}
    assert changed == {"images/star_1.jpg", "df.csv", MANIFEST}
    (record,) = caplog.records
    assert str(root) in record.getMessage()
    assert "2 of 39 files" in record.getMessage()
    assert "images/star_1.jpg" in record.getMessage()

    caplog.clear()
    download_mock_dataset(root)
    assert caplog.records == []


def test_another_version_is_replaced(mock_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "mock"
    download_mock_dataset(root)
    manifest = json.loads((root / MANIFEST).read_text())
    manifest["recipe"]["pillow"] = "0.1"
    (root / MANIFEST).write_text(json.dumps(manifest))
    download_mock_dataset(root)
    assert "of another version" in caplog.text
    assert content(root) == content(mock_root)


def test_check_md5_false_takes_the_folder_as_it_is(mock_root: Path, tmp_path: Path) -> None:
    df = pd.concat(download_mock_dataset(mock_root))
    df.iloc[[0, -1]].to_csv(tmp_path / "df.csv", index=False)  # no manifest: for instance of the original project
    before = content(tmp_path)
    df_train, df_val = download_mock_dataset(tmp_path, check_md5=False)
    assert (len(df_train), len(df_val)) == (1, 1)
    assert df_val["is_query"].dtype == bool
    assert content(tmp_path) == before

    download_mock_dataset(tmp_path / "absent", check_md5=False)
    assert content(tmp_path / "absent") == content(mock_root)


@pytest.mark.parametrize("check_md5", [True, False])
def test_a_foreign_folder_is_not_touched(tmp_path: Path, check_md5: bool) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match=str(tmp_path)):
        download_mock_dataset(tmp_path, check_md5=check_md5)
    assert content(tmp_path) == {"thesis.txt": b"years of work"}


def test_an_unknown_table_is_named(mock_root: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no table df_with_boxes\.csv; it has df\.csv, df_with_bboxes\.csv"):
        download_mock_dataset(mock_root, df_name="df_with_boxes.csv")


def test_every_figure_varies() -> None:
    files = mock_files()
    for name in ("circle", "star"):
        pixels = [np.asarray(read(files[f"images/{name}_{i}.jpg"]), dtype=float) for i in (1, 2, 3)]
        assert all(np.abs(a - b).mean() > 1 for a, b in [(pixels[0], pixels[1]), (pixels[1], pixels[2])])
