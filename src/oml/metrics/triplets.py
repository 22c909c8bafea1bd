"""How often the positive of a triplet is nearer than the negative."""

from typing import Any

import torch
from torch import Tensor

from oml.const import EMBEDDINGS_KEY
from oml.functional.metrics import calculate_accuracy_on_triplets
from oml.interfaces.metrics import IBasicMetric
from oml.metrics.categories import positions_by_category


class AccuracyOnTriplets(IBasicMetric):
    """The share of triplets whose positive is strictly nearer than the negative, by L2 distance.

    Args:
        embeddings_key: entry of a batch with the embeddings of anchor, positive, negative, anchor, positive, and so on.
        categories_key: entry with a category per triplet, to tell the share by category too.

    Example:
        >>> metric = AccuracyOnTriplets(categories_key="categories")
        >>> metric.setup()
        >>> embeddings = torch.tensor([[0.0], [1.0], [2.0], [0.0], [5.0], [2.0]])
        >>> metric.update_data({"embeddings": embeddings, "categories": ["cat", "dog"]})
        >>> metric.compute_metrics()["cat"]
        {'accuracy_on_triplets': 1.0}
    """

    metric_name = "accuracy_on_triplets"

    def __init__(self, embeddings_key: str = EMBEDDINGS_KEY, categories_key: str | None = None) -> None:
        self.embeddings_key = embeddings_key
        self.categories_key = categories_key
        self._right: list[Tensor] = []
        self._categories: list[str | int] = []

    def setup(self, num_samples: int | None = None) -> None:  # noqa: ARG002 (of the interface)
        """Forget everything; how many items will come does not matter."""
        self._right = []
        self._categories = []

    def update_data(self, data_dict: dict[str, Any]) -> None:
        """Take in one batch.

        Raises:
            ValueError: if an entry is missing, or they do not fit.
        """
        keys = [key for key in (self.embeddings_key, self.categories_key) if key is not None]
        if missing := [key for key in keys if key not in data_dict]:
            raise ValueError(f"AccuracyOnTriplets needs the entries {missing}; the batch has {list(data_dict)}.")
        embeddings = torch.as_tensor(data_dict[self.embeddings_key]).detach()
        right = calculate_accuracy_on_triplets(embeddings, reduce_mean=False)
        if self.categories_key is not None:
            categories = data_dict[self.categories_key]
            categories = list(categories) if isinstance(categories, list | tuple) else categories.tolist()
            if len(categories) != len(right):
                raise ValueError(
                    f"AccuracyOnTriplets needs a category per triplet, got {len(categories)} for {len(right)} triplets."
                )
            self._categories += categories
        self._right.append(right.cpu())

    def merge(self, other: "AccuracyOnTriplets") -> "AccuracyOnTriplets":
        """A new metric that has taken in the triplets of both."""
        merged = AccuracyOnTriplets(self.embeddings_key, self.categories_key)
        merged._right = self._right + other._right
        merged._categories = self._categories + other._categories
        return merged

    def compute_metrics(self) -> dict[str | int, dict[str, float]]:
        """``{"OVERALL": {"accuracy_on_triplets": 0.9}, "<category>": {...}}``.

        Raises:
            ValueError: if no triplet came, or a category has the name of all.
        """
        if not self._right:
            raise ValueError("AccuracyOnTriplets needs at least one triplet, none came.")
        right = torch.cat(self._right)
        rows = {self.overall_categories_key: torch.arange(len(right))}
        if self.categories_key is not None:
            by_category = positions_by_category(self._categories)
            if self.overall_categories_key in by_category:
                raise ValueError(
                    f"AccuracyOnTriplets keeps the name {self.overall_categories_key!r} for all categories."
                )
            rows |= by_category
        return {category: {self.metric_name: right[ids].mean().item()} for category, ids in rows.items()}
