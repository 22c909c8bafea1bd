"""What the tables hold, for people."""

import re
from collections.abc import Callable
from inspect import Parameter, Signature, cleandoc, signature
from typing import Any

from omegaconf import OmegaConf

from oml.const import CONFIGS_PATH
from oml.registry.arguments import type_name
from oml.registry.registry import Registry, path_of


def call_of(constructor: Callable[..., Any]) -> str:
    """Name and signature in a line, types left out.

    Example:
        >>> call_of(torch.optim.ASGD)
        'ASGD(params, lr=0.01, lambd=0.0001, alpha=0.75, t0=1000000.0, weight_decay=0, foreach=None, maximize=False,
         differentiable=False, capturable=False)'
    """
    arguments = [each.replace(annotation=Parameter.empty) for each in signature(constructor).parameters.values()]
    return f"{getattr(constructor, '__name__', constructor)}{Signature(arguments)}"


def describe(registry: Registry, kind: str, name: str) -> dict[str, Any]:
    """All that is known of an entry, or of what an import path leads to, as JSON would have it.

    Args:
        registry: whose it is.
        kind: its folder of packaged configs, a key of ``oml.registry.REGISTRIES``.
        name: of the entry, or an import path.

    Returns:
        ``kind``, ``name``; ``constructor``: import path; ``call``: see :func:`call_of`; ``summary``: first sentence of
        its docstring; ``arguments``: name -> ``{"type": ..., "default": ...}``, as code, each if there is one;
        ``config``: the packaged one, ``None`` for entries of users.

    Raises:
        KeyError, TypeError, ImportError: as :meth:`Registry.find`.
    """
    constructor = registry.find(name)
    file = CONFIGS_PATH / kind / f"{name}.yaml"
    return {
        "kind": kind,
        "name": name,
        "constructor": path_of(constructor),
        "call": call_of(constructor),
        "summary": _summary(constructor),
        "arguments": {key: _argument(each) for key, each in signature(constructor).parameters.items()},
        "config": OmegaConf.to_container(OmegaConf.load(file)) if file.is_file() else None,
    }


def _summary(constructor: Callable[..., Any]) -> str:
    paragraph = " ".join(cleandoc(constructor.__doc__ or "").partition("\n\n")[0].split())
    sentence = re.split(r"(?<=\w[.])\s+(?=[A-Z])", paragraph, maxsplit=1)[0]
    sentence = re.sub(r"`([^`<]+) <[^`>]+>`_+", r"\1", sentence)  # links
    return re.sub(r"(?::\w+:)?`+~?(?:[\w.]+\.)?([^`]*)`+", r"\1", sentence)


def _argument(parameter: Parameter) -> dict[str, str]:
    known = {}
    if (of := parameter.annotation) is not Parameter.empty:
        known["type"] = type_name(of)
    if parameter.default is not Parameter.empty:
        known["default"] = repr(parameter.default)
    return known
