"""The packaged configs, and how configs are composed."""

from oml.configs.composing import ConfigError, compose

__all__ = ["ConfigError", "compose"]
