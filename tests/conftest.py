"""Fixtures that many tests share."""

import os
from pathlib import Path

import pytest
import torch

# before anything imports oml: caches of the person who runs the tests are neither read nor filled
os.environ["XDG_CACHE_HOME"] = "/nonexistent/oml-tests-must-name-their-folders"


@pytest.fixture(scope="session", autouse=True)
def _two_threads() -> None:
    torch.set_num_threads(2)


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
