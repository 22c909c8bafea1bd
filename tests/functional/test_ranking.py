import inspect
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oml.functional.ranking import average_precision_at_k, cmc_at_k, precision_at_k

F = Fraction
# Six items of the labels 0, 0, 0, 0, 1, 1, all queries and galleries: the ranks (from 0) of what is right for each.
RELEVANT_RANKS = [[0, 1, 3], [0, 3, 4], [1, 2, 4], [2, 3, 4], [0], [3]]
REFERENCE = {
    # k: (cmc, precision, map)
    1: ([1, 1, 0, 0, 1, 0], [1, 1, 0, 0, 1, 0], [1, 1, 0, 0, 1, 0]),
    2: ([1, 1, 1, 0, 1, 0], [1, F(1, 2), F(1, 2), 0, 1, 0], [1, 1, F(1, 2), 0, 1, 0]),
    3: ([1, 1, 1, 1, 1, 0], [F(2, 3), F(1, 3), F(2, 3), F(1, 3), 1, 0], [1, 1, F(7, 12), F(1, 3), 1, 0]),
    4: (
        [1, 1, 1, 1, 1, 1],
        [1, F(2, 3), F(2, 3), F(2, 3), 1, 1],
        [F(11, 12), F(3, 4), F(7, 12), F(5, 12), 1, F(1, 4)],
    ),
    5: ([1] * 6, [1] * 6, [F(11, 12), F(21, 30), F(53, 90), F(43, 90), 1, F(1, 4)]),
    10: ([1] * 6, [1] * 6, [F(11, 12), F(21, 30), F(53, 90), F(43, 90), 1, F(1, 4)]),
}


@pytest.mark.parametrize("k", REFERENCE)
def test_reference_values(k: int) -> None:
    is_relevant = torch.zeros(6, 5, dtype=torch.bool)
    for query, ranks in enumerate(RELEVANT_RANKS):
        is_relevant[query, ranks] = True
    cmc, precision, average_precision = REFERENCE[k]
    n_relevant = is_relevant.sum(dim=1)
    assert cmc_at_k(is_relevant, k).tolist() == cmc
    assert precision_at_k(is_relevant, n_relevant, k).tolist() == pytest.approx([float(v) for v in precision])
    assert average_precision_at_k(is_relevant, k).tolist() == pytest.approx([float(v) for v in average_precision])


rankings = st.integers(0, 6).flatmap(
    lambda width: st.lists(
        st.tuples(st.lists(st.booleans(), min_size=width, max_size=width), st.integers(0, 3)), min_size=1, max_size=5
    )
)


@given(rankings=rankings, k=st.integers(1, 8))
def test_ranking_metrics_follow_the_definitions(rankings: list[tuple[list[bool], int]], k: int) -> None:
    """Each query has a ranking and some more relevant items that were not retrieved."""
    is_relevant = torch.tensor([ranking for ranking, _ in rankings], dtype=torch.bool).reshape(len(rankings), -1)
    n_relevant = torch.tensor([max(1, sum(ranking) + missed) for ranking, missed in rankings])
    cmc, precision = cmc_at_k(is_relevant, k), precision_at_k(is_relevant, n_relevant, k)
    average_precision = average_precision_at_k(is_relevant, k)
    for query, (ranking, missed) in enumerate(rankings):
        found_at = [rank for rank in range(1, len(ranking) + 1) if rank <= k and ranking[rank - 1]]
        precisions = [sum(ranking[:rank]) / rank for rank in found_at]
        assert cmc[query] == (1 if found_at else 0)
        assert precision[query].item() == pytest.approx(len(found_at) / min(k, max(1, sum(ranking) + missed)))
        assert average_precision[query].item() == pytest.approx(sum(precisions) / max(1, len(precisions)))


def test_denominators_tell_the_conventions_apart() -> None:
    ranking, n_relevant = torch.tensor([[True, False, True, False, False]]), torch.tensor([4])
    # precision: by k it would be 2/5, by n_relevant 1/2 at k = 2
    assert precision_at_k(ranking, n_relevant, 5).item() == pytest.approx(2 / 4)
    assert precision_at_k(ranking, n_relevant, 2).item() == pytest.approx(1 / 2)
    assert precision_at_k(ranking, n_relevant, 3).item() == pytest.approx(2 / 3)
    # map: by min(k, 4) it would be 5/12 at k = 5
    assert average_precision_at_k(ranking, 5).item() == pytest.approx(5 / 6)


def test_types_and_empty_rankings() -> None:
    for width in (0, 3):
        is_relevant = torch.zeros(2, width, dtype=torch.bool)
        for values in (
            cmc_at_k(is_relevant, 2),
            precision_at_k(is_relevant, torch.tensor([1, 2]), 2),
            average_precision_at_k(is_relevant, 2),
        ):
            assert values.dtype == torch.float32
            assert values.tolist() == [0, 0]


@pytest.mark.parametrize("k", [0, -1, 1.0, True])
def test_k_is_a_positive_int(k: int) -> None:
    is_relevant = torch.ones(1, 3, dtype=torch.bool)
    for call in (
        lambda: inspect.unwrap(cmc_at_k)(is_relevant, k),
        lambda: inspect.unwrap(precision_at_k)(is_relevant, torch.tensor([3]), k),
        lambda: inspect.unwrap(average_precision_at_k)(is_relevant, k),
    ):
        with pytest.raises(ValueError, match=f"positive int k, got {k}"):
            call()
