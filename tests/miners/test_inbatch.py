import pytest
import torch

from oml.functional.triplets import all_triplets
from oml.miners.inbatch_all_tri import AllTripletsMiner
from oml.miners.inbatch_hard_tri import HardTripletsMiner

LABELS = torch.tensor([0, 1, 0, 1, 2, 2, 0])
POINTS = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))


def rows(*tensors: torch.Tensor) -> set[tuple[float, ...]]:
    return set(map(tuple, torch.cat(tensors, dim=1).tolist()))


def test_limit_draws_distinct_triplets_of_the_batch() -> None:
    everything = rows(*AllTripletsMiner().sample(POINTS, LABELS))
    miner = AllTripletsMiner(max_output_triplets=10)
    draws = [rows(*miner.sample(POINTS, LABELS)) for _ in range(2)]
    assert len(everything) == len(all_triplets(LABELS).anchor) == 44
    assert all(len(draw) == 10 and draw < everything for draw in draws)
    assert draws[0] != draws[1]
    assert draws[0] == rows(*AllTripletsMiner(max_output_triplets=10, seed=0).sample(POINTS, LABELS))
    assert draws[0] != rows(*AllTripletsMiner(max_output_triplets=10, seed=1).sample(POINTS, LABELS))


def test_the_hardest_of_duplicates_is_never_the_anchor() -> None:
    """The described system's successor picked the anchor itself as positive among duplicates."""
    points = torch.tensor([[0.0], [0.0], [0.0], [5.0]])
    ids = HardTripletsMiner().mine(points, torch.tensor([1, 1, 1, 2]))
    assert ids.anchor.tolist() == [0, 1, 2]
    assert (ids.anchor != ids.positive).all()


@pytest.mark.parametrize("labels", [[0, 1, 0, 1, 2, 2, 0], LABELS, LABELS.to(torch.int32)])
def test_labels_may_be_a_list(labels: list[int] | torch.Tensor) -> None:
    assert rows(*HardTripletsMiner().sample(POINTS, labels)) == rows(*HardTripletsMiner().sample(POINTS, LABELS))


def test_limit_of_none_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="max_output_triplets"):
        AllTripletsMiner(max_output_triplets=0)
