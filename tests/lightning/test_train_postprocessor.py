"""Training a re-ranking model by a config, on the mock data set."""

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from tests.lightning.tiny import TRANSFORMS, Tiny
from tests.processes import run_processes
from torch import Tensor

from oml.configs import ConfigError
from oml.datasets.base import DatasetQueryGallery, DatasetWithLabels
from oml.inference.flat import extract_embeddings
from oml.lightning.pipelines.train_postprocessor import (
    get_hash_of_extraction_stage_cfg,
    get_loaders_with_embeddings,
    postprocessor_training_pipeline,
)
from oml.lightning.pipelines.validate import extractor_validation_pipeline, postprocessor_of_run
from oml.metrics.table import read_metrics
from oml.models.meta.siamese import ConcatSiamese
from oml.registry.transforms import get_transforms_by_cfg

EXTRACTOR = {"name": f"{__name__}.Counting", "args": {"seed": 1}}
BACKBONE = {"name": "tests.lightning.tiny.Tiny", "args": {}}
SIAMESE = {"name": "concat_siamese", "args": {"extractor": BACKBONE, "mlp_hidden_dims": [8], "use_tta": True}}


@pytest.fixture(autouse=True)
def _lightning_warns_of_what_tests_want() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        yield


class Counting(Tiny):
    """Counts the images that it sees; draws as it is used."""

    n_seen = 0

    def forward(self, x: Tensor) -> Tensor:
        Counting.n_seen += len(x)
        return super().forward(x)


class Stopping(ConcatSiamese):
    """Ends a training at its n-th step."""

    def __init__(self, extractor: Any, stop_at: int | None = None) -> None:
        super().__init__(extractor, [8])
        self.stop_at = stop_at

    def forward(self, x1: Any, x2: Any) -> Any:
        if self.training and self.stop_at is not None:
            self.stop_at -= 1
            if self.stop_at < 0:
                raise InterruptedError
        return super().forward(x1, x2)


def postprocessor(model: dict[str, Any]) -> dict[str, Any]:
    args = {"top_n": 3, "pairwise_model": model, "transforms": TRANSFORMS, "num_workers": 0, "batch_size": 4}
    return {"name": "pairwise_images", "args": {**args, "verbose": False}}


def config(root: Path, **more: Any) -> dict[str, Any]:
    return {
        "seed": 1, "accelerator": "cpu", "devices": 1, "dataset_root": root, "dataframe_name": "df_with_category.csv",
        "num_workers": 0, "max_epochs": 2, "valid_period": 1, "embeddings_cache_dir": None, "extractor": EXTRACTOR,
        "transforms_extraction": TRANSFORMS, "transforms_train": {"name": "augs_torch", "args": {"im_size": 16}},
        "batch_size_inference": 5, "hard_pairs_mining": True,
        "sampler": {"name": "balance", "args": {"n_labels": 2, "n_instances": 2}},
        "optimizer": {"name": "adam", "args": {"lr": 0.01}}, "scheduling": None, "freeze_n_epochs": 0,
        "postprocessor": postprocessor(SIAMESE), "metric_args": {"cmc_top_k": [1], "verbose": False},
        "metric_for_checkpointing": "OVERALL/map/5", "logger": {"name": "csv", "args": {"name": "", "version": "log"}},
        "log_images": False,
        "lightning_trainer_extra_args": {"enable_progress_bar": False, "log_every_n_steps": 1}, **more,
    }  # fmt: skip


def weights(checkpoint: Path) -> dict[str, Tensor]:
    return torch.load(checkpoint, weights_only=True)["state_dict"]


def log_of(run: Path) -> pd.DataFrame:
    return pd.read_csv(run / "log" / "metrics.csv")


@pytest.mark.parametrize("more", [{}, {"ema_decay": 0.5, "early_stopping": {"patience": 1}}, {"freeze_n_epochs": 1}])
def test_a_run_and_its_best_checkpoint(more: dict[str, Any], mock_root: Path, tmp_path: Path) -> None:
    cfg = config(mock_root, run_dir=tmp_path, **more)
    report = postprocessor_training_pipeline(cfg)
    assert all(file.is_file() for file in report.files.values())
    table = read_metrics(tmp_path)
    (row,) = table[(table["category"] == "OVERALL") & (table["metric"] == "map")].to_dict("records")
    assert row["mean"] == pytest.approx(report.score)
    log = log_of(tmp_path)
    before = log["before_reranking/OVERALL/map/5"].dropna()
    assert len(before) == 2
    assert before.to_list() == pytest.approx([row["before"]] * 2)
    assert {"loss_step", "loss_epoch", "sign/map/5", "before_reranking/sign/map/5"} <= set(log.columns)

    fields = ("accelerator", "dataset_root", "dataframe_name", "num_workers", "extractor", "metric_args")
    _, (found,) = extractor_validation_pipeline(
        {key: cfg[key] for key in fields}
        | {"transforms_val": TRANSFORMS, "bs_val": 4, "postprocessor": postprocessor_of_run(tmp_path)}
    )
    assert found["OVERALL/map/5"] == pytest.approx(report.score)
    start = ConcatSiamese(Tiny(), [8]).state_dict()
    learned = weights(report.last)
    assert set(learned) == {f"model.{key}" for key in start}
    assert not torch.allclose(learned["model.extractor.layers.0.weight"], start["extractor.layers.0.weight"])


def test_embeddings_are_kept_and_change_nothing(mock_root: Path, tmp_path: Path) -> None:
    cfg, n_items = config(mock_root, embeddings_cache_dir=tmp_path / "kept"), len(pd.read_csv(mock_root / "df.csv"))
    Counting.n_seen, seen, found = 0, [], []
    for run in ("first", "second"):
        found.append(weights(postprocessor_training_pipeline({**cfg, "run_dir": tmp_path / run}).last))
        seen.append(Counting.n_seen)
    assert seen == [n_items, n_items]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    (file,) = (tmp_path / "kept").iterdir()
    assert file.name == f"embeddings_{get_hash_of_extraction_stage_cfg({**cfg, 'precision': 32})}.safetensors"


def test_a_run_that_was_interrupted_goes_on_as_if_it_had_not_been(mock_root: Path, tmp_path: Path) -> None:
    """There are two steps in an epoch; augmentations and dropout draw."""

    def run(name: str, stop_at: int | None, **more: Any) -> Path:
        model = {"name": f"{__name__}.Stopping", "args": {"extractor": BACKBONE, "stop_at": stop_at}}
        more = {"max_epochs": 3, "checkpoint_every_n_steps": 1, "postprocessor": postprocessor(model), **more}
        return postprocessor_training_pipeline(config(mock_root, run_dir=tmp_path / name, **more)).last

    whole = run("whole", None)
    with pytest.raises(InterruptedError):
        run("broken", 3)
    assert torch.load(tmp_path / "broken/checkpoints/last.ckpt", weights_only=True)["global_step"] == 3
    again = run("broken", None, resume=tmp_path / "broken")
    torch.testing.assert_close(weights(again), weights(whole), rtol=0, atol=0)
    losses = [log_of(tmp_path / name)["loss_epoch"].dropna().to_list() for name in ("whole", "broken")]
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 3


def test_what_items_hold(mock_root: Path, tmp_path: Path) -> None:
    """Boxes count; images of validation are not read, but the header of one without a box."""
    (tmp_path / "images").symlink_to(mock_root / "images", target_is_directory=True)
    table = pd.read_csv(mock_root / "df_with_bboxes.csv")
    first = table.index[table["split"] == "validation"][0]
    table.loc[first, ["x_1", "x_2", "y_1", "y_2"]] = float("nan")
    table.to_csv(tmp_path / "df.csv", index=False)
    train, validation = get_loaders_with_embeddings(config(tmp_path, dataframe_name="df.csv"))
    items, of_validation = next(iter(train)), next(iter(validation))
    assert items["input_tensors"].shape == (4, 3, 16, 16)
    assert "input_tensors" not in of_validation
    sides = [of_validation[key].tolist() for key in ("x1", "y1", "x2", "y2")]
    with Image.open(of_validation["paths"][0]) as image:
        assert [side[0] for side in sides] == [0, 0, *image.size]
    assert [side[1] for side in sides] == table[["x_1", "y_1", "x_2", "y_2"]].to_numpy()[first + 1].tolist()

    transform, extractor = get_transforms_by_cfg(TRANSFORMS), Tiny(seed=1)
    for loader, kind in ((train, DatasetWithLabels), (validation, DatasetQueryGallery)):
        rows = table[table["split"] == ("train" if loader is train else "validation")]
        expected = extract_embeddings(extractor, kind(rows, dataset_root=tmp_path, transform=transform))
        for batch in loader:
            torch.testing.assert_close(batch["embeddings"], expected[batch["idx"]])
    without_boxes = rows.drop(columns=["x_1", "x_2", "y_1", "y_2"])
    whole = extract_embeddings(extractor, DatasetWithLabels(without_boxes, None, transform, tmp_path))
    assert not torch.allclose(whole[1:], expected[1:], atol=1e-3)


def test_a_model_of_embeddings_reads_no_images(mock_root: Path, tmp_path: Path) -> None:
    linear = {"name": "linear_siamese", "args": {"feat_dim": 8, "identity_init": True}}
    args = {"top_n": 3, "pairwise_model": linear, "num_workers": 0, "batch_size": 4}
    of_embeddings = {"name": "pairwise_embeddings", "args": args}
    cfg = config(
        mock_root, run_dir=tmp_path, postprocessor=of_embeddings, transforms_train=None, num_workers=0,
        optimizer={"name": "sgd", "args": {"lr": 1.0}},
    )  # fmt: skip
    learned = weights(postprocessor_training_pipeline(cfg).last)["model.proj.weight"]
    assert not torch.allclose(learned, torch.eye(8), atol=1e-4)


@pytest.mark.parametrize(("is_identity", "is_worse"), [(True, False), (False, True)])
def test_re_ranking_that_makes_it_worse_is_told(
    is_identity: bool, is_worse: bool, mock_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = {"name": "linear_siamese", "args": {"feat_dim": 8, "identity_init": is_identity}}
    args = {"top_n": 9, "pairwise_model": model, "num_workers": 0, "batch_size": 4}
    with caplog.at_level("INFO"):
        postprocessor_training_pipeline(
            config(
                mock_root, run_dir=tmp_path, postprocessor={"name": "pairwise_embeddings", "args": args},
                transforms_train=None, max_epochs=1, optimizer={"name": "sgd", "args": {"lr": 1e-9}}, seed=4,
            )
        )  # fmt: skip
    (told,) = (each for each in caplog.messages if "before re-ranking" in each)
    assert ("Re-ranking makes it worse" in told) == is_worse


def test_further_tables(mock_root: Path, tmp_path: Path) -> None:
    tables = {"boxes": {"dataframe_name": "df_with_bboxes.csv"}}
    monitor = "boxes/OVERALL/map/5"
    report = postprocessor_training_pipeline(
        config(
            mock_root,
            run_dir=tmp_path,
            validation_tables=tables,
            metric_for_checkpointing=monitor,
            max_epochs=1,
            dataframe_name="df.csv",
        )
    )
    log = log_of(tmp_path)
    assert log[monitor].max() == pytest.approx(report.score)
    before = [log[f"before_reranking/{name}"].dropna().item() for name in ("OVERALL/map/5", monitor)]
    assert before[0] != before[1]


def _train(rank: int, root: str, folder: str) -> None:
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE="2")
    warnings.simplefilter("ignore")
    more = {"devices": 2, "optimizer": {"name": "sgd", "args": {"lr": 0.0}}, "freeze_n_epochs": 1}
    postprocessor_training_pipeline(config(Path(root), run_dir=Path(folder) / "two", **more))
    (Path(folder) / f"seen{rank}").write_text(str(Counting.n_seen))


def test_two_processes_share_the_work(mock_root: Path, tmp_path: Path) -> None:
    """Of a model that does not learn, so that the metrics are those of one process."""
    run_processes(_train, str(mock_root), str(tmp_path), folder=tmp_path)
    n_items = len(pd.read_csv(mock_root / "df.csv"))
    assert [int((tmp_path / f"seen{rank}").read_text()) for rank in (0, 1)] == [n_items // 2] * 2
    one = config(mock_root, run_dir=tmp_path / "one", optimizer={"name": "sgd", "args": {"lr": 0.0}})
    postprocessor_training_pipeline(one)
    tables = [pd.read_csv(tmp_path / run / "metrics.csv") for run in ("one", "two")]
    pd.testing.assert_frame_equal(tables[0], tables[1])
    assert (tables[0]["difference"].abs() > 0).any()


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
    turned["extractor"] = dict(reversed(EXTRACTOR.items()))
    assert get_hash_of_extraction_stage_cfg(turned) == found
    assert get_hash_of_extraction_stage_cfg(OmegaConf.create({**turned, "dataset_root": str(tmp_path)})) == found
    assert get_hash_of_extraction_stage_cfg({**cfg, "seed": 2, "max_epochs": 9}) == found

    changes: list[dict[str, Any]] = [
        {"precision": 16},
        {"dataset_root": mock_root},
        {"transforms_extraction": {"name": "norm_resize_torch", "args": {"im_size": 32}}},
        {"extractor": {**EXTRACTOR, "args": {"seed": 2}}},
    ]
    hashes = {found} | {get_hash_of_extraction_stage_cfg({**cfg, **change}) for change in changes}
    table.write_text(table.read_text().replace("circle_1", "circle_2"))
    hashes.add(get_hash_of_extraction_stage_cfg(cfg))
    assert len(hashes) == 6
    table.unlink()
    with pytest.raises(FileNotFoundError):
        get_hash_of_extraction_stage_cfg(cfg)
