"""Calibration on pairs whose probabilities are known, and thresholds against loops over all pairs."""

import inspect
import json
import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from oml.functional.pair_blocks import measured
from oml.retrieval import RetrievalResults
from oml.retrieval.calibration import Calibration, FittedOn, MatchThreshold, Method, _held_out
from oml.retrieval.postprocessors.calibrated import CalibratedThresholding

METHODS: tuple[Method, ...] = ("isotonic", "platt")
FMRS = [0, 0.001, 0.02, 0.5, 1]


def true_probability(distances: Tensor) -> Tensor:
    return torch.sigmoid(-12 * (distances - 0.6))


def drawn(n: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    distances = 1.2 * torch.rand(n, generator=generator)
    return distances, torch.rand(n, generator=generator) < true_probability(distances)


@pytest.fixture(scope="module")
def world() -> tuple[Tensor, Tensor, RetrievalResults]:
    return world_of(grid=False)


def world_of(grid: bool) -> tuple[Tensor, Tensor, RetrievalResults]:
    """Embeddings of 40 labels that overlap, sequences among them, some items queries and some galleries; all found.

    On a grid, right and wrong pairs have the same distances.
    """
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(40, (160,), generator=generator)
    points = 0.3 * torch.randn(160, 3, generator=generator) + torch.randn(40, 3, generator=generator)[labels]
    points = (2 * points).round() / 2 if grid else points
    roles = torch.rand(2, 160, generator=generator) < 0.8
    sequences = torch.where(torch.rand(160, generator=generator) < 0.3, labels * 2 + (torch.arange(160) % 2), -1)
    with pytest.warns(UserWarning, match="nothing to find"):
        results = RetrievalResults.from_embeddings(
            points, labels, *roles, top_k=1000, sequences=sequences, on_missing="ignore"
        )
    return points, sequences, results


def literal_pairs(
    points: Tensor, results: RetrievalResults, sequences: Tensor, labels: set[int] | None = None
) -> list[tuple[bool, float]]:
    """Whether both are of one label, and the distance, of each query and gallery not of one item or sequence."""
    n = len(points)
    distances = measured(points, points, torch.arange(n).repeat_interleave(n), torch.arange(n).repeat(n)).tolist()
    pairs = []
    for i, of_query in zip(results.query_ids.tolist(), results.query_labels.tolist(), strict=True):
        for j, of_gallery in zip(results.gallery_ids.tolist(), results.gallery_labels.tolist(), strict=True):
            of_one_sequence = sequences[i] >= 0 and sequences[i] == sequences[j]
            if i == j or of_one_sequence or (labels is not None and not {of_query, of_gallery} <= labels):
                continue
            pairs.append((of_query == of_gallery, distances[i * n + j]))
    return pairs


def literal_rates(pairs: list[tuple[bool, float]], threshold: float) -> tuple[float, float]:
    """False match rate, false non-match rate."""
    wrong, right = [d for same, d in pairs if not same], [d for same, d in pairs if same]
    return sum(d < threshold for d in wrong) / len(wrong), sum(d >= threshold for d in right) / len(right)


def literal_threshold(pairs: list[tuple[bool, float]], fmr: float) -> float:
    wrong = sorted(d for same, d in pairs if not same)
    return max(t for t in [*wrong, math.inf] if bisect_left(wrong, t) / len(wrong) <= fmr)


@pytest.mark.parametrize("method", METHODS)
def test_probabilities_are_those_that_drew_the_pairs(method: Method) -> None:
    distances, is_relevant = drawn(60_000, seed=0)
    labels = torch.arange(len(distances)) // 20
    calibration = Calibration.fit(distances, is_relevant, labels=labels, method=method)
    at = torch.linspace(0.1, 1.1, 101)
    # of 60 000 pairs, 2 500 are within 0.025: a standard error of 0.01
    torch.testing.assert_close(calibration.probability(at), true_probability(at), atol=0.05, rtol=0)
    quality = calibration.quality
    assert quality is not None
    assert (quality.n_labels, quality.n_pairs) == (1500, 30_000)
    assert quality.ece < 0.012 < 0.1 < quality.ece_before
    best = (true_probability(distances) * (1 - true_probability(distances))).mean().item()
    assert quality.brier == pytest.approx(best, abs=0.005)
    assert quality.brier_before > quality.brier + 0.01
    inside = [
        low <= p <= high
        for p, low, high in zip(quality.curve.predicted, quality.curve.low, quality.curve.high, strict=True)
    ]
    assert len(inside) == 10
    assert sum(inside) >= 8  # of 10 intervals of 95 %


def test_quality_is_of_labels_that_were_not_fitted_on(rng: torch.Generator) -> None:
    labels = torch.randint(21, (400,), generator=rng)
    distances = torch.rand(400, generator=rng)
    is_relevant = torch.rand(400, generator=rng) > distances
    calibration = Calibration.fit(distances, is_relevant, labels=labels, seed=5)
    held_out = _held_out(labels, 5)
    assert len(held_out) == len(held_out.unique()) == 10
    assert set(held_out.tolist()) < set(labels.tolist())
    assert set(_held_out(labels, 6).tolist()) != set(held_out.tolist())
    is_judged = torch.tensor([label in held_out.tolist() for label in labels.tolist()])
    half = Calibration.fit(distances[~is_judged], is_relevant[~is_judged])
    quality = calibration.quality
    assert quality is not None
    errors = half.probability(distances[is_judged].double()) - is_relevant[is_judged].double()
    assert quality.brier == pytest.approx(errors.square().mean().item())
    assert (quality.n_pairs, quality.n_labels, quality.seed) == (int(is_judged.sum()), 10, 5)
    assert quality.base_rate == pytest.approx(is_relevant[is_judged].double().mean().item())
    low, high = distances[~is_judged].aminmax()
    before = ((high - distances[is_judged]) / (high - low)).clamp(0, 1) - is_relevant[is_judged].float()
    assert quality.brier_before == pytest.approx(before.square().mean().item(), rel=1e-4)
    # what is kept is of all pairs
    everything = Calibration.fit(distances, is_relevant)
    assert (calibration.distances, calibration.values) == (everything.distances, everything.values)
    assert (half.distances, half.values) != (everything.distances, everything.values)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=20),
    st.sampled_from(METHODS),
    st.sampled_from([0, 0.01, 0.25, 0.5, 0.77, 1]),
)
def test_probabilities_never_rise_and_thresholds_are_theirs(
    pairs: list[tuple[int, bool]], method: Method, probability: float
) -> None:
    distances, is_relevant = torch.tensor([d / 3 for d, _ in pairs]), torch.tensor([hit for _, hit in pairs])
    if is_relevant.all() or not is_relevant.any():
        return
    calibration = Calibration.fit(distances, is_relevant, method=method)
    at = torch.linspace(-1, 3, 401, dtype=torch.float64)
    found = calibration.probability(at)
    assert (found.diff() <= 1e-15).all()
    assert ((found > 0) & (found < 1)).all()
    ends = calibration.probability(distances.double().sort().values[[0, -1]])
    torch.testing.assert_close(found[[0, -1]], ends)  # level beyond what was seen
    threshold = calibration.threshold(probability)
    likely = found >= probability
    if math.isinf(threshold):
        assert likely.all()
    elif threshold == 0:
        assert not likely.any()
    else:
        below, there = torch.tensor([math.nextafter(threshold, 0), threshold], dtype=torch.float64)
        assert calibration.probability(below) >= probability > calibration.probability(there)
        assert torch.equal(likely, at < threshold)


def test_equal_targets_leave_no_steps_of_rounding(rng: torch.Generator) -> None:
    distances = torch.rand(3000, generator=rng)
    calibration = Calibration.fit(distances, distances < 0.5)
    assert calibration.values == pytest.approx([calibration.values[0]] * 2 + [calibration.values[-1]] * 2)


@pytest.mark.parametrize("method", METHODS)
def test_distances_that_say_the_opposite_give_the_base_rate(method: Method) -> None:
    distances = torch.linspace(0, 1, 100)
    calibration = Calibration.fit(distances, distances > 0.75, method=method)
    found = calibration.probability(distances)
    assert found[0] == found[-1]
    assert found[0].item() == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("grid", [False, True])
@pytest.mark.parametrize("by", ["embeddings", "retrieved"])
def test_thresholds_hold_exactly_on_the_pairs_they_are_of(by: str, grid: bool) -> None:
    points, sequences, results = world_of(grid)
    embeddings = points if by == "embeddings" else None  # the whole gallery was retrieved: no difference
    calibration = Calibration.from_results(results, top_k=5, embeddings=embeddings, fmr_vals=FMRS, seed=1)
    pairs = literal_pairs(points, results, sequences)
    n_own = len(results) * len(results.gallery_ids) - len(pairs)
    assert n_own > len(set(results.query_ids.tolist()) & set(results.gallery_ids.tolist())) > 0  # sequences, too
    shown = results.query_labels[:, None].expand(-1, 5)[results.retrieved_ids[:, :5] >= 0]
    judged = set(_held_out(shown, 1).tolist())
    fitted = set(results.query_labels.tolist()) | set(results.gallery_labels.tolist())
    halves = [literal_pairs(points, results, sequences, labels) for labels in (fitted - judged, judged)]
    for fmr in FMRS:
        found = calibration.threshold_at_fmr(fmr)
        assert found.n_wrong == sum(not same for same, _ in pairs)
        assert found.distance == literal_threshold(pairs, fmr)
        rate, missed = literal_rates(pairs, found.distance)
        assert rate <= fmr
        assert found.fnmr == pytest.approx(missed)
        assert found.low <= found.fnmr <= found.high
        held_out = literal_rates(halves[1], literal_threshold(halves[0], fmr))
        assert (found.held_out_fmr, found.held_out_fnmr) == pytest.approx(held_out)
    middle = calibration.threshold_at_fmr(0.02)
    assert 0.01 < middle.low < middle.fnmr < middle.high < 0.99
    assert calibration.threshold_at_fmr(1).distance == math.inf


def test_what_was_not_retrieved_does_not_match(world: tuple[Tensor, Tensor, RetrievalResults]) -> None:
    points, sequences, results = world
    few = results.with_ranking(results.retrieved_ids[:, :3], results.distances[:, :3])
    calibration = Calibration.from_results(few, fmr_vals=[0.001, 0.5])
    pairs = literal_pairs(points, results, sequences)
    n_wrong, n_right = (sum(same == right for same, _ in pairs) for right in (False, True))
    strict, loose = calibration.thresholds
    assert strict.n_wrong == loose.n_wrong == n_wrong
    near = few.distances < strict.distance
    n_false = int((near & ~few.is_relevant).sum())
    assert n_false / n_wrong <= 0.001 < (n_false + 2) / n_wrong  # the next one is there twice
    assert strict.fnmr == pytest.approx(1 - int((near & few.is_relevant).sum()) / n_right)
    assert loose.distance == math.inf  # fewer wrong ones were retrieved
    assert loose.fnmr == pytest.approx(1 - int(few.is_relevant.sum()) / n_right)


def test_results_bring_what_a_search_shows(world: tuple[Tensor, Tensor, RetrievalResults]) -> None:
    _, _, results = world
    calibration = Calibration.from_results(results, top_k=4, distance="L2", extractor="abc", table="def")
    found = results.retrieved_ids[:, :4] >= 0
    pairs = results.distances[:, :4][found], results.is_relevant[:, :4][found]
    wanted = Calibration.fit(*pairs)
    assert (calibration.distances, calibration.values) == (wanted.distances, wanted.values)
    assert calibration.fitted_on == FittedOn(
        n_pairs=int(found.sum()),
        n_relevant=int(pairs[1].sum()),
        n_queries=len(results),
        n_labels=len(results.query_labels.unique()),
        top_k=4,
        distance="L2",
        extractor="abc",
        table="def",
    )
    probabilities = calibration.probabilities(results)
    is_none = results.retrieved_ids < 0
    assert is_none.any()
    assert (probabilities[is_none] == 0).all()
    torch.testing.assert_close(probabilities[~is_none], calibration.probability(results.distances[~is_none]))


@pytest.mark.parametrize("by", ["object", "file"])
def test_search_drops_what_is_less_probable(
    by: str, world: tuple[Tensor, Tensor, RetrievalResults], tmp_path: Path
) -> None:
    points, _, results = world
    calibration = Calibration.from_results(results, top_k=5, embeddings=points, fmr_vals=[0.01])
    calibration.save(tmp_path / "calibration.json")
    given: Any = calibration if by == "object" else tmp_path / "calibration.json"
    before = results.retrieved_ids.clone(), results.distances.clone()
    threshold = calibration.threshold_at_fmr(0.01).distance
    for kept, postprocessor in (
        (results.distances < threshold, CalibratedThresholding(given, fmr=0.01)),
        (
            calibration.probability(results.distances.double()) >= 0.5,
            CalibratedThresholding(given, min_probability=0.5),
        ),
        (calibration.probability(results.distances.double()) >= 0.5, CalibratedThresholding(given)),
    ):
        found = postprocessor.rerank(results, {})
        kept = kept & (results.retrieved_ids >= 0)
        assert 0 < kept.sum() < kept.numel()
        assert torch.equal(found.retrieved_ids, torch.where(kept, results.retrieved_ids, -1))
        assert torch.equal(found.distances, torch.where(kept, results.distances, torch.inf))
    assert torch.equal(before[0], results.retrieved_ids)
    assert torch.equal(before[1], results.distances)
    everything = CalibratedThresholding(given, min_probability=0).rerank(results, {})
    assert torch.equal(everything.retrieved_ids, results.retrieved_ids)
    assert (CalibratedThresholding(given, min_probability=1).rerank(results, {}).retrieved_ids == -1).all()


@pytest.mark.parametrize("method", METHODS)
def test_what_is_saved_is_what_is_loaded(
    method: Method, world: tuple[Tensor, Tensor, RetrievalResults], tmp_path: Path
) -> None:
    points, _, results = world
    calibration = Calibration.from_results(
        results, top_k=5, embeddings=points, fmr_vals=FMRS, method=method, extractor="abc"
    )
    path = tmp_path / "new" / "calibration.json"
    calibration.save(path)
    assert Calibration.load(path) == calibration
    assert "Infinity" not in path.read_text()
    plain = Calibration.fit(*drawn(50, seed=1), method=method)
    plain.save(path)
    assert Calibration.load(path) == plain != calibration
    assert [file.name for file in path.parent.iterdir()] == ["calibration.json"]


def changed(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda content: {**content, **changes}


OTHER_FILES = {
    "no JSON": (lambda _: "{", "it is no JSON"),
    "a list": (lambda _: [1], "it holds something else"),
    "something else": (lambda _: {"metrics": {}}, "it holds something else"),
    "a later version": (changed(version=2), "it is of version 2, this release reads 1"),
    "less": (lambda content: {k: v for k, v in content.items() if k != "quality"}, "quality"),
    "more": (changed(more=1), "it needs method, distances, .* of a Calibration, and has"),
    "another method": (changed(method="linear"), "method of a Calibration is 'linear'"),
    "falling distances": (changed(distances=[2.0, 1.0], values=[1.0, 0.0]), "ascending distances"),
    "rising values": (changed(distances=[1.0, 2.0], values=[0.1, 0.2]), "values that never rise"),
    "no probabilities": (changed(distances=[1.0], values=[1.5]), "probabilities"),
    "no numbers": (changed(distances=["1"]), r"distances of a Calibration is \('1',\)"),
    "not as many": (changed(distances=[1.0]), "1 distances"),
    "no curve": (changed(distances=[], values=[]), "0 distances"),
    "not finite": (changed(distances=[math.nan], values=[0.5]), "ascending distances"),
    "bad record": (changed(fitted_on={"n_pairs": 1}), "it needs n_pairs, .* of a FittedOn"),
    "bad number": (changed(thresholds=[dict.fromkeys(MatchThreshold.__dataclass_fields__)]), "fmr of a MatchThreshold"),
    "no record": (changed(thresholds=[3]), "."),
}


@pytest.mark.parametrize("other", OTHER_FILES)
def test_other_files_are_refused(other: str, tmp_path: Path) -> None:
    Calibration.fit(*drawn(50, seed=1)).save(path := tmp_path / "calibration.json")
    make, message = OTHER_FILES[other]
    content = make(json.loads(path.read_text()))
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=f"(?s)Calibration.load needs a file .* not '{path}': .*{message}"):
        Calibration.load(path)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no file .*missing.json.*oml calibrate"):
        Calibration.load(tmp_path / "missing.json")
    with pytest.raises(ValueError, match="that is a folder"):
        Calibration.load(tmp_path)


ONE = torch.tensor([True, False])
WRONG = {
    "method": (
        lambda: inspect.unwrap(Calibration.fit.__func__)(Calibration, torch.ones(2), ONE, method="x"),
        "got 'x'",
    ),
    "all right": (lambda: Calibration.fit(torch.ones(2), ONE | True), "right and wrong pairs, got 2 right ones of 2"),
    "infinite": (lambda: Calibration.fit(torch.tensor([1.0, math.inf]), ONE), r"for 1 of 2 pairs, such as \[1\]"),
    "one label": (
        lambda: Calibration.fit(torch.rand(4), torch.tensor([True, False, True, False]), labels=torch.ones(4).long()),
        "of 1 labels, those held out have 0 pairs",
    ),
    "probability": (lambda: Calibration.fit(torch.rand(2), ONE).threshold(1.5), r"in \[0, 1\], got 1.5"),
    "rate": (
        lambda: Calibration.fit(torch.rand(2), ONE).threshold_at_fmr(0.1),
        "no threshold for the false match rate 0.1; it was fitted for none",
    ),
    "nan": (lambda: Calibration.fit(torch.rand(2), ONE).probability(torch.tensor([math.nan])), "got NaN for 1"),
    "both": (lambda: CalibratedThresholding(Calibration.fit(torch.rand(2), ONE), 0.5, 0.1), "got both, 0.5 and 0.1"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_makes_no_sense_is_refused(wrong: str) -> None:
    call, message = WRONG[wrong]
    with pytest.raises(ValueError, match=message):
        call()


def test_results_that_do_not_fit_are_refused(world: tuple[Tensor, Tensor, RetrievalResults]) -> None:
    points, _, results = world
    for embeddings, message in ((points * 1.01, "distances differ"), (points[:5], "there are 5 for 160 items")):
        with pytest.raises(ValueError, match=f"the embeddings whose L2 distances are in the results, but {message}"):
            Calibration.from_results(results, embeddings=embeddings)
    with pytest.raises(ValueError, match="a top_k from 1 to"):
        Calibration.from_results(results, top_k=0)
    with pytest.raises(ValueError, match=r"fmr_vals in \[0, 1\], got \[2\]"):
        Calibration.from_results(results, fmr_vals=[2])
    with pytest.raises(ValueError, match=r"fitted for 0.02\. Fit it again with fmr_vals=\[0.01\]"):
        replace(
            Calibration.from_results(results), thresholds=(MatchThreshold(0.02, 1.0, 9, 0.5, 0.4, 0.6),)
        ).threshold_at_fmr(0.01)
