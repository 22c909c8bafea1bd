"""A picture of how right probabilities are. Matplotlib is loaded when one is drawn."""

from typing import TYPE_CHECKING

import numpy as np
import torch

from oml.const import BLUE, GRAY, GREEN, RED
from oml.retrieval.calibration import Calibration, Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BINS = 10  # of the curves


def draw_reliability(calibration: Calibration, title: str = "") -> "Figure":
    """Predicted and observed probabilities on labels held out, before and after, with how many pairs have which.

    On the left, a point for each bin of probabilities: how often its pairs were right, with the 95 % interval, against
    what was predicted; on the diagonal both agree. Below, how many pairs each bin holds, right and wrong ones. On the
    right the curve from distances to probabilities, with a line at each threshold.

    Args:
        calibration: that was judged, as by :meth:`Calibration.from_results`.
        title: of the picture.

    Raises:
        ValueError: if it was not judged.

    Example:
        >>> distances, labels = torch.rand(200), torch.arange(200) // 10
        >>> calibration = Calibration.fit(distances, distances < torch.rand(200), labels=labels)
        >>> figure = draw_reliability(calibration)
        >>> [axes.get_ylabel() for axes in figure.axes]
        ['share of right pairs', 'pairs', 'probability']
    """
    from matplotlib.figure import Figure

    quality = calibration.quality
    if quality is None:
        raise ValueError("draw_reliability needs a calibration that was judged: fit it with labels.")
    figure = Figure(figsize=(12, 6.5), layout="constrained")
    grid = figure.add_gridspec(3, 2, width_ratios=[3, 2])
    curves = figure.add_subplot(grid[:2, 0])
    counts = figure.add_subplot(grid[2, 0], sharex=curves)
    map_ = figure.add_subplot(grid[:, 1])

    curves.plot([0, 1], [0, 1], color="0.7", linestyle="--", linewidth=1)
    _points(curves, quality.curve_before, GRAY, f"distance scaled to 0 ... 1: ECE {quality.ece_before:.3f}")
    _points(curves, quality.curve, BLUE, f"calibrated ({calibration.method}): ECE {quality.ece:.3f}")
    curves.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), ylabel="share of right pairs")
    curves.set_title(
        f"{quality.n_pairs:,} pairs of {quality.n_labels:,} labels held out, {quality.base_rate:.1%} right", fontsize=10
    )
    curves.legend(loc="upper left")
    curves.tick_params(labelbottom=False)

    _histogram(counts, quality.curve)
    counts.set(xlabel="predicted probability", ylabel="pairs")
    counts.margins(y=0.3)  # room for the legend
    counts.legend(loc="upper center", ncols=2)

    first, last = calibration.distances[0], calibration.distances[-1]
    margin = 0.05 * (last - first or 1)
    distances = torch.linspace(first - margin, last + margin, 500, dtype=torch.float64)
    map_.plot(distances.numpy(), calibration.probability(distances).numpy(), color=_shade(BLUE))
    map_.set(ylim=(-0.02, 1.02), xlabel="distance", ylabel="probability")
    map_.set_title("what a distance means", fontsize=10)
    for each in calibration.thresholds:
        if first - margin <= each.distance <= last + margin:
            map_.axvline(each.distance, color=_shade(RED), linestyle=":", linewidth=1)
            map_.annotate(
                f"FMR {each.fmr:g}, FNMR {each.fnmr:.3f}",
                (each.distance, 1.0),
                xytext=(-3, 0),
                textcoords="offset points",
                rotation=90,
                ha="right",
                va="top",
                fontsize=8,
            )
    figure.suptitle(title)
    return figure


def _points(axes: "Axes", curve: Curve, colour: tuple[int, int, int], label: str) -> None:
    observed = np.array(curve.observed)
    bars = np.stack([observed - curve.low, curve.high - observed])
    axes.errorbar(curve.predicted, observed, yerr=bars, fmt="o", color=_shade(colour), capsize=3, label=label)


def _histogram(axes: "Axes", curve: Curve) -> None:
    places = (np.array(curve.bins) + 0.5) / _BINS
    n, right = np.array(curve.counts), np.array(curve.counts) * np.array(curve.observed)
    axes.bar(places, right, width=0.9 / _BINS, color=_shade(GREEN), alpha=0.6, label="right")
    axes.bar(places, n - right, bottom=right, width=0.9 / _BINS, color=_shade(RED), alpha=0.6, label="wrong")


def _shade(colour: tuple[int, int, int]) -> tuple[float, float, float]:
    red, green, blue = (channel / 255 for channel in colour)
    return red, green, blue
