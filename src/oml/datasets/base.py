"""Data sets of images, made from rows of the retrieval table."""

import os
from collections.abc import Mapping, Sequence
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
    SEQUENCE_COLUMN,
    SEQUENCE_KEY,
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
from oml.datasets._table_rules import rows_where
from oml.datasets.image_files import ImageFiles, OnUnreadable, readable_batch
from oml.datasets.table import TableError, check_items, check_retrieval_dataframe_format, read_table
from oml.interfaces.datasets import IDatasetQueryGallery, IDatasetWithLabels
from oml.transforms.images.torchvision import get_normalisation_torch
from oml.transforms.images.utils import TTransforms, as_callable, get_im_reader_for_transforms
from oml.utils.images.images import TImReader


class BaseDataset(Dataset):
    """Images by the rows of a table. ``ds[i]`` is a dict with these entries:

    ============================  ========================================================================
    ``input_tensors``             what the transform made of the image, or of the part inside its box
    ``labels``                    the cell of the table
    ``paths``                     str, the root joined
    ``idx``                       ``i``
    ``categories``                if the table has the column
    ``sequence``                  if the table has the column: a number for each value in it, -1 for empty cells
    ``x1``, ``y1``, ``x2``, ``y2``  the pixels that were taken, if the table has boxes
    names in ``extra_data``       their entry of this row
    ============================  ========================================================================

    Args:
        df: rows of a retrieval table; the columns ``label`` and ``path`` are needed. It is copied.
        extra_data: name -> one entry per row, such as embeddings made before.
        transform: image -> tensor, of torchvision or albumentations or any function; by default normalisation alone,
            so sizes stay as they are.
        dataset_root: the folder that relative paths refer to.
        f_imread: the bytes of an image file -> image as the transform wants it; by default chosen for the transform,
            see :func:`oml.transforms.images.utils.get_im_reader_for_transforms`. With a
            :class:`~oml.utils.images.images.ShrinkingReader`, JPEG files are decoded at a reduced scale.
        cache_size: bytes of decoded images to keep between epochs; all worker processes share them. 0 keeps none.
        input_tensors_key, labels_key, ...: the names of an item's entries.
        on_unreadable: ``raise``, or ``skip`` to leave items whose image cannot be read out of their batches with a
            warning that names them; ``idx`` tells who is there. A ``DataLoader`` gets that from ``__getitems__``;
            ``ds[i]`` raises, and so does a batch of which nothing is left.

    Raises:
        TableError: if a column is missing, there are no rows, files do not exist or boxes are malformed.
        ValueError: if ``extra_data`` does not fit the table, or ``cache_size`` is negative.
        TypeError: if the transform is no function.
    """

    _needs_whole_labels = False

    def __init__(
        self,
        df: DataFrame,
        extra_data: Mapping[str, Sequence[Any] | np.ndarray | pd.Series | Tensor] | None = None,
        transform: TTransforms | None = None,
        dataset_root: Path | str | None = None,
        f_imread: TImReader | None = None,
        cache_size: int | None = 0,
        input_tensors_key: str = INPUT_TENSORS_KEY,
        labels_key: str = LABELS_KEY,
        paths_key: str = PATHS_KEY,
        categories_key: str = CATEGORIES_KEY,
        x1_key: str = X1_KEY,
        x2_key: str = X2_KEY,
        y1_key: str = Y1_KEY,
        y2_key: str = Y2_KEY,
        index_key: str = INDEX_KEY,
        sequence_key: str = SEQUENCE_KEY,
        on_unreadable: OnUnreadable = "raise",
    ) -> None:
        owner = type(self).__name__
        if on_unreadable not in ("raise", "skip"):
            raise ValueError(f"{owner} knows on_unreadable 'raise' and 'skip', got {on_unreadable!r}.")
        if transform is not None and (not callable(transform) or isinstance(transform, type)):
            raise TypeError(
                f"{owner} needs a transform of torchvision or albumentations, or another function of an image, got "
                f"{transform!r}. oml.registry.transforms.get_transforms makes one of a name."
            )
        _require_columns(owner, df, (LABELS_COLUMN, PATHS_COLUMN))
        self.df = df.reset_index(drop=True)
        root = Path(dataset_root or "")
        check_items(owner, self.df, root, whole_labels=self._needs_whole_labels)
        paths = [os.fspath(path) for path in self.df[PATHS_COLUMN]]
        if dataset_root is not None:  # not by Path, which takes seconds for a million rows
            paths = [os.path.join(root, path) for path in paths]  # noqa: PTH118
        self.df[PATHS_COLUMN] = paths
        # by position, whatever the index of a Series
        self.extra_data = {
            name: values.to_numpy() if isinstance(values, pd.Series) else values
            for name, values in (extra_data or {}).items()
        }
        self.transform = get_normalisation_torch() if transform is None else transform
        self.f_imread = get_im_reader_for_transforms(self.transform) if f_imread is None else f_imread
        self.on_unreadable: OnUnreadable = on_unreadable
        self._apply = as_callable(self.transform)

        self.bboxes_exist = set(BBOXES_COLUMNS) <= set(self.df.columns)
        self.input_tensors_key = input_tensors_key
        self.labels_key = labels_key
        self.paths_key = paths_key
        self.index_key = index_key
        self.categories_key = categories_key if CATEGORIES_COLUMN in self.df.columns else None
        self.sequence_key = sequence_key if SEQUENCE_COLUMN in self.df.columns else None
        self.x1_key, self.y1_key, self.x2_key, self.y2_key = (
            (x1_key, y1_key, x2_key, y2_key) if self.bboxes_exist else (None,) * 4
        )

        # lists, for an item should not cost a look-up in a data frame
        self._columns = {labels_key: self.df[LABELS_COLUMN].tolist(), paths_key: paths}
        if self.categories_key is not None:
            self._columns[self.categories_key] = self.df[CATEGORIES_COLUMN].tolist()
        if self.sequence_key is not None:
            self._columns[self.sequence_key] = pd.factorize(self.df[SEQUENCE_COLUMN])[0].tolist()
        box_columns = [X1_COLUMN, Y1_COLUMN, X2_COLUMN, Y2_COLUMN]
        boxes = self.df[box_columns].to_numpy(dtype=float, na_value=np.nan) if self.bboxes_exist else None
        self._images = ImageFiles(owner, paths, boxes, self.f_imread, cache_size, df.index.tolist())
        self._check_extra_data()

    @property
    def bboxes_keys(self) -> tuple[str, ...]:
        """The keys of x1, y1, x2, y2; empty if the table has no boxes."""
        keys = (self.x1_key, self.y1_key, self.x2_key, self.y2_key)
        return tuple(key for key in keys if key is not None)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        idx = range(len(self))[idx]  # an IndexError where a loop over the items has to end
        image, box = self._images.load(idx)
        return {
            self.input_tensors_key: self._apply(image),
            **{key: column[idx] for key, column in self._columns.items()},
            **dict(zip(self.bboxes_keys, box, strict=False)),
            **{key: values[idx] for key, values in self.extra_data.items()},
            self.index_key: idx,
        }

    def __getitems__(self, ids: Sequence[int]) -> list[dict[str, Any]]:
        """The items of one batch, as a ``DataLoader`` asks for them; without unreadable ones if they are skipped."""
        return readable_batch(self.__getitem__, ids, self.on_unreadable)

    def get_labels(self) -> np.ndarray:
        """The label of every item, in order."""
        return self.df[LABELS_COLUMN].to_numpy(copy=True)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} items of {self.df[LABELS_COLUMN].nunique()} labels)"

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
    """Labelled images for training; arguments and items as in :class:`BaseDataset`. Labels are whole numbers."""

    _needs_whole_labels = True

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

    _needs_whole_labels = True

    def __init__(
        self,
        df: DataFrame,
        extra_data: Mapping[str, Sequence[Any] | np.ndarray | pd.Series | Tensor] | None = None,
        dataset_root: Path | str | None = None,
        transform: TTransforms | None = None,
        f_imread: TImReader | None = None,
        cache_size: int | None = 0,
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
        sequence_key: str = SEQUENCE_KEY,
        on_unreadable: OnUnreadable = "raise",
    ) -> None:
        owner = type(self).__name__
        _require_columns(owner, df, (IS_QUERY_COLUMN, IS_GALLERY_COLUMN))
        super().__init__(
            df=df,
            extra_data=extra_data,
            transform=transform,
            dataset_root=dataset_root,
            f_imread=f_imread,
            cache_size=cache_size,
            input_tensors_key=input_tensors_key,
            labels_key=labels_key,
            paths_key=paths_key,
            categories_key=categories_key,
            x1_key=x1_key,
            x2_key=x2_key,
            y1_key=y1_key,
            y2_key=y2_key,
            sequence_key=sequence_key,
            on_unreadable=on_unreadable,
        )
        self.is_query_key = is_query_key
        self.is_gallery_key = is_gallery_key
        for column, key in ((IS_QUERY_COLUMN, is_query_key), (IS_GALLERY_COLUMN, is_gallery_key)):
            role = self.df[column].astype(object)
            if (bad := ~role.isin([True, False])).any():
                raise TableError(
                    f"{owner} needs true or false in the column {column}, not so in {rows_where(bad, role)}."
                )
            self._columns[key] = role.astype(bool).tolist()
        self._check_extra_data()


def get_retrieval_datasets(
    dataset_root: Path | str,
    transforms_train: TTransforms | None,
    transforms_val: TTransforms | None,
    f_imread_train: TImReader | None = None,
    f_imread_val: TImReader | None = None,
    dataframe_name: str = "df.csv",
    cache_size: int | None = 0,
    verbose: bool = True,
    sep: str = ",",
    on_unreadable: OnUnreadable = "raise",
) -> tuple[DatasetWithLabels, DatasetQueryGallery]:
    """The train and the validation part of the table ``dataset_root / dataframe_name``, once it is checked.

    Train labels are renumbered to ``0 .. n_labels - 1`` in their sorted order, as classification losses need them;
    validation labels stay as they are in the table.

    Args:
        dataset_root: the folder of the table, which its paths are relative to.
        transforms_train, transforms_val, f_imread_train, f_imread_val, cache_size, on_unreadable: see
            :class:`BaseDataset`; each of the two data sets has a cache of that size.
        dataframe_name: of the table, a CSV or Parquet file.
        verbose: warn of what is legal but trains badly.
        sep: between the cells of a CSV file.

    Raises:
        TableError: if the table breaks the format, or lacks train or validation rows.
    """
    root = Path(dataset_root)
    table = read_table(root / dataframe_name, sep)
    check_retrieval_dataframe_format(table, dataset_root=root, verbose=verbose)
    train, validation = (table[table[SPLIT_COLUMN] == split] for split in (TRAIN_SPLIT, VALIDATION_SPLIT))
    if train.empty or validation.empty:
        raise TableError(
            f"get_retrieval_datasets needs train and validation rows, {str(root / dataframe_name)!r} has {len(train)} "
            f"and {len(validation)}. Make the data set of one split with DatasetWithLabels or DatasetQueryGallery."
        )
    train = train.assign(**{LABELS_COLUMN: np.unique(train[LABELS_COLUMN], return_inverse=True)[1]})
    return (
        DatasetWithLabels(train, None, transforms_train, root, f_imread_train, cache_size, on_unreadable=on_unreadable),
        DatasetQueryGallery(
            validation, None, root, transforms_val, f_imread_val, cache_size, on_unreadable=on_unreadable
        ),
    )


def _require_columns(owner: str, df: DataFrame, columns: Sequence[str]) -> None:
    if twice := df.columns[df.columns.duplicated()].tolist():
        raise TableError(f"{owner} needs columns of different names; {twice} occur more than once.")
    if missing := [column for column in columns if column not in df.columns]:
        raise TableError(f"{owner} needs the columns {missing}; the table has {list(df.columns)}.")
    if df.empty:
        raise TableError(f"{owner} needs at least one row; the table has none.")
