import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oml.functional.distances import pairwise_dist
from oml.functional.triplets import all_triplets, hardest_triplets
from oml.miners.pairs import PairsMiner


@settings(deadline=None)
@given(labels=st.lists(st.integers(0, 2), max_size=7), seed=st.integers(0, 99), hard=st.booleans())
def test_pairs_are_those_of_the_triplets(labels: list[int], seed: int, hard: bool) -> None:
    x = torch.randn(len(labels), 2, generator=torch.Generator().manual_seed(seed))
    values = torch.tensor(labels, dtype=torch.int64)
    anchor, positive, negative = hardest_triplets(pairwise_dist(x, x), values) if hard else all_triplets(values)
    expected = [
        {frozenset(pair) for pair in zip(anchor.tolist(), role.tolist(), strict=True)} for role in (positive, negative)
    ]
    ids1, ids2, is_negative = PairsMiner(hard_mining=hard).sample(x.requires_grad_(), values)
    assert ids1.dtype == ids2.dtype == torch.int64
    assert is_negative.tolist() == sorted(is_negative.tolist())
    pairs = [frozenset(pair) for pair in zip(ids1.tolist(), ids2.tolist(), strict=True)]
    assert len(set(pairs)) == len(pairs)
    assert [
        {pair for pair, mark in zip(pairs, is_negative, strict=True) if mark == sign} for sign in (0, 1)
    ] == expected


def test_labels_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="PairsMiner needs one integer label per embedding"):
        PairsMiner().sample(torch.zeros(2, 3), [1])
