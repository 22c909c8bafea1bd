"""Loggers that lack something, that fail while a training runs, that go on with a run, and several at once."""

import json
import pickle
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import pytorch_lightning as pl
from matplotlib.figure import Figure
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.loggers.logger import DummyLogger, Logger
from tests.lightning.loggers import quiet, tiny_training

from oml.lightning.loggers.experiment import finish, log_experiment, remember, resume_arguments
from oml.lightning.loggers.figures import log_figure
from oml.lightning.loggers.files import CSVLogger, MLFlowLogger
from oml.lightning.loggers.resilience import attempt, keep_training
from oml.registry.loggers import LOGGERS_REGISTRY, get_logger, get_logger_by_cfg


@pytest.fixture(autouse=True)
def _at_home(tmp_path: Path) -> Iterator[None]:
    with quiet(tmp_path / "home"), pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        yield


class Breaks(pl.Callback):
    """Something happens to the logger after the first validation."""

    def __init__(self, *happens: Any) -> None:
        self.happens = list(happens)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking and self.happens:
            self.happens.pop(0)()


@contextmanager
def failures() -> Iterator[list[str]]:
    """What loggers warn of."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield texts
    texts += [str(each.message) for each in caught if "fails; the training goes on" in str(each.message)]


# What a logger lacks


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("wandb", "'wandb' needs a key: run `wandb login` once, or set WANDB_API_KEY"),
        ("neptune", "'neptune' needs a key: set NEPTUNE_API_TOKEN"),
        ("clearml", "'clearml' needs a server and its key: run `clearml-init` once"),
    ],
)
def test_without_a_key(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE")
    config = {"name": name, "args": {}}
    with pytest.raises(ValueError, match=text):
        get_logger_by_cfg(config)
    assert [problem.partition(": ")[0] for problem in LOGGERS_REGISTRY.problems(config)] == ["logger"]
    for variable in ("WANDB_API_KEY", "NEPTUNE_API_TOKEN", "CLEARML_API_ACCESS_KEY"):
        monkeypatch.setenv(variable, "0" * 40)
    assert LOGGERS_REGISTRY.problems(config) == []


@pytest.mark.parametrize(
    ("name", "args", "variable"),
    [
        ("wandb", {"offline": True}, ("WANDB_MODE", "offline")),
        ("neptune", {"mode": "offline"}, ("NEPTUNE_MODE", "debug")),
        ("clearml", {"offline": True}, ("CLEARML_OFFLINE_MODE", "1")),
    ],
)
def test_offline_needs_no_key(
    name: str, args: dict[str, Any], variable: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    assert isinstance(get_logger(name, **args), LOGGERS_REGISTRY[name])  # pyright: ignore[reportArgumentType]
    monkeypatch.setenv(*variable)
    assert isinstance(get_logger(name), LOGGERS_REGISTRY[name])  # pyright: ignore[reportArgumentType]


def test_keys_that_a_login_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home" / "clearml.conf").write_text("api {}")
    assert LOGGERS_REGISTRY.problems({"name": "clearml"}) == []
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai login user password {'0' * 40}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "https://api.wandb.ai")
    monkeypatch.delenv("WANDB_MODE")
    assert LOGGERS_REGISTRY.problems({"name": "wandb"}) == []


def test_without_a_server() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        uri = f"http://127.0.0.1:{server.server_port}"  # which is free afterwards
    with pytest.raises(ConnectionError, match=rf"'mlflow' needs its server, and {uri} does not answer \(ConnectionErr"):
        get_logger("mlflow", tracking_uri=uri)


def test_without_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oml.lightning.loggers.access.find_spec", lambda name: None)
    with pytest.raises(
        ModuleNotFoundError, match="'mlflow' needs the package mlflow-skinny: pip install mlflow-skinny"
    ):
        get_logger("mlflow")
    with pytest.raises(ModuleNotFoundError, match="pip install neptune"):
        get_logger("neptune")
    get_logger("csv", save_dir=".")


@pytest.mark.slow
def test_clients_are_imported_when_they_are_used() -> None:
    """But for wandb, which timm imports if it is there."""
    code = (
        "import sys, oml.lightning.loggers.experiment, oml.lightning.callbacks.metric; print('wandb' in sys.modules);"
        "import oml.registry.loggers; oml.registry.loggers.get_logger('neptune', mode='offline');"
        "print(sorted({'neptune', 'mlflow', 'clearml'} & sys.modules.keys()))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.split() == ["False", "[]"]


def test_a_logger_that_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "lightning_logs").write_text("a file in the place of the folder")
    with pytest.raises(OSError, match="lightning_logs"):
        log_experiment(CSVLogger(tmp_path), {}, tmp_path)
    with pytest.raises(ValueError, match="WandbLogger does not start: TypeError: .*projct"):
        log_experiment(get_logger("wandb", projct="typo", offline=True), {}, tmp_path)
    assert not (tmp_path / "logger.json").exists()


def test_relative_folders_are_within_the_run(tmp_path: Path) -> None:
    assert get_logger_by_cfg({"name": "csv"}, save_dir="run").save_dir == "run"
    assert get_logger_by_cfg({"name": "csv", "args": {"save_dir": "logs"}}, save_dir="run").save_dir == "run/logs"
    absolute = {"name": "csv", "args": {"save_dir": str(tmp_path)}}
    assert get_logger_by_cfg(absolute, save_dir="run").save_dir == str(tmp_path)
    assert get_logger_by_cfg({"name": "mlflow"}, save_dir="run").save_dir == str(tmp_path / "run" / "mlruns")


# A logger that fails while a training runs


def test_a_folder_that_goes_and_comes_back(mock_root: Path, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path / "logs", version="log")
    folder = Path(logger.log_dir)
    log_experiment(logger, {}, tmp_path)
    happens = Breaks(lambda: shutil.rmtree(folder), lambda: folder.mkdir())
    with failures() as caught:
        trainer = tiny_training(mock_root, logger, epochs=4, callbacks=[happens])
    assert trainer.global_step == 8
    assert caught[0].startswith("CSVLogger fails; the training goes on. It raised FileNotFoundError(2, ")
    assert len(caught) == 1
    rows = pd.read_csv(folder / "metrics.csv")
    assert set(rows["epoch"]) >= {2, 3}


class Mlflow(BaseHTTPRequestHandler):
    """As much of MLflow's server as a client needs to log metrics."""

    points: list[tuple[str, int]]

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
        self.points += [(each["key"], each.get("step", 0)) for each in body.get("metrics", ())]
        run = {"info": {"run_id": "1", "experiment_id": "0", "lifecycle_stage": "active"}, "data": {}}
        experiment = {"experiment_id": "0", "name": "mine", "lifecycle_stage": "active"}
        answer = json.dumps({"run": run, "experiment": experiment}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args: Any) -> None:
        pass


def test_a_server_that_goes_away(mock_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = type("Handler", (Mlflow,), {"points": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    try:
        logger = get_logger("mlflow", tracking_uri=f"http://127.0.0.1:{server.server_port}", experiment_name="mine")
        log_experiment(logger, {"postfix": "of-the-run"}, tmp_path)
        with failures() as caught:
            trainer = tiny_training(mock_root, logger, epochs=3, callbacks=[Breaks(stop)])
    finally:
        stop() if thread.is_alive() else None
    assert trainer.global_step == 6
    assert caught[0].startswith("MLFlowLogger fails; the training goes on. It raised MlflowException(")
    assert len(caught) == 1
    assert {step for key, step in handler.points if key == "triplet_loss_step"} == {0, 1}


class Failing(CSVLogger):
    error: BaseException = OSError(28, "No space left on device")

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise self.error


def test_other_errors_pass(tmp_path: Path) -> None:
    logger = Failing(tmp_path)
    with pytest.raises(OSError, match="No space left"):
        logger.log_metrics({})
    assert keep_training(keep_training(logger)) is logger
    with pytest.warns(UserWarning, match="Failing fails; the training goes on. It raised OSError.28, 'No space left"):
        logger.log_metrics({})
    logger.error = KeyboardInterrupt()
    logger = keep_training(logger)
    logger._oml_guard._rests_until = 0.0  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(KeyboardInterrupt):
        logger.log_metrics({})


def test_a_logger_that_fails_goes_to_other_processes(tmp_path: Path) -> None:
    logger = pickle.loads(pickle.dumps(keep_training(Failing(tmp_path))))
    with pytest.warns(UserWarning, match="Failing fails"):
        logger.log_metrics({})


def test_figures_that_fail(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path / "logs", version="log")
    (tmp_path / "logs").write_text("a file")
    with pytest.raises(OSError, match="logs"):
        attempt(logger, log_figure, logger, "image_logs/x", Figure(), 0)
    keep_training(logger)
    with pytest.warns(UserWarning, match="CSVLogger fails"):
        attempt(logger, log_figure, logger, "image_logs/x", Figure(), 0)


# Runs that resume


def test_rows_of_a_run_that_resumes(tmp_path: Path) -> None:
    first = CSVLogger(tmp_path)
    for step in range(6):
        first.log_metrics({"loss": float(step)}, step)
        first.save()
    remember(first, tmp_path)
    file = Path(first.log_dir) / "metrics.csv"
    with file.open("a") as opened:
        opened.write("7.")  # and then it was killed
    second = get_logger_by_cfg({"name": "csv"}, save_dir=tmp_path, **resume_arguments("csv", tmp_path))
    for step in range(4, 8):
        second.log_metrics({"loss": 10.0 + step, "map": 0.5}, step)
        second.save()
    rows = pd.read_csv(file)
    assert rows["step"].tolist() == list(range(8))
    assert rows["loss"].tolist() == [0.0, 1.0, 2.0, 3.0, 14.0, 15.0, 16.0, 17.0]
    assert rows["map"].isna().tolist() == [True] * 4 + [False] * 4


@pytest.mark.parametrize(
    ("name", "args"),
    [("tensorboard", {}), ("mlflow", {}), ("wandb", {"offline": True}), ("csv", {})],
)
def test_a_run_that_resumes_is_the_same_run(name: str, args: dict[str, Any], tmp_path: Path) -> None:
    config, versions = {"name": name, "args": args}, []
    assert resume_arguments(name, tmp_path) == {}
    for resume in (None, "last.ckpt"):
        logger = get_logger_by_cfg(config, save_dir=tmp_path, **resume_arguments(name, tmp_path))
        log_experiment(logger, {"resume": resume}, tmp_path)  # a parameter that changes
        logger.log_metrics({"loss": 1.0}, 0 if resume is None else 1)
        logger.save()
        logger.finalize("success")
        finish(logger)
        versions.append(logger.version)
    assert versions[0] == versions[1]
    assert len(versions) == 2
    other = "csv" if name != "csv" else "tensorboard"
    assert resume_arguments(other, tmp_path) == {}
    if isinstance(logger, MLFlowLogger):
        run = logger.experiment.get_run(str(logger.run_id))
        assert run.data.params["resume"] == "None"
        assert [each.step for each in logger.experiment.get_metric_history(str(logger.run_id), "loss")] == [0, 1]
    if name == "wandb":
        # the name has the second in which it began, and a number behind if there is one of that second
        assert len(list(tmp_path.glob(f"wandb/offline-run-*-{logger.version}*"))) == 2


def test_ids_of_services_that_are_online(tmp_path: Path) -> None:
    """They cannot be had here: what is remembered goes to the argument that they go on by."""
    (tmp_path / "logger.json").write_text('{"NeptuneLogger": {"with_id": "A-1"}, "ClearMLLogger": {"task_id": "f0"}}')
    for name, args in (("neptune", {"mode": "offline"}), ("clearml", {"offline": True})):
        resumed = get_logger_by_cfg({"name": name, "args": args}, **resume_arguments(name, tmp_path))
        assert resumed.version in ("A-1", "f0")


# Several at once, and loggers of users


def test_several_loggers_at_once(mock_root: Path, tmp_path: Path) -> None:
    loggers = [CSVLogger(tmp_path, name="csv", version=""), TensorBoardLogger(tmp_path, name="tb", version="")]
    before = plt.get_fignums()
    tiny_training(mock_root, loggers, epochs=1, log_images=True)
    assert list((tmp_path / "csv").rglob("*.png"))
    assert "OVERALL/map/5" in pd.read_csv(tmp_path / "csv" / "metrics.csv")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tags: Any = EventAccumulator(str(tmp_path / "tb")).Reload().Tags()
    assert tags["images"] == ["image_logs/top 5 worst by OVERALL_map_5"]
    assert "OVERALL/map/5" in tags["scalars"]
    assert plt.get_fignums() == before


def test_a_logger_of_a_user(tmp_path: Path) -> None:
    class Mine(DummyLogger):
        pass

    class Other(Logger):
        name = version = None  # pyright: ignore[reportAssignmentType]
        log_metrics = log_hyperparams = None  # pyright: ignore[reportAssignmentType]

    seen = []
    log_figure(Mine(), "image_logs/x", Figure(), 3)  # as its base does
    with pytest.raises(TypeError, match="does not know how to log 'image_logs/x' of step 3 to Other: register"):
        log_figure(Other(), "image_logs/x", Figure(), 3)
    log_figure.register(Other, lambda logger, key, figure, step: seen.append((key, step)))
    log_figure(Other(), "image_logs/x", Figure(), 3)
    assert seen == [("image_logs/x", 3)]
