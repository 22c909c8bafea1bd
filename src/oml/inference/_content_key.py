"""What embeddings depend on, as texts that can be compared later and elsewhere."""

import functools
import hashlib
import inspect
import os
import random
import types
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from oml.transforms.images.utils import is_albumentations

_CONSTANTS = (str, bytes, bool, int, float, complex, type(None), torch.dtype, torch.device, torch.Size, Enum, Path)
_GENERATORS = (random.Random, np.random.Generator, np.random.RandomState, torch.Generator)


class UnknownContentError(ValueError):
    """An object of which nothing tells whether another one is the same."""


def digest_of(*parts: bytes | memoryview | str) -> str:
    """SHA-256 of the parts, 16 of its 64 hexadecimal digits.

    Example:
        >>> digest_of("ab", "c") != digest_of("a", "bc")
        True
    """
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(f"{len(data)}:".encode())
        digest.update(data)
    return digest.hexdigest()[:16]


def digest_of_tensor(tensor: Tensor) -> str:
    """Of type, shape and numbers."""
    rows = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return digest_of(str(tensor.dtype), str(tuple(tensor.shape)), rows.data)


def digest_of_files(paths: Sequence[str]) -> str:
    """Of sizes and times of change; contents are not read."""
    stats = np.zeros((len(paths), 2), dtype=np.int64)
    for i, path in enumerate(paths):
        stat = os.stat(path)  # noqa: PTH116 (a Path for each of a million rows would take seconds)
        stats[i] = stat.st_size, stat.st_mtime_ns
    return digest_of(stats.tobytes())


def digest_of_model(model: nn.Module) -> str:
    """Of weights and buffers, and of each module's class and plain attributes, such as whether it normalises."""
    model = getattr(model, "_orig_mod", model)  # as torch.compile wraps it
    parts = []
    for name, module in model.named_modules(remove_duplicate=False):
        parts += [name, _class(type(module))]
        for key, value in sorted(vars(module).items()):
            if key != "training" and not key.startswith("_"):
                parts += [key, _plain(value)]
    for tensors in (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)):
        for name, tensor in tensors:
            parts += [name, digest_of_tensor(tensor)]
    return digest_of(*parts)


def digest_of_transforms(transforms: Any) -> str:
    """Of classes, arguments and code.

    Raises:
        UnknownContentError: if some part tells nothing of itself.
    """
    try:
        return digest_of(_deep(transforms, ()))
    except RecursionError as error:
        raise UnknownContentError("they hold too much") from error


def _plain(value: Any) -> str:
    """What a module's attribute says if it is a setting; nothing for what it may have been working on."""
    if isinstance(value, _CONSTANTS):
        return f"{type(value).__name__} {value!r}"
    if isinstance(value, Tensor):
        return digest_of_tensor(value)
    if isinstance(value, list | tuple):
        return f"{type(value).__name__} {[_plain(item) for item in value]}"
    if isinstance(value, dict):
        return f"dict {[(_plain(key), _plain(item)) for key, item in value.items()]}"
    if is_dataclass(value) and not isinstance(value, type):
        return f"{_class(type(value))} {[_plain(getattr(value, field.name)) for field in fields(value)]}"
    if isinstance(value, types.FunctionType):
        return _code(inspect.unwrap(value).__code__)
    return ""


def _deep(value: Any, above: tuple[int, ...]) -> str:
    if id(value) in above:
        return f"above {above.index(id(value))}"
    deeper = functools.partial(_deep, above=(*above, id(value)))
    if isinstance(value, _CONSTANTS):
        return f"{type(value).__name__} {value!r}"
    if isinstance(value, _GENERATORS):
        return type(value).__name__
    if isinstance(value, type):
        return _class(value)
    if isinstance(value, types.ModuleType):
        return value.__name__
    if isinstance(value, Tensor):
        return digest_of_tensor(value)
    if isinstance(value, np.ndarray | np.generic):
        return f"{value.dtype} {value.shape} {digest_of(value.tobytes())}"
    if isinstance(value, list | tuple):
        return f"{type(value).__name__} {[deeper(item) for item in value]}"
    if isinstance(value, set | frozenset):
        return f"{type(value).__name__} {sorted(deeper(item) for item in value)}"
    if isinstance(value, dict):
        return f"{type(value).__name__} {[(deeper(key), deeper(item)) for key, item in value.items()]}"
    if isinstance(value, types.FunctionType):
        function = inspect.unwrap(value)
        cells = [deeper(cell.cell_contents) for cell in function.__closure__ or ()]
        defaults = deeper((function.__defaults__, function.__kwdefaults__))
        return f"{function.__module__}.{function.__qualname__} {_code(function.__code__)} {defaults} {cells}"
    if isinstance(value, types.MethodType):
        return f"{deeper(value.__func__)} of {deeper(value.__self__)}"
    if isinstance(value, types.BuiltinFunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, functools.partial):
        return f"partial {deeper((value.func, value.args, value.keywords))}"
    if is_albumentations(value):
        try:
            return f"albumentations {deeper(value.to_dict())}"
        except (NotImplementedError, ValueError):  # of steps that are functions
            pass
    try:
        state = value.__reduce_ex__(2)
    except Exception as error:  # whatever objects do that are not to be pickled
        raise UnknownContentError(f"nothing tells what is in a {type(value).__qualname__}") from error
    if isinstance(state, str):
        return state
    arguments = [item for item in state[1] if item is not type(value)]
    iterators = [list(items) for items in state[3:5] if items is not None]
    return f"{_class(type(value))} {deeper(arguments)} {deeper(state[2:3])} {deeper(iterators)}"


@functools.cache
def _class(kind: type) -> str:
    """The name of a class and the code of its methods, and of those it stands on."""
    parts = []
    for part in kind.__mro__:
        if part is nn.Module or part is object:
            break
        parts.append(f"{part.__module__}.{part.__qualname__}")
        for name, method in sorted(vars(part).items()):
            function = inspect.unwrap(getattr(method, "__func__", getattr(method, "fget", None) or method))
            if isinstance(function, types.FunctionType):
                parts += [name, _code(function.__code__)]
    return f"{kind.__qualname__} {digest_of(*parts)}"


def _code(code: types.CodeType) -> str:
    constants = [_code(item) if isinstance(item, types.CodeType) else _constant(item) for item in code.co_consts]
    return digest_of(code.co_code, str(code.co_names), str(code.co_varnames), *constants)


def _constant(value: Any) -> str:
    return f"frozenset {sorted(map(repr, value))}" if isinstance(value, frozenset) else repr(value)
