from collections import Counter
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from oml.functional.triplets import (
    Triplets,
    all_pairs,
    all_triplets,
    cluster_triplets,
    draw_triplets,
    hardest_triplets,
    items_of_label,
    lone_labels,
    n_hardest_triplets,
    pairs_of_triplets,
)

LABELS = st.lists(st.integers(0, 2), max_size=7)
SEED = st.integers(0, 99)
RANKS = st.tuples(st.integers(0, 3), st.sampled_from([1, 2, 3, 9])).map(lambda r: slice(r[0], r[0] + r[1]))


def grid(n: int, seed: int) -> Tensor:
    """Points with many ties and duplicates."""
    return torch.randint(3, (n, 2), generator=torch.Generator().manual_seed(seed)).float()


def rows(triplets: Triplets) -> list[tuple[int, ...]]:
    return list(zip(*(ids.tolist() for ids in triplets), strict=True))


def literal(labels: list[int], negative_labels: list[int] | None = None) -> list[tuple[int, int, int]]:
    others = labels if negative_labels is None else negative_labels
    return [
        (a, p, n)
        for a, p, n in product(range(len(labels)), range(len(labels)), range(len(others)))
        if a != p and labels[a] == labels[p] and labels[a] != others[n]
    ]


def test_the_literal_reading_finds_something() -> None:
    assert literal([0, 1, 0]) == [(0, 2, 1), (2, 0, 1)]
    assert literal([0, 0], [0, 1, 0]) == [(0, 1, 1), (1, 0, 1)]


@settings(deadline=None)
@given(labels=LABELS)
def test_all_triplets_follow_the_definition(labels: list[int]) -> None:
    assert rows(all_triplets(torch.tensor(labels, dtype=torch.int64))) == literal(labels)


@settings(deadline=None)
@given(labels=LABELS, others=st.none() | LABELS, n=st.integers(0, 90), seed=SEED)
def test_drawn_triplets_are_different_ones_of_all(
    labels: list[int], others: list[int] | None, n: int, seed: int
) -> None:
    tensors = [torch.tensor(values, dtype=torch.int64) for values in (labels, others or [])]
    generator = torch.Generator().manual_seed(seed)
    drawn = rows(draw_triplets(tensors[0], n, generator, None if others is None else tensors[1]))
    everything = literal(labels, others)
    assert len(set(drawn)) == len(drawn) == min(n, len(everything))
    assert set(drawn) <= set(everything)


@pytest.mark.parametrize("n", [2, 7])  # numbers are drawn in one way below one half of all, in another above
def test_draws_are_uniform(n: int) -> None:
    labels, generator = torch.tensor([4, 1, 4, 1, 2, 4]), torch.Generator().manual_seed(0)
    counts = Counter(triplet for _ in range(1500) for triplet in rows(draw_triplets(labels, n, generator)))
    everything = literal(labels.tolist())
    assert set(counts) == set(everything)
    expected = 1500 * n / len(everything)
    deviation = sum((counts[triplet] - expected) ** 2 / expected for triplet in everything)
    assert deviation < 2 * len(everything)  # chi squared of that many degrees of freedom


def test_drawing_needs_no_memory_for_what_there_is() -> None:
    labels = torch.arange(2**16) % 256
    anchor, positive, negative = draw_triplets(labels, 1000, torch.Generator())  # of 10^12
    assert len(anchor) == 1000
    assert (labels[anchor] == labels[positive]).all()
    assert (labels[anchor] != labels[negative]).all()
    assert (anchor != positive).all()
    assert len(anchor.unique()) > 900


@settings(deadline=None)
@given(labels=LABELS.filter(len), data=st.data())
def test_items_of_label(labels: list[int], data: st.DataObject) -> None:
    anchors = data.draw(st.none() | st.lists(st.integers(0, len(labels) - 1)))
    chosen = None if anchors is None else torch.tensor(anchors, dtype=torch.int64)
    ids, is_other = items_of_label(torch.tensor(labels), chosen)
    anchors = list(range(len(labels))) if anchors is None else anchors
    assert len(ids) == len(anchors)
    for a, row, mask in zip(anchors, ids, is_other, strict=True):
        assert row[0] == a
        assert sorted(row[mask].tolist()) == [i for i, label in enumerate(labels) if label == labels[a] and i != a]
        assert (row[~mask] == a).all()


@settings(deadline=None, max_examples=300)
@given(labels=LABELS, seed=SEED, positives=RANKS, negatives=RANKS, data=st.data())
def test_n_hardest_triplets_follow_the_definition(
    labels: list[int], seed: int, positives: slice, negatives: slice, data: st.DataObject
) -> None:
    points = grid(len(labels), seed)
    first = data.draw(st.integers(0, len(labels)))
    anchors = range(first, data.draw(st.integers(first, len(labels))))
    d = torch.cdist(points, points)
    expected = []  # anchors and distances: with ties, positions would be ambiguous
    for a in anchors:
        same = sorted((d[a, i].item() for i, label in enumerate(labels) if label == labels[a] and i != a), reverse=True)
        others = sorted(d[a, i].item() for i, label in enumerate(labels) if label != labels[a])
        expected += [(a, p, n) for p in same[positives] for n in others[negatives]]
    ids = torch.arange(anchors.start, anchors.stop)
    mined = rows(n_hardest_triplets(d[ids], torch.tensor(labels, dtype=torch.int64), positives, negatives, anchors=ids))
    assert [(a, d[a, p].item(), d[a, n].item()) for a, p, n in mined] == expected
    assert len(set(mined)) == len(mined)
    assert all(a != p and labels[a] == labels[p] != labels[n] for a, p, n in mined)


def test_n_hardest_triplets_by_hand() -> None:
    x, labels = torch.tensor([[0.0], [1.0], [3.0], [4.0], [9.0], [2.5]]), torch.tensor([0, 0, 0, 1, 1, 2])
    mined = n_hardest_triplets(torch.cdist(x, x), labels, slice(1, 2), slice(0, 2))
    # the second farthest positive: only items of label 0 have one
    assert rows(mined) == [(0, 1, 5), (0, 1, 3), (1, 0, 5), (1, 0, 3), (2, 1, 5), (2, 1, 3)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_infinite_distances_and_other_types(dtype: torch.dtype) -> None:
    labels = torch.tensor([0, 0, 0, 1, 1])
    d = torch.full((5, 5), torch.inf, dtype=dtype)
    d[0, 1], d[0, 4] = 2, 3
    mined = rows(n_hardest_triplets(d, labels, slice(0, 9), slice(0, 9)))
    assert set(mined) == set(literal(labels.tolist()))
    assert mined[:4] == [(0, 2, 4), (0, 2, 3), (0, 1, 4), (0, 1, 3)]


@settings(deadline=None)
@given(labels=LABELS, seed=SEED)
def test_hardest_triplets_follow_the_definition(labels: list[int], seed: int) -> None:
    points = grid(len(labels), seed)
    d = torch.cdist(points, points)
    expected = {}  # anchor -> its two extreme distances: with ties, indices would be ambiguous
    for a, label in enumerate(labels):
        positives = [d[a, i] for i in range(len(labels)) if labels[i] == label and i != a]
        negatives = [d[a, i] for i in range(len(labels)) if labels[i] != label]
        if positives and negatives:
            expected[a] = (max(positives), min(negatives))
    mined = hardest_triplets(d, torch.tensor(labels, dtype=torch.int64))
    assert mined.anchor.tolist() == list(expected)
    for a, p, n in rows(mined):
        assert a != p
        assert labels[a] == labels[p] != labels[n]
        assert (d[a, p], d[a, n]) == expected[a]


@settings(deadline=None)
@given(labels=LABELS, seed=SEED)
def test_cluster_triplets_follow_the_definition(labels: list[int], seed: int) -> None:
    x = grid(len(labels), seed).double()
    means = {label: x[[i for i, other in enumerate(labels) if other == label]].mean(dim=0) for label in set(labels)}
    mined = cluster_triplets(x, torch.tensor(labels, dtype=torch.int64))
    several = [label for label in sorted(set(labels)) if labels.count(label) > 1 and len(means) > 1]
    assert len(mined[0]) == len(mined[1]) == len(mined[2]) == len(several)
    for label, anchor, positive, negative in zip(several, *mined, strict=True):
        torch.testing.assert_close(anchor, means[label])
        own = [x[i] for i, other in enumerate(labels) if other == label]
        assert any(torch.equal(positive, row) for row in own)
        farthest = max((row - anchor).norm() for row in own)
        torch.testing.assert_close((positive - anchor).norm(), farthest)
        others = [mean for other, mean in means.items() if other != label]
        assert any(torch.allclose(negative, mean) for mean in others)
        torch.testing.assert_close((negative - anchor).norm(), min((mean - anchor).norm() for mean in others))


def test_cluster_triplets_have_true_gradients() -> None:
    labels = torch.tensor([2, 0, 2, 0, 0, 1, 2])  # two items would be equally far from their mean
    x = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: cluster_triplets(x, labels), x)


@settings(deadline=None)
@given(labels=LABELS)
def test_all_pairs_are_those_of_all_triplets(labels: list[int]) -> None:
    values = torch.tensor(labels, dtype=torch.int64)
    positive = sorted({(min(a, p), max(a, p)) for a, p, _ in literal(labels)})
    negative = sorted({(min(a, n), max(a, n)) for a, _, n in literal(labels)})
    for pairs in (all_pairs(values), pairs_of_triplets(all_triplets(values), len(labels))):
        assert list(zip(pairs.ids1.tolist(), pairs.ids2.tolist(), strict=True)) == positive + negative
        assert pairs.is_negative.tolist() == [False] * len(positive) + [True] * len(negative)


@settings(deadline=None)
@given(labels=LABELS)
def test_lone_labels_occur_once(labels: list[int]) -> None:
    expected = sorted(label for label in set(labels) if labels.count(label) == 1)
    assert lone_labels(torch.tensor(labels, dtype=torch.int64)).tolist() == expected
