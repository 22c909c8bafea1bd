"""The fields of the pipelines' configs, as data: what each is for, which types it takes, and what it is if left out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

REQUIRED: Any = ...  # a field without default

#: fields that no pipeline reads: interpolations of recipes refer to them
FREE_FIELDS = frozenset(
    {
        "extractor_weights",
        "hydra",
        "hydra_dir",
        "logs_folder",
        "logs_root",
        "pairwise_model",
        "postfix",
        "postprocessor_weights",
        "tags",
        "weights",
    }
)

Precision = Literal[
    16, 32, 64, "16", "32", "64", "bf16", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "32-true", "64-true"
]


class Field(NamedTuple):
    """One field of a config.

    Attributes:
        type: annotation of its values, as in a signature.
        help: what it is for, in a line.
        default: its value if it is left out; ``REQUIRED`` if it must not be.
        least: the smallest number that it may be.
        group: if it is a config ``{name, args}``: its folder of packaged configs, such as ``criterion``.
    """

    type: Any
    help: str
    default: Any = REQUIRED
    least: int | None = None
    group: str | None = None


class Pipeline(NamedTuple):
    """What a pipeline is called, in messages, and its fields by name."""

    name: str
    fields: Mapping[str, Field]


def _config(group: str, help: str, default: Any = REQUIRED) -> Field:  # noqa: A002 (as the field is called)
    return Field(Mapping if default is REQUIRED else Mapping | None, help, default, group=group)


_MACHINE = {
    "accelerator": Field(str | None, "cpu, gpu ...; null: a GPU if there is one", None),
    "devices": Field(int | list[int] | None, "how many, or which; null: all GPUs, or one CPU", None),
    "precision": Field(Precision, "32, 16, bf16-mixed ...; 16 on a CPU runs as bf16-mixed", 32),
    "lightning_trainer_extra_args": Field(Mapping, "further arguments of Lightning's Trainer", {}),
    "run_dir": Field(str | Path | None, "the folder of all output; null: the current one", None),
}
_TABLE = {
    "dataset_root": Field(str | Path, "the folder of the table, which its paths are relative to"),
    "dataframe_name": Field(str, "name of the table in dataset_root, a CSV or Parquet file"),
    "num_workers": Field(int, "processes that load images; 0: the main one does", least=0),
}
_LOGGING = {
    "logger": _config("logger", "where metrics go; null: TensorBoard in the run's folder", None),
    "log_images": Field(bool, "log pictures of the queries with the worst metrics", False),
    "tags": Field(list[str] | str | None, "of the run, for loggers that have tags", None),
    "postfix": Field(str | None, "name of the run, for its folder and its tags", None),
}
_VALIDATION = {
    "transforms_val": _config("transforms", "what becomes of images in validation"),
    "bs_val": Field(int, "batch size of validation", least=1),
    "metric_args": Field(Mapping, "arguments of EmbeddingMetrics, such as cmc_top_k: [1, 5]", {}),
    "validation_tables": Field(
        Mapping,
        "further tables to validate on: name -> {dataset_root, dataframe_name}; logged as NAME/OVERALL/cmc/1",
        {},
    ),
}
_FIT = {
    "seed": Field(int, "of all that is random", least=0),
    "max_epochs": Field(int, "length of the training", least=1),
    "valid_period": Field(int, "validate every so many epochs", least=1),
    "metric_for_checkpointing": Field(str, "metric whose best epoch is kept, such as OVERALL/cmc/1"),
    "optimizer": _config("optimizer", "what makes steps; args hold the learning rate"),
    "scheduling": Field(
        Mapping | None,
        "of the learning rate: {scheduler: {name, args}, scheduler_interval: step | epoch, scheduler_frequency: 1, "
        "monitor_metric}; one_cycle and cosine_annealing without total_steps, T_max take the run's length",
        None,
    ),
    "freeze_n_epochs": Field(int, "so many epochs the backbone does not learn", 0, least=0),
}

TRAINING = Pipeline(
    "training",
    {
        **_FIT,
        **_MACHINE,
        **_TABLE,
        "cache_size": Field(int | None, "bytes of decoded images to keep between epochs; 0: none", least=0),
        "show_dataset_warnings": Field(bool, "warn of what is legal in the table but trains badly", True),
        "transforms_train": _config("transforms", "augmentations of training"),
        "sampler": Field(Mapping | None, "what forms batches; null: shuffled ones of bs_train", group="sampler"),
        "bs_train": Field(int | None, "batch size of training, if there is no sampler", None, least=1),
        "extractor": _config("extractor", "what is trained"),
        "criterion": _config(
            "criterion", "the loss; num_classes: null or left out is the number of labels in the training split"
        ),
        "criterion_lr_factor": Field(float, "the criterion's parameters learn at lr times this", 1.0, least=0),
        "ema_decay": Field(
            float | None, "of the moving average of weights that is validated and kept; null: none", None
        ),
        "early_stopping": Field(
            Mapping | None, "{patience, min_delta, mode} of metric_for_checkpointing; null: train to the end", None
        ),
        "checkpoint_every_n_steps": Field(
            int | None, "how often last.ckpt is written in an epoch; null: about every 500 steps", None, least=1
        ),
        "resume": Field(str | Path | None, "run folder, or a .ckpt of it, to go on from", None),
        **_VALIDATION,
        **_LOGGING,
    },
)
VALIDATION = Pipeline(
    "validation",
    {
        **_MACHINE,
        **_TABLE,
        "extractor": _config("extractor", "what is validated"),
        "postprocessor": _config("postprocessor", "re-ranks what was found", None),
        **_VALIDATION,
        **_LOGGING,
    },
)
PREDICTION = Pipeline(
    "prediction",
    {
        **_MACHINE,
        "data_dir": Field(str | Path, "folder whose images, at any depth, are embedded"),
        "save_dir": Field(str | Path, "folder of the output"),
        "bs": Field(int, "batch size", least=1),
        "num_workers": _TABLE["num_workers"],
        "transforms_predict": _config("transforms", "what becomes of images"),
        "extractor": _config("extractor", "what makes the embeddings"),
        "output": Field(
            str | list[str], "names of the files to write, of .json, .parquet or .safetensors", "predictions.json"
        ),
        "skip_unreadable": Field(bool, "leave out images that cannot be read, and say so", False),
    },
)
POSTPROCESSOR_TRAINING = Pipeline(
    "postprocessor training",
    {
        **_FIT,
        **_MACHINE,
        **_TABLE,
        "extractor": _config("extractor", "whose embeddings choose the pairs"),
        "transforms_extraction": _config("transforms", "what becomes of images before the extractor"),
        "transforms_train": _config("transforms", "augmentations of training"),
        "batch_size_inference": Field(int, "batch size of extraction and re-ranking", least=1),
        "embeddings_cache_dir": Field(str | Path | None, "folder to keep embeddings in; null: none are kept", None),
        "sampler": _config("sampler", "what forms batches"),
        "hard_pairs_mining": Field(bool, "train on the hardest pairs of a batch instead of all"),
        "postprocessor": _config("postprocessor", "pairwise_images, whose model is trained"),
        "metric_args": _VALIDATION["metric_args"],
        **_LOGGING,
        "log_images": Field(bool, _LOGGING["log_images"].help, True),
    },
)
