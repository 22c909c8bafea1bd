import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

from oml.functional import triplet_sums
from oml.functional.distances import elementwise_dist
from oml.functional.losses import triplet_loss
from oml.functional.triplet_sums import sum_over_all_triplets
from oml.functional.triplets import all_triplets

MARGINS = [0.2, 1.5, None]
LABELS = st.lists(st.integers(0, 3), max_size=9)


def explicit(embeddings: Tensor, labels: Tensor, margin: float | None) -> tuple[Tensor, ...]:
    """The definition, triplet by triplet."""
    losses, to_positives, to_negatives = [], [], []
    for a in range(len(labels)):
        for p in range(len(labels)):
            for n in range(len(labels)):
                if a != p and labels[a] == labels[p] != labels[n]:
                    to_positives.append(elementwise_dist(embeddings[a, None], embeddings[p, None]))
                    to_negatives.append(elementwise_dist(embeddings[a, None], embeddings[n, None]))
                    losses.append(triplet_loss(to_positives[-1], to_negatives[-1], margin))
    if not losses:
        return (embeddings.sum() * 0, *torch.zeros(4, dtype=embeddings.dtype))
    loss, positive, negative = (torch.cat(values) for values in (losses, to_positives, to_negatives))
    count = torch.tensor(float(len(loss)), dtype=loss.dtype)
    return loss.sum(), count, (loss > 0).sum().to(loss.dtype), positive.sum(), negative.sum()


def agree(points: Tensor, labels: Tensor, margin: float | None) -> tuple[Tensor, ...]:
    results = []
    for compute in (explicit, sum_over_all_triplets):
        x = points.clone().requires_grad_()
        loss, *others = compute(x, labels, margin)
        (3 * loss).backward()
        results.append((loss, *others, x.grad))
    for expected, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)
    return results[1]


# margins that no difference of distances on the grid meets: at the kink the gradient is a choice
@settings(deadline=None)
@given(labels=LABELS, margin=st.sampled_from([0.21, 1.37, None]), few=st.sampled_from([1, 24]), seed=st.integers(0, 99))
def test_the_sum_follows_the_definition_on_a_grid(labels: list[int], margin: float | None, few: int, seed: int) -> None:
    points = torch.randint(3, (len(labels), 2), generator=torch.Generator().manual_seed(seed)).double()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triplet_sums, "_FEW_POSITIVES", few)
        patch.setattr(triplet_sums, "_NUMBERS", 20)  # so that there are several parts
        agree(points, torch.tensor(labels, dtype=torch.int64), margin)


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("few", [1, 24])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_float32_agrees_where_half_are_active(
    monkeypatch: pytest.MonkeyPatch, margin: float | None, few: int, scale: float
) -> None:
    monkeypatch.setattr(triplet_sums, "_FEW_POSITIVES", few)
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 1, 1, 2, 0, 1, 2, 3, 2, 1, 0])  # 3 stands alone
    x = scale * torch.randn(11, 16, generator=generator)  # at a scale of 30 exp(distance) squared is beyond float32
    _, n_triplets, n_active, *_ = agree(x, labels, margin)
    assert n_triplets == len(all_triplets(labels).anchor) == 2 * 3 * 8 * 2 + 4 * 3 * 7
    if margin is not None:
        assert 0.2 < n_active / n_triplets < 0.95


def test_a_value_by_hand() -> None:
    """Anchors at 0 and 3 of label 7, one negative at 4: gaps of 3 - 4 and 3 - 1."""
    x = torch.tensor([[0.0], [3.0], [4.0]], requires_grad=True)
    result = sum_over_all_triplets(x, torch.tensor([7, 7, 5]), margin=0.5)
    assert [value.item() for value in result] == [2.5, 2, 1, 6, 5]
    result.loss.backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == pytest.approx([-1, 2, -1])  # of |3 - 0| - |3 - 4|


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("few", [1, 24])
def test_gradient(monkeypatch: pytest.MonkeyPatch, margin: float | None, few: int) -> None:
    monkeypatch.setattr(triplet_sums, "_FEW_POSITIVES", few)
    x = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    labels = torch.tensor([0, 0, 1, 1, 1, 2, 2, 0])
    assert gradcheck(lambda e: sum_over_all_triplets(e, labels, margin).loss, x)


def test_many_positives_in_the_soft_form_do_not_overflow() -> None:
    labels = torch.arange(2).repeat_interleave(70)
    x = torch.nn.functional.normalize(torch.randn(140, 4, generator=torch.Generator().manual_seed(0)))
    ids = all_triplets(labels)
    expected = triplet_loss(
        elementwise_dist(x[ids.anchor], x[ids.positive]), elementwise_dist(x[ids.anchor], x[ids.negative]), None
    )
    ours = sum_over_all_triplets(x, labels, None)
    torch.testing.assert_close(ours.loss / ours.n_triplets, expected.mean())


def test_tiny_losses_of_the_soft_form_keep_their_digits() -> None:
    """log(1 + exp(-15)) is 3.059e-7, of which 1 + exp(-15) in float32 keeps one digit."""
    x = torch.tensor([[0.0], [0.0], [15.0]])
    ours = sum_over_all_triplets(x, torch.tensor([0, 0, 1]), None)
    torch.testing.assert_close(ours.loss, torch.tensor(2 * 3.059023e-7), rtol=1e-5, atol=0)


def test_collapsed_embeddings_have_a_finite_gradient() -> None:
    x = torch.ones(6, 4, requires_grad=True)
    for margin in MARGINS:
        (gradient,) = torch.autograd.grad(sum_over_all_triplets(x, torch.tensor([0, 0, 0, 1, 1, 1]), margin).loss, x)
        assert gradient.tolist() == [[0] * 4] * 6


def test_ties_with_the_margin_count_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """A negative exactly a margin behind the positive is not active, one after the other or sorted."""
    labels = torch.arange(3).repeat_interleave(4)
    x = torch.randint(6, (12, 1), generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    results = []
    for few in (1, 24):
        monkeypatch.setattr(triplet_sums, "_FEW_POSITIVES", few)
        found = sum_over_all_triplets(x, labels, margin=2.0)
        results.append((*found, torch.autograd.grad(found.loss, x)[0]))
    gaps = [
        (x[a] - x[p]).abs() - (x[a] - x[n]).abs() + 2
        for a, p, n in zip(*(ids.tolist() for ids in all_triplets(labels)), strict=True)
    ]
    assert sum(gap == 0 for gap in gaps) > 5
    assert results[0][2] == results[1][2] == sum(gap > 0 for gap in gaps)
    torch.testing.assert_close(results[0], results[1])
