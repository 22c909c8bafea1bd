"""Batch samplers by name."""

from collections.abc import Mapping
from typing import Any

from oml.interfaces.samplers import IBatchSampler
from oml.registry.registry import Registry
from oml.samplers.balance import BalanceSampler

SAMPLERS_REGISTRY = Registry("sampler", {"balance": BalanceSampler})


def get_sampler(name: str, **kwargs: Any) -> IBatchSampler:
    """A sampler by its name and arguments."""
    return SAMPLERS_REGISTRY.build({"name": name, "args": kwargs})


def get_sampler_by_cfg(cfg: Mapping[str, Any], **kwargs_runtime: Any) -> IBatchSampler:
    """The sampler that ``{name, args}`` describes; ``labels`` and the like are offered at run time."""
    return SAMPLERS_REGISTRY.build(cfg, **kwargs_runtime)
