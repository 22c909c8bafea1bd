"""Calibration against scikit-learn and the definitions, literally."""

import inspect
import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.isotonic import IsotonicRegression
from sklearn.isotonic import isotonic_regression as reference_regression
from sklearn.metrics import brier_score_loss
from sklearn.metrics import log_loss as reference_log_loss
from torch import Tensor

from oml.functional import calibration
from oml.functional.calibration import (
    Knots,
    brier_score,
    curve_at,
    expected_calibration_error,
    isotonic_curve,
    isotonic_regression,
    log_loss,
    platt_scaling,
    reliability_curve,
    share_interval,
    smoothed_targets,
)

weighted = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 3)), min_size=1, max_size=20)
scored = st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=30)
guessed = st.lists(st.tuples(st.integers(0, 20), st.booleans(), st.integers(0, 3)), min_size=1, max_size=30)


def double(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def minimax(values: list[float], weights: list[float], decreasing: bool) -> list[float]:
    """Isotonic regression in closed form: the largest over starts of the smallest over ends of the weighted means."""
    sign, n = (-1 if decreasing else 1), len(values)

    def mean(a: int, b: int) -> float:
        part = range(a, b + 1)
        return sum(sign * values[j] * weights[j] for j in part) / sum(weights[j] for j in part)

    return [sign * max(min(mean(a, b) for b in range(i, n)) for a in range(i + 1)) for i in range(n)]


@settings(deadline=None)
@given(weighted, st.booleans(), st.sampled_from([0.0, calibration._WORTHWHILE]))
def test_isotonic_regression_is_the_closed_form(
    items: list[tuple[int, int]], decreasing: bool, worthwhile: float
) -> None:
    values, weights = (list(map(float, x)) for x in zip(*items, strict=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "_WORTHWHILE", worthwhile)  # 0: one by one from the start
        found = isotonic_regression(double(values), double(weights), decreasing=decreasing)
    assert found.tolist() == pytest.approx(minimax(values, weights, decreasing))


@pytest.mark.parametrize("decreasing", [False, True])
@pytest.mark.parametrize("kind", ["noise", "rising", "falling", "cascade", "zeros and ones"])
def test_isotonic_regression_is_that_of_scikit_learn(kind: str, decreasing: bool, rng: torch.Generator) -> None:
    n = 5000
    values = {
        "noise": torch.randn(n, generator=rng, dtype=torch.float64),
        "rising": torch.linspace(0, 1, n, dtype=torch.float64),
        "falling": torch.linspace(1, 0, n, dtype=torch.float64),
        # each pooled block violates the one before it only once it is pooled
        "cascade": torch.cat([torch.linspace(0, 1, n, dtype=torch.float64), double([-float(n)])]),
        "zeros and ones": (torch.rand(n, generator=rng) < torch.linspace(0, 1, n)).double(),
    }[kind]
    weights = torch.rand(len(values), generator=rng, dtype=torch.float64) + 0.1
    found = isotonic_regression(values, weights, decreasing=decreasing)
    wanted = reference_regression(values.numpy(), sample_weight=weights.numpy(), increasing=not decreasing)
    torch.testing.assert_close(found, torch.from_numpy(wanted.copy()))
    steps = found.diff() * (-1 if decreasing else 1)
    assert (steps >= 0).all()


@settings(deadline=None)
@given(scored, st.booleans())
def test_isotonic_curve_is_that_of_scikit_learn(items: list[tuple[int, bool]], decreasing: bool) -> None:
    scores, targets = double([s for s, _ in items]), double([t for _, t in items])
    knots = isotonic_curve(scores, targets, decreasing=decreasing)
    reference = IsotonicRegression(increasing=not decreasing, out_of_bounds="clip").fit(scores.numpy(), targets.numpy())
    at = torch.linspace(-1, 8, 73, dtype=torch.float64)
    torch.testing.assert_close(curve_at(knots, at), torch.from_numpy(reference.predict(at.numpy())))
    assert len(knots.positions) <= 2 * len(set(knots.values.tolist()))
    assert (knots.positions.diff() > 0).all()


@settings(deadline=None)
@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=6, unique=True), st.integers(0, 99))
def test_a_curve_is_monotone_to_the_last_bit(positions: list[float], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(len(positions), generator=generator).sort(descending=True).values
    knots = Knots(double(sorted(positions)), values.double())
    at = torch.cat([knots.positions, torch.rand(200, generator=generator, dtype=torch.float64)])
    at = torch.cat([at, at.nextafter(double(9.0)), at.nextafter(double(-9.0)), double([-math.inf, math.inf])]).sort()
    found = curve_at(knots, at.values)
    assert (found.diff() <= 0).all()
    assert found[0] == values[0].double()
    assert found[-1] == values[-1].double()


def test_rounding_does_not_lead_beyond_the_ends_of_a_line() -> None:
    knots = Knots(double([-1.0, 1.0]), double([0.4, 0.1]))
    assert 0.4 + (0.1 - 0.4) < 0.1  # what the whole way down comes to
    at = double([1.0]).nextafter(double(-1.0))
    assert (at + 1) / 2 == 1  # and it is the whole way, rounded
    assert curve_at(knots, at).item() == 0.1


def literal_platt_loss(slope: float, intercept: float, items: list[tuple[float, bool]]) -> float:
    n_true = sum(hit for _, hit in items)
    n_false = len(items) - n_true
    loss = 0.0
    for score, hit in items:
        target = (n_true + 1) / (n_true + 2) if hit else 1 / (n_false + 2)
        p = 1 / (1 + math.exp(-(slope * score + intercept)))
        loss -= target * math.log(p) + (1 - target) * math.log(1 - p)
    return loss


@settings(deadline=None)
@given(scored)
def test_platt_scaling_minimises_the_literal_loss(items: list[tuple[int, bool]]) -> None:
    pairs = [(float(score), hit) for score, hit in items]
    slope, intercept = platt_scaling(double([s for s, _ in pairs]), torch.tensor([hit for _, hit in pairs]))
    best = literal_platt_loss(slope, intercept, pairs)
    assert best < literal_platt_loss(0, 0, pairs) + 1e-9
    for step in (1e-2, 1e-4):  # convex: what is best nearby is best
        for a, b in ((step, 0), (-step, 0), (0, step), (0, -step), (step, -3 * step), (-step, 3 * step)):
            assert literal_platt_loss(slope + a, intercept + b, pairs) >= best - 1e-12
    if len({score for score, _ in pairs}) == 1:
        assert slope == 0


def test_platt_scaling_finds_the_sigmoid_that_drew_the_items(rng: torch.Generator) -> None:
    scores = 5 + 0.3 * torch.randn(100_000, generator=rng, dtype=torch.float64)
    hits = torch.rand(len(scores), generator=rng) < torch.sigmoid(-8 * (scores - 5.2))
    slope, intercept = platt_scaling(scores, hits)
    assert slope == pytest.approx(-8, rel=0.02)
    assert -intercept / slope == pytest.approx(5.2, abs=0.01)


def test_weights_are_repetitions(rng: torch.Generator) -> None:
    scores = torch.rand(40, generator=rng)
    hits = torch.rand(40, generator=rng) > scores
    times = torch.randint(1, 4, (40,), generator=rng)
    often = scores.repeat_interleave(times), hits.repeat_interleave(times)
    assert platt_scaling(scores, hits, times.float()) == pytest.approx(platt_scaling(*often), rel=1e-6)
    torch.testing.assert_close(smoothed_targets(hits, times.float()), smoothed_targets(often[1])[times.cumsum(0) - 1])
    ours = isotonic_curve(scores, hits.float(), times.float())
    for found, wanted in zip(ours, isotonic_curve(often[0], often[1].float()), strict=True):
        torch.testing.assert_close(found, wanted)


def test_targets_are_those_of_platt() -> None:
    found = smoothed_targets(torch.tensor([True, False, False, False, True, True, True]))
    assert found.tolist() == pytest.approx([5 / 6, 1 / 5, 1 / 5, 1 / 5, 5 / 6, 5 / 6, 5 / 6])


def literal_wilson(p: float, n: float, confidence: float) -> tuple[float, float]:
    """Between which true shares ``p`` is as close as that many standard errors: found by bisection."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)

    def is_plausible(true: float) -> bool:
        return abs(p - true) <= z * math.sqrt(true * (1 - true) / n)

    ends = []
    for outer in (0.0, 1.0):
        inner = p
        if is_plausible(outer):
            inner = outer
        for _ in range(80):
            middle = (inner + outer) / 2
            inner, outer = (middle, outer) if is_plausible(middle) else (inner, middle)
        ends.append(inner)
    return ends[0], ends[1]


@settings(deadline=None)
@given(guessed, st.sampled_from([1, 3, 10]), st.booleans())
def test_reliability_follows_the_definition(
    items: list[tuple[int, bool, int]], n_bins: int, is_clustered: bool
) -> None:
    probabilities, hits = double([p / 20 for p, _, _ in items]), torch.tensor([hit for _, hit, _ in items])
    clusters = torch.tensor([cluster for _, _, cluster in items])
    found = reliability_curve(
        probabilities, hits, n_bins=n_bins, clusters=clusters if is_clustered else None, confidence=0.9
    )
    rows = iter(zip(*(x.tolist() for x in found), strict=True))
    error = 0.0
    for i in range(n_bins):
        inside = [
            (p / 20, hit, cluster)
            for p, hit, cluster in items
            if i <= p / 20 * n_bins < i + 1 or (i + 1 == n_bins and p == 20)
        ]
        if not inside:
            continue
        bin_, count, predicted, observed, low, high = next(rows)
        n = len(inside)
        share = sum(hit for _, hit, _ in inside) / n
        error += abs(sum(p for p, _, _ in inside) - share * n)
        assert (bin_, count) == (i, n)
        assert predicted == pytest.approx(sum(p for p, _, _ in inside) / n)
        assert observed == pytest.approx(share)
        n_eff = float(n)
        if is_clustered:
            members = [[hit for _, hit, c in inside if c == cluster] for cluster in {c for _, _, c in inside}]
            if share in (0, 1):
                n_eff = len(members)
            elif len(members) == 1:
                n_eff = max(1, share * (1 - share))
            else:
                rest = sum((sum(of_it) - share * len(of_it)) ** 2 for of_it in members)
                variance = rest / n**2 * len(members) / (len(members) - 1)
                n_eff = min(n, max(1, share * (1 - share) / variance)) if variance > 0 else n
        wanted = literal_wilson(share, n_eff, 0.9)
        assert (low, high) == pytest.approx(wanted, abs=1e-6)
    assert next(rows, None) is None
    assert expected_calibration_error(probabilities, hits, n_bins=n_bins).item() == pytest.approx(error / len(items))


def test_scores_are_those_of_scikit_learn(rng: torch.Generator) -> None:
    probabilities = torch.rand(500, generator=rng, dtype=torch.float64)
    hits = torch.rand(500, generator=rng) < probabilities.square()
    ours = reliability_curve(probabilities, hits, n_bins=7)
    observed, predicted = calibration_curve(hits.numpy(), probabilities.numpy(), n_bins=7)
    np.testing.assert_allclose(ours.observed, observed)
    np.testing.assert_allclose(ours.predicted, predicted)
    assert brier_score(probabilities, hits).item() == pytest.approx(brier_score_loss(hits, probabilities))
    assert log_loss(probabilities, hits).item() == pytest.approx(reference_log_loss(hits, probabilities))


def test_perfect_and_impossible_guesses() -> None:
    hits = torch.tensor([True, False])
    assert log_loss(hits.float(), hits).item() == brier_score(hits.float(), hits).item() == 0
    assert log_loss((~hits).float(), hits).item() == math.inf
    assert brier_score((~hits).float(), hits).item() == 1


def test_intervals_of_clusters_cover_the_truth(rng: torch.Generator) -> None:
    """Items of a cluster share their chance: intervals for single items are far too narrow."""
    by_cluster = by_item = 0
    n_trials, n_clusters, size = 600, 60, 10
    for _ in range(n_trials):
        chance = torch.rand(n_clusters, generator=rng).pow(0.25)  # 0.8 on average
        hits = torch.rand(n_clusters, size, generator=rng) < chance[:, None]
        low, high = share_interval(hits.sum(dim=1), torch.full((n_clusters,), size))[1:]
        by_cluster += low <= 0.8 <= high
        low, high = share_interval(hits.flatten().long(), torch.ones(hits.numel()))[1:]
        by_item += low <= 0.8 <= high
    assert by_cluster / n_trials == pytest.approx(0.95, abs=0.03)
    assert by_item / n_trials < 0.9


WRONG = {
    "none": (lambda: isotonic_regression(torch.ones(0)), "at least one item"),
    "not finite": (
        lambda: isotonic_curve(torch.tensor([1.0, math.nan]), torch.ones(2)),
        r"NaN or inf .* such as \[1\]",
    ),
    "weights": (lambda: platt_scaling(torch.ones(2), torch.ones(2) > 0, torch.tensor([1.0, 0.0])), "positive weights"),
    "fewer": (lambda: _plain(platt_scaling)(torch.ones(2), torch.ones(3) > 0), "got 2 and 3|got 3 and 2"),
    "bins": (lambda: reliability_curve(torch.ones(1), torch.ones(1) > 0, n_bins=0), "n_bins >= 1, got 0"),
    "outside": (lambda: brier_score(torch.tensor([0.5, 1.5]), torch.ones(2) > 0), r"in \[0, 1\], got 1.5 .* \[1\]"),
    "clusters": (
        lambda: _plain(reliability_curve)(torch.ones(1), torch.ones(1) > 0, clusters=torch.ones(2).long()),
        "1 cluster numbers, got 2",
    ),
    "confidence": (lambda: share_interval(torch.ones(1), torch.ones(1), confidence=1.0), r"in \(0, 1\), got 1.0"),
    "hits": (lambda: share_interval(torch.tensor([2]), torch.tensor([1])), "as many hits as items at most"),
    "no items": (lambda: share_interval(torch.tensor([0]), torch.tensor([0])), "got 0 clusters"),
}


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    return inspect.unwrap(function)


@pytest.mark.parametrize("wrong", WRONG)
def test_what_makes_no_sense_is_refused(wrong: str) -> None:
    call, message = WRONG[wrong]
    with pytest.raises(ValueError, match=message):
        call()
