"""Retrieval metrics of an epoch's embeddings, overall and by category, with pictures of the mistakes."""

from collections.abc import Callable, Sequence
from pprint import pformat
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from oml.const import (
    EMBEDDINGS_KEY,
    INDEX_KEY,
    IS_GALLERY_KEY,
    IS_QUERY_KEY,
    LABELS_KEY,
    LOG_TOPK_IMAGES_PER_ROW,
    SEQUENCE_KEY,
)
from oml.ddp.search import search_in_all_processes
from oml.functional.metrics import calc_distance_matrix, reduce_metrics
from oml.functional.nothing_to_find import rows_to_evaluate
from oml.functional.ranking import Hits
from oml.functional.ranks import relevant_ranks
from oml.functional.search import Neighbours, exact_search
from oml.functional.statistics import Interval, bootstrap_intervals
from oml.functional.topology import pcf
from oml.functional.verification import verification_metrics
from oml.interfaces.metrics import IMetricDDP
from oml.interfaces.retrieval import IDistancesPostprocessor
from oml.metrics._checks import as_tensor, check_arguments, check_numbers
from oml.metrics._pairs import Pairs
from oml.metrics._pictures import NOT_BY_QUERY, DrawnMetrics
from oml.metrics.accumulation import Accumulator
from oml.metrics.categories import positions_by_category
from oml.metrics.comparison import MetricChange, compare_values
from oml.metrics.per_query import Cut, OfReturned, ranking_metrics
from oml.metrics.reranking import rerank, rerank_in_all_processes
from oml.retrieval import RetrievalResults
from oml.retrieval.postprocessors.base import Postprocessor
from oml.utils.user_warning import warn_user

#: a k or "r"; a false match rate, or a share of variance; or what is told of all that was returned
Key = Cut | float | OfReturned
#: category -> metric -> such a key -> value
TMetricsDict_ByLabels = dict[str | int, dict[str, dict[Key, Tensor]]]

_LONGEST_LIST = 100  # of retrieved galleries; for k beyond it the places of the relevant ones are counted instead
_NO_MERIT = ("number",)  # of which more is neither better nor worse


def validate_dataset(
    mask_gt: Bool[Tensor, "query gallery"], mask_to_ignore: Bool[Tensor, "query gallery"] | None = None
) -> None:
    """Every query must have a right gallery that is not to be ignored.

    Raises:
        NothingToFindError: some have none.

    Example:
        >>> validate_dataset(torch.tensor([[False, True]]))
    """
    rows_to_evaluate((mask_gt if mask_to_ignore is None else mask_gt & ~mask_to_ignore).sum(dim=1))


class EmbeddingMetrics(DrawnMetrics):
    """cmc, precision and map over the queries, fnmr@fmr over all pairs, and pcf over all embeddings.

    An item that is query and gallery never retrieves itself, and is no pair with itself. Distances are L2. ``k`` beyond
    the gallery means the whole gallery; for large ``k`` too, memory is bounded. See :mod:`oml.functional.ranking` for
    the formulas: precision divides by ``min(k, n_relevant)``, map by the relevant items found.

    With a ``postprocessor``, rankings are those that it makes of what the embeddings found, and so are all metrics of
    rankings, pictures and worst queries; :meth:`compare` tells what it changed. Only fnmr@fmr and pcf, which are of all
    pairs and items, stay those of the embeddings. For a ``k`` beyond 100, and for ``"r"``, lists are as long as it says
    then, which takes memory for so many items per query: places of items that nobody has re-ranked cannot be counted.

    A postprocessor may leave items out, as a threshold does. If it does for some query, there is ``returned`` with
    ``precision``, ``recall`` and ``f1`` of all that is left and its ``number``: precision divides by this number, and
    is 0 where it is 0. The other metrics count a place without an item as one that is not relevant.

    Args:
        embeddings_key, labels_key, is_query_key, is_gallery_key: entries of a batch to work on.
        extra_keys: further entries to keep; ``"paths"`` for pictures, and ``"x1", "y1", "x2", "y2"`` for boxes in them.
        cmc_top_k, precision_top_k, map_top_k: values of ``k``; an empty tuple switches the metric off. For precision
            and map also ``"r"``, the number of relevant items of each query: r-precision and map@r, see
            :func:`oml.metrics.per_query.ranking_metrics`.
        fmr_vals: false match rates at which to tell the false non-match rate, of all pairs of a query and a gallery
            pooled; see :func:`oml.functional.verification.fnmr_at_fmr`.
        pfc_variance: shares of variance of which to tell the fraction of principal components.
        categories_key: entry with the category of each item: metrics are told for every category among the
            queries as well, each against the whole gallery.
        postprocessor: re-ranks what was found. Its ``needed_keys`` are kept of the batches, and its ``optional_keys``
            if they are in the first one. One for matrices of distances, an ``IDistancesPostprocessor`` alone, gets that
            of all queries and galleries.
        metrics_to_exclude_from_visualization: names such as ``cmc`` or categories not to draw.
        return_only_main_category: leave the categories out of what ``compute_metrics`` returns.
        visualize_only_main_category: draw nothing by category.
        verbose: print the metrics once they are computed.
        recall_top_k, ndcg_top_k, mrr_top_k: values of ``k`` for further metrics of the ranking.
        map_divide_by: the denominator of map, see :func:`oml.functional.ranking.average_precision_at_k`.
        on_missing: what to do about queries that have nothing to find in the gallery: ``raise``, or ``ignore`` to
            leave them out of all metrics, with a warning.
        sequence_key: entry with the number of the sequence that each item is from, -1 for none: a query does not
            retrieve items of its own sequence. Batches with an entry ``"sequence"`` that is not used bring a warning.
        returned_metrics: tell ``returned`` also if every query got as many items as it could.
        index_key: entry with the position of each item in the data set, if items may come more than once or in any
            order, as from several processes: each counts once, in the order of the data set.
        product_dtype: ``torch.bfloat16`` for the same results sooner, on hardware that multiplies in it; see
            :func:`oml.functional.search.exact_search`.

    Attributes:
        metrics: the numbers, ``{"OVERALL": {"cmc": {1: tensor(0.9)}, ...}, ...}``.
        metrics_unreduced: the same with one value per query, in the order of ``results.query_ids``.
        query_rows: the queries of each category, by their row in ``results``.
        results: the ranking they come from, at most 100 galleries per query without a postprocessor.
        retrieved: the ranking before re-ranking; the same without a postprocessor.
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
        precision_top_k: Sequence[Cut] = (5,),
        map_top_k: Sequence[Cut] = (5,),
        fmr_vals: Sequence[float | int] = (),
        pfc_variance: Sequence[float | int] = (0.5,),
        categories_key: str | None = None,
        postprocessor: Postprocessor | IDistancesPostprocessor | None = None,
        metrics_to_exclude_from_visualization: Sequence[str] = (),
        return_only_main_category: bool = False,
        visualize_only_main_category: bool = True,
        verbose: bool = True,
        *,
        recall_top_k: Sequence[int] = (),
        ndcg_top_k: Sequence[int] = (),
        mrr_top_k: Sequence[int] = (),
        map_divide_by: Literal["found", "min(k, n)", "n"] = "found",
        on_missing: Literal["raise", "ignore"] = "raise",
        sequence_key: str | None = None,
        index_key: str | None = None,
        product_dtype: torch.dtype | None = None,
        returned_metrics: bool = False,
    ) -> None:
        top_k = {
            "cmc": cmc_top_k,
            "precision": precision_top_k,
            "map": map_top_k,
            "recall": recall_top_k,
            "ndcg": ndcg_top_k,
            "mrr": mrr_top_k,
        }
        check_arguments(
            top_k,
            fmr_vals,
            pfc_variance,
            extra_keys,
            metrics_to_exclude_from_visualization,
            postprocessor,
            returned_metrics=returned_metrics,
            map_divide_by=map_divide_by,
            on_missing=on_missing,
        )
        self.embeddings_key = embeddings_key
        self.labels_key = labels_key
        self.is_query_key = is_query_key
        self.is_gallery_key = is_gallery_key
        self.extra_keys = tuple(extra_keys)
        self.top_k = {name: tuple(values) for name, values in top_k.items()}
        self.fmr_vals = tuple(fmr_vals)
        self.pfc_variance = tuple(pfc_variance)
        self.categories_key = categories_key
        self.postprocessor = postprocessor
        self.not_to_draw = {*NOT_BY_QUERY, *_NO_MERIT, *metrics_to_exclude_from_visualization}
        self.return_only_main_category = return_only_main_category
        self.visualize_only_main_category = visualize_only_main_category
        self.verbose = verbose
        self.map_divide_by: Literal["found", "min(k, n)", "n"] = map_divide_by
        self.on_missing: Literal["raise", "ignore"] = on_missing
        self.sequence_key = sequence_key
        self.index_key = index_key
        self.product_dtype = product_dtype
        self.returned_metrics = returned_metrics

        keys = [embeddings_key, labels_key, is_query_key, is_gallery_key, *self.extra_keys]
        keys += [key for key in (categories_key, sequence_key, index_key) if key is not None]
        keys += [] if postprocessor is None else postprocessor.needed_keys
        self._keys = list(dict.fromkeys(keys))
        self.acc = Accumulator(self._keys)
        self.retrieved: RetrievalResults | None = None
        self.results: RetrievalResults | None = None
        self.metrics: TMetricsDict_ByLabels = {}
        self.metrics_unreduced: TMetricsDict_ByLabels = {}
        self.query_rows: dict[str | int, Tensor] = {}
        self._has_told_of_sequences = False

    def setup(self, num_samples: int) -> None:
        """Forget everything and expect ``num_samples`` items."""
        self.retrieved = self.results = None
        self.metrics = {}
        self.metrics_unreduced = {}
        self.query_rows = {}
        self.acc.refresh(num_samples)

    def update_data(self, data_dict: dict[str, Any]) -> None:
        """Take in one batch.

        Raises:
            ValueError, TypeError: if an entry is missing, or is not what it should be.
        """
        roles = (self.is_query_key, self.is_gallery_key)
        for key in (self.labels_key, self.sequence_key, self.index_key, *roles):
            if key in data_dict:  # others are missed by the accumulator
                check_numbers(key, as_tensor(key, data_dict[key]), is_role=key in roles)
        if self.sequence_key is None and SEQUENCE_KEY in data_dict and not self._has_told_of_sequences:
            self._has_told_of_sequences = True
            warn_user(
                f"EmbeddingMetrics got batches with an entry {SEQUENCE_KEY!r} and does not use it: queries find near "
                "copies from their own sequences, which makes the metrics better than they are. Give "
                f"EmbeddingMetrics(sequence_key={SEQUENCE_KEY!r}) to leave these out."
            )
        if self.acc.collected_samples == 0 and self.acc.num_samples is not None:
            keys = [*self._keys, *(key for key in self._optional_keys(data_dict) if key not in self._keys)]
            if keys != self.acc.keys_to_accumulate:
                expected, self.acc = self.acc.num_samples, Accumulator(keys)
                self.acc.refresh(expected)
        self.acc.update_data(data_dict)

    def _optional_keys(self, data_dict: dict[str, Any]) -> list[str]:
        """Those of the postprocessor, if they are there."""
        keys = self.postprocessor.optional_keys if isinstance(self.postprocessor, Postprocessor) else []
        lacking = [key for key in keys if key not in data_dict]
        if 0 < len(lacking) < len(keys):
            raise ValueError(
                f"{type(self.postprocessor).__name__} needs all of the entries {keys} of a batch or none, it lacks "
                f"{lacking}."
            )
        return [] if lacking else keys

    def compute_metrics(self) -> TMetricsDict_ByLabels:
        """All metrics, each averaged over its queries.

        Raises:
            NothingToFindError: if a query has nothing to find and ``on_missing="raise"``, or none has anything.
            ValueError: if not all expected items came, or there are no pairs of which to tell fnmr@fmr.
        """
        if self.acc.num_samples is None:
            raise ValueError("EmbeddingMetrics needs setup(num_samples) first, and then all batches.")
        if not self.acc.is_storage_full():
            raise ValueError(
                f"EmbeddingMetrics needs all {self.acc.num_samples} items that setup() was told of, "
                f"{self.acc.collected_samples} came."
            )
        if self.index_key is not None:
            self.acc = self.acc.once_each(self.index_key)
        embeddings = self._stored(self.embeddings_key)
        is_query = self._stored(self.is_query_key).bool()
        widest = self._widest(is_query)
        listed = min(widest, _LONGEST_LIST) if self.postprocessor is None else widest
        self.retrieved = self.results = self._retrieve(is_query, max(listed, self._top_n, LOG_TOPK_IMAGES_PER_ROW))
        if self.postprocessor is not None:
            self.results = self._rerank(self.retrieved)
        hits = None
        if widest > listed:
            pairs = self._all_pairs()
            hits = relevant_ranks(*pairs[:4], query_items=pairs.query_items, gallery_items=pairs.gallery_items)
        per_query = self._per_query(self.results, hits)
        queries: dict[str | int, Tensor] = {self.overall_categories_key: torch.arange(len(self.results))}
        members: dict[str | int, Tensor] = {self.overall_categories_key: torch.arange(len(embeddings))}
        if self.categories_key is not None:
            categories = self.acc.storage[self.categories_key]
            if self.overall_categories_key in (by_category := positions_by_category(categories)):
                raise ValueError(f"EmbeddingMetrics keeps the name {self.overall_categories_key!r} for all categories.")
            members |= by_category
            queries |= positions_by_category(np.asarray(categories)[self.results.query_ids.numpy()])

        self.query_rows, self.metrics_unreduced = queries, {}
        for category, rows in queries.items():
            values: dict[str, dict[Key, Tensor]] = {
                name: {k: of_all[rows] for k, of_all in by_k.items()} for name, by_k in per_query.items()
            }
            if self.fmr_vals:
                values["fnmr@fmr"] = self._rates(category, rows)
            if self.pfc_variance:
                fractions = pcf(embeddings[members[category]], self.pfc_variance)
                values["pcf"] = dict(zip(self.pfc_variance, fractions, strict=True))
            self.metrics_unreduced[category] = values
        self.metrics = reduce_metrics(self.metrics_unreduced)

        if self.verbose:
            print(f"\nMetrics:\n{pformat(self.metrics)}")  # noqa: T201 (asked for by the argument)
        if self.return_only_main_category:
            return {self.overall_categories_key: self.metrics[self.overall_categories_key]}
        return dict(self.metrics)

    def intervals(
        self, confidence: float = 0.95, n_resamples: int = 2000, seed: int = 0
    ) -> dict[str | int, dict[str, dict[Key, Interval]]]:
        """For each metric with a value per query its mean and bootstrap interval, whole labels resampled.

        Args:
            confidence, n_resamples, seed: see :func:`oml.functional.statistics.bootstrap_interval`.
        """
        labels = self._computed().query_labels
        intervals: dict[str | int, dict[str, dict[Key, Interval]]] = {}
        for category, by_metric in self.metrics_unreduced.items():
            by_query = {name: by_k for name, by_k in by_metric.items() if name not in NOT_BY_QUERY}
            if not by_query:
                intervals[category] = {}
                continue
            found = iter(
                bootstrap_intervals(
                    torch.stack([values for by_k in by_query.values() for values in by_k.values()]),
                    clusters=labels[self.query_rows[category]],
                    confidence=confidence,
                    n_resamples=n_resamples,
                    seed=seed,
                )
            )
            intervals[category] = {name: {k: next(found) for k in by_k} for name, by_k in by_query.items()}
        return intervals

    def compare(self, confidence: float = 0.95, seed: int = 0) -> dict[str | int, dict[str, dict[Key, MetricChange]]]:
        """What re-ranking changed: for each metric with a value per query those before and after, and a paired test.

        Of the categories that :meth:`compute_metrics` returns.

        Args:
            confidence, seed: see :func:`oml.metrics.comparison.compare_results`.

        Raises:
            ValueError: if there is no postprocessor, or nothing was computed yet.
        """
        after = self._computed()
        if self.postprocessor is None or self.retrieved is None:
            raise ValueError("EmbeddingMetrics compares before and after re-ranking, and has no postprocessor.")
        main = self.overall_categories_key
        before = self._per_query(self.retrieved, returned="returned" in self.metrics_unreduced[main])
        changes: dict[str | int, dict[str, dict[Key, MetricChange]]] = {}
        for category, rows in self.query_rows.items():
            if self.return_only_main_category and category != main:
                continue
            now, labels = self.metrics_unreduced[category], after.query_labels[rows]
            changes[category] = {
                name: {
                    k: compare_values(values[rows], now[name][k], clusters=labels, confidence=confidence, seed=seed)
                    for k, values in by_k.items()
                }
                for name, by_k in before.items()
            }
        return changes

    @property
    def distance_matrix(self) -> Float[Tensor, "query gallery"]:
        """Distances of all queries and galleries, infinite where the query is not to find the gallery.

        They are L2, or what an ``IDistancesPostprocessor`` makes of these. Dense: computed when asked for, in memory
        for all pairs. Nothing here needs it but a postprocessor that is for matrices alone.
        """
        pairs = self._all_pairs()
        points = torch.cat([pairs.queries, pairs.galleries])
        is_query = torch.arange(len(points)) < len(pairs.queries)
        distances = calc_distance_matrix(points, is_query, ~is_query).masked_fill(pairs.same_item, torch.inf)
        if not isinstance(self.postprocessor, IDistancesPostprocessor):
            return distances
        is_evaluated = torch.zeros(self.acc.collected_samples, dtype=torch.bool)
        is_evaluated[self._computed().query_ids] = True
        return self.postprocessor.process_by_dict(distances, {**self.acc.storage, self.is_query_key: is_evaluated})

    @property
    def mask_gt(self) -> Bool[Tensor, "query gallery"]:
        """Whether the gallery is right for the query. Dense, as :attr:`distance_matrix`."""
        pairs = self._all_pairs()
        return (pairs.query_labels[:, None] == pairs.gallery_labels) & ~pairs.same_item

    def _stored(self, key: str) -> Tensor:
        return as_tensor(key, self.acc.storage[key])

    def _all_pairs(self, rows: Tensor | None = None) -> Pairs:
        """What functions of all pairs of a query (of some rows) and a gallery take."""
        results, embeddings = self._computed(), self._stored(self.embeddings_key)
        # the same object twice, if it can be: a product then serves both of its items
        queries, galleries = (
            embeddings if len(ids) == len(embeddings) else embeddings[ids]
            for ids in (results.query_ids, results.gallery_ids)
        )
        query_labels, (query_items, gallery_items) = results.query_labels, results.query_and_gallery_items()
        if rows is not None:
            queries, query_labels, query_items = queries[rows], query_labels[rows], query_items[rows]
        return Pairs(queries, galleries, query_labels, results.gallery_labels, query_items, gallery_items)

    @property
    def _top_n(self) -> int:
        """As many galleries the postprocessor needs to be given."""
        return self.postprocessor.top_n or 0 if isinstance(self.postprocessor, Postprocessor) else 0

    def _per_query(
        self, results: RetrievalResults, hits: Hits | None = None, returned: bool | None = None
    ) -> dict[str, dict[Cut | OfReturned, Tensor]]:
        """The metrics of rankings; by default with ``returned`` if it is asked for, or re-ranking left items out."""
        if returned is None:
            before, after = self.retrieved, results
            assert before is not None, "it comes first"
            is_shorter = (after.retrieved_ids >= 0).sum(dim=1) < (before.retrieved_ids >= 0).sum(dim=1)
            returned = self.returned_metrics or bool(is_shorter.any())
        return ranking_metrics(
            results,
            **{f"{name}_top_k": ks for name, ks in self.top_k.items()},  # pyright: ignore[reportArgumentType]
            map_divide_by=self.map_divide_by,
            hits=hits,
            returned=returned,
        )

    def _rerank(self, results: RetrievalResults) -> RetrievalResults:
        return self._reranked(results, rerank)

    def _reranked(self, results: RetrievalResults, by: Callable[..., RetrievalResults]) -> RetrievalResults:
        if isinstance(self.postprocessor, Postprocessor):
            return by(self.postprocessor, results, self.acc.storage)
        n_ranks = results.retrieved_ids.shape[1]
        distances, columns = (each[:, :n_ranks] for each in self.distance_matrix.sort(dim=1, stable=True))
        ids = results.gallery_ids[columns].masked_fill(distances.isinf(), -1)
        return results.with_ranking(ids, distances)

    def _widest(self, is_query: Tensor) -> int:
        """The last rank that a metric looks at."""
        cuts = [k for ks in self.top_k.values() for k in ks]
        widest = max([k for k in cuts if isinstance(k, int)], default=1)
        if "r" in cuts:
            labels = self._stored(self.labels_key)
            to_find = labels[self._stored(self.is_gallery_key).bool() & torch.isin(labels, labels[is_query])]
            widest = max([widest, *to_find.unique(return_counts=True)[1].tolist()])
        return widest

    def _rates(self, category: str | int, rows: Tensor) -> dict[Key, Tensor]:
        """fnmr@fmr of a category."""
        is_overall = category == self.overall_categories_key
        pairs = self._all_pairs(None if is_overall else rows)
        items = pairs.gallery_items.sort().values
        n_own = torch.searchsorted(items, pairs.query_items, right=True) - torch.searchsorted(items, pairs.query_items)
        if not (len(items) - n_own > self._computed().n_relevant[rows]).any():
            name, labels = "the data" if is_overall else f"category {category!r}", pairs.query_labels.unique()
            raise ValueError(
                f"EmbeddingMetrics needs queries and galleries of different labels for fmr_vals, {name} has none: "
                f"its {len(rows)} queries are of {len(labels)} labels, such as {labels[:3].tolist()}, and meet no "
                f"others among {len(items)} galleries. "
                f"Give no fmr_vals{'' if is_overall else ', or no categories_key'}, or galleries of further labels."
            )
        rates = verification_metrics(
            *pairs[:4], fmr_vals=self.fmr_vals, query_items=pairs.query_items, gallery_items=pairs.gallery_items
        )["fnmr@fmr"]
        assert isinstance(rates, dict), "it is one by rate"
        return {**rates}

    def _retrieve(self, is_query: Tensor, top_k: int) -> RetrievalResults:
        return self._search(is_query, top_k, exact_search)

    def _search(self, is_query: Tensor, top_k: int, search: Callable[..., Neighbours]) -> RetrievalResults:
        return RetrievalResults.from_embeddings(
            self._stored(self.embeddings_key),
            labels=self._stored(self.labels_key),
            is_query=is_query,
            is_gallery=self._stored(self.is_gallery_key).bool(),
            top_k=top_k,
            sequences=None if self.sequence_key is None else self._stored(self.sequence_key),
            on_missing=self.on_missing,
            product_dtype=self.product_dtype,
            search=search,
        )

    def _found_anew(self, rows: Sequence[int], n_ranks: int) -> tuple[RetrievalResults, list[int]]:
        """By this process alone, as one draws."""
        results, rows = self._computed(), list(rows)
        by_query = self.postprocessor is None or getattr(self.postprocessor, "is_by_query", False)
        chosen = results.query_ids[rows].unique() if by_query else results.query_ids
        is_query = torch.zeros(len(self.acc.storage[self.is_query_key]), dtype=torch.bool)
        is_query[chosen] = True
        found = self._search(is_query, n_ranks, exact_search)
        if self.postprocessor is not None:
            found = self._reranked(found, rerank)
        return found, torch.searchsorted(chosen, results.query_ids[rows]).tolist()


class EmbeddingMetricsDDP(EmbeddingMetrics, IMetricDDP):
    """The same metrics of what several processes saw: call :meth:`sync` in each, then ``compute_metrics``.

    Samplers that share a data set out give some items to two processes, so that all get as many. Here each item counts
    once, by its ``index_key``, and they are put in the order of the data set: the metrics are those of one process, bit
    for bit. The search is shared out, and so is re-ranking by a postprocessor that ``is_by_query``; any other does all
    of it in every process. See :func:`oml.metrics.reranking.rerank_in_all_processes` for networks that look at images.

    Args:
        args, kwargs: those of :class:`EmbeddingMetrics`.
        index_key: entry with the position of each item in the data set.
    """

    def __init__(self, *args: Any, index_key: str = INDEX_KEY, **kwargs: Any) -> None:
        super().__init__(*args, index_key=index_key, **kwargs)

    def sync(self) -> None:
        """Bring together the items of all processes. Each must call it once an epoch, when all its items have come."""
        self.acc = self.acc.sync()

    def _retrieve(self, is_query: Tensor, top_k: int) -> RetrievalResults:
        """Each process does its share of the search."""
        return self._search(is_query, top_k, search_in_all_processes)

    def _rerank(self, results: RetrievalResults) -> RetrievalResults:
        """Each process does its share, if that can be."""
        return self._reranked(results, rerank_in_all_processes)
