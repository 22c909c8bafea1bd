"""Names to constructors, and objects out of configs."""

from collections.abc import Callable, Collection, Iterable, Mapping
from difflib import get_close_matches
from inspect import Parameter, signature
from typing import Any

from omegaconf import DictConfig

from oml.utils.misc import dictconfig_to_dict


class Registry(dict[str, Callable[..., Any]]):
    """The constructors of one kind of component by name; add your own by assignment before a config names it.

    Args:
        kind: what the entries are, for messages.
        entries: name -> constructor.
        nested: argument -> registry, for arguments that are configs of other components themselves, or lists of them.
        takes_configs: entries whose constructors get such arguments as they are, and build them themselves.

    Example:
        >>> registry = Registry("optimizer", {"sgd": torch.optim.SGD})
        >>> registry.build({"name": "sgd", "args": {"lr": 0.1}}, params=[torch.zeros(1)]).defaults["lr"]
        0.1
    """

    def __init__(
        self,
        kind: str,
        entries: Mapping[str, Callable[..., Any]],
        nested: Mapping[str, "Registry"] | None = None,
        takes_configs: Collection[str] = (),
    ) -> None:
        super().__init__(entries)
        self.kind = kind
        self.nested = dict(nested or {})
        self.takes_configs = set(takes_configs)

    def __missing__(self, name: str) -> Callable[..., Any]:
        raise KeyError(f"No {self.kind} is called {name!r}; {_hint(name, self)}")

    def build(self, config: Mapping[str, Any] | DictConfig, **offered: Any) -> Any:
        """The object that ``{"name": ..., "args": {...}}`` describes; ``args`` may be absent.

        Args:
            config: every key of ``args`` must be an argument of the constructor.
            offered: what the caller has at hand at run time; goes to constructors that have an argument of that
                name, those of nested configs too, and takes precedence over the config.

        Raises:
            KeyError: if there is no such name; the text has the near ones.
            ValueError: if the config has other keys than ``name`` and ``args``, or ``args`` a key that the
                constructor does not know.
            TypeError: from the constructor, if an argument is missing.
        """
        config = dictconfig_to_dict(config)  # pyright: ignore[reportArgumentType]
        if not isinstance(config, Mapping) or "name" not in config or set(config) - {"name", "args"}:
            raise ValueError(f"The config of a {self.kind} needs a name and may have args and nothing else: {config}.")
        constructor, args = self[config["name"]], dict(config.get("args") or {})
        parameters = signature(constructor).parameters
        takes_any = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values())
        if (unknown := sorted(args.keys() - parameters.keys())) and not takes_any:
            hints = "; ".join(f"{key!r}: {_hint(key, parameters)}" for key in unknown)
            raise ValueError(f"The {self.kind} {config['name']!r} has no argument {hints}")
        nested = {} if config["name"] in self.takes_configs else self.nested
        for key, registry in nested.items():
            if isinstance(value := args.get(key), Mapping):
                args[key] = registry.build(value, **offered)
            elif isinstance(value, list):
                args[key] = [registry.build(each, **offered) if isinstance(each, Mapping) else each for each in value]
        return constructor(**{**args, **{key: value for key, value in offered.items() if key in parameters}})


def _hint(name: str, known: Iterable[str]) -> str:
    known = list(known)
    near = get_close_matches(name, known)
    return f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known) or 'none'}."
