import inspect
import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from oml.functional.ranking import (
    Hits,
    average_precision_at_k,
    average_precision_at_r,
    cmc_at_k,
    f1_of_returned,
    ndcg_at_k,
    precision_at_k,
    precision_of_returned,
    r_precision,
    recall_at_k,
    recall_of_returned,
    reciprocal_rank,
)

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


def as_hits(is_relevant: Tensor) -> Hits:
    query, rank = is_relevant.nonzero().unbind(1)
    return Hits(query, rank + 1, len(is_relevant))


def all_metrics(ranking: Tensor | Hits, n: Tensor, k: int) -> dict[str, Tensor]:
    return {
        "cmc": cmc_at_k(ranking, k),
        "precision": precision_at_k(ranking, n, k),
        "recall": recall_at_k(ranking, n, k),
        "r_precision": r_precision(ranking, n),
        "map": average_precision_at_k(ranking, k),
        "map by min(k, n)": average_precision_at_k(ranking, k, n, "min(k, n)"),
        "map by n": average_precision_at_k(ranking, k, n, "n"),
        "map of all": average_precision_at_k(ranking, None),
        "map of all by n": average_precision_at_k(ranking, None, n, "n"),
        "map@r": average_precision_at_r(ranking, n),
        "ndcg": ndcg_at_k(ranking, n, k),
        "ndcg of all": ndcg_at_k(ranking, n, None),
        "mrr": reciprocal_rank(ranking),
        "mrr@k": reciprocal_rank(ranking, k),
    }


def by_hand(ranking: list[bool], n: int, k: int) -> dict[str, float]:
    """The metrics of one query with ``n`` relevant items, by loops."""

    def places(k: float) -> list[int]:
        return [rank for rank in range(1, len(ranking) + 1) if rank <= k and ranking[rank - 1]]

    def precisions(k: float) -> float:
        return sum(sum(ranking[:rank]) / rank for rank in places(k))

    def gain(ranks: list[int]) -> float:
        return sum(1 / math.log2(rank + 1) for rank in ranks)

    return {
        "cmc": float(any(ranking[:k])),
        "precision": len(places(k)) / min(k, n),
        "recall": len(places(k)) / n,
        "r_precision": len(places(n)) / n,
        "map": precisions(k) / max(1, len(places(k))),
        "map by min(k, n)": precisions(k) / min(k, n),
        "map by n": precisions(k) / n,
        "map of all": precisions(math.inf) / max(1, sum(ranking)),
        "map of all by n": precisions(math.inf) / n,
        "map@r": precisions(n) / n,
        "ndcg": gain(places(k)) / gain(list(range(1, min(k, n) + 1))),
        "ndcg of all": gain(places(math.inf)) / gain(list(range(1, n + 1))),
        "mrr": max((1 / rank for rank in places(math.inf)), default=0),
        "mrr@k": max((1 / rank for rank in places(k)), default=0),
    }


@settings(deadline=None, max_examples=50)
@given(rankings=rankings, k=st.integers(1, 8))
def test_ranking_metrics_follow_the_definitions(rankings: list[tuple[list[bool], int]], k: int) -> None:
    """Each query has a ranking and some more relevant items that were not retrieved."""
    is_relevant = torch.tensor([ranking for ranking, _ in rankings], dtype=torch.bool).reshape(len(rankings), -1)
    n_relevant = torch.tensor([max(1, sum(ranking) + missed) for ranking, missed in rankings])
    found = all_metrics(is_relevant, n_relevant, k)
    for query, (ranking, _) in enumerate(rankings):
        for name, value in by_hand(ranking, int(n_relevant[query]), k).items():
            assert found[name][query].item() == pytest.approx(value), name
    for name, values in all_metrics(as_hits(is_relevant), n_relevant, k).items():
        assert torch.equal(values, found[name]), name


@pytest.mark.parametrize("form", [lambda ranking: ranking, as_hits])
def test_other_queries_change_no_bit(form: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    is_relevant = torch.rand(50, 300, generator=generator) < torch.rand(50, 1, generator=generator)
    n_relevant = is_relevant.sum(dim=1).clamp(min=1) + 3
    found = all_metrics(form(is_relevant), n_relevant, 250)
    kept = torch.randperm(50, generator=generator)[:17]
    for name, values in all_metrics(form(is_relevant[kept]), n_relevant[kept], 250).items():
        assert torch.equal(values, found[name][kept]), name


def test_ideal_rankings_score_one_and_nothing_to_find_scores_zero() -> None:
    is_relevant = torch.arange(40) < torch.arange(41)[:, None]
    n_relevant = is_relevant.sum(dim=1)
    for name, values in all_metrics(is_relevant, n_relevant, 30).items():
        assert values[0] == 0
        if name in ("recall", "map by n"):
            assert ((values[1:] == 1) == (n_relevant[1:] <= 30)).all()
        else:
            assert (values[1:] == 1).all(), name


def test_denominators_tell_the_conventions_apart() -> None:
    ranking, n_relevant = torch.tensor([[True, False, True, False, False]]), torch.tensor([4])
    # precision: by k it would be 2/5, by n_relevant 1/2 at k = 2
    assert precision_at_k(ranking, n_relevant, 5).item() == pytest.approx(2 / 4)
    assert precision_at_k(ranking, n_relevant, 2).item() == pytest.approx(1 / 2)
    assert precision_at_k(ranking, n_relevant, 3).item() == pytest.approx(2 / 3)
    assert average_precision_at_k(ranking, 5).item() == pytest.approx(5 / 6)
    assert average_precision_at_k(ranking, 3, n_relevant, "min(k, n)").item() == pytest.approx(5 / 9)
    assert average_precision_at_k(ranking, 3, n_relevant, "n").item() == pytest.approx(5 / 12)


def test_values_of_other_libraries() -> None:
    """One query, 8 galleries, 4 relevant ones: what pytorch-metric-learning 2.9 and scikit-learn 1.9 say."""
    ranking, n_relevant = torch.tensor([[True, False, True, False, False, True, True, False]]), torch.tensor([4])
    # AccuracyCalculator(k=None), (k=3), and sklearn.metrics.average_precision_score
    assert average_precision_at_k(ranking, None).item() == pytest.approx(0.6845238095238095)
    assert average_precision_at_k(ranking, 3, n_relevant, "n").item() == pytest.approx(0.41666666666666663)
    assert average_precision_at_r(ranking, n_relevant).item() == pytest.approx(0.41666666666666663)
    assert r_precision(ranking, n_relevant).item() == 0.5
    for k, value in ((None, 0.8547529378296288), (3, 0.7039180890341348), (5, 0.5855700749881526)):
        assert ndcg_at_k(ranking, n_relevant, k).item() == pytest.approx(value)  # sklearn.metrics.ndcg_score


@pytest.mark.parametrize("width", [0, 3])
def test_types_and_empty_rankings(width: int) -> None:
    is_relevant = torch.zeros(2, width, dtype=torch.bool)
    for ranking in (is_relevant, as_hits(is_relevant)):
        for values in all_metrics(ranking, torch.tensor([1, 2]), 2).values():
            assert values.dtype == torch.float32
            assert values.tolist() == [0, 0]


def test_no_queries() -> None:
    for values in all_metrics(torch.zeros(0, 3, dtype=torch.bool), torch.zeros(0, dtype=torch.int64), 2).values():
        assert values.shape == (0,)


@pytest.mark.parametrize("k", [0, -1, 1.0, True])
@pytest.mark.parametrize("form", [lambda ranking: ranking, as_hits])
def test_k_is_a_positive_int(k: int, form: Any) -> None:
    ranking, n_relevant = form(torch.ones(1, 3, dtype=torch.bool)), torch.tensor([3])
    for call in (
        lambda: inspect.unwrap(cmc_at_k)(ranking, k),
        lambda: inspect.unwrap(precision_at_k)(ranking, n_relevant, k),
        lambda: inspect.unwrap(recall_at_k)(ranking, n_relevant, k),
        lambda: inspect.unwrap(average_precision_at_k)(ranking, k),
        lambda: inspect.unwrap(ndcg_at_k)(ranking, n_relevant, k),
        lambda: inspect.unwrap(reciprocal_rank)(ranking, k),
    ):
        with pytest.raises(ValueError, match=f"positive int k, got {k}"):
            call()


def test_denominators_are_known_and_have_what_they_need() -> None:
    ranking = torch.ones(1, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="divides by 'found', .* got 'r'"):
        inspect.unwrap(average_precision_at_k)(ranking, 2, torch.tensor([3]), "r")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="needs n_relevant to divide by 'n', got None"):
        average_precision_at_k(ranking, 2, divide_by="n")


@given(answers=st.lists(st.tuples(st.lists(st.booleans(), max_size=5), st.integers(0, 3)), min_size=1, max_size=6))
def test_answers_of_any_length(answers: list[tuple[list[bool], int]]) -> None:
    """Each is what was returned, and how much that is right is missing in it."""
    is_relevant = torch.tensor([[*answer, *[False] * (5 - len(answer))] for answer, _ in answers])
    n_returned = torch.tensor([len(answer) for answer, _ in answers])
    n_relevant = torch.tensor([max(1, sum(answer) + n_missing) for answer, n_missing in answers])
    precisions = precision_of_returned(is_relevant, n_returned)
    recalls = recall_of_returned(is_relevant, n_relevant)
    f1s = f1_of_returned(is_relevant, n_returned, n_relevant)
    found = zip(answers, n_relevant.tolist(), precisions.tolist(), recalls.tolist(), f1s.tolist(), strict=True)
    for (answer, _), n, precision, recall, f1 in found:
        assert precision == pytest.approx(sum(answer) / len(answer) if answer else 0)  # nothing is no right answer
        assert recall == pytest.approx(sum(answer) / n)
        assert f1 == pytest.approx(2 * precision * recall / (precision + recall) if precision + recall else 0)


def test_answers_to_no_queries_and_as_hits() -> None:
    none = torch.zeros(0, dtype=torch.long)
    assert f1_of_returned(torch.zeros(0, 3, dtype=torch.bool), none, none).shape == (0,)
    hits = Hits(torch.tensor([0, 0, 2]), torch.tensor([1, 3, 2]), 3)
    assert precision_of_returned(hits, torch.tensor([4, 0, 2])).tolist() == [0.5, 0, 0.5]
