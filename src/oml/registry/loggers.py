"""Loggers of experiments by name."""

from collections.abc import Collection, Mapping
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger
from pytorch_lightning.loggers.logger import Logger

from oml.lightning.loggers.access import check_access
from oml.lightning.loggers.clearml import ClearMLLogger
from oml.lightning.loggers.files import CSVLogger, MLFlowLogger
from oml.lightning.loggers.neptune import NeptuneLogger
from oml.registry.registry import Registry
from oml.utils.misc import dictconfig_to_dict

_SERVICES: dict[Any, str] = {
    ClearMLLogger: "clearml",
    MLFlowLogger: "mlflow",
    NeptuneLogger: "neptune",
    WandbLogger: "wandb",
}


class _Loggers(Registry):
    """Loggers, of which some need a package, a key or a server, and some write to a folder."""

    def build(self, config: Mapping[str, Any] | DictConfig, **offered: Any) -> Logger:
        config = dictconfig_to_dict(config)  # pyright: ignore[reportArgumentType]
        name, args = self._parts(config)
        constructor = self.find(name)
        check_access(_SERVICES.get(constructor), args)
        if "save_dir" in offered:
            known = signature(constructor).parameters.get("save_dir")
            default = "" if known is None or known.default is Parameter.empty else known.default
            offered["save_dir"] = str(Path(offered["save_dir"]) / (args.get("save_dir") or default))
        return super().build(config, **offered)

    def problems(self, config: Any, offered: Collection[str] = (), place: str | None = None) -> list[str]:
        if found := super().problems(config, offered, place):
            return found
        name, args = self._parts(dictconfig_to_dict(config))
        try:
            check_access(_SERVICES.get(self.find(name)), args)
        except (ModuleNotFoundError, ValueError, ConnectionError) as error:
            return [f"{place or self.kind}: {error}"]
        return []


LOGGERS_REGISTRY = _Loggers(
    "logger",
    {
        "clearml": ClearMLLogger,
        "csv": CSVLogger,
        "mlflow": MLFlowLogger,
        "neptune": NeptuneLogger,
        "tensorboard": TensorBoardLogger,
        "wandb": WandbLogger,
    },
    base=Logger,
)


def get_logger(name: str, **kwargs: Any) -> Logger:
    """A logger by its name and arguments. Nothing is sent until something is logged.

    Raises:
        ModuleNotFoundError, ValueError, ConnectionError: its package, key or server is not there; the text says what
            to do.

    Example:
        >>> get_logger("csv", save_dir="runs").save_dir
        'runs'
    """
    return LOGGERS_REGISTRY.build({"name": name, "args": kwargs})


def get_logger_by_cfg(cfg: Mapping[str, Any] | DictConfig, **kwargs_runtime: Any) -> Logger:
    """The logger that ``{name, args}`` describes.

    Args:
        cfg: the config.
        kwargs_runtime: go to loggers that have such arguments: ``save_dir``, to which a relative one of the config
            refers, and those of :func:`oml.lightning.loggers.experiment.resume_arguments`.

    Raises:
        ModuleNotFoundError, ValueError, ConnectionError: as :func:`get_logger`.

    Example:
        >>> get_logger_by_cfg({"name": "tensorboard", "args": {"save_dir": "."}}, save_dir="runs/first").save_dir
        'runs/first'
    """
    return LOGGERS_REGISTRY.build(cfg, **kwargs_runtime)
