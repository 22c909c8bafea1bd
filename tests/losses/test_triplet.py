import inspect
import math
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from oml.functional.labels import checked_labels
from oml.functional.losses import get_reduced
from oml.functional.triplets import Triplets
from oml.interfaces.miners import ITripletsMiner, ITripletsMinerByIds, MinedTriplets, TLabels
from oml.losses.triplet import TripletLoss, TripletLossPlain, TripletLossWithMiner, get_tri_ids_in_plain
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


class Chosen(ITripletsMinerByIds):
    """Fixed triplets, among the batch and two more embeddings."""

    def __init__(self, triplets: list[list[int]], is_original: list[bool] | None = None) -> None:
        self.triplets = triplets
        self.is_original = is_original
        self.last_logs = {"of_miner": torch.tensor(5.0)}

    def pick(self, features: Tensor, labels: TLabels) -> MinedTriplets:
        others = torch.tensor([[0.0, 0.0], [8.0, 0.0]])
        flags = None if self.is_original is None else torch.tensor(self.is_original)
        return MinedTriplets(torch.cat([features, others]), Triplets(*torch.tensor(self.triplets).T), flags)


class Gathering(ITripletsMiner):
    """The same as another miner, which does not tell the positions."""

    def __init__(self, miner: ITripletsMiner) -> None:
        self.miner = miner

    def sample(self, features: Tensor, labels: TLabels) -> tuple[Tensor, ...]:
        return self.miner.sample(features, labels)


@pytest.mark.parametrize("margin", [None, 0.3])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("miner", [AllTripletsMiner(), HardTripletsMiner()])
def test_positions_give_what_gathered_embeddings_give(
    miner: ITripletsMiner, reduction: str, margin: float | None
) -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 2])
    points = torch.randn(10, 4, generator=torch.Generator().manual_seed(1))
    results = []
    for m in (miner, Gathering(miner)):
        x = points.clone().requires_grad_()
        criterion = TripletLossWithMiner(margin, m, reduction, need_logs=True)
        loss = criterion(x, labels)
        weights = torch.arange(1.0, 1 + loss.numel()).reshape(loss.shape)
        results.append((loss.detach(), torch.autograd.grad((loss * weights).sum(), x)[0], criterion.last_logs))
    torch.testing.assert_close(results[0], results[1])
    assert results[0][2]["active_tri"] > 0
    assert margin is None or results[0][2]["active_tri"] < 1


def test_logs_tell_original_triplets_from_others() -> None:
    x = torch.tensor([[3.0, 4.0], [6.0, 8.0]])
    triplets = [[0, 1, 2], [0, 2, 3], [1, 0, 2]]  # distances 5 and 5; 5 and 41 ** 0.5; 5 and 10
    criterion = TripletLossWithMiner(1.0, Chosen(triplets, [False, True, True]), need_logs=True)
    loss = criterion(x, [0, 0])
    torch.testing.assert_close(loss, torch.tensor(1 / 3))
    logs = {name: round(value.item(), 4) for name, value in criterion.last_logs.items()}
    assert logs == {
        "n_triplets": 3,
        "active_tri": round(1 / 3, 4),
        "pos_dist": 5,
        "neg_dist": round((5 + 41**0.5 + 10) / 3, 4),
        "orig_active_tri": 0,
        "pos_dist_orig": 5,
        "neg_dist_orig": round((41**0.5 + 10) / 2, 4),
        "bank_active_tri": 1,
        "pos_dist_bank": 5,
        "neg_dist_bank": 5,
        "of_miner": 5,
    }
    criterion.miner = Chosen(triplets, [True] * 3)
    criterion(x, [0, 0])
    assert "orig_active_tri" in criterion.last_logs
    assert "bank_active_tri" not in criterion.last_logs  # a mean over nothing


@pytest.mark.parametrize("miner", [AllTripletsMiner(), HardTripletsMiner()])
def test_strict_wants_a_triplet(miner: ITripletsMiner) -> None:
    criterion = TripletLossWithMiner(0.2, miner, strict=True)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    criterion(x, [0, 0, 1, 1])
    with pytest.raises(ValueError, match=rf"{type(miner).__name__} found no triplet in a batch of 4 .* \[7, 7, 7, 7\]"):
        criterion(x, [7, 7, 7, 7])


@pytest.mark.parametrize("miner", [AllTripletsMiner(), AllTripletsMiner(100), HardTripletsMiner()])
def test_gradients_repeat_bit_for_bit(miner: ITripletsMiner) -> None:
    labels = torch.arange(16).repeat_interleave(4)
    x = torch.randn(64, 1280, generator=torch.Generator().manual_seed(0), requires_grad=True)

    def gradient() -> Tensor:
        return torch.autograd.grad(TripletLossWithMiner(None, deepcopy(miner))(x, labels), x)[0]

    first = gradient()
    assert all(torch.equal(gradient(), first) for _ in range(10))


def test_plain_ids() -> None:
    assert get_tri_ids_in_plain(6) == ([0, 3], [1, 4], [2, 5])
    with pytest.raises(ValueError, match="3 items per triplet, got 7"):
        get_tri_ids_in_plain(7)


@pytest.mark.parametrize("miner", ["hard_triplets", HardTripletsMiner, 5])
def test_a_miner_is_a_miner(miner: object) -> None:
    with pytest.raises(TypeError, match="needs a miner that is an ITripletsMiner, got"):
        inspect.unwrap(TripletLossWithMiner.__init__)(TripletLossWithMiner.__new__(TripletLossWithMiner), 0.2, miner)


def test_logs_of_the_miner_do_not_hang_on_those_of_the_loss() -> None:
    criterion = TripletLossWithMiner(1.0, Chosen([[0, 1, 2]]))
    criterion(torch.randn(2, 2), [0, 0])
    assert set(criterion.last_logs) == {"of_miner"}


def test_labels_in_a_column() -> None:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    criterion = TripletLossWithMiner(0.2)
    assert criterion(x, torch.tensor([[0], [0], [1], [1]])) == criterion(x, [0, 0, 1, 1]) > 0
    assert criterion(x[:0], []) == 0


@pytest.mark.parametrize("x", [torch.zeros(2, 2, 2), torch.zeros(2), torch.zeros(2, 2, dtype=torch.int64)])
def test_embeddings_are_a_matrix_of_floats(x: Tensor) -> None:
    with pytest.raises(ValueError, match="AllTripletsMiner needs embeddings of floats, with two dimensions"):
        inspect.unwrap(checked_labels)("AllTripletsMiner", x, [0, 0])
