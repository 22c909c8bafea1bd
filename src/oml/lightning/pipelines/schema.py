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
        "params",
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
        least, most: the smallest and the largest number that it may be.
        group: if it is a config ``{name, args}``: its folder of packaged configs, such as ``criterion``.
        fields: if it is a mapping with fields of its own: those.
    """

    type: Any
    help: str
    default: Any = REQUIRED
    least: int | None = None
    group: str | None = None
    fields: "Mapping[str, Field] | None" = None
    most: int | None = None


class Pipeline(NamedTuple):
    """What a pipeline is called, in messages, and its fields by name."""

    name: str
    fields: Mapping[str, Field]


def _config(group: str, help: str, default: Any = REQUIRED) -> Field:  # noqa: A002 (as the field is called)
    return Field(Mapping if default is REQUIRED else Mapping | None, help, default, group=group)


SCHEDULING = {
    "scheduler": _config(
        "scheduler", "one_cycle and cosine_annealing without total_steps and T_max take the run's length"
    ),
    "scheduler_interval": Field(Literal["step", "epoch"], "when it moves", "step"),
    "scheduler_frequency": Field(int, "after how many of these", 1, least=1),
    "monitor_metric": Field(str | None, "what reduce_on_plateau watches, such as OVERALL/cmc/1", None),
}
EARLY_STOPPING = {
    "patience": Field(int, "validations without a better value before the training stops", 3, least=0),
    "min_delta": Field(float, "by how much a value is to be better", 0.0),
    "mode": Field(Literal["max", "min"] | None, "which values are good; null: as the metric has it", None),
}
#: each of ``validation_tables``
VALIDATION_TABLE = {
    "dataset_root": Field(str | Path | None, "the folder of the table; by default that of the main one", None),
    "dataframe_name": Field(str | None, "name of the table; by default that of the main one", None),
}
_ENGINE = {
    "accelerator": Field(str | None, "cpu, gpu ...; null, auto: a GPU if there is one", None),
    "devices": Field(
        int | list[int] | Literal["auto"] | None, "how many, or which; null, auto, -1: all GPUs, or one CPU", None
    ),
    "precision": Field(Precision, "32, 16, bf16-mixed ...; 16 on a CPU runs as bf16-mixed", 32),
}
_MACHINE = {
    **_ENGINE,
    "lightning_trainer_extra_args": Field(Mapping | None, "further arguments of Lightning's Trainer", {}),
    "run_dir": Field(str | Path | None, "the folder of all output; null: the current one", None),
}
_TABLE = {
    "dataset_root": Field(str | Path, "the folder of the table, which its paths are relative to"),
    "dataframe_name": Field(str, "name of the table in dataset_root, a CSV or Parquet file"),
    "num_workers": Field(int, "processes that load images; 0: the main one does", least=0),
    "show_dataset_warnings": Field(bool, "warn of what is legal in the table but trains badly", True),
}
_LOGGING = {
    "logger": _config("logger", "where metrics go; null: TensorBoard in the run's folder", None),
    "log_images": Field(bool, "log pictures of the queries with the worst metrics", False),
    "tags": Field(list | None, "of the run, for loggers that have tags", None),
    "postfix": Field(str | None, "name of the run, for its folder and its tags", None),
}
_VALIDATION = {
    "transforms_val": _config("transforms", "what becomes of images in validation"),
    "bs_val": Field(int, "batch size of validation", least=1),
    "metric_args": Field(Mapping | None, "arguments of EmbeddingMetrics, such as cmc_top_k: [1, 5]", {}),
    "validation_tables": Field(
        Mapping | None,
        "further tables to validate on: name -> {dataset_root, dataframe_name}, by default those of the main one; "
        "their metrics are NAME/OVERALL/cmc/1 ...",
        {},
    ),
}
_FIT = {
    "seed": Field(int, "of all that is random", least=0),
    "max_epochs": Field(int, "length of the training", least=1),
    "valid_period": Field(int, "validate every so many epochs", least=1),
    "metric_for_checkpointing": Field(str, "metric whose best epoch is kept, such as OVERALL/cmc/1"),
    "optimizer": _config("optimizer", "what makes steps; args hold the learning rate"),
    "scheduling": Field(Mapping | None, "how the learning rate changes; null: not at all", None, fields=SCHEDULING),
    "freeze_n_epochs": Field(int, "so many epochs the backbone does not learn", 0, least=0),
}
_CACHE_SIZE = Field(int | None, "bytes of decoded images to keep between epochs; 0: none", least=0)
_RUN = {
    "ema_decay": Field(
        float | None, "of the moving average of weights that is validated and kept; null: none", None, 0, most=1
    ),
    "early_stopping": Field(
        Mapping | None,
        "stop where metric_for_checkpointing stays as it is; null: never",
        None,
        fields=EARLY_STOPPING,
    ),
    "checkpoint_every_n_steps": Field(
        int | None, "how often last.ckpt is written; null: between epochs, about every 500 steps", None, least=1
    ),
    "resume": Field(str | Path | None, "run folder, or a .ckpt of it, to go on from", None),
}

TRAINING = Pipeline(
    "training",
    {
        **_FIT,
        **_MACHINE,
        **_TABLE,
        "cache_size": _CACHE_SIZE,
        "transforms_train": _config("transforms", "augmentations of training"),
        "sampler": Field(Mapping | None, "what forms batches; null: shuffled ones of bs_train", group="sampler"),
        "global_batch": Field(
            bool, "losses see the batches of all processes, not only of their own, as if one process had them", False
        ),
        "bs_train": Field(int | None, "batch size of training, if there is no sampler", None, least=1),
        "extractor": _config("extractor", "what is trained"),
        "criterion": _config(
            "criterion",
            "the loss; num_classes and in_features, if null or left out, are the number of labels in the train split "
            "and the size of the embeddings",
        ),
        "criterion_lr_factor": Field(float, "the criterion's parameters learn at lr times this", 1.0, least=0),
        **_RUN,
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
        **_ENGINE,
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
    "re-ranker training",
    {
        **_FIT,
        **_MACHINE,
        **_TABLE,
        "cache_size": _CACHE_SIZE._replace(default=0),
        "extractor": _config("extractor", "whose embeddings choose the pairs"),
        "transforms_extraction": _config("transforms", "what becomes of images before the extractor"),
        "transforms_train": _config("transforms", "augmentations of training; pairwise_embeddings needs none", None),
        "batch_size_inference": Field(int, "batch size of extraction and validation", least=1),
        "embeddings_cache_dir": Field(str | Path | None, "folder to keep embeddings in; null: none are kept", None),
        "sampler": _config("sampler", "what forms batches"),
        "hard_pairs_mining": Field(bool, "train on the hardest pairs of a batch instead of all"),
        "postprocessor": _config("postprocessor", "pairwise_images or pairwise_embeddings, whose model is trained"),
        **_RUN,
        **{name: _VALIDATION[name] for name in ("metric_args", "validation_tables")},
        **_LOGGING,
        "log_images": Field(bool, _LOGGING["log_images"].help, True),
    },
)
