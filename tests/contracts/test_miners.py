"""What every miner of the registry that works in the batch promises."""

import warnings

import pytest
import torch
from torch import Tensor

from oml.interfaces.miners import ITripletsMinerInBatch
from oml.registry import MINERS_REGISTRY

LABELS = torch.tensor([3, 1, 3, 1, 2, 2, 3, 2**31 + 1, 2**31 + 1])
POINTS = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=sorted(MINERS_REGISTRY))
def miner(request: pytest.FixtureRequest) -> ITripletsMinerInBatch:
    return MINERS_REGISTRY[request.param]()


def position(points: Tensor, row: Tensor) -> int:
    return int((points == row).all(dim=1).nonzero().item())


def test_triplets_are_valid(miner: ITripletsMinerInBatch) -> None:
    anchor, positive, negative = ([position(POINTS, row) for row in rows] for rows in miner.sample(POINTS, LABELS))
    assert set(anchor) == set(range(len(LABELS)))  # none is missing
    for a, p, n in zip(anchor, positive, negative, strict=True):
        assert a != p
        assert LABELS[a] == LABELS[p] != LABELS[n]


def test_gradients_reach_the_embeddings(miner: ITripletsMinerInBatch) -> None:
    points = POINTS.clone().requires_grad_()
    anchor, positive, negative = miner.sample(points, LABELS)
    ((anchor - positive) - (anchor - negative)).square().sum().backward()
    assert points.grad is not None
    assert (points.grad != 0).all()


def test_gradients_repeat_bit_for_bit(miner: ITripletsMinerInBatch) -> None:
    labels = torch.arange(16).repeat_interleave(4)
    points = torch.randn(64, 1280, generator=torch.Generator().manual_seed(0), requires_grad=True)

    def gradient() -> Tensor:
        anchor, positive, negative = miner.sample(points, labels)
        loss = ((anchor - positive).norm(dim=1) - (anchor - negative).norm(dim=1)).mean()
        return torch.autograd.grad(loss, points)[0]

    first = gradient()
    assert all(torch.equal(gradient(), first) for _ in range(10))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_is_kept(miner: ITripletsMinerInBatch, dtype: torch.dtype) -> None:
    assert all(part.dtype == dtype for part in miner.sample(POINTS.to(dtype), LABELS))


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2]])
def test_a_batch_without_triplets_gives_none(miner: ITripletsMinerInBatch, labels: list[int]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert [tuple(part.shape) for part in miner.sample(POINTS[:3], labels)] == [(0, 4)] * 3


def test_lone_labels_are_named_once_and_the_others_mined(miner: ITripletsMinerInBatch) -> None:
    with pytest.warns(UserWarning, match=r"1 labels with a single instance in the batch, such as \[9\]"):
        anchor, _, negative = miner.sample(POINTS[:5], [4, 4, 9, 5, 5])
    assert {position(POINTS, row) for row in anchor} == {0, 1, 3, 4}
    assert len(negative)
    miner.sample(POINTS[:5], [4, 4, 9, 5, 5])  # warnings are errors here


@pytest.mark.parametrize("labels", [[0, 0, 1], [[0], [0], [1], [1]], [0.0, 0.0, 1.0, 1.0]])
def test_labels_that_do_not_fit(miner: ITripletsMinerInBatch, labels: list) -> None:
    with pytest.raises(ValueError, match=f"{type(miner).__name__} needs one integer label per embedding"):
        miner.sample(POINTS[:4], torch.tensor(labels))
