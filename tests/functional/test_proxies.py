import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from oml.functional.proxies import (
    add_angular_margin,
    arcface_logits,
    cosface_logits,
    cosines_to_nearest_centers,
    cosines_to_proxies,
    proxy_anchor_loss,
)


def some(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def some_labels(n: int, n_labels: int, seed: int = 0) -> Tensor:
    return torch.randint(n_labels, (n,), generator=torch.Generator().manual_seed(seed))


def reference_arcface(cosines: Tensor, labels: Tensor, m: float, s: float) -> Tensor:
    """The well-known implementation: a full matrix of moved cosines, chosen from by a one-hot mask."""
    sines = (1 - cosines**2).sqrt()
    moved = cosines * math.cos(m) - sines * math.sin(m)
    moved = torch.where(cosines > math.cos(math.pi - m), moved, cosines - math.sin(math.pi - m) * m)
    one_hot = F.one_hot(labels, cosines.shape[1])
    return s * (one_hot * moved + (1 - one_hot) * cosines)


# --- cosines


def test_cosines_are_those_of_torch() -> None:
    embeddings, proxies = 100 * some(5, 4), 0.01 * some(7, 4, seed=1)
    cosines = cosines_to_proxies(embeddings, proxies)
    torch.testing.assert_close(cosines, F.cosine_similarity(embeddings[:, None], proxies, dim=2))


def test_gradient_of_cosines() -> None:
    inputs = [
        some(5, 3, dtype=torch.float64).requires_grad_(),
        some(4, 3, seed=1, dtype=torch.float64).requires_grad_(),
    ]
    assert torch.autograd.gradcheck(cosines_to_proxies, inputs)


def test_zero_vectors_have_a_finite_gradient() -> None:
    embeddings, proxies = torch.zeros(2, 3, requires_grad=True), torch.zeros(4, 3, requires_grad=True)
    cosines = cosines_to_proxies(embeddings, proxies)
    assert (cosines == 0).all()
    (cosines.sum() + cosines_to_proxies(embeddings, torch.ones(4, 3)).sum()).backward()
    (cosines_to_proxies(torch.ones(2, 3), proxies)).sum().backward()
    for tensor in (embeddings, proxies):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
        assert tensor.grad.abs().max() < 100


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_half_precision_change_nothing(dtype: torch.dtype) -> None:
    """Not even when the backward pass runs under autocast."""
    gradients = []
    for enabled in (False, True):
        embeddings, proxies = some(5, 4).to(dtype).requires_grad_(), some(7, 4, seed=1).requires_grad_()
        with torch.autocast("cpu", dtype, enabled=enabled):
            cosines = cosines_to_proxies(embeddings, proxies)
            cosines.square().sum().backward()
        assert cosines.dtype == torch.float32
        gradients.append((embeddings.grad, proxies.grad))
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


# --- sub-centers


def test_cosines_are_in_the_wider_type() -> None:
    x, proxies = torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 1.0]], requires_grad=True)
    cosines = cosines_to_proxies(x.double(), proxies)
    torch.testing.assert_close(cosines, torch.tensor([[2.0]]).double() / 5**0.5, rtol=1e-14, atol=0)
    cosines.sum().backward()
    assert proxies.grad is not None
    assert proxies.grad.dtype == torch.float32
    torch.testing.assert_close(cosines_to_proxies(x, proxies.double()), cosines, rtol=1e-14, atol=0)


def test_nearest_center_by_hand() -> None:
    centers = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 1.0], [-3.0, 0.0], [3.0, 4.0], [0.0, -1.0]])
    cosines = cosines_to_nearest_centers(torch.tensor([[3.0, 4.0], [-5.0, 0.0]]), centers, n_centers=2)
    # (0.6 or 0.8), (0.8 or -0.6), (1 or -0.8); (-1 or 0), (0 or 1), (-0.6 or 0)
    torch.testing.assert_close(cosines, torch.tensor([[0.8, 0.8, 1.0], [0.0, 1.0, 0.0]]))


@pytest.mark.parametrize("n_centers", [1, 2, 3])
def test_nearest_center_follows_the_definition(n_centers: int) -> None:
    embeddings, centers = some(6, 3), some(4 * n_centers, 3, seed=1)
    found = cosines_to_nearest_centers(embeddings, centers, n_centers)
    assert found.shape == (6, 4)
    for i, embedding in enumerate(embeddings):
        for label in range(4):
            own = [F.cosine_similarity(embedding, centers[label * n_centers + k], dim=0) for k in range(n_centers)]
            torch.testing.assert_close(found[i, label], max(own))


def test_only_the_nearest_center_learns() -> None:
    centers = torch.tensor([[1.0, 0.1], [0.1, 1.0], [-1.0, 0.1]], requires_grad=True)
    cosines_to_nearest_centers(torch.tensor([[1.0, 0.0]]), centers, n_centers=3).sum().backward()
    assert centers.grad is not None
    assert (centers.grad != 0).any(dim=1).tolist() == [True, False, False]


# --- angular margin


@pytest.mark.parametrize("margin", [0.0, 0.3, 0.5, 2.0])
def test_angular_margin_by_angles(margin: float) -> None:
    angles = torch.linspace(0.01, math.pi - 0.01, 99, dtype=torch.float64)
    moved = add_angular_margin(angles.cos(), margin)
    fits = angles + margin < math.pi
    assert fits.any()
    torch.testing.assert_close(moved[fits], (angles[fits] + margin).cos())
    torch.testing.assert_close(moved[~fits], angles[~fits].cos() - margin * math.sin(margin))
    assert margin == 0 or not fits.all()


@pytest.mark.parametrize("margin", [0.4, 0.5])
def test_gradient_of_the_angular_margin(margin: float) -> None:
    cosines = torch.linspace(-0.98, 0.98, 50, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: add_angular_margin(x, margin), cosines)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_angular_margin_at_the_poles(dtype: torch.dtype) -> None:
    one = torch.ones((), dtype=dtype)
    up, down = torch.nextafter(one, 2 * one), torch.nextafter(one, 0 * one)
    poles = torch.stack([one, up, down, -one, -up, -down]).requires_grad_()
    moved = add_angular_margin(poles, 0.5)
    moved.sum().backward()
    digits = torch.finfo(dtype).eps
    exact = torch.tensor([math.cos(0.5), -1 - 0.5 * math.sin(0.5)], dtype=moved.dtype).repeat_interleave(3)
    torch.testing.assert_close(moved, exact, rtol=0, atol=2 * digits**0.5)
    torch.testing.assert_close(moved[[0, 3]], exact[[0, 3]])  # no room for a floor under the sine
    assert poles.grad is not None
    slopes = poles.grad.double()
    assert slopes.isfinite().all()
    torch.testing.assert_close(slopes[:2], torch.full((2,), math.cos(0.5), dtype=torch.float64), rtol=0, atol=digits)
    assert (slopes[3:] == 1).all()


def test_gradient_of_the_embedding_near_the_pole() -> None:
    """Its length is ``sin(angle + margin)``: the slope, infinite at the pole, meets a tangent that vanishes."""
    proxies = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    for angle in (1e-1, 1e-3, 1e-6):
        embedding = torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64, requires_grad=True)
        add_angular_margin(cosines_to_proxies(embedding, proxies), 0.5).sum().backward()
        assert embedding.grad is not None
        assert embedding.grad.norm().item() == pytest.approx(math.sin(angle + 0.5), rel=1e-3)


# --- ArcFace and CosFace


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("s", [48, 64])
@pytest.mark.parametrize("m", [0.4, 0.5])
def test_arcface_is_the_reference(m: float, s: int, seed: int, dtype: torch.dtype) -> None:
    cosines = F.normalize(some(256, 2, seed=seed, dtype=dtype)) @ F.normalize(some(5, 2, seed=9, dtype=dtype)).T
    cosines = cosines.clamp(-1, 1)
    labels = some_labels(256, 5, seed)
    own = cosines.gather(1, labels[:, None])
    assert 0.05 < (own > -math.cos(m)).float().mean() < 0.95  # both forms occur
    assert (own.abs() > 0.999).any()
    ours, expected = arcface_logits(cosines, labels, m, s), reference_arcface(cosines, labels, m, s)
    # of a cosine near 1, float32 gives the sine to 4 digits, in both
    rtol, atol = (1e-6, 5e-4) if dtype == torch.float32 else (1e-7, 1e-7)
    torch.testing.assert_close(ours, expected, rtol=rtol, atol=atol)
    torch.testing.assert_close(F.cross_entropy(ours, labels), F.cross_entropy(expected, labels))


@pytest.mark.parametrize("logits", [arcface_logits, cosface_logits])
def test_the_margin_touches_the_own_label_only(logits) -> None:
    cosines, labels = some(6, 4).tanh(), some_labels(6, 4)
    before = cosines.clone()
    moved = logits(cosines, labels, 0.3, 10.0)
    assert torch.equal(cosines, before)
    is_own = F.one_hot(labels, 4).bool()
    torch.testing.assert_close(moved[~is_own], 10 * cosines[~is_own], rtol=0, atol=0)
    assert (moved[is_own] < 10 * cosines[is_own] - 0.1).all()


def test_cosface_by_hand() -> None:
    cosines = torch.tensor([[0.5, -0.25], [0.0, 1.0]])
    logits = cosface_logits(cosines, torch.tensor([1, 0]), margin=0.25, scale=8)
    assert logits.tolist() == [[4.0, -4.0], [-2.0, 8.0]]


@pytest.mark.parametrize("logits", [arcface_logits, cosface_logits])
def test_gradient_of_the_logits(logits) -> None:
    labels = torch.tensor([0, 1, 2, 1])
    cosines = some(4, 3, dtype=torch.float64).tanh().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: logits(x, labels, 0.5, 4.0), cosines)


# --- Proxy-Anchor


def literal_proxy_anchor(cosines: Tensor, labels: list[int], margin: float, scale: float) -> float:
    n_labels, cosines = cosines.shape[1], cosines.detach()
    pulls, pushes = [], []
    for p in range(n_labels):
        own = [float(cosines[i, p]) for i in range(len(labels)) if labels[i] == p]
        others = [float(cosines[i, p]) for i in range(len(labels)) if labels[i] != p]
        if own:
            pulls.append(math.log(1 + sum(math.exp(-scale * (cosine - margin)) for cosine in own)))
        pushes.append(math.log(1 + sum(math.exp(scale * (cosine + margin)) for cosine in others)))
    return (sum(pulls) / len(pulls) if pulls else 0) + sum(pushes) / n_labels


@given(
    n_labels=st.integers(1, 4),
    labels=st.lists(st.integers(0, 3), max_size=7),
    margin=st.sampled_from([0, 0.1, -0.5]),
    scale=st.sampled_from([1, 4.0, 32]),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_proxy_anchor_follows_the_definition(
    n_labels: int, labels: list[int], margin: float, scale: float, seed: int
) -> None:
    labels = [label % n_labels for label in labels]
    grid = torch.randint(-2, 3, (len(labels), n_labels), generator=torch.Generator().manual_seed(seed))
    cosines = (grid.double() / 2).requires_grad_()
    loss = proxy_anchor_loss(cosines, torch.tensor(labels, dtype=torch.int64), margin, scale)
    assert loss.item() == pytest.approx(literal_proxy_anchor(cosines, labels, margin, scale), rel=1e-9)
    loss.backward()
    assert cosines.grad is not None
    assert cosines.grad.isfinite().all()
    for i, label in enumerate(labels):
        assert cosines.grad[i, label] < 0
        assert all(cosines.grad[i, p] > 0 for p in range(n_labels) if p != label)


def test_proxy_anchor_by_hand() -> None:
    cosines = torch.tensor([[1.0, 0.0, -1.0], [0.0, 0.0, 0.0]])
    loss = proxy_anchor_loss(cosines, torch.tensor([0, 0]), margin=0.0, scale=1.0)
    # proxy 0 pulls both, and has none to push; 1 and 2 have nothing to pull, and do not count in the first mean
    pull = math.log(1 + math.exp(-1) + 1)
    push = (0 + math.log(1 + 1 + 1) + math.log(1 + math.exp(-1) + 1)) / 3
    torch.testing.assert_close(loss, torch.tensor(pull + push))


@pytest.mark.parametrize("labels", [[0, 1, 0, 2], [1, 1, 1, 1], [0, 1, 2, 3]])
def test_gradient_of_proxy_anchor(labels: list[int]) -> None:
    cosines = some(4, 5, dtype=torch.float64).tanh().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: proxy_anchor_loss(x, torch.tensor(labels), 0.1, 4.0), cosines)


def test_proxy_anchor_is_stable() -> None:
    cosines = torch.tensor([[-1.0, 1.0], [1.0, -1.0]], requires_grad=True)
    loss = proxy_anchor_loss(cosines, torch.tensor([0, 1]), margin=0.1, scale=1e4)
    torch.testing.assert_close(loss, torch.tensor(2 * 1.1e4))  # exp(11000) is infinite even in float64
    loss.backward()
    assert cosines.grad is not None
    torch.testing.assert_close(cosines.grad, torch.tensor([[-5e3, 5e3], [5e3, -5e3]]))


def test_no_nan_on_the_way_back() -> None:
    cosines = torch.zeros(3, 2, requires_grad=True)
    with torch.autograd.set_detect_anomaly(True):
        proxy_anchor_loss(cosines, torch.tensor([0, 0, 0]), margin=0.1, scale=32.0).backward()


def test_proxy_anchor_of_nothing() -> None:
    cosines = torch.zeros(0, 3, requires_grad=True)
    loss = proxy_anchor_loss(cosines, torch.zeros(0, dtype=torch.int64), margin=0.1, scale=32)
    assert loss == 0
    loss.backward()
    assert cosines.grad is not None
