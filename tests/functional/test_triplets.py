from itertools import product

import torch
from hypothesis import given
from hypothesis import strategies as st

from oml.functional.triplets import all_triplets, hardest_triplets, lone_labels

LABELS = st.lists(st.integers(0, 2), min_size=1, max_size=7)


@given(labels=LABELS)
def test_all_triplets_follow_the_definition(labels: list[int]) -> None:
    expected = [
        (a, p, n)
        for a, p, n in product(range(len(labels)), repeat=3)
        if a != p and labels[a] == labels[p] and labels[a] != labels[n]
    ]
    mined = all_triplets(torch.tensor(labels))
    assert list(zip(*(ids.tolist() for ids in mined), strict=True)) == expected


@given(labels=LABELS, seed=st.integers(0, 99))
def test_hardest_triplets_follow_the_definition(labels: list[int], seed: int) -> None:
    points = torch.randint(3, (len(labels), 2), generator=torch.Generator().manual_seed(seed)).float()
    d = torch.cdist(points, points)
    expected = {}  # anchor -> its two extreme distances: with ties, indices would be ambiguous
    for a, label in enumerate(labels):
        positives = [d[a, i] for i in range(len(labels)) if labels[i] == label and i != a]
        negatives = [d[a, i] for i in range(len(labels)) if labels[i] != label]
        if positives and negatives:
            expected[a] = (max(positives), min(negatives))
    mined = hardest_triplets(d, torch.tensor(labels))
    assert mined.anchor.tolist() == list(expected)
    for a, p, n in zip(*(ids.tolist() for ids in mined), strict=True):
        assert a != p
        assert labels[a] == labels[p] != labels[n]
        assert (d[a, p], d[a, n]) == expected[a]


@given(labels=LABELS)
def test_lone_labels_occur_once(labels: list[int]) -> None:
    expected = sorted(label for label in set(labels) if labels.count(label) == 1)
    assert lone_labels(torch.tensor(labels)).tolist() == expected
