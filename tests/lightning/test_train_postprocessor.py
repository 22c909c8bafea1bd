"""The config's surface of training a re-ranking model."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from oml.configs import ConfigError
from oml.lightning.pipelines.train_postprocessor import (
    get_hash_of_extraction_stage_cfg,
    postprocessor_training_pipeline,
)

TRANSFORMS = {"name": "norm_resize_torch", "args": {"im_size": 16}}
EXTRACTOR = {"name": "resnet", "args": {"arch": "resnet18", "weights": None, "gem_p": None, "remove_fc": True,
                                        "normalise_features": True}}  # fmt: skip


def config(root: Path, **more: Any) -> dict[str, Any]:
    siamese = {"name": "concat_siamese", "args": {"extractor": EXTRACTOR, "mlp_hidden_dims": [8]}}
    postprocessor = {
        "name": "pairwise_images",
        "args": {"top_n": 2, "pairwise_model": siamese, "transforms": TRANSFORMS, "num_workers": 0, "batch_size": 4},
    }
    return {
        "seed": 1, "accelerator": "cpu", "devices": 1, "precision": 16, "dataset_root": root,
        "dataframe_name": "df_with_category.csv", "num_workers": 0, "max_epochs": 1, "valid_period": 1,
        "embeddings_cache_dir": None, "extractor": EXTRACTOR, "transforms_extraction": TRANSFORMS,
        "transforms_train": TRANSFORMS, "batch_size_inference": 8, "hard_pairs_mining": True,
        "sampler": {"name": "category_balance", "args": {"n_categories": 1, "n_labels": 2, "n_instances": 2}},
        "optimizer": {"name": "adam", "args": {"lr": 0.001}}, "scheduling": None, "freeze_n_epochs": 0,
        "postprocessor": postprocessor, "metric_args": {"cmc_top_k": [1]},
        "metric_for_checkpointing": "OVERALL/cmc/1", "logger": {"name": "csv"}, **more,
    }  # fmt: skip


def test_a_good_config_is_told_that_this_is_to_come(
    mock_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotImplementedError, match="nothing wrong with the config.*issue 9"):
        postprocessor_training_pipeline(config(mock_root))
    assert list(tmp_path.iterdir()) == []


def test_all_findings_at_once(mock_root: Path) -> None:
    bad = config(mock_root, smpler=None, max_epochs=0, optimizer={"name": "adma", "args": {"lr": 0.1}})
    with pytest.raises(ConfigError) as error:
        postprocessor_training_pipeline(bad)
    for text in ("smpler", "max_epochs", "adam"):
        assert any(text in finding for finding in error.value.findings), text


def test_the_hash_is_of_content_and_not_of_order(mock_root: Path, tmp_path: Path) -> None:
    table = tmp_path / "df_with_category.csv"
    table.write_bytes((mock_root / table.name).read_bytes())
    cfg = config(tmp_path)
    found = get_hash_of_extraction_stage_cfg(cfg)
    assert len(found) == 32
    assert int(found, 16)

    turned = {key: cfg[key] for key in reversed(cfg)}
    turned["extractor"] = {"args": dict(reversed(EXTRACTOR["args"].items())), "name": "resnet"}  # pyright: ignore
    assert get_hash_of_extraction_stage_cfg(turned) == found
    assert get_hash_of_extraction_stage_cfg(OmegaConf.create({**turned, "dataset_root": str(tmp_path)})) == found
    assert get_hash_of_extraction_stage_cfg({**cfg, "seed": 2, "max_epochs": 9}) == found

    changes: list[dict[str, Any]] = [
        {"precision": 32},
        {"dataset_root": mock_root},
        {"transforms_extraction": {"name": "norm_resize_torch", "args": {"im_size": 32}}},
        {"extractor": {"name": "resnet", "args": {**EXTRACTOR["args"], "normalise_features": False}}},
    ]
    hashes = {found} | {get_hash_of_extraction_stage_cfg({**cfg, **change}) for change in changes}
    table.write_text(table.read_text().replace("circle_1", "circle_2"))
    hashes.add(get_hash_of_extraction_stage_cfg(cfg))
    assert len(hashes) == 6
    table.unlink()
    with pytest.raises(FileNotFoundError):
        get_hash_of_extraction_stage_cfg(cfg)
