"""The picture shows the numbers of the calibration."""

import pytest
import torch
from matplotlib.container import BarContainer, ErrorbarContainer

from oml.report.calibration import draw_reliability
from oml.retrieval import RetrievalResults
from oml.retrieval.calibration import Calibration


def test_the_picture_shows_the_numbers(rng: torch.Generator) -> None:
    labels = torch.arange(200) // 5
    points = torch.randn(200, 4, generator=rng) + 1.5 * torch.randn(40, 4, generator=rng)[labels]
    everyone = labels >= 0
    results = RetrievalResults.from_embeddings(points, labels, everyone, everyone, top_k=8)
    calibration = Calibration.from_results(results, embeddings=points, fmr_vals=[0.05, 0.01, 1])
    quality = calibration.quality
    assert quality is not None
    figure = draw_reliability(calibration, title="mine")
    curves, counts, distances = figure.axes
    drawn = [each for each in curves.containers if isinstance(each, ErrorbarContainer)]
    for bars, curve in zip(drawn, (quality.curve_before, quality.curve), strict=True):
        line, _, (segments,) = bars
        assert line.get_xdata() == pytest.approx(curve.predicted)
        assert line.get_ydata() == pytest.approx(curve.observed)
        for i, ends in enumerate((curve.low, curve.high)):
            assert [segment[i][1] for segment in segments.get_segments()] == pytest.approx(ends)
    right, wrong = (each for each in counts.containers if isinstance(each, BarContainer))
    places = [bar.get_x() + bar.get_width() / 2 for bar in right]
    assert places == pytest.approx([(i + 0.5) / 10 for i in quality.curve.bins])
    heights = [[bar.get_height() for bar in bars] for bars in (right, wrong)]
    assert sum(heights[0]) == pytest.approx(quality.base_rate * quality.n_pairs)
    assert [a + b for a, b in zip(*heights, strict=True)] == pytest.approx(quality.curve.counts)
    assert [bar.get_y() for bar in wrong] == pytest.approx(heights[0])
    texts = [text.get_text() for text in distances.texts]
    assert texts == [f"FMR {each.fmr:g}, FNMR {each.fnmr:.3f}" for each in calibration.thresholds[:2]]  # not infinity
    legend = curves.get_legend()
    assert legend is not None
    assert [text.get_text()[-5:] for text in legend.get_texts()] == [f"{quality.ece_before:.3f}", f"{quality.ece:.3f}"]


def test_what_was_not_judged_is_not_drawn() -> None:
    with pytest.raises(ValueError, match="draw_reliability needs a calibration that was judged"):
        draw_reliability(Calibration.fit(torch.tensor([0.1, 0.2]), torch.tensor([True, False])))
