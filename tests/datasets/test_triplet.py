from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from oml.datasets.triplet import TriDataset, tri_collate
from oml.utils.images.images import imread_pillow

TRIPLETS = [("0.png", "1.png", "3.png"), ("2.png", "2.png", "0.png"), ("4.png", "3.png", "1.png")]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Image i is all of colour 20 * i."""
    root = tmp_path_factory.mktemp("triplets")
    for i in range(5):
        Image.fromarray(np.full((4, 5, 3), 20 * i, dtype=np.uint8)).save(root / f"{i}.png")
    return root


def numbers(dataset: TriDataset) -> list[tuple[int, ...]]:
    return [tuple(int(image[0, 0, 0]) // 20 for image in item["images"]) for item in dataset]


def test_given_triplets_come_first_and_others_are_drawn(root: Path) -> None:
    dataset = TriDataset(TRIPLETS, root, None, expand_ratio=40.5)
    assert len(dataset) == int(41.5 * 3)
    found = numbers(dataset)
    assert found[:3] == [(0, 1, 3), (2, 2, 0), (4, 3, 1)]
    drawn = found[3:]
    assert {triplet[:2] for triplet in drawn} == {(0, 1), (2, 2), (4, 3)}
    assert all(negative not in pair for *pair, negative in drawn)
    for pair, others in (((0, 1), {2, 3, 4}), ((2, 2), {0, 1, 3, 4}), ((4, 3), {0, 1, 2})):
        assert {triplet[2] for triplet in drawn if triplet[:2] == pair} == others


def test_the_seed_decides(root: Path) -> None:
    first, same, other = (numbers(TriDataset(TRIPLETS, root, None, 5.0, seed=seed)) for seed in (1, 1, 2))
    assert first == same
    assert first[:3] == other[:3]
    assert first != other


def test_batches_keep_the_order(root: Path) -> None:
    dataset = TriDataset(TRIPLETS, root, None, expand_ratio=0.0, f_imread=imread_pillow)
    batch = next(iter(DataLoader(dataset, batch_size=2, collate_fn=tri_collate)))
    assert set(batch) == {"input_tensors", "tri_ids", "images"}
    assert batch["tri_ids"] == ["0_a", "0_p", "0_n", "1_a", "1_p", "1_n"]
    assert [int(image[0, 0, 0]) // 20 for image in batch["images"]] == [0, 1, 3, 2, 2, 0]
    for tensor, expected in zip(batch["input_tensors"], [0, 1, 3, 2, 2, 0], strict=True):
        assert torch.equal(tensor, dataset._apply(imread_pillow(root / f"{expected}.png")))


def test_what_does_not_do(root: Path) -> None:
    with pytest.raises(ValueError, match="expand_ratio of 0 or more, got -0.5"):
        TriDataset(TRIPLETS, root, None, expand_ratio=-0.5)
    with pytest.raises(ValueError, match="three paths each, and one triplet or more"):
        TriDataset([], root, None, expand_ratio=0.0)
    with pytest.raises(ValueError, match="can draw no negative"):
        TriDataset([("0.png", "1.png", "0.png")], root, None, expand_ratio=1.0)
    with pytest.raises(FileNotFoundError, match=r"no file for 1 of 3 paths, such as .*9\.png"):
        TriDataset([("0.png", "1.png", "9.png")], root, None, expand_ratio=0.0)
