import inspect
import math
import random
from fractions import Fraction
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oml.functional import statistics
from oml.functional.statistics import Interval, bootstrap_interval, bootstrap_intervals, paired_test


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


def test_several_metrics_at_once_are_as_one_by_one(rng: torch.Generator) -> None:
    values = torch.stack([torch.rand(60, generator=rng), torch.randint(2, (60,), generator=rng).float()])
    clusters = torch.randint(20, (60,), generator=rng)
    together = bootstrap_intervals(values, clusters=clusters, seed=2)
    assert together[0].high < together[1].high  # ones and zeros spread more
    for row, found in zip(values, together, strict=True):
        assert found == pytest.approx(bootstrap_interval(row, clusters=clusters, seed=2))


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


def literal_p_value(first: list[int], second: list[int], clusters: list[int]) -> Fraction:
    """The names of the two swapped in every possible set of clusters, without any rounding."""
    names = sorted(set(clusters))
    extreme = 0
    observed = abs(sum(second) - sum(first))
    for swapped in product([False, True], repeat=len(names)):
        is_swapped = dict(zip(names, swapped, strict=True))
        total = sum(a - b if is_swapped[c] else b - a for a, b, c in zip(first, second, clusters, strict=True))
        extreme += abs(total) >= observed
    return Fraction(extreme, 2 ** len(names))


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(-2, 3)), min_size=1, max_size=12))
@settings(deadline=None)
def test_exact_p_values_follow_the_definition(rows: list[tuple[int, int, int]]) -> None:
    first, second, clusters = (list(column) for column in zip(*rows, strict=True))
    tenths = [torch.tensor(column, dtype=torch.float64) / 10 for column in (first, second)]  # rounded, as are sums
    found = paired_test(*tenths, clusters=torch.tensor(clusters), n_resamples=1)
    assert found.difference == pytest.approx((sum(second) - sum(first)) / 10 / len(rows))
    assert found.p_value == literal_p_value(first, second, clusters)


@pytest.mark.parametrize(
    ("differences", "p_value"),
    [
        ((3, 2, 1), 2 / 8),  # 6 is reached by +++ and ---
        ((3, -1, 1), 6 / 8),  # 3 is reached unless both ones are against the three
        ((3, -2, 1), 6 / 8),  # 2 by +++ 6, ++- 4, +-+ 2, not by +-- 0
        ((3, -2, -1), 1),  # 0 by any
        ((3, 0, 1), 2 / 4),  # a cluster without a difference has no say
        ((0, 0, 0), 1),
    ],
)
def test_golden_p_values_of_three_clusters(differences: tuple[int, ...], p_value: float) -> None:
    # two queries a cluster, that hold one more than the whole difference, and one that takes it back
    clusters = torch.tensor([7, 8, 9, 9, 8, 7])
    second = torch.tensor([*(d + 1.0 for d in differences), -1.0, -1.0, -1.0])
    found = paired_test(torch.zeros(6), second, clusters=clusters)
    assert found.difference == pytest.approx(sum(differences) / 6)
    assert found.p_value == p_value


def test_clusters_without_a_difference_do_not_make_p_a_guess() -> None:
    second = torch.zeros(60)
    second[[3, 30, 50]] = torch.tensor([0.3, 0.2, 0.1])
    assert paired_test(torch.zeros(60), second).p_value == 0.25


def test_many_clusters_are_drawn_and_p_is_never_zero() -> None:
    values = torch.rand(40, generator=torch.Generator().manual_seed(0)) + 1
    assert paired_test(torch.zeros(40), values, n_permutations=99).p_value == 1 / 100  # two of 2 ** 40 are as large
    assert paired_test(values, values, n_permutations=99) == (0, 0, 0, 1)


def test_drawn_choices_come_near_to_all_of_them() -> None:
    values = torch.rand(10, generator=torch.Generator().manual_seed(3)) - 0.2
    exact = paired_test(torch.zeros(10), values, n_permutations=2**10).p_value
    assert 0.05 < exact < 0.5
    assert exact * 2**10 == pytest.approx(round(exact * 2**10))
    drawn = paired_test(torch.zeros(10), values, n_permutations=2**10 - 1).p_value
    assert drawn != exact
    assert drawn == pytest.approx(exact, abs=4 * math.sqrt(exact / 2**10))


def test_the_interval_is_that_of_the_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    clusters = torch.arange(30).repeat_interleave(4)
    first = torch.rand(30, generator=generator)[clusters]
    second = first + 0.1 + 0.05 * torch.randn(120, generator=generator)
    found = paired_test(first, second, clusters=clusters, confidence=0.8, n_resamples=500, seed=2)
    differences = second.double() - first.double()
    expected = bootstrap_interval(differences, clusters=clusters, confidence=0.8, n_resamples=500, seed=2)
    assert found[:3] == expected
    assert found.p_value == 1e-4
    # what is hard with one model is hard with the other, so that the difference is surer than either
    alone = bootstrap_interval(second, clusters=clusters, confidence=0.8)
    assert found.high - found.low < 0.3 * (alone.high - alone.low)


def test_differences_are_claimed_as_seldom_as_they_say() -> None:
    """Two models alike on average, whose luck is that of a label: only the test by label has a level of 5 %."""
    generator = torch.Generator().manual_seed(0)
    clusters = torch.arange(40).repeat_interleave(5)
    n_trials, claimed, held = 200, {"queries": 0, "clusters": 0}, 0
    for trial in range(n_trials):
        first, second = (
            torch.randn(40, generator=generator)[clusters] + 0.5 * torch.randn(200, generator=generator)
            for _ in range(2)
        )
        by_query = paired_test(first, second, n_resamples=1, n_permutations=99, seed=trial)
        by_cluster = paired_test(first, second, clusters=clusters, n_resamples=200, n_permutations=99, seed=trial)
        claimed["queries"] += by_query.p_value <= 0.05
        claimed["clusters"] += by_cluster.p_value <= 0.05
        held += by_cluster.low <= 0 <= by_cluster.high
    assert claimed["queries"] / n_trials > 0.25
    assert 0.02 < claimed["clusters"] / n_trials < 0.09  # the deviation of the share is 0.015
    assert 0.88 < held / n_trials < 0.97  # 0.95 less what 40 clusters and 200 means cost


def test_the_interval_holds_a_difference_and_the_test_finds_it() -> None:
    generator = torch.Generator().manual_seed(1)
    clusters = torch.arange(40).repeat_interleave(5)
    n_trials, held, found = 100, 0, 0
    for trial in range(n_trials):
        first = torch.rand(40, generator=generator)[clusters]
        effect = 0.2 + 0.3 * torch.randn(40, generator=generator)[clusters]
        test = paired_test(first, first + effect, clusters=clusters, n_resamples=200, n_permutations=199, seed=trial)
        held += test.low <= 0.2 <= test.high
        found += test.p_value <= 0.05
    assert 0.87 < held / n_trials < 0.99
    assert found / n_trials > 0.95  # 0.2 is four deviations of the mean of the labels


def test_names_order_seed_and_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand(60, generator=generator), torch.rand(60, generator=generator)
    clusters = torch.arange(60) // 3
    expected = paired_test(first, second, clusters=clusters, seed=1)
    assert expected.difference != 0
    assert 0.01 < expected.p_value < 1
    torch.manual_seed(123)
    state = torch.get_rng_state()
    assert paired_test(first, second, clusters=clusters * 10**12 - 5, seed=1) == expected
    assert torch.equal(torch.get_rng_state(), state)
    assert paired_test(first, second, clusters=clusters, seed=2).p_value != expected.p_value
    order = torch.randperm(60, generator=generator)
    shuffled = paired_test(first[order], second[order], clusters=clusters[order], seed=1)
    assert shuffled == pytest.approx(expected)
    swapped = paired_test(second, first, clusters=clusters, seed=1)
    assert swapped == pytest.approx((-expected.difference, -expected.high, -expected.low, expected.p_value))
    monkeypatch.setattr(statistics, "_DRAWS", 777)
    assert paired_test(first, second, clusters=clusters, seed=1) == pytest.approx(expected)
    exact = paired_test(first[:33], second[:33], clusters=clusters[:33])
    monkeypatch.undo()
    assert paired_test(first[:33], second[:33], clusters=clusters[:33]) == pytest.approx(exact)


def test_bad_arguments_of_the_paired_test() -> None:
    values = torch.rand(4)
    unchecked = inspect.unwrap(paired_test)  # the test run would refuse the shapes earlier
    with pytest.raises(ValueError, match="two values of every query, got 4 and 3"):
        unchecked(values, values[:3])
    with pytest.raises(ValueError, match=r"paired_test needs 4 cluster numbers, got \(3,\)"):
        unchecked(values, values, clusters=torch.arange(3))
    with pytest.raises(ValueError, match="at least one value"):
        paired_test(values[:0], values[:0])
    for one, other in ((values, values / 0), (values / 0, values)):
        with pytest.raises(ValueError, match="paired_test needs finite values, got NaN or inf for 4 of 4 queries"):
            paired_test(one, other)
    with pytest.raises(ValueError, match="n_permutations >= 1"):
        paired_test(values, values, n_permutations=0)
    with pytest.raises(ValueError, match=r"paired_test needs a confidence in \(0, 1\)"):
        paired_test(values, values, confidence=1.0)
