"""``oml validate --postprocessor``: what re-ranks by its name, out of a file, or as a training left it."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from oml.configs import compose
from oml.lightning.pipelines.validate import validation_config_of
from oml.models import LinearTrivialDistanceSiamese
from oml.registry.models import get_extractor_by_cfg

Oml = Callable[..., tuple[int, str, str]]
LINEAR = "{name: linear_siamese, args: {feat_dim: FEAT_DIM, identity_init: false}}"
FILE = f"name: pairwise_embeddings\nargs: {{top_n: 3, pairwise_model: {LINEAR}, num_workers: 0, batch_size: 4}}"


@pytest.fixture
def run(here: Path) -> Path:
    """The folder of a training of no steps."""
    config = compose("tiny.yaml", [f"dataset_root={here / 'data'}"])
    Path("run/checkpoints").mkdir(parents=True)
    OmegaConf.save(config, "run/config.yaml")
    torch.manual_seed(0)
    save_weights(get_extractor_by_cfg(config.extractor), Path("run"))
    return Path("run")


def save_weights(model: nn.Module, run: Path) -> None:
    state = {f"model.{name}": weight for name, weight in model.state_dict().items()}
    torch.save({"state_dict": state}, run / "checkpoints" / "best.ckpt")


def feat_dim(run: Path) -> int:
    return get_extractor_by_cfg(validation_config_of(run).extractor).feat_dim


def changes(folder: str) -> dict[str, float]:
    written = json.loads(Path(folder, "metrics.json").read_text())["metrics"]
    return {name: row["mean"] - row["before"] for name, row in written.items() if row["before"] is not None}


def reranker(folder: Path, dim: int) -> Path:
    """What a training of a re-ranker leaves."""
    (folder / "checkpoints").mkdir(parents=True)
    postprocessor = OmegaConf.create(FILE.replace("FEAT_DIM", str(dim)))
    OmegaConf.save({"postprocessor": postprocessor}, folder / "config.yaml")
    model = LinearTrivialDistanceSiamese(dim, identity_init=True)
    model.proj.weight.detach()[1:] = 0  # so the first number of an embedding alone counts
    save_weights(model, folder)
    return folder


def test_a_run_a_file_and_a_name(oml: Oml, run: Path) -> None:
    dim = feat_dim(run)
    Path("mine.yaml").write_text(FILE.replace("FEAT_DIM", str(dim)))
    of_run = reranker(Path("reranker"), dim)
    same = "postprocessor.args.pairwise_model.args.identity_init=true"
    for i, (given, overrides) in enumerate(
        {
            "mine.yaml": [same],
            str(of_run): ["postprocessor.args.top_n=4"],
            "pairwise_embeddings": [f"postprocessor.args.pairwise_model.args.feat_dim={dim}"],
            "k_reciprocal": [],
        }.items()
    ):
        code, output, errors = oml("validate", run, "--postprocessor", given, *overrides, f"run_dir=out{i}")
        assert code == 0, errors
        heading = next(line for line in output.splitlines() if "metric" in line)
        assert heading.split()[1:4] == ["before", "after", "change"]
        assert "OVERALL/cmc/1" in output
    assert set(changes("out0").values()) == {0}  # the distances of the extractor
    assert any(changes("out1").values())
    assert set(changes("out2").values()) == {0}  # its config has the identity


def test_several_work_one_after_another(oml: Oml, run: Path) -> None:
    Path("near.yaml").write_text("name: constant_threshold\nargs: {threshold: 1.0e9}\n")
    of_run = reranker(Path("reranker"), feat_dim(run))
    for i, several in enumerate([["k_reciprocal", "near.yaml"], [of_run, "near.yaml"], [of_run]]):
        code, _, errors = oml("validate", run, *(f"--postprocessor={each}" for each in several), f"run_dir=out{i}")
        assert code == 0, errors
    assert changes("out1") == changes("out2")
    assert changes("out0") != changes("out1")
    Path("near.yaml").write_text("name: constant_threshold\nargs: {threshold: -1.0}\n")
    assert oml("validate", run, f"--postprocessor={of_run}", "--postprocessor=near.yaml", "run_dir=out3")[0] == 0
    assert json.loads(Path("out3/metrics.json").read_text())["metrics"]["OVERALL/returned/number"]["mean"] == 0


def test_k_reciprocal_that_looks_too_far_is_told(oml: Oml, run: Path) -> None:
    hint = "k_reciprocal looks at k1=20 neighbours, and half of the labels have "
    _, output, _ = oml("validate", run, "--postprocessor", "k_reciprocal")
    (found,) = re.findall(rf"{hint}(\d+) items or fewer.* Try k1=(\d+) and k2=(\d+)\.", output)
    n_items, k1, k2 = found
    assert n_items == k1
    tried = f"postprocessor.args.k1={k1}", f"postprocessor.args.k2={k2}"
    code, output, errors = oml("validate", run, "--postprocessor", "k_reciprocal", *tried)
    assert code == 0, errors
    assert "k_reciprocal looks" not in output


def test_it_takes_the_place_of_another_in_a_recipe(oml: Oml, run: Path) -> None:
    config = validation_config_of(run)
    config.postprocessor = OmegaConf.create(FILE.replace("FEAT_DIM", "99"))
    config.postprocessor.args.use_fp16 = True
    OmegaConf.save(config, "both.yaml")
    code, _, errors = oml("validate", "both.yaml")
    assert code == 2
    assert "feat_dim" in errors
    fits = f"postprocessor.args.pairwise_model.args.feat_dim={feat_dim(run)}"
    code, _, errors = oml("validate", "both.yaml", "--postprocessor", "pairwise_embeddings", fits, "run_dir=out")
    assert code == 0, errors
    assert set(changes("out").values()) == {0}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("nowhere", "there is neither a run, a file nor a postprocessor 'nowhere'; there are "),
        ("pairwise_image", "did you mean pairwise_images"),
        ("data", "the folder 'data' is not that of a run: it has no config.yaml."),
        ("run", "The run 'run' is of an extractor, and has no re-ranker."),
        ("list.yaml", "'list.yaml' needs a name and may have args"),
        ("syntax.yaml", "--postprocessor: "),
        ("started", "there is no 'started/checkpoints/best.ckpt'"),
        ("pairwise_embeddings postprocessor.args.topn=3", "'topn'; did you mean top_n"),
        ("no.such.Class", "no module 'no' to import"),
        ("pairwise_embeddings postprocessor.args.top_n=1", "a whole number of 2 or more as top_n, got 1"),
    ],
)
def test_bad_input_is_one_line(arguments: str, text: str, oml: Oml, run: Path, here: Path) -> None:
    Path("list.yaml").write_text("[1, 2]")
    Path("syntax.yaml").write_text("name: [a")
    Path("started").mkdir()
    Path("started/config.yaml").write_text("postprocessor: {name: pairwise_images}")
    before = set(here.rglob("*"))
    code, output, errors = oml("validate", run, "--postprocessor", *arguments.split())
    assert (code, output) == (2, "")
    assert errors.startswith("oml: ")
    assert text in errors
    assert errors.count("\n") == 1, errors
    assert {path for path in here.rglob("*") if "__pycache__" not in path.parts} == before
