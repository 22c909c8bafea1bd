"""Batch samplers by name."""

from collections.abc import Mapping
from typing import Any

from torch.utils.data import Sampler

from oml.interfaces.samplers import IBatchSampler
from oml.registry.registry import Registry
from oml.samplers.balance import BalanceSampler
from oml.samplers.category_balance import CategoryBalanceSampler
from oml.samplers.distinct_category_balance import DistinctCategoryBalanceSampler

#: those that need the category of every label
SAMPLERS_CATEGORIES_BASED = {
    "category_balance": CategoryBalanceSampler,
    "distinct_category_balance": DistinctCategoryBalanceSampler,
}
SAMPLERS_REGISTRY = Registry(
    "sampler", {"balance": BalanceSampler, **SAMPLERS_CATEGORIES_BASED}, base=(IBatchSampler, Sampler)
)


def get_sampler(name: str, **kwargs: Any) -> IBatchSampler:
    """A sampler by its name and arguments."""
    return SAMPLERS_REGISTRY.build({"name": name, "args": kwargs})


def get_sampler_by_cfg(cfg: Mapping[str, Any], **kwargs_runtime: Any) -> IBatchSampler:
    """The sampler that ``{name, args}`` describes; ``labels`` and ``label2category`` are offered at run time."""
    return SAMPLERS_REGISTRY.build(cfg, **kwargs_runtime)
