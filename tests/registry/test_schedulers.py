import math
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from oml.registry.schedulers import SCHEDULERS_REGISTRY, ReduceLROnPlateauPatch, get_scheduler, get_scheduler_by_cfg

#: arguments, and the learning rates that a start of 0.4 takes
EXPECTED: dict[str, tuple[dict[str, Any], list[float]]] = {
    "cosine_annealing": ({"T_max": 4}, [0.2 * (1 + math.cos(math.pi * step / 4)) for step in range(5)]),
    "cyclic": ({"base_lr": 0.1, "max_lr": 0.5, "step_size_up": 2}, [0.1, 0.3, 0.5, 0.3, 0.1]),
    "exponential": ({"gamma": 0.5}, [0.4, 0.2, 0.1, 0.05, 0.025]),
    "lambda": ({"lr_lambda": lambda step: 1 / (1 + step)}, [0.4, 0.2, 0.4 / 3, 0.1, 0.08]),
    "multi_step": ({"milestones": [1, 3], "gamma": 0.5}, [0.4, 0.2, 0.2, 0.1, 0.1]),
    "multiplicative": ({"lr_lambda": lambda step: 1 / step}, [0.4, 0.4, 0.2, 0.2 / 3, 0.2 / 12]),
    "one_cycle": (
        {"max_lr": 0.1, "total_steps": 5, "pct_start": 0.4, "anneal_strategy": "linear", "final_div_factor": 1},
        [0.004, 0.1, 0.068, 0.036, 0.004],
    ),
    "step": ({"step_size": 2, "gamma": 0.5}, [0.4, 0.4, 0.2, 0.2, 0.1]),
}


def sgd() -> SGD:
    return SGD([torch.zeros(1, requires_grad=True)], lr=0.4, momentum=0.9)


def test_names() -> None:
    assert set(SCHEDULERS_REGISTRY) == {*EXPECTED, "reduce_on_plateau"}


@pytest.mark.parametrize("name", EXPECTED)
def test_learning_rates(name: str) -> None:
    args, expected = EXPECTED[name]
    optimizer = sgd()
    scheduler = get_scheduler_by_cfg({"name": name, "args": args}, optimizer=optimizer, labels="not asked for")
    rates = []
    for _ in expected:
        rates.append(optimizer.param_groups[0]["lr"])
        assert scheduler.get_last_lr() == [rates[-1]]
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx(expected)


def test_on_a_plateau() -> None:
    optimizer = sgd()
    optimizer.add_param_group({"params": [torch.zeros(1)], "lr": 0.8})
    scheduler = get_scheduler("reduce_on_plateau", optimizer=optimizer, factor=0.5, patience=1, mode="max")
    assert type(scheduler) is ReduceLROnPlateauPatch
    found = [scheduler.get_last_lr()]
    for metric in (0.1, 0.2, 0.2, 0.2, 0.3):
        scheduler.step(metric)
        found.append(scheduler.get_last_lr())
        assert found[-1] == [group["lr"] for group in optimizer.param_groups]
    assert found == [[0.4, 0.8]] * 4 + [[0.2, 0.4]] * 2


class Constant(pl.LightningModule):
    """A loss of 1 whatever happens, so all epochs but the first are without improvement."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        loss = 1 + 0 * (self.weight * batch[0]).sum()
        self.log("loss", loss, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), lr=0.4)
        scheduler = get_scheduler("reduce_on_plateau", optimizer=optimizer, factor=0.5, patience=1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "loss_epoch"}}


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning", "ignore:.*many workers")  # of Lightning
def test_lightning_takes_the_one_that_monitors() -> None:
    trainer = pl.Trainer(
        max_epochs=4,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Constant(), DataLoader(TensorDataset(torch.zeros(1))))
    (config,) = trainer.lr_scheduler_configs
    assert config.reduce_on_plateau
    assert config.scheduler.get_last_lr() == [0.2]
