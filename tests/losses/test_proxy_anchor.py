import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from oml.functional.proxies import proxy_anchor_loss
from oml.losses.proxy_anchor import ProxyAnchorLoss


def test_by_hand() -> None:
    criterion = ProxyAnchorLoss(in_features=2, num_classes=3, margin=0.25, scale=2)
    criterion.load_state_dict({"proxies": torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])})
    loss = criterion(torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.tensor([0, 1]))
    # cosines 0.6, 0.8, -0.6 and 0, 1, 0
    pull = (math.log(1 + math.exp(2 * (0.25 - 0.6))) + math.log(1 + math.exp(2 * (0.25 - 1)))) / 2
    pushes = [math.exp(0.5), math.exp(2 * 1.05), math.exp(2 * -0.35) + math.exp(0.5)]
    push = sum(math.log(1 + push) for push in pushes) / 3
    torch.testing.assert_close(loss, torch.tensor(pull + push))
    assert criterion.last_logs.keys() == {"accuracy"}
    assert criterion.last_logs["accuracy"] == 0.5  # the first is nearer to proxy 1
    assert criterion.criterion_name == "proxy_anchor"


def test_lengths_do_not_matter() -> None:
    criterion = ProxyAnchorLoss(in_features=4, num_classes=5)
    x, labels = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3
    loss = criterion(x, labels)
    cosines = F.cosine_similarity(x[:, None], criterion.proxies, dim=2)
    torch.testing.assert_close(loss, proxy_anchor_loss(cosines, labels, 0.1, 32))
    with torch.no_grad():
        criterion.proxies.mul_(7)
    torch.testing.assert_close(criterion(100 * x, labels), loss)


def test_gradient() -> None:
    criterion = ProxyAnchorLoss(in_features=3, num_classes=4, scale=4).double()
    proxies = criterion.proxies.detach().clone().requires_grad_()
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 1, 3, 0])
    assert torch.autograd.gradcheck(
        lambda x, proxies: torch.func.functional_call(criterion, {"proxies": proxies}, (x, labels)), (x, proxies)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision(dtype: torch.dtype) -> None:
    """Embeddings on their proxies and opposite to them, in a whole step."""
    criterion = ProxyAnchorLoss(in_features=6, num_classes=4, scale=200)
    optimizer = torch.optim.SGD(criterion.parameters(), lr=0.1)
    before = criterion.proxies.detach().clone()
    x = torch.cat([before, -before]).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype):
        loss = criterion(x, torch.arange(4).repeat(2))
    loss.backward()
    optimizer.step()
    assert loss.dtype == criterion.proxies.dtype == torch.float32
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert criterion.proxies.isfinite().all()
    assert not torch.equal(criterion.proxies, before)


def test_double_embeddings() -> None:
    criterion, double = (ProxyAnchorLoss(in_features=2, num_classes=2) for _ in range(2))
    double.load_state_dict(criterion.state_dict())
    x, labels = torch.tensor([[3.0, 4.0], [1.0, -2.0]]).double(), torch.tensor([0, 1])
    torch.testing.assert_close(criterion(x, labels), double.double()(x, labels), rtol=1e-12, atol=0)


def test_training_reduces_the_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat(16)
    x = 3 * torch.randn(4, 6, generator=generator)[labels] + torch.randn(64, 6, generator=generator)
    torch.manual_seed(0)
    layer, criterion = nn.Linear(6, 6), ProxyAnchorLoss(in_features=6, num_classes=4, scale=16)
    optimizer = torch.optim.Adam([*layer.parameters(), *criterion.parameters()], lr=0.03)
    losses, accuracies = [], []
    for _ in range(60):
        optimizer.zero_grad()
        loss = criterion(layer(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        accuracies.append(criterion.last_logs["accuracy"].item())
    assert losses[-1] < 0.5 * losses[0]
    assert accuracies[-1] > 0.95 > accuracies[0]


def test_state_round_trip() -> None:
    first, second = (ProxyAnchorLoss(in_features=3, num_classes=4) for _ in range(2))
    x, labels = torch.ones(2, 3), torch.tensor([0, 3])
    assert first(x, labels) != second(x, labels)
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(second(x, labels), first(x, labels), rtol=0, atol=0)


def test_all_of_it_moves() -> None:
    criterion = ProxyAnchorLoss(in_features=3, num_classes=4).to("meta")
    assert criterion(torch.ones(2, 3, device="meta"), torch.zeros(2, dtype=torch.int64, device="meta")).is_meta


def test_directions_of_new_proxies_are_equally_likely() -> None:
    proxies = ProxyAnchorLoss(in_features=2, num_classes=20_000).proxies.detach()
    eighths = torch.histc(torch.atan2(proxies[:, 1], proxies[:, 0]), 8, -math.pi, math.pi) / len(proxies)
    torch.testing.assert_close(
        eighths, torch.full((8,), 0.125), rtol=0.08, atol=0
    )  # a cube's corners would have 20 % more


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"scale": 0}, "scale above 0, got 0.1 and 0"),
        ({"margin": 1.5}, "margin of -1 to 1"),
        ({"num_classes": 0}, "ProxyAnchorLoss needs sizes of at least 1, got {'num_classes': 0}"),
    ],
)
def test_arguments_out_of_range(args: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProxyAnchorLoss(**{"in_features": 3, "num_classes": 4, **args})  # pyright: ignore[reportArgumentType]


def test_what_does_not_fit_the_table() -> None:
    criterion = ProxyAnchorLoss(in_features=3, num_classes=4)
    with pytest.raises(ValueError, match=r"ProxyAnchorLoss needs embeddings of shape \(batch, 3\).* got \(1, 2\)"):
        criterion(torch.ones(1, 2), torch.tensor([0]))
    for wrong in (-1, 4):
        with pytest.raises(ValueError, match=rf"ProxyAnchorLoss needs labels of 0 to 3.* such as \[{wrong}\]"):
            criterion(torch.ones(2, 3), torch.tensor([0, wrong]))
