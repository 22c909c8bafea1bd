"""``oml train``, and what is done with its runs by ``oml validate`` and ``oml predict``: on the mock data set."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from omegaconf import OmegaConf

Oml = Callable[..., tuple[int, str, str]]
FILES = {"config.yaml", "checkpoints/best.ckpt", "checkpoints/last.ckpt", "metrics.csv", "metrics.json"}


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def process(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from oml.cli import main; main(sys.argv[1:])"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_train_validate_predict_and_go_on(oml: Oml, here: Path) -> None:
    text = Path("tiny.yaml").read_text().replace("im_size: 32", "im_size: ${size}")
    Path("tiny.yaml").write_text(f"{text}\nsize: 32")
    code, output, errors = oml("train", "tiny.yaml")
    assert code == 0, errors
    (run,) = Path("runs").iterdir()
    assert run.name.startswith("tiny-20")
    assert files_in(run) >= FILES
    assert OmegaConf.load(run / "config.yaml").dataset_root == str(here / "data")
    metrics = json.loads((run / "metrics.json").read_text())["metrics"]
    cmc = metrics["OVERALL/cmc/1"]
    row = next(line for line in output.splitlines() if "OVERALL/cmc/1" in line)
    assert f"{cmc['mean']:.4f}   {cmc['low']:.4f} to {cmc['high']:.4f}" in row
    assert f"\nIn {run}: config.yaml, checkpoints/best.ckpt," in output
    validate, rerank, predict = (line.split()[1:] for line in output.splitlines()[-3:])
    assert rerank == ["train-reranker", str(run)]

    code, output, errors = oml(*validate)
    assert code == 0, errors
    assert f"{cmc['mean']:.4f}" in next(line for line in output.splitlines() if "OVERALL/cmc/1" in line)
    code, _, errors = oml(*predict[:-1], "data_dir=data/images", "save_dir=embeddings")
    assert code == 0, errors
    images = {str(path) for path in Path("data/images").iterdir()}
    predicted = json.loads(Path("embeddings/predictions.json").read_text())
    assert {str(Path(path).relative_to(here)) if Path(path).is_absolute() else path for path in predicted} == images

    assert oml("train", "tiny.yaml", f"run_dir={run}")[0] == 2  # there is one already
    code, output, errors = oml("train", "--resume", run, "max_epochs=2")
    assert code == 0, errors
    assert list(Path("runs").iterdir()) == [run]
    assert pd.read_csv(next(run.rglob("metrics.csv"), run)) is not None
    assert OmegaConf.load(run / "config.yaml").max_epochs == 2


def test_several_processes(oml: Oml, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, errors = oml("train", "tiny.yaml", "--multirun", "seed=0,1", "devices=2", "accelerator=cpu")
    assert (code, errors.splitlines()[-1][:58]) == (2, "oml: devices: a job of --multirun is one process, not 2. T")
    launched = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    code, _, errors = oml("train", "tiny.yaml", "devices=2", "accelerator=cpu")
    assert (code, errors) == (2, "oml: run_dir: several processes need one folder for all. Name it by run_dir=...\n")
    assert not Path("runs").exists()
    assert not Path("multirun").exists()


@pytest.mark.slow
@pytest.mark.parametrize("of", ["lightning", "torchrun"])
def test_two_processes_make_one_run(of: str, here: Path) -> None:
    options = ("tiny.yaml", "devices=2", "accelerator=cpu", "global_batch=true")
    command = [str(Path(sys.executable).parent / "oml"), "train", *options]
    if of == "torchrun":
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python", "--nproc-per-node=2"]
        command = [*torchrun, *command, "run_dir=runs/one"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    (run,) = Path("runs").iterdir()
    assert files_in(run) >= FILES
    assert done.stdout.count("Metrics of the best checkpoint") == 1


@pytest.mark.slow
def test_a_loss_of_ones_own_into_the_folder_that_hydra_is_asked_for(oml: Oml, here: Path) -> None:
    with Path("tiny.yaml").open("a") as file:
        file.write("hydra:\n  job: {chdir: true}\n  run: {dir: 'logs/${postfix}'}\n")
    code, _, errors = oml("train", "tiny.yaml", "criterion.name=of_a_user.Loss", "~criterion.args", "postfix=own")
    assert code == 0, errors
    assert files_in(Path("logs/own")) >= FILES
    assert not Path("runs").exists()


@pytest.mark.slow
def test_a_table(oml: Oml, here: Path) -> None:
    tiny = ("extractor.args.arch=test_resnet", "extractor.args.weights=null", "max_epochs=1", "hydra_dir=made/here")
    code, _, errors = oml("train", "data/df.csv", *tiny)
    assert code == 0, errors
    assert files_in(Path("made/here")) >= FILES


@pytest.mark.slow
def test_a_training_that_fails_says_how_it_goes_on(oml: Oml, here: Path) -> None:
    fails = ("criterion.name=of_a_user.Loss", "criterion.args={fails_at:3}", "~criterion.args.margin")
    arguments = ("train", "tiny.yaml", "max_epochs=3", "run_dir=own run", *fails, "~criterion.args.miner")
    code, _, errors = oml(*arguments)
    assert code == 1, errors
    *_, hint, line = errors.splitlines()
    assert hint.endswith(": oml train --resume 'own run'")
    assert line == "oml: RuntimeError: it fails (--debug shows where)"
    code, _, errors = oml("train", "--resume", "own run", "criterion.args.fails_at=0")
    assert code == 0, errors


@pytest.mark.slow
def test_a_training_that_is_stopped(here: Path) -> None:
    stops = ("criterion.name=of_a_user.Loss", "criterion.args={fails_at:3,error:KeyboardInterrupt}")
    gone = ("~criterion.args.margin", "~criterion.args.miner")
    done = process("train", "tiny.yaml", "max_epochs=3", "run_dir=run", *stops, *gone)
    assert done.returncode == 130, done.stderr
    assert done.stderr.endswith(": oml train --resume run\noml: stopped.\n")
    done = process("train", "--resume", "run", "criterion.args.fails_at=0")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Restor") == 1
    assert "is not empty" not in done.stderr


def test_what_fails_before_anything_is_written_leaves_nothing(oml: Oml, here: Path) -> None:
    """The checks do not open weights."""
    Path("bad.ckpt").write_text("no weights\n")
    before = set(here.rglob("*"))
    code, _, errors = oml("train", "tiny.yaml", "extractor.args.weights=bad.ckpt")
    assert code == 2
    assert "bad.ckpt" in errors.splitlines()[-1]
    assert {path for path in here.rglob("*") if "__pycache__" not in path.parts} == before


@pytest.mark.slow
def test_runs_of_one_name_that_begin_in_one_second(oml: Oml, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.strftime", lambda _: "now")
    for _ in range(2):
        code, _, errors = oml("train", "tiny.yaml")
        assert code == 0, errors
    assert {run.name for run in Path("runs").iterdir()} == {"tiny-now", "tiny-now-2"}
    Path("bad.ckpt").write_text("no weights\n")
    assert oml("train", "tiny.yaml", "extractor.args.weights=bad.ckpt")[0] == 2
    assert {run.name for run in Path("runs").iterdir()} == {"tiny-now", "tiny-now-2"}


@pytest.mark.slow
def test_a_sweep(here: Path) -> None:
    done = process("train", "tiny.yaml", "-m", "optimizer=sgd,adam", "seed=1,2", "hydra.sweep.dir=all")
    assert done.returncode == 0, done.stderr
    runs = sorted(path for path in Path("all").iterdir() if path.is_dir())
    assert [run.name for run in runs] == ["0", "1", "2", "3"]
    configs = [OmegaConf.load(run / "config.yaml") for run in runs]
    expected = [("sgd", 1), ("sgd", 2), ("adam", 1), ("adam", 2)]
    assert [(config.optimizer.name, config.seed) for config in configs] == expected
    assert all(files_in(run) >= FILES | {".hydra/overrides.yaml"} for run in runs)
    assert {path.name for path in here.iterdir()} - {"__pycache__"} == {"data", "tiny.yaml", "of_a_user.py", "all"}
    assert done.stdout.count("Metrics of the best checkpoint") == 4


@pytest.mark.slow
def test_jobs_of_a_sweep_that_fail(here: Path) -> None:
    gone = ("~criterion.args.margin", "~criterion.args.miner")
    done = process("train", "tiny.yaml", "-m", "criterion.name=of_a_user.Loss", "+criterion.args.fails_at=1,0,2", *gone)
    assert done.returncode == 1
    for step in (1, 2):
        assert any(f"fails_at={step}" in line and line.endswith(": it fails") for line in done.stderr.splitlines())
    assert done.stderr.endswith("oml: RuntimeError: it fails (--debug shows where)\n")
    assert done.stdout.count("Metrics of the best checkpoint") == 1


@pytest.mark.parametrize("command", ["train", "validate", "predict"])
def test_help_has_examples(command: str, oml: Oml) -> None:
    code, output, _ = oml(command, "--help")
    assert code == 0
    assert f"oml {command} --recipe " in output
    assert "--recipe" in output
