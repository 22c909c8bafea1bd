import sys
from collections.abc import Callable, Sequence
from inspect import unwrap
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import Tensor

from oml.functional.triplets import Triplets, all_triplets
from oml.miners.inbatch_all_tri import AllTripletsMiner, get_available_triplets, get_available_triplets_naive
from oml.miners.inbatch_hard_cluster import HardClusterMiner
from oml.miners.inbatch_hard_tri import HardTripletsMiner
from oml.miners.inbatch_nhard_tri import NHardTripletsMiner

LABELS = torch.tensor([0, 1, 0, 1, 2, 2, 0])
POINTS = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
SOME_LABELS = st.lists(st.integers(0, 2), max_size=7)


def rows(*tensors: Tensor) -> set[tuple[float, ...]]:
    return set(map(tuple, torch.cat(tensors, dim=1).tolist()))


def ids(triplets: Triplets) -> list[tuple[int, ...]]:
    return list(zip(*(part.tolist() for part in triplets), strict=True))


def test_limit_draws_distinct_triplets_of_the_batch() -> None:
    everything = rows(*AllTripletsMiner().sample(POINTS, LABELS))
    miner = AllTripletsMiner(max_output_triplets=10)
    draws = [rows(*miner.sample(POINTS, LABELS)) for _ in range(2)]
    assert len(everything) == len(all_triplets(LABELS).anchor) == 44
    assert all(len(draw) == 10 and draw < everything for draw in draws)
    assert draws[0] != draws[1]
    assert draws[0] == rows(*AllTripletsMiner(max_output_triplets=10, seed=0).sample(POINTS, LABELS))
    assert draws[0] != rows(*AllTripletsMiner(max_output_triplets=10, seed=1).sample(POINTS, LABELS))
    assert rows(*AllTripletsMiner(max_output_triplets=44).sample(POINTS, LABELS)) == everything


@settings(deadline=None)
@given(labels=SOME_LABELS)
def test_takes_all_is_a_bound(labels: list[int]) -> None:
    n = len(labels)
    total = len(all_triplets(torch.tensor(labels, dtype=torch.int64)).anchor)
    assert not AllTripletsMiner(max(1, total - 1)).takes_all(n) or total <= 1
    if NHardTripletsMiner(3, 3).takes_all(n):
        mined = NHardTripletsMiner(3, 3).mine(torch.randn(n, 2), torch.tensor(labels, dtype=torch.int64))
        assert set(ids(mined)) == set(ids(all_triplets(torch.tensor(labels, dtype=torch.int64))))


def test_takes_all() -> None:
    assert AllTripletsMiner().takes_all(100_000)
    assert AllTripletsMiner(12).takes_all(4)  # 4 items have 2 (4 - 2) (2 - 1) 2 = 8 at most
    assert not AllTripletsMiner(7).takes_all(4)
    assert NHardTripletsMiner(3, 3).takes_all(5)
    assert not NHardTripletsMiner(3, 3).takes_all(6)
    assert not NHardTripletsMiner((2, 9), 9).takes_all(5)
    assert not HardTripletsMiner().takes_all(4)


def test_checkpoints_of_all_triplets() -> None:
    """Without a limit there is nothing to go on with, so that other miners load such a checkpoint too."""
    assert not AllTripletsMiner().state_dict()
    drawing, other = (AllTripletsMiner(max_output_triplets=4, seed=seed) for seed in (0, 5))
    before = drawing.mine(POINTS, LABELS)
    other.load_state_dict({})
    assert ids(other.mine(POINTS, LABELS)) != ids(before)
    other.load_state_dict(drawing.state_dict())
    assert ids(other.mine(POINTS, LABELS)) == ids(drawing.mine(POINTS, LABELS))


def test_device_has_no_effect() -> None:
    with pytest.warns(DeprecationWarning, match="leave out its argument device"):
        miner = AllTripletsMiner(sys.maxsize, "cpu")
    assert rows(*miner.sample(POINTS, LABELS)) == rows(*AllTripletsMiner().sample(POINTS, LABELS))


@settings(deadline=None)
@given(labels=SOME_LABELS, limit=st.sampled_from([1, 5, sys.maxsize]), as_tensor=st.booleans())
def test_functions_for_callers_of_earlier_versions(labels: list[int], limit: int, as_tensor: bool) -> None:
    given_labels = torch.tensor(labels, dtype=torch.int64) if as_tensor else labels
    naive = set(zip(*get_available_triplets_naive(given_labels), strict=True))
    assert set(zip(*get_available_triplets(given_labels), strict=True)) == naive
    for function in (get_available_triplets, get_available_triplets_naive):
        drawn = list(zip(*function(given_labels, limit), strict=True))
        assert len(set(drawn)) == len(drawn) == min(limit, len(naive))
        assert set(drawn) <= naive


@pytest.mark.parametrize("function", [get_available_triplets, get_available_triplets_naive])
def test_functions_draw_anew_at_each_call(function: Callable[..., Any]) -> None:
    first = function(LABELS, 10)
    assert function(LABELS, 10) != first
    draws = [function(LABELS, 10, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("miner", [HardTripletsMiner(), NHardTripletsMiner(), NHardTripletsMiner(9, 9)])
def test_the_hardest_of_duplicates_is_never_the_anchor(miner: HardTripletsMiner | NHardTripletsMiner) -> None:
    """The described system's successor picked the anchor itself as positive among duplicates."""
    points = torch.tensor([[0.0], [0.0], [0.0], [5.0]])
    mined = miner.mine(points, torch.tensor([1, 1, 1, 2]))
    assert mined.anchor.unique().tolist() == [0, 1, 2]
    assert (mined.anchor != mined.positive).all()


@settings(deadline=None)
@given(labels=SOME_LABELS, seed=st.integers(0, 99), pair=st.booleans())
def test_n_hard_has_hard_and_all_as_limits(labels: list[int], seed: int, pair: bool) -> None:
    values = torch.tensor(labels, dtype=torch.int64)
    points = torch.randn(len(labels), 2, generator=torch.Generator().manual_seed(seed))
    one, many = ([1, 1], (1, sys.maxsize)) if pair else (1, sys.maxsize)
    assert ids(NHardTripletsMiner(one, one).mine(points, values)) == ids(HardTripletsMiner().mine(points, values))
    everything = ids(NHardTripletsMiner(many, many).mine(points, values))
    assert sorted(everything) == ids(all_triplets(values))


def test_n_hard_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = torch.arange(40) % 7
    points = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    miner = NHardTripletsMiner(2, (3, 5))
    whole = ids(miner.mine(points, labels))
    assert len(whole) == 40 * 2 * 3
    monkeypatch.setattr("oml.miners.inbatch_nhard_tri._NUMBERS", 160)
    assert ids(miner.mine(points, labels)) == whole


@pytest.mark.parametrize(
    ("value", "expected"),
    [(3, slice(0, 3)), ((2, 5), slice(1, 5)), ([1, 1], slice(0, 1)), (OmegaConf.create([2, 4]), slice(1, 4))],
)
def test_ranks(value: int | Sequence[int], expected: slice) -> None:
    miner = NHardTripletsMiner(n_positive=value, n_negative=value)
    assert miner.positive_slice == miner.negative_slice == expected


@pytest.mark.parametrize("value", [0, -1, (0, 2), (3, 2), [-1, -1]])
def test_ranks_out_of_order(value: int | Sequence[int]) -> None:
    with pytest.raises(ValueError, match="NHardTripletsMiner needs n_positive of 1 or more"):
        NHardTripletsMiner(n_positive=value)


@pytest.mark.parametrize("value", [1.0, True, None, "12", (1, 2, 3), (1,), (1.0, 2), (True, 2)])
def test_ranks_of_other_types(value: Any) -> None:
    with pytest.raises(TypeError, match="n_negative to be a number or a pair of ranks"):
        unwrap(NHardTripletsMiner.__init__)(object.__new__(NHardTripletsMiner), n_negative=value)


def test_clusters_of_duplicates_are_the_hardest_triplets() -> None:
    points = torch.tensor([[0.0, 1.0], [4.0, 0.0], [1.0, 1.0]])[[0, 1, 2, 0, 1, 2]]
    labels = [5, 7, 9, 5, 7, 9]
    assert rows(*HardClusterMiner().sample(points, labels)) == rows(*HardTripletsMiner().sample(points, labels))
    assert len(rows(*HardClusterMiner().sample(points, labels))) == 3


def test_cluster_with_a_lone_label() -> None:
    points = torch.tensor([[0.0], [2.0], [3.0], [7.0], [9.0]])
    triplets = HardClusterMiner().sample(points, [4, 4, 1, 2, 2])
    assert [part.flatten().tolist() for part in triplets][::2] == [[8.0, 1.0], [3.0, 3.0]]


def test_clusters_of_half_precision_are_means_in_full() -> None:
    points = torch.ones(600, 1, dtype=torch.bfloat16)  # a sum in bfloat16 ends at 256
    anchor, _, negative = HardClusterMiner().sample(points, [0] * 300 + [1] * 300)
    assert (anchor == 1).all()
    assert (negative == 1).all()


@pytest.mark.parametrize("labels", [[0, 1, 0, 1, 2, 2, 0], LABELS, LABELS.to(torch.int32)])
def test_labels_may_be_a_list(labels: list[int] | Tensor) -> None:
    assert rows(*HardTripletsMiner().sample(POINTS, labels)) == rows(*HardTripletsMiner().sample(POINTS, LABELS))


def test_limit_of_none_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="max_output_triplets"):
        AllTripletsMiner(max_output_triplets=0)
