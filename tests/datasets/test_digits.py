import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from oml.const import OBLIGATORY_COLUMNS
from oml.datasets import digits as module
from oml.datasets.base import DatasetWithLabels
from oml.datasets.digits import Digits, load_digits_dataset
from oml.datasets.table import check_retrieval_dataframe_format


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    """Of 8 pixels, as they are: do not change the files."""
    return load_digits_dataset(tmp_path_factory.mktemp("digits") / "made", image_size=8)


@pytest.fixture
def root(digits: Digits, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(digits.root, tmp_path / "copy"))


def test_tables(digits: Digits) -> None:
    check_retrieval_dataframe_format(digits.root / "df.csv", dataset_root=digits.root)  # and nothing to remark
    for df, labels, split in ((digits.df_train, range(5), "train"), (digits.df_val, range(5, 10), "validation")):
        assert df.columns.tolist() == OBLIGATORY_COLUMNS
        assert df["label"].unique().tolist() == list(labels)
        assert df["label"].is_monotonic_increasing
        assert (df["split"] == split).all()
        assert df.index.tolist() == list(range(len(df)))
    assert len(digits.df_train) + len(digits.df_val) == 1797
    assert digits.df_train[["is_query", "is_gallery"]].isna().all(axis=None)
    assert digits.df_val[["is_query", "is_gallery"]].all(axis=None)
    assert digits.df_val["is_query"].dtype == bool


def test_images_are_the_digits(digits: Digits) -> None:
    pixels, labels = map(np.asarray, load_digits(return_X_y=True))
    found = []
    for df in (digits.df_train, digits.df_val):
        for label, path in zip(df["label"], df["path"], strict=True):
            with Image.open(digits.root / path) as image:
                assert (image.format, image.mode, image.size) == ("PNG", "L", (8, 8))
                found.append((label, *np.rint(np.asarray(image).ravel() * (16 / 255)).astype(int)))
    expected = [(label, *row) for label, row in zip(labels, pixels.astype(int), strict=True)]
    assert sorted(found) == sorted(expected)


def test_other_sizes_and_labels(digits: Digits, tmp_path: Path) -> None:
    made = load_digits_dataset(str(tmp_path / "new"), image_size=20, train_labels=[9, 0, 9])
    assert made.df_train["label"].unique().tolist() == [0, 9]
    assert made.df_val["label"].unique().tolist() == list(range(1, 9))
    item = DatasetWithLabels(made.df_train, dataset_root=made.root)[0]
    assert item["labels"] == 0
    path = made.df_train["path"][0]
    with Image.open(made.root / path) as large, Image.open(digits.root / path) as small:
        assert large.size == (20, 20)
        shrunk = np.asarray(large.resize((8, 8), Image.Resampling.BOX))
        assert np.corrcoef(shrunk.ravel(), np.asarray(small).ravel())[0, 1] > 0.95  # the same digit


def test_what_was_made_is_reused(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: object) -> None:
        raise AssertionError("made anew")

    monkeypatch.setattr(module, "write_folder", forbidden)
    again = load_digits_dataset(digits.root, image_size=8, train_labels=range(5))
    assert again.df_train.equals(digits.df_train)
    assert again.df_val.equals(digits.df_val)


def test_the_cache_has_a_folder_for_each_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some = tuple(part[:50] for part in module.read_digits())
    monkeypatch.setattr(module, "read_digits", lambda: some)
    monkeypatch.setattr(module, "CACHE_PATH", tmp_path)
    roots = [load_digits_dataset(image_size=size, train_labels=t).root for size, t in ((8, [0]), (9, [0]), (8, [1]))]
    assert len(set(roots)) == 3
    assert {root.parent for root in roots} == {tmp_path / "digits"}
    assert load_digits_dataset(image_size=8, train_labels=[0]).root == roots[0]


def test_damage_and_other_arguments_are_told(root: Path) -> None:
    with pytest.raises(ValueError, match=rf"{root} were made with image_size=8 instead of 16"):
        load_digits_dataset(root, image_size=16)
    (root / "images" / "3" / "0003.png").write_bytes(b"")
    before = content(root)
    with pytest.raises(ValueError, match=r"damaged: 1 of 1798 files are .*, such as images/3/0003\.png"):
        load_digits_dataset(root, image_size=8)
    assert content(root) == before


def test_a_foreign_folder_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="is not a folder of the digits data set"):
        load_digits_dataset(tmp_path)
    assert content(tmp_path) == {"thesis.txt": b"years of work"}


def test_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (7, 1025):
        with pytest.raises(ValueError, match=f"image_size of 8 to 1024 pixels, got {size}"):
            load_digits_dataset(tmp_path, image_size=size)
    for labels in ([], range(10), [1, 10], [-1]):
        with pytest.raises(ValueError, match="train_labels of 0 to 9, one or more and not all, got"):
            load_digits_dataset(tmp_path, train_labels=labels)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs scikit-learn: pip install 'open-metric-learning\[demo\]'"):
        load_digits_dataset(tmp_path)
    assert list(tmp_path.iterdir()) == []
