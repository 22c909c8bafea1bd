"""Images without labels, by their paths."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pandas import DataFrame
from torch.utils.data import Dataset

from oml.const import (
    INDEX_KEY,
    INPUT_TENSORS_KEY,
    LABELS_COLUMN,
    PATHS_COLUMN,
    PATHS_KEY,
    X1_COLUMN,
    X2_COLUMN,
    Y1_COLUMN,
    Y2_COLUMN,
)
from oml.datasets.base import BaseDataset
from oml.datasets.image_files import OnUnreadable
from oml.transforms.images.utils import TTransforms
from oml.utils.images.images import TImReader

TBBox = tuple[int, int, int, int]
TBBoxes = Sequence[TBBox | None]

NO_LABEL = "none"


class ListDataset(Dataset):
    """Unlabelled images, each with a box or whole.

    ``ds[i]`` is a dict as that of :class:`oml.datasets.base.BaseDataset`, the label being the text ``none``.

    Args:
        filenames_list: of the images; one with several boxes stands there as often.
        bboxes: x1, y1, x2, y2 for each of them, or ``None`` for the whole image; ``None`` if there are none at all.
        transform, f_imread, cache_size, input_tensors_key, index_key, on_unreadable: see
            :class:`oml.datasets.base.BaseDataset`.

    Raises:
        ValueError: for another number of boxes than of paths, or malformed boxes.
        TableError: if there are no paths, or some files do not exist.
    """

    def __init__(
        self,
        filenames_list: Sequence[Path | str],
        bboxes: TBBoxes | None = None,
        transform: TTransforms | None = None,
        f_imread: TImReader | None = None,
        input_tensors_key: str = INPUT_TENSORS_KEY,
        cache_size: int | None = 0,
        index_key: str = INDEX_KEY,
        on_unreadable: OnUnreadable = "raise",
    ) -> None:
        if isinstance(filenames_list, str | Path):
            raise TypeError(f"ListDataset needs a list of paths, got the path {str(filenames_list)!r} alone.")
        df = DataFrame({LABELS_COLUMN: NO_LABEL, PATHS_COLUMN: [str(path) for path in filenames_list]})
        if bboxes is not None:
            if len(bboxes) != len(filenames_list):
                raise ValueError(
                    f"ListDataset needs a box or None for every path, got {len(bboxes)} boxes for "
                    f"{len(filenames_list)} paths."
                )
            if bad := [i for i, box in enumerate(bboxes) if box is not None and len(box) != 4]:
                raise ValueError(
                    f"ListDataset needs boxes of four numbers, x1, y1, x2, y2; not so the boxes {bad[:3]}"
                    f"{f' and {len(bad) - 3} more' if len(bad) > 3 else ''}."
                )
            sides = np.array([(np.nan,) * 4 if box is None else box for box in bboxes], dtype=float).reshape(-1, 4)
            df[[X1_COLUMN, Y1_COLUMN, X2_COLUMN, Y2_COLUMN]] = sides
        self._dataset = BaseDataset(
            df,
            transform=transform,
            f_imread=f_imread,
            cache_size=cache_size,
            input_tensors_key=input_tensors_key,
            index_key=index_key,
            on_unreadable=on_unreadable,
        )
        self.input_tensors_key = input_tensors_key
        self.index_key = index_key
        self.paths_key = PATHS_KEY

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        return self._dataset[idx]

    def __getitems__(self, ids: Sequence[int]) -> list[dict[str, Any]]:
        """The items of one batch, as a ``DataLoader`` asks for them."""
        return self._dataset.__getitems__(ids)

    def __repr__(self) -> str:
        return f"ListDataset({len(self)} items)"
