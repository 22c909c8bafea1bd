import math
from inspect import unwrap
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from oml.functional import surrogates
from oml.functional.distances import pairwise_dist
from oml.functional.losses import surrogate_precision
from oml.functional.ranking import precision_at_k
from oml.functional.surrogates import smooth_ranks, surrogate_recall
from oml.losses.recall_surrogate import RecallAtKSurrogate
from oml.losses.surrogate_precision import SurrogatePrecision

#: of single items of labels, which many tests here are about
pytestmark = pytest.mark.filterwarnings("ignore:.*got a first batch of")

LABELS = st.lists(st.integers(0, 2), min_size=1, max_size=6)
LOSSES = [SurrogatePrecision(k=2, temperature2=0.3), RecallAtKSurrogate(k_values=(1, 2), temperature2=0.3)]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def literal_precision(d: Tensor, mask: Tensor, k: int, t1: float, t2: float) -> list[float]:
    n_queries, n_galleries = d.shape
    precisions = []
    for q in range(n_queries):
        total = 0.0
        for g in range(n_galleries):
            if mask[q, g]:
                rank = sum(sigmoid(float(d[q, g] - d[q, other]) / t2) for other in range(n_galleries))
                total += sigmoid((k - rank) / t1)
        precisions.append(total / max(1, min(int(mask[q].sum()), k)))
    return precisions


def literal_recall_loss(x: Tensor, labels: list[int], k_values: tuple[int, ...], t1: float, t2: float) -> float:
    """Patel et al., with the batch but the query as the database."""
    similarity = nn.functional.cosine_similarity(x[:, None], x[None], dim=2)
    losses = []
    for q in range(len(labels)):
        database = [z for z in range(len(labels)) if z != q]
        positives = [p for p in database if labels[p] == labels[q]]
        for k in k_values if positives else ():
            ranks = [
                1 + sum(sigmoid(float(similarity[q, z] - similarity[q, p]) / t2) for z in database if z != p)
                for p in positives
            ]
            losses.append(1 - sum(sigmoid((k - rank) / t1) for rank in ranks) / min(k, len(positives)))
    return sum(losses) / len(losses) if losses else 0.0


def points(labels: list[int], seed: int, dim: int = 2) -> Tensor:
    """On a grid so small that ties, duplicates and zero vectors occur."""
    return torch.randint(-1, 2, (len(labels), dim), generator=torch.Generator().manual_seed(seed)).double()


@settings(deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 6)),
    seed=st.integers(0, 999),
    k=st.integers(1, 8),
    t1=st.sampled_from([0.1, 1.0]),
    t2=st.sampled_from([0.1, 1.0]),
)
def test_precision_follows_the_definition(shape: tuple[int, int], seed: int, k: int, t1: float, t2: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    distances = torch.randint(4, shape, generator=generator).double()
    mask = torch.randint(2, shape, generator=generator)
    ours = surrogate_precision(distances, mask.bool(), k, t1, t2, reduction="none")
    torch.testing.assert_close(ours, torch.tensor(literal_precision(distances, mask, k, t1, t2), dtype=torch.float64))
    for same in (mask, mask.double()):
        torch.testing.assert_close(surrogate_precision(distances, same, k, t1, t2), ours.mean())
    torch.testing.assert_close(surrogate_precision(distances, mask.bool(), k, t1, t2, "sum"), ours.sum())


@settings(deadline=None)
@given(labels=LABELS, seed=st.integers(0, 999), t2=st.sampled_from([0.1, 1.0]))
def test_recall_follows_the_paper(labels: list[int], seed: int, t2: float) -> None:
    x = points(labels, seed)
    k_values = (1, 2, 5)
    criterion = RecallAtKSurrogate(k_values, temperature1=0.7, temperature2=t2)
    expected = literal_recall_loss(x, labels, k_values, 0.7, t2)
    torch.testing.assert_close(criterion(x, labels), torch.tensor(expected, dtype=torch.float64))
    assert criterion.last_logs["n_anchors"] == sum(labels.count(label) > 1 for label in labels)


@settings(deadline=None)
@given(labels=LABELS, seed=st.integers(0, 999), k=st.integers(1, 7))
def test_precision_loss_counts_the_item_itself(labels: list[int], seed: int, k: int) -> None:
    x = points(labels, seed)
    mask = torch.tensor([[a == b for a in labels] for b in labels])
    expected = 1 - torch.tensor(literal_precision(torch.cdist(x, x), mask, k + 1, 1.0, 0.01), dtype=torch.float64)
    torch.testing.assert_close(SurrogatePrecision(k, reduction="none")(x, labels), expected)
    torch.testing.assert_close(SurrogatePrecision(k)(x, torch.tensor(labels)), expected.mean())
    torch.testing.assert_close(SurrogatePrecision(k, reduction="sum")(x, labels), expected.sum())


@pytest.mark.parametrize("k", [1, 2, 3, 5, 30])
def test_small_temperatures_give_hard_precision(k: int) -> None:
    generator = torch.Generator().manual_seed(k)
    distances, mask = torch.rand(50, 20, generator=generator), torch.rand(50, 20, generator=generator) < 0.2
    mask[:, 0] = True
    distances[:, 3], mask[:, 3] = torch.inf, False  # ignored
    hard = precision_at_k(mask.gather(1, distances.argsort(dim=1)), mask.sum(dim=1), k)
    assert 0 < hard.mean() < 1 or k == 30
    soft = surrogate_precision(distances, mask, k, 1e-6, 1e-6, reduction="none")
    torch.testing.assert_close(soft, hard, atol=1e-3, rtol=0)


def test_ranks_by_hand() -> None:
    distances = torch.tensor([[0.1, 0.5, 0.5, 0.9]])
    assert smooth_ranks(distances, distances, 1e-6).tolist() == [[0.5, 2.0, 2.0, 3.5]]
    # relevant at the ranks 1 and 3 of 3 (paper: the first is 1): at k = 1 the first counts by half
    similarities, is_relevant = torch.tensor([[0.9, 0.5, 0.1]]), torch.tensor([[True, False, True]])
    values = [surrogate_recall(similarities, is_relevant, [k], 1e-6, 1e-6).item() for k in (1, 2, 3, 4)]
    assert values == [0.5, 0.5, 0.75, 1.0]


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(20, 4, dtype=torch.float64, generator=generator), torch.arange(20) % 3

    def run(criterion: nn.Module) -> tuple[Tensor, Tensor]:
        leaf = x.clone().requires_grad_()
        loss = criterion(leaf, labels)
        return loss, torch.autograd.grad(loss, leaf)[0]

    for criterion in LOSSES:
        expected = run(criterion)
        assert expected[1].abs().min() > 0
        for numbers in (1, 50, 300):  # part of a query's positives, a query, several
            with monkeypatch.context() as patch:
                patch.setattr(surrogates, "_NUMBERS", numbers)
                torch.testing.assert_close(run(criterion), expected)


@pytest.mark.parametrize("criterion", LOSSES)
def test_comparisons_are_not_held(criterion: nn.Module) -> None:
    """Of 40 items with 20 positives each there are 32 000; a block has no more numbers than it should."""
    sizes = []

    def size_of(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(size_of, lambda tensor: tensor):
        criterion(torch.randn(40, 3, requires_grad=True), torch.arange(40) % 2)
    assert max(sizes) == 40 * 40
    for shape in ((3, 5), (40, 20), (2, 1000)):
        blocks = list(surrogates._blocks(torch.zeros(shape), torch.zeros(shape[0], 2000)))
        areas = [len(range(*rows.indices(shape[0]))) * len(range(*cols.indices(shape[1]))) for rows, cols in blocks]
        assert sum(areas) == shape[0] * shape[1]
        assert max(areas) * 2000 <= surrogates._NUMBERS


@pytest.mark.parametrize("criterion", LOSSES)
@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2], [0, 0, 0, 1, 2], [0, 0, 0, 0, 0]])
def test_gradient(criterion: nn.Module, labels: list[int]) -> None:
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: criterion(x, torch.tensor(labels)), x)


def test_gradient_of_distances_and_values() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(2, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    distances = torch.rand(2, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v, d: smooth_ranks(v, d, 0.3), (values, distances))


@pytest.mark.parametrize("criterion", [SurrogatePrecision(3, 1e-6, 1e-6), RecallAtKSurrogate((1, 3), 1e-6, 1e-6)])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_tiny_temperatures_and_any_scale_are_finite(criterion: nn.Module, scale: float) -> None:
    x = (scale * torch.randn(12, 4, generator=torch.Generator().manual_seed(0))).requires_grad_()
    loss = criterion(x, torch.arange(12) % 3)
    loss.backward()
    assert x.grad is not None
    assert loss.isfinite()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("criterion", LOSSES)
def test_half_precision(criterion: nn.Module) -> None:
    x = torch.randn(12, 8, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    labels = torch.arange(12) % 3
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = criterion(x, labels)
    torch.testing.assert_close(loss, criterion(x.float(), labels))
    (gradient,) = torch.autograd.grad(loss, x)
    assert gradient.dtype == torch.bfloat16
    assert gradient.isfinite().all()
    assert (gradient != 0).any()


def test_a_batch_without_positives() -> None:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    criterion = RecallAtKSurrogate()
    loss = criterion(x, [3, 1, 2, 5])
    loss.backward()
    assert loss == 0
    assert criterion.last_logs["n_anchors"] == 0
    assert x.grad is not None
    assert (x.grad == 0).all()


@pytest.mark.parametrize("criterion", LOSSES)
def test_an_empty_batch(criterion: nn.Module) -> None:
    empty = torch.zeros(0, 3, requires_grad=True)
    loss = criterion(empty, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss == 0


def test_lone_items_only_need_to_be_apart() -> None:
    """By the formula an item alone has itself to find: it does, unless there are duplicates."""
    criterion = SurrogatePrecision(k=1, temperature1=0.01)
    apart, together = torch.eye(4), torch.ones(4, 2, requires_grad=True)
    assert criterion(apart, [0, 1, 2, 3]) < 1e-6
    loss = criterion(together, [0, 1, 2, 3])  # four items share the ranks 0.5 to 3.5: each has 2, which is k + 1
    loss.backward()
    torch.testing.assert_close(loss, torch.tensor(0.5))
    assert together.grad is not None
    assert together.grad.isfinite().all()


@pytest.mark.parametrize("criterion", LOSSES)
def test_training_ranks_better(criterion: nn.Module) -> None:
    x = torch.randn(24, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.arange(24) % 6
    optimizer = torch.optim.Adam([x], lr=0.1)

    def share_right() -> Tensor:
        distances = pairwise_dist(x.detach(), x.detach()).fill_diagonal_(torch.inf)
        return (labels[distances.argmin(dim=1)] == labels).float().mean()

    assert share_right() < 0.4
    for _ in range(50):
        optimizer.zero_grad()
        criterion(x, labels).backward()
        optimizer.step()
    assert share_right() > 0.6


def test_what_is_refused() -> None:
    distances, mask = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="surrogate_precision needs k of 1 or more, got 0"):
        surrogate_precision(distances, mask, 0, 1.0, 1.0)
    for t1, t2 in ((1.0, 0.0), (-1.0, 1.0)):
        with pytest.raises(ValueError, match=f"surrogate_precision needs temperatures above 0, got {t1} and {t2}"):
            surrogate_precision(distances, mask, 1, t1, t2)
        with pytest.raises(ValueError, match=f"surrogate_recall needs temperatures above 0, got {t1} and {t2}"):
            surrogate_recall(distances, mask, [1], t1, t2)
    for function, k in ((surrogate_precision, 1), (surrogate_recall, [1])):
        for values, wrong in ((distances, mask[:1]), (distances, mask[0]), (distances[0], mask[0])):
            with pytest.raises(ValueError, match=rf"{function.__name__} needs two matrices \(query, gallery\), got"):
                unwrap(function)(values, wrong, k, 1.0, 1.0)
    with pytest.raises(ValueError, match="reduction"):
        surrogate_precision.__wrapped__.__wrapped__(distances, mask, 1, 1.0, 1.0, "avg")
    with pytest.raises(ValueError, match="surrogate_recall needs k_values of 1 or more, and at least one"):
        surrogate_recall(distances, mask, [], 1.0, 1.0)
    for wrong in ({"k": 0}, {"k": 1, "temperature1": 0.0}, {"k": 1, "temperature2": -1.0}):
        with pytest.raises(ValueError, match="SurrogatePrecision needs k and temperatures above 0"):
            SurrogatePrecision(**wrong)
    for wrong in ({"k_values": ()}, {"k_values": (0, 1)}, {"temperature1": 0.0}):
        with pytest.raises(ValueError, match="RecallAtKSurrogate needs"):
            RecallAtKSurrogate(**wrong)
    with pytest.raises(ValueError, match="SurrogatePrecision needs one integer label per embedding"):
        SurrogatePrecision(k=1)(torch.zeros(3, 2), [0, 1])


NOT_INTS = [np.array([1, 2]), torch.tensor([1]), np.array([]), 5, 1.5, None, "12", (1.0, 2), [True], {1, 2}]


@pytest.mark.parametrize("k_values", NOT_INTS, ids=str)
def test_cut_offs_are_ints(k_values: Any) -> None:
    text = r" needs a list or tuple of ints as k_values, got "
    with pytest.raises(TypeError, match=f"RecallAtKSurrogate{text}{type(k_values).__name__}"):
        unwrap(RecallAtKSurrogate.__init__)(RecallAtKSurrogate.__new__(RecallAtKSurrogate), k_values)
    with pytest.raises(TypeError, match=f"surrogate_recall{text}{type(k_values).__name__}"):
        unwrap(surrogate_recall)(torch.zeros(2, 3), torch.ones(2, 3), k_values, 1.0, 1.0)
