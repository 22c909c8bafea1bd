"""Small helpers that callers import from here."""

import os
import random
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from oml.const import DOTENV_PATH

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = [
    "check_if_nonempty_positive_integers",
    "clip_max",
    "compare_dicts_recursively",
    "dictconfig_to_dict",
    "find_first_occurrences",
    "find_value_ids",
    "flatten_dict",
    "load_dotenv",
    "one_hot",
    "remove_unused_kwargs",
    "set_global_seed",
    "smart_sample",
]


def find_value_ids(it: Iterable[Any], value: Any) -> list[int]:
    """The positions at which ``it`` equals ``value``.

    Example:
        >>> find_value_ids(["a", "b", "a"], "a")
        [0, 2]
    """
    if isinstance(it, np.ndarray):
        return np.flatnonzero(it == value).tolist()
    return [i for i, element in enumerate(it) if element == value]


def find_first_occurrences(x: Iterable[Hashable]) -> list[int]:
    """For each distinct element, in the order in which they appear, the position of the first one.

    Example:
        >>> find_first_occurrences([7, 7, 3, 7, 3, 5])
        [0, 2, 5]
    """
    elements = x.tolist() if isinstance(x, np.ndarray | Tensor) else x  # elements of a Tensor are all distinct objects
    first: dict[Hashable, int] = {}
    for i, element in enumerate(elements):
        first.setdefault(element, i)
    return list(first.values())


def set_global_seed(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch, CUDA and XLA included, and let cuDNN repeat itself.

    OML itself takes seeds and generators as arguments; torchvision's transforms and the initial weights of layers
    come from torch's global generator. ``PL_SEED_WORKERS`` is set, so that Lightning seeds the workers of loaders.
    """
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (the global generator is what it is for)
    torch.manual_seed(seed)  # of all devices
    os.environ["PL_SEED_WORKERS"] = "1"
    if torch.cuda.is_available():
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
    if find_spec("torch_xla"):
        import_module("torch_xla.core.xla_model").set_rng_state(seed)


def one_hot(i: int, dim: int) -> Float[Tensor, " dim"]:
    """A vector of zeros with a one at position ``i``, 0 to ``dim - 1``.

    Example:
        >>> one_hot(1, 3)
        tensor([0., 1., 0.])
    """
    if not 0 <= i < dim:
        raise ValueError(f"one_hot needs a position of 0 to {dim - 1}, as dim={dim}, got {i}.")
    vector = torch.zeros(dim)
    vector[i] = 1
    return vector


def flatten_dict(
    d: Mapping[Any, Any], parent_key: str = "", sep: str = "/", ignored_keys: Collection[Any] = ()
) -> dict[str, Any]:
    """A nested dict as a flat one, whose keys are those on the way, joined by ``sep``.

    Args:
        d: what to flatten; empty dicts in it vanish.
        parent_key: what all keys begin with.
        sep: between the keys.
        ignored_keys: keys to leave out, at any depth, with all that is below them.

    Example:
        >>> flatten_dict({"a": 1, "b": {"c": 2, "d": {"e": 3}}, "f": {}}, ignored_keys=["d"])
        {'a': 1, 'b/c': 2}
    """
    flat = {}
    for key, value in d.items():
        if key in ignored_keys:
            continue
        path = f"{parent_key}{sep}{key}" if parent_key else str(key)
        if isinstance(value, Mapping):
            flat |= flatten_dict(value, path, sep, ignored_keys)
        else:
            flat[path] = value
    return flat


def load_dotenv(path: str | Path = DOTENV_PATH) -> bool:
    """Set the environment variables that a ``.env`` file has and that are not set yet; ``False`` if there is no file.

    Raises:
        ModuleNotFoundError: There is a file, and python-dotenv is not installed.
    """
    if not Path(path).is_file():
        return False
    try:
        dotenv = import_module("dotenv")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"load_dotenv needs python-dotenv for {path}: pip install python-dotenv.") from error
    return dotenv.load_dotenv(path)


def dictconfig_to_dict(cfg: "DictConfig | dict[Any, Any]") -> dict[Any, Any]:
    """A config as new plain dicts and lists, its interpolations resolved. A dict may hold configs as well.

    Example:
        >>> from omegaconf import OmegaConf
        >>> dictconfig_to_dict(OmegaConf.create({"size": 8, "model": {"size": "${size}"}}))
        {'size': 8, 'model': {'size': 8}}
    """
    from omegaconf import OmegaConf

    def plain(value: Any) -> Any:
        if OmegaConf.is_config(value):
            return OmegaConf.to_container(value, resolve=True)
        if isinstance(value, dict):
            return {key: plain(element) for key, element in value.items()}
        return [plain(element) for element in value] if isinstance(value, list) else value

    return plain(cfg)


def smart_sample(array: Sequence[Any] | np.ndarray, k: int, rng: np.random.Generator | None = None) -> list[Any]:
    """``k`` random elements: distinct ones if there are enough, else each of them once, followed by repeats.

    Args:
        array: what to draw from.
        k: how many.
        rng: a generator, for draws that repeat; by default others each time.

    Raises:
        ValueError: ``k`` is negative, or there is nothing to draw from.

    Example:
        >>> drawn = smart_sample("abc", 5, np.random.default_rng(0))
        >>> sorted(drawn[:3]), len(drawn)
        (['a', 'b', 'c'], 5)
    """
    n = len(array)
    if k < 0 or (k and not n):
        raise ValueError(f"smart_sample needs k of 0 or more and something to draw from, got k={k} of {n} elements.")
    rng = rng or np.random.default_rng()
    ids = rng.permutation(n)[:k]
    if k > n:
        ids = np.concatenate([ids, rng.integers(n, size=k - n)])
    return [array[i] for i in ids]


def clip_max(arr: Iterable[Any], max_el: Any) -> tuple[Any, ...]:
    """The elements, numbers, those above ``max_el`` replaced by it.

    Example:
        >>> clip_max([1, 5, 10], 5)
        (1, 5, 5)
    """
    return tuple(min(element, max_el) for element in arr)


def remove_unused_kwargs(kwargs: Mapping[str, Any], constructor: Callable[..., Any]) -> dict[str, Any]:
    """Those of ``kwargs`` whose names are in the signature of ``constructor``. The others are dropped without notice.

    Example:
        >>> def resize(image, size): ...
        >>> remove_unused_kwargs({"size": 8, "colour": "red"}, resize)
        {'size': 8}
    """
    known = signature(constructor).parameters
    return {key: value for key, value in kwargs.items() if key in known}


def check_if_nonempty_positive_integers(var: Any, name: str) -> None:
    """Raise a ``ValueError`` that says ``name`` unless ``var`` is an integer above 0, or a sequence of some.

    Example:
        >>> check_if_nonempty_positive_integers([1, 5], "top_k")
        >>> check_if_nonempty_positive_integers([1, 0], "top_k")
        Traceback (most recent call last):
        ValueError: top_k must be a positive integer or a sequence of one or more, got [1, 0].
    """
    elements = list(var) if isinstance(var, Sequence | np.ndarray) else [var]
    fit = all(isinstance(e, int | np.integer) and not isinstance(e, bool) and e > 0 for e in elements)
    if not elements or not fit:
        raise ValueError(f"{name} must be a positive integer or a sequence of one or more, got {var!r}.")


def compare_dicts_recursively(d1: Mapping[Any, Any], d2: Mapping[Any, Any]) -> bool:
    """``True`` if two nested dicts have the same keys and equal values.

    Raises:
        AssertionError: They do not; says where, and what is there.

    Example:
        >>> compare_dicts_recursively({"a": {"b": 1}}, {"a": {"b": 2}})
        Traceback (most recent call last):
        AssertionError: The dicts differ at a/b: 1 and 2.
    """
    _compare(d1, d2, "")
    return True


def _compare(d1: Mapping[Any, Any], d2: Mapping[Any, Any], place: str) -> None:
    if d1.keys() != d2.keys():
        lone1, lone2 = ([key for key in a if key not in b] for a, b in ((d1, d2), (d2, d1)))
        at = f" at {place}" if place else ""
        raise AssertionError(f"The dicts differ{at}: only the first has the keys {lone1}, only the second {lone2}.")
    for key, value1 in d1.items():
        value2, path = d2[key], f"{place}/{key}" if place else str(key)
        if isinstance(value1, Mapping) and isinstance(value2, Mapping):
            _compare(value1, value2, path)
        elif not (value1 is value2 or value1 == value2):
            raise AssertionError(f"The dicts differ at {path}: {value1!r} and {value2!r}.")
