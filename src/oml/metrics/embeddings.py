"""Retrieval metrics of an epoch's embeddings, overall and by category, with pictures of the mistakes."""

from collections.abc import Iterator, Sequence
from pprint import pformat
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from oml.const import (
    EMBEDDINGS_KEY,
    IS_GALLERY_KEY,
    IS_QUERY_KEY,
    LABELS_KEY,
    LOG_TOPK_IMAGES_PER_ROW,
    LOG_TOPK_ROWS_PER_METRIC,
    PATHS_KEY,
    X1_KEY,
    X2_KEY,
    Y1_KEY,
    Y2_KEY,
)
from oml.functional.ranking import average_precision_at_k, cmc_at_k, precision_at_k
from oml.functional.topology import pcf
from oml.interfaces.metrics import IMetricVisualisable
from oml.metrics.accumulation import Accumulator
from oml.retrieval import RetrievalResults

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: category -> metric -> k (or share of variance) -> value
TMetricsDict_ByLabels = dict[str | int, dict[str, dict[int | float, Tensor]]]


class EmbeddingMetrics(IMetricVisualisable):
    """cmc, precision and map over the queries, and pcf over all embeddings.

    An item that is query and gallery never retrieves itself. Distances are L2. ``k`` beyond the gallery means the
    whole gallery. See :mod:`oml.functional.ranking` for the formulas: precision divides by ``min(k, n_relevant)``,
    map by the relevant items found.

    Args:
        embeddings_key, labels_key, is_query_key, is_gallery_key: entries of a batch to work on.
        extra_keys: further entries to keep; ``"paths"`` for pictures, and ``"x1", "y1", "x2", "y2"`` for boxes in them.
        cmc_top_k, precision_top_k, map_top_k: values of ``k``; an empty tuple switches the metric off.
        pfc_variance: shares of variance of which to tell the fraction of principal components.
        categories_key: entry with the category of each item: metrics are told for every category among the
            queries as well, each against the whole gallery.
        metrics_to_exclude_from_visualization: names such as ``cmc`` or categories not to draw.
        return_only_main_category: leave the categories out of what ``compute_metrics`` returns.
        visualize_only_main_category: draw nothing by category.
        on_missing: what to do about queries that have nothing to find in the gallery: ``raise``, or ``ignore`` to
            leave them out of all metrics, with a warning.
        sequence_key: entry with the number of the sequence that each item is from, -1 for none: a query does not
            retrieve items of its own sequence.
        verbose: print the metrics once they are computed.

    Attributes:
        metrics: the numbers, ``{"OVERALL": {"cmc": {1: tensor(0.9)}, ...}, ...}``.
        metrics_unreduced: the same with one value per query.
        results: the ranking they come from.
        acc: what was collected.
    """

    metric_name = ""

    def __init__(
        self,
        embeddings_key: str = EMBEDDINGS_KEY,
        labels_key: str = LABELS_KEY,
        is_query_key: str = IS_QUERY_KEY,
        is_gallery_key: str = IS_GALLERY_KEY,
        extra_keys: Sequence[str] = (),
        cmc_top_k: Sequence[int] = (5,),
        precision_top_k: Sequence[int] = (5,),
        map_top_k: Sequence[int] = (5,),
        pfc_variance: Sequence[float] = (0.5,),
        categories_key: str | None = None,
        metrics_to_exclude_from_visualization: Sequence[str] = (),
        return_only_main_category: bool = False,
        visualize_only_main_category: bool = True,
        on_missing: Literal["raise", "ignore"] = "raise",
        verbose: bool = True,
        sequence_key: str | None = None,
    ) -> None:
        if not (cmc_top_k or precision_top_k or map_top_k):
            raise ValueError("EmbeddingMetrics needs at least one of cmc_top_k, precision_top_k, map_top_k.")
        for name, values in (("cmc", cmc_top_k), ("precision", precision_top_k), ("map", map_top_k)):
            if bad := [k for k in values if not isinstance(k, int) or k < 1]:
                raise ValueError(f"EmbeddingMetrics needs whole numbers of 1 or more in {name}_top_k, got {bad}.")
        if bad := [share for share in pfc_variance if not 0 <= share <= 1]:
            raise ValueError(f"EmbeddingMetrics needs shares between 0 and 1 in pfc_variance, got {bad}.")
        if isinstance(extra_keys, str):
            raise ValueError(f"EmbeddingMetrics needs a sequence of names in extra_keys, got the text {extra_keys!r}.")
        self.embeddings_key = embeddings_key
        self.labels_key = labels_key
        self.is_query_key = is_query_key
        self.is_gallery_key = is_gallery_key
        self.extra_keys = tuple(extra_keys)
        self.cmc_top_k = tuple(cmc_top_k)
        self.precision_top_k = tuple(precision_top_k)
        self.map_top_k = tuple(map_top_k)
        self.pfc_variance = tuple(pfc_variance)
        self.categories_key = categories_key
        self.not_to_draw = {"pcf", *metrics_to_exclude_from_visualization}
        self.return_only_main_category = return_only_main_category
        self.visualize_only_main_category = visualize_only_main_category
        self.on_missing: Literal["raise", "ignore"] = on_missing
        self.verbose = verbose
        self.sequence_key = sequence_key

        keys = [embeddings_key, labels_key, is_query_key, is_gallery_key, *self.extra_keys]
        keys += [key for key in (categories_key, sequence_key) if key is not None]
        self.acc = Accumulator(dict.fromkeys(keys))
        self.results: RetrievalResults | None = None
        self.metrics: TMetricsDict_ByLabels = {}
        self.metrics_unreduced: TMetricsDict_ByLabels = {}
        self._rows: dict[str | int, Tensor] = {}  # category -> its queries, by their position among all queries

    def setup(self, num_samples: int) -> None:
        """Forget everything and expect ``num_samples`` items."""
        self.results = None
        self.metrics = {}
        self.metrics_unreduced = {}
        self._rows = {}
        self.acc.refresh(num_samples)

    def update_data(self, data_dict: dict[str, Any]) -> None:
        """Take in one batch."""
        self.acc.update_data(data_dict)

    def compute_metrics(self) -> TMetricsDict_ByLabels:
        """All metrics, each averaged over its queries.

        Raises:
            ValueError: if not all expected items came, or a query has nothing to find and ``on_missing="raise"``
                (then it is an ``AssertionError`` too).
        """
        if not self.acc.is_storage_full():
            raise ValueError(
                f"EmbeddingMetrics needs all {self.acc.num_samples} items that setup() was told of, "
                f"{self.acc.collected_samples} came."
            )
        embeddings = torch.as_tensor(self.acc.storage[self.embeddings_key])
        self.results = self._retrieve(
            torch.as_tensor(self.acc.storage[self.is_query_key]).bool(),
            max(*self.cmc_top_k, *self.precision_top_k, *self.map_top_k, LOG_TOPK_IMAGES_PER_ROW),
        )
        per_query = self._per_query(self.results)
        self._rows = {self.overall_categories_key: torch.arange(len(self.results))}
        members: dict[str | int, Tensor] = {self.overall_categories_key: torch.arange(len(embeddings))}
        if self.categories_key is not None:
            members |= _positions(self.acc.storage[self.categories_key])
            query_categories = np.asarray(self.acc.storage[self.categories_key])[self.results.query_ids.numpy()]
            self._rows |= _positions(query_categories)
            if len(self._rows[self.overall_categories_key]) != len(self.results):
                raise ValueError(f"EmbeddingMetrics keeps the name {self.overall_categories_key!r} for all categories.")

        for category, rows in self._rows.items():
            values = {name: {k: value[rows] for k, value in by_k.items()} for name, by_k in per_query.items()}
            means = {name: {k: value.mean() for k, value in by_k.items()} for name, by_k in values.items()}
            if self.pfc_variance:
                fractions = pcf(embeddings[members[category]], self.pfc_variance)
                values["pcf"] = means["pcf"] = dict(zip(self.pfc_variance, fractions, strict=True))
            self.metrics_unreduced[category] = values
            self.metrics[category] = means

        if self.verbose:
            print(f"\nMetrics:\n{pformat(self.metrics)}")  # noqa: T201 (asked for by the argument)
        if self.return_only_main_category:
            return {self.overall_categories_key: self.metrics[self.overall_categories_key]}
        return dict(self.metrics)

    def _retrieve(self, is_query: Tensor, top_k: int) -> RetrievalResults:
        return RetrievalResults.from_embeddings(
            torch.as_tensor(self.acc.storage[self.embeddings_key]),
            labels=torch.as_tensor(self.acc.storage[self.labels_key]),
            is_query=is_query,
            is_gallery=torch.as_tensor(self.acc.storage[self.is_gallery_key]).bool(),
            top_k=top_k,
            sequences=None if self.sequence_key is None else torch.as_tensor(self.acc.storage[self.sequence_key]),
            on_missing=self.on_missing,
        )

    def _per_query(self, results: RetrievalResults) -> dict[str, dict[int | float, Tensor]]:
        values: dict[str, dict[int | float, Tensor]] = {
            "cmc": {k: cmc_at_k(results.is_relevant, k) for k in self.cmc_top_k},
            "precision": {k: precision_at_k(results.is_relevant, results.n_relevant, k) for k in self.precision_top_k},
            "map": {k: average_precision_at_k(results.is_relevant, k) for k in self.map_top_k},
        }
        return {name: by_k for name, by_k in values.items() if by_k}

    def ready_to_visualize(self) -> bool:
        """Whether ``"paths"`` is among ``extra_keys``."""
        return PATHS_KEY in self.extra_keys

    def visualize(self) -> tuple[list["Figure"], list[str]]:
        """For each metric a picture of its worst queries, and a title for each."""
        self._checked_to_draw()
        names = [name for name, path in self._names() if not self.not_to_draw.intersection(path)]
        if self.visualize_only_main_category:
            names = [name for name in names if name.startswith(f"{self.overall_categories_key}/")]
        figures = [
            self.get_plot_for_worst_queries(name, LOG_TOPK_ROWS_PER_METRIC, LOG_TOPK_IMAGES_PER_ROW) for name in names
        ]
        titles = [f"top {LOG_TOPK_ROWS_PER_METRIC} worst by {name.replace('/', '_')}" for name in names]
        return figures, titles

    def get_worst_queries_ids(self, metric_name: str, n_queries: int) -> list[int]:
        """Which queries, by their position among all queries, have the smallest values of a metric.

        Args:
            metric_name: such as ``OVERALL/map/5`` or ``<category>/cmc/1``.
            n_queries: how many at most.
        """
        by_name = dict(self._names())
        if metric_name not in by_name:
            raise ValueError(f"No metric is called {metric_name!r}; there are {', '.join(by_name) or 'none yet'}.")
        category, metric, k = by_name[metric_name]
        if metric == "pcf":
            raise ValueError(f"{metric_name!r} has no value per query.")
        order = self.metrics_unreduced[category][metric][k].argsort(stable=True)
        return self._rows[category][order[:n_queries]].tolist()

    def get_plot_for_worst_queries(
        self, metric_name: str, n_queries: int, n_instances: int, verbose: bool = False
    ) -> "Figure":
        """Picture of the queries with the smallest values of a metric, see :meth:`get_plot_for_queries`."""
        return self.get_plot_for_queries(self.get_worst_queries_ids(metric_name, n_queries), n_instances, verbose)

    def get_plot_for_queries(self, query_ids: Sequence[int], n_instances: int, verbose: bool = False) -> "Figure":
        """A row of images per query: the query, its ``n_instances`` nearest galleries, what it should have found.

        Args:
            query_ids: positions among the queries, in the order of the data.
            n_instances: how many of the retrieved items to draw.
            verbose: print the path of each query.
        """
        results, rows = self._checked_to_draw(), list(query_ids)
        if bad := [row for row in query_ids if not 0 <= row < len(results)]:
            raise ValueError(f"EmbeddingMetrics has {len(results)} queries, there is no query {bad[:3]}.")
        if n_instances > results.retrieved_ids.shape[1]:
            chosen = results.query_ids[rows].unique()
            is_query = torch.zeros(len(self.acc.storage[self.is_query_key]), dtype=torch.bool)
            is_query[chosen] = True
            rows = torch.searchsorted(chosen, results.query_ids[rows]).tolist()
            results = self._retrieve(is_query, n_instances)
        paths = [str(path) for path in self.acc.storage[PATHS_KEY]]
        if verbose:
            for query, row in zip(query_ids, rows, strict=True):
                print(f"query {query}: {paths[results.query_ids[row]]}")  # noqa: T201 (asked for by the argument)
        return results.visualize(paths, rows, n_instances, boxes=self._boxes())

    def _checked_to_draw(self) -> RetrievalResults:
        if self.results is None:
            raise ValueError("EmbeddingMetrics needs compute_metrics() before it can draw.")
        if not self.ready_to_visualize():
            raise ValueError(f"EmbeddingMetrics needs {PATHS_KEY!r} among its extra_keys to draw.")
        return self.results

    def _boxes(self) -> Tensor | None:
        keys = (X1_KEY, Y1_KEY, X2_KEY, Y2_KEY)
        if not set(keys) <= set(self.extra_keys):
            return None
        return torch.stack([torch.as_tensor(self.acc.storage[key]) for key in keys], dim=1)

    def _names(self) -> Iterator[tuple[str, tuple[str | int, str, int | float]]]:
        """``OVERALL/map/5`` and its parts, for all metrics."""
        for category, by_metric in self.metrics.items():
            for metric, by_k in by_metric.items():
                for k in by_k:
                    yield f"{category}/{metric}/{k}", (category, metric, k)


def _positions(categories: Any) -> dict[str | int, Tensor]:
    """The positions of every category, in one pass."""
    values, inverse = np.unique(np.asarray(categories), return_inverse=True)
    order = torch.from_numpy(np.argsort(inverse, kind="stable"))
    counts = np.bincount(inverse, minlength=len(values)).tolist()
    return dict(zip(values.tolist(), order.split(counts), strict=True))
