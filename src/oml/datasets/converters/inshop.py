"""DeepFashion InShop: 52,712 photos of 7,982 pieces of clothing."""

import warnings
from pathlib import Path

from pandas import DataFrame

from oml.const import BBOXES_COLUMNS, CATEGORIES_COLUMN
from oml.datasets.converters._common import (
    Source,
    check_distinct,
    checked_table,
    join,
    numbers,
    read_cells_with_header,
    refuse,
)

__all__ = ["convert_inshop"]

INSHOP = Source(
    "DeepFashion InShop",
    "The folders Anno, Eval and Img of 'In-shop Clothes Retrieval Benchmark' at "
    "https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion.html hold it: the root is a folder of yours with "
    "list_eval_partition.txt, list_bbox_inshop.txt and the unpacked img_highres.",
    n_train=25_882,
    n_validation=26_830,
    n_labels=7_982,
)
PARTITION, BOXES = "list_eval_partition.txt", "list_bbox_inshop.txt"
HEADER_LINE = 2  # below the number of rows


def convert_inshop(root: Path | str, bboxes: bool = True) -> DataFrame:
    """The table of DeepFashion InShop, with paths relative to ``root``; a label is the number in the item's id.

    Read are ``list_eval_partition.txt`` and ``list_bbox_inshop.txt``, images are those of ``img_highres``. The split
    is the official one, with labels of its own in either part; a validation item is either query or gallery. The
    category is the kind of clothing, the folder around the item's. Boxes are as the file has them. Train items
    that are alone with their label are left out.

    Args:
        root: folder with the files above and ``img_highres/``.
        bboxes: with the columns of boxes; without them ``list_bbox_inshop.txt`` is not needed.

    Warns:
        UserWarning: How many train items were left out; or, the numbers of images and labels are not those that
            were published.

    Raises:
        FileNotFoundError: The root lacks files.
        ValueError: A file has other content than expected, with the line; or images are missing.
    """
    root = INSHOP.find(root, [PARTITION, *[BOXES] * bboxes], ["img_highres"])
    path = root / PARTITION
    items = read_cells_with_header(path, ["image_name", "item_id", "evaluation_status"], HEADER_LINE)
    refuse(path, ~items["item_id"].str.fullmatch(r"id_\d+"), items["item_id"], "item_id is id_ and a number")
    status = items["evaluation_status"]
    refuse(path, ~status.isin(["train", "query", "gallery"]), status, "evaluation_status is train, query or gallery")
    names = items["image_name"]
    check_distinct(path, names)
    refuse(path, ~names.str.fullmatch("img/.+/.+/.+"), names, "image_name is img/.../category/item/file")
    items["label"] = numbers(path, items["item_id"].str[3:])
    if bboxes:
        boxes = read_cells_with_header(root / BOXES, ["image_name", *BBOXES_COLUMNS], HEADER_LINE)
        edges = {column: numbers(root / BOXES, boxes[column]) for column in BBOXES_COLUMNS}
        boxes = boxes[["image_name"]].assign(**edges)
        items = join(items, boxes, "image_name", path, root / BOXES)

    is_train = status == "train"
    INSHOP.compare(items["label"], is_train)
    n_of_label = items.loc[is_train, "label"].value_counts()
    is_lone = is_train & (items["label"].map(n_of_label) == 1)
    if is_lone.any():
        warnings.warn(
            f"{is_lone.sum():,} of {is_train.sum():,} train images were left out: no other one has their label.",
            stacklevel=2,
        )
    items = items[~is_lone]
    return checked_table(
        root,
        items["label"],
        "img_highres/" + items["image_name"].str.removeprefix("img/"),
        items["evaluation_status"] == "train",
        items["evaluation_status"] == "query",
        items["evaluation_status"] == "gallery",
        **{CATEGORIES_COLUMN: items["image_name"].str.split("/").str[-3]},
        **{column: items[column] for column in BBOXES_COLUMNS if bboxes},
    )
