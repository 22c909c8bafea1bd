"""CARS196: 16,185 photos of 196 models of cars."""

from pathlib import Path
from typing import Any

import pandas as pd
from pandas import DataFrame, Series

from oml.const import X1_COLUMN, X2_COLUMN, Y1_COLUMN, Y2_COLUMN
from oml.datasets.converters._common import Source, checked_table, first_half, numbers, refuse

__all__ = ["convert_cars"]

CARS = Source(
    "CARS196",
    "The archive of https://www.kaggle.com/datasets/arghyadutta1/cars196 holds it: the root is the folder with "
    "cars_train and cars_test.",
    n_train=8_144,
    n_validation=8_041,
    n_labels=196,
)
META = "devkit/cars_meta.mat"
TRAIN, TEST = "devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat"
BOX_FIELDS = {X1_COLUMN: "bbox_x1", X2_COLUMN: "bbox_x2", Y1_COLUMN: "bbox_y1", Y2_COLUMN: "bbox_y2"}


def convert_cars(root: Path | str, bboxes: bool = True, zero_shot: bool = False) -> DataFrame:
    """The table of CARS196, with paths relative to ``root``; a label is a class, 1 to 196. Needs the extra ``convert``.

    Read are ``devkit/cars_meta.mat``, ``devkit/cars_train_annos.mat`` and ``cars_test_annos_withlabels.mat``, which
    is not the ``cars_test_annos.mat`` of the devkit. All validation items are query and gallery. Boxes are as the
    files have them.

    By default the split is the official one, of images: **all classes are in both parts**, so figures are not
    comparable with those of papers on metric learning.

    Args:
        root: folder with the files above, ``cars_train/`` and ``cars_test/``.
        bboxes: with the columns of boxes.
        zero_shot: the split of those papers instead: train is the first half of the classes (1 to 98), validation
            the second half.

    Warns:
        UserWarning: The numbers of images and labels are not those that were published.

    Raises:
        FileNotFoundError: The root lacks files.
        ValueError: A file has other content than expected, with the entry; or images are missing.
        ModuleNotFoundError: scipy is not installed.
    """
    root = CARS.find(root, [META, TRAIN, TEST], ["cars_train", "cars_test"])
    n_classes = read_mat(root / META, "class_names").size
    train = read_annotations(root / TRAIN, "cars_train", n_classes)
    validation = read_annotations(root / TEST, "cars_test", n_classes)
    items = pd.concat([train, validation], ignore_index=True)
    is_train = Series(items.index < len(train))
    CARS.compare(items["class"], is_train)
    boxes = {column: items[field] for column, field in BOX_FIELDS.items()} if bboxes else {}
    return checked_table(
        root, items["class"], items["path"], first_half(items["class"]) if zero_shot else is_train, **boxes
    )


def read_mat(path: Path, variable: str) -> Any:
    """A variable of a MATLAB file, as an array of as many axes."""
    try:
        from scipy.io import loadmat
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "convert_cars needs scipy for MATLAB files: pip install 'open-metric-learning[convert]'."
        ) from error
    with path.open("rb") as file:
        try:
            content = loadmat(file, variable_names=[variable])
        except Exception as error:  # of a file of another kind, or cut short: ValueError, OSError, zlib.error ...
            raise ValueError(f"{path} cannot be read as a MATLAB file: {' '.join(str(error).split())}.") from error
    if variable not in content:
        raise ValueError(f"{path} has no variable {variable!r}: is it a file of another name?")
    return content[variable]


def read_annotations(path: Path, folder: str, n_classes: int) -> DataFrame:
    """``path`` of the image relative to the root, ``class`` and the four edges of the box, for each annotation."""
    annotations = read_mat(path, "annotations").ravel()
    fields = [*BOX_FIELDS.values(), "class", "fname"]
    if lost := [field for field in fields if field not in (annotations.dtype.names or ())]:
        raise ValueError(
            f"{path} needs annotations with {', '.join(fields)}; {', '.join(lost)} is not there."
            + (" Is it cars_test_annos.mat, which comes without labels?" if lost == ["class"] else "")
        )
    numbered = pd.RangeIndex(1, len(annotations) + 1)
    items = DataFrame(index=numbered)
    for field in fields:
        cells = Series([next(iter(cell.ravel().tolist()), None) for cell in annotations[field]], numbered, name=field)
        items[field] = cells if field == "fname" else numbers(path, cells, unit="annotation")
    names = items["fname"]
    refuse(path, names.isna() | names.duplicated(), names, "fname must be there and not occur twice", "annotation")
    bad = ~items["class"].between(1, n_classes)
    refuse(path, bad, items["class"], f"class must be 1 to {n_classes}, as {META} has so many", "annotation")
    items["path"] = f"{folder}/" + names
    return items
