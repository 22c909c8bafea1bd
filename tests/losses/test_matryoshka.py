from inspect import unwrap
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_metric_learning import losses
from torch import Tensor, nn

from oml.functional.distances import normalise
from oml.losses.arcface import ArcFaceLoss
from oml.losses.contrastive import SupConLoss
from oml.losses.matryoshka import MatryoshkaLoss
from oml.losses.pml import PMLLoss
from oml.losses.surrogate_precision import SurrogatePrecision
from oml.losses.triplet import TripletLossWithMiner
from oml.registry.losses import LOSSES_REGISTRY

#: of single items of labels, which many tests here are about
pytestmark = pytest.mark.filterwarnings("ignore:.*got a first batch of")

LABELS = torch.arange(12) % 3


def points(seed: int = 0, n: int = 12, dim: int = 8) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("inner", [TripletLossWithMiner(margin=0.5, need_logs=True), SurrogatePrecision(k=2)])
def test_weighted_sum_over_prefixes(inner: nn.Module, normalised: bool) -> None:
    x = points()
    prefixes = [normalise(x[:, :dim]) if normalised else x[:, :dim] for dim in (2, 8)]
    losses = [inner(prefix, LABELS) for prefix in prefixes]
    assert losses[0] != losses[1] != 0
    criterion = MatryoshkaLoss(inner, dims=[2, 8], weights=[3, 0.5], normalise=normalised)
    torch.testing.assert_close(criterion(x, LABELS), 3 * losses[0] + 0.5 * losses[1])
    torch.testing.assert_close(MatryoshkaLoss(inner, [2, 8], normalise=normalised)(x, LABELS), sum(losses))
    torch.testing.assert_close(
        {name: criterion.last_logs[name] for name in ("loss_2", "loss_8")},
        {"loss_2": losses[0], "loss_8": losses[1]},
    )


def test_logs_and_names_tell_the_losses_apart() -> None:
    criterion = MatryoshkaLoss(TripletLossWithMiner(margin=1.0, need_logs=True), dims=[2, 8])
    criterion(points().requires_grad_(), LABELS)
    names = {"active_tri", "pos_dist", "neg_dist", "n_triplets", "loss"}
    assert set(criterion.last_logs) >= {f"{name}_{dim}" for name in names for dim in (2, 8)}
    assert criterion.last_logs["pos_dist_2"] < criterion.last_logs["pos_dist_8"]
    assert not any(log.requires_grad for log in criterion.last_logs.values())
    assert criterion.criterion_name == "matryoshka_triplet"
    mixed = MatryoshkaLoss([SupConLoss(), SurrogatePrecision(k=1), SupConLoss()], dims=[1, 2, 3])
    assert mixed.criterion_name == "matryoshka_supcon_surrogate_precision"
    assert MatryoshkaLoss(nn.Identity(), dims=[1]).criterion_name == "matryoshka"


def test_banks_are_apart() -> None:
    """One bank could not hold embeddings of two sizes."""
    criterion = MatryoshkaLoss(SupConLoss(bank_size=20), dims=[2, 8], weights=[1.0, 2.0])
    alone = [SupConLoss(bank_size=20) for _ in range(2)]
    for step in range(3):
        x = points(step)
        torch.testing.assert_close(criterion(x, LABELS), alone[0](x[:, :2], LABELS) + 2 * alone[1](x, LABELS))
    other = MatryoshkaLoss(SupConLoss(bank_size=20), dims=[2, 8], weights=[1.0, 2.0])
    other.load_state_dict(criterion.state_dict())
    assert other(points(9), LABELS) == criterion(points(9), LABELS)


def test_a_loss_for_each_size() -> None:
    torch.manual_seed(0)
    inner = [ArcFaceLoss(in_features=dim, num_classes=3, s=4) for dim in (2, 8)]
    criterion = MatryoshkaLoss(inner, dims=[2, 8])
    torch.testing.assert_close(
        criterion(points(), LABELS), inner[0](points()[:, :2], LABELS) + inner[1](points(), LABELS)
    )
    assert len(list(criterion.parameters())) == 2
    torch.testing.assert_close(
        MatryoshkaLoss(nn.ModuleList(inner), [2, 8])(points(), LABELS), criterion(points(), LABELS)
    )
    assert MatryoshkaLoss(inner[1], dims=[8])(points(), LABELS) == inner[1](points(), LABELS)


def test_configs_of_the_registry() -> None:
    config = {"criterion": {"name": "supcon", "args": {"temperature": 0.5}}, "dims": [2, 8]}
    criterion = LOSSES_REGISTRY.build({"name": "matryoshka", "args": config})
    torch.testing.assert_close(criterion(points(), LABELS), MatryoshkaLoss(SupConLoss(0.5), [2, 8])(points(), LABELS))
    arcface = [
        {"name": "arcface", "args": {"in_features": dim, "num_classes": 3, "smoothing_epsilon": 0.1}} for dim in (2, 8)
    ]
    config = {"name": "matryoshka", "args": {"criterion": arcface, "dims": [2, 8]}}
    criterion = LOSSES_REGISTRY.build(config, label2category={0: 0, 1: 0, 2: 1})
    assert criterion(points(), LABELS).isfinite()
    with pytest.raises(ValueError, match="ArcFaceLoss needs the category of each"):
        LOSSES_REGISTRY.build(config, label2category={0: 0})  # so the categories do arrive


def test_gradient() -> None:
    criterion = MatryoshkaLoss(TripletLossWithMiner(margin=None), dims=[1, 3], weights=[0.5, 2.0], normalise=True)
    x = points(n=5, dim=3).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: criterion(x, LABELS[[0, 1, 0, 1, 1]]), x)


def test_half_precision() -> None:
    criterion = MatryoshkaLoss(TripletLossWithMiner(margin=0.5), dims=[2, 8], normalise=True)
    x = points().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = criterion(x, LABELS)
    torch.testing.assert_close(loss, criterion(x.float(), LABELS))
    (gradient,) = torch.autograd.grad(loss, x)
    assert gradient.dtype == torch.bfloat16
    assert gradient.isfinite().all()


def test_what_is_refused() -> None:
    for dims in ([], [0, 2]):
        with pytest.raises(ValueError, match="MatryoshkaLoss needs dims of 1 or more, and at least one"):
            MatryoshkaLoss(SupConLoss(), dims=dims)
    with pytest.raises(ValueError, match=r"MatryoshkaLoss needs each of its dims once, got \[2, 2\]"):
        MatryoshkaLoss(SupConLoss(), dims=[2, 2])
    with pytest.raises(ValueError, match="got 2 criteria and 1 weights"):
        MatryoshkaLoss(SupConLoss(), dims=[1, 2], weights=[1.0])
    with pytest.raises(ValueError, match="got 1 criteria and 2 weights"):
        MatryoshkaLoss([SupConLoss()], dims=[1, 2])
    with pytest.raises(ValueError, match="prefixes of 16 numbers, got embeddings of 8"):
        MatryoshkaLoss(SupConLoss(), dims=[2, 16])(points(), LABELS)


@pytest.mark.parametrize("dims", [np.array([2, 4]), torch.tensor([2]), 5, 1.5, None, "24", (1.0, 2), {2, 4}], ids=str)
def test_dims_are_ints(dims: Any) -> None:
    text = f"MatryoshkaLoss needs a list or tuple of ints as dims, got {type(dims).__name__}"
    with pytest.raises(TypeError, match=text):
        unwrap(MatryoshkaLoss.__init__)(MatryoshkaLoss.__new__(MatryoshkaLoss), SupConLoss(), dims)


class OfThreeLabels(ArcFaceLoss):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(num_classes=3, **kwargs)


SIZED = {
    "ArcFaceLoss": (ArcFaceLoss(in_features=8, num_classes=3), "in_features"),
    "OfThreeLabels": (OfThreeLabels(in_features=8), "in_features"),
    "ProxyAnchorLoss": (losses.ProxyAnchorLoss(num_classes=3, embedding_size=8), "embedding_size"),
    "CosFaceLoss": (losses.CosFaceLoss(num_classes=3, embedding_size=8), "embedding_size"),  # its parent's argument
    "CrossBatchMemory": (losses.CrossBatchMemory(losses.NTXentLoss(), embedding_size=8), "embedding_size"),
}


@pytest.mark.parametrize("name", SIZED)
def test_losses_for_one_size_are_not_copied(name: str) -> None:
    inner, argument = SIZED[name]
    for criterion in (inner, PMLLoss(inner), PMLLoss(losses.MultipleLosses([inner]))):
        text = f"cannot copy {type(criterion).__name__}, as {name} is built .* with {argument} of that size"
        with pytest.raises(ValueError, match=text):
            MatryoshkaLoss(criterion, dims=[4, 8])
        assert len(MatryoshkaLoss(criterion, dims=[8]).criteria) == 1
    copied = MatryoshkaLoss(PMLLoss(losses.MultiSimilarityLoss()), dims=[4, 8])
    assert copied(points(), LABELS).isfinite()
