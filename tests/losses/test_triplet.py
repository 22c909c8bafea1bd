import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from oml.functional.losses import get_reduced
from oml.losses.triplet import TripletLoss, TripletLossPlain, TripletLossWithMiner
from oml.miners.inbatch_all_tri import AllTripletsMiner
from oml.miners.inbatch_hard_tri import HardTripletsMiner


def random_triplets(n: int = 64, dim: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(3, n, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("margin", [0.1, 0.5, 2.0])
def test_agrees_with_torch(reduction: str, margin: float) -> None:
    triplets = random_triplets()
    ours = TripletLoss(margin, reduction)(*triplets)
    active = (TripletLoss(margin, "none")(*triplets) > 0).float().mean()
    assert 0.2 < active < 0.95  # active and inactive triplets both occur
    torch.testing.assert_close(ours, F.triplet_margin_loss(*triplets, margin=margin, eps=0, reduction=reduction))


def test_soft_form_by_hand() -> None:
    x = torch.zeros(2, 3)
    torch.testing.assert_close(TripletLoss(margin=None)(x, x, x), torch.tensor(math.log(2)))
    one_hot = torch.eye(2)
    ideal = TripletLoss(margin=None)(one_hot[:1], one_hot[:1], one_hot[1:])
    torch.testing.assert_close(ideal, torch.tensor(math.log(1 + math.exp(-math.sqrt(2)))))


def test_soft_form_is_finite_for_any_gap() -> None:
    """The described system overflows from a gap of about 88."""
    anchor = torch.zeros(1, 1, requires_grad=True)
    loss = TripletLoss(margin=None)(anchor, torch.tensor([[1000.0]]), torch.tensor([[1.0]]))
    torch.testing.assert_close(loss, torch.tensor(999.0))
    loss.backward()
    assert anchor.grad is not None
    assert torch.isfinite(anchor.grad).all()


@pytest.mark.parametrize("margin", [None, 0.3])
def test_gradient(margin: float | None) -> None:
    triplets = random_triplets(n=5, dim=3).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: TripletLoss(margin)(*x), triplets)


def test_identical_embeddings_have_a_finite_gradient() -> None:
    x = torch.ones(6, 4, requires_grad=True)
    TripletLossWithMiner(margin=0.2)(x, torch.tensor([0, 0, 0, 1, 1, 1])).backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_logs_tell_of_the_triplets() -> None:
    criterion = TripletLoss(margin=0.5, need_logs=True)
    triplets = random_triplets()
    losses = F.triplet_margin_loss(*triplets, margin=0.5, eps=0, reduction="none")
    criterion(*triplets)
    logs = criterion.last_logs
    assert set(logs) == {"active_tri", "pos_dist", "neg_dist", "n_triplets"}
    assert logs["n_triplets"] == 64
    torch.testing.assert_close(logs["active_tri"], (losses > 0).float().mean())
    torch.testing.assert_close(logs["pos_dist"], (triplets[0] - triplets[1]).norm(dim=1).mean())
    torch.testing.assert_close(logs["neg_dist"], (triplets[0] - triplets[2]).norm(dim=1).mean())


def test_no_logs_unless_asked_for() -> None:
    criterion = TripletLoss(margin=0.5)
    criterion(*random_triplets())
    assert criterion.last_logs == {}


def test_plain_order_is_anchor_positive_negative() -> None:
    triplets = random_triplets(n=4)
    plain = triplets.transpose(0, 1).reshape(12, 8)
    criterion = TripletLossPlain(margin=0.5, need_logs=True)
    torch.testing.assert_close(criterion(plain), TripletLoss(margin=0.5)(*triplets))
    assert criterion.last_logs["n_triplets"] == 4
    with pytest.raises(ValueError, match="3 embeddings per triplet, got 11"):
        criterion(plain[:11])


def test_with_miner_is_the_mean_over_all_triplets() -> None:
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
    labels = [0, 0, 0, 1, 1, 1, 2, 2, 2]
    d = torch.cdist(x, x)
    losses = [
        F.relu(d[a, p] - d[a, n] + 0.5)
        for a in range(9)
        for p in range(9)
        for n in range(9)
        if a != p and labels[a] == labels[p] != labels[n]
    ]
    assert 0 < sum(loss > 0 for loss in losses) < len(losses)
    torch.testing.assert_close(TripletLossWithMiner(margin=0.5)(x, torch.tensor(labels)), torch.stack(losses).mean())


@pytest.mark.parametrize("miner", [AllTripletsMiner(), HardTripletsMiner()])
@pytest.mark.parametrize("margin", [None, 0.2])
def test_a_batch_without_triplets_costs_nothing(
    miner: AllTripletsMiner | HardTripletsMiner, margin: float | None
) -> None:
    x = torch.randn(4, 3, requires_grad=True)
    criterion = TripletLossWithMiner(margin, miner, need_logs=True)
    loss = criterion(x, torch.zeros(4, dtype=torch.long))
    loss.backward()
    assert loss == 0
    assert x.grad is not None
    assert (x.grad == 0).all()
    assert {name: value.item() for name, value in criterion.last_logs.items()} == {"n_triplets": 0}


def test_two_losses_do_not_share_their_miner() -> None:
    assert TripletLossWithMiner(margin=0.2).miner is not TripletLossWithMiner(margin=0.2).miner


@pytest.mark.parametrize("margin", [0.0, -0.1, math.nan])
def test_margin_must_be_positive(margin: float) -> None:
    with pytest.raises(ValueError, match="margin above 0"):
        TripletLoss(margin)


def test_unknown_reduction() -> None:
    with pytest.raises(ValueError, match="mean, sum, none, got 'median'"):
        get_reduced(torch.ones(2), reduction="median")
