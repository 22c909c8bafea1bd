import shutil
from pathlib import Path

import numpy as np
import pytest
from pandas import DataFrame
from PIL import Image

from oml.datasets import image_check
from oml.datasets.image_check import image_remarks, read_images


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """0.png to 5.png, 8 x 6 pixels and different."""
    for i in range(6):
        Image.fromarray(np.full((6, 8, 3), 40 * i, dtype=np.uint8)).save(tmp_path / f"{i}.png")
    return tmp_path


@pytest.fixture
def table() -> DataFrame:
    return DataFrame(
        {
            "path": ["0.png", "0.png", "1.png", "2.png", "3.png", "4.png", "5.png"],
            "split": ["train"] * 4 + ["validation"] * 3,
            "x_1": [0, 4, np.nan, 0, 0, 0, 0],
            "x_2": [4, 8, np.nan, 8, 8, 8, 8],
            "y_1": [0, 0, np.nan, 0, 0, 0, 0],
            "y_2": [6, 6, np.nan, 6, 6, 6, 6],
        }
    )


def test_good_images_are_left_in_peace_and_read_once(
    table: DataFrame, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_check, "_AT_ONCE", 4)
    read = []
    real = image_check.imread_pillow
    monkeypatch.setattr(image_check, "imread_pillow", lambda content: read.append(content) or real(content))
    steps: list[tuple[int, int]] = []
    assert image_remarks(table, root, lambda done, total: steps.append((done, total)), workers=3) == []
    assert steps == [(4, 6), (6, 6)]
    assert sorted(read) == sorted((root / f"{i}.png").read_bytes() for i in range(6))


def test_unreadable_images(table: DataFrame, root: Path) -> None:
    (root / "0.png").write_bytes((root / "0.png").read_bytes()[:40])
    (root / "3.png").write_text("no image")
    first, second = image_remarks(table, root)
    assert first.startswith("the image '0.png' cannot be read: ")
    assert first.endswith("It is in rows 0, 1.")
    assert second.startswith("the image '3.png' cannot be read: ")
    assert second.endswith("It is in row 4.")


def test_only_so_many_unreadable_images_are_named(
    table: DataFrame, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_check, "_MOST_NAMED", 2)
    for i in range(6):
        (root / f"{i}.png").write_text("no image")
    remarks = image_remarks(table, root)
    assert len(remarks) == 3
    assert remarks[2] == "4 more images cannot be read."


def test_boxes_that_leave_their_image(table: DataFrame, root: Path) -> None:
    table.loc[[1, 5], "x_2"] = 9
    table.loc[6, "y_2"] = 7
    assert image_remarks(table, root) == [
        "3 boxes leave their image: rows 1, 5, 6 with ['0.png', '4.png', '5.png']; their x_2 and y_2 are "
        "[[9, 6], [9, 6], [8, 7]], width and height of the images [[8, 6], [8, 6], [8, 6]]. Data sets cut them off "
        "where the image ends."
    ]
    table.loc[5, "y_2"] = np.nan
    assert "[[9, 6], [9, nan], [8, 7]]" in image_remarks(table, root)[0]
    (root / "4.png").write_text("no image")
    assert "2 boxes leave their image: rows 1, 6 " in image_remarks(table, root)[1]


def test_boxes_are_in_the_image_as_data_sets_see_it(root: Path) -> None:
    """A camera held upright: 8 x 6 in the file, 6 x 8 to be shown."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 6)).save(root / "turned.jpg", exif=exif)
    size = image_check.imread_pillow((root / "turned.jpg").read_bytes()).size
    box = {"x_1": [0, 0], "x_2": [size[0], size[0] + 1], "y_1": [0, 0], "y_2": [size[1], size[1]]}
    [remark] = image_remarks(DataFrame({"path": "turned.jpg", **box}), root)
    assert remark.startswith("1 boxes leave their image: row 1")


def test_copies(table: DataFrame, root: Path) -> None:
    shutil.copy(root / "1.png", root / "2.png")  # both in train
    [remark] = image_remarks(table, root)
    assert remark == "1 image files are copies of others: 1 contents go by several paths, such as ['1.png', '2.png']."
    shutil.copy(root / "1.png", root / "5.png")  # in validation
    shutil.copy(root / "3.png", root / "4.png")  # both in validation
    both, across = image_remarks(table, root)
    assert both == (
        "3 image files are copies of others: 2 contents go by several paths, such as "
        "['1.png', '2.png', '5.png'], ['3.png', '4.png']."
    )
    assert across.startswith("1 contents occur in train and in validation, such as ['1.png', '2.png', '5.png']: ")
    assert len(image_remarks(table.drop(columns="split"), root)) == 1


def test_only_files_of_equal_length_are_hashed(root: Path) -> None:
    Image.new("RGB", (8, 6)).save(root / "short.png")
    Image.fromarray(np.random.default_rng(0).integers(255, size=(6, 8, 3), dtype=np.uint8)).save(root / "long.png")
    shutil.copy(root / "short.png", root / "same.png")
    files = read_images([root / name for name in ("short.png", "long.png", "same.png", "none.png")])
    assert files[0].digest == files[2].digest != b""
    assert files[1].digest == b""
    assert [file.size for file in files] == [(8, 6), (8, 6), (8, 6), None]
    assert "none.png" in files[3].error


def test_broken_tables(table: DataFrame, root: Path) -> None:
    """What other rules tell of is passed over, and hides nothing."""
    assert image_remarks(table.drop(columns="path"), root) == []
    broken = table.assign(path=[None, "none.png", 3, "1.png", "1.png", "2.png", "2.png"], x_2=["a", *[9] * 6])
    [remark] = image_remarks(broken.drop(columns="split"), root)
    assert remark.startswith("4 boxes leave their image: rows 3, 4, 5 (and 1 more)")
    assert image_remarks(table.assign(path=None), root) == []


@pytest.mark.parametrize("at_once", [1, 2, 1000])
def test_copies_are_those_of_the_right_rows_however_many_are_read_at_once(
    table: DataFrame, root: Path, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop over parts is not to be told from one over everything."""
    (root / "5.png").write_bytes((root / "3.png").read_bytes())
    monkeypatch.setattr(image_check, "_AT_ONCE", at_once)
    remarks = image_remarks(table, root)
    assert "1 image files are copies of others: 1 contents go by several paths, such as ['3.png', '5.png']." in remarks
