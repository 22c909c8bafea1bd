import pytest
import torch

from oml.functional.ranks import relevant_ranks
from oml.metrics.per_query import ranking_metrics
from oml.retrieval import NothingToFindError, RetrievalResults

# positions on a line: those at 4 and 3 find a stranger first, all others find their like
LINE = torch.tensor([[0.0], [1.0], [4.0], [3.0], [20.0], [21.0], [7.0]])
LABELS = torch.tensor([0, 0, 1, 0, 2, 2, 1])
EVERYONE = torch.ones(7, dtype=torch.bool)


def results(top_k: int) -> RetrievalResults:
    return RetrievalResults.from_embeddings(LINE, LABELS, EVERYONE, EVERYONE, top_k=top_k)


def test_values_by_hand() -> None:
    values = ranking_metrics(results(3), cmc_top_k=(1,), precision_top_k=(2,), map_top_k=(3,))
    assert values["cmc"][1].tolist() == [1, 1, 0, 0, 1, 1, 1]
    assert values["precision"][2].tolist() == [1, 0.5 + 0.5, 0, 0.5, 1, 1, 1]
    # ranked by id where equal: 0 finds 1 3 2, 1 finds 0 3 2, 2 finds 3 1 6, 3 finds 2 1 0
    torch.testing.assert_close(values["map"][3], torch.tensor([1, 1, 1 / 3, (1 / 2 + 2 / 3) / 2, 1, 1, 1]))
    assert set(ranking_metrics(results(1), cmc_top_k=(1,))) == {"cmc"}


def test_cut_at_the_number_of_relevant_items() -> None:
    # 0 finds 1 3 of 2, 1 finds 0 3, 2 finds 3 of 1, 3 finds 2 1 of 2, 4 and 5 each other, 6 finds 2
    values = ranking_metrics(results(2), precision_top_k=(1, "r"), map_top_k=("r",))
    assert list(values["precision"]) == [1, "r"]
    assert values["precision"]["r"].tolist() == [1, 1, 0, 0.5, 1, 1, 1]
    assert values["map"]["r"].tolist() == [1, 1, 0, 0.25, 1, 1, 1]
    whole = ranking_metrics(
        results(2),
        precision_top_k=("r",),
        hits=relevant_ranks(LINE, LINE, LABELS, LABELS, query_items=torch.arange(7), gallery_items=torch.arange(7)),
    )
    assert torch.equal(whole["precision"]["r"], values["precision"]["r"])
    # of those with two to find, 3 finds none at rank 1, and the others may find a second or not
    with pytest.raises(ValueError, match="search with top_k=2, got 1 ranks, which lack relevant items of 3 queries"):
        ranking_metrics(results(1), map_top_k=(1, "r"))


def test_k_beyond_the_ranks_is_an_error_only_if_something_may_stand_there() -> None:
    with pytest.raises(ValueError, match="search with top_k=4, got 2 ranks, which lack relevant items of 2 queries"):
        ranking_metrics(results(2), cmc_top_k=(1, 4))
    # with three ranks all is found, but for nothing: then any k is as good
    values = ranking_metrics(results(3), map_top_k=(3, 100))["map"]
    assert torch.equal(values[3], values[100])
    with pytest.raises(ValueError, match="positive int k, got 0"):
        ranking_metrics(results(3), cmc_top_k=(0,))


def test_queries_with_nothing_to_find_have_no_value() -> None:
    ids = torch.arange(3)
    lone = RetrievalResults(
        ids + 10, torch.tensor([5, 0, 6]), ids, torch.tensor([0, 1, 2]), ids[:, None], torch.ones(3, 1)
    )
    with pytest.raises(NothingToFindError, match=r"2 of 3 queries have .* rows \[10, 12\], with labels \[5, 6\]"):
        ranking_metrics(lone, cmc_top_k=(1,))


def cut(results: RetrievalResults, numbers: list[int]) -> RetrievalResults:
    """The first so many of each row."""
    gone = torch.arange(results.retrieved_ids.shape[1]) >= torch.tensor(numbers)[:, None]
    return results.with_ranking(
        results.retrieved_ids.masked_fill(gone, -1), results.distances.masked_fill(gone, torch.inf)
    )


def test_what_was_returned() -> None:
    # 0 finds 1 3 of 2, 1 finds 0 3, 2 finds 3 of 1, 3 finds 2 1 of 2, 4 and 5 each other, 6 finds 2
    values = ranking_metrics(cut(results(2), [2, 1, 0, 2, 2, 1, 0]), returned=True)
    assert list(values) == ["returned"]
    found = {name: each.tolist() for name, each in values["returned"].items()}
    assert found == {
        "precision": [1, 1, 0, 0.5, 0.5, 1, 0],
        "recall": [1, 0.5, 0, 0.5, 1, 1, 0],
        "f1": pytest.approx([1, 2 / 3, 0, 0.5, 2 / 3, 1, 0]),
        "number": [2, 1, 0, 2, 2, 1, 0],
    }


def test_a_row_that_ends_early_is_whole() -> None:
    """Nothing stands behind what was left out, so any k is as good."""
    values = ranking_metrics(cut(results(2), [1] * 7), cmc_top_k=(1, 9), recall_top_k=(9,), map_top_k=("r",))
    assert torch.equal(values["cmc"][1], values["cmc"][9])
    assert values["recall"][9].tolist() == [0.5, 0.5, 0, 0, 1, 1, 1]
    with pytest.raises(ValueError, match="search with top_k=9, got 2 ranks, which lack relevant items of 1 queries"):
        ranking_metrics(cut(results(2), [1, 1, 1, 2, 1, 1, 1]), cmc_top_k=(9,))
