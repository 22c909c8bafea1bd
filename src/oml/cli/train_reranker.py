"""``oml train-reranker``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from oml.cli.composing import Debug, Recipe, config_of_run
from oml.cli.training import Multirun, Resume, train_by


def train_reranker(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG|RUN] [KEY=VALUE]...",
            help="A YAML file; or the folder of an extractor's training, for a config that suits it. Then overrides.",
        ),
    ] = None,
    recipe: Recipe = None,
    resume: Resume = None,
    multirun: Multirun = False,
    debug: Debug = False,  # noqa: ARG001 (see main)
) -> None:
    """Train a model that looks at pairs of images and sorts anew what an extractor finds. The config is checked first.

    For the folder of an extractor's training, the re-ranker is trained on the same table, starting from the weights of
    its best checkpoint. Metrics are shown before re-ranking and after.

    Folders, overrides, paths and modules of your own are as in `oml train --help`.

    Examples:

    - `oml train-reranker runs/cub-2030-01-01_12-00-00`
    - `oml train-reranker runs/cub-2030-01-01_12-00-00 postprocessor.args.top_n=10 max_epochs=5`
    - `oml train-reranker --recipe glyphs_reranker extractor_weights=runs/glyphs/checkpoints/best.ckpt`
    - `oml train-reranker --resume runs/reranker-2030-01-01_13-00-00`
    - `oml config show runs/cub-2030-01-01_12-00-00 --for train-reranker > reranker.yaml` for a config to start from
    """
    train_by("train-reranker", words, recipe, resume, multirun, source_of_run)


def source_of_run(run: Path) -> Any:
    """For the run of an extractor a config of a re-ranker of what it finds; for that of a re-ranker its config."""
    from oml.cli.composing import loading

    with loading():
        from oml.lightning.pipelines.defaults import default_reranker_config
    from yaml import safe_load

    if "postprocessor" in safe_load(config_of_run(run).read_text()):
        return config_of_run(run)
    return default_reranker_config(run)
