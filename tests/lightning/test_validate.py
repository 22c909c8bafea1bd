"""Validation by a config, on the mock data set with a tiny network."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests.lightning.tiny import TRANSFORMS, Tiny

from oml.configs import ConfigError
from oml.datasets.base import DatasetQueryGallery
from oml.datasets.table import TableError
from oml.inference.flat import extract_embeddings, inference_on_images
from oml.interfaces.models import IExtractor
from oml.lightning.callbacks.metric import MetricValCallback
from oml.lightning.pipelines.checks import VALIDATION, find_problems
from oml.lightning.pipelines.predict import extractor_prediction_pipeline, prediction_config_of
from oml.lightning.pipelines.train import extractor_training_pipeline
from oml.lightning.pipelines.validate import extractor_validation_pipeline, validation_config_of, validation_parts
from oml.lightning.quiet import quiet_lightning
from oml.metrics.embeddings import EmbeddingMetrics
from oml.models.meta.projection import ExtractorWithMLP
from oml.registry.models import EXTRACTORS_REGISTRY
from oml.registry.transforms import get_transforms_by_cfg
from oml.utils.download_mock_dataset import download_mock_dataset

METRICS = {"cmc_top_k": [1, 2], "precision_top_k": [2], "map_top_k": [2], "fmr_vals": [0.5], "pfc_variance": [0.5]}


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXTRACTORS_REGISTRY, "tiny", Tiny)


def config(root: Path, table: str = "df.csv", **more: Any) -> dict[str, Any]:
    return {
        "accelerator": "cpu", "devices": 1, "precision": 32, "dataset_root": root, "dataframe_name": table, "bs_val": 5,
        "num_workers": 0, "transforms_val": TRANSFORMS, "extractor": {"name": "tiny", "args": {}},
        "metric_args": METRICS, **more,
    }  # fmt: skip


def directly(root: Path, table: str = "df.csv", extractor: IExtractor | None = None, **args: Any) -> dict[str, float]:
    """The metrics without Lightning and configs, by their logged names."""
    _, rows = download_mock_dataset(root, df_name=table, check_md5=False)
    dataset = DatasetQueryGallery(rows, None, root, get_transforms_by_cfg(TRANSFORMS))
    metric = EmbeddingMetrics(verbose=False, categories_key=dataset.categories_key, **{**METRICS, **args})
    metric.setup(len(dataset))
    batch = {key: [dataset[i][key] for i in range(len(dataset))] for key in dataset[0] if key != "input_tensors"}
    metric.update_data({**batch, "embeddings": extract_embeddings(extractor or Tiny(), dataset, batch_size=12)})
    metric.compute_metrics()
    return {
        f"{category}/{name}/{k}": value.item()
        for category, by_metric in metric.metrics.items()
        for name, by_k in by_metric.items()
        for k, value in by_k.items()
    }


def callbacks_of(trainer: pl.Trainer) -> list[MetricValCallback]:
    return [each for each in trainer.callbacks if isinstance(each, MetricValCallback)]  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("table", ["df.csv", "df_with_bboxes.csv", "df_with_category.csv"])
def test_metrics_are_those_of_the_metric_itself(table: str, mock_root: Path, tmp_path: Path) -> None:
    trainer, logs = extractor_validation_pipeline(config(mock_root, table, run_dir=tmp_path / "run"))
    wanted = directly(mock_root, table)
    assert len(logs) == 1
    assert logs[0] == pytest.approx(wanted)
    assert 0 < wanted["OVERALL/map/2"] < 1
    assert ("sign/cmc/1" in wanted) == (table == "df_with_category.csv")
    (callback,) = callbacks_of(trainer)
    metric = callback.metric
    assert isinstance(metric, EmbeddingMetrics)
    figure = metric.get_plot_for_worst_queries("OVERALL/map/2", n_queries=2, n_instances=2)
    assert len(figure.axes) > 4

    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["metrics.csv", "metrics.json"]
    written = json.loads((tmp_path / "run" / "metrics.json").read_text())["metrics"]
    assert {name: row["mean"] for name, row in written.items()} == pytest.approx(wanted)


def test_nothing_is_written_without_a_folder(
    mock_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    extractor_validation_pipeline(OmegaConf.create({**config(mock_root), "dataset_root": str(mock_root)}))
    assert list(tmp_path.iterdir()) == []
    assert f"OVERALL/cmc/1 {'':9}{directly(mock_root)['OVERALL/cmc/1']:.4f}" in capsys.readouterr().out


def test_several_tables_in_one_run(mock_root: Path, tmp_path: Path) -> None:
    table = pd.read_csv(mock_root / "df_with_category.csv")
    table = table[table["split"] == "validation"]
    other = table[table["label"] != table["label"].max()].assign(path=[str(mock_root / p) for p in table["path"][:9]])
    (tmp_path / "other").mkdir()
    other.to_csv(tmp_path / "other" / "df.csv", index=False)
    tables = {"boxes": {"dataframe_name": "df_with_bboxes.csv"}, "other": {"dataset_root": tmp_path / "other"}}
    trainer, logs = extractor_validation_pipeline(config(mock_root, validation_tables=tables, run_dir=tmp_path / "run"))
    wanted = [
        directly(mock_root),
        {f"boxes/{name}": value for name, value in directly(mock_root, "df_with_bboxes.csv").items()},
        {f"other/{name}": value for name, value in directly(tmp_path / "other").items()},
    ]
    assert [callback.name for callback in callbacks_of(trainer)] == ["", "boxes", "other"]
    assert len(logs) == 3
    for found, expected in zip(logs, wanted, strict=True):
        assert found == pytest.approx(expected)
    assert "other/sign/cmc/1" in wanted[2]
    maps = [next(value for name, value in each.items() if name.endswith("OVERALL/map/2")) for each in wanted]
    assert len(set(maps)) == 3

    rows = pd.read_csv(tmp_path / "run" / "metrics.csv", keep_default_na=False)
    assert rows["table"].unique().tolist() == ["", "boxes", "other"]
    assert rows["mean"].astype(float).tolist() == pytest.approx([value for each in wanted for value in each.values()])


def test_parts_for_a_data_set_that_is_there(mock_root: Path) -> None:
    dataset = DatasetQueryGallery(download_mock_dataset(mock_root)[1], None, mock_root)
    loaders, callbacks = validation_parts(config(mock_root, validation_tables={"again": {}}), dataset)
    assert loaders[0].dataset is dataset
    assert loaders[1].dataset is not dataset
    assert len(loaders[1].dataset) == 12  # pyright: ignore[reportArgumentType]
    assert [loader.batch_size for loader in loaders] == [5, 5]
    assert [(callback.name, callback.loader_idx) for callback in callbacks] == [("", 0), ("again", 1)]


def test_sequences_of_the_table_are_used(mock_root: Path, tmp_path: Path) -> None:
    table = pd.read_csv(mock_root / "df.csv")
    table["path"] = [str(mock_root / path) for path in table["path"]]
    table["sequence"] = (
        table["path"].str.extract(r"_(\d)\.jpg")[0].replace({"1": "a", "2": "a"})
    )  # query and 1st gallery
    table.to_csv(tmp_path / "df.csv", index=False)
    _, logs = extractor_validation_pipeline(config(tmp_path))
    assert logs[0] == pytest.approx(directly(tmp_path, sequence_key="sequence"))
    assert logs[0] != pytest.approx(directly(mock_root))


def test_arguments_of_the_metric_come_first(mock_root: Path) -> None:
    args = {**METRICS, "categories_key": None, "extra_keys": []}
    _, logs = extractor_validation_pipeline(config(mock_root, "df_with_category.csv", metric_args=args))
    assert logs[0] == pytest.approx(directly(mock_root))


def test_pictures_go_to_tensorboard_by_default(mock_root: Path, tmp_path: Path) -> None:
    one_picture = {"cmc_top_k": [], "precision_top_k": [], "map_top_k": [2]}
    extractor_validation_pipeline(config(mock_root, log_images=True, run_dir=tmp_path, metric_args=one_picture))
    (events,) = tmp_path.rglob("events.out.*")
    log = EventAccumulator(str(events), size_guidance={"images": 0}).Reload()
    assert "image_logs/top 5 worst by OVERALL_map_2" in log.Tags()["images"]
    assert log.Scalars("OVERALL/map/2")[-1].value == pytest.approx(directly(mock_root)["OVERALL/map/2"])


def test_a_table_without_validation_rows(mock_root: Path, tmp_path: Path) -> None:
    table = pd.read_csv(mock_root / "df.csv")
    table["path"] = [str(mock_root / path) for path in table["path"]]
    table[table["split"] == "train"].to_csv(tmp_path / "df.csv", index=False)
    with pytest.raises(TableError, match="'validation'.*has none"):
        validation_parts(config(tmp_path))
    with pytest.raises(ConfigError, match="validation"):
        extractor_validation_pipeline(config(tmp_path, run_dir=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def trained(mock_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short training of an extractor within another one."""
    run = tmp_path_factory.mktemp("run")
    own: dict[str, Any] = {
        "seed": 1, "max_epochs": 2, "valid_period": 1, "transforms_train": TRANSFORMS, "cache_size": 0,
        "sampler": {"name": "balance", "args": {"n_labels": 2, "n_instances": 3}},
        "criterion": {"name": "triplet_with_miner", "args": {"margin": None, "miner": {"name": "all_triplets"}}},
        "optimizer": {"name": "sgd", "args": {"lr": 1.0}}, "metric_for_checkpointing": "OVERALL/map/2",
        "logger": {"name": "csv"}, "lightning_trainer_extra_args": {"max_steps": 3},
    }  # fmt: skip
    inner = {"name": "tiny", "args": {"weights": str(run / "first.pt")}}
    torch.save(Tiny(seed=1).state_dict(), run / "first.pt")
    extractor = {
        "name": "extractor_with_mlp",
        "args": {"mlp_features": [4], "train_backbone": True, "extractor": inner},
    }
    with pytest.MonkeyPatch.context() as patch, quiet_lightning():
        patch.setitem(EXTRACTORS_REGISTRY, "tiny", Tiny)
        extractor_training_pipeline({**config(mock_root), **own, "extractor": extractor, "run_dir": run})
    (run / "first.pt").unlink()
    return run


def trained_extractor(run: Path) -> ExtractorWithMLP:
    extractor = ExtractorWithMLP(Tiny(), [4])
    state = torch.load(run / "checkpoints" / "best.ckpt", weights_only=False)["state_dict"]
    extractor.load_state_dict({name.removeprefix("model."): each for name, each in state.items() if "model." in name})
    return extractor


def test_a_run_is_validated_with_its_best_checkpoint(trained: Path, mock_root: Path) -> None:
    own = validation_config_of(trained)
    _, logs = extractor_validation_pipeline(own)
    wanted = directly(mock_root, extractor=trained_extractor(trained))
    assert logs[0] == pytest.approx(wanted)
    assert wanted != pytest.approx(directly(mock_root, extractor=ExtractorWithMLP(Tiny(seed=1), [4])))
    of_training = json.loads((trained / "metrics.json").read_text())["metrics"]
    assert {name: row["mean"] for name, row in of_training.items()} == pytest.approx(wanted)
    assert find_problems(own, VALIDATION) == []


def test_a_run_predicts_with_its_best_checkpoint(trained: Path, mock_root: Path, tmp_path: Path) -> None:
    own = prediction_config_of(trained)
    own["data_dir"] = str(mock_root / "images")
    report = extractor_prediction_pipeline(own)
    assert report.files == [trained / "predictions" / "predictions.json"]
    found = json.loads(report.files[0].read_text())
    extractor = trained_extractor(trained)
    wanted = inference_on_images(extractor, list(found), get_transforms_by_cfg(TRANSFORMS), 0, batch_size=5)
    assert len(found) == 36
    torch.testing.assert_close(torch.tensor(list(found.values())), wanted)


def test_a_folder_that_is_no_run(trained: Path, tmp_path: Path) -> None:
    for of_run in (validation_config_of, prediction_config_of):
        with pytest.raises(FileNotFoundError, match=r"config\.yaml"):
            of_run(tmp_path)
    (tmp_path / "config.yaml").write_bytes((trained / "config.yaml").read_bytes())
    with pytest.raises(FileNotFoundError, match=r"best\.ckpt"):
        validation_config_of(tmp_path)


SCRIPT = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.lightning.test_validate import config
from tests.lightning.tiny import Tiny
from oml.lightning.pipelines.validate import extractor_validation_pipeline
from oml.registry.models import EXTRACTORS_REGISTRY

if __name__ == "__main__":
    EXTRACTORS_REGISTRY["tiny"] = Tiny
    extractor_validation_pipeline(config(Path(sys.argv[1]), devices=2, run_dir=sys.argv[2]))
"""


@pytest.mark.slow
def test_two_processes_find_what_one_does(mock_root: Path, tmp_path: Path) -> None:
    (tmp_path / "validate.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "validate.py"), str(mock_root), str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run(command, env=environment, check=True, timeout=200)
    written = json.loads((tmp_path / "run" / "metrics.json").read_text())["metrics"]
    assert {name: row["mean"] for name, row in written.items()} == pytest.approx(directly(mock_root))
