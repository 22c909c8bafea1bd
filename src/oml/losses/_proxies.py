"""What losses with a vector per label share."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from oml.functional.label_smoothing import check_epsilon, label_smoothing
from oml.functional.labels import checked_labels
from oml.functional.losses import Reduction, check_reduction
from oml.functional.proxies import cosines_to_nearest_centers
from oml.interfaces.miners import TLabels


def check_sizes(owner: str, **sizes: int) -> None:
    """Raise ``ValueError`` unless all of them are at least 1."""
    if wrong := {name: size for name, size in sizes.items() if size < 1}:
        raise ValueError(f"{owner} needs sizes of at least 1, got {wrong}.")


def checked_batch(
    owner: str, embeddings: Tensor, labels: TLabels, n_labels: int, in_features: int
) -> Int[Tensor, " batch"]:
    """The labels as int64; raise ``ValueError`` unless the batch fits a table of ``n_labels`` by ``in_features``."""
    if embeddings.ndim != 2 or embeddings.shape[1] != in_features:
        raise ValueError(
            f"{owner} needs embeddings of shape (batch, {in_features}), as it was built with "
            f"in_features={in_features}; got {tuple(embeddings.shape)}."
        )
    return checked_labels(owner, embeddings, labels, n_labels)


@torch.no_grad()
def accuracy_logs(cosines: Float[Tensor, "batch label"], labels: Int[Tensor, " batch"]) -> dict[str, Tensor]:
    """The share of embeddings that are nearest to the proxy of their own label; nothing for an empty batch."""
    return {"accuracy": (cosines.argmax(dim=1) == labels).float().mean()} if len(labels) else {}


class MarginSoftmaxLoss(nn.Module, ABC):
    """Cross-entropy over scaled cosines, those with the own label's proxy lowered by a margin; leaves say how."""

    criterion_name: str
    label2category: Int[Tensor, " label"] | None

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        m: int | float,
        max_m: int | float,
        s: int | float,
        smoothing_epsilon: int | float | None,
        label2category: Mapping[int, Any] | None,
        reduction: Reduction,
        n_centers: int = 1,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        check_sizes(name, in_features=in_features, num_classes=num_classes, n_centers=n_centers)
        check_reduction(name, reduction)
        check_epsilon(name, smoothing_epsilon or 0)
        if not (0 <= m <= max_m and s > 0):
            raise ValueError(f"{name} needs a margin m of 0 to {max_m:.4g} and a scale s above 0, got {m} and {s}.")
        self.num_classes = num_classes
        self.n_centers = n_centers
        self.m = m
        self.rescale = s
        self.smoothing_epsilon = smoothing_epsilon
        self.last_logs: dict[str, Tensor] = {}
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(num_classes * n_centers, in_features)))
        # not in checkpoints, as the constructor gets it anyway: weights load with and without categories
        categories = None if label2category is None else _category_ids(name, num_classes, label2category)
        self.register_buffer("label2category", categories, persistent=False)
        # smoothing over all labels is built in, and needs no targets of the size of the logits
        self._smooths_in_categories = bool(smoothing_epsilon) and categories is not None
        built_in = 0.0 if self._smooths_in_categories else float(smoothing_epsilon or 0)
        self.criterion = nn.CrossEntropyLoss(reduction=reduction, label_smoothing=built_in)

    def forward(self, features: Float[Tensor, "batch dim"], labels: TLabels) -> Float[Tensor, "..."]:
        """The loss of the batch, or one per item if the reduction is ``none``; labels are 0 to ``num_classes - 1``."""
        in_features = self.weight.shape[1]
        return self.of_checked(
            features, checked_batch(type(self).__name__, features, labels, self.num_classes, in_features)
        )

    def of_checked(self, features: Float[Tensor, "batch dim"], labels: Int[Tensor, " batch"]) -> Float[Tensor, "..."]:
        """The loss, without a look at the labels: that makes a GPU wait, so once a step is enough."""
        cosines = self.fc(features)
        self.last_logs = accuracy_logs(cosines, labels)
        logits = self._logits(cosines, labels)
        if len(labels) == 0 and self.criterion.reduction == "mean":
            return logits.sum()  # the mean over nothing is NaN; the sum is 0 and keeps the graph
        return self.criterion(logits, self.smooth_labels(labels) if self._smooths_in_categories else labels)

    def fc(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch label"]:
        """Cosines with the proxies, of each label the nearest, without margin and scale."""
        return cosines_to_nearest_centers(x, self.weight, self.n_centers)

    def smooth_labels(self, y: Int[Tensor, " batch"]) -> Float[Tensor, "batch label"]:
        """The probabilities that the loss takes for the truth, see :func:`label_smoothing`."""
        return label_smoothing(y, self.num_classes, self.smoothing_epsilon or 0, self.label2category)

    @abstractmethod
    def _logits(
        self, cosines: Float[Tensor, "batch label"], labels: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch label"]:
        """Scaled cosines, with the margin at the labels."""


def _category_ids(owner: str, num_classes: int, label2category: Mapping[int, Any]) -> Int[Tensor, " label"]:
    if missing := [label for label in range(num_classes) if label not in label2category]:
        raise ValueError(
            f"{owner} needs the category of each of the labels 0 to {num_classes - 1}; {len(missing)} have none in "
            f"label2category, such as {missing[:3]}."
        )
    categories = [label2category[label] for label in range(num_classes)]
    try:
        ids = {category: i for i, category in enumerate(sorted(set(categories)))}
    except TypeError as error:
        raise TypeError(f"{owner} needs categories that can be sorted, all of one type: {error}.") from error
    return torch.tensor([ids[category] for category in categories])
