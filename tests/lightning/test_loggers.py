"""Every logger gets config, code version, table digest, metrics and figures: trained for real, and read back.

The clients are real ones, offline or with files alone; nothing leaves the machine.
"""

import json
import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
import torch
import yaml
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers.logger import Logger
from tests.lightning.loggers import end_helpers, quiet, tiny_training

import oml
from oml.lightning.loggers.experiment import finish, log_experiment, resume_arguments
from oml.registry.loggers import get_logger_by_cfg

CONFIG = {
    "postfix": "metric-learning",
    "tags": ["mock"],
    "extractor": {"name": "vit", "args": {"arch": "vits8", "weights": None, "sizes": [1, 2]}},
    "transforms_train": {"name": "augs_albu", "args": {"im_size": 32}},
}
ARGS: dict[str, dict[str, Any]] = {
    "clearml": {"name": "mine", "offline": True},
    "csv": {},
    "mlflow": {"experiment_name": "mine"},
    "neptune": {
        "project": "me/mine",
        "mode": "offline",
        "capture_hardware_metrics": False,
        "log_model_checkpoints": True,
    },
    "tensorboard": {"save_dir": "."},
    "wandb": {"project": "mine", "offline": True},
}
TITLE = "top 5 worst by OVERALL_map_5"
KEY = f"image_logs/{TITLE}"
EPOCHS = 2


class Trained(NamedTuple):
    name: str
    run_dir: Path
    table: Path
    logger: Logger
    resume: dict[str, Any]


@pytest.fixture(
    scope="module",
    params=["csv", "mlflow", "neptune", "tensorboard", "wandb", pytest.param("clearml", marks=pytest.mark.slow)],
)
def trained(
    request: pytest.FixtureRequest, mock_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Trained]:
    name, run_dir = request.param, tmp_path_factory.mktemp(request.param) / "of-the-run"
    run_dir.mkdir()
    table, project = mock_root / "df.csv", run_dir.parent / "project"
    with quiet(run_dir.parent / "home"), pytest.MonkeyPatch.context() as patch:
        repository(project)
        patch.chdir(project)
        patch.setattr(os, "fork", _no_fork)
        logger = get_logger_by_cfg({"name": name, "args": ARGS[name]}, save_dir=run_dir)
        log_experiment(logger, CONFIG, run_dir, [table])
        best = ModelCheckpoint(run_dir, "best", monitor="OVERALL/cmc/1", mode="max")
        tiny_training(mock_root, logger, epochs=EPOCHS, log_images=True, callbacks=[best])
        finish(logger)
        end_helpers()
        yield Trained(name, run_dir, table, logger, resume_arguments(name, run_dir))


def _no_fork() -> int:
    """Locks of other threads stay locked in a fork, where they are not: it may hang, and who waits for it too."""
    raise AssertionError("a client of a logger forks the process of the training")


def repository(folder: Path) -> None:
    """In which a user works: one commit, and a change since."""
    folder.mkdir()
    (folder / "train.py").write_text("train()")
    for command in ("init -q", "add .", "-c user.name=me -c user.email=me@localhost commit -q -m first"):
        subprocess.run(["git", *command.split()], cwd=folder, check=True)
    (folder / "train.py").write_text("train(again=True)")


class Seen(NamedTuple):
    """What a logger has, in one form."""

    config: dict[str, Any]
    metrics: dict[str, list[float]]
    figures: dict[str, int]
    """key -> how many there are"""


def test_what_a_logger_gets(trained: Trained) -> None:
    seen = READERS[trained.name](trained)
    config = {key: str(value) for key, value in seen.config.items()}
    joint = "/" if trained.name == "mlflow" else "|"
    assert config[joint.join(["extractor", "args", "arch"])] == "vits8"
    assert config["postfix"] == "metric-learning"
    assert config["dir"] == "of-the-run"
    assert config[f"code{joint}oml"] == oml.__version__
    assert config[f"code{joint}torch"] == torch.__version__.split("+")[0]
    assert len(config[f"code{joint}commit"]) == 40
    assert config[f"code{joint}changed"] == "True"
    assert config[joint.join(["tables", "df.csv", "sha256"])] == sha256(trained.table.read_bytes()).hexdigest()

    assert len(seen.metrics["OVERALL/map/5"]) == EPOCHS
    assert all(0 < value <= 1 for value in seen.metrics["OVERALL/map/5"])
    fnmr = "OVERALL/fnmr_at_fmr/0.1" if trained.name == "mlflow" else "OVERALL/fnmr@fmr/0.1"
    assert len(seen.metrics[fnmr]) == EPOCHS
    assert len(seen.metrics["triplet_loss_step"]) > EPOCHS
    assert seen.figures == {TITLE if trained.name == "wandb" else KEY: EPOCHS}


def test_nothing_is_written_elsewhere(trained: Trained) -> None:
    others = {path.name for path in trained.run_dir.parent.iterdir()} - {"of-the-run", "home", "project"}
    assert not others
    assert {path.name for path in (trained.run_dir.parent / "project").iterdir()} == {".git", "train.py"}


def read_csv(trained: Trained) -> Seen:
    folder = trained.run_dir / "lightning_logs" / "version_0"
    table = pd.read_csv(folder / "metrics.csv")
    metrics = {str(key): table[key].dropna().tolist() for key in table}
    config = yaml.safe_load((folder / "hparams.yaml").read_text())
    return Seen(config, metrics, {KEY: len(list((folder / KEY).glob("[01].png")))})


def read_tensorboard(trained: Trained) -> Seen:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained.run_dir / "lightning_logs" / "version_0")).Reload()
    tags: Any = events.Tags()
    text = events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert all(line.startswith("    ") for line in text.splitlines())  # as code, to Markdown
    images = {tag: events.Images(tag) for tag in tags["images"]}
    assert [image.step for image in images[KEY]] == list(range(EPOCHS))
    assert images[KEY][0].width > 500
    metrics = {tag: [each.value for each in events.Scalars(tag)] for tag in tags["scalars"]}
    assert "hp_metric" not in metrics
    return Seen(yaml.safe_load(text), metrics, {tag: len(each) for tag, each in images.items()})


def read_mlflow(trained: Trained) -> Seen:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"file:{trained.run_dir / 'mlruns'}")
    experiment = client.get_experiment_by_name("mine")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    metrics = {key: [m.value for m in client.get_metric_history(run.info.run_id, key)] for key in run.data.metrics}
    figures = {f"image_logs/{Path(each.path).name}" for each in client.list_artifacts(run.info.run_id, "image_logs")}
    names = {key: [Path(file.path).name for file in client.list_artifacts(run.info.run_id, key)] for key in figures}
    assert names[KEY] == ["0.png", "1.png"]
    return Seen(run.data.params, metrics, {key: len(files) for key, files in names.items()})


def read_wandb(trained: Trained) -> Seen:
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]

    (file,) = (trained.run_dir / "wandb").glob("offline-run-*/run-*.wandb")
    config, metrics, figures = {}, {}, {}
    for content in wandb_records(file.read_bytes()):
        record = Record.FromString(content)
        config |= {"".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.config.update}
        for item in record.history.item:
            (key, *within), value = item.nested_key, json.loads(item.value_json)
            if within == ["filenames"]:
                assert all((file.parent / "files" / each).is_file() for each in value)
                figures[key] = figures.get(key, 0) + len(value)
            elif not within:
                metrics.setdefault(key, []).append(value)
    return Seen(config, metrics, figures)


def wandb_records(content: bytes) -> Iterator[bytes]:
    """The file is a log of LevelDB: blocks of 32 KiB; chunks of checksum, length, and 1 whole, 2 to 4 parts."""
    assert content[:4] == b":W&B"
    place, parts = 7, b""
    while place < len(content):
        if 2**15 - place % 2**15 < 7:
            place += 2**15 - place % 2**15
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


def read_neptune(trained: Trained) -> Seen:
    from neptune.internal.operation import AddStrings, LogFloats, LogImages, Operation, UploadFile, UploadFileSet

    (file,) = (trained.run_dir / ".neptune" / "offline").glob("*/data-*.log")
    config, metrics, figures, uploads = {}, {}, {}, {}
    for line in file.read_text().splitlines():
        operation = Operation.from_dict(json.loads(line)["obj"])
        key = "/".join(operation.path)
        if key.startswith("training/hyperparams/"):
            config[operation.path[-1]] = operation.value  # pyright: ignore[reportAttributeAccessIssue]
        elif isinstance(operation, LogFloats):
            metrics.setdefault(key.removeprefix("training/"), []).extend(each.value for each in operation.values)
        elif isinstance(operation, LogImages):
            assert [each.step for each in operation.values] == [figures.get(key, 0)]
            figures[key] = figures.get(key, 0) + len(operation.values)
        elif isinstance(operation, UploadFile | UploadFileSet | AddStrings):
            uploads[key] = operation
    assert uploads["sys/tags"].values == {"mock", "metric-learning", "of-the-run"}
    assert uploads["dataset"].file_path == str(trained.table)
    assert uploads["code"].file_globs == [str(trained.run_dir.parent / "project" / "train.py")]
    assert uploads["transforms_train"].ext == "yaml"
    assert uploads["training/model/best"].file_path == str(trained.run_dir / "best.ckpt")
    return Seen(config, metrics, figures)


def read_clearml(trained: Trained) -> Seen:
    (folder,) = (path for path in (trained.run_dir / "offline").iterdir() if path.is_dir())
    assert folder.with_suffix(".zip").is_file()  # what Task.import_offline_session takes
    task = json.loads((folder / "task.json").read_text())
    assert (task["name"], task["project_name"]) == ("mine", "oml")
    config = {key: each["value"] for key, each in task["hyperparams"]["config"].items()}
    metrics, figures = {}, {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        for event in json.loads(line):
            key = f"{event['metric']}/{event['variant']}"
            if event["type"] == "training_debug_image":
                assert Path(event["url"]).is_file()
                figures[key] = figures.get(key, 0) + 1
            else:
                metrics.setdefault(event["metric"] if event["metric"] == event["variant"] else key, []).append(
                    event["value"]
                )
    return Seen(config, metrics, figures)


READERS: dict[str, Callable[[Trained], Seen]] = {
    "clearml": read_clearml,
    "csv": read_csv,
    "mlflow": read_mlflow,
    "neptune": read_neptune,
    "tensorboard": read_tensorboard,
    "wandb": read_wandb,
}
