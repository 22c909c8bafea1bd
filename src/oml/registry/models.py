"""Extractors and models of pairs by name."""

from collections.abc import Collection, Mapping
from typing import Any

from omegaconf import DictConfig

from oml.interfaces.models import IExtractor, IPairwiseModel
from oml.models import (
    ConcatSiamese,
    CrossAttentionSiamese,
    ExtractorWithMLP,
    LinearTrivialDistanceSiamese,
    TrivialDistanceSiamese,
)
from oml.models.meta.projection import BACKBONES
from oml.registry.registry import Registry
from oml.utils.misc import dictconfig_to_dict


def raise_if_needed(extractor_cfg: Mapping[str, Any], kwargs: Mapping[str, Any], model_name: str) -> None:
    """Refuse weights for a model around an extractor if the extractor has weights of its own: which were to count?

    Args:
        extractor_cfg: config ``{name, args}`` of the extractor.
        kwargs: arguments of the model around it.
        model_name: its name, for the text.

    Raises:
        ValueError: Both have ``weights``.
    """
    inner, outer = (extractor_cfg.get("args") or {}).get("weights"), kwargs.get("weights")
    if inner and outer:
        raise ValueError(
            f"{model_name!r} has the weights {outer!r}, which are of the extractor within as well, and so has that "
            f"extractor, {inner!r}: set the weights of one of them to null."
        )


class _Models(Registry):
    """Models that may have an extractor within."""

    def build(self, config: Mapping[str, Any] | DictConfig, **offered: Any) -> Any:
        config = dictconfig_to_dict(config)  # pyright: ignore[reportArgumentType]
        args = config.get("args") if isinstance(config, Mapping) else None
        if isinstance(args, Mapping) and isinstance(args.get("extractor"), Mapping):
            raise_if_needed(args["extractor"], args, config.get("name", self.kind))
        return super().build(config, **offered)

    def problems(self, config: Any, offered: Collection[str] = (), place: str | None = None) -> list[str]:
        found = super().problems(config, offered, place)
        config = dictconfig_to_dict(config) if isinstance(config, dict | DictConfig) else config
        for one in self.components(config, place):
            if isinstance(one.args.get("extractor"), Mapping):
                try:
                    raise_if_needed(one.args["extractor"], one.args, getattr(one.constructor, "__name__", self.kind))
                except ValueError as error:
                    found.append(f"{one.place}: {error}")
        return found


EXTRACTORS_REGISTRY = _Models("extractor", {**BACKBONES, "extractor_with_mlp": ExtractorWithMLP}, base=IExtractor)
EXTRACTORS_REGISTRY.nested["extractor"] = EXTRACTORS_REGISTRY

PAIRWISE_MODELS_REGISTRY = _Models(
    "pairwise model",
    {
        "concat_siamese": ConcatSiamese,
        "cross_attention_siamese": CrossAttentionSiamese,
        "linear_siamese": LinearTrivialDistanceSiamese,
        "trivial_distance_siamese": TrivialDistanceSiamese,
    },
    nested={"extractor": EXTRACTORS_REGISTRY},
    base=IPairwiseModel,
)


def get_extractor(model_name: str, **kwargs: Any) -> IExtractor:
    """An extractor by its name and arguments; a config of an extractor among them is built first."""
    return EXTRACTORS_REGISTRY.build({"name": model_name, "args": kwargs})


def get_extractor_by_cfg(cfg: Mapping[str, Any]) -> IExtractor:
    """The extractor that ``{name, args}`` describes."""
    return EXTRACTORS_REGISTRY.build(cfg)


def get_pairwise_model(model_name: str, **kwargs: Any) -> IPairwiseModel:
    """A model of pairs by its name and arguments; a config of an extractor among them is built first."""
    return PAIRWISE_MODELS_REGISTRY.build({"name": model_name, "args": kwargs})


def get_pairwise_model_by_cfg(cfg: Mapping[str, Any]) -> IPairwiseModel:
    """The model of pairs that ``{name, args}`` describes."""
    return PAIRWISE_MODELS_REGISTRY.build(cfg)
