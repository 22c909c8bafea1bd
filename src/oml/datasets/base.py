"""Data sets of images, made from rows of the retrieval table."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas import DataFrame
from torch import Tensor
from torch.utils.data import Dataset

from oml.const import (
    BBOXES_COLUMNS,
    CATEGORIES_COLUMN,
    CATEGORIES_KEY,
    INDEX_KEY,
    INPUT_TENSORS_KEY,
    IS_GALLERY_COLUMN,
    IS_GALLERY_KEY,
    IS_QUERY_COLUMN,
    IS_QUERY_KEY,
    LABELS_COLUMN,
    LABELS_KEY,
    PATHS_COLUMN,
    PATHS_KEY,
    SPLIT_COLUMN,
    TRAIN_SPLIT,
    VALIDATION_SPLIT,
    X1_COLUMN,
    X1_KEY,
    X2_COLUMN,
    X2_KEY,
    Y1_COLUMN,
    Y1_KEY,
    Y2_COLUMN,
    Y2_KEY,
)
from oml.datasets.table import TableError, check_retrieval_dataframe_format, rows_where
from oml.interfaces.datasets import IDatasetQueryGallery, IDatasetWithLabels
from oml.transforms.images.torchvision import get_normalisation_torch
from oml.utils.images.images import TImage, TImReader, imread_pillow

Transform = Callable[[Any], Any]


class BaseDataset(Dataset):
    """Images by the rows of a table. ``ds[i]`` is a dict with these entries:

    ============================  ========================================================================
    ``input_tensors``             what the transform made of the image, or of the part inside its box
    ``labels``                    int
    ``paths``                     str, the root joined
    ``idx``                       ``i``
    ``categories``                if the table has the column
    ``x1``, ``y1``, ``x2``, ``y2``  the pixels that were taken, if the table has boxes
    names in ``extra_data``       their entry of this row
    ============================  ========================================================================

    Args:
        df: rows of a retrieval table; the columns ``label`` and ``path`` are needed. It is copied.
        extra_data: name -> one entry per row, such as embeddings made before.
        transform: PIL image -> tensor; by default normalisation alone, so sizes stay as they are.
        dataset_root: the folder that relative paths refer to.
        f_imread: path -> PIL image.
        input_tensors_key, labels_key, ...: the names of an item's entries.

    Raises:
        TableError: if a column is missing or there are no rows.
        ValueError: if ``extra_data`` does not fit the table.
    """

    def __init__(
        self,
        df: DataFrame,
        extra_data: Mapping[str, Sequence[Any] | np.ndarray | Tensor] | None = None,
        transform: Transform | None = None,
        dataset_root: Path | str | None = None,
        f_imread: TImReader | None = None,
        input_tensors_key: str = INPUT_TENSORS_KEY,
        labels_key: str = LABELS_KEY,
        paths_key: str = PATHS_KEY,
        categories_key: str = CATEGORIES_KEY,
        x1_key: str = X1_KEY,
        x2_key: str = X2_KEY,
        y1_key: str = Y1_KEY,
        y2_key: str = Y2_KEY,
        index_key: str = INDEX_KEY,
    ) -> None:
        _require_columns(type(self).__name__, df, (LABELS_COLUMN, PATHS_COLUMN))
        self.df = df.reset_index(drop=True)
        root = Path() if dataset_root is None else Path(dataset_root)
        self.df[PATHS_COLUMN] = [str(root / path) for path in self.df[PATHS_COLUMN]]
        self.extra_data = dict(extra_data or {})
        self.transform = get_normalisation_torch() if transform is None else transform
        self.f_imread = imread_pillow if f_imread is None else f_imread
        self.bboxes_exist = set(BBOXES_COLUMNS) <= set(self.df.columns)

        self.input_tensors_key = input_tensors_key
        self.labels_key = labels_key
        self.paths_key = paths_key
        self.index_key = index_key
        self.categories_key = categories_key if CATEGORIES_COLUMN in self.df.columns else None
        self.bboxes_keys = (x1_key, y1_key, x2_key, y2_key) if self.bboxes_exist else ()

        # lists, for an item should not cost a look-up in a data frame
        self._paths: list[str] = self.df[PATHS_COLUMN].tolist()
        self._columns = {labels_key: self.df[LABELS_COLUMN].tolist(), paths_key: self._paths}
        if self.categories_key is not None:
            self._columns[self.categories_key] = self.df[CATEGORIES_COLUMN].tolist()
        box_columns = [X1_COLUMN, Y1_COLUMN, X2_COLUMN, Y2_COLUMN]
        self._boxes = self.df[box_columns].to_numpy(dtype=float) if self.bboxes_exist else None
        self._check_extra_data()

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        image = self._read(idx)
        box = self._box(idx, image)
        if box != (0, 0, image.width, image.height):
            image = image.crop(box)
        return {
            self.input_tensors_key: self.transform(image),
            **{key: column[idx] for key, column in self._columns.items()},
            **dict(zip(self.bboxes_keys, box, strict=False)),
            **{key: values[idx] for key, values in self.extra_data.items()},
            self.index_key: idx,
        }

    def get_labels(self) -> np.ndarray:
        """The label of every item, in order."""
        return self.df[LABELS_COLUMN].to_numpy(copy=True)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} items of {self.df[LABELS_COLUMN].nunique()} labels)"

    def _read(self, idx: int) -> TImage:
        try:
            return self.f_imread(self._paths[idx])
        except OSError as error:
            raise OSError(
                f"{type(self).__name__} cannot read the image of row {idx}, {self._paths[idx]}: "
                f"{' '.join(str(error).split())}. Replace the file, or take the row out of the table."
            ) from error

    def _box(self, idx: int, image: TImage) -> tuple[int, int, int, int]:
        """x1, y1, x2, y2 of the part to take."""
        if self._boxes is None or np.isnan(self._boxes[idx]).any():
            return 0, 0, image.width, image.height
        x1, y1, x2, y2 = (int(side) for side in self._boxes[idx])
        if x2 > image.width or y2 > image.height:
            raise ValueError(
                f"{type(self).__name__} got a box that leaves its image in row {idx}, {self._paths[idx]}: the box "
                f"ends at ({x2}, {y2}), the image has {image.width} x {image.height} pixels."
            )
        return x1, y1, x2, y2

    def _check_extra_data(self) -> None:
        taken = {*self._columns, *self.bboxes_keys, self.input_tensors_key, self.index_key}
        for name, values in self.extra_data.items():
            if name in taken:
                raise ValueError(f"{type(self).__name__} has an entry {name!r} of its own; rename it in extra_data.")
            if len(values) != len(self):
                raise ValueError(
                    f"{type(self).__name__} needs one entry per row in extra_data, "
                    f"{name!r} has {len(values)} for {len(self)} rows."
                )


class DatasetWithLabels(BaseDataset, IDatasetWithLabels):
    """Labelled images for training; arguments and items as in :class:`BaseDataset`."""

    def get_label2category(self) -> dict[int, str | int] | None:
        """The category of every label (of its last row, should it have several); ``None`` if the table has none."""
        if self.categories_key is None:
            return None
        return dict(zip(self.df[LABELS_COLUMN].tolist(), self.df[CATEGORIES_COLUMN].tolist(), strict=True))


class DatasetQueryGallery(BaseDataset, IDatasetQueryGallery):
    """Labelled images for validation, each a query, a gallery or both; see :class:`BaseDataset`.

    The table also needs the columns ``is_query`` and ``is_gallery``, true or false in every row; items hold them
    as bools under the keys of these names.
    """

    def __init__(
        self,
        df: DataFrame,
        extra_data: Mapping[str, Sequence[Any] | np.ndarray | Tensor] | None = None,
        dataset_root: Path | str | None = None,
        transform: Transform | None = None,
        f_imread: TImReader | None = None,
        input_tensors_key: str = INPUT_TENSORS_KEY,
        labels_key: str = LABELS_KEY,
        paths_key: str = PATHS_KEY,
        categories_key: str = CATEGORIES_KEY,
        x1_key: str = X1_KEY,
        x2_key: str = X2_KEY,
        y1_key: str = Y1_KEY,
        y2_key: str = Y2_KEY,
        is_query_key: str = IS_QUERY_KEY,
        is_gallery_key: str = IS_GALLERY_KEY,
    ) -> None:
        _require_columns(type(self).__name__, df, (IS_QUERY_COLUMN, IS_GALLERY_COLUMN))
        super().__init__(
            df=df,
            extra_data=extra_data,
            transform=transform,
            dataset_root=dataset_root,
            f_imread=f_imread,
            input_tensors_key=input_tensors_key,
            labels_key=labels_key,
            paths_key=paths_key,
            categories_key=categories_key,
            x1_key=x1_key,
            x2_key=x2_key,
            y1_key=y1_key,
            y2_key=y2_key,
        )
        self.is_query_key = is_query_key
        self.is_gallery_key = is_gallery_key
        for column, key in ((IS_QUERY_COLUMN, is_query_key), (IS_GALLERY_COLUMN, is_gallery_key)):
            role = self.df[column].astype(object)
            if (bad := ~role.isin([True, False])).any():
                raise TableError(
                    f"{type(self).__name__} needs true or false in the column {column}, "
                    f"not so in {rows_where(bad, role)}."
                )
            self._columns[key] = role.astype(bool).tolist()
        self._check_extra_data()


def get_retrieval_datasets(
    dataset_root: Path | str,
    transforms_train: Transform | None,
    transforms_val: Transform | None,
    f_imread_train: TImReader | None = None,
    f_imread_val: TImReader | None = None,
    dataframe_name: str = "df.csv",
    verbose: bool = True,
) -> tuple[DatasetWithLabels, DatasetQueryGallery]:
    """The train and the validation part of the table ``dataset_root / dataframe_name``, once it is checked.

    Train labels are renumbered to ``0 .. n_labels - 1`` in their sorted order, as classification losses need them;
    validation labels stay as they are in the table.

    Raises:
        TableError: if the table breaks the format.
    """
    root = Path(dataset_root)
    table = pd.read_csv(root / dataframe_name, index_col=None)
    check_retrieval_dataframe_format(table, dataset_root=root, verbose=verbose)
    train = table[table[SPLIT_COLUMN] == TRAIN_SPLIT].copy()
    train[LABELS_COLUMN] = np.unique(train[LABELS_COLUMN], return_inverse=True)[1]
    validation = table[table[SPLIT_COLUMN] == VALIDATION_SPLIT]
    return (
        DatasetWithLabels(train, dataset_root=root, transform=transforms_train, f_imread=f_imread_train),
        DatasetQueryGallery(validation, dataset_root=root, transform=transforms_val, f_imread=f_imread_val),
    )


def _require_columns(owner: str, df: DataFrame, columns: Sequence[str]) -> None:
    if missing := [column for column in columns if column not in df.columns]:
        raise TableError(f"{owner} needs the columns {missing}; the table has {list(df.columns)}.")
    if df.empty:
        raise TableError(f"{owner} needs at least one row; the table has none.")
