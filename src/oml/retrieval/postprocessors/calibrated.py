"""Results without what is unlikely to be right."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from oml.retrieval.calibration import Calibration
from oml.retrieval.postprocessors.base import Postprocessor
from oml.retrieval.results import RetrievalResults


class CalibratedThresholding(Postprocessor):
    """Drops results that are less likely right than asked for, or not nearer than a threshold for false matches.

    A query may be left with nothing: then nothing in the gallery is likely what it shows. Results are as wide as
    before, with ids of -1 at the end. Distances must be of the kind that the calibration was fitted on: of the same
    model, and re-ranked if those were.

    Args:
        calibration: the file that ``oml calibrate`` or :meth:`Calibration.save` wrote, or what that makes of it.
        min_probability: keep what is at least as likely right; by default 0.5, unless ``fmr`` is given.
        fmr: keep instead what is nearer than the threshold of this false match rate, one of those it was fitted for.

    Attributes:
        threshold: the distance below which results are kept.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: both ``min_probability`` and ``fmr`` are given, the former is outside [0, 1], or the
            calibration has no threshold for the latter; or the file is another one.

    Example:
        >>> import torch
        >>> points, labels = torch.tensor([0.0, 0.1, 1.0, 1.1, 2.0, 2.1])[:, None], torch.arange(6) // 2
        >>> everyone = labels >= 0
        >>> results = RetrievalResults.from_embeddings(points, labels, everyone, everyone, top_k=2)
        >>> calibration = Calibration.from_results(results, embeddings=points, fmr_vals=[0])
        >>> CalibratedThresholding(calibration, fmr=0).rerank(results, {}).retrieved_ids.tolist()
        [[1, -1], [0, -1], [3, -1], [2, -1], [5, -1], [4, -1]]
    """

    def __init__(
        self,
        calibration: Calibration | Path | str,
        min_probability: float | int | None = None,
        fmr: float | int | None = None,
    ) -> None:
        if min_probability is not None and fmr is not None:
            raise ValueError(
                f"CalibratedThresholding needs either min_probability or fmr, got both, {min_probability} and {fmr}."
            )
        if not isinstance(calibration, Calibration):
            calibration = Calibration.load(calibration)
        self.calibration = calibration
        self.threshold = (
            calibration.threshold(0.5 if min_probability is None else min_probability)
            if fmr is None
            else calibration.threshold_at_fmr(fmr).distance
        )

    def rerank(self, results: RetrievalResults, data: Mapping[str, Any]) -> RetrievalResults:  # noqa: ARG002
        """The results nearer than the threshold. ``data`` does not count."""
        is_dropped = results.distances.double() >= self.threshold
        return results.with_ranking(
            results.retrieved_ids.masked_fill(is_dropped, -1), results.distances.masked_fill(is_dropped, float("inf"))
        )
