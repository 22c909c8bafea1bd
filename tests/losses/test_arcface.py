import math
from collections.abc import Mapping
from inspect import unwrap
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oml.functional.label_smoothing import label_smoothing
from oml.losses.arcface import ArcFaceLoss, ArcFaceLossWithMLP
from oml.losses.cosface import CosFaceLoss
from oml.losses.sub_center_arcface import SubCenterArcFaceLoss
from oml.registry.losses import LOSSES_REGISTRY

DIM, N_LABELS = 6, 4
CATEGORIES = {0: "hat", 1: "bag", 2: "hat", 3: "bag"}


def batch(n: int = 32, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, DIM, generator=generator), torch.randint(N_LABELS, (n,), generator=generator)


def built(kind: type[nn.Module] = ArcFaceLoss, **args: Any) -> Any:
    torch.manual_seed(0)
    if kind is ArcFaceLossWithMLP:
        args = {"mlp_features": [8, 5], **args}
    return kind(in_features=DIM, num_classes=N_LABELS, **args)


KINDS = pytest.mark.parametrize("kind", [ArcFaceLoss, ArcFaceLossWithMLP, CosFaceLoss, SubCenterArcFaceLoss])


def reference_logits(x: Tensor, weight: Tensor, labels: Tensor, m: float, s: float) -> Tensor:
    cosines = F.linear(F.normalize(x), F.normalize(weight))
    sines = (1 - cosines**2).clamp(0, 1).sqrt()
    moved = cosines * math.cos(m) - sines * math.sin(m)
    moved = torch.where(cosines > math.cos(math.pi - m), moved, cosines - math.sin(math.pi - m) * m)
    one_hot = torch.zeros_like(cosines).scatter_(1, labels[:, None], 1)
    return (one_hot * moved + (1 - one_hot) * cosines) * s


# --- the value


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("s", [48, 64])
@pytest.mark.parametrize("m", [0.4, 0.5])
def test_arcface_is_the_reference(m: float, s: int, seed: int) -> None:
    x, labels = batch(seed=seed)
    x.requires_grad_()
    criterion = built(m=m, s=s)
    loss = criterion(x, labels)
    expected = F.cross_entropy(reference_logits(x, criterion.weight, labels, m, s), labels)
    torch.testing.assert_close(loss, expected)
    inputs = [x, criterion.weight]
    torch.testing.assert_close(torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs))
    assert (F.cross_entropy(s * criterion.fc(x), labels) - loss).abs() > 1  # the margin matters


@KINDS
@pytest.mark.parametrize("categories", [None, CATEGORIES])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_smoothing_is_cross_entropy_with_smooth_labels(
    kind: type[nn.Module], categories: Mapping[int, str] | None, reduction: str
) -> None:
    x, labels = batch()
    criterion = built(kind, m=0.0, s=5, smoothing_epsilon=0.3, label2category=categories, reduction=reduction)
    head, inner = (criterion.mlp(x), criterion.arcface) if kind is ArcFaceLossWithMLP else (x, criterion)
    targets = inner.smooth_labels(labels)
    ids = None if categories is None else torch.tensor([1, 0, 1, 0])  # bag, hat
    torch.testing.assert_close(targets, label_smoothing(labels, N_LABELS, 0.3, ids))
    logits = 5 * inner.fc(head)
    expected = F.cross_entropy(logits, targets, reduction=reduction)
    torch.testing.assert_close(criterion(x, labels), expected)
    unsmoothed = F.cross_entropy(logits, labels, reduction="none")
    assert (F.cross_entropy(logits, targets, reduction="none") - unsmoothed).abs().max() > 0.1


def test_no_smoothing_in_three_spellings() -> None:
    x, labels = batch()
    expected = built()(x, labels)
    for epsilon in (None, 0, 0.0):
        criterion = built(smoothing_epsilon=epsilon, label2category=CATEGORIES)
        torch.testing.assert_close(criterion(x, labels), expected, rtol=0, atol=0)
        torch.testing.assert_close(criterion.smooth_labels(labels), F.one_hot(labels, N_LABELS).float())


def test_smoothing_in_categories_forgives_what_is_near() -> None:
    """An item between the two labels of its category: the smaller loss is that of who expects this."""
    criterions = [
        built(smoothing_epsilon=0.2, m=0.0, s=5, label2category=categories)
        for categories in (None, CATEGORIES, dict.fromkeys(range(N_LABELS), "all"))
    ]
    x = torch.eye(DIM)[:1] + torch.eye(DIM)[2:3]
    for criterion in criterions:
        criterion.load_state_dict({"weight": torch.eye(DIM)[:N_LABELS]})
    plain, by_category, one_category = (criterion(x, torch.tensor([0])).item() for criterion in criterions)
    assert by_category < plain - 0.1
    assert one_category == pytest.approx(plain)


def test_cosface_by_hand() -> None:
    criterion = CosFaceLoss(in_features=2, num_classes=2, m=0.25, s=4)
    criterion.load_state_dict({"weight": torch.tensor([[2.0, 0.0], [0.0, 3.0]])})
    loss = criterion(torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([0, 0]))
    # cosines 0.6, 0.8 and 1, 0
    expected = (math.log(1 + math.exp(4 * (0.8 - 0.35))) + math.log(1 + math.exp(4 * (0 - 0.75)))) / 2
    torch.testing.assert_close(loss, torch.tensor(expected))


def test_sub_centers_by_hand() -> None:
    criterion = SubCenterArcFaceLoss(in_features=2, num_classes=2, n_centers=2, m=0.5, s=4)
    criterion.load_state_dict({"weight": torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])})
    loss = criterion(torch.tensor([[3.0, 4.0]]), torch.tensor([0]))
    # label 0: the larger of 0.6 and 0.8; label 1: the larger of -0.6 and -0.8
    own = math.cos(math.acos(0.8) + 0.5)
    torch.testing.assert_close(loss, torch.tensor(math.log(1 + math.exp(4 * (-0.6 - own)))))
    loss.backward()
    assert criterion.weight.grad is not None
    assert (criterion.weight.grad != 0).any(dim=1).tolist() == [False, True, True, False]


def test_one_center_is_arcface() -> None:
    x, labels = batch()
    torch.testing.assert_close(built(SubCenterArcFaceLoss, n_centers=1)(x, labels), built()(x, labels))


def test_the_mlp_stands_before_arcface() -> None:
    x, labels = batch()
    criterion = built(ArcFaceLossWithMLP, mlp_features=[8, 7, 5])
    layers = [layer for layer in criterion.mlp if not isinstance(layer, nn.Dropout)]
    assert [type(layer) for layer in layers] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert all(layer.p == 0 for layer in criterion.mlp if isinstance(layer, nn.Dropout))
    torch.testing.assert_close(criterion(x, labels), criterion.arcface(criterion.mlp(x), labels))
    assert criterion.arcface.weight.shape == (N_LABELS, 5)


# --- gradients where they could break


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", [ArcFaceLoss, CosFaceLoss, SubCenterArcFaceLoss])
def test_finite_at_the_poles(kind: type[nn.Module], dtype: torch.dtype, autocast: bool) -> None:
    """Embeddings that are proxies, or opposite to them: half precision goes slightly beyond a cosine of 1."""
    criterion = built(kind)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        criterion.weight.copy_(torch.randn(criterion.weight.shape, generator=generator).to(dtype))
    labels = torch.arange(N_LABELS).repeat(2)
    proxies = criterion.weight.detach()[:: len(criterion.weight) // N_LABELS]
    x = torch.cat([proxies, -proxies]).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16 if dtype == torch.float32 else dtype, enabled=autocast):
        loss = criterion(x, labels)
    loss.backward()
    own = criterion.fc(x).gather(1, labels[:, None])
    assert (own[:N_LABELS] - 1).abs().max() < 1e-6
    assert loss.dtype == torch.float32
    assert loss > 10  # of the opposite ones
    for tensor in (x, criterion.weight):
        assert tensor.grad is not None
        assert tensor.grad.dtype == tensor.dtype
        assert tensor.grad.isfinite().all()
        assert (tensor.grad != 0).any()


@KINDS
def test_parameters_keep_their_type_in_mixed_precision(kind: type[nn.Module]) -> None:
    criterion, layer = built(kind), nn.Linear(DIM, DIM)
    parameters = [*layer.parameters(), *criterion.parameters()]
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    x, labels = batch()
    with torch.autocast("cpu", torch.bfloat16):
        embeddings = layer(x)
        assert embeddings.dtype == torch.bfloat16
        loss = criterion(embeddings, labels)
    loss.backward()
    optimizer.step()
    for old, new in zip(before, parameters, strict=True):
        assert new.dtype == torch.float32
        assert new.isfinite().all()
        assert not torch.equal(old, new)


@KINDS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_wholly_in_half_precision(kind: type[nn.Module], dtype: torch.dtype) -> None:
    x, labels = batch()
    criterion = built(kind, smoothing_epsilon=0.1, label2category=CATEGORIES).to(dtype)
    loss = criterion(x.to(dtype).requires_grad_(), labels)
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(p.grad is not None and p.grad.dtype == dtype and p.grad.isfinite().all() for p in criterion.parameters())


@KINDS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_embeddings_and_a_float_loss(kind: type[nn.Module], dtype: torch.dtype) -> None:
    x, labels = batch()
    x, criterion = x.to(dtype), built(kind)
    torch.testing.assert_close(criterion(x, labels), criterion(x.float(), labels), rtol=0, atol=0)


@KINDS
def test_double_embeddings_and_a_float_loss(kind: type[nn.Module]) -> None:
    (x, labels), criterion, double = batch(), built(kind), built(kind).double()
    x = x.double().requires_grad_()
    loss, expected = criterion(x, labels), double(x, labels)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    gradient, expected_gradient = (
        torch.autograd.grad(loss, x, retain_graph=True)[0],
        torch.autograd.grad(expected, x)[0],
    )
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-12)
    loss.backward()
    assert all(parameter.grad.dtype == parameter.dtype == torch.float32 for parameter in criterion.parameters())
    # and the other way round
    assert double(x.detach().float(), labels).dtype == torch.float64


@pytest.mark.parametrize("kind", [ArcFaceLoss, CosFaceLoss, SubCenterArcFaceLoss])
@pytest.mark.parametrize("epsilon", [0, 0.2])
def test_gradient(kind: type[nn.Module], epsilon: float) -> None:
    x, labels = batch(n=5)
    criterion = built(kind, s=4, smoothing_epsilon=epsilon, label2category=CATEGORIES).double()
    weight = criterion.weight.detach().clone().requires_grad_()

    def loss(x: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(criterion, {"weight": weight}, (x, labels))

    assert torch.autograd.gradcheck(loss, (x.double().requires_grad_(), weight))


@KINDS
def test_an_empty_batch_is_a_zero_that_reaches_everything(kind: type[nn.Module]) -> None:
    criterion = built(kind)
    criterion(*batch())
    x = torch.zeros(0, DIM, requires_grad=True)
    loss = criterion(x, torch.zeros(0, dtype=torch.int64))
    assert loss == 0
    assert criterion.last_logs == {}
    loss.backward()
    assert all(p.grad is not None and (p.grad == 0).all() for p in criterion.parameters())


# --- training


@KINDS
@pytest.mark.parametrize(("epsilon", "categories"), [(0, None), (0.2, None), (0.2, CATEGORIES)])
def test_training_reduces_the_loss(kind: type[nn.Module], epsilon: float, categories: Mapping[int, str] | None) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(N_LABELS).repeat(16)
    centers = 3 * torch.randn(N_LABELS, DIM, generator=generator)
    x = centers[labels] + torch.randn(len(labels), DIM, generator=generator)
    torch.manual_seed(0)
    layer, criterion = nn.Linear(DIM, DIM), built(kind, s=16, smoothing_epsilon=epsilon, label2category=categories)
    optimizer = torch.optim.Adam([*layer.parameters(), *criterion.parameters()], lr=0.03)
    losses, accuracies = [], []
    for _ in range(60):
        optimizer.zero_grad()
        loss = criterion(layer(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        accuracies.append(criterion.last_logs["accuracy"].item())
    # a share of 0.2 costs some of what is won: with the margin, no logits give a loss near 0
    assert losses[-1] < (0.3 if epsilon == 0 else 0.7) * losses[0]
    assert accuracies[-1] > 0.95 > accuracies[0]


# --- logs, states, devices


@KINDS
def test_accuracy_is_free_of_the_margin(kind: type[nn.Module]) -> None:
    x, labels = batch()
    criterion = built(kind)
    assert criterion.last_logs == {}
    criterion(x.requires_grad_(), labels)
    head, inner = (criterion.mlp(x), criterion.arcface) if kind is ArcFaceLossWithMLP else (x, criterion)
    cosines = inner.fc(head)
    expected = (cosines.argmax(dim=1) == labels).float().mean()
    assert 0 < expected < 1
    assert criterion.last_logs.keys() == {"accuracy"}
    accuracy = criterion.last_logs["accuracy"]
    assert accuracy.shape == ()
    assert not accuracy.requires_grad
    assert accuracy == expected
    with_margin = (inner._logits(cosines, labels).argmax(dim=1) == labels).float().mean()
    assert with_margin < expected


def test_names_of_the_logs() -> None:
    assert ArcFaceLoss.criterion_name == ArcFaceLossWithMLP.criterion_name == "arcface"
    assert CosFaceLoss.criterion_name == "cosface"
    assert SubCenterArcFaceLoss.criterion_name == "sub_center_arcface"


@KINDS
def test_described_attributes(kind: type[nn.Module]) -> None:
    criterion = built(kind, m=0.25, s=48, smoothing_epsilon=0.1, label2category=CATEGORIES)
    inner = criterion.arcface if kind is ArcFaceLossWithMLP else criterion
    assert (inner.m, inner.rescale, inner.num_classes, inner.smoothing_epsilon) == (0.25, 48, N_LABELS, 0.1)
    assert isinstance(inner.criterion, nn.CrossEntropyLoss)
    assert inner.label2category.tolist() == [1, 0, 1, 0]
    assert built(kind).state_dict().keys() == criterion.state_dict().keys()


def test_weights_are_xavier_uniform() -> None:
    weight = ArcFaceLoss(in_features=200, num_classes=100).weight.detach()
    bound = math.sqrt(6 / 300)
    assert 0.99 * bound < weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


@KINDS
def test_weights_load_with_and_without_categories(kind: type[nn.Module]) -> None:
    x, labels = batch()
    trained, fresh = built(kind), built(kind, smoothing_epsilon=0.2, label2category=CATEGORIES)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    expected = fresh(x, labels)
    fresh.load_state_dict(trained.state_dict())
    assert (fresh(x, labels) - expected).abs() > 0.1
    again = built(kind)
    again.load_state_dict(fresh.state_dict())
    torch.testing.assert_close(again(x, labels), trained(x, labels), rtol=0, atol=0)


def test_names_of_the_weights_are_those_of_earlier_versions() -> None:
    assert list(built().state_dict()) == ["weight"]
    names = {"mlp.0.weight", "mlp.0.bias", "mlp.3.weight", "mlp.3.bias", "arcface.weight"}
    assert set(built(ArcFaceLossWithMLP).state_dict()) == names


@KINDS
def test_all_of_it_moves(kind: type[nn.Module]) -> None:
    x, labels = batch()
    criterion = built(kind, smoothing_epsilon=0.2, label2category=CATEGORIES).to("meta")
    assert criterion(x.to("meta"), labels.to("meta")).is_meta
    assert criterion.last_logs["accuracy"].is_meta
    assert getattr(criterion, "arcface", criterion).label2category.is_meta


# --- categories and the registry


@pytest.mark.parametrize("name", ["arcface", "mlp_arcface", "cosface", "sub_center_arcface"])
def test_categories_are_offered_at_run_time(name: str) -> None:
    args = {"in_features": DIM, "num_classes": N_LABELS, "smoothing_epsilon": 0.1, "m": 0, "s": 64}
    config = {"name": name, "args": args | ({"mlp_features": [5]} if name == "mlp_arcface" else {})}
    criterion = LOSSES_REGISTRY.build(config, label2category=CATEGORIES)
    inner = getattr(criterion, "arcface", criterion)
    assert inner.label2category.tolist() == [1, 0, 1, 0]
    assert LOSSES_REGISTRY.build(config, label2category=None)(*batch()) > 0


@KINDS
def test_labels_without_category_are_named(kind: type[nn.Module]) -> None:
    owner = "ArcFaceLoss" if kind is ArcFaceLossWithMLP else kind.__name__
    with pytest.raises(
        ValueError, match=rf"{owner} needs the category of each of the labels 0 to 3; 2 have none.*\[1, 3\]"
    ):
        built(kind, label2category={0: 5, 2: 5, 17: 5})


def test_labels_of_others_do_not_disturb() -> None:
    criterion = built(label2category={**CATEGORIES, 17: "ant", -1: "cap"})
    assert criterion.label2category.tolist() == [1, 0, 1, 0]


def test_categories_that_cannot_be_sorted() -> None:
    with pytest.raises(TypeError, match="ArcFaceLoss needs categories that can be sorted, all of one type"):
        built(label2category={0: "hat", 1: 1, 2: "hat", 3: 1})


# --- what is refused


@KINDS
@pytest.mark.parametrize("epsilon", [-1, 1, -0.1, 1.5])
def test_smoothing_out_of_range(kind: type[nn.Module], epsilon: float) -> None:
    with pytest.raises(ValueError, match=r"needs a smoothing epsilon of at least 0 and below 1, got"):
        built(kind, smoothing_epsilon=epsilon)


@pytest.mark.parametrize(
    ("kind", "args", "message"),
    [
        (ArcFaceLoss, {"m": -0.1}, "ArcFaceLoss needs a margin m of 0 to 3.142 and a scale s above 0, got -0.1 and 64"),
        (ArcFaceLoss, {"m": 28.6}, "margin m of 0 to 3.142"),  # degrees
        (ArcFaceLoss, {"s": 0}, "scale s above 0"),
        (CosFaceLoss, {"m": 2.5}, "CosFaceLoss needs a margin m of 0 to 2 "),
        (
            SubCenterArcFaceLoss,
            {"n_centers": 0},
            "SubCenterArcFaceLoss needs sizes of at least 1, got {'n_centers': 0}",
        ),
        (ArcFaceLossWithMLP, {"mlp_features": []}, "at least one layer"),
        (ArcFaceLossWithMLP, {"mlp_features": [8, 0]}, "ArcFaceLossWithMLP needs sizes of at least 1"),
    ],
)
def test_arguments_out_of_range(kind: type[nn.Module], args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        built(kind, **args)


@KINDS
def test_embeddings_of_another_size(kind: type[nn.Module]) -> None:
    match = rf"{kind.__name__} needs embeddings of shape \(batch, 6\).* in_features=6; got \(3, 7\)"
    with pytest.raises(ValueError, match=match):
        built(kind)(torch.zeros(3, 7), torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match=rf"{kind.__name__} needs embeddings .* got \(6,\)"):
        unwrap(kind.forward)(built(kind), torch.zeros(6), torch.tensor([0]))


@KINDS
@pytest.mark.parametrize("wrong", [-1, N_LABELS, 2**40])
def test_labels_beyond_the_table_are_named(kind: type[nn.Module], wrong: int) -> None:
    with pytest.raises(ValueError, match=rf"{kind.__name__} needs labels of 0 to 3.*got 1 others of 3.*\[{wrong}\]"):
        built(kind)(torch.zeros(3, DIM), torch.tensor([0, wrong, 1]))
