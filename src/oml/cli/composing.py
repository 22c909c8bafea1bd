"""What the commands that take a config share: finding it, composing it, and the pipeline that it is for."""

import gc
import logging
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from oml.lightning.pipelines.schema import Pipeline

_TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".gz", ".bz2", ".xz", ".zip", ".parquet", ".pq")


def _complete_recipe(incomplete: str) -> list[str]:
    from oml.configs.composing import recipe_names

    return [name for name in recipe_names() if name.startswith(incomplete)]


Recipe = Annotated[
    str | None, typer.Option(help="Name of a packaged config, instead of a file.", autocompletion=_complete_recipe)
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


class Composed(NamedTuple):
    """A config, the pipeline it is for, and the folder of a run that it asks Hydra for, if it does."""

    config: "DictConfig"
    pipeline: "Pipeline"
    folder: str | None


def pipelines() -> "dict[str, Pipeline]":
    """By the command that each is for."""
    from oml.lightning.pipelines import schema

    return {
        "train": schema.TRAINING,
        "train-reranker": schema.POSTPROCESSOR_TRAINING,
        "validate": schema.VALIDATION,
        "predict": schema.PREDICTION,
    }


def split_words(words: Sequence[str] | None, recipe: str | None, run: Path | None = None) -> tuple[str, list[str]]:
    """The source of a config and the overrides, out of what stands on a command line.

    Args:
        words: all of it but the options.
        recipe, run: the source, if an option has it.
    """
    words = list(words or ())
    named = [str(each) for each in (recipe, run) if each is not None]
    if words and not _is_override(words[0]):
        named.append(words.pop(0))
    if len(named) > 1:
        raise typer.BadParameter(f"there are {len(named)} configs, {' and '.join(named)}; give one.")
    if not named:
        raise typer.BadParameter("which config? Give a file or --recipe NAME.")
    if recipe is not None:
        _check_recipe(recipe)
    return named[0], [_of_trainer(word) for word in words]


def fields_of(among: Collection[str] = ()) -> set[str]:
    """The fields of some pipelines, by default of all: overrides may set them without a ``+``."""
    from oml.lightning.pipelines.schema import FREE_FIELDS

    return {
        field for name, each in pipelines().items() if not among or name in among for field in each.fields
    } | FREE_FIELDS


def best_pipeline(config: "DictConfig", among: Collection[str] = ()) -> "Pipeline":
    """The one of some pipelines, by default of all, whose fields fit a config best: fewest are missing or unknown."""
    of_these = [each for name, each in pipelines().items() if not among or name in among]
    return min(of_these, key=lambda each: _n_wrong(config, each))


def _n_wrong(config: "DictConfig", pipeline: "Pipeline") -> int:
    from oml.lightning.pipelines.schema import FREE_FIELDS, REQUIRED

    missing = [name for name, field in pipeline.fields.items() if field.default is REQUIRED and name not in config]
    unknown = [name for name in config if name not in pipeline.fields and name not in FREE_FIELDS]
    return len(missing) + len(unknown)


def compose_for(source: Any, overrides: Sequence[str], among: Collection[str] = ()) -> Composed:
    """Compose a config for the one of some pipelines, by default of all, that fits it best.

    Raises:
        ConfigError: if it does not compose, or is a whole config of a pipeline that is none of these.
    """
    from oml.configs import ConfigError
    from oml.configs.composing import compose_with_folder

    config, folder = compose_with_folder(source, overrides, fields_of(among))
    pipeline, other = best_pipeline(config, among), best_pipeline(config)
    if _n_wrong(config, pipeline) > _n_wrong(config, other) == 0:
        (command,) = (name for name, each in pipelines().items() if each is other)
        raise ConfigError(
            f"that is a {other.name} config, for oml {command}; a {pipeline.name} config is needed, or the folder of a "
            "training."
        )
    return Composed(config, pipeline, folder)


def load_source(source: str, overrides: Sequence[str], of_run: Callable[[Path], Any] | None = None) -> Any:
    """What to compose: for a table the config that suits it, for the folder of a run its config; else what was given.

    Args:
        source: what a person named.
        overrides: one of ``dataset_root`` says where the images of a table are, if not beside it.
        of_run: makes the config out of the folder of a run; there is none for tables then.
    """
    from yaml import YAMLError

    from oml.configs import ConfigError

    try:
        if is_run(source):
            return of_run(Path(source)) if of_run else config_of_run(source)
        if of_run is None and source.lower().endswith(_TABLE_SUFFIXES):
            with loading():
                from oml.lightning.pipelines.defaults import default_config
            roots = [value for key, _, value in (each.partition("=") for each in overrides) if key == "dataset_root"]
            if roots and not Path(roots[-1]).is_dir():
                raise ConfigError(f"dataset_root: there is no folder {roots[-1]!r}.")
            return default_config(Path(source), Path(roots[-1]) if roots else None)
    except (OSError, ValueError, ModuleNotFoundError, YAMLError) as error:
        raise ConfigError(" ".join(str(error).split())) from error
    return source


def is_run(folder: str | Path) -> bool:
    """Whether it is the folder of a run."""
    return config_of_run(folder).is_file()


def config_of_run(folder: str | Path) -> Path:
    """Where the config of a run is."""
    return Path(folder) / "config.yaml"


def import_from_here() -> None:
    """Let configs name what is in modules of the current folder. It comes last: no file there hides a package."""
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)


@contextmanager
def loading() -> Iterator[None]:
    """A line on the terminal while torch and Lightning are loaded, which takes seconds."""
    from rich.console import Console

    gc.disable()  # it takes a fifth of that time, and finds nothing
    try:
        with Console(stderr=True).status("Loading torch and Lightning"):
            yield
    finally:
        gc.freeze()
        gc.enable()
    # what Lightning says that is neither of this training nor for who trains
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(_is_of_training)
    warnings.filterwarnings("ignore", "Found .* in eval mode at the start", UserWarning)  # backbones that stand still
    warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated", FutureWarning)
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty", UserWarning)  # a run resumes


def _is_of_training(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(("💡 Tip", "Restored all states"))  # what it restores from is told before


def _of_trainer(override: str) -> str:
    """``trainer.devices=2`` as ``devices=2``; what is no field of a config is a further argument of the Trainer."""
    start, _, rest = override.partition("trainer.")
    if start.strip("+~") or not rest:
        return override
    name = rest.partition("=")[0].partition(".")[0]
    return f"{start}{rest}" if name in fields_of() else f"{start}lightning_trainer_extra_args.{rest}"


def _is_override(word: str) -> bool:
    return word.startswith(("~", "+")) or ("=" in word and not Path(word).exists())


def _check_recipe(name: str) -> None:
    from difflib import get_close_matches

    from oml.configs.composing import recipe_names

    if name not in (known := recipe_names()):
        near = get_close_matches(name, known)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}."
        raise typer.BadParameter(f"there is no recipe {name!r}; {hint}")
