"""Thresholds and rates against loops over all pairs."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from oml.functional import pair_counts
from oml.functional.match_rates import match_rates, match_thresholds
from oml.functional.pair_blocks import measured
from oml.functional.verification import verification_metrics

FMRS = [0, 0.1, 0.25, 1 / 3, 0.5, 0.9, 1]


def literal_pairs(points: Tensor, labels: Tensor, n_queries: int, with_items: bool) -> list[tuple[int, bool, float]]:
    """Query, whether both have one label, distance: of all pairs of the first items with all items."""
    return [
        (i, bool(labels[i] == labels[j]), measured(points, points, torch.tensor([i]), torch.tensor([j])).item())
        for i in range(n_queries)
        for j in range(len(points))
        if i != j or not with_items
    ]


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 2)), min_size=3, max_size=9),
    st.integers(1, 9),
    st.booleans(),
    st.sampled_from([0, 2**18]),
)
def test_thresholds_and_rates_follow_the_definition(
    items: list[tuple[int, int, int]], n_queries: int, with_items: bool, few: int
) -> None:
    points = torch.tensor([[x, y] for x, y, _ in items]).float() / 3
    labels, n_queries = torch.tensor([label for *_, label in items]), min(n_queries, len(items))
    pairs = literal_pairs(points, labels, n_queries, with_items)
    negatives = sorted(distance for _, same, distance in pairs if not same)
    if not negatives or len(negatives) == len(pairs):
        return
    queries = points if n_queries == len(points) else points[:n_queries]  # the same object: each product serves twice
    given_items = {}
    if with_items:
        given_items = {"query_items": torch.arange(n_queries), "gallery_items": torch.arange(len(points))}
    args = queries, points, labels[:n_queries], labels
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pair_counts, "FEW_PAIRS", few)
        thresholds = match_thresholds(*args, FMRS, **given_items)
        # and thresholds between, below and above all distances, one of them no number of the distances' dtype
        others = torch.tensor([0.0, -1.0, math.inf, 0.1 + 1e-12, 1 / 3], dtype=torch.float64)
        asked = torch.cat([thresholds.double(), others])
        rates = match_rates(*args, asked, **given_items)

    for fmr, threshold in zip(FMRS, thresholds.tolist(), strict=True):
        candidates = [t for t in [*negatives, math.inf] if sum(d < t for d in negatives) / len(negatives) <= fmr]
        assert threshold == max(candidates)
    assert rates.n_negatives == len(negatives)
    assert rates.n_false.tolist() == [sum(d < t for d in negatives) for t in asked.tolist()]
    positives = [(query, distance) for query, same, distance in pairs if same]
    assert rates.n_positives.tolist() == [sum(q == query for q, _ in positives) for query in range(n_queries)]
    assert rates.n_true.tolist() == [
        [sum(q == query and d < t for q, d in positives) for query in range(n_queries)] for t in asked.tolist()
    ]


def test_many_pairs_are_those_of_tar_at_far(rng: torch.Generator) -> None:
    labels = torch.arange(600) // 6
    points = torch.randn(600, 8, generator=rng) + 2 * torch.randn(100, 8, generator=rng)[labels]
    items = torch.arange(600)
    fmrs = [0, 1e-5, 1e-3, 0.01, 1]
    both = {"query_items": items, "gallery_items": items, "memory_budget": 4 * 2**20}
    thresholds = match_thresholds(points, points, labels, labels, fmrs, **both)
    rates = match_rates(points, points, labels, labels, thresholds, **both)
    assert rates.n_negatives == 600 * 594
    # each distance is there twice, as both items of a pair are query and gallery
    assert rates.n_false.tolist() == [math.floor(fmr * rates.n_negatives) // 2 * 2 for fmr in fmrs]
    accepted = verification_metrics(points, points, labels, labels, far_vals=fmrs, **both)["tar@far"]
    assert isinstance(accepted, dict)
    found = rates.n_true.sum(dim=1) / rates.n_positives.sum()
    torch.testing.assert_close(found, torch.stack(list(accepted.values())))
    assert 0 < found[2] < 1


def test_what_makes_no_sense_is_refused() -> None:
    points, labels = torch.eye(3), torch.tensor([0, 0, 1])
    with pytest.raises(ValueError, match=r"match_thresholds needs one or more fmr_vals in \[0, 1\], got \[2\]"):
        match_thresholds(points, points, labels, labels, [2])
    with pytest.raises(ValueError, match="needs thresholds, got NaN"):
        match_rates(points, points, labels, labels, torch.tensor([math.nan]))
    with pytest.raises(ValueError, match="match_rates needs negative pairs, got none"):
        match_rates(points[:2], points[:2], labels[:2], labels[:2], torch.ones(1))
