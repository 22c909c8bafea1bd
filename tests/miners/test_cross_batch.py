import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from oml.functional.triplets import all_triplets
from oml.miners.cross_batch import TripletMinerWithMemory


def batch(i: int, n_labels: int = 3, n_instances: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(i)
    labels = torch.randperm(6, generator=generator)[:n_labels].repeat_interleave(n_instances)
    return torch.randn(len(labels), 2, generator=generator), labels


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("n_batches", [1, 4])  # one batch and k > 1 never ended in the described system
def test_triplets(n_batches: int, k: int) -> None:
    miner = TripletMinerWithMemory(bank_size_in_batches=n_batches, tri_expand_k=k)
    seen: list[tuple[Tensor, Tensor]] = []
    for i in range(8):
        x, labels = batch(i)
        candidates, (anchor, positive, negative), is_original = miner.pick(x, labels)[:3]
        assert is_original is not None
        kept = seen[::-1][:n_batches][::-1] if seen else [(x, labels)]
        assert torch.equal(candidates, torch.cat([x, *(part for part, _ in kept)]))
        all_labels = torch.cat([labels, *(part for _, part in kept)])
        assert (all_labels[anchor] == all_labels[positive]).all()
        assert (all_labels[anchor] != all_labels[negative]).all()
        assert (anchor != positive).all()

        own = all_triplets(labels)
        n = len(own.anchor)
        assert len(anchor) == k * n
        assert is_original.tolist() == [False] * (k - 1) * n + [True] * n
        assert all(torch.equal(a[is_original], b) for a, b in zip((anchor, positive, negative), own, strict=True))
        half = (k - 1) * n // 2
        roles = torch.stack([anchor, positive, negative], dim=1) >= len(x)  # in the bank?
        assert (roles[:half] == torch.tensor([False, False, True])).all()
        assert (roles[half : 2 * half] == torch.tensor([True, True, False])).all()
        assert len(torch.stack([anchor, positive, negative], dim=1).unique(dim=0)) == k * n
        seen.append((x, labels))


@settings(deadline=None)
@given(sizes=st.lists(st.integers(0, 6), max_size=5), seed=st.integers(0, 99))
def test_any_batches_will_do(sizes: list[int], seed: int) -> None:
    miner = TripletMinerWithMemory(bank_size_in_batches=2, tri_expand_k=4)
    generator = torch.Generator().manual_seed(seed)
    for size in sizes:
        labels = torch.randint(2, (size,), generator=generator)
        x = torch.randn(size, 2, generator=generator)
        *_, is_original = miner.sample(x, labels)
        assert int(is_original.sum()) == len(all_triplets(labels).anchor)


def test_gradients_reach_the_batch_alone() -> None:
    miner = TripletMinerWithMemory(1, 3)
    for i in range(2):  # at the first batch, the batch itself stands in for the bank
        x, labels = batch(i)
        candidates, ids, is_original = miner.pick(x.requires_grad_(), labels)[:3]
        assert is_original is not None
        (of_bank,) = torch.autograd.grad(candidates[len(x) :].sum(), x, retain_graph=True)
        assert (of_bank == 0).all()
        anchor, positive, negative = (candidates[role[~is_original]] for role in ids)
        (gradient,) = torch.autograd.grad(((anchor - positive) - (anchor - negative)).square().sum(), x)
        assert (gradient != 0).any(dim=1).all()


def test_draws_follow_the_seed_and_go_on_from_a_checkpoint() -> None:
    def draw(miner: TripletMinerWithMemory, i: int) -> list[list[int]]:
        return torch.stack(miner.pick(*batch(i))[1]).tolist()

    one, same, other = (TripletMinerWithMemory(2, 2, seed=seed) for seed in (0, 0, 1))
    before = torch.get_rng_state()
    for i in range(3):
        drawn = draw(one, i)
        assert draw(same, i) == drawn
        assert draw(other, i) != drawn
    assert torch.equal(torch.get_rng_state(), before)
    loaded = TripletMinerWithMemory(2, 2, seed=5)
    loaded.load_state_dict(one.state_dict())
    copied = copy.deepcopy(one)
    assert draw(one, 7) == draw(loaded, 7) == draw(copied, 7)
    loaded.load_state_dict({})  # of an earlier version
    assert draw(one, 8) == draw(loaded, 8)


@pytest.mark.parametrize("arguments", [(0, 1), (1, 0)])
def test_arguments(arguments: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="bank_size_in_batches and tri_expand_k of 1 or more"):
        TripletMinerWithMemory(*arguments)
