"""Configs of pipelines: each fault is found, and nothing else; all of several at once; valid ones pass."""

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError
from pytorch_lightning.loggers.logger import Logger

from oml.configs import ConfigError
from oml.interfaces.models import IExtractor
from oml.lightning.pipelines import checks, fitting, machine, parser, predict, train, train_postprocessor, validate
from oml.lightning.pipelines.checks import checked, find_problems
from oml.lightning.pipelines.schema import (
    FREE_FIELDS,
    POSTPROCESSOR_TRAINING,
    PREDICTION,
    REQUIRED,
    TRAINING,
    VALIDATION,
    Pipeline,
)
from oml.registry.loggers import LOGGERS_REGISTRY
from oml.registry.models import EXTRACTORS_REGISTRY
from oml.retrieval.calibration import Calibration

GONE = object()
RESIZE = {"name": "norm_resize_torch", "args": {"im_size": 32}}
EXTRACTOR = {
    "name": "resnet",
    "args": {"arch": "resnet18", "weights": None, "gem_p": None, "remove_fc": True, "normalise_features": True},
}
MLP = {"name": "extractor_with_mlp", "args": {"mlp_features": [16], "extractor": EXTRACTOR}}
PLATEAU = {"name": "reduce_on_plateau", "args": {"factor": 0.5}}
MACHINE = {"accelerator": "cpu", "devices": 1, "num_workers": 0}
FIT = {
    "seed": 0,
    "optimizer": {"name": "adam", "args": {"lr": 0.001}},
    "metric_for_checkpointing": "OVERALL/cmc/5",
    "max_epochs": 4,
    "valid_period": 2,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "training": {
        **MACHINE,
        **FIT,
        "cache_size": 0,
        "transforms_train": RESIZE,
        "transforms_val": RESIZE,
        "bs_val": 4,
        "sampler": {"name": "balance", "args": {"n_labels": 2, "n_instances": 2}},
        "extractor": EXTRACTOR,
        "criterion": {"name": "triplet_with_miner", "args": {"margin": 0.2, "miner": {"name": "all_triplets"}}},
    },
    "validation": {**MACHINE, "transforms_val": RESIZE, "bs_val": 4, "extractor": EXTRACTOR},
    "prediction": {**MACHINE, "bs": 4, "transforms_predict": RESIZE, "extractor": EXTRACTOR},
    "re-ranker training": {
        **MACHINE,
        **FIT,
        "extractor": EXTRACTOR,
        "transforms_extraction": RESIZE,
        "transforms_train": RESIZE,
        "batch_size_inference": 4,
        "sampler": {"name": "balance", "args": {"n_labels": 2, "n_instances": 2}},
        "hard_pairs_mining": True,
        "postprocessor": {
            "name": "pairwise_images",
            "args": {
                "top_n": 2,
                "transforms": RESIZE,
                "pairwise_model": {"name": "concat_siamese", "args": {"mlp_hidden_dims": [8], "extractor": EXTRACTOR}},
            },
        },
    },
}
OF_EMBEDDINGS = {
    "name": "pairwise_embeddings",
    "args": {
        "top_n": 2,
        "num_workers": 0,
        "batch_size": 4,
        "pairwise_model": {"name": "linear_siamese", "args": {"feat_dim": 512, "identity_init": True}},
    },
}
PIPELINES = [TRAINING, VALIDATION, PREDICTION, POSTPROCESSOR_TRAINING]


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NEPTUNE_API_TOKEN", "NEPTUNE_MODE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def root(tmp_path: Path, mock_root: Path) -> Path:
    """Tables as those of the mock data set; the images are none."""
    root = tmp_path / "data"
    for name in ("df.csv", "df_with_category.csv", "df_with_bboxes.csv"):
        table = pd.read_csv(mock_root / name)
        for path in table.path:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text("no image")
        table.to_csv(root / name, index=False)
    table = pd.read_csv(mock_root / "df.csv")
    table[table.split == "train"].to_csv(root / "train_only.csv", index=False)
    table.assign(split="trian").to_csv(root / "broken.csv", index=False)
    return root


def config_of(pipeline: Pipeline, root: Path, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A valid config, with some fields changed by their dotted names."""
    config = json.loads(json.dumps(CONFIGS[pipeline.name]))  # unlike a deep copy, without parts that are the same
    if pipeline is PREDICTION:
        config |= {"data_dir": str(root), "save_dir": str(root.parent / "out")}
    else:
        config |= {"dataset_root": str(root), "dataframe_name": "df.csv"}
    for name, value in (changes or {}).items():
        *path, last = name.split(".")
        part = config
        for key in path:
            part = part.setdefault(key, {})
        if value is GONE:
            del part[last]
        else:
            part[last] = deepcopy(value)
    return config


def assert_found(found: list[str], expected: list[str]) -> None:
    assert len(found) == len(expected), found
    for text, pattern in zip(found, expected, strict=True):
        assert re.search(pattern, text), text


@pytest.mark.parametrize("pipeline", PIPELINES, ids=lambda pipeline: pipeline.name)
@pytest.mark.parametrize("kind", [dict, OmegaConf.create])
def test_a_valid_config_has_no_problems(pipeline: Pipeline, kind: Any, root: Path) -> None:
    config = kind(config_of(pipeline, root))
    before = deepcopy(config)
    assert find_problems(config, pipeline) == []
    assert config == before  # it stays as it is


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        # fields
        ({"bs_vall": 3}, [r"^bs_vall: the training pipeline has no such field\.$"]),
        ({"bs_val": GONE, "bs_vall": 3}, ["^bs_vall: .* did you mean bs_val"]),
        ({"bs_val": GONE}, ["^bs_val: must be given: batch size of validation"]),
        ({"bs_val": 0}, ["^bs_val: must be 1 or more; got 0"]),
        ({"bs_val": "4"}, ["^bs_val: needs int, got '4'. That is a text"]),
        ({"bs_val": True}, ["^bs_val: needs int, got True"]),
        ({"criterion": "arcface"}, [r"^criterion: needs a config {name, args}: the loss.* got 'arcface'"]),
        ({"metric_args": [1]}, [r"^metric_args: needs a mapping: .* got \[1\]"]),
        ({"precision": "fp16"}, ["^precision: needs 16 | 32 .*, got 'fp16'"]),
        ({"scheduling.scheduler": {"name": "step", "args": {"step_size": 2}}, "scheduling.interval": "epoch"},
         ["^scheduling.interval: scheduling has no such field; did you mean scheduler_interval"]),
        ({"early_stopping": {"patience": -1, "delta": 0.1}},
         ["^early_stopping.delta: .* did you mean min_delta", "^early_stopping.patience: must be 0 or more"]),
        # the table
        ({"dataset_root": "nowhere"}, ["^dataset_root: there is no folder '.*nowhere'"]),
        ({"dataframe_name": "d.csv"}, ["^dataframe_name: .*not found at .*d.csv.*no such file"]),
        ({"dataframe_name": "broken.csv"},
         ["^dataframe_name: in '.*broken.csv', split must be 'train' or 'validation'"]),
        ({"dataframe_name": "train_only.csv"}, ["^dataframe_name: '.*train_only.csv' has no validation rows"]),
        ({"validation_tables": {"far": {"dataframe_name": "train_only.csv"}}},
         ["^validation_tables.far.dataframe_name: '.*train_only.csv' has no validation rows"]),
        ({"validation_tables": {"far": {"dataset_rot": "x"}}},
         ["^validation_tables.far.dataset_rot: .* no such field; did you mean dataset_root"]),
        ({"validation_tables": {"far": "df.csv"}}, ["^validation_tables.far: needs {dataset_root, dataframe_name}"]),
        # components, at all depths
        ({"sampler.name": "balanse"}, ["^sampler: No sampler is called 'balanse'; did you mean balance"]),
        ({"sampler.args.n_label": 2}, ["^sampler: The sampler 'balance' has no argument 'n_label'; .* n_labels"]),
        ({"criterion.args.miner.name": "hard_triplet"},
         ["^criterion.args.miner: No miner is called 'hard_triplet'; did you mean n?_?hard_triplets"]),
        ({"criterion.args.miner": "all_triplets"},
         ["^criterion: .* needs a config as miner, {name: all_triplets}, got the text"]),
        ({"criterion.args.margin": "wide"}, [r"^criterion: .* needs float \| None as margin, got 'wide'"]),
        ({"extractor": MLP, "extractor.args.extractor": {"name": "resnet", "args": {"arch": "resnet18"}}},
         [rf"^extractor.args.extractor: .* needs the argument '{name}'"
          for name in ("weights", "gem_p", "remove_fc", "normalise_features")]),
        ({"optimizer.args.lr": "1e-5"}, [r"^optimizer: .* needs float \| Tensor as lr, got '1e-5'.*is a number"]),
        ({"optimizer.args.lr": -1}, ["^optimizer: Invalid learning rate: -1"]),
        ({"transforms_val.args.im_size": "big"}, ["^transforms_val: .* as im_size, got 'big'"]),
        ({"criterion": {"name": "pml", "args": {"loss": {"name": "ContrastiveLoss", "args": {"pos_margn": 1}}}}},
         ["^criterion.args.loss: The loss 'ContrastiveLoss' has no argument 'pos_margn'; did you mean pos_margin"]),
        ({"scheduling.scheduler": {"name": "step", "args": {}}},
         ["^scheduling.scheduler: The scheduler 'step' needs the argument 'step_size'"]),
        ({"scheduling.scheduler": {"name": "cyclic", "args": {"base_lr": 0.1, "max_lr": 1.0, "mode": "square"}}},
         ["^scheduling.scheduler: "]),
        ({"logger": {"name": "neptune", "args": {"project": "a/b"}}}, ["^logger: .* set NEPTUNE_API_TOKEN"]),
        ({"logger": {"name": "tensorbord"}}, ["^logger: No logger .* did you mean tensorboard"]),
        # weights
        ({"extractor.args.weights": "best.ckpt"}, ["^extractor.args.weights: There is no checkpoint 'best.ckpt'"]),
        ({"extractor.args.weights": "resnet50_moco_v3"},
         ["^extractor.args.weights: .*did you mean resnet50_moco_v2"]),
        ({"extractor.args.weights": "resnet50_moco_v2"},
         ["^extractor.args.weights: .* of the architecture 'resnet50_projector', got arch='resnet18'"]),
        ({"extractor.args.arch": "resnet17"}, ["^extractor: .* no architecture 'resnet17', did you mean 'resnet18'"]),
        # the sampler and the table
        ({"sampler.args.n_labels": 5}, ["^sampler: .* n_labels between 2 and the number of labels, 4, got 5"]),
        ({"sampler.args.n_instances": 7}, ["^sampler.args.n_instances: no label has more than 6 train rows.* got 7"]),
        ({"sampler": {"name": "category_balance", "args": {"n_labels": 2, "n_instances": 2, "n_categories": 1}}},
         ["^sampler: .* needs categories, and the table has no"]),
        ({"sampler": None}, ["^bs_train: must be given"]),
        ({"sampler": None, "bs_train": 25}, ["^bs_train: there are 24 train rows, .* got 25"]),
        # the loss, the table and the extractor
        ({"criterion": {"name": "arcface", "args": {"num_classes": 3}}},
         ["^criterion.args.num_classes: there are 4 labels in the train split, got 3"]),
        ({"criterion": {"name": "arcface", "args": {"in_features": 128}}},
         ["^criterion.args.in_features: there are 512 numbers in an embedding, got 128"]),
        ({"extractor": MLP, "criterion": {"name": "proxy_anchor", "args": {"in_features": 512}}},
         ["^criterion.args.in_features: there are 16 numbers in an embedding, got 512"]),
        ({"criterion": {"name": "matryoshka", "args": {"dims": [64, 1024], "criterion": {"name": "supcon"}}}},
         [r"^criterion.args.dims: there are 512 numbers in an embedding, got \[64, 1024\]"]),
        ({"criterion": {"name": "matryoshka", "args": {
            "dims": [64, 128], "criterion": [{"name": "arcface"}, {"name": "arcface", "args": {"in_features": 64}}]}}},
         [r"^criterion.args.criterion\[1\].args.in_features: there are 128 numbers in an embedding, got 64"]),
        ({"criterion": {"name": "pml", "args": {"loss": {"name": "ArcFaceLoss", "args": {"embedding_size": 8}}}}},
         ["^criterion.args.loss.args.embedding_size: there are 512"]),
        ({"criterion": {"name": "arcface", "args": {"m": 4.0}}}, ["^criterion: .* m .*4.0"]),
        ({"freeze_n_epochs": 1}, ["^freeze_n_epochs: ResnetExtractor cannot be frozen, extractor_with_mlp"]),
        # what is watched
        ({"metric_for_checkpointing": "OVERALL/cmc/1"},
         ["^metric_for_checkpointing: 'OVERALL/cmc/1' will not be computed; did you mean OVERALL/cmc/5"]),
        ({"metric_for_checkpointing": "figures/cmc/5", "dataframe_name": "df_with_category.csv"},
         ["^metric_for_checkpointing: 'figures/cmc/5' will not"]),
        ({"metric_for_checkpointing": "far/OVERALL/cmc/5", "validation_tables": {"fat": {}}},
         ["^metric_for_checkpointing: .* did you mean fat/OVERALL/cmc/5"]),
        ({"metric_for_checkpointing": "arcface_loss_epoch"},
         ["^metric_for_checkpointing: 'arcface_loss_epoch' will not .* did you mean triplet_loss_epoch"]),
        ({"metric_args": {"cmc_top": [1]}}, ["^metric_args: EmbeddingMetrics has no argument 'cmc_top'; .* cmc_top_k"]),
        ({"metric_args": {"cmc_top_k": [0]}}, [r"^metric_args: .* 1 or more in cmc_top_k, got \[0\]"]),
        ({"scheduling.scheduler": PLATEAU}, ["^scheduling.monitor_metric: reduce_on_plateau needs one, such as"]),
        ({"scheduling.scheduler": PLATEAU, "scheduling.monitor_metric": "triplet_loss_epoch"},
         ["^scheduling.scheduler_interval: 'triplet_loss_epoch' is there by epoch only"]),
        ({"scheduling.scheduler": PLATEAU, "scheduling.monitor_metric": "triplet_los_epoch",
          "scheduling.scheduler_interval": "epoch"},
         ["^scheduling.monitor_metric: 'triplet_los_epoch' will not .* did you mean triplet_loss_epoch"]),
        ({"scheduling.scheduler": {"name": "reduce_on_plateau", "args": {"mode": "max"}},
          "scheduling.monitor_metric": "OVERALL/cmc/5", "scheduling.scheduler_interval": "epoch"},
         ["^scheduling.scheduler_frequency: 'OVERALL/cmc/5' is there every 2 epochs only"]),
        ({"scheduling.scheduler": PLATEAU, "scheduling.monitor_metric": "OVERALL/cmc/5",
          "scheduling.scheduler_interval": "epoch", "scheduling.scheduler_frequency": 2},
         ["^scheduling.scheduler.args.mode: of 'OVERALL/cmc/5' large values are good"]),
        # the machine
        ({"accelerator": "gpus"}, ["^accelerator: there is no 'gpus'; did you mean gpu"]),
        ({"devices": 0}, ["^devices: .* one device or more, got devices=0"]),
        ({"accelerator": "tpu"}, ["^accelerator: this machine has no tpu"]),
        ({"precision": "16-mixed"}, ["^precision: a CPU has no '16-mixed'. It has bf16-mixed and 32"]),
        ({"lightning_trainer_extra_args": {"gradient_clip": 1}},
         ["^lightning_trainer_extra_args: .* no argument 'gradient_clip'; did you mean gradient_clip_val"]),
        ({"lightning_trainer_extra_args": {"max_epochs": 1}},
         ["^lightning_trainer_extra_args.max_epochs: set the field max_epochs instead"]),
        ({"lightning_trainer_extra_args": {"max_time": 3}},
         [r"^lightning_trainer_extra_args: .* needs str \| .* as max_time, got 3"]),
        ({"lightning_trainer_extra_args": {"limit_val_batches": 1}},
         ["^lightning_trainer_extra_args.limit_val_batches, .* of a part of the validation would mislead"]),
        ({"ema_decay": 1.5}, ["^ema_decay: must be 1 or less; got 1.5"]),
        ({"lightning_trainer_extra_args": {"limit_val_batches": 2}},
         ["^lightning_trainer_extra_args.limit_val_batches, .* of a part of the validation would mislead"]),
        ({"lightning_trainer_extra_args": {"fast_dev_run": True}},
         ["^lightning_trainer_extra_args.fast_dev_run: .* neither checkpoints nor metrics, take max_steps: 1 instead"]),
        ({"lightning_trainer_extra_args": {"gradient_clip_algorithm": "clip"}},
         ["^lightning_trainer_extra_args: .*gradient_clip_algorithm.*clip"]),
        ({"resume": "runs/none"}, ["^resume: there is neither a run's folder nor a checkpoint at '.*runs/none'"]),
    ],
)  # fmt: skip
def test_each_fault_is_found_and_nothing_else(changes: dict[str, Any], found: list[str], root: Path) -> None:
    assert_found(find_problems(config_of(TRAINING, root, changes), TRAINING), found)


@pytest.mark.parametrize(
    ("pipeline", "changes", "found"),
    [
        (VALIDATION, {"extractor.name": "resnt"}, ["^extractor: No extractor .* did you mean resnet"]),
        (VALIDATION, {"seed": 1}, ["^seed: the validation pipeline has no such field"]),
        (PREDICTION, {"data_dir": "nowhere"}, ["^data_dir: there is no folder"]),
        (PREDICTION, {"output": ["a.json", "b.txt"]}, ["^output: .*b.txt"]),
        (PREDICTION, {"output": 3}, [r"^output: needs str \| list\[str\], got 3"]),
        (POSTPROCESSOR_TRAINING, {"dataframe_name": "df_with_bboxes.csv"}, []),
        (POSTPROCESSOR_TRAINING, {"sampler": None}, ["^sampler: needs a config"]),
        (POSTPROCESSOR_TRAINING, {"transforms_train": None}, ["^transforms_train: must be given, as pairwise_images"]),
        (
            POSTPROCESSOR_TRAINING,
            {
                "postprocessor": OF_EMBEDDINGS,
                "freeze_n_epochs": 1,
                "lightning_trainer_extra_args": {"strategy": "fsdp"},
            },
            ["^freeze_n_epochs: LinearTrivial.* cannot be frozen", "strategy: fsdp shares out a model"],
        ),
        (
            POSTPROCESSOR_TRAINING,
            {"postprocessor": OF_EMBEDDINGS, "transforms_train": None, "extractor.args.arch": "resnet50"},
            ["feat_dim: there are 2048 numbers in an embedding, got 512"],
        ),
        (
            POSTPROCESSOR_TRAINING,
            {"postprocessor": {"name": "constant_threshold", "args": {"threshold": 0.5}}},
            ["^postprocessor.name: 'constant_threshold' is not trained; pairwise_images is"],
        ),
        (
            POSTPROCESSOR_TRAINING,
            {"metric_for_checkpointing": "triplet_loss"},
            ["will not be computed; there are .*, loss"],
        ),
        (POSTPROCESSOR_TRAINING, {"metric_for_checkpointing": "loss"}, []),
        (
            POSTPROCESSOR_TRAINING,
            {"postprocessor.args.pairwise_model.args.extractor.args.weights": "best.ckpt"},
            ["^postprocessor.args.pairwise_model.args.extractor.args.weights: There is no checkpoint"],
        ),
    ],
)
def test_faults_of_the_other_pipelines(pipeline: Pipeline, changes: dict, found: list[str], root: Path) -> None:
    assert_found(find_problems(config_of(pipeline, root, changes), pipeline), found)


def test_all_faults_come_at_once(root: Path) -> None:
    changes = {
        "bs_val": "4",
        "max_epoch": 3,
        "accelerator": "gpus",
        "dataset_root": "nowhere",
        "sampler.name": "balanse",
        "criterion.args.margn": 1,
        "criterion.args.miner.args": {"max_triplets": 0},
        "extractor.args.weights": "best.ckpt",
        "transforms_val.name": "norm",
        "optimizer.args.lr": "high",
        "metric_for_checkpointing": "OVERALL/cmc/1",
    }
    with pytest.raises(ConfigError) as error:
        checked(config_of(TRAINING, root, changes), TRAINING)
    assert {text.partition(":")[0] for text in error.value.findings} == {
        "bs_val", "max_epoch", "accelerator", "dataset_root", "sampler", "criterion", "criterion.args.miner",
        "extractor.args.weights", "transforms_val", "optimizer", "metric_for_checkpointing",
    }  # fmt: skip
    assert len(error.value.findings) == len(changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset_root": Path("data")},
        {"dataframe_name": "df_with_category.csv", "metric_for_checkpointing": "{category}/map/5"},
        {"validation_tables": {"far": {}}, "metric_for_checkpointing": "far/OVERALL/cmc/5"},
        {"metric_for_checkpointing": "triplet_loss_epoch"},
        {
            "scheduling": {
                "scheduler": PLATEAU,
                "scheduler_interval": "epoch",
                "monitor_metric": "triplet_loss_epoch",
            }
        },
        {"scheduling": {"scheduler": {"name": "one_cycle"}}},
        {"precision": 16},
        {"precision": "bf16-mixed"},
        {"sampler": None, "bs_train": 24},
        {"extractor": MLP, "freeze_n_epochs": 1},
        {"metric_args": None, "lightning_trainer_extra_args": {"max_time": "00:00:01:00", "max_steps": 3}},
        {"early_stopping": {"patience": 2}},
        {"logs_root": "logs", "hydra": {"run": {"dir": "."}}, "tags": ["a"], "postfix": "b"},
        {"logger": {"name": "neptune", "args": {"project": "a/b", "mode": "offline"}}},
    ],
)
def test_what_is_right(changes: dict[str, Any], root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root.parent)
    config = config_of(TRAINING, root, changes)
    if "category" in config["dataframe_name"]:
        table = pd.read_csv(root / config["dataframe_name"])
        category = table[table.split == "validation"].category.iloc[0]
        config["metric_for_checkpointing"] = config["metric_for_checkpointing"].format(category=category)
    assert find_problems(config, TRAINING) == []


def test_neither_weights_nor_images_are_opened(root: Path) -> None:
    weights = root / "broken.ckpt"
    weights.write_text("no checkpoint")
    config = config_of(TRAINING, root, {"extractor.args.weights": str(weights)})
    with pytest.raises(ValueError, match=r"broken.ckpt.* is no checkpoint"):
        EXTRACTORS_REGISTRY.build(config["extractor"])
    assert find_problems(config, TRAINING) == []
    (root / "images").rename(root / "elsewhere")  # but they are looked for
    assert_found(find_problems(config, TRAINING), ["^dataframe_name: in .*, path must be a file below"])


def test_an_extractor_is_built_of_shapes_alone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = []

    class Mine(IExtractor):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3, 7)
            devices.append(self.layer.weight.device.type)

        @property
        def feat_dim(self) -> int:
            return 7

    monkeypatch.setitem(EXTRACTORS_REGISTRY, "mine", Mine)
    Mine.__abstractmethods__ = frozenset()
    changes = {"extractor": {"name": "mine"}, "criterion": {"name": "arcface", "args": {"in_features": 8}}}
    assert_found(find_problems(config_of(TRAINING, root, changes), TRAINING), ["there are 7 numbers in an embedding"])
    assert devices == ["meta"]


def test_what_is_read_is_filled_in_and_absolute(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root.parent)
    Path("best.ckpt").touch()
    changes = {
        "dataset_root": "data",
        "run_dir": "run",
        "extractor.args.weights": "best.ckpt",
        "criterion": {"name": "arcface"},
        "early_stopping": {},
        "validation_tables": {"far": {"dataframe_name": "df_with_category.csv"}},
        "metric_args": None,
    }
    config = checked(OmegaConf.create(config_of(TRAINING, root, changes)), TRAINING)
    assert isinstance(config, DictConfig)
    assert (config.dataset_root, config.run_dir) == (str(root), str(root.parent / "run"))
    assert config.extractor.args.weights == str(root.parent / "best.ckpt")
    assert config.criterion.args == {"num_classes": 4, "in_features": 512}
    assert config.early_stopping == {"patience": 3, "min_delta": 0.0, "mode": None}
    assert config.validation_tables.far == {"dataset_root": str(root), "dataframe_name": "df_with_category.csv"}
    assert (config.metric_args, config.ema_decay, config.precision) == ({}, None, 32)
    assert checked(config, TRAINING) == config  # again, as commands do
    with pytest.raises(ConfigAttributeError):
        config.max_epoch  # noqa: B018 (must raise)

    known = Calibration.fit(torch.rand(2), torch.tensor([True, False]))
    known.save("calibration.json")
    threshold = {"name": "calibrated_threshold", "args": {"calibration": "calibration.json"}}
    chain = {"name": "chain", "args": {"postprocessors": [threshold]}}
    config = checked(OmegaConf.create(config_of(VALIDATION, root, {"postprocessor": chain})), VALIDATION)
    assert config.postprocessor.args.postprocessors[0].args.calibration == str(root.parent / "calibration.json")


def test_a_logger_that_cannot_log_pictures(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(Logger):
        pass

    monkeypatch.setitem(LOGGERS_REGISTRY, "mine", Mine)
    changes = {"logger": {"name": "mine"}, "log_images": False}
    assert find_problems(config_of(TRAINING, root, changes), TRAINING) == []
    changes["log_images"] = True
    assert_found(find_problems(config_of(TRAINING, root, changes), TRAINING), ["^log_images: how Mine logs pictures"])
    changes["logger"] = {"name": "csv"}
    assert find_problems(config_of(TRAINING, root, changes), TRAINING) == []


@pytest.mark.slow
def test_paths_are_those_of_the_person_in_a_job_of_hydra(root: Path, tmp_path: Path) -> None:
    OmegaConf.save(OmegaConf.create(config_of(TRAINING, root, {"dataset_root": "data"})), tmp_path / "train.yaml")
    (tmp_path / "main.py").write_text(
        "import os, hydra\n"
        "from oml.lightning.pipelines.checks import TRAINING, checked\n"
        '@hydra.main(version_base="1.3", config_path=".", config_name="train")\n'
        "def main(cfg):\n"
        "    print(os.getcwd(), checked(cfg, TRAINING).dataset_root, sep='|')\n"
        "main()\n"
    )
    command = [sys.executable, "main.py", "hydra.job.chdir=true", "hydra.run.dir=run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{tmp_path / 'run'}|{root}"


def test_folders_must_be_writable(root: Path) -> None:
    (root / "file").touch()
    config = config_of(TRAINING, root, {"run_dir": str(root / "file" / "run")})
    assert_found(find_problems(config, TRAINING), ["^run_dir: .*file cannot be written to"])
    config = config_of(TRAINING, root, {"run_dir": str(root / "new" / "run")})
    assert find_problems(config, TRAINING) == []
    assert not (root / "new").exists()


def test_interpolations(root: Path) -> None:
    changes = {"size": 32, "im_size": "${size}", "transforms_val.args.im_size": "${size}", "bs_val": "${valid_period}"}
    config = OmegaConf.create(config_of(TRAINING, root, changes))
    assert find_problems(config, TRAINING) == ["im_size: the training pipeline has no such field."]
    del config["im_size"]
    assert checked(config, TRAINING).transforms_val.args.im_size == 32

    changes = {"hydra": {"run": {"dir": "${hydra_dir}"}}, "hydra_dir": "${nowhere}", "logs_folder": "${no_resolver:1}"}
    config = OmegaConf.create(config_of(TRAINING, root, changes))
    assert find_problems(config, TRAINING) == []

    changes = {"weights": "???", "extractor.args.weights": "${weights}", "bs_val": "${bs}", "seed": "${oc.env:NONE}"}
    config = OmegaConf.create(config_of(TRAINING, root, changes))
    expected = ["^seed: does not resolve: .*NONE", "^bs_val: does not resolve: .*'bs'", r"^weights: is \?\?\?"]
    assert_found(find_problems(config, TRAINING), expected)


def test_what_the_machine_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    monkeypatch.setattr("pytorch_lightning.accelerators.cuda.num_cuda_devices", lambda: 2)
    wanted = {"accelerator": "gpu", "devices": [0, 2], "precision": "bf16-mixed"}
    assert_found(
        machine.machine_problems(wanted),
        [r"^devices: this machine has 2 GPUs.* lacks \[2\]", "^precision: this GPU has no 'bf16-mixed'"],
    )
    assert machine.machine_problems({"accelerator": "gpu", "devices": 2, "precision": 16}) == []
    monkeypatch.undo()
    if not torch.cuda.is_available():
        assert_found(machine.machine_problems({"accelerator": "cuda"}), ["^accelerator: .* no cuda"])


def test_what_several_processes_need(monkeypatch: pytest.MonkeyPatch) -> None:
    config: dict[str, Any] = {"accelerator": "cpu", "devices": 2, "ema_decay": 0.9}
    extra = {"lightning_trainer_extra_args": {"strategy": "fsdp"}}
    assert machine.machine_problems(config) == []
    assert_found(machine.machine_problems({**config, **extra}), ["^ema_decay: .*strategy=fsdp"])
    for name, value in {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert_found(machine.machine_problems(config), ["^devices: 4 processes were started.* 2 devices on 1 nodes"])
    assert machine.machine_problems({**config, "lightning_trainer_extra_args": {"num_nodes": 2}}) == []


def test_what_pipelines_read_is_in_the_schema_and_the_other_way_round() -> None:
    """Pipelines work on plain dicts, so a field that the schema lacks would never be set."""
    modules = {
        "training": [train, fitting, parser, validate],
        "re-ranker training": [train_postprocessor, fitting, parser, validate],
        "validation": [validate, parser],
        "prediction": [predict, parser],
    }
    read = {
        module: set(
            re.findall(r'\b(?:config|cfg|_plain\(cfg\))(?:\.get\(|\[)"(\w+)"', Path(str(module.__file__)).read_text())
        )
        for module in (train, train_postprocessor, fitting, parser, validate, predict)
    }
    every = {name for pipeline in PIPELINES for name in pipeline.fields}
    assert set.union(*read.values()) - every <= {"name", "args", "extractor"}
    assert read[predict] <= set(PREDICTION.fields) | {"bs_val", "transforms_val"}  # of a run's config
    logged = {"tags", "postfix"}  # by log_experiment
    for pipeline in PIPELINES:
        used = set.union(*(read[module] for module in modules[pipeline.name]))
        assert set(pipeline.fields) - used <= logged, pipeline.name


def test_the_schema_is_data() -> None:
    for pipeline in PIPELINES:
        for name, field in pipeline.fields.items():
            assert field.help, name
            assert name not in FREE_FIELDS or field.default is None
            if field.default is not REQUIRED:
                assert checks.fits(field.default, field.type), name
