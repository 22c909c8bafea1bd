import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from oml.cli import main


@pytest.fixture
def oml(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run ``oml ARGUMENTS`` in this process: exit code, output, and what went to the error stream."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert isinstance(left.value.code, int)
        return left.value.code, out, err

    return run


@pytest.fixture
def here(tmp_path: Path, mock_root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with a table in data/, a module of one's own, and the config of a tiny training."""
    (tmp_path / "data").symlink_to(mock_root, target_is_directory=True)
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "of_a_user.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", sys.path[:])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        yield tmp_path
    sys.modules.pop("of_a_user", None)


TINY = """
defaults:
  - sampler: balance
  - optimizer: sgd

seed: 0
accelerator: cpu
devices: 1
dataset_root: data
dataframe_name: df.csv
num_workers: 0
cache_size: 0
transforms_train:
  name: norm_resize_torch
  args:
    im_size: 32
transforms_val: ${transforms_train}
extractor:
  name: timm
  args:
    arch: test_resnet
    weights: null
criterion:
  name: triplet_with_miner
  args:
    margin: 0.2
    miner:
      name: hard_triplets
bs_val: 16
max_epochs: 1
valid_period: 1
metric_args:
  cmc_top_k: [1]
metric_for_checkpointing: OVERALL/cmc/1
logger:
  name: csv
lightning_trainer_extra_args:
  enable_progress_bar: false
  enable_model_summary: false
postfix: tiny
"""

MODULE = """
import builtins
import torch

class Loss(torch.nn.Module):
    criterion_name = "mine"

    def __init__(self, fails_at: int = 0, error: str = "RuntimeError"):
        super().__init__()
        self.fails_at, self.error, self.step = fails_at, error, 0

    def forward(self, embeddings, labels):
        self.step += 1
        if self.step == self.fails_at:
            raise getattr(builtins, self.error)("it fails")
        return embeddings.pow(2).mean()
"""
