import inspect
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

from oml.functional import distances
from oml.functional.distances import elementwise_dist, euclidean_pairs, indexed_dist, normalise, pairwise_dist
from oml.utils import misc_torch


def literal(x1: Tensor, x2: Tensor, p: int) -> list[list[float]]:
    return [
        [sum(abs(u - v) ** p for u, v in zip(a, b, strict=True)) ** (1 / p) for b in x2.double().tolist()]
        for a in x1.double().tolist()
    ]


@settings(deadline=None)
@given(
    n=st.integers(0, 6),
    m=st.integers(0, 6),
    dim=st.integers(1, 4),
    p=st.integers(1, 3),
    grid=st.booleans(),
    seed=st.integers(0, 999),
)
def test_distances_follow_the_definition(n: int, m: int, dim: int, p: int, grid: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x1, x2 = torch.randn(n, dim, generator=generator), torch.randn(m, dim, generator=generator)
    if grid:
        x1, x2 = x1.round(), x2.round()
    expected = torch.tensor(literal(x1, x2, p)).reshape(n, m)
    torch.testing.assert_close(pairwise_dist(x1, x2, p), expected)
    torch.testing.assert_close(elementwise_dist(x1[:m], x2[:n], p), expected.diagonal())


@pytest.mark.parametrize(("norm", "gap"), [(1e3, 1e-3), (1.0, 1e-6), (1.0, 1.0), (0.0, 1e-20)])
def test_near_duplicates_keep_their_digits(norm: float, gap: float) -> None:
    generator = torch.Generator().manual_seed(0)
    centres = norm * normalise(torch.randn(5, 64, generator=generator))
    x = centres.repeat_interleave(4, 0) + gap * torch.randn(20, 64, generator=generator)
    expected = (x[:, None].double() - x.double()).norm(dim=2)
    torch.testing.assert_close(pairwise_dist(x, x), expected.float(), rtol=1e-6, atol=0)
    assert (pairwise_dist(x, x).diagonal() == 0).all()
    if norm > gap:
        by_product = torch.cdist(x, x, compute_mode="use_mm_for_euclid_dist")
        assert not torch.allclose(by_product, expected.float(), rtol=1e-3, atol=0)


def test_a_far_mean_costs_no_digits() -> None:
    x = 1e3 + 2 * torch.randn(20, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = (x[:, None] - x).norm(dim=2)
    torch.testing.assert_close(pairwise_dist(x, x), expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("gap", [1e-6, 1e-2])
@pytest.mark.parametrize("numbers", [10, 2**20])
def test_near_duplicates_in_any_number(monkeypatch: pytest.MonkeyPatch, gap: float, numbers: int) -> None:
    """Two labels collapsed, or a few pairs among others: by products in float64, and in float32."""
    monkeypatch.setattr(distances, "_NUMBERS", numbers)
    generator = torch.Generator().manual_seed(0)
    few, many = torch.randn(40, 8, generator=generator), torch.randn(2, 8, generator=generator).repeat_interleave(20, 0)
    few[20:] = few[:20]
    for centres, dtype in ((few, torch.float32), (many, torch.float64)):
        x = (centres + gap * torch.randn(40, 8, generator=generator)).requires_grad_()
        weights = torch.rand(40, 40, generator=generator)
        assert euclidean_pairs(x.detach()).centred1.dtype == dtype
        y = x.detach().double().requires_grad_()
        expected = elementwise_dist(y.repeat_interleave(40, 0), y.repeat(40, 1)).reshape(40, 40)
        for columns in (x, x.detach().clone()):
            ours = pairwise_dist(x, columns)
            torch.testing.assert_close(ours, expected.float(), rtol=3e-6, atol=0)
        gradients = [
            torch.autograd.grad((d * weights).sum(), z)[0].float() for d, z in ((pairwise_dist(x, x), x), (expected, y))
        ]
        torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_products_in_lower_precision_are_not_used(precision: str) -> None:
    """As Lightning advises for GPUs; on CPUs, "medium" permits bfloat16."""
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    assert euclidean_pairs(x).distances.dtype == torch.float32
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        assert euclidean_pairs(x).distances.dtype == torch.float64
        assert pairwise_dist(x, x).dtype == torch.float32
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_broken_row_spoils_its_own_distances_only() -> None:
    x = torch.tensor([[torch.inf, 0.0], [0.0, 0.0], [3.0, 4.0]])
    assert pairwise_dist(x, x)[1:, 1:].tolist() == [[0, 5], [5, 0]]
    assert not pairwise_dist(x, x.clone())[0].isfinite().any()


def test_the_incoming_gradient_is_left_as_it_was() -> None:
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    gradient = torch.ones(5, 5)
    pairwise_dist(x, x).backward(gradient)
    assert (gradient == 1).all()
    pairwise_dist(x, x).sum().backward()  # whose gradient is expanded from one number


def test_gradients_within_autocast_keep_their_digits() -> None:
    x = torch.randn(32, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weights = torch.rand(32, 32, generator=torch.Generator().manual_seed(1))
    (expected,) = torch.autograd.grad((pairwise_dist(x, x) * weights).sum(), x)
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = torch.autograd.grad((pairwise_dist(x, x) * weights).sum(), x)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "distance", [lambda x: pairwise_dist(x, x), lambda x: indexed_dist(x, *torch.eye(4).long()[:2])]
)
def test_second_derivatives_are_refused(distance: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    with pytest.raises(RuntimeError, match="Euclidean of OML has no second derivatives"):
        torch.autograd.grad(distance(x).sum(), x, create_graph=True)


@settings(deadline=None)
@given(n=st.integers(0, 5), n_pairs=st.integers(0, 12), grid=st.booleans(), seed=st.integers(0, 999))
def test_distances_by_ids(n: int, n_pairs: int, grid: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    x = x.round() if grid else x
    ids = torch.randint(max(1, n), (2, n_pairs if n else 0), generator=generator)
    weights = torch.rand(ids.shape[1], generator=generator, dtype=torch.float64)
    results = []
    for compute in (lambda y: indexed_dist(y, *ids), lambda y: elementwise_dist(y[ids[0]], y[ids[1]])):
        y = x.clone().requires_grad_()
        found = compute(y)
        results.append((found, torch.autograd.grad((found * weights).sum(), y)[0]))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)


def test_distances_by_ids_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "_NUMBERS", 10)
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([[0, 1, 2, 3, 4, 5, 0, 0], [1, 2, 3, 4, 5, 0, 1, 5]])
    known = elementwise_dist(x[ids[0]], x[ids[1]]).detach()
    torch.testing.assert_close(indexed_dist(x, *ids), known)
    for repeats in (1, 5):  # few pairs, and enough to be searched for repeats
        pairs = ids.repeat(1, repeats)
        assert gradcheck(lambda y, pairs=pairs: indexed_dist(y, *pairs), x)
        found = indexed_dist(x, *pairs, known.repeat(repeats))
        assert torch.equal(found, known.repeat(repeats))
        weights = torch.rand(len(found), generator=torch.Generator().manual_seed(0), dtype=x.dtype)
        gradients = [torch.autograd.grad((d * weights).sum(), x)[0] for d in (found, indexed_dist(x, *pairs))]
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("p", [1, 2, 3])
def test_gradients_are_true(p: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x1, x2 = (torch.randn(4, 3, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert gradcheck(lambda a, b: pairwise_dist(a, b, p), (x1, x2))
    assert gradcheck(lambda a, b: elementwise_dist(a, b, p), (x1, x2))
    assert gradcheck(lambda a: pairwise_dist(a, a[1:] * 2, p), x1)
    assert gradcheck(lambda a: normalise(a, p), x1)


@pytest.mark.parametrize(("p", "dtype"), [(1, torch.float32), (2, torch.float32), (2, torch.bfloat16)])
def test_gradients_are_zero_where_the_distance_is(p: int, dtype: torch.dtype) -> None:
    rows = torch.tensor([[1.0, 2.0], [1.0, 2.0], [3.0, 2.0]], dtype=dtype)
    x = rows.clone().requires_grad_()
    pairwise_dist(x, x, p).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[-2, 0], [-2, 0], [4, 0]]  # each of 4 ordered pairs pulls with force 1
    x1, x2 = rows.clone().requires_grad_(), rows.clone().requires_grad_()
    elementwise_dist(x1, x2, p).sum().backward()
    for x in (x1, x2):
        assert x.grad is not None
        assert (x.grad == 0).all()
    assert pairwise_dist(rows, rows).dtype == dtype


def test_gradients_of_near_duplicates_keep_their_digits() -> None:
    generator = torch.Generator().manual_seed(0)
    x = (100 + 1e-4 * torch.randn(6, 16, generator=generator)).requires_grad_()
    weights = torch.randn(6, 6, generator=generator)
    (pairwise_dist(x, x) * weights).sum().backward()
    y = x.detach().double().requires_grad_()
    gaps = y[:, None] - y
    (gaps.square().sum(dim=2).clamp(min=1e-300).sqrt() * weights).sum().backward()
    assert x.grad is not None
    assert y.grad is not None
    torch.testing.assert_close(x.grad, y.grad.float())


def test_gradient_reaches_one_side_alone() -> None:
    x1, x2 = torch.eye(2, requires_grad=True), torch.eye(2)
    pairwise_dist(x1, x2).sum().backward()
    assert x1.grad is not None
    torch.testing.assert_close(x1.grad, torch.tensor([[1.0, -1.0], [-1.0, 1.0]]) / math.sqrt(2))


def test_normalise_follows_the_definition() -> None:
    x = torch.tensor([[3.0, -4.0], [1e-30, 0.0], [1e30, 1e30], [0.0, 0.0], [-2.0, 0.0]])
    half = math.sqrt(0.5)
    torch.testing.assert_close(
        normalise(x), torch.tensor([[0.6, -0.8], [1.0, 0.0], [half, half], [0.0, 0.0], [-1.0, 0.0]])
    )
    torch.testing.assert_close(normalise(x[:1], p=1), torch.tensor([[3 / 7, -4 / 7]]))
    assert normalise(torch.full((1, 4), 6e4, dtype=torch.float16)).tolist() == [[0.5] * 4]  # their norm exceeds float16


def test_normalise_has_the_tangential_gradient() -> None:
    """The described system detaches the norm: moving along the vector would then change the result."""
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-20, 0.0]], requires_grad=True)
    normalise(x).sum().backward()
    assert x.grad is not None
    # (I - n n') / |x| applied to (1, 1), for n = (0.6, 0.8) and |x| = 5
    torch.testing.assert_close(x.grad[0], torch.tensor([(1 - 0.84) / 5, (1 - 1.12) / 5]))
    assert x.grad.isfinite().all()
    torch.testing.assert_close(x.grad[2], torch.tensor([0.0, 1e20]))


def test_old_import_path() -> None:
    assert misc_torch.pairwise_dist is pairwise_dist
    assert misc_torch.elementwise_dist is elementwise_dist
    assert misc_torch.normalise is normalise


def test_bad_shapes() -> None:
    x = torch.rand(3, 2)
    with pytest.raises(ValueError, match=r"elementwise_dist needs two tensors .* got \(3, 2\) and \(2, 2\)"):
        inspect.unwrap(elementwise_dist)(x, x[:2])
    with pytest.raises(ValueError, match=r"pairwise_dist needs tensors .* got shapes \(3, 2\) and \(3, 1\)"):
        inspect.unwrap(pairwise_dist)(x, x[:, :1])
    with pytest.raises(ValueError, match=r"pairwise_dist needs tensors of floats, got torch.int64"):
        inspect.unwrap(pairwise_dist)(x.long(), x)
    with pytest.raises(ValueError, match=r"normalise needs a tensor .* got shape \(3,\)"):
        inspect.unwrap(normalise)(x[:, 0])
