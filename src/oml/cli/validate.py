"""``oml validate``."""

from typing import Annotated

import typer

from oml.cli.composing import Debug, Recipe, compose_for, import_from_here, load_source, loading, split_words


def validate(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG|RUN] [KEY=VALUE]...",
            help="A YAML file, or the folder of a training, for its best checkpoint. Then overrides of fields.",
        ),
    ] = None,
    recipe: Recipe = None,
    debug: Debug = False,  # noqa: ARG001 (see main)
) -> None:
    """Print the metrics of a model on the validation split of a table, with intervals.

    Overrides, paths and modules of your own are as in `oml train --help`.

    Examples:

    - `oml validate runs/cub-2030-01-01_12-00-00`
    - `oml validate runs/cub-2030-01-01_12-00-00 dataset_root=other_data 'metric_args.cmc_top_k=[1,5,10]'`
    - `oml validate --recipe cub_validate bs_val=64`
    - `oml validate validate.yaml extractor.args.weights=best.ckpt`
    """
    import_from_here()
    source, overrides = split_words(words, recipe)
    with loading():
        from oml.lightning.pipelines.validate import extractor_validation_pipeline, validation_config_of
    composed = compose_for(load_source(source, overrides, validation_config_of), overrides, ["validate"])
    extractor_validation_pipeline(composed.config)
