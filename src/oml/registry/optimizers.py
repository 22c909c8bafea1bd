"""Optimizers by name: those of torch."""

from collections.abc import Mapping
from typing import Any

from torch import optim

from oml.registry.registry import Registry

OPTIMIZERS_REGISTRY = Registry(
    "optimizer",
    {
        "adadelta": optim.Adadelta,
        "adagrad": optim.Adagrad,
        "adam": optim.Adam,
        "adamax": optim.Adamax,
        "adamw": optim.AdamW,
        "asgd": optim.ASGD,
        "lbfgs": optim.LBFGS,
        "rmsprop": optim.RMSprop,
        "rprop": optim.Rprop,
        "sgd": optim.SGD,
    },
    base=optim.Optimizer,
)


def get_optimizer(name: str, **kwargs: Any) -> optim.Optimizer:
    """An optimizer by its name and arguments."""
    return OPTIMIZERS_REGISTRY.build({"name": name, "args": kwargs})


def get_optimizer_by_cfg(cfg: Mapping[str, Any], **kwargs_runtime: Any) -> optim.Optimizer:
    """The optimizer that ``{name, args}`` describes; ``params`` are offered at run time."""
    return OPTIMIZERS_REGISTRY.build(cfg, **kwargs_runtime)
