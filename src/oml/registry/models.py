"""Extractors by name."""

from collections.abc import Mapping
from typing import Any

from oml.interfaces.models import IExtractor
from oml.models import TimmExtractor, ViTExtractor
from oml.registry.registry import Registry

EXTRACTORS_REGISTRY = Registry("extractor", {"timm": TimmExtractor, "vit": ViTExtractor})


def get_extractor(model_name: str, **kwargs: Any) -> IExtractor:
    """An extractor by its name and arguments."""
    return EXTRACTORS_REGISTRY.build({"name": model_name, "args": kwargs})


def get_extractor_by_cfg(cfg: Mapping[str, Any]) -> IExtractor:
    """The extractor that ``{name, args}`` describes."""
    return EXTRACTORS_REGISTRY.build(cfg)
