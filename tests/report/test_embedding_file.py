import pandas as pd
import pytest
import torch
from pandas import DataFrame

from oml.report.embedding_file import rows_of_embeddings


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
