"""Arguments out of a config against a signature, without a call."""

import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import timedelta
from difflib import get_close_matches
from inspect import Parameter, formatannotation, signature
from pathlib import PurePath
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from torch import Tensor, nn

_NOT_NAMED = (Parameter.POSITIONAL_ONLY, Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
_IN_CODE = (Tensor, nn.Module, timedelta)  # what no text or number of a config can stand for


def parameters_of(constructor: Callable[..., Any]) -> dict[str, Parameter]:
    """What a constructor takes, by name; annotations that are texts are evaluated if they can be."""
    try:
        return dict(signature(constructor, eval_str=True).parameters)
    except (NameError, TypeError, SyntaxError, AttributeError):  # names imported for type checkers only
        return dict(signature(constructor).parameters)


def argument_problems(
    owner: str,
    constructor: Callable[..., Any],
    args: Mapping[str, Any],
    offered: Collection[str] = (),
    built: Collection[str] = (),
) -> list[str]:
    """All that is wrong with the arguments of a call: unknown names, missing ones, and plain types that do not fit.

    Args:
        owner: who is called, for the texts.
        constructor: it is not called.
        args: by name.
        offered: names of further arguments that the caller will give if there are such.
        built: names of those of which something else will be made before the call, whatever their type.

    Example:
        >>> argument_problems("SGD", torch.optim.SGD, {"lr": "high", "momentun": 0.9}, offered=["params"])
        ["SGD has no argument 'momentun'; did you mean momentum?", "SGD needs float | Tensor as lr, got 'high'."]
    """
    parameters = parameters_of(constructor)
    takes_any = any(each.kind is Parameter.VAR_KEYWORD for each in parameters.values())
    named = {name: each for name, each in parameters.items() if each.kind not in _NOT_NAMED}
    unknown = [] if takes_any else [name for name in args if name not in named]
    found = [f"{owner} has no argument {name!r}; {hint(str(name), named)}" for name in unknown]
    meant = {near for name in unknown for near in get_close_matches(str(name), named)}
    for name, parameter in named.items():
        if name in args:
            if name not in built and not fits(args[name], parameter.annotation):
                found.append(f"{owner} needs {misfit(args[name], parameter.annotation, name)}")
        elif parameter.default is Parameter.empty and name not in {*offered, *meant}:
            found.append(f"{owner} needs the argument {name!r}, which is missing.")
    return found


def misfit(value: Any, annotation: Any, name: str = "") -> str:
    """``float as lr, got 'high'.``: how a value does not fit."""
    hint = ""
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?(e[-+]?\d+)?", value, re.IGNORECASE):
        hint = " That is a text: without quotes, or with a point as in 1.0e-5, it is a number."
    return f"{type_name(annotation)}{f' as {name}' if name else ''}, got {value!r}.{hint}"


def type_name(annotation: Any) -> str:
    """An annotation as code, without modules.

    Example:
        >>> type_name(Mapping[str, Tensor] | None)
        'Mapping[str, Tensor] | None'
    """
    kind, inner = get_origin(annotation), get_args(annotation)
    if kind in (Union, UnionType):
        return " | ".join("None" if each is NoneType else type_name(each) for each in inner)
    if kind is Literal:
        return " | ".join(map(repr, inner))
    text = annotation if isinstance(annotation, str) else formatannotation(annotation)
    return re.sub(r"\b(?:[a-zA-Z_]\w*\.)+(?=[a-zA-Z_])", "", text)


def fits(value: Any, annotation: Any) -> bool:
    """Whether a value out of a config may be what an annotation says; yes if that cannot be told.

    A list may be a tuple, a text a path, and a whole number a ``float``; a bool is no number.

    Example:
        >>> fits([0.9, 0.999], tuple[float, float]), fits(True, int), fits("1e-5", float | Tensor)
        (True, False, False)
    """
    kind, inner = get_origin(annotation) or annotation, get_args(annotation)
    if kind in (Union, UnionType):
        return any(fits(value, each) for each in inner)
    if kind is Annotated:
        return fits(value, inner[0])
    if kind is Literal:
        return any(type(value) is type(each) and value == each for each in inner)
    if kind in (None, NoneType):
        return value is None
    if not isinstance(kind, type) or kind is Parameter.empty:
        return True
    if kind in (bool, str):
        return isinstance(value, kind)
    if kind in (int, float):
        return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if kind is tuple and inner and inner[-1] is not Ellipsis:
        return isinstance(value, list | tuple) and len(value) == len(inner) and all(map(fits, value, inner))
    if kind in (list, tuple, set, frozenset, Sequence, Iterable, Collection):
        return isinstance(value, list | tuple | set | frozenset) and all(
            fits(each, inner[0]) for each in value if inner
        )
    if kind in (dict, Mapping):
        return isinstance(value, Mapping)
    if issubclass(kind, PurePath) or kind is os.PathLike:
        return isinstance(value, str | os.PathLike)
    return not (issubclass(kind, _IN_CODE) and isinstance(value, bool | int | float | str | NoneType))


def hint(name: str, known: Iterable[str]) -> str:
    """``did you mean ...?`` with the near ones, or which there are."""
    known = list(known)
    near = get_close_matches(name, known)
    return f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known) or 'none'}."
