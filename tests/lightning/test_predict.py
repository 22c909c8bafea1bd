"""Prediction by a config, on the mock data set with a tiny network."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.lightning.tiny import TRANSFORMS, Tiny
from torch import Tensor

from oml.configs import ConfigError
from oml.inference.embedding_files import iterate_embeddings, read_embeddings
from oml.inference.flat import inference_on_images
from oml.lightning.pipelines.predict import extractor_prediction_pipeline
from oml.registry.models import EXTRACTORS_REGISTRY
from oml.registry.transforms import get_transforms_by_cfg


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXTRACTORS_REGISTRY, "tiny", Tiny)


@pytest.fixture
def images(mock_root: Path, tmp_path: Path) -> Path:
    """Five images at two depths, and what is none."""
    folder = tmp_path / "photos"
    for i, path in enumerate(sorted((mock_root / "images").iterdir())[:5]):
        to = folder / "deep" / "deeper" / f"{i}.JPG" if i % 2 else folder / path.name
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, to)
    (folder / "notes.txt").write_text("not an image")
    return folder


def config(images: Path, folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "accelerator": "cpu", "devices": 1, "precision": 32, "data_dir": images, "save_dir": folder, "bs": 2,
        "num_workers": 0, "transforms_predict": TRANSFORMS, "extractor": {"name": "tiny", "args": {}}, **more,
    }  # fmt: skip


def expected(images: Path) -> dict[str, Tensor]:
    paths = sorted(str(path) for path in images.rglob("*") if path.suffix in (".jpg", ".JPG"))
    rows = inference_on_images(Tiny(), paths, get_transforms_by_cfg(TRANSFORMS), num_workers=0, batch_size=5)
    return dict(zip(paths, rows, strict=True))


def same(found: dict[str, list[float]], wanted: dict[str, Tensor]) -> None:
    assert list(found) == list(wanted)
    torch.testing.assert_close(torch.tensor(list(found.values())), torch.stack(list(wanted.values())))


def test_the_described_file_has_what_inference_on_images_gives(images: Path, tmp_path: Path) -> None:
    report = extractor_prediction_pipeline(config(images, tmp_path / "new" / "folder"))
    found = json.loads((tmp_path / "new" / "folder" / "predictions.json").read_text())
    same(found, expected(images))
    assert torch.tensor(list(found.values())).std(dim=0).min() > 0  # of different images
    assert report == ([tmp_path / "new" / "folder" / "predictions.json"], 5, {})


def test_other_formats_side_by_side(images: Path, tmp_path: Path) -> None:
    names = ["all.parquet", "all.safetensors", "all.json"]
    extractor_prediction_pipeline(config(images, tmp_path, output=names))
    wanted = expected(images)
    for name in names[:2]:
        torch.testing.assert_close(read_embeddings(tmp_path / name), torch.stack(list(wanted.values())))
        rows = next(iterate_embeddings(tmp_path / name))
        assert rows.paths == list(wanted)
        assert rows.labels is None
    same(json.loads((tmp_path / "all.json").read_text()), wanted)


def test_relative_folders_are_those_from_where_one_stands(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    extractor_prediction_pipeline(config(Path(images.name), Path("here")))
    same(json.loads((tmp_path / "here" / "predictions.json").read_text()), expected(images))
    assert Path.cwd() == tmp_path


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("bf16-mixed", 0.02), (16, 0.02), ("bf16-true", 0.05), (64, 1e-5)]
)
def test_precisions(precision: Any, tolerance: float, images: Path, tmp_path: Path) -> None:
    extractor_prediction_pipeline(config(images, tmp_path, precision=precision, output="all.safetensors"))
    found, wanted = read_embeddings(tmp_path / "all.safetensors"), torch.stack(list(expected(images).values()))
    assert found.dtype == (torch.float64 if precision == 64 else torch.float32)
    torch.testing.assert_close(found.float(), wanted, atol=tolerance, rtol=tolerance)
    assert not torch.equal(found, wanted.double() if precision == 64 else wanted)  # it has computed otherwise


def test_broken_images_are_listed_before_anything_is_written(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = [images / "a.png", images / "deep" / "b.jpeg"]
    broken[0].write_bytes(b"no image")
    broken[1].write_bytes(next(images.glob("*.jpg")).read_bytes()[:200])
    with pytest.raises(ConfigError, match="2 of 7 images cannot be read") as error:
        extractor_prediction_pipeline(config(images, tmp_path / "out"))
    assert all(str(path) in str(error.value) for path in broken)
    assert not (tmp_path / "out").exists()

    report = extractor_prediction_pipeline(config(images, tmp_path / "out", skip_unreadable=True))
    assert sorted(report.unreadable) == [str(path) for path in broken]
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Left out")]
    assert all(str(path) in line for path, line in zip(broken, told, strict=True))
    assert report.n_items == 5
    for path in broken:
        path.unlink()
    same(json.loads((tmp_path / "out" / "predictions.json").read_text()), expected(images))


def test_all_images_broken_is_an_error_in_any_case(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match="could not read any of 1 items"):
        extractor_prediction_pipeline(config(tmp_path / "photos", tmp_path / "out", skip_unreadable=True))
    assert list((tmp_path / "out").iterdir()) == []


def test_what_cannot_work_is_an_error_before_anything_is_written(images: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"data_dir": tmp_path / "empty"}, "no images"),
        ({"data_dir": tmp_path / "gone"}, "no folder"),
        ({"output": ["all.json", "all.txt"]}, r"\.txt"),
        ({"extractor": {"name": "tinny"}}, "did you mean tiny"),
    ]
    for change, text in wrong:
        with pytest.raises(ConfigError, match=text):
            extractor_prediction_pipeline(config(images, tmp_path / "out", **change))
    assert not (tmp_path / "out").exists()


SCRIPT = """
import sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.lightning.test_predict import config
from tests.lightning.tiny import Tiny
from oml.lightning.pipelines.predict import extractor_prediction_pipeline
from oml.registry.models import EXTRACTORS_REGISTRY

class Slow(Tiny):
    def forward(self, x):
        Path(sys.argv[2], "started").touch()
        time.sleep(float(sys.argv[3]))
        return super().forward(x)

if __name__ == "__main__":
    EXTRACTORS_REGISTRY["tiny"] = Slow
    cfg = config(Path(sys.argv[1]), Path(sys.argv[2], "out"), devices=int(sys.argv[4]), output=sys.argv[5:])
    extractor_prediction_pipeline(cfg)
"""


@pytest.fixture
def script(tmp_path: Path) -> list[str]:
    (tmp_path / "predict.py").write_text(SCRIPT)
    return [sys.executable, str(tmp_path / "predict.py")]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_a_killed_prediction_leaves_no_half_written_file(images: Path, tmp_path: Path, script: list[str]) -> None:
    command = [*script, str(images), str(tmp_path), "60", "1", "all.safetensors", "all.json"]
    process = subprocess.Popen(command, env=environment())
    try:
        until = time.monotonic() + 100
        while not (tmp_path / "started").exists() and time.monotonic() < until and process.poll() is None:
            time.sleep(0.05)
        assert (tmp_path / "started").exists()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    left = [path.name for path in (tmp_path / "out").iterdir()]
    assert left
    assert all(name.startswith(".") for name in left)
    # and the next one tidies up
    extractor_prediction_pipeline(config(images, tmp_path / "out", output=["all.safetensors", "all.json"]))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["all.json", "all.safetensors"]


@pytest.mark.slow
@pytest.mark.parametrize("names", [["predictions.json"], ["all.parquet", "all.json"]])
def test_two_processes_write_what_one_does(names: list[str], images: Path, tmp_path: Path, script: list[str]) -> None:
    subprocess.run([*script, str(images), str(tmp_path), "0", "2", *names], env=environment(), check=True, timeout=200)
    wanted = expected(images)
    same(json.loads((tmp_path / "out" / names[-1]).read_text()), wanted)
    shards = ["all-00000-of-00002.parquet", "all-00001-of-00002.parquet"] if len(names) > 1 else []
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([names[-1], *shards])
    if shards:
        torch.testing.assert_close(read_embeddings(tmp_path / "out" / names[0]), torch.stack(list(wanted.values())))
