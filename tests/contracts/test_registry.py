"""Every registry entry has a packaged config from which it is built."""

from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from oml.const import CONFIGS_PATH
from oml.models.zoo import ZOO
from oml.registry import REGISTRIES

ENTRIES = [(kind, name) for kind, registry in REGISTRIES.items() for name in registry]


def offered(kind: str) -> dict[str, Any]:
    """What a pipeline has at hand at run time."""
    if kind == "sampler":
        return {"labels": np.repeat(np.arange(6), 3), "label2category": {label: label % 2 for label in range(6)}}
    if kind == "optimizer":
        return {"params": [torch.zeros(1)]}
    if kind == "scheduler":
        return {"optimizer": torch.optim.SGD([torch.zeros(1)], lr=0.1), "lr_lambda": lambda epoch: 0.5**epoch}
    return {}


@pytest.mark.parametrize(("kind", "name"), ENTRIES)
def test_packaged_config_builds(kind: str, name: str) -> None:
    config = OmegaConf.load(CONFIGS_PATH / kind / f"{name}.yaml")
    assert config.name == name
    if kind == "pairwise_model" and "extractor" in config.args:
        assert config.args.extractor.args.weights in ZOO
        config.args.extractor.args.weights = None  # which would be downloaded
    # of networks, numbers do not matter here, and take long to draw
    with torch.device("meta" if kind in ("extractor", "pairwise_model") else "cpu"):
        built = REGISTRIES[kind].build(config, **offered(kind))
    constructor = REGISTRIES[kind][name]
    if isinstance(constructor, type):
        assert type(built) is constructor


def test_no_config_without_an_entry() -> None:
    files = {(path.parent.name, path.stem) for path in CONFIGS_PATH.glob("*/*.yaml") if path.parent.name != "recipes"}
    assert files == set(ENTRIES)
