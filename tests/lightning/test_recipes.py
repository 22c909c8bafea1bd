"""Every packaged recipe is composed, checked and run for a step on a miniature data set, so that none of them rots."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from oml.configs import compose
from oml.const import CONFIGS_PATH
from oml.lightning.pipelines.checks import POSTPROCESSOR_TRAINING, find_problems
from oml.lightning.pipelines.predict import extractor_prediction_pipeline
from oml.lightning.pipelines.train import extractor_training_pipeline
from oml.lightning.pipelines.train_postprocessor import postprocessor_training_pipeline
from oml.lightning.pipelines.validate import extractor_validation_pipeline

FILES = {path.stem: path for path in sorted((CONFIGS_PATH / "recipes").glob("*.yaml"))}
RERANKERS = ["glyphs_reranker", "stir_postprocessor"]
VALIDATING = [name for name in FILES if name.endswith("_validate")]
PREDICTING = [name for name in FILES if name.endswith("_predict")]
TRAINING = [name for name in FILES if name not in VALIDATING + PREDICTING + RERANKERS]
HERE = {"accelerator": "cpu", "devices": 1, "precision": 32, "num_workers": 0}
SAMPLERS = {
    "balance": {"n_labels": 2, "n_instances": 2},
    "category_balance": {"n_labels": 2, "n_instances": 2, "n_categories": 2},
}


def values(config: DictConfig, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All values that are no mappings, by their dotted keys, as they stand in the file."""
    for key, value in config.items_ex(resolve=False):
        if isinstance(value, DictConfig) and not OmegaConf.is_interpolation(config, key):
            yield from values(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def small(name: str, mock_root: Path) -> list[str]:
    """Overrides by which a recipe runs here: random weights, the mock data set, images of 64 pixels, small batches."""
    recipe = OmegaConf.load(FILES[name])
    assert isinstance(recipe, DictConfig)
    changed: dict[str, Any] = dict(HERE)
    for key, _ in values(recipe):
        if key.endswith("weights"):
            changed[key] = "null"
        elif key.endswith(("im_size", "crop_size")):
            changed[key] = 64
        elif key in ("bs_val", "bs_train", "bs", "batch_size_inference"):
            changed[key] = 4
    if sampler := OmegaConf.select(recipe, "sampler.name"):
        changed |= {f"sampler.args.{key}": value for key, value in SAMPLERS[sampler].items()}
    if "dataset_root" in recipe:
        table = "df_with_category.csv" if sampler == "category_balance" else "df.csv"
        changed |= {"dataset_root": mock_root, "dataframe_name": table}
    if "bboxes.csv" in str(recipe.get("dataframe_name", "")) and "no_bboxes" not in recipe.dataframe_name:
        changed["dataframe_name"] = "df_with_bboxes.csv"
    if OmegaConf.select(recipe, "criterion.args.num_classes"):
        changed["criterion.args.num_classes"] = "null"
    if "logger" in recipe:
        changed["logger"] = "null"
    return [f"{key}={value}" for key, value in changed.items()]


@pytest.fixture(autouse=True)
def _lightning_warns_of_small_data() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        yield


@pytest.mark.parametrize("name", FILES)
def test_recipe_opens_with_its_command_figures_machine_and_time(name: str) -> None:
    text = FILES[name].read_text()
    head = text[: text.index("\n\n")]
    assert f"--recipe {name}" in head
    assert all(word in head for word in ("Expected:", "Machine and time:"))


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINING)
def test_recipe_trains(name: str, mock_root: Path, tmp_path: Path) -> None:
    overrides = [*small(name, mock_root), f"+run_dir={tmp_path}", "max_epochs=1", "valid_period=1"]
    config = compose(name, [*overrides, "+lightning_trainer_extra_args.max_steps=1"])
    extractor_training_pipeline(config)
    checkpoint = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", VALIDATING)
def test_recipe_validates(name: str, mock_root: Path) -> None:
    config = compose(name, small(name, mock_root))
    _, logs = extractor_validation_pipeline(config)
    assert "OVERALL/cmc/1" in logs[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", PREDICTING)
def test_recipe_predicts(name: str, mock_root: Path, tmp_path: Path) -> None:
    config = compose(name, [*small(name, mock_root), f"data_dir={mock_root}", f"save_dir={tmp_path}"])
    extractor_prediction_pipeline(config)
    predictions = json.loads((tmp_path / "predictions.json").read_text())
    assert len(predictions) == len(list(mock_root.rglob("*.jpg")))


@pytest.mark.slow
@pytest.mark.parametrize("name", RERANKERS)
def test_recipe_trains_a_reranker(name: str, mock_root: Path, tmp_path: Path) -> None:
    overrides = [*small(name, mock_root), f"+run_dir={tmp_path}", "max_epochs=1", "valid_period=1"]
    config = compose(name, [*overrides, "+lightning_trainer_extra_args.max_steps=1"])
    assert find_problems(config, POSTPROCESSOR_TRAINING) == []
    report = postprocessor_training_pipeline(config)
    checkpoint = torch.load(report.best, weights_only=True)
    assert checkpoint["global_step"] == 1
    assert all(key.startswith("model.") for key in checkpoint["state_dict"])
