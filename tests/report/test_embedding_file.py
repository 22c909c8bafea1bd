from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pandas import DataFrame
from safetensors.torch import save_file

from oml.report.embedding_file import read_embeddings, rows_of_embeddings


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


@pytest.fixture
def table() -> DataFrame:
    return DataFrame({"label": range(6), "split": ["train", "validation", "validation", "train", "train", None]})


def test_rows_of_the_table_or_of_a_split(table: DataFrame) -> None:
    assert rows_of_embeddings(torch.zeros(6, 2), table).tolist() == [0, 1, 2, 3, 4, 5]
    assert rows_of_embeddings(torch.zeros(3, 2), table).tolist() == [0, 3, 4]
    assert rows_of_embeddings(torch.zeros(2, 2), table).tolist() == [1, 2]
    assert rows_of_embeddings(torch.zeros(2, 2), table.drop(columns="split").iloc[:2]).tolist() == [0, 1]
    only_one = table[table["split"] == "train"]
    assert rows_of_embeddings(torch.zeros(3, 2), only_one, "train").tolist() == [0, 1, 2]


def test_numbers_that_do_not_fit(table: DataFrame) -> None:
    text = r"\(6 for the whole table, 3 for its train rows, 2 for its validation rows\), got 4\. Embed exactly"
    with pytest.raises(ValueError, match=text):
        rows_of_embeddings(torch.zeros(4, 2), table)
    with pytest.raises(ValueError, match="got 3 for the split 'validation'"):
        rows_of_embeddings(torch.zeros(3, 2), table, "validation")
    with pytest.raises(ValueError, match=r"no split 'test', but \['train', 'validation'\]"):
        rows_of_embeddings(torch.zeros(3, 2), table, "test")
    with pytest.raises(ValueError, match="'train' is asked for, but the table has no column 'split'"):
        rows_of_embeddings(torch.zeros(6, 2), table.drop(columns="split"), "train")


def test_splits_of_one_size_have_to_be_named(table: DataFrame) -> None:
    table["split"] = ["train", "validation"] * 3
    with pytest.raises(ValueError, match="3 embeddings fit its train rows and its validation rows alike: say which"):
        rows_of_embeddings(torch.zeros(3, 2), table)
    assert rows_of_embeddings(torch.zeros(3, 2), table, "validation").tolist() == [1, 3, 5]


def test_rows_that_are_not_finite_are_named_as_in_the_table(table: DataFrame) -> None:
    embeddings = torch.zeros(3, 2)
    embeddings[1, 0], embeddings[2, 1] = torch.nan, torch.inf
    table = pd.concat([table.iloc[:3], table.iloc[3:]])
    with pytest.raises(ValueError, match=r"2 of 3 have NaN or infinite numbers, those of the table's rows 3, 4\."):
        rows_of_embeddings(embeddings, table)
