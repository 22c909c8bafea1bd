"""The config of a re-ranker on top of a trained extractor."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from tests.lightning.tiny import Tiny

from oml.interfaces.models import IExtractor
from oml.lightning.pipelines.checks import POSTPROCESSOR_TRAINING, find_problems
from oml.lightning.pipelines.defaults import default_reranker_config, layers_to_compare
from oml.models import TimmExtractor, ViTExtractor

RESIZE = {"name": "norm_resize_torch", "args": {"im_size": 32}}


@pytest.mark.parametrize(
    ("extractor", "side", "layers"),
    [
        (TimmExtractor(None, "test_resnet"), 32, ["model.layer1", "model.layer2"]),
        (TimmExtractor(None, "efficientnet_lite0"), 64, ["model.blocks.2", "model.blocks.4"]),
        (TimmExtractor(None, "efficientnet_lite0"), 224, ["model.blocks.4", "model.bn2"]),
        (ViTExtractor(None, arch="vitt16", normalise_features=False), 64, []),
        (Tiny(), 20, []),
    ],
)
def test_layers_to_compare(extractor: IExtractor, side: int, layers: list[str]) -> None:
    assert layers_to_compare(extractor, torch.zeros(1, 3, side, side)) == layers


@pytest.mark.parametrize(
    ("extractor", "model"),
    [
        ({"name": "timm", "args": {"arch": "test_resnet", "weights": None}}, "cross_attention_siamese"),
        ({"name": "vit", "args": {"arch": "vitt16", "normalise_features": True, "weights": None}}, "concat_siamese"),
    ],
)
def test_a_complete_config(extractor: dict, model: str, mock_root: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    torch.save({}, tmp_path / "checkpoints/best.ckpt")
    augmented = {"name": "augs_torch", "args": {"im_size": 32}}
    run = {
        "seed": 3, "dataset_root": str(mock_root), "dataframe_name": "df.csv", "num_workers": 0, "cache_size": 0,
        "transforms_train": augmented, "transforms_val": RESIZE, "bs_val": 7, "sampler": None, "extractor": extractor,
        "metric_args": {"cmc_top_k": [1]}, "metric_for_checkpointing": "arcface_loss", "logger": {"name": "csv"},
    }  # fmt: skip
    OmegaConf.save(run, tmp_path / "config.yaml")
    config = default_reranker_config(tmp_path)
    assert find_problems(config, POSTPROCESSOR_TRAINING) == []
    made = config["postprocessor"]["args"]["pairwise_model"]
    assert made["name"] == model
    for each in (config["extractor"], made["args"]["extractor"]):
        assert each["args"]["weights"] == str(tmp_path / "checkpoints/best.ckpt")
    assert config["transforms_train"] == (RESIZE if model == "cross_attention_siamese" else augmented)
    assert (config["seed"], config["batch_size_inference"], config["metric_for_checkpointing"]) == (3, 7, "loss")
    n_instances = 2 if model == "cross_attention_siamese" else 4  # of all labels that there are
    assert config["sampler"] == {"name": "balance", "args": {"n_labels": 4, "n_instances": n_instances}}


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="config.yaml"):
        default_reranker_config(tmp_path)
