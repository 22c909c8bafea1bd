"""Configs out of YAML files, packaged recipes and overrides: Hydra composes them, what is wrong is told in lines."""

import itertools
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oml.const import CONFIGS_PATH

if TYPE_CHECKING:
    from hydra._internal.hydra import Hydra
    from omegaconf import DictConfig

TSource = str | Path | Mapping[str, Any]
_HYDRAS_FOLDER = "outputs/${now:%Y-%m-%d}/${now:%H-%M-%S}"  # of a run, if a config does not say another


class ConfigError(ValueError):
    """What is wrong with a config: ``findings`` has a line for each thing, the text is these lines."""

    def __init__(self, findings: Iterable[str] | str) -> None:
        self.findings = findings.splitlines() if isinstance(findings, str) else list(findings)
        super().__init__("\n".join(self.findings))


def recipe_names() -> list[str]:
    """Of the packaged recipes."""
    return sorted(file.stem for file in (CONFIGS_PATH / "recipes").glob("*.yaml"))


def compose(source: TSource, overrides: Sequence[str] = (), fields: Collection[str] = ()) -> "DictConfig":
    """A config with what its ``defaults`` list names and with overrides, its interpolations kept as such.

    The packaged groups (``optimizer``, ``sampler`` ...; ``oml registry`` prints them) and recipes can be named in a
    ``defaults`` list without a ``hydra.searchpath``; a folder of that name beside the file comes first.

    Args:
        source: a YAML file, the name of a packaged recipe, or the config itself.
        overrides: of Hydra's grammar: ``a.b=1``, ``+a=1``, ``~a``, ``sampler=balance``. The last kind also takes
            the place of what a config without a ``defaults`` list says there.
        fields: fields in which overrides may set, without a ``+``, what the file does not have.

    Raises:
        ConfigError: with everything that does not compose or resolve.

    Example:
        >>> config = compose("cub", ["optimizer=sgd", "optimizer.args.lr=0.1"])
        >>> config.optimizer
        {'name': 'sgd', 'args': {'lr': 0.1}}
    """
    return compose_with_folder(source, overrides, fields)[0]


def compose_with_folder(
    source: TSource, overrides: Sequence[str] = (), fields: Collection[str] = ()
) -> "tuple[DictConfig, str | None]":
    """As :func:`compose`, and the folder of a run that the config asks Hydra for, if it does."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf, open_dict

    with _told(), _hydra(source, fields) as (hydra, name):
        config = hydra.compose_config(name, list(overrides), RunMode.RUN, from_shell=False)
        of_caller = HydraConfig.instance().cfg
        HydraConfig.instance().set_config(config)
        try:
            raw: Any = OmegaConf.to_container(config.hydra.run)
            folder = None if raw["dir"] == _HYDRAS_FOLDER else config.hydra.run.dir
            with open_dict(config):
                del config["hydra"]
                findings = _resolve_those_of_hydra(config)
        finally:
            HydraConfig.instance().cfg = of_caller
    if findings:
        raise ConfigError(findings)
    return config, folder


def sweep_overrides(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each job of a multirun: ``a=1,2 b=3`` are two jobs. Of an interval, its start."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    with _told():
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    choices = []
    for override in parsed:
        if override.is_discrete_sweep():
            choices.append([f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()])
        elif override.is_interval_sweep():
            choices.append([f"{override.get_key_element()}={override.value().start}"])  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
        else:
            choices.append([override.input_line])
    return [list(job) for job in itertools.product(*choices)]


def multirun(
    source: TSource, overrides: Sequence[str], job: "Callable[[DictConfig], Any]", fields: Collection[str] = ()
) -> None:
    """Call ``job`` with each config of a sweep, by the sweeper and the launcher that the config asks Hydra for.

    Hydra makes a folder for each of them; it does not become the current one.
    """
    with _hydra(source, fields) as (hydra, name):
        hydra.multirun(name, job, [*overrides, "hydra.job.chdir=false"])


@contextmanager
def _hydra(source: TSource, fields: Collection[str]) -> "Iterator[tuple[Hydra, str]]":
    """Hydra, which finds a source and the packaged configs, and what the source is called there."""
    from hydra import initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    from oml.configs.loader import LenientLoader
    from oml.configs.resolvers import register_resolvers

    register_resolvers()
    if isinstance(source, Mapping):
        folder, name = CONFIGS_PATH, "oml_config"
        ConfigStore.instance().store(name, OmegaConf.create(source))  # pyright: ignore[reportCallIssue, reportArgumentType]
    else:
        folder, name = _find(source)
    with initialize_config_dir(str(folder), job_name="oml", version_base="1.3"), warnings.catch_warnings():
        # the order in such a file is that of Hydra 1.1 and later: its own fields come last
        warnings.filterwarnings("ignore", "In .* Defaults list is missing `_self_`", UserWarning)
        warnings.filterwarnings("error", "provider=hydra.searchpath", UserWarning)
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None, "initialised in this line's with"
        path = hydra.config_loader.get_search_path()
        path.prepend("oml", "pkg://oml.configs", anchor="schema")  # that is the last one
        hydra.config_loader = LenientLoader(path, fields)
        yield hydra, name


def _find(source: str | Path) -> tuple[Path, str]:
    """The folder of a config, and its name in there."""
    path = Path(source)
    if str(source) in recipe_names():
        return CONFIGS_PATH / "recipes", str(source)
    if path.is_file():
        if path.suffix != ".yaml":
            raise ConfigError(f"{str(source)!r} is no config: the name of one ends with .yaml.")
        return path.parent.resolve(), path.name
    if path.is_dir():
        raise ConfigError(
            f"the folder {str(source)!r} is not that of a run: it has no config.yaml. Name a config file."
        )
    beside = [str(each) for each in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
    beside += [str(each.parent) for each in path.parent.glob("*/config.yaml")]
    near = get_close_matches(str(source), [*recipe_names(), *beside])
    hint = f"did you mean {' or '.join(near)}?" if near else f"the recipes are {', '.join(recipe_names())}."
    raise ConfigError(f"there is neither a config file, a run nor a recipe {str(source)!r}; {hint}")


@contextmanager
def _told() -> Iterator[None]:
    """What Hydra, OmegaConf and YAML raise as lines that say what to do."""
    from hydra.errors import HydraException, MissingConfigException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import MarkedYAMLError

    try:
        yield
    except MarkedYAMLError as error:
        mark = error.problem_mark
        at = f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError(f"{at}{error.problem}.") from error
    except OverrideParseException as error:
        text = [line for line in error.message.splitlines() if not line.startswith(("Error parsing", "See "))]
        how = "write key=value, or key='value' for one with commas, equals signs and the like"
        raise ConfigError(f"the override {error.override!r} is not understood, {how}: {text[0]}.") from error
    except MissingConfigException as error:
        options = list(error.options or recipe_names())
        near = get_close_matches(str(error.missing_cfg_file).rpartition("/")[2], options)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(options)}."
        raise ConfigError(f"{_first_line(error)}; {hint}") from error
    except (HydraException, OmegaConfBaseException, UserWarning) as error:
        cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
        key = f"{cause.full_key}: " if getattr(cause, "full_key", None) else ""  # pyright: ignore[reportAttributeAccessIssue]
        lines = [*str(error).splitlines(), *(() if cause is error else str(cause).splitlines())]
        lines = [line.strip() for line in lines if line.strip() and not re.match(r"\s+(full_key|object_type)", line)]
        raise ConfigError(f"{key}{' '.join(lines)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"a config cannot be read: {_first_line(error)}.") from error


def _resolve_those_of_hydra(config: "DictConfig", path: str = "") -> list[str]:
    """Replace interpolations such as ``${hydra:runtime.cwd}``, and tell the keys of those that do not resolve."""
    from omegaconf import OmegaConf
    from omegaconf.errors import InterpolationToMissingValueError

    findings = []
    raw: Any = OmegaConf.to_container(config, resolve=False)
    for key, value in raw.items() if isinstance(raw, dict) else enumerate(raw):
        at = f"{path}[{key}]" if isinstance(key, int) else f"{path}.{key}".lstrip(".")
        if OmegaConf.is_interpolation(config, key):
            try:
                resolved = config[key]
            except InterpolationToMissingValueError:  # of what is ???, still to be set
                continue
            except Exception as error:  # a resolver may raise anything
                findings.append(f"{at}: {value} does not resolve: {_first_line(error)}{_near_key(config, error)}")
                continue
            if "${hydra:" in value:
                config[key] = resolved
        elif isinstance(value, dict | list):
            findings += _resolve_those_of_hydra(config[key], at)
    return findings


def _near_key(config: "DictConfig", error: Exception) -> str:
    from oml.configs.loader import paths_of

    missing = re.match("Interpolation key '(.+)' not found", str(error))
    near = get_close_matches(missing[1], set(paths_of(config._get_root()))) if missing else []
    return f"; did you mean {' or '.join(near)}?" if near else "."


def _first_line(error: Exception) -> str:
    line = next(iter(str(error).splitlines()), type(error).__name__)
    return line.removeprefix("In '_dummy_empty_config_': ").strip().rstrip(".")
