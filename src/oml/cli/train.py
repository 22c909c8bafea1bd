"""``oml train``."""

from typing import Annotated

import typer

from oml.cli.composing import Debug, Recipe
from oml.cli.training import Multirun, Resume, train_by


def train(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG|TABLE] [KEY=VALUE]...",
            help="A YAML file; or a table, CSV or Parquet, for a config that suits it. Then overrides of its fields.",
        ),
    ] = None,
    recipe: Recipe = None,
    resume: Resume = None,
    multirun: Multirun = False,
    debug: Debug = False,  # noqa: ARG001 (see main)
) -> None:
    """Train an extractor as a config says, or, for a table, as suits it. The config is checked first.

    A run has its own folder, which gets the config, the checkpoints, logs and metrics: `runs/NAME-TIME`, or what the
    config says by `run_dir`, `hydra_dir` or `hydra.run.dir`. With --multirun, Hydra makes one for each job, below
    `multirun/DATE/TIME`, and its sweepers and launchers are there for the asking (`hydra/launcher=joblib`).

    Overrides are Hydra's: `key=value`, `+new_key=value`, `~key`, `optimizer=sgd` for a packaged config; `oml registry`
    prints what there is. `trainer.max_steps=100` is for Lightning's Trainer. Relative paths in a config are seen from
    where you stand, and a loss, sampler ... of your own in a module here goes by its import path:
    `criterion.name=my_module.MyLoss`. Put overrides in quotes if they have characters that your shell takes as its
    own.

    Examples:

    - `oml train my_data/df.csv` or, if its images are elsewhere, `oml train df.csv dataset_root=my_data`
    - `oml train --recipe glyphs max_epochs=2`
    - `oml train train.yaml optimizer.args.lr=1e-4 'metric_args.cmc_top_k=[1,5]'`
    - `oml train train.yaml --multirun seed=0,1,2 optimizer=adamw,sgd`
    - `oml train --resume runs/cub-2030-01-01_12-00-00`
    - `oml config show my_data/df.csv > train.yaml` for a config to start from
    """
    train_by("train", words, recipe, resume, multirun)
