"""Two results of a search with the same queries: how far apart they are, how sure that is, and where they differ."""

import io
import re
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from oml.functional.statistics import PairedTest, paired_test
from oml.metrics.per_query import Cut, ranking_metrics
from oml.retrieval import RetrievalResults

if TYPE_CHECKING:
    from pandas import DataFrame

#: what :func:`oml.metrics.per_query.ranking_metrics` cuts at a k
METRICS = ("cmc", "precision", "map", "recall", "ndcg", "mrr")
_DEFAULT = (("cmc", 1), ("cmc", 5), ("precision", 5), ("map", 5))
_GAP = 30  # pixels between two queries in a picture
_ROUNDING = 1e-6  # values are float32: what differs by less is the same


class MetricChange(NamedTuple):
    """One metric of two results, a value per query, and the test of their difference.

    Example:
        >>> test = PairedTest(difference=0.5, low=0.0, high=1.0, p_value=0.5)
        >>> MetricChange(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0]), test).change
        tensor([1., 0.])
    """

    a: Float[Tensor, " query"]
    b: Float[Tensor, " query"]
    test: PairedTest

    @property
    def change(self) -> Float[Tensor, " query"]:
        """``b - a`` of every query."""
        return self.b - self.a


class Comparison(NamedTuple):
    """What :func:`compare_results` found; queries are in the order of their ids.

    ``metrics`` has names such as ``cmc@1``.
    """

    query_ids: Int[Tensor, " query"]
    query_labels: Int[Tensor, " query"]
    metrics: dict[str, MetricChange]

    @property
    def change(self) -> Float[Tensor, " query"]:
        """The change of every query, the mean of its changes in all metrics."""
        return torch.stack([metric.change for metric in self.metrics.values()]).mean(dim=0)

    def most_changed(self, n: int) -> tuple[Int[Tensor, " better"], Int[Tensor, " worse"]]:
        """The rows of the ``n`` queries, or fewer, that became better by most, and of those that became worse.

        Example:
            >>> values = torch.tensor([0.5, 0.5, 0.5, 0.5]), torch.tensor([0.5, 1.0, 0.0, 0.75])
            >>> metric = MetricChange(*values, paired_test(*values))
            >>> Comparison(torch.arange(4), torch.zeros(4).long(), {"map@5": metric}).most_changed(2)
            (tensor([1, 3]), tensor([2]))
        """
        better, worse = (
            change.sort(descending=True, stable=True).indices[: min(n, int((change > 0).sum()))]
            for change in (self.change, -self.change)
        )
        return better, worse

    def to_table(self, paths: Sequence[str | Path] | None = None) -> "DataFrame":
        """A row per query: ``query`` (its id), ``label``, ``path``, and of every metric its two values and the change.

        Args:
            paths: of all items of the data set.
        """
        from pandas import DataFrame

        columns: dict[str, Any] = {"query": self.query_ids.numpy(), "label": self.query_labels.numpy()}
        if paths is not None:
            columns["path"] = [str(paths[item]) for item in self.query_ids.tolist()]
        for name, metric in self.metrics.items():
            columns |= {f"{name}_a": metric.a.numpy(), f"{name}_b": metric.b.numpy()}
            columns[f"{name}_change"] = metric.change.numpy()
        return DataFrame(columns)


def compare_results(
    a: RetrievalResults,
    b: RetrievalResults,
    *,
    metrics: Sequence[str] = (),
    top_k: Sequence[int] = (),
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Compare two results for the same queries in the same galleries, such as those of two models.

    Each metric is :func:`oml.metrics.per_query.ranking_metrics`, tested with
    :func:`oml.functional.statistics.paired_test`: whole labels are drawn and flipped, as queries of one label
    resemble each other. The p-values are those of single tests. With ``m`` metrics or models looked at, one in twenty
    is below 0.05 by chance alone: decide beforehand for one, or multiply them by ``m`` (Bonferroni).

    Args:
        a, b: the results; a positive difference means that ``b`` is better.
        metrics: ``cmc``, ``precision``, ``map``, ``recall``, ``ndcg`` or ``mrr``, cut at every ``top_k``; or with a
            ``k`` of its own, as ``map@10``; also ``precision@r`` and ``map@r``, cut for every query at the number of
            its relevant items. By default cmc, precision and map.
        top_k: where to cut, up to what both results hold. By default 5, or all that they hold if these are fewer;
            without ``metrics`` there is cmc@1 too.
        confidence: of the intervals, in (0, 1).
        seed: of the draws.

    Raises:
        NothingToFindError: A query has nothing to find.
        ValueError: The queries or galleries are not the same, with what differs; a metric is unknown; a ``k`` is
            beyond what the results hold.

    Example:
        >>> labels, everyone = torch.tensor([0, 0, 0, 1, 1]), torch.ones(5, dtype=torch.bool)
        >>> a, b = (
        ...     RetrievalResults.from_embeddings(torch.tensor(x)[:, None], labels, everyone, everyone, top_k=2)
        ...     for x in ([0.0, 1.0, 3.0, 4.0, 9.0], [0.0, 1.0, 2.5, 4.5, 5.0])
        ... )
        >>> cmc = compare_results(a, b, metrics=["cmc@1"]).metrics["cmc@1"]
        >>> cmc.a, cmc.b
        (tensor([1., 1., 0., 0., 1.]), tensor([1., 1., 1., 1., 1.]))
        >>> cmc.test.difference, cmc.test.p_value
        (0.4, 0.5)
    """
    if differences := [*_what_differs(a, b, "query"), *_what_differs(a, b, "gallery")]:
        raise ValueError(
            f"compare_results needs two results for the same queries in the same galleries. {' '.join(differences)} "
            "Evaluate both on the same data set."
        )
    wanted = _cuts(metrics, top_k, a.retrieved_ids.shape[1], b.retrieved_ids.shape[1])
    order_a, order_b = a.query_ids.argsort(), b.query_ids.argsort()
    query_ids, query_labels = a.query_ids[order_a], a.query_labels[order_a]
    cuts: dict[str, Any] = {f"{name}_top_k": [k for other, k in wanted if other == name] for name in METRICS}
    values_a, values_b = ranking_metrics(a, **cuts), ranking_metrics(b, **cuts)
    compared = {}
    for name, k in wanted:
        first, second = values_a[name][k][order_a].cpu(), values_b[name][k][order_b].cpu()
        compared[f"{name}@{k}"] = compare_values(first, second, clusters=query_labels, confidence=confidence, seed=seed)
    return Comparison(query_ids.cpu(), query_labels.cpu(), compared)


def compare_values(
    a: Float[Tensor, " query"],
    b: Float[Tensor, " query"],
    *,
    clusters: Int[Tensor, " query"] | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> MetricChange:
    """One metric of the same queries twice, and its test.

    Args:
        a, b: its values.
        clusters, confidence, seed: see :func:`oml.functional.statistics.paired_test`.

    Example:
        >>> compare_values(torch.tensor([0.0, 1.0, 0.0]), torch.tensor([1.0, 1.0, 1.0])).test.difference
        0.6666666666666666
    """
    b = torch.where((b - a).abs() < _ROUNDING, a, b)
    return MetricChange(a, b, paired_test(a, b, clusters=clusters, confidence=confidence, seed=seed))


def draw_changes(
    a: RetrievalResults,
    b: RetrievalResults,
    comparison: Comparison,
    paths: Sequence[str | Path],
    rows: Sequence[int],
    n_instances: int = 5,
    boxes: Float[Tensor, "item 4"] | Int[Tensor, "item 4"] | None = None,
) -> Image.Image:
    """A picture of some queries: what each retrieved in ``a`` and below it what it retrieved in ``b``.

    Args:
        a, b, comparison: see :func:`compare_results`.
        paths: of the images of all items of the data set.
        rows: which queries, by their row in the comparison.
        n_instances: how many of the retrieved items to draw.
        boxes: left, top, right and bottom of the part of each image to draw.

    Raises:
        ValueError: There are no rows, or as :meth:`RetrievalResults.visualize`.
    """
    if len(rows) == 0:
        raise ValueError("draw_changes needs rows of queries to draw, got none.")
    strips = []
    for row in rows:
        query = int(comparison.query_ids[row])
        for name, results in (("a", a), ("b", b)):
            place = int((results.query_ids == query).nonzero())
            figure = results.visualize(paths, [place], n_instances, boxes)
            values = [f"{metric} {getattr(change, name)[row]:.2f}" for metric, change in comparison.metrics.items()]
            title = f"{name.upper()}: item {query}, label {int(comparison.query_labels[row])}, {', '.join(values)}"
            figure.suptitle(title, x=0.005, horizontalalignment="left")
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=100)
            strips.append(Image.open(buffer).convert("RGB"))
    # the two of a query stand together
    tops = [0, *accumulate(strip.height + _GAP * (i % 2) for i, strip in enumerate(strips))]
    picture = Image.new("RGB", (max(strip.width for strip in strips), tops[-1] - _GAP), "white")
    for strip, top in zip(strips, tops, strict=False):
        picture.paste(strip, (0, top))
    return picture


def _what_differs(a: RetrievalResults, b: RetrievalResults, kind: str) -> list[str]:
    """Of the queries or the galleries."""
    plural = {"query": "queries", "gallery": "galleries"}[kind]
    ids_a, ids_b = getattr(a, f"{kind}_ids"), getattr(b, f"{kind}_ids")
    common_a, common_b = torch.isin(ids_a, ids_b), torch.isin(ids_b, ids_a)
    texts = [
        f"{len(alone)} of {len(ids)} {plural} of {name} are not in the other, such as items {alone[:3].tolist()}."
        for name, ids, alone in (("A", ids_a, ids_a[~common_a]), ("B", ids_b, ids_b[~common_b]))
        if len(alone)
    ]
    ids, order_a = ids_a[common_a].sort()
    order_b = ids_b[common_b].argsort()
    for what in ("labels", "sequences"):
        of_a, of_b = getattr(a, f"{kind}_{what}"), getattr(b, f"{kind}_{what}")
        if of_a is None or of_b is None:
            if of_a is not of_b:
                texts.append(f"Only {'A' if of_b is None else 'B'} has {what} of its {plural}.")
            continue
        of_a, of_b = of_a[common_a][order_a], of_b[common_b][order_b]
        if len(other := (of_a != of_b).nonzero().squeeze(1)):
            i = other[0]
            texts.append(
                f"The {what} of {len(other)} {plural} differ, such as {int(of_a[i])} and {int(of_b[i])} of item "
                f"{int(ids[i])}."
            )
    return texts


def _cuts(metrics: Sequence[str], top_k: Sequence[int], n_a: int, n_b: int) -> list[tuple[str, Cut]]:
    """The metrics and their k."""
    most = min(n_a, n_b)
    if not metrics and not top_k:
        return [(name, min(k, most)) for name, k in _DEFAULT]
    wanted: list[tuple[str, Cut]] = []
    for metric in metrics or ("cmc", "precision", "map"):
        if metric in ("precision@r", "map@r"):
            wanted.append((metric.removesuffix("@r"), "r"))
            continue
        match = re.fullmatch(rf"({'|'.join(METRICS)})(?:@(\d+))?", metric)
        if match is None:
            raise ValueError(f"compare_results knows {', '.join(METRICS)}, or such as map@10 or map@r, got {metric!r}.")
        wanted += [(match[1], k) for k in ([int(match[2])] if match[2] else top_k or [min(5, most)])]
    if bad := [f"{name}@{k}" for name, k in wanted if k != "r" and not 1 <= k <= most]:
        raise ValueError(
            f"compare_results can cut at 1 to {most}, got {', '.join(bad)}: A holds the {n_a} nearest galleries of a "
            f"query, B the {n_b} nearest. Search with a larger top_k for more."
        )
    return wanted
