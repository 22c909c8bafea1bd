"""CUB-200-2011: 11,788 photos of 200 species of birds."""

from pathlib import Path

from pandas import DataFrame

from oml.const import X1_COLUMN, X2_COLUMN, Y1_COLUMN, Y2_COLUMN
from oml.datasets.converters._common import Source, checked_table, first_half, join, numbers, read_cells, refuse

__all__ = ["convert_cub"]

CUB = Source(
    "CUB-200-2011",
    "The archive CUB_200_2011.tgz of https://www.vision.caltech.edu/datasets/cub_200_2011 holds it: the root is its "
    "folder CUB_200_2011.",
    n_train=5_994,
    n_validation=5_794,
    n_labels=200,
)
IMAGES, LABELS, SPLITS = "images.txt", "image_class_labels.txt", "train_test_split.txt"
BOXES = "bounding_boxes.txt"


def convert_cub(root: Path | str, bboxes: bool = True, zero_shot: bool = False) -> DataFrame:
    """The table of CUB-200-2011, with paths relative to ``root``; a label is a class id, 1 to 200.

    Read are ``images.txt``, ``image_class_labels.txt``, ``train_test_split.txt`` and ``bounding_boxes.txt``. All
    validation items are query and gallery. A box is cut down to whole pixels: ``int(x)`` to ``int(x + width)``.

    By default the split is the official one, of images: **all classes are in both parts**, so figures are not
    comparable with those of papers on metric learning.

    Args:
        root: folder with the files above and ``images/``.
        bboxes: with the columns of boxes.
        zero_shot: the split of those papers instead: train is the first half of the classes (1 to 100), validation
            the second half.

    Warns:
        UserWarning: The numbers of images and labels are not those that were published.

    Raises:
        FileNotFoundError: The root lacks files.
        ValueError: A file has other content than expected, with the line; or images are missing.
    """
    root = CUB.find(root, [IMAGES, LABELS, SPLITS, *[BOXES] * bboxes], ["images"])
    items = read_cells(root / IMAGES, ["image_id", "path"])
    items = with_numbers(items, root, LABELS, ["label"])
    items = with_numbers(items, root, SPLITS, ["is_training_image"])
    flag = items["is_training_image"]
    refuse(root / SPLITS, ~flag.isin([0, 1]), flag, "is_training_image must be 0 or 1")
    CUB.compare(items["label"], flag == 1)
    boxes = {}
    if bboxes:
        items = with_numbers(items, root, BOXES, ["x", "y", "width", "height"], whole=False)
        x, y, width, height = (items[name] for name in ("x", "y", "width", "height"))
        boxes = {X1_COLUMN: x, X2_COLUMN: x + width, Y1_COLUMN: y, Y2_COLUMN: y + height}
    return checked_table(
        root,
        items["label"],
        "images/" + items["path"],
        first_half(items["label"]) if zero_shot else flag == 1,
        **{name: edge.astype("int64") for name, edge in boxes.items()},
    )


def with_numbers(items: DataFrame, root: Path, file: str, columns: list[str], whole: bool = True) -> DataFrame:
    """The items with the columns of a file, found by the image's id."""
    more = read_cells(root / file, ["image_id", *columns])
    more = more.assign(**{name: numbers(root / file, more[name], whole) for name in columns})
    return join(items, more, "image_id", root / IMAGES, root / file)
