import copy
import io
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.processes import run_processes
from torch import Tensor, nn

from oml.miners.bank import Bank


def batch(start: int, size: int, dim: int = 2) -> tuple[Tensor, Tensor]:
    labels = torch.arange(start, start + size)
    return labels[:, None] * torch.ones(dim), labels


def same(one: Bank, other: Bank) -> bool:
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(one.contents(), other.contents(), strict=True))


@settings(deadline=None)
@given(capacity=st.integers(1, 6), sizes=st.lists(st.integers(0, 9), max_size=6), by_batches=st.booleans())
def test_bank_holds_the_last_ones(capacity: int, sizes: list[int], by_batches: bool) -> None:
    bank = Bank(n_batches=capacity) if by_batches else Bank(capacity)
    if by_batches:
        capacity *= next((size for size in sizes if size), 0)
    pushed = 0
    for size in sizes:
        bank.push(*batch(pushed, size))
        pushed += size
        embeddings, labels = bank.contents()
        assert labels.tolist() == list(range(pushed))[-capacity:]
        assert len(embeddings) == len(labels)
        assert (embeddings == labels[:, None]).all()
        assert bank.is_full == (pushed >= capacity > 0)


def test_what_was_given_out_may_be_in_a_graph() -> None:
    bank = Bank(4)
    bank.push(*batch(1, 4))
    before = bank.contents()[0].clone()
    x = torch.ones(3, 2, requires_grad=True)
    loss = (x @ bank.contents()[0].T).square().sum()
    bank.push(*batch(9, 2))
    loss.backward()
    torch.testing.assert_close(x.grad, 2 * (torch.ones(3, 2) @ before.T) @ before)


def test_batch_may_be_written_to_and_has_no_graph() -> None:
    bank = Bank(4)
    x, labels = batch(1, 4)
    bank.push(x.requires_grad_() * 1, labels)
    with torch.no_grad():
        x.zero_()
    labels.zero_()
    assert bank.contents()[1].tolist() == [1, 2, 3, 4]
    assert (bank.contents()[0] == bank.contents()[1][:, None]).all()
    assert not bank.contents()[0].requires_grad


@pytest.mark.parametrize("pushes", [0, 1, 5])
def test_a_fresh_bank_loads_any_other(pushes: int) -> None:
    bank, file = Bank(n_batches=3), io.BytesIO()
    for i in range(pushes):
        bank.push(batch(3 * i, 3)[0].bfloat16(), batch(3 * i, 3)[1])
    torch.save(nn.ModuleDict({"bank": bank}).state_dict(), file)
    file.seek(0)
    fresh = Bank(n_batches=3)
    nn.ModuleDict({"bank": fresh}).load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert same(bank, fresh)
    assert fresh.capacity == bank.capacity
    for other in (bank, fresh):
        other.push(*batch(40, 2))
    assert same(bank, fresh)
    used = Bank(n_batches=3)
    used.push(*batch(0, 5, dim=7))
    used.load_state_dict(bank.state_dict())
    assert same(bank, used)
    assert same(bank, copy.deepcopy(bank))


def test_a_smaller_bank_loads_the_newest() -> None:
    bank, fresh = Bank(5), Bank(2)
    bank.push(*batch(0, 5))
    fresh.load_state_dict(bank.state_dict())
    assert fresh.contents()[1].tolist() == [3, 4]
    batches, fewer = Bank(n_batches=3), Bank(n_batches=2)
    batches.push(*batch(0, 2))
    fewer.load_state_dict(batches.state_dict())
    assert fewer.capacity == 4


def test_a_checkpoint_of_earlier_versions_has_no_bank() -> None:
    model = nn.ModuleDict({"bank": Bank(2), "linear": nn.Linear(1, 1)})
    model.load_state_dict(model["linear"].state_dict(prefix="linear."))
    bank = model["bank"]
    assert isinstance(bank, Bank)
    assert len(bank.contents()[1]) == 0
    bank.push(*batch(0, 2))
    assert bank.contents()[1].tolist() == [0, 1]


def test_lacking_state_is_told() -> None:
    for name, part in Bank(2).state_dict().items():
        with pytest.raises(RuntimeError, match="Missing key"):
            Bank(2).load_state_dict({name: part})


def test_bank_moves() -> None:
    bank = Bank(2)
    bank.push(*batch(0, 2))
    bank.to("meta")
    assert all(part.is_meta for part in bank.contents())
    bank = Bank(3).to(torch.float64)
    bank.push(torch.ones(1, 2, dtype=torch.float64), torch.tensor([7], dtype=torch.int32))
    bank.push(torch.ones(1, 2), torch.tensor([2**40]))  # the type of the first push stays
    assert bank.contents()[0].dtype == torch.float64
    assert bank.contents()[1].tolist() == [7, 2**40]


def test_joined_puts_the_batch_first() -> None:
    bank = Bank(2)
    assert bank.joined(*batch(5, 2))[1].tolist() == [5, 6]
    bank.push(*batch(0, 3))
    embeddings, labels = bank.joined(batch(5, 2)[0].double().requires_grad_(), batch(5, 2)[1])
    assert labels.tolist() == [5, 6, 1, 2]
    assert embeddings.dtype == torch.float64
    assert embeddings.requires_grad
    assert (embeddings == labels[:, None]).all()


def test_another_dim_is_told() -> None:
    bank = Bank(4)
    bank.push(*batch(0, 2))
    for use in (bank.push, bank.joined):
        with pytest.raises(ValueError, match="size 2 and got a batch of size 3"):
            use(*batch(0, 2, dim=3))


@pytest.mark.parametrize("arguments", [{}, {"capacity": 0}, {"n_batches": 0}, {"capacity": 1, "n_batches": 1}])
def test_arguments(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="either capacity or n_batches, 1 or more"):
        Bank(**arguments)


def _rank(rank: int, folder: Path) -> None:
    bank, model = Bank(n_batches=3), nn.Linear(2, 2)
    whole = nn.parallel.DistributedDataParallel(nn.ModuleDict({"bank": bank, "model": model}))
    for step, size in enumerate([2, 2, 1 + rank, 3 - rank, 2 * rank]):
        bank.push(*batch(100 * step + 10 * rank, size))
    torch.save((bank.contents(), bank.capacity), folder / f"{rank}.pt")
    # DDP meets the buffers again: a second wrap sends those of the first rank to the others
    whole = nn.parallel.DistributedDataParallel(whole.module)
    torch.save(bank.contents(), folder / f"wrapped_{rank}.pt")


@pytest.mark.slow
def test_banks_of_two_processes_are_equal(tmp_path: Path) -> None:
    run_processes(_rank, tmp_path, folder=tmp_path)
    pushed = [0, 1, 10, 11, 100, 101, 110, 111, 200, 210, 211, 300, 301, 302, 310, 311, 410, 411]
    for rank in range(2):
        (embeddings, labels), capacity = torch.load(tmp_path / f"{rank}.pt")
        assert capacity == 12  # 3 batches of 4, of both ranks together
        assert labels.tolist() == pushed[-12:]
        assert (embeddings == labels[:, None]).all()
        assert torch.load(tmp_path / f"wrapped_{rank}.pt")[1].tolist() == pushed[-12:]
