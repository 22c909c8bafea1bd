"""Schedules of the learning rate by name: those of torch."""

from collections.abc import Mapping
from typing import Any

from torch.optim import lr_scheduler

from oml.registry.registry import Registry

#: the name of earlier versions; the ``get_last_lr`` that it added is in torch by now
ReduceLROnPlateauPatch = lr_scheduler.ReduceLROnPlateau

SCHEDULERS_REGISTRY = Registry(
    "scheduler",
    {
        "cosine_annealing": lr_scheduler.CosineAnnealingLR,
        "cyclic": lr_scheduler.CyclicLR,
        "exponential": lr_scheduler.ExponentialLR,
        "lambda": lr_scheduler.LambdaLR,
        "multi_step": lr_scheduler.MultiStepLR,
        "multiplicative": lr_scheduler.MultiplicativeLR,
        "one_cycle": lr_scheduler.OneCycleLR,
        "reduce_on_plateau": ReduceLROnPlateauPatch,
        "step": lr_scheduler.StepLR,
    },
    base=lr_scheduler.LRScheduler,
)


def get_scheduler(name: str, **kwargs: Any) -> lr_scheduler.LRScheduler:
    """A scheduler by its name and arguments, the ``optimizer`` among them.

    Example:
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        >>> get_scheduler("reduce_on_plateau", optimizer=optimizer, factor=0.75).get_last_lr()
        [0.1]
    """
    return SCHEDULERS_REGISTRY.build({"name": name, "args": kwargs})


def get_scheduler_by_cfg(cfg: Mapping[str, Any], **kwargs_runtime: Any) -> lr_scheduler.LRScheduler:
    """The scheduler that ``{name, args}`` describes.

    The ``optimizer`` is offered at run time, and for ``lambda`` and ``multiplicative`` their function ``lr_lambda``.
    """
    return SCHEDULERS_REGISTRY.build(cfg, **kwargs_runtime)
