"""Validation by a config that re-ranks, on the mock data set with tiny networks."""

import json
import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from tests.lightning.test_validate import callbacks_of, config, directly
from tests.lightning.tiny import TRANSFORMS, Tiny

from oml.configs import ConfigError
from oml.interfaces.models import IPairwiseModel
from oml.lightning.pipelines import validate
from oml.lightning.pipelines.checks import VALIDATION, find_problems
from oml.lightning.pipelines.predict import prediction_config_of
from oml.lightning.pipelines.validate import (
    extractor_validation_pipeline,
    postprocessor_of_run,
    validation_config_of,
)
from oml.metrics.embeddings import EmbeddingMetrics
from oml.registry.models import EXTRACTORS_REGISTRY, get_pairwise_model_by_cfg
from oml.registry.postprocessors import get_postprocessor_by_cfg
from oml.retrieval.postprocessors.base import Postprocessor
from oml.retrieval.postprocessors.chain import Chain

SIAMESE = {"name": "trivial_distance_siamese", "args": {"extractor": {"name": "tiny", "args": {"seed": 2}}}}
LINEAR = {"name": "linear_siamese", "args": {"feat_dim": 8, "identity_init": True}}
CONCAT = {
    "name": "concat_siamese",
    "args": {"mlp_hidden_dims": [4], "weights": None, "extractor": {"name": "tiny", "args": {"weights": "gone.pt"}}},
}
RERANKER: dict[str, Any] = {
    "name": "pairwise_images",
    "args": {"top_n": 3, "pairwise_model": SIAMESE, "transforms": TRANSFORMS, "batch_size": 5, "verbose": False},
}
BY_EMBEDDINGS: dict[str, Any] = {
    "name": "pairwise_embeddings",
    "args": {"top_n": 4, "pairwise_model": LINEAR, "num_workers": 0, "batch_size": 5},
}


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXTRACTORS_REGISTRY, "tiny", Tiny)


def with_args(postprocessor: dict[str, Any], **args: Any) -> dict[str, Any]:
    return {**postprocessor, "args": {**postprocessor["args"], **args}}


def built() -> Postprocessor:
    postprocessor = get_postprocessor_by_cfg(RERANKER)
    assert isinstance(postprocessor, Postprocessor)
    return postprocessor


@pytest.mark.parametrize("table", ["df.csv", "df_with_bboxes.csv"])
def test_before_and_after(table: str, mock_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = {"again": {"dataframe_name": "df_with_category.csv"}}
    trainer, logs = extractor_validation_pipeline(
        config(mock_root, table, postprocessor=RERANKER, validation_tables=more, run_dir=tmp_path)
    )
    before, after = directly(mock_root, table), directly(mock_root, table, postprocessor=built())
    assert logs[0] == pytest.approx(after)
    assert after["OVERALL/map/2"] != pytest.approx(before["OVERALL/map/2"])
    again = directly(mock_root, "df_with_category.csv", postprocessor=built())
    assert logs[1] == pytest.approx({f"again/{name}": value for name, value in again.items()})
    first, second = (callback.metric for callback in callbacks_of(trainer))
    assert isinstance(first, EmbeddingMetrics)
    assert isinstance(second, EmbeddingMetrics)
    assert first.postprocessor is second.postprocessor  # one network
    assert ("x1" in first.acc.storage) == (table == "df_with_bboxes.csv")

    written = json.loads((tmp_path / "metrics.json").read_text())["metrics"]["OVERALL/map/2"]
    assert written["mean"] == pytest.approx(after["OVERALL/map/2"])
    assert written["before"] == pytest.approx(before["OVERALL/map/2"])
    assert written["difference"] == pytest.approx(written["mean"] - written["before"])
    assert {"difference_low", "difference_high", "p_value"} <= written.keys()
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("  OVERALL/map/2"))
    assert row.split()[1:3] == [f"{before['OVERALL/map/2']:.4f}", f"{after['OVERALL/map/2']:.4f}"]


def test_boxes_count(mock_root: Path) -> None:
    """The model of the extractor itself changes nothing, if it sees what that has seen."""
    own = {"name": "trivial_distance_siamese", "args": {"extractor": {"name": "tiny"}}}
    table = "df_with_bboxes.csv"
    _, logs = extractor_validation_pipeline(
        config(mock_root, table, postprocessor=with_args(RERANKER, pairwise_model=own))
    )
    assert logs[0] == pytest.approx(directly(mock_root, table))
    assert logs[0] != pytest.approx(directly(mock_root))


@pytest.mark.parametrize("precision", [32, "bf16-mixed"])
def test_by_embeddings_at_a_precision(precision: Any, mock_root: Path) -> None:
    wanted = extractor_validation_pipeline(config(mock_root, precision=precision))[1]
    found = extractor_validation_pipeline(config(mock_root, precision=precision, postprocessor=BY_EMBEDDINGS))[1]
    assert found[0] == pytest.approx(wanted[0])


def test_networks_go_where_the_module_is() -> None:
    first, second = built(), built()
    networks = [first.model, second.model]  # pyright: ignore[reportAttributeAccessIssue]
    callback = validate._OnDevice(Chain([first, Chain([second])]))
    module = pl.LightningModule().to("meta")
    callback.on_validation_start(pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu"), module)
    for network in networks:
        assert {parameter.device.type for parameter in network.parameters()} == {"meta"}
    assert validate._OnDevice(None).networks == []


@pytest.mark.parametrize(
    ("precision", "given", "wanted"),
    [
        ("16-mixed", RERANKER, True),
        (32, RERANKER, False),
        ("bf16-mixed", RERANKER, False),
        ("16-mixed", with_args(RERANKER, use_fp16=False), False),
    ],
)
def test_float16_is_that_of_the_trainer_unless_said_otherwise(precision: Any, given: Any, wanted: bool) -> None:
    assert validate._postprocessor(deepcopy(given), precision).use_fp16 is wanted
    chain = {"name": "chain", "args": {"postprocessors": [deepcopy(given)]}}
    assert validate._postprocessor(chain, precision).postprocessors[0].use_fp16 is wanted


@pytest.mark.parametrize(
    ("postprocessor", "text"),
    [
        (with_args(RERANKER, top_n=1), "postprocessor: PairwiseImagesPostprocessor needs a whole number of 2 or more"),
        (with_args(RERANKER, topn=3), "'topn'; did you mean top_n"),
        (with_args(RERANKER, pairwise_model={"name": "concat_siames"}), "did you mean concat_siamese"),
        (
            with_args(RERANKER, pairwise_model={**CONCAT, "args": {**CONCAT["args"], "weights": "no.pt"}}),
            "postprocessor.args.pairwise_model.args.weights",
        ),
        (with_args(RERANKER, transforms={"name": "norm_resize_torc"}), "did you mean norm_resize_torch"),
        (
            with_args(BY_EMBEDDINGS, pairwise_model={**LINEAR, "args": {"feat_dim": 9, "identity_init": True}}),
            "pairwise_model.args.feat_dim: there are 8 numbers in an embedding, got 9.",
        ),
        ({"name": "pairwise_image"}, "did you mean pairwise_images"),
    ],
)
def test_what_is_wrong_is_found_before_anything_is_loaded(postprocessor: Any, text: str, mock_root: Path) -> None:
    with pytest.raises(ConfigError) as error:
        extractor_validation_pipeline(config(mock_root, postprocessor=postprocessor))
    assert text in str(error.value)


def reranker_run(folder: Path, mock_root: Path, model: dict[str, Any]) -> Path:
    """A folder as a training of a re-ranker leaves it, with random weights."""
    (folder / "checkpoints").mkdir(parents=True)
    postprocessor = BY_EMBEDDINGS if model is LINEAR else with_args(RERANKER, pairwise_model=model)
    fields = {
        **{key: value for key, value in config(mock_root).items() if key not in ("transforms_val", "bs_val")},
        "dataset_root": str(mock_root), "transforms_extraction": TRANSFORMS, "batch_size_inference": 4, "seed": 1,
        "postprocessor": postprocessor,
    }  # fmt: skip
    OmegaConf.save(OmegaConf.create(fields), folder / "config.yaml")
    network = get_pairwise_model_by_cfg(
        {
            **model,
            "args": {**model["args"], **({"extractor": {"name": "tiny"}} if "extractor" in model["args"] else {})},
        }
    )
    generator = torch.Generator().manual_seed(5)
    state = {
        f"model.{key}": torch.randn(value.shape, generator=generator) for key, value in network.state_dict().items()
    }
    torch.save({"state_dict": state}, folder / "checkpoints" / "best.ckpt")
    return folder


@pytest.mark.parametrize("model", [CONCAT, SIAMESE, LINEAR], ids=lambda model: model["name"])
def test_the_postprocessor_of_a_run_has_its_best_weights(
    model: dict[str, Any], mock_root: Path, tmp_path: Path
) -> None:
    run = reranker_run(tmp_path / "run", mock_root, model)
    made = get_postprocessor_by_cfg(postprocessor_of_run(run))
    state = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    found = made.model.state_dict()  # pyright: ignore[reportAttributeAccessIssue]
    assert found.keys() == {key.removeprefix("model.") for key in state}
    for key, value in found.items():
        assert torch.equal(value, state[f"model.{key}"])

    wanted = directly(mock_root, postprocessor=made)
    _, logs = extractor_validation_pipeline(config(mock_root, postprocessor=postprocessor_of_run(run)))
    assert logs[0] == pytest.approx(wanted)
    both = validation_config_of(run)  # both stages
    assert both["bs_val"] == 4
    assert find_problems(both, VALIDATION) == []
    assert extractor_validation_pipeline(both)[1][0] == pytest.approx(wanted)
    with pytest.raises(ValueError, match="is of a re-ranker, which makes no embeddings"):
        prediction_config_of(run)


class Bare(IPairwiseModel):
    """Takes no weights."""

    def forward(self, x1: torch.Tensor, x2: torch.Tensor) -> torch.Tensor:
        return (x1 - x2).flatten(1).norm(dim=1)

    predict = forward


def test_runs_that_have_no_postprocessor_to_take(mock_root: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.yaml"):
        postprocessor_of_run(tmp_path)
    run = reranker_run(tmp_path / "run", mock_root, LINEAR)
    saved = OmegaConf.load(run / "config.yaml")
    saved.postprocessor.args.pairwise_model = {"name": f"{__name__}.Bare"}
    OmegaConf.save(saved, run / "config.yaml")
    with pytest.raises(ValueError, match=r"Bare' has no argument 'weights', so it cannot take any"):
        postprocessor_of_run(run)
    saved.postprocessor = None
    OmegaConf.save(saved, run / "config.yaml")
    with pytest.raises(ValueError, match="is of an extractor, and has no re-ranker"):
        postprocessor_of_run(run)


SCRIPT = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.lightning.test_validate import config
from tests.lightning.test_validate_reranking import RERANKER
from tests.lightning.tiny import Tiny
from oml.lightning.pipelines.validate import extractor_validation_pipeline
from oml.registry.models import EXTRACTORS_REGISTRY

if __name__ == "__main__":
    EXTRACTORS_REGISTRY["tiny"] = Tiny
    extractor_validation_pipeline(config(Path(sys.argv[1]), devices=2, run_dir=sys.argv[2], postprocessor=RERANKER))
"""


@pytest.mark.slow
def test_two_processes_find_what_one_does(mock_root: Path, tmp_path: Path) -> None:
    (tmp_path / "validate.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "validate.py"), str(mock_root), str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run(command, env=environment, check=True, timeout=200)
    written = json.loads((tmp_path / "run" / "metrics.json").read_text())["metrics"]
    found = {name: row["mean"] for name, row in written.items()}
    assert found == pytest.approx(directly(mock_root, postprocessor=built()))
