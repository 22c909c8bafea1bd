"""Training a re-ranking model by a config: the config's surface, so far."""

import hashlib
import json
from pathlib import Path
from typing import NoReturn

from oml.const import TCfg
from oml.lightning.pipelines.checks import checked
from oml.lightning.pipelines.schema import POSTPROCESSOR_TRAINING
from oml.utils.io import calc_file_hash
from oml.utils.misc import dictconfig_to_dict


def postprocessor_training_pipeline(cfg: TCfg) -> NoReturn:
    """Train the model of a postprocessor on top of an extractor; in this version, check the config and say so.

    The fields are those of ``oml.lightning.pipelines.schema.POSTPROCESSOR_TRAINING``.

    Raises:
        ConfigError: with all that is wrong with the config.
        NotImplementedError: if nothing is: postprocessors and their training come with a later release (issue 9).
    """
    checked(cfg, POSTPROCESSOR_TRAINING)
    raise NotImplementedError(
        "postprocessor_training_pipeline found nothing wrong with the config, but cannot train yet: postprocessors "
        "come with a later release (issue 9). Nothing was loaded or written."
    )


def get_hash_of_extraction_stage_cfg(cfg: TCfg) -> str:
    """MD5 of what embeddings depend on: the extractor and transforms of the config, the table and the precision.

    The order of keys does not matter. Of the table its content counts, and the folder it is in; not the images, nor
    the content of a file of weights: :func:`oml.inference.flat.inference_on_dataframe` looks at those when it reads
    embeddings that it kept.

    Args:
        cfg: ``extractor``, ``transforms_extraction``, ``dataframe_name``, ``dataset_root``, ``precision``.

    Raises:
        FileNotFoundError: there is no such table.
    """
    config = dictconfig_to_dict(cfg)  # pyright: ignore[reportArgumentType]
    table = Path(config["dataset_root"]).resolve() / config["dataframe_name"]
    stage = {
        "extractor": config["extractor"],
        "transforms": config["transforms_extraction"],
        "table": [str(table), calc_file_hash(table)],
        "precision": str(config.get("precision") or 32),
    }
    return hashlib.md5(json.dumps(stage, sort_keys=True, default=str).encode(), usedforsecurity=False).hexdigest()
