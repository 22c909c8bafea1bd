"""From the distance of a result to the probability that it is right, and thresholds for wanted false match rates."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, final, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from oml.functional.calibration import (
    Knots,
    Reliability,
    brier_score,
    curve_at,
    expected_calibration_error,
    isotonic_curve,
    log_loss,
    platt_scaling,
    reliability_curve,
    smoothed_targets,
)
from oml.functional.verification import check_shares
from oml.retrieval._calibration_records import Curve, FittedOn, MatchThreshold, Quality, read_record
from oml.retrieval._thresholds import check_embeddings, thresholds_at_fmr
from oml.retrieval.results import RetrievalResults
from oml.utils.io import atomic_path

__all__ = ["Calibration", "Curve", "FittedOn", "MatchThreshold", "Method", "Quality"]

Method = Literal["isotonic", "platt"]
_FORMAT, _VERSION = "oml.calibration", 1


@final
@dataclass(frozen=True)
class Calibration:
    """How likely a result is right, by its distance: a curve that never rises, level beyond what was seen.

    It is for pairs like those it was fitted on. :meth:`from_results` takes those that a search shows, a query and one
    of its first ``top_k`` results: in a larger gallery more of them are wrong at the same distance, and distances of
    another model, or re-ranked ones, need a calibration of their own. A false match rate, however, is of all pairs of a
    query and a gallery, and does not depend on the gallery's size.

    A pair *matches* if it is nearer than a threshold.

    Args:
        method: ``isotonic``: straight lines between knots that come closest to what was seen, whatever the shape.
            ``platt``: a sigmoid, for few pairs.
        distances: of the knots, ascending.
        values: theirs, descending: probabilities, or for ``platt`` their logits at the ends of what was seen.
        fitted_on: what it was fitted on.
        quality: on labels that it was not fitted on.
        thresholds: for the false match rates that were asked for.

    Raises:
        ValueError: if it is no such curve.

    Example:
        >>> distances = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
        >>> is_relevant = torch.tensor([True, True, False, True, False, False])
        >>> calibration = Calibration.fit(distances, is_relevant)
        >>> calibration.probability(torch.tensor([0.0, 0.35, 0.9]))  # of 3 right and 3 wrong ones; none is sure
        tensor([0.8000, 0.5000, 0.2000])
        >>> round(calibration.threshold(0.5), 3)
        0.4
    """

    method: Method
    distances: tuple[float, ...]
    values: tuple[float, ...]
    fitted_on: FittedOn
    quality: Quality | None = None
    thresholds: tuple[MatchThreshold, ...] = ()

    def __post_init__(self) -> None:
        _check_method(self.method)
        ascending = all(a < b for a, b in zip(self.distances, self.distances[1:], strict=False))
        falling = all(a >= b for a, b in zip(self.values, self.values[1:], strict=False))
        known = all(map(math.isfinite, (*self.distances, *self.values)))
        if self.method == "isotonic":
            known &= all(0 <= value <= 1 for value in self.values)
        if not (self.distances and len(self.distances) == len(self.values) and ascending and falling and known):
            raise ValueError(
                "Calibration needs a curve: one or more ascending distances with values that never rise, probabilities "
                f"or logits, got {len(self.distances)} distances from {list(self.distances[:3])} on and "
                f"{len(self.values)} values from {list(self.values[:3])} on."
            )

    @classmethod
    def fit(
        cls,
        distances: Float[Tensor, " pair"],
        is_relevant: Bool[Tensor, " pair"],
        *,
        labels: Int[Tensor, " pair"] | None = None,
        method: Method = "isotonic",
        seed: int = 0,
    ) -> "Calibration":
        """Fit to pairs of which it is known whether they are right.

        Targets are those of Platt (:func:`oml.functional.calibration.smoothed_targets`) with both methods, so no
        probability is 0 or 1. The curve is of all pairs; the quality is that of a curve of half of the labels on the
        other half.

        Args:
            distances: of the pairs.
            is_relevant: whether they are of one label.
            labels: of their queries; without them, nothing is judged.
            method: see the class.
            seed: tells which labels are judged.

        Raises:
            ValueError: if there are not both right and wrong pairs, also in each half of the labels; distances are not
                finite; numbers of pairs differ; or there is no such method.
        """
        _check_method(method)
        _check_pairs(distances, is_relevant, labels)
        on = FittedOn(len(distances), int(is_relevant.sum()), n_labels=None if labels is None else len(labels.unique()))
        fitted = cls(method, *_fit(distances, is_relevant, method), on)
        if labels is None:
            return fitted
        held_out = torch.isin(labels, _held_out(labels, seed))
        for name, part in (("fitted on", ~held_out), ("held out", held_out)):
            if not 0 < int(is_relevant[part].sum()) < int(part.sum()):
                raise ValueError(
                    "Calibration needs right and wrong pairs in each half of the labels, to be judged on labels that "
                    f"it was not fitted on: of {on.n_labels} labels, those {name} have {int(part.sum())} pairs, "
                    f"{int(is_relevant[part].sum())} of them right. Take more labels, results or another seed."
                )
        half = cls(method, *_fit(distances[~held_out], is_relevant[~held_out], method), on)
        low, high = distances[~held_out].double().aminmax()
        scaled = ((high - distances[held_out].double()) / (high - low).clamp(min=1e-300)).clamp(0, 1)
        found = half.probability(distances[held_out].double())
        right, clusters = is_relevant[held_out], labels[held_out]
        quality = Quality(
            n_pairs=len(right),
            n_labels=len(clusters.unique()),
            seed=seed,
            base_rate=float(right.double().mean()),
            ece=float(expected_calibration_error(found, right)),
            brier=float(brier_score(found, right)),
            log_loss=float(log_loss(found, right)),
            ece_before=float(expected_calibration_error(scaled, right)),
            brier_before=float(brier_score(scaled, right)),
            curve=_plain(reliability_curve(found, right, clusters=clusters)),
            curve_before=_plain(reliability_curve(scaled, right, clusters=clusters)),
        )
        return replace(fitted, quality=quality)

    @classmethod
    def from_results(
        cls,
        results: RetrievalResults,
        *,
        top_k: int | None = None,
        fmr_vals: Sequence[float | int] = (),
        embeddings: Float[Tensor, "item dim"] | None = None,
        method: Method = "isotonic",
        seed: int = 0,
        distance: str | None = None,
        extractor: str | None = None,
        table: str | None = None,
    ) -> "Calibration":
        """Fit to what a search found, which is also what probabilities are for: a query and one of its first results.

        Labels of queries are split into halves, to judge on one; the gallery is the whole one for both, as what a
        search finds depends on its size. Thresholds for false match rates are of all pairs of a query and a gallery;
        judging them, both are of the labels held out.

        Args:
            results: of a search, or re-ranked.
            top_k: how many results of each query to take; by default all that are there.
            fmr_vals: false match rates to find thresholds for.
            embeddings: of all items of the data set, if distances are L2: thresholds are then exact over all pairs.
                Without them, as for re-ranked results, pairs that were not retrieved do not match at any threshold.
            method, seed: see :meth:`fit`.
            distance, extractor, table: to be kept, see :class:`FittedOn`.

        Raises:
            ValueError: see :meth:`fit`; or if ``top_k`` is below 1 or beyond what was retrieved, rates are outside
                [0, 1], or the embeddings are not those that the results come from.

        Example:
            >>> points, labels = torch.arange(8.0)[:, None], torch.arange(8) // 2
            >>> everyone = labels >= 0
            >>> results = RetrievalResults.from_embeddings(points, labels, everyone, everyone, top_k=3)
            >>> calibration = Calibration.from_results(results, embeddings=points, fmr_vals=[0, 0.5])
            >>> calibration.threshold_at_fmr(0.5).distance
            3.0
            >>> calibration.probabilities(results).shape
            torch.Size([8, 3])
        """
        width = results.retrieved_ids.shape[1]
        if top_k is not None and not 1 <= top_k <= width:
            raise ValueError(f"Calibration needs a top_k from 1 to {width}, as many as were retrieved, got {top_k}.")
        if len(fmr_vals):
            check_shares("Calibration", "fmr_vals", fmr_vals)
        shown = results.with_ranking(results.retrieved_ids[:, :top_k], results.distances[:, :top_k])
        found = shown.retrieved_ids >= 0
        labels = shown.query_labels[:, None].expand_as(found)[found]
        fitted = cls.fit(shown.distances[found], shown.is_relevant[found], labels=labels, method=method, seed=seed)
        if embeddings is not None:
            check_embeddings(results, embeddings)
        held_out = _held_out(labels, seed)
        thresholds = thresholds_at_fmr(results, embeddings, fmr_vals, held_out) if len(fmr_vals) else ()
        on = replace(
            fitted.fitted_on,
            n_queries=len(shown),
            top_k=width if top_k is None else top_k,
            distance=distance,
            extractor=extractor,
            table=table,
        )
        return replace(fitted, fitted_on=on, thresholds=tuple(thresholds))

    def probability(self, distances: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """How likely pairs at these distances are right, in the distances' dtype.

        Raises:
            ValueError: if some are NaN.
        """
        if distances.isnan().any():
            raise ValueError(f"Calibration needs distances, got NaN for {int(distances.isnan().sum())} of them.")
        knots = Knots(*(distances.new_tensor(x, dtype=torch.float64) for x in (self.distances, self.values)))
        values = curve_at(knots, distances)
        return (values.sigmoid() if self.method == "platt" else values).to(distances.dtype)

    def probabilities(self, results: RetrievalResults) -> Float[Tensor, "query rank"]:
        """How likely each result is right; 0 where there is none (-1)."""
        return self.probability(results.distances).masked_fill(results.retrieved_ids < 0, 0)

    def threshold(self, probability: float | int) -> float:
        """The distance below which pairs are at least as likely right: 0 if none are, infinite if all are.

        Raises:
            ValueError: if the probability is outside [0, 1].
        """
        if not 0 <= probability <= 1:
            raise ValueError(f"Calibration needs a probability in [0, 1], got {probability}.")

        def is_likely(distance: float) -> bool:
            return self.probability(torch.tensor(distance, dtype=torch.float64, device="cpu")).item() >= probability

        low, high = self.distances[0], self.distances[-1]
        if is_likely(high):
            return math.inf
        if not is_likely(low):
            return 0.0
        while low < (middle := low + (high - low) / 2) < high:  # to the last bit
            low, high = (middle, high) if is_likely(middle) else (low, middle)
        return high

    def threshold_at_fmr(self, fmr: float | int) -> MatchThreshold:
        """The threshold for a false match rate that was asked for when fitting.

        Raises:
            ValueError: if it was not.
        """
        for each in self.thresholds:
            if each.fmr == fmr:
                return each
        known = ", ".join(f"{each.fmr:g}" for each in self.thresholds) or "none"
        raise ValueError(
            f"Calibration has no threshold for the false match rate {fmr:g}; it was fitted for {known}. Fit it again "
            f"with fmr_vals=[{fmr:g}], or by oml calibrate --fmr {fmr:g}."
        )

    def save(self, path: str | Path) -> None:
        """Write to a JSON file, for :meth:`load`. An existing file is replaced once the new one is complete."""
        content = {"format": _FORMAT, "version": _VERSION, **asdict(self)}
        for each in content["thresholds"]:
            if each["distance"] == math.inf:
                each["distance"] = None  # JSON has no infinity
        with atomic_path(path) as file:
            file.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Calibration":
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is another file, of a later version, or not as it was written.

        Example:
            >>> import tempfile
            >>> calibration = Calibration.fit(torch.tensor([0.1, 0.2]), torch.tensor([True, False]))
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     calibration.save(f"{folder}/calibration.json")
            ...     Calibration.load(f"{folder}/calibration.json") == calibration
            True
        """
        who = f"Calibration.load needs a file that save() or oml calibrate wrote, not {str(path)!r}"
        if Path(path).is_dir():
            raise ValueError(f"{who}: that is a folder. Name the file in it, such as calibration.json.")
        if not Path(path).exists():
            raise FileNotFoundError(f"There is no file {str(path)!r} with a calibration. `oml calibrate` writes one.")
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{who}: it is no JSON ({error}).") from error
        if not isinstance(content, dict) or content.pop("format", None) != _FORMAT:
            raise ValueError(f"{who}: it holds something else.")
        if (version := content.pop("version", None)) != _VERSION:
            raise ValueError(f"{who}: it is of version {version!r}, this release reads {_VERSION}.")
        try:
            for each in content["thresholds"]:
                each["distance"] = math.inf if each["distance"] is None else each["distance"]
            content["fitted_on"] = read_record(FittedOn, content["fitted_on"])
            if content["quality"] is not None:
                curves = {key: read_record(Curve, content["quality"][key]) for key in ("curve", "curve_before")}
                content["quality"] = read_record(Quality, content["quality"] | curves)
            content["thresholds"] = [read_record(MatchThreshold, each) for each in content["thresholds"]]
            return read_record(cls, content)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{who}: {error}") from error


def _fit(distances: Tensor, is_relevant: Tensor, method: Method) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The distances and the values of the knots."""
    distances = distances.detach().double()
    if method == "isotonic":
        knots = isotonic_curve(distances, is_relevant.double(), decreasing=True)
        ends = smoothed_targets(is_relevant)
        low, high = ends[~is_relevant][0], ends[is_relevant][0]
        # as if fitted to these targets, but sums of zeros and ones have no rounding
        return tuple(knots.positions.tolist()), tuple((low + (high - low) * knots.values).tolist())
    slope, intercept = platt_scaling(distances, is_relevant)
    ends = sorted({float(end) for end in distances.aminmax()})
    if slope >= 0:  # the best that does not rise is level
        rate = float(smoothed_targets(is_relevant).mean())
        return tuple(ends[:1]), (math.log(rate / (1 - rate)),)
    return tuple(ends), tuple(slope * end + intercept for end in ends)


def _held_out(labels: Int[Tensor, " pair"], seed: int) -> Int[Tensor, " label"]:
    """Half of the labels, or one fewer than the others."""
    distinct = labels.unique()
    order = torch.randperm(len(distinct), generator=torch.Generator().manual_seed(seed)).to(labels.device)
    return distinct[order[: len(distinct) // 2]]


def _plain(curve: Reliability) -> Curve:
    return Curve(*(tuple(part.tolist()) for part in curve))


def _check_method(method: str) -> None:
    if method not in get_args(Method):
        raise ValueError(f"Calibration has the methods {' and '.join(get_args(Method))}, got {method!r}.")


def _check_pairs(distances: Tensor, is_relevant: Tensor, labels: Tensor | None) -> None:
    sizes = [len(x) for x in (distances, is_relevant, labels) if x is not None]
    if len(set(sizes)) > 1:
        raise ValueError(f"Calibration needs distances, is_relevant and labels of the same pairs, got {sizes}.")
    if not distances.isfinite().all():
        bad = (~distances.isfinite()).nonzero().squeeze(1)
        raise ValueError(
            f"Calibration needs finite distances, got others for {len(bad)} of {len(distances)} pairs, such as "
            f"{bad[:5].tolist()}. Leave places without a result out."
        )
    if not 0 < (n_right := int(is_relevant.sum())) < len(is_relevant):
        raise ValueError(
            f"Calibration needs right and wrong pairs, got {n_right} right ones of {len(is_relevant)}. "
            f"Take {'more' if n_right else 'other'} results of each query."
        )
