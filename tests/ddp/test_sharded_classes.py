"""Losses whose proxies are shared out: of any number of processes, they are those of one."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.processes import run_processes
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim import Adam

from oml.ddp import sharded_classes
from oml.ddp.sharded_classes import (
    ShardedArcFaceLoss,
    ShardedCosFaceLoss,
    clip_norm_with_shards,
    gather_shards,
    shard_classes,
    take_shards,
)
from oml.losses.arcface import ArcFaceLoss
from oml.losses.cosface import CosFaceLoss

DIM = 4
PAIRS: dict[str, tuple[Callable[..., Any], Callable[..., nn.Module]]] = {
    "arcface": (ShardedArcFaceLoss, ArcFaceLoss),
    "cosface": (ShardedCosFaceLoss, CosFaceLoss),
}


def table(n_labels: int) -> Tensor:
    return torch.randn(n_labels, DIM, generator=torch.Generator().manual_seed(n_labels))


@pytest.mark.parametrize("n_labels", [1, 50, 300])
def test_proxies_are_those_of_the_unsharded_loss(n_labels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharded_classes, "_DRAWN_AT_ONCE", 7)
    torch.manual_seed(5)
    whole = ArcFaceLoss(DIM, n_labels).weight
    torch.testing.assert_close(ShardedArcFaceLoss(DIM, n_labels, seed=5).weight, whole, rtol=0, atol=0)
    for rows in (range(n_labels // 3), range(n_labels // 3, n_labels), range(n_labels, n_labels)):
        own = sharded_classes._new_rows(DIM, n_labels, rows, seed=5)
        torch.testing.assert_close(own, whole.detach()[rows.start : rows.stop], rtol=0, atol=0)


@pytest.mark.parametrize("name", PAIRS)
@settings(deadline=None, max_examples=60)
@given(
    n_labels=st.integers(1, 6),
    labels=st.lists(st.integers(0, 99), max_size=6),
    s=st.sampled_from([1, 64, 1000]),
    m=st.sampled_from([0, 0.4]),
    seed=st.integers(0, 99),
)
def test_alone_it_is_the_unsharded_loss(
    name: str, n_labels: int, labels: list[int], s: int, m: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    of = torch.tensor([label % n_labels for label in labels], dtype=torch.int64)
    values = torch.randint(-2, 3, (len(labels) + n_labels, DIM), generator=generator).double()
    results = []
    for build in PAIRS[name]:
        loss = build(DIM, n_labels, m=m, s=s).double()
        loss.load_state_dict({"weight": values[len(labels) :]})
        x = values[: len(labels)].clone().requires_grad_()
        value = loss(x, of)
        value.backward()
        results.append((value.detach(), x.grad, loss.weight.grad))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("name", PAIRS)
def test_gradients_are_true(name: str) -> None:
    labels = torch.tensor([0, 3, 3, 1])
    loss = PAIRS[name][0](DIM, 5, m=0.3, s=3).double()

    def of(x: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(loss, {"weight": weight}, (x, labels))

    x = table(4).double().requires_grad_()
    assert torch.autograd.gradcheck(of, (x, table(5).double().requires_grad_()))


def test_accuracy_is_that_of_the_unsharded_loss() -> None:
    x, labels = table(60), torch.arange(60) % 3
    criteria = ShardedArcFaceLoss(DIM, 3), ArcFaceLoss(DIM, 3)
    for loss in criteria:
        loss.load_state_dict({"weight": table(3)})
        loss(x, labels)
    accuracies = [loss.last_logs["accuracy"] for loss in criteria]
    assert 0.1 < accuracies[1] < 0.9
    assert accuracies[0] == accuracies[1]
    criteria[0](torch.zeros(3, DIM), torch.arange(3))
    assert criteria[0].last_logs["accuracy"] == 0  # nothing is nearest


@settings(deadline=None, max_examples=60)
@given(
    n_labels=st.integers(1, 40),
    labels=st.lists(st.integers(0, 99), min_size=1, max_size=10),
    rate=st.sampled_from([0.01, 0.3, 0.5, 1]),
)
def test_labels_of_the_batch_are_always_compared_with(n_labels: int, labels: list[int], rate: float) -> None:
    of = torch.tensor([label % n_labels for label in labels])
    loss = ShardedArcFaceLoss(DIM, n_labels, m=0.0, s=2, sample_rate=rate)
    x = table(len(labels)).requires_grad_()
    value = loss(x, of)
    value.backward()
    assert loss.weight.grad is not None
    took_part = (loss.weight.grad != 0).any(dim=1)
    n_positive = len(of.unique())
    n_expected = max(n_positive, -(-round(rate * 100) * n_labels // 100))
    if n_expected > 1:  # else there is nothing to tell apart
        assert took_part[of].all()
        assert took_part.sum() == n_expected
    # the loss is that of those labels alone
    kept = took_part.nonzero().squeeze(1) if n_expected > 1 else of[:1]
    plain = ArcFaceLoss(DIM, len(kept), m=0.0, s=2)
    plain.load_state_dict({"weight": loss.weight.detach()[kept]})
    torch.testing.assert_close(plain(x, torch.searchsorted(kept, of)), value)


def drawn(loss: ShardedArcFaceLoss) -> tuple[int, ...]:
    loss.zero_grad()
    loss(table(2), torch.tensor([0, 1])).backward()
    assert loss.weight.grad is not None
    return tuple((loss.weight.grad != 0).any(dim=1).nonzero().squeeze(1).tolist())


def test_draws_differ_by_step_and_go_on_from_a_checkpoint() -> None:
    build = lambda seed=0: ShardedArcFaceLoss(DIM, 60, s=2, sample_rate=0.2, seed=seed)  # noqa: E731
    loss = build()
    steps = [drawn(loss) for _ in range(50)]
    assert len(set(steps)) == 50
    assert {label for step in steps for label in step} == set(range(60))
    assert drawn(build(seed=1)) != steps[0]
    again = build()
    assert [drawn(again) for _ in range(3)] == steps[:3]
    resumed = build()
    resumed.load_state_dict(again.state_dict())
    assert drawn(resumed) == steps[3]


def test_every_label_counts_in_evaluation() -> None:
    loss = ShardedArcFaceLoss(DIM, 60, s=2, sample_rate=0.2).eval()
    assert drawn(loss) == tuple(range(60))


@pytest.mark.parametrize(
    "args", [{"sample_rate": 0}, {"sample_rate": 1.1}, {"s": 0}, {"m": -1}, {"m": 4}, {"num_classes": 0}], ids=str
)
def test_arguments_out_of_range(args: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"ShardedArcFaceLoss needs (a sample_rate|a margin|sizes)"):
        ShardedArcFaceLoss(**{"in_features": DIM, "num_classes": 3, **args})


CASES = [("arcface", n_labels, dtype) for n_labels in (6, 7, 1) for dtype in (torch.float32, torch.float64)]
CASES.append(("cosface", 7, torch.float32))
ITEMS = {2: [5, 4], 3: [4, 0, 5]}  # of each process


class _Step(nn.Module):
    """Network and loss in one forward pass, as under Lightning."""

    criterion: Any

    def __init__(self, criterion: nn.Module, n_labels: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.criterion = nn.Linear(5, DIM), criterion
        generator = torch.Generator().manual_seed(3)
        self.network.load_state_dict(
            {"weight": torch.randn(DIM, 5, generator=generator), "bias": torch.randn(DIM, generator=generator)}
        )
        criterion.load_state_dict({"weight": table(n_labels)})
        self.to(dtype)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return self.criterion(self.network(x), labels)


def data(n_labels: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.randn(9, 5, generator=torch.Generator().manual_seed(9)).to(dtype), torch.arange(9) * 5 % n_labels


def learn(step: nn.Module, optimizer: Adam, x: Tensor, labels: Tensor) -> Tensor:
    optimizer.zero_grad()
    value = step(x, labels)
    value.backward()
    optimizer.step()
    return value.detach()


def gradients(step: nn.Module) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in step.parameters() if parameter.grad is not None]


def checkpoint_of(step: nn.Module, optimizer: Adam) -> dict[str, Any]:
    return deepcopy({"state_dict": step.state_dict(), "optimizer_states": [optimizer.state_dict()]})


def train(step: nn.Module, clip: Callable[[Adam], Tensor], x: Tensor, labels: Tensor) -> tuple[dict[str, Any], Adam]:
    """What two steps bring, the first with the gradients clipped."""
    optimizer = Adam(step.parameters(), 0.1)
    value = step(x, labels)
    value.backward()
    found = {
        "losses": [value.detach()],
        "gradients": gradients(step),
        "norm": clip(optimizer),
        "clipped": gradients(step),
    }
    optimizer.step()
    found["losses"] += [learn(step, optimizer, x, labels) for _ in range(2)]
    return found, optimizer


def go_on(step: nn.Module, checkpoint: dict[str, Any], x: Tensor, labels: Tensor) -> list[Tensor]:
    """The losses of two steps after a checkpoint; the second tells what became of the optimizer."""
    module = step.module if isinstance(step, DistributedDataParallel) else step
    optimizer = Adam(module.parameters(), 0.1)
    take_shards(module, optimizer, checkpoint)
    module.load_state_dict(checkpoint["state_dict"])
    optimizer.load_state_dict(checkpoint["optimizer_states"][0])
    return [learn(step, optimizer, x, labels) for _ in range(2)]


def wrapped(step: nn.Module) -> DistributedDataParallel:
    step._ddp_params_and_buffers_to_ignore = shard_classes(step)  # pyright: ignore[reportArgumentType]
    assert step._ddp_params_and_buffers_to_ignore == ["criterion.weight"]
    return DistributedDataParallel(step)


def train_in_a_process(rank: int, n: int, early: ShardedArcFaceLoss, checkpoints: list[dict], folder: Path) -> None:
    own = slice(sum(ITEMS[n][:rank]), sum(ITEMS[n][: rank + 1]))
    results = []
    for (name, n_labels, dtype), checkpoint in zip(CASES, checkpoints, strict=True):
        x, labels = data(n_labels, dtype)
        step = _Step(PAIRS[name][0](DIM, n_labels, s=4), n_labels, dtype)
        found, optimizer = train(
            wrapped(step),
            lambda optimizer, step=step: clip_norm_with_shards(step, optimizer, 0.01),
            x[own],
            labels[own],
        )
        found["accuracy"] = step.criterion.last_logs["accuracy"]
        found["own"] = step.criterion.own_labels
        found["checkpoint"] = checkpoint_of(step, optimizer)
        gather_shards(step, optimizer, found["checkpoint"])
        step = _Step(PAIRS[name][0](DIM, n_labels, s=4), n_labels, dtype)
        # the tensors of arguments are shared by the processes
        found["resumed"] = go_on(wrapped(step), deepcopy(checkpoint), x[own], labels[own])
        results.append(found)

    x, labels = data(60, torch.float32)
    sampled = ShardedArcFaceLoss(DIM, 60, s=4, sample_rate=0.2)
    sampled(x[own, :DIM], labels[own]).backward()
    with pytest.raises(ValueError, match=r"needs labels of 0 to 59.* such as \[77, 76, "):  # in all, though one has it
        sampled(x[own, :DIM], torch.arange(77, 77 - ITEMS[n][0], -1) if rank == 0 else labels[own])
    with pytest.raises(ValueError, match=r"has the proxies of labels 0 to 6, where .* Call shard_classes"):
        early(x[own, :DIM], labels[own] % 7)
    shard_classes(early)
    value = early(x[own, :DIM], labels[own] % 7).detach()
    torch.save((results, sampled.weight.grad, early.weight.detach(), value), folder / f"{rank}.pt")
    early.own_labels = range(1)
    with pytest.raises(ValueError, match="a checkpoint brings them to another number"):
        early.shard()


@pytest.mark.slow
@pytest.mark.parametrize("n", ITEMS)
def test_processes_are_as_one(n: int, tmp_path: Path) -> None:
    expected, steps = [], []
    for name, n_labels, dtype in CASES:
        steps.append(_Step(PAIRS[name][1](DIM, n_labels, s=4), n_labels, dtype))
        clip = lambda _, step=steps[-1]: clip_grad_norm_(step.parameters(), 0.01)  # noqa: E731
        found, optimizer = train(steps[-1], clip, *data(n_labels, dtype))
        found["accuracy"] = steps[-1].criterion.last_logs["accuracy"]
        found["checkpoint"] = checkpoint_of(steps[-1], optimizer)
        found["resumed"] = go_on(deepcopy(steps[-1]), deepcopy(found["checkpoint"]), *data(n_labels, dtype))
        expected.append(found)
    early = ShardedArcFaceLoss(DIM, 7)
    run_processes(
        train_in_a_process, n, early, [found["checkpoint"] for found in expected], tmp_path, folder=tmp_path, n=n
    )
    by_rank = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(n)]

    for case, one, step, *many in zip(CASES, expected, steps, *(results for results, *_ in by_rank), strict=True):
        _, n_labels, dtype = case
        exact = 1e-6 if dtype == torch.float32 else 1e-12

        def close(found: Any, expected: Any, tolerance: float, case: Any = case) -> None:
            text = lambda text: f"{case}: {text}"  # noqa: E731
            torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, msg=text)

        assert one["losses"][0] > 1 or n_labels == 1
        assert one["norm"] > 0.1 or n_labels == 1
        owns = [found["own"] for found in many]
        assert [label for own in owns for label in own] == list(range(n_labels))
        assert {len(own) for own in owns} <= {n_labels // n, -(-n_labels // n)}
        for found in many:
            for key in ("norm", "accuracy"):
                close(found[key], one[key], exact)
            close(found["losses"][0], one["losses"][0], exact)
            for key in ("losses", "resumed"):  # Adam makes much of what rounding leaves of small gradients
                close(found[key], one[key], 100 * exact)
            rows = slice(found["own"].start, found["own"].stop)
            for key in ("gradients", "clipped"):
                *of_network, of_proxies = one[key]
                close(found[key], [*of_network, of_proxies[rows]], exact)
        # one process goes on from where many were
        whole = many[0]["checkpoint"]
        close(whole["state_dict"], one["checkpoint"]["state_dict"], 100 * exact)
        close(go_on(step, whole, *data(n_labels, dtype)), one["resumed"], 100 * exact)

    draws = torch.cat([gradient for _, gradient, *_ in by_rank]).ne(0).any(dim=1)
    n_positive = len(data(60, torch.float32)[1].unique())
    assert draws[data(60, torch.float32)[1]].all()
    assert n_positive < draws.sum() <= 12 + n_positive
    torch.testing.assert_close(torch.cat([weight for *_, weight, _ in by_rank]), early.weight.detach())
    x, labels = data(60, torch.float32)
    torch.testing.assert_close(by_rank[0][-1], early(x[:, :DIM], labels % 7).detach())
