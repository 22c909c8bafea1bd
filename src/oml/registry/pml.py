"""Losses of pytorch-metric-learning from configs that name its classes."""

from collections.abc import Callable, Mapping
from functools import cache
from inspect import Parameter, Signature, signature
from types import ModuleType
from typing import Any

from torch import nn

from oml.losses.pml import PMLLoss
from oml.registry.miners import MINERS_REGISTRY
from oml.registry.registry import Registry


def get_pml_criterion(loss: Mapping[str, Any], miner: Mapping[str, Any] | None = None) -> PMLLoss:
    """The :class:`PMLLoss` that configs of a loss and a miner describe.

    Each is ``{"name": ..., "args": {...}}`` with the name of a class of pytorch-metric-learning; so are the arguments
    ``distance``, ``reducer``, ``embedding_regularizer``, ``weight_regularizer``, and those that are losses or miners.
    The miner may also be one of ours, by its name in the registry.

    Raises:
        ModuleNotFoundError: pytorch-metric-learning is not installed.
        KeyError, ValueError, TypeError: as :meth:`Registry.build`, of classes and arguments that there are not.
    """
    registries = pml_registries({"miner": miner})
    built = registries["loss"].build(loss)
    return PMLLoss(built) if miner is None else PMLLoss(built, registries["miner"].build(miner))


def pml_registries(args: Mapping[str, Any]) -> dict[str, Registry]:
    """Which registries the configs among the arguments of :func:`get_pml_criterion` are of."""
    losses, miners = _registries()
    miner = args.get("miner")
    is_ours = isinstance(miner, Mapping) and miner.get("name") in MINERS_REGISTRY
    return {"loss": losses, "miner": MINERS_REGISTRY if is_ours else miners}


@cache
def _registries() -> tuple[Registry, Registry]:
    try:
        from pytorch_metric_learning import distances, losses, miners, reducers, regularizers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "The criterion 'pml' needs pytorch-metric-learning: pip install 'open-metric-learning[pml]'",
            name=error.name,
        ) from error
    kinds = {
        "distance": _registry("distance", distances),
        "loss": _registry("loss", losses),
        "miner": _registry("miner", miners),
        "reducer": _registry("reducer", reducers),
        "weight_regularizer": _registry("regularizer", regularizers),
    }
    nested = {
        **kinds,
        "losses": kinds["loss"],
        "miners": kinds["miner"],
        "embedding_regularizer": kinds["weight_regularizer"],
    }
    for registry in kinds.values():
        registry.nested |= nested
    return kinds["loss"], kinds["miner"]


def _registry(kind: str, module: ModuleType) -> Registry:
    classes = {
        name: _with_all_arguments(value)
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, nn.Module) and not name.startswith(("Base", "Generic"))
    }
    return Registry(kind, classes, base=nn.Module)


def _with_all_arguments(constructor: type) -> Callable[..., Any]:
    """The constructor, with those arguments in its signature that it hands on to its bases as ``**kwargs``."""
    arguments: dict[str, Parameter] = {}
    bases = [base for base in constructor.__mro__ if "__init__" in vars(base)]
    for base in bases:
        own = list(signature(base.__init__).parameters.values())[1:]
        for argument in own:
            if argument.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD):
                continue
            if base is not bases[0] and argument.default is Parameter.empty:  # it may be what derives that gives it
                argument = argument.replace(default=None)
            arguments.setdefault(argument.name, argument.replace(kind=Parameter.KEYWORD_ONLY))
        if all(argument.kind is not Parameter.VAR_KEYWORD for argument in own):
            break

    def build(**kwargs: Any) -> Any:
        return constructor(**kwargs)

    build.__signature__ = Signature(list(arguments.values()))  # pyright: ignore[reportFunctionMemberAccess]
    return build
