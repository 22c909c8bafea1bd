import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from oml.datasets.pairs import EmbeddingPairsDataset, ImagePairsDataset
from oml.interfaces.datasets import IPairsDataset


def test_embeddings_pair_row_by_row() -> None:
    first, second = torch.arange(6.0).view(3, 2), torch.arange(6.0).view(3, 2) + 10
    dataset = EmbeddingPairsDataset(first, second, pair_1st_key="a", pair_2nd_key="b", index_key="i")
    assert isinstance(dataset, IPairsDataset)
    assert len(dataset) == 3
    batch = next(iter(DataLoader(dataset, batch_size=3)))
    assert torch.equal(batch["a"], first)
    assert torch.equal(batch["b"], second)
    assert batch["i"].tolist() == [0, 1, 2]
    assert (dataset.pairs_1st_key, dataset.pair_2nd_key) == ("a", "b")


@pytest.mark.parametrize(("first", "second"), [((3, 2), (2, 2)), ((3,), (3,))])
def test_embeddings_of_other_shapes(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    unchecked = inspect.unwrap(EmbeddingPairsDataset.__init__)  # the tests' own checks of shapes would come first
    with pytest.raises(ValueError, match=r"two tensors of one shape \(pair, dim\)"):
        unchecked(object.__new__(EmbeddingPairsDataset), torch.zeros(first), torch.zeros(second))


def test_images_pair_item_by_item(tmp_path: Path) -> None:
    for i in range(4):
        Image.fromarray(np.full((6, 8, 3), 40 * i, dtype=np.uint8)).save(tmp_path / f"{i}.png")
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    dataset = ImagePairsDataset(paths[:2], paths[2:], bboxes2=[(0, 0, 3, 3), None])
    item = dataset[0]
    assert item["idx"] == 0
    assert item["input_tensors_1"]["paths"] == str(paths[0])
    assert item["input_tensors_2"]["paths"] == str(paths[2])
    assert item["input_tensors_2"]["input_tensors"].shape == (3, 3, 3)
    assert dataset[1]["input_tensors_2"]["input_tensors"].shape == (3, 6, 8)
    assert len(dataset.dataset1) == len(dataset.dataset2) == len(dataset) == 2
    with pytest.raises(ValueError, match="got 2 and 1"):
        ImagePairsDataset(paths[:2], paths[:1])
