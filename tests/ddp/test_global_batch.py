"""Two processes of n items train as one of 2n does."""

from pathlib import Path

import pytest
import torch
from tests.processes import run_processes
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from oml.ddp.global_batch import global_batch
from oml.losses.arcface import ArcFaceLoss
from oml.losses.contrastive import InfoNCELoss
from oml.losses.triplet import TripletLossWithMiner
from oml.miners.inbatch_hard_tri import HardTripletsMiner
from oml.miners.inbatch_nhard_tri import NHardTripletsMiner
from oml.miners.miner_with_bank import MinerWithBank

LABELS = torch.arange(4).repeat(3)  # so that each process alone has other triplets than both
SHARES = {"even": slice(0, 6), "uneven": slice(0, 4)}


def losses() -> dict[str, nn.Module]:
    torch.manual_seed(1)
    return {
        "triplet": TripletLossWithMiner(0.2, HardTripletsMiner()),
        "bank": TripletLossWithMiner(0.2, MinerWithBank(2, NHardTripletsMiner(1, 1))),
        "info_nce": InfoNCELoss(),
        "arcface": ArcFaceLoss(in_features=4, num_classes=4),
    }


def data() -> tuple[Tensor, nn.Module]:
    generator = torch.Generator().manual_seed(3)
    network = nn.Linear(5, 4, bias=False)  # a bias moves all embeddings alike, which triplets do not see
    with torch.no_grad():
        network.weight.copy_(torch.randn(4, 5, generator=generator))
    return torch.randn(2, len(LABELS), 5, generator=generator), network


class _Step(nn.Module):
    """Network and loss in one forward pass, as under Lightning."""

    def __init__(self, network: nn.Module, criterion: nn.Module) -> None:
        super().__init__()
        self.network, self.criterion = network, criterion

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return self.criterion(*global_batch(self.network(x), labels))


def gradients(step: nn.Module) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in step.parameters() if parameter.grad is not None]


def train_in_a_process(rank: int, share: str, folder: Path) -> None:
    found = {}
    for name, criterion in losses().items():
        batches, network = data()
        step = DistributedDataParallel(_Step(network, criterion))
        for x in batches:  # two, so that a bank of the first counts in the second
            step.zero_grad()
            rows = SHARES[share] if rank == 0 else slice(SHARES[share].stop, None)
            loss = step(x[rows], LABELS[rows])
            loss.backward()
        found[name] = (loss.detach(), gradients(step))
    torch.save(found, folder / f"{rank}.pt")


@pytest.mark.slow
@pytest.mark.parametrize("share", SHARES)
def test_loss_and_gradients_are_those_of_one_process(share: str, tmp_path: Path) -> None:
    run_processes(train_in_a_process, share, tmp_path, folder=tmp_path)
    by_rank = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for name, criterion in losses().items():
        batches, network = data()
        step = _Step(network, criterion)
        for x in batches:
            step.zero_grad()
            loss = step(x, LABELS)
            loss.backward()
        assert loss > 0
        for found, grads in (found[name] for found in by_rank):
            torch.testing.assert_close(found, loss.detach())
            for one, many in zip(gradients(step), grads, strict=True):
                assert one.abs().max() > 1e-3
                torch.testing.assert_close(
                    many, one, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
                )
