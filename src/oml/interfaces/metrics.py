"""What turns a validation epoch into numbers and pictures."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from oml.const import OVERALL_CATEGORIES_KEY

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class IBasicMetric(ABC):
    """A metric over a whole epoch: ``setup``, then ``update_data`` batch by batch, then ``compute_metrics``."""

    metric_name: str = "BASE"
    overall_categories_key: str = OVERALL_CATEGORIES_KEY

    @abstractmethod
    def setup(self, num_samples: int) -> None:
        """Forget everything and expect ``num_samples`` items."""

    @abstractmethod
    def update_data(self, data_dict: dict[str, Any]) -> None:
        """Take in one batch."""

    @abstractmethod
    def compute_metrics(self) -> Mapping[Any, Mapping[str, Any]]:
        """``{"OVERALL": {...}, "<category>": {...}}``; categories are optional."""


class IMetricDDP(IBasicMetric):
    """A metric over what several processes saw together."""

    @abstractmethod
    def sync(self) -> None:
        """Bring together what all processes took in. Each calls it once, before ``compute_metrics``."""


class IMetricVisualisable(IBasicMetric):
    """A metric that can draw what it saw."""

    @abstractmethod
    def visualize(self) -> tuple[list["Figure"], list[str]]:
        """Figures and as many titles."""

    @abstractmethod
    def ready_to_visualize(self) -> bool:
        """Whether the metric was given what it needs to draw."""
