"""Hydra's loader of configs, a little more lenient with overrides, and telling of all wrong ones at once."""

import re
from collections.abc import Collection, Iterator
from difflib import get_close_matches
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_search_path import ConfigSearchPath
from hydra.errors import ConfigCompositionException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from oml.configs.composing import ConfigError


class LenientLoader(ConfigLoaderImpl):
    """Overrides may set what the file leaves out, and choose from a group for what the file writes out itself.

    Args:
        config_search_path: where configs are.
        fields: fields in which overrides may set what the file does not have.
    """

    def __init__(self, config_search_path: ConfigSearchPath, fields: Collection[str]) -> None:
        super().__init__(config_search_path)
        self.fields = fields

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """See Hydra. An override that it refuses for its key is made one that it takes, or becomes a finding."""
        gone = {each.partition("=")[0].lstrip("+") for each in overrides if each.endswith("=null")}
        gone = {name for name in gone if self.repository.group_exists(name)}  # of groups, Hydra takes no null
        overrides = [each for each in overrides if each.partition("=")[0].lstrip("+") not in gone]
        findings = []
        while True:
            try:
                config = super().load_configuration(
                    config_name, overrides, run_mode, from_shell, validate_sweep_overrides
                )
            except ConfigCompositionException as error:
                refused = re.match(r"Could not override '(.+?)'\.", str(error))
                at = next(
                    (i for i, each in enumerate(overrides) if refused and each.partition("=")[0] == refused[1]), None
                )
                if refused is None or at is None or isinstance(error, MissingConfigException):
                    raise
                key, override = refused[1], overrides[at]
                base = super().load_configuration(config_name, [], RunMode.RUN)
                if "defaults list" in str(error):
                    overrides[at : at + 1] = self._instead(base, key, override)
                elif key.split(".")[0] in self.fields:
                    overrides[at] = f"++{override}"
                else:
                    del overrides[at]
                    known = {path for path in paths_of(base) if not path.startswith("hydra")} | {*self.fields}
                    findings.append(_no_field(key, override, known))
                continue
            if findings:
                raise ConfigError(findings)
            with open_dict(config):
                config.update(dict.fromkeys(gone))
            return config

    def _instead(self, base: DictConfig, group: str, override: str) -> list[str]:
        """Overrides that choose from a group, and drop what else the file says there."""
        chosen = super().load_configuration(None, [f"+{override}"], RunMode.RUN)
        gone = sorted(set(paths_of(base.get(group), group)) - set(paths_of(chosen[group], group)))
        gone = [path for path in gone if path.rpartition(".")[0] not in gone]
        # Hydra does not delete what is null
        return [f"+{override}", *(each for path in gone for each in (f"++{path}=0", f"~{path}"))]


def paths_of(node: Any, at: str = "") -> Iterator[str]:
    """Of all fields, such as ``optimizer.args.lr``."""
    raw = OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else node
    for key, value in raw.items() if isinstance(raw, dict) else ():
        path = f"{at}.{key}".lstrip(".")
        yield path
        yield from paths_of(value, path)


def _no_field(key: str, override: str, known: Collection[str]) -> str:
    parent = key.rpartition(".")[0]
    beside = sorted(path for path in known if path.rpartition(".")[0] == parent)
    deeper = sorted(path for path in known if path.endswith(f".{key}"))
    if near := deeper or get_close_matches(key, beside or sorted(known)):
        hint = f"did you mean {' or '.join(near)}?"
    else:
        hint = f"there are {', '.join(beside)}." if beside and parent else "`oml config show` prints the fields."
    return f"the config has no field {key!r} to override; {hint} (+{override} would add it.)"
