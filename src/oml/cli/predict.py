"""``oml predict``."""

from typing import Annotated

import typer

from oml.cli.composing import Debug, Recipe, compose_for, import_from_here, load_source, loading, split_words


def predict(
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
    """Write the embeddings of all images in a folder.

    Overrides, paths and modules of your own are as in `oml train --help`.

    Examples:

    - `oml predict runs/cub-2030-01-01_12-00-00 data_dir=my_photos save_dir=my_embeddings`
    - `oml predict --recipe cub_predict data_dir=my_photos output=embeddings.parquet skip_unreadable=true`
    - `oml predict predict.yaml 'output=[predictions.json,embeddings.safetensors]'`
    """
    import_from_here()
    source, overrides = split_words(words, recipe)
    with loading():
        from oml.lightning.pipelines.predict import extractor_prediction_pipeline, prediction_config_of
    composed = compose_for(load_source(source, overrides, prediction_config_of), overrides, ["predict"])
    extractor_prediction_pipeline(composed.config)
