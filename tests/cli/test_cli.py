"""The command line as a person meets it: real processes, their output and exit codes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import oml

SMALL = ["--labels", "60", "--steps", "2", "--image-size", "32"]


def run(*arguments: str | Path, cwd: Path, preamble: str = "") -> subprocess.CompletedProcess[str]:
    """``oml ARGUMENTS`` in a folder, with the cache in there; ``preamble`` runs before it in the same process."""
    code = f"{preamble}\nimport sys; from oml.cli import main; main(sys.argv[1:])"
    environment = {**os.environ, "XDG_CACHE_HOME": str(cwd / "cache"), "COLUMNS": "120", "NO_COLOR": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def error_line(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The one line of an error."""
    assert done.returncode == code, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("oml: ")
    return lines[0]


def test_help_and_version(tmp_path: Path) -> None:
    assert "demo" in run("--help", cwd=tmp_path).stdout
    assert "--image-size" in run("demo", "--help", cwd=tmp_path).stdout
    bare = run(cwd=tmp_path)
    assert "Usage: oml" in bare.stdout + bare.stderr
    assert "oml: " not in bare.stderr
    assert run("--version", cwd=tmp_path).stdout == f"oml {oml.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["demo", "--outptu", "x"], "No such option: --outptu (Possible options: --output). See oml demo --help."),
        (["dmeo"], "No such command 'dmeo'"),
        (["demo", "--steps", "many"], "Invalid value for '--steps': Input should be a valid integer"),
        (["demo", "--steps", "0"], "greater than or equal to 1"),
    ],
)
def test_what_is_not_understood(arguments: list[str], text: str, tmp_path: Path) -> None:
    line = error_line(run(*arguments, cwd=tmp_path), code=2)
    assert text in line
    assert "--help" in line
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    line = error_line(run("demo", "--output", tmp_path / "file" / "runs", cwd=tmp_path), code=2)
    assert "cannot write to" in line
    assert "not a directory" in line
    assert "Name another folder" in line
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run("demo", "--debug", "--output", tmp_path / "file" / "runs", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.slow
def test_two_runs_in_one_folder(tmp_path: Path) -> None:
    first = run("demo", *SMALL, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    kept = {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    second = run("demo", *SMALL, cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    assert len(list((tmp_path / "runs").iterdir())) == 2
    assert all(path.read_bytes() == content for path, content in kept.items())
    for text in ("cmc@1", "before", "after", "metrics.json", "best.ckpt", "worst_queries.png", "Try next"):
        assert text in first.stdout
    words = next(line for line in first.stdout.splitlines() if "oml compare" in line).split()
    compared = run(*words[words.index("compare") :], "--show", "1", "--figure", "changes.png", cwd=tmp_path)
    assert compared.returncode == 0, compared.stderr
    assert "B - A" in compared.stdout
    assert "paths below" in compared.stdout
    assert (tmp_path / "changes.png").is_file()


@pytest.mark.slow
def test_a_broken_image_in_the_cache(tmp_path: Path) -> None:
    data = tmp_path / "glyphs"
    made = run("demo", *SMALL, "--data", data, cwd=tmp_path, preamble="import oml.cli.demo as d; d._show = print")
    assert made.returncode == 0, made.stderr
    broken = next(data.rglob("*.png"))
    broken.write_bytes(broken.read_bytes()[:50])
    line = error_line(run("demo", *SMALL, "--data", data, cwd=tmp_path), code=1)
    assert broken.name in line
    assert f"Delete the folder {data}" in line
    assert len(list((tmp_path / "runs").iterdir())) == 1  # that of the first run


@pytest.mark.slow
@pytest.mark.parametrize("limit", [20_000, 300_000])
def test_a_full_disk(limit: int, tmp_path: Path) -> None:
    """No file may grow beyond the limit: first the table of the images cannot be written, then the checkpoint."""
    # nor is Python to cut off a file of bytecode, which other tests would read
    no_bytecode = "import sys; sys.dont_write_bytecode = True"
    full = f"{no_bytecode}\nimport resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit},) * 2)"
    done = run("demo", *SMALL, cwd=tmp_path, preamble=full)
    line = error_line(done, code=1)
    assert "cannot write" in line
    assert "File too large. Free some space" in line
    names = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert not names & {"best.ckpt", "metrics.json", "embeddings.safetensors"}
    if limit == 20_000:
        assert "df.csv" not in names
