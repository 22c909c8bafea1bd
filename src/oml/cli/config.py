"""``oml config``."""

import re
from contextlib import suppress
from enum import StrEnum
from typing import Annotated, Any

import typer

from oml.cli.composing import (
    Debug,
    Recipe,
    compose_for,
    fields_of,
    import_from_here,
    load_source,
    loading,
    pipelines,
    split_words,
)
from oml.cli.train_reranker import source_of_run

config = typer.Typer(
    name="config",
    help="Print configs, and check them, without running anything.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


class Purpose(StrEnum):
    """What a config is for."""

    TRAIN = "train"
    TRAIN_RERANKER = "train-reranker"
    VALIDATE = "validate"
    PREDICT = "predict"


Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="[CONFIG] [KEY=VALUE]...", help="A YAML file, a table or a run's folder; overrides of it."),
]
For = Annotated[Purpose | None, typer.Option("--for", help="What it is for; by default what its fields fit best.")]


@config.command()
def show(words: Words = None, recipe: Recipe = None, purpose: For = None, debug: Debug = False) -> None:  # noqa: ARG001 (see main)
    """Print a config as a pipeline gets it: composed and resolved, and after that the defaults of what it leaves out.

    Above each field is what it is for. What is printed is a config too. It is not checked.

    Examples:

    - `oml config show train.yaml`
    - `oml config show --recipe cub optimizer=sgd sampler.args.n_labels=16 > mine.yaml`
    - `oml config show my_data/df.csv` prints what `oml train my_data/df.csv` would take
    - `oml config show runs/cub --for train-reranker` prints what `oml train-reranker runs/cub` would take
    """
    from omegaconf import OmegaConf, open_dict
    from omegaconf.errors import InterpolationToMissingValueError

    from oml.lightning.pipelines.schema import REQUIRED

    source, overrides = split_words(words, recipe)
    of_run = source_of_run if purpose is Purpose.TRAIN_RERANKER else None
    composed = compose_for(load_source(source, overrides, of_run), overrides)
    pipeline = pipelines()[purpose] if purpose else composed.pipeline
    referred_to = set(re.findall(r"\$\{(\w+)", OmegaConf.to_yaml(composed.config)))
    with suppress(InterpolationToMissingValueError), open_dict(composed.config):  # then as it is
        OmegaConf.resolve(composed.config)
        for name in referred_to & set(composed.config) - fields_of():
            del composed.config[name]  # without which it is complete now
    fields = pipeline.fields
    left_out = {
        name: field.default
        for name, field in fields.items()
        if name not in composed.config and field.default is not REQUIRED
    }

    def print_fields(values: Any) -> None:
        for name, value in values.items():
            meaning = f"# {fields[name].help}\n" if name in fields else ""
            typer.echo(f"{meaning}{OmegaConf.to_yaml({name: value}).rstrip()}")

    print_fields(OmegaConf.to_container(composed.config))
    if left_out:
        typer.echo(f"\n# left out, so at the defaults of a {pipeline.name} config")
    print_fields(left_out)


@config.command()
def check(words: Words = None, recipe: Recipe = None, purpose: For = None, debug: Debug = False) -> None:  # noqa: ARG001 (see main)
    """Tell everything that is wrong with a config, without loading weights or images.

    Leaves with code 2 and a line for each finding, else with 0. The table is read, and modules that the config names
    are imported.

    Examples:

    - `oml config check train.yaml`
    - `oml config check train.yaml accelerator=cpu criterion=arcface`
    - `oml config check predict.yaml --for predict`
    """
    from oml.configs import ConfigError

    import_from_here()
    source, overrides = split_words(words, recipe)
    composed = compose_for(load_source(source, overrides), overrides)
    pipeline = pipelines()[purpose] if purpose else composed.pipeline
    with loading():
        from oml.lightning.pipelines.checks import find_problems
    if problems := find_problems(composed.config, pipeline):
        raise ConfigError(problems)
    typer.echo(f"{source}: nothing wrong with this {pipeline.name} config.")
