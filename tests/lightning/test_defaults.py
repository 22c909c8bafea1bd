"""The config that a table gets whose owner has no wishes."""

import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image

from oml.datasets.table import TableError
from oml.lightning.pipelines.checks import TRAINING, find_problems
from oml.lightning.pipelines.defaults import default_config
from oml.lightning.pipelines.train import extractor_training_pipeline

MakeTable = Callable[..., Path]


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def make_table(tmp_path: Path) -> MakeTable:
    def make(
        train: Sequence[int],
        name: str = "df.csv",
        size: tuple[int, int] = (70, 100),
        validation: bool = True,
        **columns: Any,
    ) -> Path:
        """A table whose train labels have so many items; the validation has two labels with two items each."""
        Image.new("RGB", size).save(tmp_path / "image.png")
        labels = [label for label, n_items in enumerate(train) for _ in range(n_items)]
        n_val = 4 if validation else 0
        role = [None] * len(labels) + [True] * n_val
        df = pd.DataFrame(
            {
                "label": labels + [1000, 1000, 1001, 1001][:n_val],
                "path": "image.png",
                "split": ["train"] * len(labels) + ["validation"] * n_val,
                "is_query": role,
                "is_gallery": role,
            }
        ).assign(**columns)
        path = tmp_path / name
        df.to_parquet(path) if path.suffix == ".parquet" else df.to_csv(path, index=False)
        return path

    return make


def problems(config: dict[str, Any]) -> list[str]:
    return find_problems(config, TRAINING)


def test_few_images_per_label(make_table: MakeTable) -> None:
    config = default_config(make_table([3] * 100))
    assert config["sampler"]["args"] == {"n_labels": 21, "n_instances": 3}
    assert config["transforms_train"]["args"]["im_size"] == config["transforms_val"]["args"]["im_size"] == 96
    assert config["max_epochs"] == 75  # 300 steps, 4 an epoch
    assert config["valid_period"] == 15
    assert problems(config) == []


@pytest.mark.parametrize(
    ("train", "sampler"),
    [
        ([1, 1, 7], {"n_labels": 3, "n_instances": 2}),  # mostly single items
        ([9, 8], {"n_labels": 2, "n_instances": 4}),  # two labels
        ([12] * 40, {"n_labels": 16, "n_instances": 4}),
    ],
)
def test_batches_follow_the_labels(make_table: MakeTable, train: list[int], sampler: dict[str, int]) -> None:
    config = default_config(make_table(train))
    assert config["sampler"]["args"] == sampler
    assert problems(config) == []


@pytest.mark.parametrize(("size", "expected"), [((28, 28), 64), ((64, 90), 64), ((65, 90), 96), ((4000, 3000), 128)])
def test_image_size(make_table: MakeTable, size: tuple[int, int], expected: int) -> None:
    assert default_config(make_table([2, 2], size=size))["transforms_val"]["args"]["im_size"] == expected


def test_image_size_of_boxes(make_table: MakeTable) -> None:
    boxes: dict[str, Any] = {"x_1": 100, "x_2": 180, "y_1": 0, "y_2": 400}
    config = default_config(make_table([2, 2], size=(500, 500), **boxes))
    assert config["transforms_train"]["args"]["im_size"] == 96
    assert problems(config) == []


def test_parquet_and_categories(make_table: MakeTable) -> None:
    table = make_table([4] * 20, "df.parquet", category="animal")
    config = default_config(table)
    assert config["sampler"]["name"] == "balance"
    assert config["dataframe_name"] == "df.parquet"
    assert problems(config) == []


def test_root_elsewhere(make_table: MakeTable, tmp_path: Path) -> None:
    root = tmp_path
    (tables := tmp_path / "tables").mkdir()
    table = shutil.move(make_table([4] * 20), tables / "mine.csv")
    with pytest.raises(TableError, match=r"image\.png"):
        default_config(table)
    config = default_config(table, root)
    assert config["postfix"] == "mine"
    assert problems(config) == []


def test_a_longer_epoch_than_the_whole_is_to_be(make_table: MakeTable) -> None:
    config = default_config(make_table([2] * 40_000))
    assert config["max_epochs"] == 1
    assert config["lightning_trainer_extra_args"] == {"max_steps": 1000}


def test_errors(make_table: MakeTable, tmp_path: Path) -> None:
    with pytest.raises(TableError, match="oml split"):
        default_config(make_table([3, 3], validation=False))
    with pytest.raises(TableError, match="two labels or more"):
        default_config(make_table([3]))
    with pytest.raises(TableError, match="5 train rows of 5 labels"):
        default_config(make_table([1] * 5))
    with pytest.raises(FileNotFoundError):
        default_config(tmp_path / "no.csv")
    table = make_table([3, 3])
    (tmp_path / "image.png").write_bytes(b"no image")
    with pytest.raises(TableError, match=r"image\.png.* cannot be read"):
        default_config(table)


@pytest.mark.slow
def test_trains(mock_root: Path, tmp_path: Path) -> None:
    config = default_config(mock_root / "df.csv")
    short: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}
    config |= {
        "run_dir": str(tmp_path / "run"),
        "accelerator": "cpu",
        "max_epochs": 2,
        "valid_period": 1,
        "extractor": {"name": "timm", "args": {"arch": "test_resnet", "weights": None}},
        "lightning_trainer_extra_args": short,
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        report = extractor_training_pipeline(config)
    assert report.best.is_file()
    assert 0 <= report.score <= 1
