"""``oml calibrate`` on the run of a tiny training."""

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from PIL import Image

from oml.lightning.pipelines.validate import validation_config_of
from oml.retrieval.calibration import Calibration

Oml = Callable[..., tuple[int, str, str]]


@pytest.mark.slow
def test_a_run_is_calibrated(oml: Oml, here: Path) -> None:
    code, _, errors = oml("train", "tiny.yaml", "run_dir=run")
    assert code == 0, errors
    code, output, errors = oml("calibrate", "run", "--fmr", "0.2", "--fmr", "0", "--top-k", "4")
    assert code == 0, errors
    assert output.splitlines()[-4:-2] == ["run/calibration.json", "run/reliability.png"]
    further = output.splitlines()[-1]
    calibration = Calibration.load("run/calibration.json")
    assert [each.fmr for each in calibration.thresholds] == [0.2, 0]
    assert calibration.fitted_on.top_k == 4
    assert calibration.quality is not None
    for each in calibration.thresholds:
        row = next(line.split() for line in output.splitlines() if line.split()[:1] == [f"{each.fmr:g}"])
        assert row[1] == f"{each.distance:.4f}"
        assert row[3] == f"{each.fnmr:.4f}"
    assert f"ECE {calibration.quality.ece:.4f}" in output
    assert "With fewer than 30, its threshold is not to be relied on." in output
    with Image.open("run/reliability.png") as picture:
        assert picture.width > 1000

    # search applies it
    code, output, errors = oml(*shlex.split(further)[1:])
    assert code == 0, errors
    assert "returned/number" in output
    arguments = ("postprocessor.args.calibration=run/calibration.json", "postprocessor.args.min_probability=0.99")
    code, output, errors = oml("validate", "run", "--postprocessor", "calibrated_threshold", *arguments)
    assert code == 0, errors
    assert "returned/number" in output

    code, output, errors = oml(
        "calibrate", "run", "--postprocessor", "query_expansion", "--method", "platt", "--out", "o"
    )
    assert code == 0, errors
    assert {path.name for path in Path("o").iterdir()} == {"calibration_reranked.json", "reliability_reranked.png"}
    assert Calibration.load("o/calibration_reranked.json").method == "platt"
    assert "Try next" not in output  # there, the threshold would take the place of what re-ranks

    config = validation_config_of("run")
    config.postprocessor = {"name": "query_expansion", "args": {"n": 2}}
    OmegaConf.save(config, "both.yaml")
    code, output, errors = oml("calibrate", "both.yaml", "--out", "of_config")
    assert code == 0, errors
    assert "Try next" not in output
    assert {path.name for path in Path("of_config").iterdir()} == {path.name for path in Path("o").iterdir()}


def test_wrong_arguments_are_one_line(oml: Oml, here: Path) -> None:
    for arguments, message in (
        (("nothing",), "nothing"),
        (("tiny.yaml",), "that is a training config, for oml train"),
        (("tiny.yaml", "--fmr", "2"), "Invalid value for '--fmr'"),
        (("tiny.yaml", "--method", "linear"), "'linear'"),
        (("tiny.yaml", "--postprocessor", "k_reciprocl"), "--postprocessor: there is neither"),
    ):
        code, _, errors = oml("calibrate", *arguments)
        assert (code, errors.count("\n")) == (2, 1), errors
        assert message in errors
    assert not (here / "runs").exists()


def test_help_has_examples(oml: Oml) -> None:
    code, output, _ = oml("calibrate", "--help")
    assert code == 0
    assert "oml calibrate runs/cub" in output
