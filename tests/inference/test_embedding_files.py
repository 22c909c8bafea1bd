import inspect
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
from pandas import DataFrame
from safetensors import safe_open
from safetensors.torch import save_file
from tests.processes import run_processes
from torch import Tensor
from torch.multiprocessing import ProcessExitedException

from oml.datasets.base import BaseDataset
from oml.datasets.image_files import UnreadableImageError
from oml.datasets.list_dataset import ListDataset
from oml.inference.embedding_files import (
    EmbeddingWriter,
    iterate_embeddings,
    read_embeddings,
    shard_path,
    write_embeddings,
)
from oml.inference.fast import Inference
from oml.inference.flat import extract_embeddings, inference_on_images
from oml.interfaces.models import IExtractor
from oml.utils.download_mock_dataset import download_mock_dataset


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["e.safetensors", "e.npy", "e.parquet", "e.PQ"])
def test_what_was_written_is_read(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    embeddings = torch.rand(5, 3).to(dtype)
    path = tmp_path / name
    if name.endswith("safetensors"):
        save_file({"embeddings": embeddings, "labels": torch.arange(5)}, path)
    elif name.endswith("npy"):
        np.save(path, embeddings.numpy())
    else:
        DataFrame({"row": range(5), "embeddings": list(embeddings.numpy())}).to_parquet(path)
    found = read_embeddings(str(path))
    assert found.dtype == dtype
    assert torch.equal(found, embeddings)


def test_bfloat16_is_read(tmp_path: Path) -> None:
    embeddings = torch.rand(5, 3).bfloat16()
    save_file({"embeddings": embeddings}, tmp_path / "e.safetensors")
    assert torch.equal(read_embeddings(tmp_path / "e.safetensors"), embeddings)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "e.txt").touch()
    for name in ("broken.npy", "broken.safetensors", "broken.parquet"):
        (tmp_path / name).write_text("nothing")
    np.save(tmp_path / "line.npy", np.zeros(5))
    np.save(tmp_path / "whole.npy", np.zeros((5, 2), dtype=int))
    np.save(tmp_path / "object.npy", np.array([{}]), allow_pickle=True)
    save_file({"x": torch.zeros(1), "a": torch.zeros(1)}, tmp_path / "x.safetensors")
    DataFrame({"x": [1]}).to_parquet(tmp_path / "x.parquet")
    DataFrame({"embeddings": [[1.0, 2.0], [1.0], None, [3.0, 4.0]]}).to_parquet(tmp_path / "ragged.parquet")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("none.npy", "there is no file '.*none.npy'"),
        ("e.txt", r"read from .safetensors, .npy or .parquet, got '.*e.txt'"),
        ("broken.npy", "cannot be read from '.*broken.npy'"),
        ("broken.safetensors", "cannot be read from '.*broken.safetensors'"),
        ("broken.parquet", "cannot be read from '.*broken.parquet'"),
        ("object.npy", "cannot be read from '.*object.npy': Object arrays cannot be loaded"),
        ("line.npy", r"those of '.*line.npy' have shape \(5,\) and type float64"),
        ("whole.npy", r"shape \(5, 2\) and type int64"),
        ("x.safetensors", r"the key 'embeddings', but '.*x.safetensors' has \['a', 'x'\]"),
        ("x.parquet", r"the column 'embeddings', but '.*x.parquet' has the columns \['x'\]"),
        ("ragged.parquet", r"rows \[1, 2\] \(2 in all\) have not the 2 numbers of the others"),
    ],
)
def test_files_that_are_none(name: str, text: str, files: Path) -> None:
    with pytest.raises(FileNotFoundError if name == "none.npy" else ValueError, match=text):
        read_embeddings(files / name)


SUFFIXES = [".safetensors", ".parquet"]
PATHS = ["ä b.jpg", "", "c/d.jpg", "e", "f", 'g"h', "i"]


def rows_of(path: Path) -> tuple[Any, ...]:
    """All columns of a file."""
    parts = list(iterate_embeddings(path))
    paths = [path for part in parts for path in part.paths or []]
    ids = torch.cat([part.ids for part in parts if part.ids is not None])
    labels = torch.cat([part.labels for part in parts if part.labels is not None])
    return torch.cat([part.embeddings for part in parts]), ids.tolist(), labels.tolist(), paths


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_batches_become_one_file(
    suffix: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oml.inference.embedding_files._AT_ONCE", 2)
    monkeypatch.setattr("oml.inference.embedding_files._ROW_GROUP", 30)
    embeddings = torch.rand(7, 3).to(dtype)
    path = tmp_path / f"new/e{suffix}"
    with EmbeddingWriter(path) as writer:
        for start, end in ((0, 3), (3, 3), (3, 4), (4, 7)):
            part = slice(start, end)
            writer.write(embeddings[part], torch.arange(10, 17)[part], [5, 4, 3, 2, 1, 0, -1][part], PATHS[part])
        assert list((tmp_path / "new").glob("e*")) == []
    assert writer.n_items == 7
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    kept = embeddings.float() if suffix == ".parquet" and dtype == torch.bfloat16 else embeddings
    found, *others = rows_of(path)
    assert torch.equal(found, kept)
    assert others == [list(range(10, 17)), [5, 4, 3, 2, 1, 0, -1], PATHS]
    assert torch.equal(read_embeddings(path), kept)


def test_other_programs_read_the_files(tmp_path: Path) -> None:
    """An odd number of bytes before integers is made even for those who map them."""
    embeddings = torch.rand(3, 3)
    for suffix in SUFFIXES:
        with EmbeddingWriter(tmp_path / f"e{suffix}") as writer:
            writer.write(embeddings, ids=[2, 1, 0], paths=["a", "bc", "d"])
    table = pd.read_parquet(tmp_path / "e.parquet")
    assert table.columns.tolist() == ["embeddings", "ids", "paths"]
    assert table["paths"].tolist() == ["a", "bc", "d"]
    np.testing.assert_array_equal(np.stack(table["embeddings"].tolist()), embeddings.numpy())
    with safe_open(tmp_path / "e.safetensors", framework="np") as file:
        np.testing.assert_array_equal(file.get_tensor("embeddings"), embeddings.numpy())
        assert file.get_tensor("ids").tolist() == [2, 1, 0]
        assert bytes(file.get_tensor("paths")) == b"abcd"
        assert file.get_tensor("path_ends").tolist() == [1, 3, 4]
    header = json.loads((tmp_path / "e.safetensors").read_bytes()[8:2048])
    assert all(header[name]["data_offsets"][0] % 8 == 0 for name in ("ids", "path_ends"))


def test_json_is_that_of_the_whole_dictionary(tmp_path: Path) -> None:
    embeddings = torch.randn(4, 3) * torch.tensor([1e-9, 1.0, 1e20])
    with EmbeddingWriter(tmp_path / "e.json") as writer:
        writer.write(embeddings[:1], paths=PATHS[:1], ids=[0])
        writer.write(embeddings[1:], paths=PATHS[1:4], ids=[1, 2, 3])
    text = (tmp_path / "e.json").read_text()
    assert text == json.dumps(dict(zip(PATHS[:4], embeddings.tolist(), strict=True)))
    with EmbeddingWriter(tmp_path / "e.json") as writer:
        pass
    assert (tmp_path / "e.json").read_text() == "{}"


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".json"])
def test_what_fails_leaves_what_was_there(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"e{suffix}"
    path.write_text("before")
    with pytest.raises(RuntimeError, match="stop"), EmbeddingWriter(path) as writer:  # noqa: PT012
        for i in range(3):
            writer.write(torch.rand(2, 3), paths=[f"{i}", f"{i}a"])
        raise RuntimeError("stop")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_at_work_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "e[1].json"
    with EmbeddingWriter(path) as first:
        with EmbeddingWriter(path) as second:
            second.write(torch.ones(1, 1), paths=["b"])
        first.write(torch.ones(1, 1), paths=["a"])
    assert path.read_text() == '{"a": [1.0]}'
    assert list(tmp_path.iterdir()) == [path]


def test_rows_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"to .parquet, .safetensors or .json, got '.*e.npy'"):
        EmbeddingWriter(tmp_path / "e.npy")
    with EmbeddingWriter(tmp_path / "e.safetensors") as writer:
        writer.write(torch.rand(2, 3), ids=[0, 1])
        for rows in ((torch.rand(2, 4), [2, 3]), (torch.rand(2, 3).half(), [2, 3]), (torch.rand(2, 3), None)):
            with pytest.raises(ValueError, match="rows like those before"):
                writer.write(*rows)
        with pytest.raises(ValueError, match=r"for each of 2 embeddings, got \{'ids': 1\}"):
            writer.write(torch.rand(2, 3), ids=[2])
        with pytest.raises(ValueError, match="floats in two dimensions"):
            inspect.unwrap(EmbeddingWriter.write)(writer, torch.ones(2, 3, dtype=torch.int64), ids=[2, 3])
    assert len(read_embeddings(tmp_path / "e.safetensors")) == 2
    with pytest.raises(ValueError, match="needs paths"), EmbeddingWriter(tmp_path / "e.json") as writer:
        writer.write(torch.rand(2, 3))
    with pytest.raises(ValueError, match="'a' comes twice"), EmbeddingWriter(tmp_path / "e.json") as writer:
        writer.write(torch.rand(2, 3), paths=["a", "a"])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_shards_read_as_one(suffix: str, tmp_path: Path) -> None:
    """Also those of a sampler that deals items out in turn and repeats some, and those without any."""
    path = tmp_path / f"e{suffix}"
    embeddings = torch.rand(5, 3)
    for rank, ids in enumerate(([0, 3, 1], [1, 4, 2], [])):
        with EmbeddingWriter(shard_path(path, rank, 3), run="1") as writer:
            for idx in ids:
                writer.write(embeddings[[idx]], ids=[idx])
    assert torch.equal(read_embeddings(path), embeddings)
    (tmp_path / f"e-more{suffix}").touch()
    shard_path(path, 1, 3).rename(tmp_path / "away")
    with pytest.raises(ValueError, match=r"e-00001-of-00003\S+ is missing"):
        read_embeddings(path)
    with EmbeddingWriter(shard_path(path, 1, 3), run="2") as writer:
        writer.write(embeddings, ids=range(5))
    with pytest.raises(ValueError, match="of one run, .* are of 2"):
        read_embeddings(path)
    (tmp_path / "away").replace(shard_path(path, 1, 3))
    shard_path(path, 0, 2).touch()
    with pytest.raises(ValueError, match="one file or one set of shards, but there are e-00000-of-00002"):
        read_embeddings(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_shards_that_are_none(suffix: str, tmp_path: Path) -> None:
    shard_path(tmp_path / f"e{suffix}", 0, 1).write_bytes(b"nothing at all")
    with pytest.raises(ValueError, match=r"cannot be read from '\S+e-00000-of-00001"):
        read_embeddings(tmp_path / f"e{suffix}")
    with pytest.raises(ValueError, match="some at a time from .safetensors or .parquet"):
        next(iterate_embeddings(tmp_path / "e.json"))


class Mean(IExtractor):
    @property
    def feat_dim(self) -> int:
        return 3

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))


@pytest.fixture
def broken(mock_root: Path, tmp_path: Path) -> list[str]:
    """Images of which the first two and the last one cannot be read."""
    paths = [str(mock_root / path) for path in download_mock_dataset(mock_root)[0]["path"]]
    for i in (0, 1, len(paths) - 1):
        paths[i] = str(tmp_path / f"broken_{i}.jpg")
        Path(paths[i]).write_bytes(b"no image")
    return paths


@pytest.mark.parametrize("num_workers", [0, 1])
def test_data_sets_to_disk(mock_root: Path, num_workers: int, tmp_path: Path) -> None:
    dataset = BaseDataset(download_mock_dataset(mock_root)[0], dataset_root=mock_root)
    files = [tmp_path / f"e{suffix}" for suffix in (*SUFFIXES, ".json")]
    assert write_embeddings(Mean(), dataset, files, batch_size=4, num_workers=num_workers) == (len(dataset), [])
    expected = extract_embeddings(Mean(), dataset)
    for file in files[:2]:
        found, ids, labels, paths = rows_of(file)
        torch.testing.assert_close(found, expected)
        assert ids == list(range(len(dataset)))
        assert labels == dataset.get_labels().tolist()
        assert paths == dataset.df["path"].tolist()
    assert list(json.loads(files[2].read_text())) == dataset.df["path"].tolist()


def test_unreadable_images_are_told(broken: list[str], tmp_path: Path) -> None:
    dataset = ListDataset(broken)
    out = tmp_path / "out"
    with pytest.raises(UnreadableImageError, match="broken_0.jpg"):
        write_embeddings(Mean(), dataset, out / "e.parquet", batch_size=2)
    assert list(out.iterdir()) == []
    n = len(broken) - 3
    with pytest.warns(UserWarning, match=rf"left out 3 of {n + 3} items.*broken_0.jpg"):
        written = write_embeddings(Mean(), dataset, [out / "e.parquet"], batch_size=2, on_unreadable="skip")
    assert written.n_items == n
    assert [item.idx for item in written.unreadable] == [0, 1, n + 2]
    assert all(broken[item.idx] in item.reason for item in written.unreadable)
    part = next(iterate_embeddings(out / "e.parquet"))
    assert part.ids is not None
    assert part.ids.tolist() == list(range(2, n + 2))
    assert part.paths == broken[2:-1]
    assert part.labels is None
    torch.testing.assert_close(part.embeddings, extract_embeddings(Mean(), ListDataset(broken[2:-1])))
    said: list[str] = []
    with pytest.warns(UserWarning, match="left out 3"):  # the item to compare by is one of these
        write_embeddings(
            Mean(), dataset, out / "e.parquet", 1, on_unreadable="skip", inference=Inference(report=said.append)
        )
    assert "on 1 images" in said[0]
    with pytest.raises(ValueError, match="could not read any of 2 items.*broken_0.jpg"):
        write_embeddings(Mean(), ListDataset(broken[:2]), out / "none.parquet", on_unreadable="skip")
    with pytest.raises(ValueError, match="at least one item"):
        write_embeddings(Mean(), torch.utils.data.Subset(dataset, []), out / "none.parquet")
    assert [file.name for file in out.iterdir()] == ["e.parquet"]


def test_files_that_would_be_mixed_up(mock_root: Path, tmp_path: Path) -> None:
    dataset = BaseDataset(download_mock_dataset(mock_root)[0], dataset_root=mock_root)
    shard_path(tmp_path / "e.parquet", 0, 2).touch()
    with pytest.raises(FileExistsError, match="cannot be told from e-00000-of-00002.parquet beside '.*e.parquet'"):
        write_embeddings(Mean(), dataset, tmp_path / "e.parquet")


def _write_everywhere(rank: int, paths: list[str], out: Path) -> None:
    if rank == 0:
        with pytest.warns(UserWarning, match="left out 3 of"):
            written = write_embeddings(
                Mean(), ListDataset(paths), [out / "e.safetensors", out / "e.json"], 2, on_unreadable="skip"
            )
    else:
        written = write_embeddings(
            Mean(), ListDataset(paths), [out / "e.safetensors", out / "e.json"], 2, on_unreadable="skip"
        )
    torch.save([item.idx for item in written.unreadable], out / f"{rank}.pt")


@pytest.mark.slow
def test_processes_write_shards_and_one_json(broken: list[str], tmp_path: Path) -> None:
    run_processes(_write_everywhere, broken, tmp_path, folder=tmp_path, n=2)
    expected = extract_embeddings(Mean(), ListDataset(broken[2:-1]))
    assert shard_path(tmp_path / "e.safetensors", 1, 2).is_file()
    torch.testing.assert_close(read_embeddings(tmp_path / "e.safetensors"), expected)
    found = json.loads((tmp_path / "e.json").read_text())
    assert list(found) == broken[2:-1]
    torch.testing.assert_close(torch.tensor(list(found.values())), expected)
    assert torch.load(tmp_path / "0.pt") == torch.load(tmp_path / "1.pt") == [0, 1, len(broken) - 1]


def _fail_everywhere(rank: int, paths: list[str], out: Path) -> None:
    with pytest.raises(UnreadableImageError, match="broken"):  # an image of the first process
        write_embeddings(Mean(), ListDataset(paths), out / "e.safetensors", 2)
    with pytest.raises(UnreadableImageError, match="broken"):
        inference_on_images(Mean(), paths, None, 0, 2)


@pytest.mark.slow
def test_an_image_that_one_process_cannot_read_ends_all(broken: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    run_processes(_fail_everywhere, broken[:-1], out, folder=tmp_path, n=2)
    assert list(out.iterdir()) == []


class Killed(Mean):
    """Its process does not live to see the end."""

    def forward(self, x: Tensor) -> Tensor:
        os.kill(os.getpid(), signal.SIGKILL)
        return x


def _one_is_killed(rank: int, paths: list[str], out: Path) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # with which the others are ended before they can say anything
    dist.barrier()
    with pytest.raises(RuntimeError) as caught:
        write_embeddings(Killed() if rank else Mean(), ListDataset(paths), out / "e.safetensors", 2)
    (out.parent / "said").write_text(str(caught.value))
    os._exit(0)


@pytest.mark.slow
def test_a_killed_process_ends_the_others(broken: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        run_processes(_one_is_killed, broken[2:-1], out, folder=tmp_path, n=2)
    assert "onnection" in (tmp_path / "said").read_text()
    assert all(path.name.startswith(".") for path in out.iterdir())


_KILLED = """
import sys, time, torch
from oml.inference.embedding_files import EmbeddingWriter
with EmbeddingWriter(sys.argv[1]) as writer:
    for i in range(100):
        writer.write(torch.rand(100, 100), paths=[f"{i}/{j}" for j in range(100)])
    print("writing", flush=True)
    time.sleep(1000)
"""


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [*SUFFIXES, ".json"])
def test_a_killed_process_leaves_no_file_of_the_name(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"e{suffix}"
    with subprocess.Popen([sys.executable, "-c", _KILLED, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        process.kill()
    assert not [file for file in tmp_path.iterdir() if not file.name.startswith(".")]
    with pytest.raises(FileNotFoundError):
        read_embeddings(path)
    with EmbeddingWriter(path) as writer:
        writer.write(torch.rand(1, 2), paths=["a"])
    assert list(tmp_path.iterdir()) == [path]


_MUCH = """
import resource, sys, torch
from oml.inference.embedding_files import EmbeddingWriter
def write(name, n, dim):
    with EmbeddingWriter(f"{sys.argv[1]}/{name}") as writer:
        for start in range(0, n, 500):
            ids = range(start, start + 500)
            writer.write(torch.rand(500, dim), ids, ids, [f"some/folder/of/images/{i:09}.jpg" for i in ids])
for name, dim in (("e.json", 24), ("e.safetensors", 192), ("e.parquet", 192)):
    write(name, 30_000, dim)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    write(name, 200_000, dim)
    print(name, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """150 MB of embeddings, or as JSON values 190 MB of Python objects."""
    run = subprocess.run([sys.executable, "-c", _MUCH, str(tmp_path)], capture_output=True, text=True, check=True)
    growth = {name: int(megabytes) for name, megabytes in (line.split() for line in run.stdout.splitlines())}
    assert len(growth) == 3
    assert max(growth.values()) < 50, growth
    assert read_embeddings(tmp_path / "e.parquet").shape == (200_000, 192)
