import math
import warnings
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from oml.functional.contrastive import (
    combined_pairs,
    info_nce_loss,
    labelled_pairs,
    multi_similarity_loss,
    multi_similarity_pairs,
    supcon_loss,
)
from oml.losses.contrastive import InfoNCELoss, SupConLoss
from oml.losses.multi_similarity import MultiSimilarityLoss
from oml.losses.triplet import TripletLossWithMiner
from oml.miners.inbatch_all_tri import AllTripletsMiner
from oml.miners.multi_similarity import MultiSimilarityMiner

#: of single items of labels, which many tests here are about
pytestmark = pytest.mark.filterwarnings("ignore:.*got a first batch of")

LABELS = st.lists(st.integers(0, 2), min_size=1, max_size=7)
MULTI_SIMILARITY = {"alpha": 2.0, "beta": 5.0, "base": 0.5}
Build = Callable[[], nn.Module]
LOSSES = pytest.mark.parametrize(
    "build",
    [
        lambda: SupConLoss(0.3),
        lambda: SupConLoss(0.3, bank_size=5),
        lambda: InfoNCELoss(0.3),
        lambda: InfoNCELoss(0.3, bank_size=5),
        lambda: MultiSimilarityLoss(**MULTI_SIMILARITY, epsilon=None),
        lambda: MultiSimilarityLoss(**MULTI_SIMILARITY, epsilon=0.3),
    ],
    ids=["supcon", "supcon-bank", "info_nce", "info_nce-bank", "multi_similarity", "multi_similarity-mined"],
)


def points(n: int, seed: int, dim: int = 2) -> Tensor:
    """On a grid so small that ties, duplicates and zero vectors occur."""
    return torch.randint(-1, 2, (n, dim), generator=torch.Generator().manual_seed(seed)).double()


def cosine(a: Tensor, b: Tensor) -> float:
    scale = float(a.norm() * b.norm())
    return float(a @ b) / scale if scale else 0.0


def literal_contrastive(
    x: Tensor, labels: list[int], bank: Tensor, bank_labels: list[int], t: float, kind: str
) -> float:
    """Khosla et al. eq. 2 with positives and negatives of the bank; InfoNCE with negatives of the bank."""
    candidates, candidate_labels = [*x, *bank], [*labels, *bank_labels]
    losses = []
    for i in range(len(labels)):
        others = [j for j in range(len(candidates)) if j != i]
        scores = {j: math.exp(cosine(x[i], candidates[j]) / t) for j in others}
        negatives = [j for j in others if candidate_labels[j] != labels[i]]
        positives = [j for j in others if candidate_labels[j] == labels[i]]
        if kind == "supcon":
            terms = [-math.log(scores[p] / sum(scores.values())) for p in positives]
        else:
            positives = [p for p in positives if p < len(labels)]
            terms = [-math.log(scores[p] / (scores[p] + sum(scores[n] for n in negatives))) for p in positives]
        if positives:
            losses.append(sum(terms) / len(positives))
    return sum(losses) / len(losses) if losses else 0.0


@settings(deadline=None)
@given(
    batches=st.lists(LABELS, min_size=1, max_size=3),
    bank_size=st.sampled_from([0, 1, 4, 20]),
    seed=st.integers(0, 999),
    t=st.sampled_from([0.1, 1.0]),
    kind=st.sampled_from(["supcon", "info_nce"]),
)
def test_contrastive_losses_follow_the_papers(
    batches: list[list[int]], bank_size: int, seed: int, t: float, kind: str
) -> None:
    criterion = {"supcon": SupConLoss, "info_nce": InfoNCELoss}[kind](t, bank_size=bank_size)
    bank, bank_labels = torch.zeros(0, 2).double(), []
    for step, labels in enumerate(batches):
        x = points(len(labels), seed + step)
        expected = literal_contrastive(x, labels, bank, bank_labels, t, kind)
        torch.testing.assert_close(criterion(x, torch.tensor(labels)), torch.tensor(expected, dtype=torch.float64))
        if bank_size:
            bank, bank_labels = torch.cat([bank, x])[-bank_size:], [*bank_labels, *labels][-bank_size:]


def literal_multi_similarity(
    s: Tensor, labels: list[int], epsilon: float | None, alpha: float, beta: float, base: float
) -> tuple[list[float], set[tuple[int, int]], set[tuple[int, int]]]:
    """Wang et al. eq. 11, 12 and 15: the terms of the mean, and which pairs were selected."""
    terms, selected = [], (set(), set())
    for i in range(len(labels)):
        positives = [j for j in range(len(labels)) if labels[j] == labels[i] and j != i]
        negatives = [j for j in range(len(labels)) if labels[j] != labels[i]]
        if epsilon is not None:
            kept_negatives = [n for n in negatives if positives and s[i, n] > min(s[i, p] for p in positives) - epsilon]
            positives = [p for p in positives if negatives and s[i, p] < max(s[i, n] for n in negatives) + epsilon]
            negatives = kept_negatives
        pull = sum(math.exp(-alpha * (float(s[i, p]) - base)) for p in positives)
        push = sum(math.exp(beta * (float(s[i, n]) - base)) for n in negatives)
        terms.append(math.log(1 + pull) / alpha + math.log(1 + push) / beta)
        selected[0].update((i, p) for p in positives)
        selected[1].update((i, n) for n in negatives)
    return terms, *selected


@settings(deadline=None)
@given(labels=LABELS, seed=st.integers(0, 999), epsilon=st.sampled_from([None, 0.0, 0.25, 1.0]))
def test_multi_similarity_follows_the_paper(labels: list[int], seed: int, epsilon: float | None) -> None:
    shape = (len(labels), len(labels))
    s = torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(seed)).double() / 4  # exact, with ties
    terms, positives, negatives = literal_multi_similarity(s, labels, epsilon, **MULTI_SIMILARITY)
    pairs = labelled_pairs(torch.tensor(labels), torch.tensor(labels))
    if epsilon is not None:
        pairs = multi_similarity_pairs(s, *pairs, epsilon)
    assert [set(map(tuple, mask.nonzero().tolist())) for mask in pairs] == [positives, negatives]
    losses = multi_similarity_loss(s, *pairs, **MULTI_SIMILARITY)
    torch.testing.assert_close(losses, torch.tensor(terms, dtype=torch.float64))

    expected = {(i, p, n) for i, p in positives for j, n in negatives if i == j}
    triplets = list(zip(*(ids.tolist() for ids in combined_pairs(*pairs)), strict=True))
    assert triplets == sorted(expected)


@settings(deadline=None)
@given(labels=LABELS, seed=st.integers(0, 999), epsilon=st.sampled_from([None, 0.05, 0.45]))
def test_multi_similarity_loss_and_miner_take_cosines(labels: list[int], seed: int, epsilon: float | None) -> None:
    x = 7 * points(len(labels), seed)  # cosines are 0, 1 and 0.7: no epsilon decides by the last digit
    s = torch.tensor([[cosine(a, b) for b in x] for a in x], dtype=torch.float64)
    terms, positives, negatives = literal_multi_similarity(s, labels, epsilon, **MULTI_SIMILARITY)
    criterion = MultiSimilarityLoss(**MULTI_SIMILARITY, epsilon=epsilon)
    torch.testing.assert_close(criterion(x, labels), torch.tensor(terms, dtype=torch.float64).mean())
    assert criterion.last_logs == {"n_positives": len(positives), "n_negatives": len(negatives)}
    if epsilon is not None:
        mined = MultiSimilarityMiner(epsilon).mine(x, torch.tensor(labels))
        expected = {(i, p, n) for i, p in positives for j, n in negatives if i == j}
        assert set(zip(*(ids.tolist() for ids in mined), strict=True)) == expected


def test_the_miner_takes_fewer_than_all() -> None:
    """Those a margin away are left out, whole anchors too; a wide margin leaves in all."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(12) % 3
    x = torch.eye(3)[labels] + 0.4 * torch.randn(12, 3, generator=generator)
    n_all = len(AllTripletsMiner().mine(x, labels).anchor)
    mined = MultiSimilarityMiner(epsilon=0.1).mine(x, labels)
    assert 0 < len(mined.anchor) < n_all
    assert 0 < len(mined.anchor.unique()) < 12
    assert len(MultiSimilarityMiner(epsilon=2.1).mine(x, labels).anchor) == n_all
    x.requires_grad_()
    criterion = TripletLossWithMiner(margin=0.2, miner=MultiSimilarityMiner(), need_logs=True)
    criterion(x, labels).backward()
    assert x.grad is not None
    assert (x.grad != 0).any()
    assert criterion.last_logs["n_triplets"] == len(mined.anchor)
    half = MultiSimilarityMiner().mine(x.detach().bfloat16(), labels)
    full = MultiSimilarityMiner().mine(x.detach().bfloat16().float(), labels)
    assert all(torch.equal(a, b) for a, b in zip(half, full, strict=True))


def test_by_hand() -> None:
    x, labels = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 2.0]]), torch.tensor([5, 5, 5, 7])
    e = math.e  # the anchor of label 7 has no positive and does not count
    torch.testing.assert_close(SupConLoss(1.0)(x, labels), torch.tensor(math.log(2 * e + 1) - 1))
    torch.testing.assert_close(InfoNCELoss(1.0)(x, labels), torch.tensor(math.log(e + 1) - 1))
    # two positives at cosine 1 and a negative at 0 for three anchors; three negatives at 0 for the fourth
    pull, push = math.log(1 + 2 * math.exp(-1)) / 2, [math.log(1 + n * math.exp(-25)) / 50 for n in (1, 3)]
    expected = (3 * (pull + push[0]) + push[1]) / 4
    torch.testing.assert_close(MultiSimilarityLoss(epsilon=None)(x, labels), torch.tensor(expected))
    assert MultiSimilarityLoss(epsilon=0.1)(x, labels) == 0  # all pairs are told apart by more than that


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_one_positive_each_makes_supcon_and_info_nce_one(temperature: float) -> None:
    x, labels = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) // 2
    expected = InfoNCELoss(temperature)(x, labels)
    assert 0.1 < expected < 20
    torch.testing.assert_close(SupConLoss(temperature)(x, labels), expected)
    # and both are the cross-entropy of the partner among the others
    logits = (nn.functional.normalize(x) @ nn.functional.normalize(x).T / temperature).fill_diagonal_(-torch.inf)
    torch.testing.assert_close(nn.functional.cross_entropy(logits, torch.arange(12) ^ 1), expected)


def test_a_bank_gives_a_lone_item_positives_in_supcon_only() -> None:
    """Cross-batch memory (Wang et al. 2020) gives positives too, the queue of MoCo (He et al. 2020) negatives."""
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 4, 3, generator=generator)
    for loss, n_anchors in ((SupConLoss(bank_size=4), 4), (InfoNCELoss(bank_size=4), 0)):
        loss(first, [0, 1, 2, 3])
        assert loss.last_logs["n_anchors"] == 0
        x = second.clone().requires_grad_()
        loss(x, [0, 1, 2, 3]).backward()
        assert loss.last_logs["n_anchors"] == n_anchors
        assert x.grad is not None
        assert (x.grad != 0).any().item() == (n_anchors > 0)


@pytest.mark.parametrize("kind", [SupConLoss, InfoNCELoss])
def test_the_bank_is_filled_in_training_only_and_saved(kind: type[nn.Module]) -> None:
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(3, 6, 3, generator=generator), torch.tensor([0, 0, 1, 1, 2, 2])
    loss, alone = kind(bank_size=10), kind()
    assert loss.bank is not None
    loss.eval()
    assert loss(x[0], labels) == alone(x[0], labels)
    assert len(loss.bank.contents()[1]) == 0
    loss.train()
    assert loss(x[0], labels) == alone(x[0], labels)
    assert loss(x[1], labels) > 1.1 * alone(x[1], labels)  # more candidates
    assert loss.bank.contents()[1].tolist() == [*labels[2:].tolist(), *labels.tolist()]
    torch.testing.assert_close(loss.bank.contents()[0].norm(dim=1), torch.ones(10))
    resumed = kind(bank_size=10)
    resumed.load_state_dict(loss.state_dict())
    assert resumed(x[2], labels) == loss(x[2], labels) != alone(x[2], labels)
    assert not any(name.startswith("bank") for name, _ in loss.named_parameters())


@LOSSES
@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2], [0, 0, 0, 1, 2], [0, 0, 0, 0, 0]])
def test_gradient(build: Build, labels: list[int]) -> None:
    x = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    criterion = build()
    criterion(x[0], torch.tensor(labels))
    criterion.eval()  # the bank stays as it is
    assert torch.autograd.gradcheck(lambda x: criterion(x, torch.tensor(labels)), x[1].requires_grad_())


@LOSSES
@pytest.mark.parametrize(
    "x",
    [torch.zeros(6, 3), torch.ones(6, 3), 1e30 * torch.eye(6), -torch.eye(6)[[0, 1, 2, 0, 1, 2]], 1e-30 * torch.eye(6)],
    ids=["zeros", "identical", "huge", "duplicates", "tiny"],
)
@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2, 2], [0, 0, 0, 0, 0, 0], [0, 1, 2, 3, 4, 5], [0, 0, 0, 0, 0, 1]])
def test_odd_batches_are_finite(build: Build, x: Tensor, labels: list[int]) -> None:
    criterion = build()
    for _ in range(2):  # with an empty bank and with a full one
        leaf = x.clone().requires_grad_()
        with torch.autograd.set_detect_anomaly(True):  # a NaN that a mask hides later is found as well
            loss = criterion(leaf, torch.tensor(labels))
            loss.backward()
        assert loss.isfinite()
        assert loss >= 0
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("scale", [1e4, 1e30])
def test_big_logits_are_finite(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    s = (scale * torch.randn(8, 8, generator=generator)).requires_grad_()
    pairs = labelled_pairs(torch.arange(8) % 4, torch.arange(8) % 4)
    for losses in (
        supcon_loss(s, *pairs, 0.01),
        info_nce_loss(s, *pairs, 0.01),
        multi_similarity_loss(s, *pairs, 2.0, 50.0, 0.5),
    ):
        assert losses.isfinite().all()
        assert (losses > scale).any()
        assert torch.autograd.grad(losses.sum(), s)[0].isfinite().all()


@pytest.mark.parametrize("criterion", [SupConLoss(), InfoNCELoss(), MultiSimilarityLoss()])
@pytest.mark.parametrize("n", [4, 1, 0])
def test_a_batch_without_positives(criterion: nn.Module, n: int) -> None:
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = criterion(x, torch.arange(n))
    loss.backward()
    assert loss == 0
    assert x.grad is not None
    assert (x.grad == 0).all()
    assert all(value == 0 for value in criterion.last_logs.values())


@LOSSES
def test_half_precision(build: Build) -> None:
    x = torch.randn(12, 8, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    labels, criterion = torch.arange(12) % 3, build()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = criterion(x, labels)
        again = criterion(x, labels)
    expected = build()
    torch.testing.assert_close((loss, again), (expected(x.float(), labels), expected(x.float(), labels)))
    (gradient,) = torch.autograd.grad(again, x)
    assert gradient.dtype == torch.bfloat16
    assert gradient.isfinite().all()
    assert (gradient != 0).any(dim=1).all()


@LOSSES
def test_training_lowers_the_loss(build: Build) -> None:
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels, criterion = torch.arange(16) % 4, build()
    optimizer = torch.optim.Adam([x], lr=0.1)
    criterion(x, labels)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        losses.append(criterion(x, labels))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]


def test_what_is_refused() -> None:
    for kind in (SupConLoss, InfoNCELoss):
        for wrong in ({"temperature": 0.0}, {"bank_size": -1}):
            with pytest.raises(ValueError, match=f"{kind.__name__} needs a temperature above 0 and a bank_size"):
                kind(**wrong)
    for wrong in ({"alpha": 0.0}, {"beta": -1.0}):
        with pytest.raises(ValueError, match="MultiSimilarityLoss needs alpha and beta above 0"):
            MultiSimilarityLoss(**wrong)
    for criterion in (SupConLoss(), InfoNCELoss(), MultiSimilarityLoss()):
        with pytest.raises(ValueError, match=f"{type(criterion).__name__} needs one integer label per embedding"):
            criterion(torch.zeros(3, 2), [0, 1])
    criterion = SupConLoss(bank_size=4)
    criterion(torch.zeros(2, 3), [0, 1])
    with pytest.raises(ValueError, match="size 3 and got a batch of size 2"):
        criterion(torch.zeros(2, 2), [0, 1])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("criterion", [SupConLoss(), InfoNCELoss(bank_size=4), MultiSimilarityLoss()])
def test_a_first_batch_without_pairs_is_told_of(criterion: nn.Module) -> None:
    """A forgotten BalanceSampler: the loss would be 0 for ever."""
    x = torch.eye(3)
    with pytest.warns(UserWarning, match=rf"{type(criterion).__name__} got a first batch of 3 items with 3") as told:
        criterion(x, [0, 1, 2])
    assert told[0].filename == __file__
    criterion(x, [0, 1, 2])  # warnings are errors here
    type(criterion)()(x, [0, 1, 1])


def test_a_bank_may_hold_the_pairs() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SupConLoss(bank_size=4)(torch.eye(3), [0, 1, 2])
