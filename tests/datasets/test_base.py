import inspect
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from pandas import DataFrame
from PIL import Image
from torch.utils.data import DataLoader

from oml.const import MEAN, STD
from oml.datasets.base import DatasetQueryGallery, DatasetWithLabels, get_retrieval_datasets
from oml.datasets.table import TableError
from oml.utils.images.images import ShrinkingReader, imread_pillow


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of 8 x 6 pixels whose red channel tells the column and whose green channel tells the row."""
    root = tmp_path_factory.mktemp("images")
    rows, columns = np.mgrid[:6, :8]
    for blue in range(3):
        pixels = np.stack([columns * 10, rows * 10, np.full_like(rows, blue)], axis=2).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"{blue}.png")
    content = (root / "0.png").read_bytes()
    (root / "broken.png").write_bytes(content[: len(content) // 2])
    (root / "text.png").write_text("no image")
    return root


@pytest.fixture
def df() -> DataFrame:
    return DataFrame(
        {
            "label": [5, 5, 7],
            "path": ["0.png", "1.png", "2.png"],
            "is_query": [True, 0, 1],
            "is_gallery": [False, 1.0, True],
            "category": ["a", "a", "b"],
            "x_1": [2, np.nan, 0],
            "x_2": [5, np.nan, 8],
            "y_1": [1, np.nan, 0],
            "y_2": [3, np.nan, 6],
        }
    )


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


def test_items_hold_the_columns(df: DataFrame, root: Path) -> None:
    ds = DatasetWithLabels(df, dataset_root=root, transform=pixels, extra_data={"weight": [1.0, 2.0, 3.0]})
    item = ds[2]
    assert item.pop("input_tensors").shape == (6, 8, 3)
    assert item == {
        "labels": 7, "paths": str(root / "2.png"), "categories": "b", "x1": 0, "y1": 0, "x2": 8, "y2": 6,
        "weight": 3.0, "idx": 2,
    }  # fmt: skip
    assert len(ds) == 3
    assert repr(ds) == "DatasetWithLabels(3 items of 2 labels)"


def test_boxes_are_cut_out(df: DataFrame, root: Path) -> None:
    ds = DatasetWithLabels(df, dataset_root=root, transform=pixels)
    cut, whole = ds[0], ds[1]
    assert cut["input_tensors"][..., 0].tolist() == [[20, 30, 40]] * 2  # columns 2, 3, 4
    assert cut["input_tensors"][:, 0, 1].tolist() == [10, 20]  # rows 1, 2
    assert (cut["x1"], cut["y1"], cut["x2"], cut["y2"]) == (2, 1, 5, 3)
    assert whole["input_tensors"].shape == (6, 8, 3)
    assert (whole["x1"], whole["y1"], whole["x2"], whole["y2"]) == (0, 0, 8, 6)


def test_default_transform_normalises(df: DataFrame, root: Path) -> None:
    item = DatasetWithLabels(df.drop(columns=["x_1", "x_2", "y_1", "y_2", "category"]), dataset_root=root)[1]
    assert set(item) == {"input_tensors", "labels", "paths", "idx"}
    expected = (torch.from_numpy(pixels(Image.open(root / "1.png")).copy()).permute(2, 0, 1) / 255).float()
    for channel in range(3):
        expected[channel] = (expected[channel] - MEAN[channel]) / STD[channel]
    torch.testing.assert_close(item["input_tensors"], expected)


def test_keys_can_be_renamed(df: DataFrame, root: Path) -> None:
    names = {f"{name}_key": f"my_{name}" for name in ("input_tensors", "labels", "paths", "categories", "x1", "y2")}
    item = DatasetWithLabels(df, dataset_root=root, index_key="i", **names)[0]
    assert set(item) == {*names.values(), "y1", "x2", "i"}


def test_roles_are_bools(df: DataFrame, root: Path) -> None:
    ds = DatasetQueryGallery(df, dataset_root=root)
    assert [(ds[i]["is_query"], ds[i]["is_gallery"]) for i in range(3)] == [(True, False), (False, True), (True, True)]
    batch = next(
        iter(
            DataLoader(
                DatasetQueryGallery(df.iloc[:2].drop(columns=["x_1", "x_2", "y_1", "y_2"]), dataset_root=root),
                batch_size=2,
            )
        )
    )
    assert batch["is_query"].dtype == torch.bool
    assert batch["labels"].tolist() == [5, 5]
    assert batch["categories"] == ["a", "a"]
    assert batch["input_tensors"].shape == (2, 3, 6, 8)


@pytest.mark.parametrize("role", ["yes", None, float("nan"), 2])
def test_roles_must_be_true_or_false(df: DataFrame, root: Path, role: object) -> None:
    df["is_query"] = [True, role, False]
    with pytest.raises(TableError, match="true or false in the column is_query, not so in row 1"):
        DatasetQueryGallery(df, dataset_root=root)


def test_labels_and_categories(df: DataFrame, root: Path) -> None:
    ds = DatasetWithLabels(df, dataset_root=root)
    assert ds.get_labels().tolist() == [5, 5, 7]
    assert ds.get_label2category() == {5: "a", 7: "b"}
    assert DatasetWithLabels(df.drop(columns="category"), dataset_root=root).get_label2category() is None


def test_the_caller_keeps_the_table(df: DataFrame, root: Path) -> None:
    before = df.copy()
    DatasetWithLabels(df, dataset_root=str(root))
    assert df.equals(before)


@pytest.mark.parametrize("name", ["broken.png", "text.png"])
def test_an_unreadable_image_is_named(df: DataFrame, root: Path, name: str) -> None:
    df.loc[1, "path"] = name
    with pytest.raises(OSError, match=rf"cannot read the image of row 1, .*{name}: .*Replace the file") as error:
        DatasetWithLabels(df, dataset_root=root)[1]
    assert "\n" not in str(error.value)


def test_unreadable_images_can_be_skipped(df: DataFrame, root: Path) -> None:
    df = df.drop(columns=["x_1", "x_2", "y_1", "y_2"]).assign(path=["0.png", "broken.png", "2.png"])
    ds = DatasetQueryGallery(df, dataset_root=root, on_unreadable="skip")
    with pytest.warns(UserWarning, match=r"row 1, .*broken.png: .* It is skipped\.") as caught:
        batch = next(iter(DataLoader(ds, batch_size=3)))
    assert len(caught) == 1
    assert batch["idx"].tolist() == [0, 2]
    assert batch["input_tensors"].shape[0] == len(batch["labels"]) == 2
    with pytest.raises(OSError, match="row 1"):  # there is nothing left to make a batch of
        next(iter(DataLoader(ds, batch_size=1, sampler=[1])))
    with pytest.raises(OSError, match="row 1"):
        ds[1]
    with pytest.raises(OSError, match="row 1"):
        next(iter(DataLoader(DatasetQueryGallery(df, dataset_root=root), batch_size=3)))
    unchecked = inspect.unwrap(DatasetWithLabels.__init__)  # the tests' own checks of annotations would come first
    with pytest.raises(ValueError, match="DatasetWithLabels knows on_unreadable 'raise' and 'skip', got 'ignore'"):
        unchecked(object.__new__(DatasetWithLabels), df, dataset_root=root, on_unreadable="ignore")


def test_a_reader_of_ones_own(df: DataFrame, root: Path) -> None:
    """It gets bytes; whatever it raises names the row."""

    def read(content: bytes) -> np.ndarray:
        assert content == (root / "1.png").read_bytes()
        return np.full((7, 9, 1), 5.0)

    ds = DatasetWithLabels(df.drop(columns="category"), dataset_root=root, f_imread=read, transform=torch.from_numpy)
    assert torch.equal(ds[1]["input_tensors"], torch.full((7, 9, 1), 5.0, dtype=torch.float64))
    with pytest.raises(OSError, match=r"cannot read the image of row 2, .*2\.png"):
        ds[2]


def test_sequences_are_numbered(df: DataFrame, root: Path) -> None:
    ds = DatasetQueryGallery(df.assign(sequence=["cam 3", None, "cam 1"]), dataset_root=root)
    assert [ds[i]["sequence"] for i in range(3)] == [0, -1, 1]
    assert ds.sequence_key == "sequence"
    numbers = DatasetWithLabels(df.assign(sequence=[12.0, np.nan, 12.0]), dataset_root=root, sequence_key="s")
    assert [numbers[i]["s"] for i in range(3)] == [0, -1, 0]
    assert DatasetWithLabels(df, dataset_root=root).sequence_key is None


def test_an_albumentations_transform(df: DataFrame, root: Path) -> None:
    from oml.transforms.images.albumentations import get_normalisation_albu

    torch_items, albu_items = (
        DatasetWithLabels(df, dataset_root=root, transform=transform) for transform in (None, get_normalisation_albu())
    )
    for albu_item, torch_item in zip(albu_items, torch_items, strict=True):
        torch.testing.assert_close(albu_item.pop("input_tensors"), torch_item.pop("input_tensors"), atol=1e-5, rtol=0)
        assert albu_item == torch_item


def test_what_is_wrong_with_the_items_is_said_when_the_data_set_is_made(df: DataFrame, root: Path) -> None:
    for changed, text in (
        (df.assign(path=["0.png", "none.png", "2.png"]), r"below the data set root, .*row 1 with \['none.png'\]"),
        (df.assign(path=["0.png", 3, "2.png"]), "path must be text; it is not in row 1"),
        (df.assign(label=[1.5, 2, 3]), "label must be .* whole numbers"),
        (df.assign(x_1=[5, np.nan, 0]), "x_1 must be below x_2; it is not in row 0"),
        (df.assign(x_1=[np.nan, np.nan, 0]), "four whole numbers.* row 0"),
    ):
        for make in (DatasetWithLabels, DatasetQueryGallery):
            with pytest.raises(TableError, match=text):
                make(changed, dataset_root=root)


@pytest.mark.parametrize("reader", [None, imread_pillow, ShrinkingReader(min_side=2)])
def test_a_box_is_cut_off_where_its_image_ends(df: DataFrame, root: Path, reader: object) -> None:
    df = df.assign(x_2=[9, 12, 8], x_1=[2, 4, 0], y_1=[1, 0, 0], y_2=[3, 7, 6])
    ds = DatasetWithLabels(df, dataset_root=root, f_imread=reader, cache_size=10_000)
    with pytest.warns(UserWarning, match=r"row 0, .*0.png: the box ends at \(9, 3\), .* 8 x 6") as caught:
        items = [ds[0], ds[1], ds[0]]
    assert len(caught) == 1
    assert [item["input_tensors"].shape[1:] for item in items] == [(2, 6), (6, 4), (2, 6)]
    assert [[item[key] for key in ("x1", "y1", "x2", "y2")] for item in items[:2]] == [[2, 1, 8, 3], [4, 0, 8, 6]]
    outside = DatasetWithLabels(df.assign(x_1=[8, 4, 0]), dataset_root=root, f_imread=reader)
    with pytest.raises(ValueError, match=r"leaves its image in row 0, .*0.png.* Nothing of it lies inside"):
        outside[0]


def test_rows_are_named_as_in_the_table(df: DataFrame, root: Path) -> None:
    ds = DatasetWithLabels(df.assign(path=["0.png", "1.png", "broken.png"])[1:], dataset_root=root)
    with pytest.raises(OSError, match="image of row 2, "):
        ds[1]


def test_extra_data_of_a_series_goes_by_position(df: DataFrame, root: Path) -> None:
    df = df.assign(weight=[1.0, 2.0, 3.0])[::-1]
    ds = DatasetWithLabels(df, dataset_root=root, extra_data={"w": df["weight"]})
    assert [(item["labels"], item["w"]) for item in ds] == [(7, 3.0), (5, 2.0), (5, 1.0)]


def test_what_is_no_transform(df: DataFrame, root: Path) -> None:
    unchecked = inspect.unwrap(DatasetWithLabels.__init__)
    for transform in ("norm_torch", str):
        with pytest.raises(TypeError, match="needs a transform .*get_transforms makes one of a name"):
            unchecked(object.__new__(DatasetWithLabels), df, dataset_root=root, transform=transform)


def test_tables_that_do_not_do(df: DataFrame, root: Path) -> None:
    with pytest.raises(TableError, match=r"needs the columns \['label'\]"):
        DatasetWithLabels(df.drop(columns="label"))
    with pytest.raises(TableError, match=r"columns of different names; \['label'\] occur more than once"):
        DatasetWithLabels(df[[*df.columns, "label"]], dataset_root=root)
    with pytest.raises(TableError, match=r"needs the columns \['is_gallery'\]"):
        DatasetQueryGallery(df.drop(columns="is_gallery"))
    with pytest.raises(TableError, match="at least one row"):
        DatasetWithLabels(df.iloc[:0])
    with pytest.raises(ValueError, match="'weight' has 2 for 3 rows"):
        DatasetWithLabels(df, dataset_root=root, extra_data={"weight": [1, 2]})
    with pytest.raises(ValueError, match="'is_query' of its own"):
        DatasetQueryGallery(df, dataset_root=root, extra_data={"is_query": [1, 2, 3]})


def test_data_sets_go_to_workers(df: DataFrame, root: Path) -> None:
    ds = pickle.loads(pickle.dumps(DatasetQueryGallery(df, dataset_root=root)))
    assert ds[2]["labels"] == 7


def test_train_labels_are_renumbered(df: DataFrame, root: Path, tmp_path: Path) -> None:
    for name in ("0.png", "1.png", "2.png"):
        (tmp_path / name).write_bytes((root / name).read_bytes())
    table = DataFrame(
        {
            "label": [90, 40, 40, 7, 7],
            "path": ["0.png", "1.png", "2.png", "0.png", "1.png"],
            "split": ["train"] * 3 + ["validation"] * 2,
            "is_query": [None] * 3 + [True, True],
            "is_gallery": [None] * 3 + [True, True],
        }
    )
    table.to_csv(tmp_path / "df.csv", index=False)
    train, validation = get_retrieval_datasets(tmp_path, None, None, verbose=False)
    assert train.get_labels().tolist() == [1, 0, 0]
    assert validation.get_labels().tolist() == [7, 7]
    table.assign(path="none.png").to_csv(tmp_path / "bad.csv", index=False)
    table.iloc[:3].to_csv(tmp_path / "train.csv", index=False, sep=";")
    with pytest.raises(TableError, match=r"needs train and validation rows, .*train.csv' has 3 and 0"):
        get_retrieval_datasets(tmp_path, None, None, dataframe_name="train.csv", sep=";", verbose=False)
    with pytest.raises(TableError, match="breaks 1 rules"):
        get_retrieval_datasets(tmp_path, None, None, dataframe_name="bad.csv")
