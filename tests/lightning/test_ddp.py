"""Modules that have their loaders themselves."""

from inspect import unwrap
from typing import Any

import pytest
from torch import Tensor, nn
from torch.utils.data import DataLoader

from oml.interfaces.models import IExtractor
from oml.lightning.modules.ddp import ModuleDDP
from oml.lightning.modules.extractor import ExtractorModuleDDP


class Tiny(IExtractor):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    @property
    def feat_dim(self) -> int:
        return 2

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def loader() -> DataLoader:
    return DataLoader([0, 1, 2])  # pyright: ignore[reportArgumentType]


def test_module_has_an_extractor_and_loaders() -> None:
    train, val = loader(), loader()
    module = ExtractorModuleDDP(train, val, Tiny(), scheduler_interval="epoch")
    assert module.train_dataloader() is train
    assert module.val_dataloader() is val
    assert module.scheduler_interval == "epoch"
    assert [name for name, _ in module.named_parameters()] == ["model.layer.weight", "model.layer.bias"]


@pytest.mark.parametrize("loaders", [[loader()], (loader(), loader()), {"a": loader()}], ids=["list", "tuple", "dict"])
def test_several_loaders(loaders: Any) -> None:
    assert ModuleDDP(loaders_train=loaders).train_dataloader() is loaders


@pytest.mark.parametrize("error", [ValueError, AssertionError])
def test_without_loaders(error: type[Exception]) -> None:
    with pytest.raises(error, match="needs loaders_train or loaders_val"):
        ModuleDDP()


@pytest.mark.parametrize("loaders", [{"loaders_val": {"a": loader()}}, {"loaders_train": [1]}, {"loaders_val": 3}])
def test_what_is_no_loader(loaders: dict) -> None:
    with pytest.raises(TypeError, match="takes as loaders_"):
        unwrap(ModuleDDP.__init__)(ModuleDDP.__new__(ModuleDDP), **loaders)  # past the tests' check of annotations
