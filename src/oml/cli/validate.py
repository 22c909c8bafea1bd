"""``oml validate``."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oml.cli.composing import (
    Debug,
    Recipe,
    compose_for,
    import_from_here,
    is_run,
    load_source,
    loading,
    split_words,
)
from oml.const import CONFIGS_PATH

if TYPE_CHECKING:
    from omegaconf import DictConfig

_GROUP = "postprocessor"


def _complete_postprocessor(incomplete: str) -> list[str]:
    return sorted(file.stem for file in (CONFIGS_PATH / _GROUP).glob("*.yaml") if file.stem.startswith(incomplete))


PostprocessorOption = Annotated[
    list[str] | None,
    typer.Option(
        "--postprocessor",
        metavar="RUN|FILE|NAME",
        help="Re-rank what is found, and tell what that changes: folder of `oml train-reranker`, YAML file with "
        "name and args, or a name that `oml registry postprocessor` lists. Several work one after another.",
        autocompletion=_complete_postprocessor,
    ),
]


def validate(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG|RUN] [KEY=VALUE]...",
            help="A YAML file, or the folder of a training, for its best checkpoint. Then overrides of fields.",
        ),
    ] = None,
    recipe: Recipe = None,
    postprocessor: PostprocessorOption = None,
    debug: Debug = False,  # noqa: ARG001 (see main)
) -> None:
    """Print the metrics of a model on the validation split of a table, with intervals.

    Overrides, paths and modules of your own are as in `oml train --help`. With --postprocessor, the metrics are told
    before and after re-ranking, with the difference for the same queries, its interval and p-value; its arguments are
    `postprocessor.args.NAME`. The folder of `oml train-reranker` as RUN validates both of its stages.

    Examples:

    - `oml validate runs/cub-2030-01-01_12-00-00`
    - `oml validate runs/cub-2030-01-01_12-00-00 dataset_root=other_data 'metric_args.cmc_top_k=[1,5,10]'`
    - `oml validate runs/cub-2030-01-01_12-00-00 --postprocessor k_reciprocal`
    - `oml validate runs/cub-2030-01-01_12-00-00 --postprocessor runs/reranker postprocessor.args.top_n=10`
    - `oml validate runs/cub-2030-01-01_12-00-00 --postprocessor runs/reranker --postprocessor threshold.yaml`
    - `oml validate --recipe cub_validate bs_val=64`
    - `oml validate validate.yaml extractor.args.weights=best.ckpt`
    """
    import_from_here()
    source, overrides = split_words(words, recipe)
    with loading():
        from oml.lightning.pipelines.validate import extractor_validation_pipeline, validation_config_of
    loaded = load_source(source, overrides, validation_config_of)
    composed = compose_for(loaded, with_postprocessor(postprocessor, overrides), ["validate"])
    extractor_validation_pipeline(composed.config)


def with_postprocessor(postprocessors: list[str] | None, overrides: list[str]) -> list[str]:
    """The overrides after one of the postprocessors that a person named, if any."""
    if not postprocessors:
        return overrides
    from hydra.core.config_store import ConfigStore

    name, configs = "oml_postprocessor", [_config_of(each) for each in postprocessors]
    config = configs[0] if len(configs) == 1 else {"name": "chain", "args": {"postprocessors": configs}}
    ConfigStore.instance().store(name, config, group=_GROUP)  # where Hydra finds it
    return [f"{_GROUP}={name}", *overrides]


def _config_of(postprocessor: str) -> "DictConfig":
    """``{name, args}`` out of the folder of a run or a file, of a name or of an import path."""
    from difflib import get_close_matches

    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from oml.configs import ConfigError
    from oml.lightning.pipelines.validate import postprocessor_of_run

    option, path = "--postprocessor", Path(postprocessor)
    if postprocessor in (known := _complete_postprocessor("")):
        path = CONFIGS_PATH / _GROUP / f"{postprocessor}.yaml"
    try:
        if is_run(path):
            return OmegaConf.create(postprocessor_of_run(path))
        if path.is_file():
            config: Any = OmegaConf.load(path)
            if not OmegaConf.is_dict(config) or not isinstance(config.get("name"), str):
                raise ValueError(f"{postprocessor!r} needs a name and may have args, as `oml registry {_GROUP}` shows.")
            return config
    except (OSError, ValueError, KeyError, ImportError, YAMLError, OmegaConfBaseException) as error:
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        raise ConfigError(f"{option}: {' '.join(str(text).split())}") from error
    if path.is_dir():
        raise ConfigError(f"{option}: the folder {postprocessor!r} is not that of a run: it has no config.yaml.")
    if re.fullmatch(r"\w+(\.\w+)+", postprocessor) and path.suffix not in (".yaml", ".yml"):
        return OmegaConf.create({"name": postprocessor})
    near = get_close_matches(postprocessor, known)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}."
    raise ConfigError(f"{option}: there is neither a run, a file nor a postprocessor {postprocessor!r}; {hint}")
