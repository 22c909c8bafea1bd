import math
import random

import pytest
import torch

from oml.functional import statistics
from oml.functional.statistics import Interval, bootstrap_interval


def literal(values: list[float], clusters: list[int], confidence: float, n_resamples: int, seed: int) -> Interval:
    """Draw the clusters, write down the values of all of them, average; again and again."""
    members = {c: [v for v, cluster in zip(values, clusters, strict=True) if cluster == c] for c in set(clusters)}
    rng = random.Random(seed)
    means = []
    for _ in range(n_resamples):
        drawn = [v for c in rng.choices(sorted(members), k=len(members)) for v in members[c]]
        means.append(sum(drawn) / len(drawn))
    means.sort()
    tail = (1 - confidence) / 2
    return Interval(
        sum(values) / len(values), means[int(tail * n_resamples)], means[math.ceil((1 - tail) * n_resamples) - 1]
    )


@pytest.mark.parametrize("clustered", [False, True])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_intervals_follow_the_definition(clustered: bool, confidence: float) -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.rand(40, generator=generator)
    clusters = torch.randint(12, (40,), generator=generator)
    values += 0.5 * (clusters % 3)  # clusters of many sizes, whose means differ
    expected = literal(values.tolist(), clusters.tolist() if clustered else list(range(40)), confidence, 4000, seed=5)
    found = bootstrap_interval(
        values, clusters=clusters if clustered else None, confidence=confidence, n_resamples=4000
    )
    assert found.mean == pytest.approx(expected.mean)
    # both have drawn at random: an end of the interval has an error of about 3 % of its distance from the mean
    assert found.low - found.mean == pytest.approx(expected.low - expected.mean, rel=0.12)
    assert found.high - found.mean == pytest.approx(expected.high - expected.mean, rel=0.12)


def test_values_known_in_closed_form() -> None:
    # Of n zeros and ones with mean p, resampled means are binomial: their deviation is sqrt(p (1 - p) / n).
    hits = torch.cat([torch.ones(600), torch.zeros(400)])
    found = bootstrap_interval(hits)
    half = 1.96 * math.sqrt(0.6 * 0.4 / 1000)
    assert found.mean == pytest.approx(0.6)
    assert found.low == pytest.approx(0.6 - half, abs=0.004)
    assert found.high == pytest.approx(0.6 + half, abs=0.004)


def test_a_cluster_weighs_as_much_as_it_has_queries() -> None:
    # one query at 0, nine at 1: in half of the resamples both clusters are drawn, and the mean is 0.9, not 0.5
    clusters = torch.tensor([5, *[3] * 9])
    assert bootstrap_interval((clusters == 3).double(), clusters=clusters, confidence=0.3) == (0.9, 0.9, 0.9)


def test_intervals_hold_the_true_mean_as_often_as_they_say() -> None:
    generator = torch.Generator().manual_seed(0)
    n_trials, held = 200, 0
    for trial in range(n_trials):
        values = -torch.rand(80, generator=generator).log()  # exponential, with mean 1
        found = bootstrap_interval(values, confidence=0.9, n_resamples=300, seed=trial)
        held += found.low <= 1 <= found.high
    # 0.9 less the skewness of the distribution; the deviation of the share is 0.02
    assert 0.83 < held / n_trials < 0.95


def test_only_whole_clusters_hold_the_true_mean_of_clustered_data() -> None:
    generator = torch.Generator().manual_seed(0)
    clusters = torch.arange(40).repeat_interleave(10)
    held = {"queries": 0, "clusters": 0}
    for trial in range(100):
        values = torch.randn(40, generator=generator)[clusters] + 0.1 * torch.randn(400, generator=generator)
        by_query = bootstrap_interval(values, n_resamples=300, seed=trial)
        by_cluster = bootstrap_interval(values, clusters=clusters, n_resamples=300, seed=trial)
        assert by_cluster.high - by_cluster.low > 2 * (by_query.high - by_query.low)  # sqrt(10) times as wide
        held["queries"] += by_query.low <= 0 <= by_query.high
        held["clusters"] += by_cluster.low <= 0 <= by_cluster.high
    assert held["queries"] < 70
    assert held["clusters"] > 85


def test_the_seed_decides_and_the_chunks_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.rand(50, generator=torch.Generator().manual_seed(0))
    expected = bootstrap_interval(values, seed=3)
    torch.manual_seed(123)
    state = torch.get_rng_state()
    assert bootstrap_interval(values, seed=3) == expected
    assert torch.equal(torch.get_rng_state(), state)
    assert bootstrap_interval(values, seed=4) != expected
    monkeypatch.setattr(statistics, "_DRAWS", 777)
    assert bootstrap_interval(values, seed=3) == pytest.approx(expected)


def test_cluster_numbers_are_names() -> None:
    values = torch.rand(30, generator=torch.Generator().manual_seed(0))
    clusters = torch.arange(30) // 4
    expected = bootstrap_interval(values, clusters=clusters)
    assert bootstrap_interval(values, clusters=clusters * 10**12 - 5) == expected
    assert bootstrap_interval(values, clusters=torch.arange(30)) == bootstrap_interval(values)


def test_equal_values_and_single_ones_leave_no_doubt() -> None:
    assert bootstrap_interval(torch.full((9,), 0.25)) == Interval(0.25, 0.25, 0.25)
    assert bootstrap_interval(torch.tensor([0.5])) == Interval(0.5, 0.5, 0.5)
    assert bootstrap_interval(torch.tensor([0.0, 1.0]), clusters=torch.tensor([7, 7])) == Interval(0.5, 0.5, 0.5)


def test_bad_arguments() -> None:
    values = torch.rand(4)
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap_interval(values[:0])
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match=r"NaN or inf for 1 of 4 queries, such as \[2\]"):
            bootstrap_interval(torch.tensor([1.0, 0.0, bad, 1.0]))
    for confidence in (0.0, 1.0, -0.5, math.nan):
        with pytest.raises(ValueError, match=r"confidence in \(0, 1\)"):
            bootstrap_interval(values, confidence=confidence)
    with pytest.raises(ValueError, match="n_resamples >= 1"):
        bootstrap_interval(values, n_resamples=0)
