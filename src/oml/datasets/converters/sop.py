"""Stanford Online Products: 120,053 photos of 22,634 things for sale."""

from pathlib import Path

import pandas as pd
from pandas import DataFrame, Series

from oml.const import CATEGORIES_COLUMN
from oml.datasets.converters._common import (
    Source,
    check_distinct,
    checked_table,
    numbers,
    read_cells_with_header,
    refuse,
)

__all__ = ["convert_sop"]

SOP = Source(
    "Stanford Online Products",
    "The archive Stanford_Online_Products.zip of https://cvgl.stanford.edu/projects/lifted_struct (Google Drive file "
    "1TclrpQOF_ullUP99wk_gjGN8pKvtErG8) holds it: the root is its folder Stanford_Online_Products.",
    n_train=59_551,
    n_validation=60_502,
    n_labels=22_634,
)
FILES = ["Ebay_train.txt", "Ebay_test.txt"]
COLUMNS = ["image_id", "class_id", "super_class_id", "path"]


def convert_sop(root: Path | str) -> DataFrame:
    """The table of Stanford Online Products, with paths relative to ``root``; a label is a class id.

    Read are ``Ebay_train.txt`` and ``Ebay_test.txt``, whose other columns are kept. The split is the official one,
    with labels of its own in either part; all validation items are query and gallery. The category is the folder,
    such as ``bicycle_final``. There are no boxes.

    Args:
        root: folder with the files above and the folders of the categories.

    Warns:
        UserWarning: The numbers of images and labels are not those that were published.

    Raises:
        FileNotFoundError: The root lacks files.
        ValueError: A file has other content than expected, with the line; or images are missing.
    """
    root = SOP.find(root, FILES)
    train, validation = (read_part(root / name) for name in FILES)
    items = pd.concat([train, validation], ignore_index=True)
    is_train = Series(items.index < len(train))
    SOP.compare(items["class_id"], is_train)
    return checked_table(
        root,
        items["class_id"],
        items["path"],
        is_train,
        **{CATEGORIES_COLUMN: items["path"].str.split("/").str[-2]},
        **{name: items[name] for name in COLUMNS[:-1]},
    )


def read_part(path: Path) -> DataFrame:
    """The columns of one of the files; the ids as whole numbers."""
    items = read_cells_with_header(path, COLUMNS)
    refuse(path, ~items["path"].str.contains("/"), items["path"], "the path is a category's folder and a file")
    check_distinct(path, items["path"])
    return items.assign(**{name: numbers(path, items[name]) for name in COLUMNS[:-1]})
