"""Names to constructors, and objects out of configs."""

import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from difflib import get_close_matches
from importlib import import_module
from inspect import Parameter, signature
from pkgutil import iter_modules
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

from omegaconf import DictConfig

from oml.registry.arguments import argument_problems, hint
from oml.utils.misc import dictconfig_to_dict

TConstructor = TypeVar("TConstructor", bound=Callable[..., Any])
TNested = Mapping[str, "Registry"]


class Component(NamedTuple):
    """A config, or one within it, and what it names."""

    place: str
    """such as ``criterion.args.miner``"""
    title: str
    """for messages"""
    constructor: Callable[..., Any] | None
    args: dict[str, Any]
    nested: TNested
    problem: str | None
    """why there is no constructor"""


class Registry(dict[str, Callable[..., Any]]):
    """The constructors of one kind of component by name. There are three ways to your own:

    - by assignment, ``registry["mine"] = MyOptimizer``, before a config names it;
    - by the decorator :meth:`register`, likewise;
    - without an entry, if the config names an import path: ``name: my_package.my_module.MyOptimizer``.

    A config that names an import path imports that module, which runs its code, so read the configs of strangers
    before you use them. Of what is imported only a class derived from ``base``, or what the module has registered, is
    called: ``os.system`` and the like are refused.

    Args:
        kind: what the entries are, for messages.
        entries: name -> constructor.
        nested: argument -> registry, for arguments that are configs of other components themselves, or lists of them.
        takes_configs: entries whose constructors get such arguments as they are, and build them themselves: name ->
            function that tells from ``args`` which registry each of these is of.
        base: class, or classes, of which those behind import paths must be; none are by default, so that these must
            be registered.

    Example:
        >>> registry = Registry("optimizer", {"sgd": torch.optim.SGD}, base=torch.optim.Optimizer)
        >>> registry.build({"name": "sgd", "args": {"lr": 0.1}}, params=[torch.zeros(1)]).defaults["lr"]
        0.1
        >>> registry.build({"name": "torch.optim.NAdam"}, params=[torch.zeros(1)]).defaults["lr"]
        0.002
    """

    def __init__(
        self,
        kind: str,
        entries: Mapping[str, Callable[..., Any]],
        nested: TNested | None = None,
        takes_configs: Mapping[str, Callable[[Mapping[str, Any]], TNested]] | None = None,
        base: type | tuple[type, ...] = (),
    ) -> None:
        super().__init__(entries)
        self.kind = kind
        self.nested = dict(nested or {})
        self.takes_configs = dict(takes_configs or {})
        self.base = base if isinstance(base, tuple) else (base,)

    def __missing__(self, name: str) -> Callable[..., Any]:
        raise KeyError(f"No {self.kind} is called {name!r}; {hint(name, self)}")

    def register(self, name: str) -> Callable[[TConstructor], TConstructor]:
        """A decorator that makes a class or a function an entry.

        Raises:
            ValueError: if another one has that name. Assign to replace it.

        Example:
            >>> registry = Registry("loss", {})
            >>> @registry.register("mine")
            ... class MyLoss(torch.nn.Module):
            ...     pass
            >>> registry.build({"name": "mine"})
            MyLoss()
        """
        if not isinstance(name, str):
            raise TypeError(f'@register needs the name of the {self.kind}, as @register("mine"), got {name!r}.')

        def add(constructor: TConstructor) -> TConstructor:
            old, new = path_of(self.get(name, constructor)), path_of(constructor)
            if old != new:  # equal ones: a cell of a notebook that runs again
                raise ValueError(f"The {self.kind} {name!r} is {old} already: register {new} by another name.")
            self[name] = constructor
            return constructor

        return add

    def find(self, name: str) -> Callable[..., Any]:
        """The constructor of an entry, or behind an import path, which is imported.

        Raises:
            KeyError: if there is no such entry, module or name in the module; the text has the near ones.
            TypeError: if the path leads to something that is neither of the right class nor registered.
            ImportError: if the module cannot be imported: whatever it raised is its ``__cause__``.
        """
        parts = name.split(".")
        if name in self or len(parts) < 2 or not all(part.isidentifier() for part in parts):
            return self[name]
        path, _, attribute = name.rpartition(".")
        module = self._import(name, path)
        if not hasattr(module, attribute):
            known = [key for key, value in vars(module).items() if self._takes(value)]
            raise KeyError(f"The module {path!r} has no {self.kind} {attribute!r}; {hint(attribute, known)}")
        found = getattr(module, attribute)
        if not self._takes(found):
            classes = " or ".join(f"{base.__module__}.{base.__qualname__}" for base in self.base)
            derive = f"derive it from {classes}, or " if classes else ""
            raise TypeError(
                f"{name!r} cannot be the {self.kind}: {derive}register it in its module, by the decorator "
                f'.register("{attribute}") of the table in oml.registry.'
            )
        return found

    def build(self, config: Mapping[str, Any] | DictConfig, **offered: Any) -> Any:
        """The object that ``{"name": ..., "args": {...}}`` describes; ``args`` may be absent.

        Args:
            config: every key of ``args`` must be an argument of the constructor.
            offered: what the caller has at hand at run time; goes to constructors that have an argument of that
                name, those of nested configs too, and takes precedence over the config.

        Raises:
            KeyError, ImportError: as :meth:`find`, of names that there are not.
            ValueError: if the config has other keys than ``name`` and ``args``, or ``args`` a key that the
                constructor does not know.
            TypeError: from the constructor, if an argument is missing, or as :meth:`find`.
        """
        name, args = self._parts(dictconfig_to_dict(config))  # pyright: ignore[reportArgumentType]
        constructor, args = self.find(name), dict(args)
        parameters = signature(constructor).parameters
        takes_any = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values())
        if (unknown := sorted(args.keys() - parameters.keys(), key=str)) and not takes_any:
            hints = "; ".join(f"{key!r}: {hint(str(key), parameters)}" for key in unknown)
            raise ValueError(f"The {self.kind} {name!r} has no argument {hints}")
        nested = {} if name in self.takes_configs else self.nested
        for key, registry in nested.items():
            if isinstance(value := args.get(key), Mapping):
                args[key] = registry.build(value, **offered)
            elif isinstance(value, list):
                args[key] = [registry.build(each, **offered) if isinstance(each, Mapping) else each for each in value]
        return constructor(**{**args, **{key: value for key, value in offered.items() if key in parameters}})

    def problems(self, config: Any, offered: Collection[str] = (), place: str | None = None) -> list[str]:
        """All that is wrong with a config and those within it, as far as can be told without building anything.

        That is unknown names, unknown and missing arguments, and texts, numbers and lists where others are asked for.

        Args:
            config: see :meth:`build`.
            offered: names of what :meth:`build` will be offered.
            place: where the config stands, for the texts; what it is of by default.

        Example:
            >>> registry = Registry("optimizer", {"sgd": torch.optim.SGD})
            >>> registry.problems({"name": "sgd", "args": {"lr": 0.1, "momentun": 0.9}}, offered=["params"])
            ["optimizer: The optimizer 'sgd' has no argument 'momentun'; did you mean momentum?"]
        """
        found = []
        config = dictconfig_to_dict(config) if isinstance(config, dict | DictConfig) else config
        for one in self.components(config, place):
            if one.constructor is None:
                found.append(f"{one.place}: {one.problem}")
                continue
            texts = argument_problems(one.title, one.constructor, one.args, offered, built=one.nested)
            for key, registry in one.nested.items():
                if isinstance(value := one.args.get(key), str) and value in registry:
                    texts.append(f"{one.title} needs a config as {key}, {{name: {value}}}, got the text {value!r}.")
            found += [f"{one.place}: {text}" for text in texts]
        return found

    def components(self, config: Any, place: str | None = None) -> Iterator[Component]:
        """A config of plain dicts and all within it, outer ones first; their ``args`` are those of the config."""
        place = self.kind if place is None else place
        title, args, nested = f"The {self.kind}", {}, {}
        try:
            name, args = self._parts(config)
            title = f"The {self.kind} {name!r}"
            constructor, problem = self.find(name), None
            nested = self.takes_configs[name](args) if name in self.takes_configs else self.nested
        except (KeyError, TypeError, ValueError, ImportError) as error:
            constructor, problem = None, str(error.args[0] if error.args else error)
        yield Component(place, title, constructor, args, nested, problem)
        for key, registry in nested.items():
            if isinstance(value := args.get(key), Mapping):
                yield from registry.components(value, f"{place}.args.{key}")
            elif isinstance(value, list):
                for i, each in enumerate(value):
                    if isinstance(each, Mapping):
                        yield from registry.components(each, f"{place}.args.{key}[{i}]")

    def _parts(self, config: Any) -> tuple[str, dict[str, Any]]:
        if not isinstance(config, Mapping) or "name" not in config or set(config) - {"name", "args"}:
            raise ValueError(f"The {self.kind}'s config needs a name and may have args and nothing else: {config}.")
        name, args = config["name"], config.get("args")
        args = {} if args is None else args
        if not isinstance(name, str) or not isinstance(args, Mapping):
            raise ValueError(f"The {self.kind}'s config needs a text as name and a mapping as args: {config}.")
        return name, args  # pyright: ignore[reportReturnType] (of plain dicts)

    def _import(self, name: str, path: str) -> ModuleType:
        try:
            return import_module(path)
        except Exception as error:
            missing = error.name if isinstance(error, ModuleNotFoundError) else None
            if missing is None or not f"{path}.".startswith(f"{missing}."):  # something within the module is wrong
                raise ImportError(
                    f"The {self.kind} {name!r} cannot be imported: {path} raises {type(error).__name__}: {error}",
                    name=path,
                ) from error
        parent, _, last = missing.rpartition(".")
        folders = getattr(sys.modules.get(parent), "__path__", ()) if parent else None  # None: all of sys.path
        near = get_close_matches(last, [module.name for module in iter_modules(folders)])
        near = [".".join(filter(None, (parent, key))) + name.removeprefix(missing) for key in near]
        near = get_close_matches(name, self) + near
        hint = f"did you mean {' or '.join(near)}?" if near else "install it, or set PYTHONPATH to the folder it is in."
        raise KeyError(f"No {self.kind} is called {name!r}, and there is no module {missing!r} to import: {hint}")

    def _takes(self, value: Any) -> bool:
        is_class = isinstance(value, type) and issubclass(value, self.base)
        return is_class or any(value is entry for entry in self.values())


def path_of(constructor: Callable[..., Any]) -> str:
    """Its import path, such as ``torch.optim.sgd.SGD``."""
    return f"{constructor.__module__}.{getattr(constructor, '__qualname__', constructor)}"
