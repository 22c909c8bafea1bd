"""Converters and ``oml convert``, on tiny trees of the layouts of the archives."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.io import savemat

from oml.cli import main
from oml.const import BBOXES_COLUMNS, CATEGORIES_COLUMN, OBLIGATORY_COLUMNS
from oml.datasets.base import DatasetQueryGallery, DatasetWithLabels, get_retrieval_datasets
from oml.datasets.converters import cars, convert_cars, convert_cub, convert_inshop, convert_sop, cub, inshop, sop
from oml.datasets.table import TableError, check_retrieval_dataframe_format
from oml.transforms.images.torchvision import get_normalisation_torch

CONVERTERS = {"cub": convert_cub, "cars": convert_cars, "sop": convert_sop, "inshop": convert_inshop}
COUNTS = {  # of the tiny trees: as published, so that there is no warning
    "cub": (cub, "CUB", 6, 6, 3),
    "cars": (cars, "CARS", 5, 5, 3),
    "sop": (sop, "SOP", 4, 4, 4),
    "inshop": (inshop, "INSHOP", 5, 6, 5),
}


def write_images(root: Path, paths: list[str]) -> None:
    for i, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (20 * i, 90, 10)).save(root / path, format="JPEG")


def make_cub(root: Path) -> None:
    """Three classes of four images, two of them in train; the ids are in another order in each file."""
    names = {1: "001.Black_footed_Albatross", 2: "002.Laysan_Albatross", 3: "003.Sooty_Albatross"}
    paths = [f"{names[label]}/Albatross_{i:04}_{label}.jpg" for label in names for i in range(4)]
    labels = [label for label in names for _ in range(4)]
    ids = range(1, 13)
    write_images(root / "images", paths)
    (root / "images.txt").write_text("".join(f"{i} {path}\n" for i, path in zip(ids, paths, strict=True)))
    lines = [f"{i} {label}\n" for i, label in zip(ids, labels, strict=True)]
    (root / "image_class_labels.txt").write_text("".join(reversed(lines)))
    (root / "train_test_split.txt").write_text("".join(f"{i} {i % 2}\n" for i in ids))
    boxes = [f"{i} {i + 0.9} {i / 2} {10.2 + i} 12.5\n" for i in ids]
    (root / "bounding_boxes.txt").write_text("".join(boxes[6:] + boxes[:6]))


def mat_struct(rows: list[tuple], fields: list[str]) -> np.ndarray:
    """A struct array of one row, as MATLAB writes it: each field of each element is an array of its own."""
    struct = np.empty((1, len(rows)), dtype=[(field, object) for field in fields])
    for i, row in enumerate(rows):
        for field, value in zip(fields, row, strict=True):
            struct[field][0, i] = value if isinstance(value, str) else np.array([[value]], dtype=np.uint16)
    return struct


CAR_FIELDS = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname"]
CAR_TRAIN = [
    (1, 2, 30, 20, 3, "00001.jpg"),
    (3, 4, 31, 21, 1, "00002.jpg"),
    (5, 6, 32, 22, 2, "00003.jpg"),
    (7, 8, 33, 23, 1, "00004.jpg"),
    (7, 8, 34, 24, 3, "00005.jpg"),
]
CAR_TEST = [
    (2, 1, 39, 29, 2, "00001.jpg"),
    (2, 1, 39, 29, 2, "00002.jpg"),
    (9, 8, 20, 19, 1, "00003.jpg"),
    (9, 8, 20, 19, 1, "00004.jpg"),
    (9, 8, 20, 19, 1, "00005.jpg"),
]


def make_cars(root: Path) -> None:
    (root / "devkit").mkdir(parents=True)
    names = np.array([["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Acura TL Sedan 2012"]], dtype=object)
    savemat(root / "devkit/cars_meta.mat", {"class_names": names})
    savemat(root / "devkit/cars_train_annos.mat", {"annotations": mat_struct(CAR_TRAIN, CAR_FIELDS)})
    savemat(root / "cars_test_annos_withlabels.mat", {"annotations": mat_struct(CAR_TEST, CAR_FIELDS)})
    write_images(root, [f"cars_train/{row[-1]}" for row in CAR_TRAIN] + [f"cars_test/{row[-1]}" for row in CAR_TEST])


def make_sop(root: Path) -> None:
    root.mkdir()
    header = "image_id class_id super_class_id path\n"
    paths = [
        f"{category}_final/{number}_{i}.JPG"
        for number, category in ((111, "bicycle"), (112, "lamp"), (113, "lamp"), (114, "sofa"))
        for i in range(2)
    ]
    write_images(root, paths)
    lines = [f"{i + 1} {i // 2 + 1} {[1, 1, 2, 2, 2, 2, 3, 3][i]} {path}\n" for i, path in enumerate(paths)]
    (root / "Ebay_train.txt").write_text(header + "".join(lines[:4]))
    (root / "Ebay_test.txt").write_text(header + "".join(lines[4:]))


INSHOP_ROWS = [
    ("img/WOMEN/Dresses/id_00000002/02_1_front.jpg", "id_00000002", "train"),
    ("img/WOMEN/Dresses/id_00000002/02_2_side.jpg", "id_00000002", "train"),
    ("img/MEN/Denim/id_00000003/01_1_front.jpg", "id_00000003", "train"),
    ("img/MEN/Denim/id_00000004/01_1_front.jpg", "id_00000004", "train"),
    ("img/MEN/Denim/id_00000004/01_2_side.jpg", "id_00000004", "train"),
    ("img/WOMEN/Skirts/id_00000001/01_1_front.jpg", "id_00000001", "query"),
    ("img/WOMEN/Skirts/id_00000001/01_2_side.jpg", "id_00000001", "gallery"),
    ("img/WOMEN/Skirts/id_00000001/01_3_back.jpg", "id_00000001", "gallery"),
    ("img/WOMEN/Skirts/id_00000005/04_1_front.jpg", "id_00000005", "gallery"),
    ("img/WOMEN/Skirts/id_00000005/04_2_side.jpg", "id_00000005", "query"),
    ("img/WOMEN/Skirts/id_00000005/04_4_full.jpg", "id_00000005", "query"),
]


def make_inshop(root: Path) -> None:
    write_images(root, [path.replace("img/", "img_highres/") for path, _, _ in INSHOP_ROWS])
    lines = [f"{path:<72} {item} {status}\n" for path, item, status in INSHOP_ROWS]
    header = "image_name item_id evaluation_status\n"
    (root / "list_eval_partition.txt").write_text(f"{len(lines)}\n{header}{''.join(lines)}")
    boxes = [f"{path:<72}  3  1  {i:03} 00{i % 5} 035 0{20 + i}\n" for i, (path, _, _) in enumerate(INSHOP_ROWS)]
    header = "image_name clothes_type pose_type x_1 y_1 x_2 y_2\n"
    (root / "list_bbox_inshop.txt").write_text(f"{len(boxes)}\n{header}{''.join(reversed(boxes))}")


MAKERS: dict[str, Callable[[Path], None]] = {
    "cub": make_cub,
    "cars": make_cars,
    "sop": make_sop,
    "inshop": make_inshop,
}


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All four trees: do not change their files."""
    root = tmp_path_factory.mktemp("trees")
    for name, make in MAKERS.items():
        make(root / name)
    return root


@pytest.fixture(autouse=True)
def _published_are_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, n_train, n_validation, n_labels in COUNTS.values():
        source = getattr(module, name)
        tiny = source._replace(n_train=n_train, n_validation=n_validation, n_labels=n_labels)
        monkeypatch.setattr(module, name, tiny)


@pytest.fixture
def tree(trees: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Makes a copy of a tree, that may be damaged."""
    return lambda name: shutil.copytree(trees / name, tmp_path / name)


def convert(name: str, root: Path | str, **arguments: bool) -> pd.DataFrame:
    if name == "inshop":
        with pytest.warns(UserWarning, match=r"1 of 5 train images were left out: no other one has their label"):
            return convert_inshop(root, **arguments)
    return CONVERTERS[name](root, **arguments)


def as_dicts(table: pd.DataFrame) -> list[dict]:
    return table.astype(object).where(table.notna(), None).to_dict("records")


def row(label: int, path: str, query: bool | None, gallery: bool | None, **others: object) -> dict:
    split = "train" if query is None else "validation"
    return dict(zip(OBLIGATORY_COLUMNS, (label, path, split, query, gallery), strict=True)) | others


def box(x_1: int, x_2: int, y_1: int, y_2: int) -> dict:
    return dict(zip(BBOXES_COLUMNS, (x_1, x_2, y_1, y_2), strict=True))


def test_cub(trees: Path) -> None:
    table = convert("cub", trees / "cub")
    assert table.columns.tolist() == [*OBLIGATORY_COLUMNS, *BBOXES_COLUMNS]
    expected = []
    for i, path in enumerate(line.split()[1] for line in (trees / "cub/images.txt").read_text().splitlines()):
        number, role = i + 1, None if (i + 1) % 2 else True
        edges = box(number, int(number + 0.9 + 10.2 + number), int(number / 2), int(number / 2 + 12.5))
        expected.append(row(i // 4 + 1, f"images/{path}", role, role, **edges))
    assert as_dicts(table) == expected
    assert expected[1] == row(1, "images/001.Black_footed_Albatross/Albatross_0001_1.jpg", True, True) | box(
        2, 15, 1, 13
    )
    assert convert("cub", trees / "cub", bboxes=False).equals(table[OBLIGATORY_COLUMNS])


def test_cars(trees: Path) -> None:
    table = convert("cars", trees / "cars")
    assert table.columns.tolist() == [*OBLIGATORY_COLUMNS, *BBOXES_COLUMNS]
    expected = [
        row(label, f"{folder}/{name}", role, role, **box(x1, x2, y1, y2))
        for rows, folder, role in ((CAR_TRAIN, "cars_train", None), (CAR_TEST, "cars_test", True))
        for x1, y1, x2, y2, label, name in rows
    ]
    assert as_dicts(table) == expected
    assert convert("cars", trees / "cars", bboxes=False).equals(table[OBLIGATORY_COLUMNS])


def test_sop(trees: Path) -> None:
    table = convert("sop", trees / "sop")
    assert as_dicts(table) == [
        row(label, path, role, role, category=path.split("/")[0], image_id=i, class_id=label, super_class_id=group)
        for i, label, group, path, role in [
            (1, 1, 1, "bicycle_final/111_0.JPG", None),
            (2, 1, 1, "bicycle_final/111_1.JPG", None),
            (3, 2, 2, "lamp_final/112_0.JPG", None),
            (4, 2, 2, "lamp_final/112_1.JPG", None),
            (5, 3, 2, "lamp_final/113_0.JPG", True),
            (6, 3, 2, "lamp_final/113_1.JPG", True),
            (7, 4, 3, "sofa_final/114_0.JPG", True),
            (8, 4, 3, "sofa_final/114_1.JPG", True),
        ]
    ]


def test_inshop(trees: Path) -> None:
    table = convert("inshop", trees / "inshop")
    expected = []
    for i, (path, item, status) in enumerate(INSHOP_ROWS):
        if item != "id_00000003":  # alone with its label
            roles = (None, None) if status == "train" else (status == "query", status == "gallery")
            category = {"2": "Dresses", "4": "Denim", "1": "Skirts", "5": "Skirts"}[item[-1]]
            edges = box(i, 35, i % 5, 20 + i)
            path = path.replace("img/", "img_highres/")
            expected.append(row(int(item[-1]), path, *roles, category=category, **edges))
    assert as_dicts(table) == expected
    assert convert("inshop", trees / "inshop", bboxes=False).equals(table[[*OBLIGATORY_COLUMNS, CATEGORIES_COLUMN]])


@pytest.mark.parametrize("name", ["cub", "cars"])
def test_zero_shot_halves_the_classes(name: str, trees: Path) -> None:
    official, table = convert(name, trees / name), convert(name, trees / name, zero_shot=True)
    is_train = table["split"] == "train"
    assert set(table.loc[is_train, "label"]) == {1}  # half of three, rounded down
    assert set(table.loc[~is_train, "label"]) == {2, 3}
    assert table.loc[is_train, ["is_query", "is_gallery"]].isna().all(axis=None)
    assert table.loc[~is_train, ["is_query", "is_gallery"]].all(axis=None)
    others = ["label", "path", *BBOXES_COLUMNS]
    assert table[others].equals(official[others])


@pytest.mark.parametrize("name", CONVERTERS)
def test_tables_are_read_from_anywhere(name: str, trees: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths are relative to the root: the described converters wrote the root before them, the data sets once more."""
    shutil.copytree(trees / name, tmp_path / "data" / "set")
    monkeypatch.chdir(tmp_path)
    table = convert(name, "data/set")
    assert table.equals(convert(name, tmp_path / "data" / "set"))
    table.to_csv("data/set/df.csv", index=False)
    check_retrieval_dataframe_format("data/set/df.csv", "data/set", verbose=False)
    train, validation = (
        kind(rows.reset_index(drop=True), transform=get_normalisation_torch(), dataset_root="data/set")
        for kind, (_, rows) in zip((DatasetWithLabels, DatasetQueryGallery), table.groupby("split"), strict=True)
    )
    is_boxed = "x_1" in table
    for dataset, split in ((train, "train"), (validation, "validation")):
        item, first = dataset[0], table[table["split"] == split].iloc[0]
        size = (first["y_2"] - first["y_1"], first["x_2"] - first["x_1"]) if is_boxed else (30, 40)
        assert item["input_tensors"].shape == (3, *size)
        assert item["labels"] == first["label"]
    monkeypatch.chdir(tmp_path / "data")
    assert len(get_retrieval_datasets(Path("set"), None, None, verbose=False)[0]) == len(train)


@pytest.mark.parametrize("name", CONVERTERS)
@pytest.mark.filterwarnings("ignore:1 of 5 train images")
def test_other_counts_than_published_are_told(name: str, trees: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, source, n_train, n_validation, n_labels = COUNTS[name]
    found = f"found {n_train} train and {n_validation} validation images of {n_labels} labels"
    for change in ({"n_train": 1_234}, {"n_validation": 1_234}, {"n_labels": 1_234}):
        with monkeypatch.context() as patch:
            patch.setattr(module, source, getattr(module, source)._replace(**change))
            with pytest.warns(UserWarning, match="was published with") as caught:
                CONVERTERS[name](trees / name)
        assert "1,234" in str(caught[0].message)
        assert found in str(caught[0].message)


MISSING = {
    "cub": ["images.txt", "image_class_labels.txt", "train_test_split.txt", "bounding_boxes.txt", "images/"],
    "cars": [cars.META, cars.TRAIN, cars.TEST, "cars_train/", "cars_test/"],
    "sop": ["Ebay_train.txt", "Ebay_test.txt"],
    "inshop": ["list_eval_partition.txt", "list_bbox_inshop.txt", "img_highres/"],
}


@pytest.mark.parametrize(("name", "lost"), [(name, lost) for name, files in MISSING.items() for lost in files])
def test_a_missing_file_is_named(name: str, lost: str, tree: Callable[[str], Path]) -> None:
    root = tree(name)
    (root / lost).rename(root / "moved")
    with pytest.raises(FileNotFoundError) as error:
        CONVERTERS[name](root)
    assert f"needs {lost!r} in the root {str(root)!r}, but not there. The " in str(error.value)
    assert "https://" in str(error.value)


@pytest.mark.parametrize("name", CONVERTERS)
def test_another_root_is_refused(name: str, trees: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape(", ".join(map(repr, MISSING[name])))) as error:  # all at once
        CONVERTERS[name](tmp_path)
    assert "is that the root" not in str(error.value)
    with pytest.raises(FileNotFoundError, match=f"They are in '{trees / name}': is that the root"):
        CONVERTERS[name](trees)
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        CONVERTERS[name](tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="it is a file"):
        CONVERTERS[name](__file__)


@pytest.mark.parametrize(("name", "file"), [("cub", "bounding_boxes.txt"), ("inshop", "list_bbox_inshop.txt")])
def test_boxes_are_not_needed_without_them(name: str, file: str, tree: Callable[[str], Path]) -> None:
    root = tree(name)
    (root / file).unlink()
    assert "x_1" not in convert(name, root, bboxes=False)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("cub", "images/002.Laysan_Albatross/Albatross_0001_2.jpg"),
        ("cars", "cars_test/00002.jpg"),
        ("sop", "lamp_final/112_0.JPG"),
        ("inshop", "img_highres/WOMEN/Skirts/id_00000005/04_2_side.jpg"),
    ],
)
@pytest.mark.filterwarnings("ignore:1 of 5 train images")
def test_a_missing_image_is_named(name: str, path: str, tree: Callable[[str], Path]) -> None:
    root = tree(name)
    (root / path).unlink()
    with pytest.raises(TableError, match=path):
        CONVERTERS[name](root)


PARTITION, BOXES = "list_eval_partition.txt", "list_bbox_inshop.txt"


@pytest.mark.parametrize(
    ("name", "file", "line", "content", "text"),
    [
        ("cub", "images.txt", 3, "3", "a line has 2 cells: image_id path; got '3'."),
        ("cub", "images.txt", 4, "", "a line has 2 cells: image_id path; got ''."),
        ("cub", "images.txt", 5, "4 a/b.jpg", "image_id must not occur twice; got '4'."),
        ("cub", "images.txt", 5, "99 a/b.jpg", "image_id must be in image_class_labels.txt as well; got '99'."),
        ("cub", "image_class_labels.txt", 2, "11 three", "label must be a whole number; got 'three'."),
        ("cub", "image_class_labels.txt", 2, "11 1.5", "label must be a whole number; got '1.5'."),
        ("cub", "train_test_split.txt", 2, "2 7", "is_training_image must be 0 or 1; got 7."),
        ("cub", "train_test_split.txt", 2, "2 0 0", "a line has 2 cells: image_id is_training_image; got '2 0 0'."),
        ("cub", "bounding_boxes.txt", 1, "7 1 1 nan 1", "width must be a number; got 'nan'."),
        ("cub", "bounding_boxes.txt", 12, "1 1 1 9 9", "image_id must not occur twice; got '1'."),
        ("sop", "Ebay_train.txt", 1, "1 1 1 a/b.JPG", "the columns image_id class_id super_class_id path are to be"),
        ("sop", "Ebay_train.txt", 3, "x 1 1 bicycle_final/1.JPG", "image_id must be a whole number; got 'x'"),
        ("sop", "Ebay_test.txt", 3, "6 3 2 113_1.JPG", "the path is a category's folder and a file; got '113_1.JPG'"),
        ("sop", "Ebay_test.txt", 3, "6 3 2 lamp_final/113_0.JPG", "path must not occur twice; got 'lamp_final/113_0"),
        ("inshop", PARTITION, 2, "name id status", "the columns image_name item_id evaluation_status are to be named"),
        ("inshop", PARTITION, 4, "img/a/b/c.jpg 17 train", "item_id is id_ and a number; got '17'"),
        ("inshop", PARTITION, 4, "img/a/b/c.jpg id_1 test", "evaluation_status is train, query or gallery; got 'test'"),
        ("inshop", PARTITION, 4, "img/c.jpg id_1 train", "image_name is img/.../category/item/file; got 'img/c.jpg'"),
        ("inshop", PARTITION, 4, f"{INSHOP_ROWS[0][0]} id_1 train", "image_name must not occur twice; got 'img/WOM"),
        ("inshop", PARTITION, 4, "img/a/b/c.jpg id_1 train", "image_name must be in list_bbox_inshop.txt as well"),
        ("inshop", BOXES, 3, f"{INSHOP_ROWS[-1][0]} 3 1 1 2 3 x", "y_2 must be a whole number; got 'x'"),
    ],
)
def test_an_unexpected_line_is_named(
    name: str, file: str, line: int, content: str, text: str, tree: Callable[[str], Path]
) -> None:
    root = tree(name)
    lines = (root / file).read_text().splitlines()
    lines[line - 1] = content
    (root / file).write_text("\n".join(lines) + "\n\n")  # empty lines at the end are no matter
    with pytest.raises(ValueError, match="line") as error:
        CONVERTERS[name](root)
    assert str(error.value).startswith(f"{root / file}, line {line}: {text}")


def test_a_line_of_no_item_is_an_error(tree: Callable[[str], Path]) -> None:
    root = tree("inshop")
    with (root / BOXES).open("a") as file:
        file.write("img/a/b/c.jpg 3 1 1 2 3 4\n")
    with pytest.raises(ValueError, match=f"{BOXES}, line 14: image_name must be in {PARTITION} as well; got 'img/a/b"):
        convert_inshop(root)


def test_an_item_without_a_box_is_an_error(tree: Callable[[str], Path]) -> None:
    for name, file in (("cub", "bounding_boxes.txt"), ("inshop", "list_bbox_inshop.txt")):
        root = tree(name)
        lines = (root / file).read_text().splitlines()
        (root / file).write_text("\n".join(lines[:-2]))
        with pytest.raises(ValueError, match=rf"line \d+ \(and 1 more\): image_\w+ must be in {file} as well"):
            CONVERTERS[name](root)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00\x81", b""])
def test_what_is_no_text_is_told(content: bytes, tree: Callable[[str], Path]) -> None:
    root = tree("sop")
    (root / "Ebay_test.txt").write_bytes(content)
    with pytest.raises(ValueError, match="must be a text file" if content else "has 0 lines: is it whole"):
        convert_sop(root)


def change_cars(root: Path, index: int, **values: object) -> None:
    rows: list[dict] = [dict(zip(CAR_FIELDS, row, strict=True)) for row in CAR_TEST]
    rows[index] |= values
    struct = mat_struct([tuple(row.values()) for row in rows], CAR_FIELDS)
    savemat(root / cars.TEST, {"annotations": struct})


def test_unexpected_annotations_are_named(tree: Callable[[str], Path]) -> None:
    root = tree("cars")
    change_cars(root, 1, **{"class": 4})
    with pytest.raises(
        ValueError, match=r"annotation 2: class must be 1 to 3, as devkit/cars_meta\.mat has so many; got 4"
    ):
        convert_cars(root)
    change_cars(root, 2, fname="00001.jpg")
    with pytest.raises(ValueError, match=r"annotation 3: fname must be there and not occur twice; got '00001\.jpg'"):
        convert_cars(root)
    change_cars(root, 3, bbox_x2="wide")
    with pytest.raises(ValueError, match=r"annotation 4: bbox_x2 must be a whole number; got 'wide'"):
        convert_cars(root)
    change_cars(root, 3, bbox_x2=9)
    with pytest.raises(TableError, match=r"x_1 must be below x_2; it is not in row 8"):
        convert_cars(root)
    unlabelled = [row[:4] + row[5:] for row in CAR_TEST]
    savemat(root / cars.TEST, {"annotations": mat_struct(unlabelled, [*CAR_FIELDS[:4], "fname"])})
    with pytest.raises(ValueError, match=r"class is not there\. Is it cars_test_annos\.mat, which comes without"):
        convert_cars(root)
    savemat(root / cars.TEST, {"labels": [1, 2]})
    with pytest.raises(ValueError, match="has no variable 'annotations'"):
        convert_cars(root)
    savemat(root / cars.TEST, {"annotations": [1, 2]})
    with pytest.raises(ValueError, match=r"bbox_x1, bbox_x2, bbox_y1, bbox_y2, class, fname is not there\.$"):
        convert_cars(root)
    for content in (b"<html>not found</html>" * 20, b"", (root / cars.TRAIN).read_bytes()[:300]):
        (root / cars.TEST).write_bytes(content)
        with pytest.raises(ValueError, match=r"cars_test_annos_withlabels\.mat cannot be read as a MATLAB file"):
            convert_cars(root)


def test_cars_say_which_extra_they_need(trees: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "scipy.io", None)
    with pytest.raises(ModuleNotFoundError, match=r"scipy.*pip install 'open-metric-learning\[convert\]'"):
        convert_cars(trees / "cars")


# oml convert


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: str | Path) -> tuple[int, str, str]:
        """Exit code, standard output and error of ``oml convert ARGUMENTS``."""
        with pytest.raises(SystemExit) as left:
            main(["convert", *map(str, arguments)])
        assert isinstance(left.value.code, int)
        out, err = capsys.readouterr()
        return left.value.code, out, err

    return run


@pytest.mark.parametrize("name", CONVERTERS)
def test_the_command_writes_the_table(name: str, tree: Callable[[str], Path], run) -> None:
    root = tree(name)
    expected = convert(name, root)
    code, output, errors = run(name, root)
    assert (code, errors) == (0, "")
    file = root / ("df.csv" if name == "sop" else "df_with_bboxes.csv")
    assert as_dicts(pd.read_csv(file)) == as_dicts(expected)
    _, _, n_train, n_validation, n_labels = COUNTS[name]
    if name == "inshop":
        n_train, n_labels = n_train - 1, n_labels - 1
        assert "- validation: 6 items of 2 labels, 3 queries, 3 galleries" in output
        assert "- 1 of 5 train images were left out" in output
    assert f"{n_train + n_validation} items of {n_labels} labels." in output
    assert f"- train: {n_train} items of" in output
    assert ("all classes are in train and in validation" in output) == (name in ("cub", "cars"))
    assert output.endswith(f"{file}\nTry next: oml check {file} --images\n")

    code, output, errors = run(name, root, "--no-bboxes", "--force")
    assert (code, errors) == (0, "")
    assert as_dicts(pd.read_csv(root / "df.csv")) == as_dicts(expected.drop(columns=BBOXES_COLUMNS, errors="ignore"))
    assert not list(root.glob(".*"))


def test_the_command_splits_by_class(tree: Callable[[str], Path], tmp_path: Path, run) -> None:
    root, file = tree("cub"), tmp_path / "tables" / "zero shot.csv"
    code, output, _ = run("cub", root, "--zero-shot", "--output", file)
    assert code == 0
    assert as_dicts(pd.read_csv(file)) == as_dicts(convert_cub(root, zero_shot=True))
    assert "train is the first half of the classes" in output
    assert output.endswith(f"{file}\nTry next: oml check '{file}' --root {root} --images\n")


def test_a_table_is_not_written_over(tree: Callable[[str], Path], run) -> None:
    root = tree("sop")
    (root / "df.csv").write_text("precious")
    code, _, errors = run("sop", root)
    assert code == 2
    assert f"there is a file {str(root / 'df.csv')!r} already; give --output or --overwrite" in errors
    assert (root / "df.csv").read_text() == "precious"
    assert run("sop", root, "--overwrite")[0] == 0
    assert len(pd.read_csv(root / "df.csv")) == 8


def test_what_the_command_refuses(tree: Callable[[str], Path], tmp_path: Path, run) -> None:
    root = tree("sop")
    before = sorted(tmp_path.rglob("*"))
    for arguments, expected_code, text in [
        (["sop", root, "--zero-shot"], 2, "sop is split by label anyway"),
        (["sop", root, "--output", root / "df.parquet"], 2, "the output is a CSV file"),
        (["sop", root, "--output", root / "Ebay_test.txt" / "df.csv"], 2, "cannot write to"),
        (["cub", root], 1, "CUB-200-2011 needs 'images.txt', 'image_class_labels.txt', "),
        (["birds", root], 2, "birds"),
    ]:
        code, output, errors = run(*arguments)
        assert (code, output, errors.count("\n")) == (expected_code, "", 1)
        assert text in errors
    assert sorted(tmp_path.rglob("*")) == before
