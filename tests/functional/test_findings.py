import inspect
import math
from collections import defaultdict
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from oml.functional import findings
from oml.functional.findings import (
    copy_distances,
    mixed_labels,
    near_copies,
    nearest_across,
    nearest_items,
    wrong_labels,
)
from oml.functional.search import Neighbours


def blobs(n_labels: int, n_each: int, dim: int = 16, spread: float = 0.15, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Items of labels that lie apart: unit vectors as centres."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.nn.functional.normalize(torch.randn(n_labels, dim, generator=generator))
    noise = torch.randn(n_labels * n_each, dim, generator=generator)
    labels = torch.arange(n_labels).repeat_interleave(n_each)
    return centres[labels] + spread * noise / dim**0.5, labels


def relabelled(labels: Tensor, share: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Labels of which some are replaced by another one, and which."""
    generator = torch.Generator().manual_seed(seed)
    items = torch.randperm(len(labels), generator=generator)[: round(share * len(labels))]
    n = int(labels.amax()) + 1
    wrong = labels.clone()
    wrong[items] = (labels[items] + torch.randint(1, n, (len(items),), generator=generator)) % n
    return wrong, items


def precision_recall(found: Tensor, planted: Tensor) -> tuple[float, float]:
    right = len(set(found.tolist()) & set(planted.tolist()))
    return right / max(len(found), 1), right / len(planted)


# ------------------------------------------------------------------------------------------------------- wrong labels


def literal_wrong_labels(neighbours: Neighbours, labels: list[int], items: list[int]) -> dict[int, tuple[int, float]]:
    """For each item the label voted for and the score, read from the docstring."""
    ids, distances = neighbours.ids.tolist(), neighbours.distances.tolist()
    n, k = len(labels), len(ids[0])

    def mean_distance(i: int, label: int) -> float:
        of_label = [d for j, d in zip(ids[i], distances[i], strict=True) if j >= 0 and labels[j] == label]
        return sum(of_label) / len(of_label) if of_label else math.nan

    voted, clear = [], []
    for i in range(n):
        ap: dict[int, Fraction] = {}
        for label in dict.fromkeys(labels[j] for j in ids[i] if j >= 0):
            hits = [rank for rank, j in enumerate(ids[i], start=1) if j >= 0 and labels[j] == label]
            to_find = sum(labels[j] == label and items[j] != items[i] for j in range(n))
            if label == labels[i] or len(hits) >= 2:
                ap[label] = sum((Fraction(n_found, rank) for n_found, rank in enumerate(hits, start=1)), Fraction()) / (
                    min(k, to_find)
                )
        own = ap.pop(labels[i], Fraction())
        best = max(ap, key=lambda label: ap[label], default=labels[i])
        voted.append(best if ap.get(best, 0) > own else labels[i])
        clear.append(abs(ap.get(best, Fraction()) - own))

    votes = [i for i in range(n) if clear[i] > 0]
    usual = sum(voted[i] == labels[i] for i in votes) / max(len(votes), 1)
    found = {}
    for i in range(n):
        b = voted[i]
        if b != labels[i]:
            spreads = sorted(d for j in range(n) if labels[j] == b and not math.isnan(d := mean_distance(j, b)))
            s, d = (spreads[(len(spreads) - 1) // 2] if spreads else math.inf), mean_distance(i, b)
            fitting = 1 if s >= d else (s / d) ** 2
            others = [j for j in range(n) if j != i and voted[j] == b and clear[j] >= clear[i]]
            t = (sum(labels[j] == b for j in others) + usual) / (len(others) + 1)
            p = labels.count(b) / n
            found[i] = (b, float(clear[i]) * fitting * max(0.0, (t - p) / (1 - p)))
    return found


@settings(deadline=None, max_examples=80)
@given(
    n=st.integers(1, 14),
    n_labels=st.integers(1, 4),
    k=st.integers(1, 6),
    side=st.sampled_from([1, 2, 5, 30]),
    n_items=st.sampled_from([None, 2, 5]),
    at_once=st.sampled_from([1, 2**20]),
    seed=st.integers(0, 999),
)
def test_wrong_labels_follow_the_definition(
    n: int, n_labels: int, k: int, side: int, n_items: int | None, at_once: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randint(side, (n, 2), generator=generator).float()
    labels = 10 * torch.randint(n_labels, (n,), generator=generator) - 7
    items = None if n_items is None else torch.randint(n_items, (n,), generator=generator) - 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(findings, "_AT_ONCE", at_once)
        assert_wrong_labels_as_defined(points, labels, k, items)


def assert_wrong_labels_as_defined(points: Tensor, labels: Tensor, k: int, items: Tensor | None = None) -> None:
    n = len(labels)
    neighbours = nearest_items(points, k, items=items)
    expected = literal_wrong_labels(neighbours, labels.tolist(), list(range(n)) if items is None else items.tolist())
    found = wrong_labels(neighbours, labels, items=items, min_score=-1)
    scores = dict(zip(found.items.tolist(), found.scores.tolist(), strict=True))
    suggested = dict(zip(found.items.tolist(), found.suggested.tolist(), strict=True))
    assert sorted(scores) == list(range(n))
    for i in range(n):
        label, score = expected.get(i, (labels[i].item(), 0.0))
        assert suggested[i] == label
        assert scores[i] == pytest.approx(score, abs=1e-6)
        assert 0 <= scores[i] <= 1
    assert found.scores.tolist() == sorted(scores.values(), reverse=True)


def test_a_label_whose_items_do_not_find_each_other() -> None:
    """Nothing is known of how far its items lie apart, so any distance fits."""
    points = torch.tensor([0.0, -1.0, 1.0, -1.2, -1.3, 1.2, 1.3, 8.0, 8.1])[:, None]
    labels = torch.tensor([0, 1, 1, 2, 2, 3, 3, 0, 0])
    assert_wrong_labels_as_defined(points, labels, k=2)
    found = wrong_labels(nearest_items(points, k=2), labels, min_score=0.1)
    assert (found.items[0].item(), found.suggested[0].item()) == (0, 1)


def test_a_wrong_label_worked_by_hand() -> None:
    """Item 2 lies at 0.2 among items 0, 1 and 3 of label 0, and carries label 1."""
    points = torch.tensor([0.0, 0.1, 0.2, 0.3, 9.0, 9.1, 9.2])[:, None]
    labels = torch.tensor([0, 0, 1, 0, 1, 1, 1])
    neighbours = nearest_items(points, k=3)
    assert neighbours.ids[2].tolist() == [1, 3, 0]
    # clear: 1 - 0. fitting: d = 0.4 / 3; the means of items 0, 1, 3 are 0.2, 0.15, 0.25, so s = 0.2 > d.
    # trusted: item 1 finds 0, 2, 3, so 0 has AP (1 + 2/3) / 2 = 5/6 < 1, and 1, a single one, no vote.
    # Items 0 and 3 likewise (ranks 1, 3 and 2, 3). So nobody else votes as clearly for 0, and t is what is usual:
    # all seven vote and six are right. p = 3/7.
    found = wrong_labels(neighbours, labels)
    assert (found.items.tolist(), found.suggested.tolist()) == ([2], [0])
    assert found.scores.tolist() == pytest.approx([(6 / 7 - 3 / 7) / (4 / 7)])


@pytest.mark.parametrize(("n_labels", "n_each"), [(2, 100), (20, 10), (60, 4), (5, 200)])
def test_planted_wrong_labels_are_found(n_labels: int, n_each: int) -> None:
    embeddings, labels = blobs(n_labels, n_each)
    neighbours = nearest_items(embeddings)
    assert len(wrong_labels(neighbours, labels).items) == 0
    wrong, planted = relabelled(labels, 0.05)
    found = wrong_labels(neighbours, wrong)
    precision, recall = precision_recall(found.items, planted)
    assert precision == 1
    assert recall >= 0.8
    assert torch.equal(found.suggested, labels[found.items])


def test_planted_wrong_labels_in_labels_that_overlap() -> None:
    """Where a fifth of the nearest neighbours are of other labels, editing as of 1972 is right in 1 of 3 cases."""
    embeddings, labels = blobs(20, 20, dim=12, spread=0.85)
    neighbours = nearest_items(embeddings)
    share = (labels[neighbours.ids[:, 0]] != labels).double().mean()
    assert 0.1 < share < 0.4
    wrong, planted = relabelled(labels, 0.05)
    outvoted = (wrong[neighbours.ids].mode(dim=1).values != wrong).nonzero().squeeze(1)
    assert precision_recall(outvoted, planted)[0] < 0.4
    precision, recall = precision_recall(wrong_labels(neighbours, wrong).items, planted)
    assert precision > 0.7
    assert recall > 0.5


@pytest.mark.parametrize("sizes", [(500, 500), (900, 100), (990, 10), (200,) * 5, (10,) * 100, (2,) * 500])
def test_random_embeddings_accuse_hardly_anybody(sizes: tuple[int, ...]) -> None:
    embeddings = torch.randn(1000, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    assert len(wrong_labels(nearest_items(embeddings), labels).items) <= 5


def test_rare_labels_are_not_wrong_labels() -> None:
    """Labels of one and two items, beside large ones."""
    large, large_labels = blobs(5, 100)
    small, small_labels = blobs(40, 2, seed=1)
    lone, lone_labels = blobs(40, 1, seed=2)
    embeddings = torch.cat([large, small, lone])
    labels = torch.cat([large_labels, 5 + small_labels, 45 + lone_labels])
    assert len(wrong_labels(nearest_items(embeddings), labels).items) <= 2
    labels[torch.tensor([3, 203])] = torch.tensor([100, 5])  # a lone label in the midst of another; one of now three
    assert {3, 203} <= set(wrong_labels(nearest_items(embeddings), labels).items.tolist())


def test_hubs_accuse_nobody() -> None:
    """Items of one label near the centre of all: neighbours of most items, in high dimensions."""
    embeddings, labels = blobs(30, 10, dim=64, spread=1.5)
    generator = torch.Generator().manual_seed(1)
    hubs = embeddings.mean(dim=0) + 0.05 * torch.randn(10, 64, generator=generator) / 8
    embeddings, labels = torch.cat([embeddings, hubs]), torch.cat([labels, torch.full((10,), 30)])
    neighbours = nearest_items(embeddings)
    nearest_label = labels[neighbours.ids].mode(dim=1).values
    assert (nearest_label == 30).double().mean() > 0.5  # hubs they are
    assert len(wrong_labels(neighbours, labels).items) == 0


def test_a_sequence_of_wrong_labels_needs_the_numbers_of_sequences() -> None:
    embeddings, labels = blobs(10, 5)
    frames = embeddings.repeat_interleave(12, 0) + 1e-3 * torch.randn(
        600, 16, generator=torch.Generator().manual_seed(0)
    )
    labels, sequences = labels.repeat_interleave(12), torch.arange(50).repeat_interleave(12)
    wrong = labels.where(sequences != 7, 4)  # of label 1
    assert len(wrong_labels(nearest_items(frames), wrong).items) == 0
    found = wrong_labels(nearest_items(frames, items=sequences), wrong, items=sequences)
    assert sorted(found.items.tolist()) == list(range(84, 96))
    assert set(found.suggested.tolist()) == {1}


# ------------------------------------------------------------------------------------------------------- mixed labels


def literal_mixed_labels(
    neighbours: Neighbours, labels: list[int], items: list[int]
) -> dict[tuple[int, int], tuple[float, int]]:
    k, n = neighbours.ids.shape[1], len(labels)
    counts: dict[tuple[int, int], int] = defaultdict(int)
    looked_at: dict[int, int] = defaultdict(int)
    could: dict[int, list[int]] = defaultdict(list)
    for i, row in enumerate(neighbours.ids.tolist()):
        to_find = sum(labels[j] == labels[i] and items[j] != items[i] for j in range(n))
        could[labels[i]].append(to_find)
        looked_at[labels[i]] += min(k, to_find)
        for j in row[: min(k, to_find)]:
            if j >= 0:
                counts[labels[i], labels[j]] += 1

    def seen_from(a: int, b: int) -> float:
        p = labels.count(b) / (sum(could[a]) / len(could[a]) + labels.count(b))
        return min(counts[a, a] + counts[a, b], counts[a, b] / p) / looked_at[a] if looked_at[a] else 0.0

    return {
        (a, b): (min(seen_from(a, b), seen_from(b, a)), counts[a, b] + counts[b, a])
        for a in set(labels)
        for b in set(labels)
        if a < b
    }


@settings(deadline=None, max_examples=80)
@given(
    n=st.integers(1, 14),
    n_labels=st.integers(1, 4),
    k=st.integers(1, 6),
    side=st.sampled_from([1, 2, 5, 30]),
    n_items=st.sampled_from([None, 2, 5]),
    seed=st.integers(0, 999),
)
def test_mixed_labels_follow_the_definition(
    n: int, n_labels: int, k: int, side: int, n_items: int | None, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randint(side, (n, 2), generator=generator).float()
    labels = 10 * torch.randint(n_labels, (n,), generator=generator) - 7
    items = None if n_items is None else torch.randint(n_items, (n,), generator=generator) - 1
    neighbours = nearest_items(points, k, items=items)
    expected = literal_mixed_labels(neighbours, labels.tolist(), list(range(n)) if items is None else items.tolist())
    found = mixed_labels(neighbours, labels, items=items, min_score=0)
    pairs = {(a, b): i for i, (a, b) in enumerate(found.labels.tolist())}
    assert set(pairs) == {pair for pair, (score, _) in expected.items() if score > 0}
    for pair, i in pairs.items():
        assert found.scores[i].item() == pytest.approx(expected[pair][0])
        assert found.crossing[i].item() == expected[pair][1]
        assert found.scores[i] <= 1
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)


@pytest.mark.parametrize(("n_labels", "n_each"), [(6, 100), (40, 10), (100, 8)])
def test_planted_mixed_labels_are_found(n_labels: int, n_each: int) -> None:
    embeddings, labels = blobs(n_labels, n_each)
    neighbours = nearest_items(embeddings)
    assert len(mixed_labels(neighbours, labels).labels) == 0
    split = labels.clone()
    for label in (0, 3, 5):  # each becomes two
        split[labels == label] += n_labels * (torch.arange(n_each) % 2)
    found = mixed_labels(neighbours, split)
    assert sorted(found.labels.tolist()) == [[label, label + n_labels] for label in (0, 3, 5)]
    assert found.scores.min() > 0.6


def test_labels_of_different_sizes_and_three_in_one() -> None:
    embeddings, labels = blobs(8, 60)
    neighbours = nearest_items(embeddings)
    labels[:12] = 8  # 12 and 48 of one blob
    labels[60:80], labels[80:100] = 9, 10  # three times 20 of one blob
    found = mixed_labels(neighbours, labels)
    assert sorted(found.labels.tolist()) == [[0, 8], [1, 9], [1, 10], [9, 10]]
    assert found.labels[0].tolist() == [0, 8]


def test_labels_side_by_side_are_not_mixed() -> None:
    """All neighbours there are lie in both labels, but those of the own label come first."""
    points = torch.tensor([0.0, 0.1, 0.2, 1.0, 1.1, 1.2])[:, None]
    assert len(mixed_labels(nearest_items(points, k=5), torch.tensor([0, 0, 0, 1, 1, 1]), min_score=0).labels) == 0


def test_random_embeddings_mix_all_labels_a_little() -> None:
    embeddings = torch.randn(1000, 16, generator=torch.Generator().manual_seed(0))
    neighbours = nearest_items(embeddings)
    labels = torch.arange(1000) % 10
    assert len(mixed_labels(neighbours, labels).labels) == 0
    scores = mixed_labels(neighbours, labels, min_score=0).scores
    assert len(scores) == 45
    assert 0.1 < scores.mean() < 0.25  # 2 / 10


# ------------------------------------------------------------------------------------------------------------- copies


@settings(deadline=None, max_examples=60)
@given(n=st.integers(0, 12), k=st.integers(1, 4), side=st.integers(1, 12), seed=st.integers(0, 999))
def test_near_copies_follow_the_definition(n: int, k: int, side: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    neighbours = nearest_items(torch.randint(side, (n, 2), generator=generator).float(), k)
    limits = torch.tensor([0.0, 1.0, 1.5, 2.0])[torch.randint(4, (n,), generator=generator)]
    found = near_copies(neighbours, limits)
    of_pair, expected = {}, {}
    for i, (ids, distances) in enumerate(zip(neighbours.ids.tolist(), neighbours.distances.tolist(), strict=True)):
        for j, d in zip(ids, distances, strict=True):
            if j >= 0 and d <= min(limits[i], limits[j]):
                of_pair[min(i, j), max(i, j)] = min(limits[i], limits[j]).item()
                expected[min(i, j), max(i, j)] = d
    pairs = [tuple(pair) for pair in found.pairs.tolist()]
    assert dict(zip(pairs, found.distances.tolist(), strict=True)) == expected
    scores = [1 - expected[pair] / of_pair[pair] if expected[pair] > 0 else 1 for pair in pairs]
    assert found.scores.tolist() == pytest.approx(scores)
    groups = [{i} for i in range(n)]  # links, followed one after the other
    for i, j in pairs:
        joined = next(group for group in groups if i in group) | next(group for group in groups if j in group)
        groups = [*(group for group in groups if not group & joined), joined]
    for (i, _), a in zip(pairs, found.groups.tolist(), strict=True):
        for (j, _), b in zip(pairs, found.groups.tolist(), strict=True):
            assert (a == b) == any({i, j} <= group for group in groups)
    assert found.groups.tolist() == sorted(found.groups.tolist())
    best = [score for score, new in zip(scores, _is_first(found.groups.tolist()), strict=True) if new]
    assert best == sorted(best, reverse=True)  # the surest group first, and in it the surest pair
    for group in set(found.groups.tolist()):
        of_group = found.scores[found.groups == group].tolist()
        assert of_group == sorted(of_group, reverse=True)
    same = near_copies(neighbours, 1.5)
    assert all(torch.equal(*parts) for parts in zip(same, near_copies(neighbours, torch.full((n,), 1.5)), strict=True))


def _is_first(numbers: list[int]) -> list[bool]:
    return [number not in numbers[:place] for place, number in enumerate(numbers)]


def test_a_chain_of_copies_is_one_group() -> None:
    n = 200
    places = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    found = near_copies(nearest_items(places.float()[:, None], k=2), max_distance=1)
    assert len(found.pairs) == n - 1
    assert set(found.groups.tolist()) == {0}


def literal_copy_distances(rows: list[list[float]]) -> list[float]:
    usual = [row for row in rows if len(row) > 1 and row[0] > 0 and row[1] < math.inf]
    if not usual:
        return [0.0] * len(rows)
    middle = (len(usual) - 1) // 2
    q = sorted(row[0] / row[1] for row in usual)[middle] ** math.log2(len(rows) / 0.05)
    quarter = sorted(row[0] for row in usual)[middle] / 4
    limits = []
    for row in rows:
        limit = 0.0
        for p in range(1, min(4, len(row) - 1) + 1):
            if row[p] < math.inf and row[p - 1] < min(q * row[p], quarter):
                limit = min(q * row[p], quarter)
        limits.append(limit)
    return limits


@settings(deadline=None, max_examples=100)
@given(n=st.integers(1, 12), k=st.integers(1, 7), side=st.sampled_from([1, 3, 10, 10_000]), seed=st.integers(0, 999))
def test_copy_distances_follow_the_definition(n: int, k: int, side: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randint(side, (n, 2), generator=generator).float()
    points[n // 2 :] = points[: n - n // 2] + 1e-6 * side * torch.randint(3, (n - n // 2, 2), generator=generator)
    distances = nearest_items(points, k).distances
    expected = literal_copy_distances(distances.tolist())
    torch.testing.assert_close(copy_distances(distances), torch.tensor(expected, dtype=torch.float64))


def test_copy_distances_worked_by_hand() -> None:
    """Ratios are 1/2, median distances 1; n = 5, so q is 1/2 to the power of log2(100), 1/100."""
    rows = [[1.0, 2.0, 4.0]] * 3 + [[0.001, 2.0, 4.0], [0.001, 0.002, 4.0]]
    # of the last two, p = 1 and p = 2 have a gap: 0.001 < 2 / 100 and 0.002 < 4 / 100
    expected = torch.tensor([0, 0, 0, 0.02, 0.04], dtype=torch.float64)
    torch.testing.assert_close(copy_distances(torch.tensor(rows)), expected)
    rows.append([0.001, math.inf, math.inf])  # which tells nothing of a gap
    assert copy_distances(torch.tensor(rows))[5] == 0
    rows[4][2] = 40.0
    assert copy_distances(torch.tensor(rows))[4] == 0.25  # a quarter of the median, less than 40 / 100
    for nothing in ([], [[math.inf, math.inf]], [[0.0, 0.0]] * 3):
        distances = torch.tensor(nothing).reshape(len(nothing), 2)
        assert copy_distances(distances).tolist() == [0.0] * len(nothing)


def found_copies(embeddings: Tensor) -> list[list[int]]:
    neighbours = nearest_items(embeddings)
    return sorted(near_copies(neighbours, copy_distances(neighbours.distances)).pairs.tolist())


def jittered(embeddings: Tensor, size: float, seed: int = 0) -> Tensor:
    """Each item moved by ``size`` times the median distance of nearest neighbours."""
    step = torch.randn(embeddings.shape, generator=torch.Generator().manual_seed(seed))
    median = nearest_items(embeddings, k=1).distances.median()
    return embeddings + size * median * step / step.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("n_each", [1, 5, 50])
@pytest.mark.parametrize(("dim", "size"), [(2, 1e-4), (16, 0.1), (64, 0.2)])
def test_planted_copies_are_found_and_nothing_else(dim: int, size: float, n_each: int) -> None:
    """In many dimensions, distances to neighbours are much alike, so copies may be farther off."""
    embeddings, _ = blobs(600 // n_each, n_each, dim=dim, spread=0.4)
    assert found_copies(embeddings) == []
    for share in (0.02, 0.15):
        n = round(share * 600)
        copies = torch.cat([embeddings[:n:2], jittered(embeddings, size)[1:n:2]])
        planted = [[i, 600 + place] for place, i in enumerate([*range(0, n, 2), *range(1, n, 2)])]
        assert found_copies(torch.cat([embeddings, copies])) == sorted(planted)


def test_where_a_gap_is_the_rule_exact_copies_are_found() -> None:
    embeddings, _ = blobs(300, 2)
    assert found_copies(embeddings) == []
    near = jittered(embeddings, 0.05)[10:20]
    assert found_copies(torch.cat([embeddings, embeddings[:10], near])) == [[i, 600 + i] for i in range(10)]


def test_copies_of_copies_are_one_group() -> None:
    embeddings, _ = blobs(100, 5)
    neighbours = nearest_items(torch.cat([embeddings, *(jittered(embeddings[:10], 0.05, seed) for seed in range(3))]))
    found = near_copies(neighbours, copy_distances(neighbours.distances))
    assert len(set(found.groups.tolist())) == 10
    for group in range(10):
        items = found.pairs[found.groups == group].unique()
        assert len(items) == 4
        assert (items[1:] == torch.tensor([500, 510, 520]) + items[0]).all()


def test_labels_that_are_tight_are_no_copies() -> None:
    """Labels of 2 to 12 items whose spreads differ by a factor of 6, and that lie far apart, as a trained model has."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(2, 13, (300,), generator=generator)
    labels = torch.arange(300).repeat_interleave(sizes)
    centres = torch.nn.functional.normalize(torch.randn(300, 32, generator=generator))
    spreads = 0.3 * torch.exp(0.3 * torch.randn(300, generator=generator))
    noise = torch.randn(len(labels), 32, generator=generator) / 32**0.5
    embeddings = centres[labels] + spreads[labels, None] * noise
    assert spreads.amax() > 5 * spreads.amin()
    neighbours = nearest_items(embeddings)
    assert (labels[neighbours.ids[:, 0]] == labels).double().mean() > 0.95
    assert found_copies(embeddings) == []
    planted = [[i, len(labels) + i] for i in range(50)]
    assert found_copies(torch.cat([embeddings, jittered(embeddings, 0.1)[:50]])) == planted


def test_copies_across_splits() -> None:
    embeddings, _ = blobs(100, 5)
    sides = torch.arange(500) % 2
    embeddings, sides = torch.cat([embeddings, jittered(embeddings, 0.05)[:20]]), torch.cat([sides, 1 - sides[:20]])
    limits = copy_distances(nearest_items(embeddings).distances)
    found = near_copies(nearest_across(embeddings, sides), limits)
    assert sorted(found.pairs.tolist()) == [[i, 500 + i] for i in range(20)]
    assert (found.scores > 0.5).all()
    limits[3] = 0  # both items of a pair have to be near enough
    assert [3, 503] not in near_copies(nearest_across(embeddings, sides), limits).pairs.tolist()


def test_nearest_across() -> None:
    points = torch.tensor([0.0, 1.0, 2.5, 2.6])[:, None]
    ids, distances = nearest_across(points, torch.tensor([5, 5, 7, 5]))
    assert ids.tolist() == [[2], [2], [3], [2]]
    assert distances.flatten().tolist() == pytest.approx([2.5, 1.5, 0.1, 0.1])
    ids, distances = nearest_across(points, torch.zeros(4, dtype=torch.int64))
    assert ids.tolist() == [[-1]] * 4
    assert near_copies(Neighbours(ids, distances), math.inf).pairs.shape == (0, 2)


# ---------------------------------------------------------------------------------------------------------- small ends


@pytest.mark.parametrize("n", [0, 1])
def test_nothing_comes_of_nothing(n: int) -> None:
    neighbours, labels = nearest_items(torch.zeros(n, 3)), torch.zeros(n, dtype=torch.int64)
    for found in (wrong_labels(neighbours, labels), mixed_labels(neighbours, labels), near_copies(neighbours, 1.0)):
        assert all(len(part) == 0 for part in found)
    assert copy_distances(neighbours.distances).tolist() == [0] * n


def test_embeddings_that_are_all_the_same() -> None:
    neighbours, labels = nearest_items(torch.ones(60, 3)), torch.arange(60) % 3
    assert len(wrong_labels(neighbours, labels).items) == 0
    copies = near_copies(neighbours, copy_distances(neighbours.distances))
    assert set(copies.pairs.flatten().tolist()) == set(range(60))
    assert set(copies.groups.tolist()) == {0}


@pytest.mark.parametrize("find", [wrong_labels, mixed_labels])
def test_a_label_and_neighbours_for_each_item(find: Callable[..., object]) -> None:
    neighbours = nearest_items(torch.rand(4, 2))
    find = inspect.unwrap(find)
    with pytest.raises(ValueError, match=f"^{find.__name__} needs .* got 4 rows of neighbours, 3 labels\\."):
        find(neighbours, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="4 labels and 5 items"):
        find(neighbours, torch.zeros(4, dtype=torch.int64), items=torch.arange(5))
