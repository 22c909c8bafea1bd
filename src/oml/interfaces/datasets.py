"""Data sets by the role they play; ``ds[i]`` is a dict whose keys are attributes of the data set."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from oml.const import (
    INDEX_KEY,
    INPUT_TENSORS_KEY,
    IS_GALLERY_KEY,
    IS_QUERY_KEY,
    LABELS_KEY,
    PAIR_1ST_KEY,
    PAIR_2ND_KEY,
)


class IDatasetWithLabels(Dataset, ABC):
    """Labelled items, for training."""

    input_tensors_key: str = INPUT_TENSORS_KEY
    labels_key: str = LABELS_KEY
    index_key: str = INDEX_KEY

    @abstractmethod
    def __getitem__(self, idx: int) -> dict[str, Any]:
        """A dict with the input tensor, the label and ``idx`` itself."""

    @abstractmethod
    def get_labels(self) -> np.ndarray:
        """The label of every item, in order."""


class IDatasetQueryGallery(Dataset, ABC):
    """Labelled items, each a query, a gallery or both, for validation."""

    input_tensors_key: str = INPUT_TENSORS_KEY
    labels_key: str = LABELS_KEY
    is_query_key: str = IS_QUERY_KEY
    is_gallery_key: str = IS_GALLERY_KEY
    index_key: str = INDEX_KEY

    @abstractmethod
    def __getitem__(self, idx: int) -> dict[str, Any]:
        """A dict with the input tensor, the label, the two roles and ``idx`` itself."""


class IPairsDataset(Dataset, ABC):
    """Pairs of items. The keys of the two members go by two spellings each, for callers of both."""

    pairs_1st_key: str = PAIR_1ST_KEY
    pairs_2nd_key: str = PAIR_2ND_KEY
    pair_1st_key: str = PAIR_1ST_KEY
    pair_2nd_key: str = PAIR_2ND_KEY
    index_key: str = INDEX_KEY

    @abstractmethod
    def __getitem__(self, idx: int) -> dict[str, Any]:
        """A dict with both members and ``idx`` itself."""
