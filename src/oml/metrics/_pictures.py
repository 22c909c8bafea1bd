"""Pictures of what :class:`oml.metrics.embeddings.EmbeddingMetrics` has computed."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from oml.const import LOG_TOPK_IMAGES_PER_ROW, LOG_TOPK_ROWS_PER_METRIC, PATHS_KEY
from oml.interfaces.metrics import IMetricVisualisable
from oml.metrics._checks import BOX_KEYS, as_tensor
from oml.metrics._pairs import Pairs
from oml.metrics.accumulation import Accumulator
from oml.retrieval import RetrievalResults

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from oml.metrics.embeddings import TMetricsDict_ByLabels

NOT_BY_QUERY = ("fnmr@fmr", "pcf")


class DrawnMetrics(IMetricVisualisable):
    """Metrics with a value per query: what draws the worst queries of each, and distances of pairs."""

    acc: Accumulator
    extra_keys: tuple[str, ...]
    results: RetrievalResults | None
    metrics: "TMetricsDict_ByLabels"
    metrics_unreduced: "TMetricsDict_ByLabels"
    query_rows: dict[str | int, Tensor]
    not_to_draw: set[str]
    visualize_only_main_category: bool

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
        """Which queries have the smallest values of a metric, by their row in ``results``.

        That is their position among the queries that were evaluated: with ``on_missing="ignore"``, those that have
        something to find. ``results.query_ids[row]`` is the item.

        Args:
            metric_name: such as ``OVERALL/map/5`` or ``<category>/cmc/1``.
            n_queries: how many at most.

        Raises:
            ValueError: if there is no such metric, it has no value per query, or ``n_queries`` is negative.
        """
        if n_queries < 0:
            raise ValueError(f"EmbeddingMetrics names 0 or more of the worst queries, got n_queries={n_queries}.")
        by_name = dict(self._names())
        if metric_name not in by_name:
            raise ValueError(f"No metric is called {metric_name!r}; there are {', '.join(by_name) or 'none yet'}.")
        category, metric, k = by_name[metric_name]
        if metric in NOT_BY_QUERY:
            raise ValueError(f"{metric_name!r} has no value per query.")
        order = self.metrics_unreduced[category][metric][k].argsort(stable=True)
        return self.query_rows[category][order[:n_queries]].tolist()

    def get_plot_for_worst_queries(
        self, metric_name: str, n_queries: int, n_instances: int, verbose: bool = False
    ) -> "Figure":
        """Picture of the queries with the smallest values of a metric, see :meth:`get_plot_for_queries`."""
        return self.get_plot_for_queries(self.get_worst_queries_ids(metric_name, n_queries), n_instances, verbose)

    def get_plot_for_queries(self, query_ids: Sequence[int], n_instances: int, verbose: bool = False) -> "Figure":
        """A row of images per query: the query, its ``n_instances`` nearest galleries, what it should have found.

        Args:
            query_ids: rows in ``results``: positions among the queries that were evaluated, in the order of the data;
                with ``on_missing="ignore"``, those that have something to find.
            n_instances: how many of the retrieved items to draw.
            verbose: print the path of each query.
        """
        results, rows = self._checked_to_draw(), list(query_ids)
        if bad := [row for row in query_ids if not 0 <= row < len(results)]:
            raise ValueError(f"EmbeddingMetrics has {len(results)} queries, there is no query {bad[:3]}.")
        if n_instances > results.retrieved_ids.shape[1]:
            results, rows = self._found_anew(rows, n_instances)
        paths = [str(path) for path in self.acc.storage[PATHS_KEY]]
        if verbose:
            for query, row in zip(query_ids, rows, strict=True):
                print(f"query {query}: {paths[results.query_ids[row]]}")  # noqa: T201 (asked for by the argument)
        return results.visualize(paths, rows, n_instances, boxes=self._boxes())

    def get_plot_for_distances(self, n_pairs: int = 100_000, seed: int = 0) -> "Figure":
        """Histograms of the distances of right and of wrong pairs, of up to ``n_pairs`` each, drawn at random.

        Args:
            n_pairs: how many pairs to draw of those of one label, and of all.
            seed: of the draws.
        """
        from oml.retrieval.figures import draw_distances

        return draw_distances(*self._all_pairs().drawn_distances(n_pairs, seed))

    @abstractmethod
    def _found_anew(self, rows: Sequence[int], n_ranks: int) -> tuple[RetrievalResults, list[int]]:
        """Results with more ranks, of some queries at least, and the rows of these in them."""

    @abstractmethod
    def _all_pairs(self) -> Pairs:
        """All pairs of a query that was evaluated and a gallery."""

    def _computed(self) -> RetrievalResults:
        if self.results is None:
            raise ValueError("EmbeddingMetrics needs compute_metrics() before it can tell or draw anything.")
        return self.results

    def _checked_to_draw(self) -> RetrievalResults:
        results = self._computed()
        if not self.ready_to_visualize():
            raise ValueError(f"EmbeddingMetrics needs {PATHS_KEY!r} among its extra_keys to draw.")
        return results

    def _boxes(self) -> Tensor | None:
        if not set(BOX_KEYS) <= set(self.extra_keys):
            return None
        return torch.stack([as_tensor(key, self.acc.storage[key]) for key in BOX_KEYS], dim=1)

    def _names(self) -> Iterator[tuple[str, tuple[str | int, str, Any]]]:
        """``OVERALL/map/5`` and its parts, for all metrics."""
        for category, by_metric in self.metrics.items():
            for metric, by_k in by_metric.items():
                for k in by_k:
                    yield f"{category}/{metric}/{k}", (category, metric, k)
