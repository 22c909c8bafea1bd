"""What every loss of the registry promises, the triplet loss with every miner of theirs."""

import re
import warnings
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from inspect import signature
from io import BytesIO
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from oml.interfaces.models import IExtractor
from oml.lightning.modules.extractor import ExtractorModule
from oml.registry import LOSSES_REGISTRY, MINERS_REGISTRY

N, DIM, N_LABELS = 12, 8, 4
LABELS = torch.arange(N_LABELS).repeat(N // N_LABELS)  # 3 of each


def with_labels(loss: nn.Module, x: Tensor, labels: Any) -> Tensor:
    return loss(x, labels)


@dataclass(frozen=True, eq=False)
class Case:
    """A loss of the registry with arguments for batches of ``N`` embeddings of ``DIM`` numbers, ``N_LABELS`` labels."""

    name: str
    args: Mapping[str, Any] = field(default_factory=dict)
    #: how it is called, for those that get no labels
    call: Callable[[nn.Module, Tensor, Any], Tensor] = with_labels
    #: it has a table of the labels 0 to ``N_LABELS - 1``
    has_table: bool = False
    #: it chooses at random, so the order of the batch matters
    draws: bool = False
    #: it has layers, which work in the precision of the model
    has_layers: bool = False
    #: all its shapes follow from those of its inputs, so that it runs on the meta device
    has_fixed_shapes: bool = True


TABLE = {"in_features": DIM, "num_classes": N_LABELS}
MINER_ARGS: dict[str, dict[str, Any]] = {
    "all_triplets": {},
    "hard_cluster": {},
    "hard_triplets": {},
    "miner_with_bank": {"bank_size_in_batches": 2, "miner": {"name": "n_hard_triplets", "args": {"n_positive": 2}}},
    "multi_similarity": {"epsilon": 1.0},
    "n_hard_triplets": {"n_positive": 2, "n_negative": [2, 4]},
    "triplets_with_memory": {"bank_size_in_batches": 2, "tri_expand_k": 3},
}

CASES = {
    "triplet": Case(
        "triplet",
        {"margin": 5.0, "need_logs": True},
        call=lambda loss, x, _: loss(x[0::3], x[1::3], x[2::3]),
    ),
    "triplet_plain": Case("triplet_plain", {"margin": None, "need_logs": True}, call=lambda loss, x, _: loss(x)),
    "triplet_with_miner, soft": Case("triplet_with_miner", {"margin": None, "need_logs": True}, has_fixed_shapes=False),
    "triplet_with_miner, some of all": Case(
        "triplet_with_miner",
        {"margin": 5.0, "miner": {"name": "all_triplets", "args": {"max_output_triplets": 150}}},
        draws=True,
        has_fixed_shapes=False,
    ),
    **{
        f"triplet_with_miner, {miner}": Case(
            "triplet_with_miner",
            {"margin": 5.0, "miner": {"name": miner, "args": args}, "need_logs": True},
            draws=miner == "triplets_with_memory",
            has_fixed_shapes=False,
        )
        for miner, args in MINER_ARGS.items()
    },
    "arcface": Case("arcface", TABLE | {"s": 8}, has_table=True),
    "arcface, smoothing": Case(
        "arcface",
        TABLE | {"s": 8, "smoothing_epsilon": 0.2, "label2category": {0: "hat", 1: "hat", 2: "bag", 3: "bag"}},
        has_table=True,
    ),
    "mlp_arcface": Case("mlp_arcface", TABLE | {"mlp_features": [16, 6], "s": 8}, has_table=True, has_layers=True),
    "cosface": Case("cosface", TABLE | {"s": 8}, has_table=True),
    "sub_center_arcface": Case("sub_center_arcface", TABLE | {"s": 8}, has_table=True),
    "sharded_arcface": Case("sharded_arcface", TABLE | {"s": 8}, has_table=True),
    "sharded_cosface, sampled": Case(
        "sharded_cosface", TABLE | {"s": 8, "sample_rate": 0.5}, has_table=True, draws=True, has_fixed_shapes=False
    ),
    "proxy_anchor": Case("proxy_anchor", TABLE, has_table=True),
    "surrogate_precision": Case("surrogate_precision", {"k": 2, "temperature2": 0.5}, has_fixed_shapes=False),
    "recall_surrogate": Case("recall_surrogate", {"k_values": [1, 2], "temperature2": 0.1}, has_fixed_shapes=False),
    "supcon": Case("supcon"),
    "supcon, bank": Case("supcon", {"bank_size": 20}),
    "info_nce": Case("info_nce"),
    "info_nce, bank": Case("info_nce", {"bank_size": 20}),
    "multi_similarity": Case("multi_similarity"),
    "multi_similarity, all pairs": Case("multi_similarity", {"epsilon": None}),
    # what is under the wrapper makes promises of its own
    "pml": Case("pml", {"loss": {"name": "NTXentLoss"}}, has_fixed_shapes=False),
    "pml, miner": Case(
        "pml",
        {"loss": {"name": "TripletMarginLoss"}, "miner": {"name": "multi_similarity"}},
        has_fixed_shapes=False,
    ),
    "matryoshka": Case(
        "matryoshka",
        {
            "dims": [3, DIM],
            "weights": [0.5, 1],
            "normalise": True,
            "criterion": {"name": "triplet_with_miner", "args": {"margin": 2.0, "need_logs": True}},
        },
        has_fixed_shapes=False,
    ),
    "matryoshka, bank": Case(
        "matryoshka", {"dims": [3, DIM], "criterion": {"name": "supcon", "args": {"bank_size": 20}}}
    ),
    "matryoshka, table": Case(
        "matryoshka",
        {
            "dims": [3, DIM],
            "criterion": [{"name": "cosface", "args": TABLE | {"in_features": dim, "s": 8}} for dim in (3, DIM)],
        },
        has_table=True,
    ),
}
TAKING_LABELS = {key: case for key, case in CASES.items() if case.call is with_labels}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(params=TAKING_LABELS)
def labels_case(request: pytest.FixtureRequest) -> Case:
    return TAKING_LABELS[request.param]


def build(case: Case, seed: int = 0, **changed: Any) -> Any:
    torch.manual_seed(seed)  # of the parameters
    return LOSSES_REGISTRY.build({"name": case.name, "args": {**case.args, **changed}})


def embeddings(seed: int = 0) -> Tensor:
    return torch.randn(N, DIM, generator=torch.Generator().manual_seed(seed))


def step(
    case: Case, loss: nn.Module, x: Tensor, labels: Any = LABELS, autocast: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """The loss of a batch and the gradient of its embeddings."""
    x = x.detach().requires_grad_()
    loss.zero_grad()
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        value = case.call(loss, x, labels)
    value.backward()
    assert x.grad is not None
    return value.detach(), x.grad


def trained(case: Case, seed: int = 0) -> Any:
    """After some steps: parameters have moved, banks are full."""
    return deepcopy(_trained(case, seed))


@cache
def _trained(case: Case, seed: int) -> Any:
    loss = build(case, seed)
    for i in range(1, 5):
        step(case, loss, embeddings(seed=i))
        with torch.no_grad():
            for parameter in loss.parameters():
                parameter -= 0.1 * (0 if parameter.grad is None else parameter.grad)
    return loss


def all_finite(loss: nn.Module, *tensors: Tensor) -> bool:
    gradients = [parameter.grad for parameter in loss.parameters() if parameter.grad is not None]
    return all(bool(tensor.isfinite().all()) for tensor in (*tensors, *gradients))


def test_every_loss_and_miner_is_tested() -> None:
    untested = set(LOSSES_REGISTRY) - {case.name for case in CASES.values()}
    assert not untested, f"Add a Case for {sorted(untested)} to CASES of {__file__}."
    untested = set(MINERS_REGISTRY) - set(MINER_ARGS)
    assert not untested, f"Add arguments for {sorted(untested)} to MINER_ARGS of {__file__}."


@pytest.mark.parametrize("trains", [False, True])
def test_a_batch_gives_a_number_and_gradients(case: Case, trains: bool) -> None:
    loss = trained(case) if trains else build(case)
    value, gradient = step(case, loss, embeddings())
    assert value.shape == ()
    assert value.dtype == torch.float32
    assert value > 0
    assert all_finite(loss, value, gradient)
    assert (gradient != 0).any(dim=1).all()  # whoever is in the batch has a part in the loss
    assert all(parameter.grad is not None and (parameter.grad != 0).any() for parameter in loss.parameters())


def test_the_gradient_is_true(case: Case) -> None:
    """Differences of the loss along random directions: gradcheck takes long, and its fast mode misses a lot."""
    loss, x, size = trained(case).double(), embeddings().double(), 1e-6
    gradient = step(case, deepcopy(loss), x)[1]
    for seed in range(1, 6):
        direction = embeddings(seed).double()
        ahead, behind = (step(case, deepcopy(loss), x + sign * size * direction)[0] for sign in (1, -1))
        slope = (gradient * direction).sum()
        torch.testing.assert_close((ahead - behind) / (2 * size), slope, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    "x",
    [
        pytest.param(torch.zeros(N, DIM), id="zeros"),
        pytest.param(embeddings()[:1].expand(N, DIM), id="collapsed"),
        pytest.param(embeddings()[:3].repeat(N // 3, 1), id="duplicates"),
        pytest.param(1e4 * embeddings(), id="huge"),
        pytest.param(1e-6 * embeddings(), id="small"),
        pytest.param(1e-30 * embeddings(), id="tiny"),
        pytest.param(embeddings() + 1e4, id="far"),
    ],
)
@pytest.mark.parametrize("trains", [False, True])
def test_extreme_embeddings_give_finite_gradients(case: Case, x: Tensor, trains: bool) -> None:
    loss = trained(case) if trains else build(case)
    assert all_finite(loss, *step(case, loss, x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_loses_the_digits_of_the_inputs_only(case: Case, dtype: torch.dtype, autocast: bool) -> None:
    loss = trained(case)
    x = embeddings().to(dtype)
    expected, expected_gradient = step(case, twin := deepcopy(loss), x.float())
    value, gradient = step(case, loss, x, autocast=dtype if autocast else None)
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    if case.has_layers and autocast:
        torch.testing.assert_close(value, expected, rtol=0.02, atol=0.02)
        torch.testing.assert_close(gradient.float(), expected_gradient, rtol=0.1, atol=0.02)
    else:
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(gradient, expected_gradient.to(dtype))
        for parameter, same in zip(loss.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad, same.grad)
    assert all(parameter.grad.dtype == parameter.dtype == torch.float32 for parameter in loss.parameters())


def test_autocast_changes_nothing(case: Case) -> None:
    loss = trained(case)
    expected = step(case, twin := deepcopy(loss), embeddings())
    value, gradient = step(case, loss, embeddings(), autocast=torch.bfloat16)
    tolerance = 0.02 if case.has_layers else 0.0
    torch.testing.assert_close((value, gradient), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(loss.state_dict(), twin.state_dict(), rtol=0, atol=0)


def test_a_backward_pass_within_autocast_works(case: Case) -> None:
    loss = trained(case)
    expected = step(case, deepcopy(loss), embeddings())
    with torch.autocast("cpu", torch.bfloat16):
        result = step(case, loss, embeddings())  # products of the backward pass may be in half precision
    torch.testing.assert_close(result, expected, rtol=0.1, atol=0.05)


def test_double_precision_is_kept(case: Case) -> None:
    loss = trained(case)
    expected = step(case, deepcopy(loss), embeddings())
    result = step(case, loss.double(), embeddings().double())
    assert [tensor.dtype for tensor in result] == [torch.float64] * 2
    torch.testing.assert_close(result, expected, check_dtype=False)


def test_the_order_of_the_batch_does_not_matter(case: Case) -> None:
    if case.draws:
        return
    loss, x = trained(case), embeddings()
    if case.call is with_labels:
        order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    else:  # triplets stay together
        order = torch.arange(N).view(-1, 3).flip(0).flatten()
    value, gradient = step(case, deepcopy(loss), x)
    of_order, gradient_of_order = step(case, loss, x[order], LABELS[order])
    torch.testing.assert_close(of_order, value)
    torch.testing.assert_close(gradient_of_order, gradient[order])


@pytest.mark.parametrize(
    "form", [Tensor.tolist, Tensor.int, Tensor.short, Tensor.byte], ids=["list", "int32", "int16", "uint8"]
)
def test_labels_of_any_integer_type(labels_case: Case, form: Callable[[Tensor], Any]) -> None:
    expected, loss = (trained(labels_case) for _ in range(2))
    for i in range(2):  # the second batch may meet the first one's labels in a bank
        torch.testing.assert_close(
            step(labels_case, loss, embeddings(i), form(LABELS)),
            step(labels_case, expected, embeddings(i)),
            rtol=0,
            atol=0,
        )


def test_labels_are_names_and_no_numbers(labels_case: Case) -> None:
    """In float32, 2**24 and 2**24 + 1 are one number; ids may be negative, or hashes of 63 bits."""
    if labels_case.has_table:
        return
    names = torch.tensor([-5, 2**24, 2**24 + 1, 2**62])
    expected, loss = (build(labels_case) for _ in range(2))
    for i in range(5):
        torch.testing.assert_close(
            step(labels_case, loss, embeddings(i), names[LABELS]), step(labels_case, expected, embeddings(i))
        )


@pytest.fixture
def as_users_run_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the type checks of the test run, which would refuse wrong types before our own code does."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.parametrize(
    "labels",
    [
        pytest.param(LABELS[:-1], id="too few"),
        pytest.param(LABELS[None], id="a row"),
        pytest.param(["a"] * N, id="strings"),
        pytest.param(LABELS.float(), id="floats"),
        pytest.param(LABELS > 1, id="bools"),
        pytest.param(torch.eye(N)[:, :N_LABELS], id="one-hot"),
        pytest.param([*LABELS.tolist(), 0], id="too many"),
    ],
)
def test_labels_that_do_not_fit(labels_case: Case, labels: Any, as_users_run_it: None) -> None:
    loss = build(labels_case)
    parts = [part for module in loss.modules() for part in (module, getattr(module, "miner", None))]
    owners = {type(part).__name__ for part in parts}
    with pytest.raises(ValueError, match=rf"({'|'.join(owners)}) needs one integer label per embedding"):
        loss(embeddings(), labels)


@pytest.mark.parametrize("wrong", [-1, N_LABELS])
def test_labels_beyond_the_table(labels_case: Case, wrong: int) -> None:
    if not labels_case.has_table:
        return
    loss = build(labels_case)
    owners = {type(part).__name__ for part in loss.modules()}
    with pytest.raises(ValueError, match=rf"({'|'.join(owners)}) needs labels of 0 to 3.* such as \[{wrong}, "):
        loss(embeddings(), LABELS.where(LABELS != 2, wrong))


@pytest.mark.filterwarnings("ignore:.*with a single instance in the batch", "ignore:.*got a first batch of")
@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize(
    "labels", [[2] * N, [2, 0, 1, 3], [2, 2, 0], [2], []], ids=["one label", "lone labels", "a pair", "one", "none"]
)
def test_a_batch_with_little_to_learn_from(labels_case: Case, labels: list[int], trains: bool) -> None:
    loss = trained(labels_case) if trains else build(labels_case)
    x = embeddings()[: len(labels)]
    value, gradient = step(labels_case, loss, x, torch.tensor(labels, dtype=torch.int64))
    assert all_finite(loss, value, gradient)
    assert value.shape == ()
    if not labels:
        assert value == 0
    assert all(log.isfinite() for log in loss.last_logs.values())
    # and the next batch is an ordinary one
    value, gradient = step(labels_case, loss, embeddings(9))
    assert all_finite(loss, value, gradient)
    assert (gradient != 0).any()


def test_no_triplets_at_all() -> None:
    for key in ("triplet", "triplet_plain"):
        loss = build(CASES[key])
        value, gradient = step(CASES[key], loss, embeddings()[:0])
        assert value == 0
        assert gradient.shape == (0, DIM)


def test_a_checkpoint_goes_on_where_training_stopped(case: Case) -> None:
    loss = trained(case)
    file = BytesIO()
    torch.save(loss.state_dict(), file)
    for other in (build(case, seed=1), trained(case, seed=1)):
        file.seek(0)
        other.load_state_dict(torch.load(file, weights_only=True))
        goes_on = deepcopy(loss)
        for i in range(5, 8):
            torch.testing.assert_close(
                step(case, other, embeddings(i)), step(case, goes_on, embeddings(i)), rtol=0, atol=0
            )


class Linear(IExtractor):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(DIM, DIM)

    @property
    def feat_dim(self) -> int:
        return DIM

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def test_a_lightning_checkpoint_holds_the_loss(labels_case: Case, tmp_path: Path) -> None:
    extractor, loss = Linear(), build(labels_case)
    optimizer = torch.optim.SGD([*extractor.parameters(), *loss.parameters()], lr=0.1)
    module = ExtractorModule(extractor, loss, optimizer)
    batches: Any = [{"input_tensors": embeddings(i), "labels": LABELS} for i in range(4)]
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        trainer.fit(module, DataLoader(batches, batch_size=None))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = ExtractorModule.load_from_checkpoint(
        tmp_path / "last.ckpt", extractor=Linear(), criterion=build(labels_case, seed=1), weights_only=True
    )
    assert loaded.criterion is not None
    for i in range(5, 8):
        expected = step(labels_case, loss, module(embeddings(i)))
        torch.testing.assert_close(step(labels_case, loaded.criterion, loaded(embeddings(i))), expected, rtol=0, atol=0)


def test_it_has_a_name_and_logs(case: Case) -> None:
    loss = build(case)
    assert re.fullmatch(r"[a-z0-9_]+", loss.criterion_name)
    assert loss.last_logs == {}
    for i in range(5):
        step(case, loss, embeddings(i))
        for name, log in loss.last_logs.items():
            assert isinstance(name, str)
            assert isinstance(log, Tensor)
            assert log.shape == ()
            assert log.is_floating_point()
            assert not log.requires_grad
            assert log.isfinite()


def test_copies_share_nothing(case: Case) -> None:
    loss = trained(case)
    copies = [deepcopy(loss) for _ in range(2)]
    expected = step(case, copies[0], embeddings(5))
    step(case, copies[0], embeddings(6))
    assert all_finite(loss, *expected)
    torch.testing.assert_close(step(case, copies[1], embeddings(5)), expected, rtol=0, atol=0)
    torch.testing.assert_close(step(case, loss, embeddings(5)), expected, rtol=0, atol=0)


def test_the_same_seed_gives_the_same_values_whatever_others_do(case: Case) -> None:
    alone = build(case)
    expected = [step(case, alone, embeddings(i)) for i in range(5)]
    among_others, other = build(case), build(case, seed=1)
    for i in range(5):
        torch.rand(i)  # other users of the global generator
        step(case, other, embeddings(10 + i))
        torch.testing.assert_close(step(case, among_others, embeddings(i)), expected[i], rtol=0, atol=0)


def test_no_tensor_of_another_device_comes_in(case: Case) -> None:
    """The meta device stands for a GPU: what would mix it with the CPU fails."""
    if not case.has_fixed_shapes:
        return
    loss = trained(case).to("meta")
    assert case.call(loss, embeddings().to("meta"), LABELS.to("meta")).is_meta
    assert all(log.is_meta for log in loss.last_logs.values())


def test_reductions_agree(case: Case, as_users_run_it: None) -> None:
    if "reduction" not in signature(LOSSES_REGISTRY[case.name]).parameters:
        return
    values = {
        reduction: case.call(build(case, reduction=reduction), embeddings(), LABELS)
        for reduction in ("none", "sum", "mean")
    }
    assert values["none"].ndim == 1
    torch.testing.assert_close(values["none"].sum(), values["sum"])
    torch.testing.assert_close(values["none"].mean(), values["mean"])
    with pytest.raises(ValueError, match="needs reduction to be one of mean, sum, none, got 'average'"):
        build(case, reduction="average")
