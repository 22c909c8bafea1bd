from inspect import unwrap
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from oml.functional.triplets import n_hardest_triplets
from oml.miners.inbatch_hard_tri import HardTripletsMiner
from oml.miners.inbatch_nhard_tri import NHardTripletsMiner
from oml.miners.miner_with_bank import MinerWithBank


def triplets(rows: tuple[Tensor, ...]) -> list[list[float]]:
    return torch.cat(rows[:3], dim=1).tolist()


@settings(deadline=None)
@given(
    labels=st.lists(st.lists(st.integers(0, 2), min_size=4, max_size=4), min_size=1, max_size=5),
    n_batches=st.integers(1, 3),
    ranks=st.sampled_from([1, 2, (2, 3), 99]),
    seed=st.integers(0, 99),
)
def test_it_mines_among_this_and_the_previous_batches(
    labels: list[list[int]], n_batches: int, ranks: Any, seed: int
) -> None:
    inner = NHardTripletsMiner(ranks, ranks)
    miner = MinerWithBank(n_batches, inner)
    # real numbers: there are no ties, so the triplets are one set
    batches = torch.randn(len(labels), 4, 3, generator=torch.Generator().manual_seed(seed))
    for i, (x, of_batch) in enumerate(zip(batches, labels, strict=True)):
        assert miner.is_accumulated == (i >= n_batches)
        mined = triplets(miner.sample(x, of_batch))
        earlier = range(i - n_batches, i) if i >= n_batches else []
        candidates = torch.cat([x, *(batches[j] for j in earlier)])
        all_labels = torch.tensor(of_batch + [label for j in earlier for label in labels[j]])
        d = torch.cdist(x, candidates, compute_mode="donot_use_mm_for_euclid_dist")
        ids = n_hardest_triplets(d, all_labels, inner.positive_slice, inner.negative_slice)
        assert mined == triplets(tuple(candidates[role] for role in ids))
        assert_logs(miner.last_logs, list(zip(*(role.tolist() for role in ids), strict=True)))


def assert_logs(logs: dict[str, Tensor], mined: list[tuple[int, ...]]) -> None:
    n_anchors = max(1, len({a for a, _, _ in mined}))
    for name, role in (("positives", 1), ("negatives", 2)):
        pairs = {(triplet[0], triplet[role]) for triplet in mined}
        assert logs[f"{name}_from_bank"].item() == pytest.approx(sum(i >= 4 for _, i in pairs) / n_anchors)
        assert logs[f"{name}_from_batch"].item() == pytest.approx(sum(i < 4 for _, i in pairs) / n_anchors)
    assert all(value.ndim == 0 for value in logs.values())
    assert len(logs) == 4


def test_lone_items_find_positives_in_the_bank() -> None:
    miner = MinerWithBank(1, NHardTripletsMiner(), need_logs=False)
    labels = [0, 1, 2]
    assert len(miner.sample(torch.zeros(3, 2), labels)[0]) == 0
    x = torch.arange(6.0).reshape(3, 2).requires_grad_()
    anchor, positive, negative = miner.sample(x, labels)
    assert torch.equal(anchor, x)
    assert (positive == 0).all()
    (anchor - negative).square().sum().backward()
    assert x.grad is not None
    assert miner.last_logs == {}


def test_batches_may_differ_in_size() -> None:
    """A smaller last batch broke the described system steps later."""
    miner, x = MinerWithBank(2, NHardTripletsMiner(9, 9)), torch.randn(8, 3)
    for size in (4, 4, 3, 8, 1, 4):
        labels = torch.arange(size) % 2
        candidates, ids = miner.pick(x[:size], labels)[:2]
        assert (ids.anchor < size).all()
        assert torch.equal(candidates[:size], x[:size])
    assert len(candidates) == 4 + 8


def test_only_n_hard_miners() -> None:
    with pytest.raises(TypeError, match="MinerWithBank needs an NHardTripletsMiner, got HardTripletsMiner"):
        unwrap(MinerWithBank.__init__)(object.__new__(MinerWithBank), 1, HardTripletsMiner())
    with pytest.raises(ValueError, match="bank_size_in_batches of 1 or more, got 0"):
        MinerWithBank(0, NHardTripletsMiner())
