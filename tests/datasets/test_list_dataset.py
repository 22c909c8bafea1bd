import inspect
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from oml.datasets.list_dataset import ListDataset
from oml.datasets.table import TableError


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("list")
    paths = [root / f"{i}.png" for i in range(3)]
    for i, path in enumerate(paths):
        Image.fromarray(np.full((10, 12, 3), 50 * i, dtype=np.uint8)).save(path)
    return paths


def test_items_and_batches(paths: list[Path]) -> None:
    dataset = ListDataset(paths, input_tensors_key="x", index_key="i")
    assert repr(dataset) == "ListDataset(3 items)"
    assert set(dataset[1]) == {"x", "labels", "paths", "i"}
    assert (dataset[1]["labels"], dataset[1]["paths"]) == ("none", str(paths[1]))
    assert (dataset.input_tensors_key, dataset.index_key, dataset.paths_key) == ("x", "i", "paths")
    batch = next(iter(DataLoader(dataset, batch_size=3)))
    assert batch["x"].shape == (3, 3, 10, 12)
    assert batch["i"].tolist() == [0, 1, 2]


def test_boxes_give_the_size(paths: list[Path]) -> None:
    boxes = [(0, 0, 5, 4), None, (3, 1, 12, 10)]
    dataset = ListDataset([paths[0]] * 3, boxes)
    assert [tuple(dataset[i]["input_tensors"].shape[1:]) for i in range(3)] == [(4, 5), (10, 12), (9, 9)]
    assert [dataset[1][key] for key in ("x1", "y1", "x2", "y2")] == [0, 0, 12, 10]


def test_what_does_not_do(paths: list[Path]) -> None:
    with pytest.raises(ValueError, match="got 1 boxes for 3 paths"):
        ListDataset(paths, [None])
    unchecked = inspect.unwrap(ListDataset.__init__)  # the tests' own checks of annotations would come first
    with pytest.raises(ValueError, match=r"not so the boxes \[1\]"):
        unchecked(object.__new__(ListDataset), paths, [None, (1, 2, 3), None])
    with pytest.raises(TableError, match="x_1 must be below x_2"):
        ListDataset(paths, [None, (5, 2, 3, 4), None])
    with pytest.raises(TableError, match="at least one row"):
        ListDataset([])
