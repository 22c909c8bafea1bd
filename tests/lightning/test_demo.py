"""The demo, on few labels and steps, with the real backbone."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from oml.datasets.base import DatasetQueryGallery
from oml.datasets.glyphs import load_glyphs
from oml.inference.flat import extract_embeddings
from oml.lightning.pipelines.demo import DemoReport, demo_pipeline, load_demo_config
from oml.metrics.per_query import ranking_metrics
from oml.registry.models import get_extractor_by_cfg
from oml.registry.transforms import get_transforms_by_cfg
from oml.retrieval import RetrievalResults

SMALL = {"n_labels": 120, "n_labels_held_out": 20, "steps": 6, "image_size": 32}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "glyphs"


@pytest.fixture(scope="module")
def report(data: Path, tmp_path_factory: pytest.TempPathFactory) -> DemoReport:
    return demo_pipeline(load_demo_config(SMALL), tmp_path_factory.mktemp("run"), data, Console(quiet=True))


@pytest.mark.slow
def test_every_promised_file_is_there(report: DemoReport) -> None:
    assert set(report.files) == {
        "config",
        "checkpoint",
        "metrics",
        "embeddings",
        "results",
        "results before",
        "worst queries",
        "training log",
        "data set",
    }
    run = report.files["config"].parent
    assert {path.name for path in run.iterdir()} == {
        "config.yaml", "best.ckpt", "metrics.json", "embeddings.safetensors", "results.safetensors", "items.csv",
        "before", "worst_queries.png", "training",
    }  # fmt: skip
    assert {path.name for path in (run / "before").iterdir()} == {"results.safetensors", "items.csv"}
    assert OmegaConf.load(report.files["config"]) == load_demo_config(SMALL)
    with Image.open(report.files["worst queries"]) as picture:
        assert min(picture.size) > 400
    scores = pd.read_csv(report.files["training log"]).set_index("step")["OVERALL/cmc/1"].dropna()
    checkpoint = torch.load(report.files["checkpoint"], weights_only=True)
    assert scores[checkpoint["global_step"] - 1] == scores.max() > scores.min()
    assert "triplet_loss_epoch" in pd.read_csv(report.files["training log"]).columns


@pytest.mark.slow
def test_figures_are_told_before_and_after(report: DemoReport) -> None:
    figures = json.loads(report.files["metrics"].read_text())
    for part in ("before", "after"):
        assert set(figures[part]) == {"cmc@1", "cmc@5", "precision@5", "map@5"}
        for interval in figures[part].values():
            assert 0 <= interval["low"] < interval["mean"] < interval["high"] <= 1
    assert figures["after"]["cmc@1"]["mean"] > figures["before"]["cmc@1"]["mean"]
    assert figures["seed"] == 0
    assert {"torch", "timm", "oml"} <= set(figures["versions"])
    assert set(figures["seconds"]) == {"data", "evaluation before", "training", "evaluation after", "report"}


@pytest.mark.slow
def test_the_checkpoint_gives_the_embeddings_and_they_the_figures(report: DemoReport, data: Path) -> None:
    config = load_demo_config(SMALL)
    description = OmegaConf.to_container(config.extractor)
    description["args"]["weights"] = report.files["checkpoint"]  # pyright: ignore[reportCallIssue, reportArgumentType]
    extractor = get_extractor_by_cfg(description).to(memory_format=torch.channels_last)  # pyright: ignore[reportArgumentType, reportCallIssue]
    glyphs = load_glyphs(data, image_size=32, n_labels=120)
    transform = get_transforms_by_cfg(config.transforms)
    dataset = DatasetQueryGallery(glyphs.df_val, dataset_root=glyphs.root, transform=transform)
    saved = load_file(report.files["embeddings"])
    torch.testing.assert_close(extract_embeddings(extractor, dataset, 128), saved["embeddings"])
    assert saved["labels"].tolist() == glyphs.df_val["label"].tolist()

    distances = torch.cdist(saved["embeddings"], saved["embeddings"]).fill_diagonal_(torch.inf)
    cmc = (saved["labels"][distances.argmin(dim=1)] == saved["labels"]).float().mean().item()
    assert report.after["cmc@1"].mean == pytest.approx(cmc, abs=2e-3)  # cdist is less exact than our search


@pytest.mark.slow
def test_results_are_those_of_the_figures_and_of_the_images(report: DemoReport) -> None:
    for name, told in (("results before", report.before), ("results", report.after)):
        results = RetrievalResults.load(report.files[name])
        cmc = ranking_metrics(results, cmc_top_k=[1])["cmc"][1]
        assert cmc.mean().item() == pytest.approx(told["cmc@1"].mean)
        items = pd.read_csv(report.files[name].with_name("items.csv"))
        assert items["label"][results.query_ids.numpy()].tolist() == results.query_labels.tolist()
        assert all((report.files[name].parent / path).is_file() for path in items["path"])


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits(report: DemoReport, data: Path, tmp_path: Path) -> None:
    torch.rand(3)  # whatever the state of the global generator
    again = demo_pipeline(load_demo_config(SMALL), tmp_path / "again", data, Console(quiet=True))
    assert again.before == report.before
    assert again.after == report.after
    assert again.files["embeddings"].read_bytes() == report.files["embeddings"].read_bytes()
    config = load_demo_config({**SMALL, "seed": 1})
    other = demo_pipeline(config, tmp_path / "other", data, Console(quiet=True))
    assert other.before == report.before
    assert other.after != report.after


def test_no_label_has_two_parts(tmp_path: Path) -> None:
    from oml.lightning.pipelines.demo import _hold_out

    df = load_glyphs(tmp_path / "glyphs", image_size=32, n_labels=60).df_train
    assert _hold_out(df, 30, seed=0)[1]["label"].nunique() == 6  # a fifth at most
    train, held_out = _hold_out(df, 5, seed=0)
    assert set(train["label"]).isdisjoint(held_out["label"])
    assert len(train) + len(held_out) == len(df)
    assert held_out["label"].nunique() == 5
    assert held_out["is_query"].all()
    assert held_out["is_gallery"].all()


def test_unknown_fields_are_refused() -> None:
    with pytest.raises((ConfigKeyError, ConfigAttributeError), match="n_step"):
        load_demo_config({"n_step": 5})
