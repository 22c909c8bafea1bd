"""Fixtures that many tests share."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.web import WebServer

# before anything imports oml: caches of the person who runs the tests are neither read nor filled
os.environ["XDG_CACHE_HOME"] = os.environ["HF_HOME"] = "/nonexistent/oml-tests-must-name-their-folders"

#: of the environment: variables of launchers, and beginnings of those of loggers
LAUNCHERS = {"LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "RANK", "WORLD_SIZE"}
CLIENTS = ("CLEARML_", "MLFLOW_", "NEPTUNE_", "TRAINS_", "WANDB_")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """In tests so small, threads wait for each other and for other processes; tests of threads set their number."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """What launchers of processes and clients of loggers tell others in the environment ends with a test."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        if name in LAUNCHERS or name.startswith(CLIENTS):
            del os.environ[name]


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def mock_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mock data set: do not change its files."""
    from oml.utils.download_mock_dataset import download_mock_dataset

    root = tmp_path_factory.mktemp("mock") / "mock_dataset"
    download_mock_dataset(root)
    return root


@pytest.fixture(scope="session")
def _web_server() -> Iterator[WebServer]:
    server = WebServer()
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    with pytest.MonkeyPatch.context() as patch, server.http:
        patch.setenv("no_proxy", "127.0.0.1")
        thread.start()
        yield server
        server.http.shutdown()
        thread.join()


@pytest.fixture
def web(_web_server: WebServer) -> WebServer:
    """A web server on this machine, with nothing to answer yet."""
    _web_server.answers, _web_server.requests, _web_server.sent = {}, [], []
    return _web_server


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, not made yet, in place of the one in which checkpoints are kept."""
    monkeypatch.setattr("oml.utils.io.CKPT_SAVE_ROOT", tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


@pytest.fixture
def hub(web: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WebServer:
    """The server in the place of the Hugging Face Hub."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", web.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", web.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return web
