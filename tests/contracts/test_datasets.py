"""What every data set of images owes, whatever it is made of."""

import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pandas import DataFrame
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from oml.datasets.base import DatasetQueryGallery, DatasetWithLabels
from oml.datasets.list_dataset import ListDataset
from oml.datasets.pairs import ImagePairsDataset
from oml.datasets.triplet import TriDataset, tri_collate
from oml.transforms.images.torchvision import get_normalisation_resize_torch
from oml.utils.images.images import ShrinkingReader, imread_cv2, imread_pillow, imread_tensor

N = 7
BOXES = [(2, 1, 22, 19), None, (0, 0, 30, 20), (5, 5, 25, 15), None, (1, 2, 9, 10), (20, 10, 30, 20)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Smooth JPEG files of 30 x 20 pixels, each of another colour."""
    root = tmp_path_factory.mktemp("images")
    rows, columns = np.mgrid[:20, :30]
    for i in range(N):
        pixels = np.stack([columns * 6, rows * 10, np.full_like(rows, 30 * i)], axis=2).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"{i}.jpg", quality=95)
    return root


def table(boxes: bool) -> DataFrame:
    df = DataFrame(
        {
            "label": [4, 4, 4, 9, 9, 2, 2],
            "path": [f"{i}.jpg" for i in range(N)],
            "is_query": [True] * N,
            "is_gallery": [True] * N,
            "category": list("aaabbbb"),
            "sequence": ["v", "v", None, "w", None, "w", "w"],
        }
    )
    if boxes:
        df[["x_1", "y_1", "x_2", "y_2"]] = [(np.nan,) * 4 if box is None else box for box in BOXES]
    return df


KINDS: dict[str, Callable[..., Dataset]] = {
    "DatasetWithLabels": lambda root, **args: DatasetWithLabels(table(boxes=False), dataset_root=root, **args),
    "DatasetWithLabels, boxes": lambda root, **args: DatasetWithLabels(table(boxes=True), dataset_root=root, **args),
    "DatasetQueryGallery, boxes": lambda root, **args: DatasetQueryGallery(
        table(boxes=True), dataset_root=root, **args
    ),
    "ListDataset": lambda root, **args: ListDataset([root / f"{i}.jpg" for i in range(N)], BOXES, **args),
    "ImagePairsDataset": lambda root, **args: ImagePairsDataset(
        [root / f"{i}.jpg" for i in range(N)], [str(root / "0.jpg")] * N, BOXES, None, **args
    ),
    "TriDataset": lambda root, transform, **args: TriDataset(
        [("0.jpg", "1.jpg", "4.jpg"), ("4.jpg", "5.jpg", "2.jpg")], root, transform, expand_ratio=2.5, **args
    ),
}
READERS = {
    "pillow": imread_pillow,
    "cv2": imread_cv2,
    "tensor": imread_tensor,
    "shrinking": ShrinkingReader(min_side=8),
}


def tensors(item: Any) -> list[Tensor]:
    """All input tensors of an item, however deep."""
    if isinstance(item, dict):
        return [tensor for key, value in item.items() if key.startswith("input_tensors") for tensor in tensors(value)]
    return list(item) if isinstance(item, tuple) else [item]


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest, root: Path) -> Callable[..., Dataset]:
    def dataset(**args: Any) -> Any:
        return KINDS[request.param](root, transform=get_normalisation_resize_torch(16), **args)

    return dataset


def test_an_item_has_its_index_and_float_images(make: Callable[..., Any]) -> None:
    dataset = make()
    assert len(dataset) == N
    for i, item in enumerate(dataset):  # which ends, too
        assert item["idx"] == i
        assert all(tensor.shape == (3, 16, 16) and tensor.dtype == torch.float32 for tensor in tensors(item))
    assert dataset[-1]["idx"] == N - 1 or isinstance(dataset, ImagePairsDataset | TriDataset)
    with pytest.raises(IndexError):
        dataset[N]


@pytest.mark.parametrize("reader", READERS)
def test_the_reader_does_not_change_the_picture(make: Callable[..., Any], reader: str) -> None:
    expected, dataset = make(f_imread=imread_pillow), make(f_imread=READERS[reader])
    for i in range(N):
        for found, wanted in zip(tensors(dataset[i]), tensors(expected[i]), strict=True):
            assert (found - wanted).abs().mean() < 0.1  # of values that span about 4
            assert (found - wanted).abs().amax() < 0.35  # a side of a box may move by half a pixel


@pytest.mark.parametrize("reader", ["pillow", "tensor", "shrinking"])
def test_a_cache_changes_nothing_but_the_files_read(
    make: Callable[..., Any], reader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, cached = make(f_imread=READERS[reader]), make(f_imread=READERS[reader], cache_size=100_000)
    _ = [cached[i] for i in range(N)]
    items = [dataset[i] for i in range(N)]

    def no_more(*_: Any) -> bytes:
        raise AssertionError("a file was read again")

    monkeypatch.setattr(Path, "read_bytes", no_more)
    for i, item in enumerate(items):
        for found, wanted in zip(tensors(cached[i]), tensors(item), strict=True):
            assert torch.equal(found, wanted)
        assert {k: v for k, v in cached[i].items() if isinstance(v, int | str)} == {
            k: v for k, v in item.items() if isinstance(v, int | str)
        }


def test_a_small_cache_keeps_what_fits(make: Callable[..., Any]) -> None:
    dataset, cached = make(), make(cache_size=2 * 30 * 20 * 3)
    for i in [*range(N), *range(N)]:
        for found, wanted in zip(tensors(cached[i]), tensors(dataset[i]), strict=True):
            assert torch.equal(found, wanted)
    with pytest.raises(ValueError, match="cache_size of 0 or more bytes, got -1"):
        make(cache_size=-1)


def test_it_goes_through_pickle_with_its_cache(make: Callable[..., Any]) -> None:
    dataset = make(cache_size=100_000)
    _ = dataset[2]
    copy = pickle.loads(pickle.dumps(dataset))
    for found, wanted in zip(tensors(copy[2]), tensors(dataset[2]), strict=True):
        assert torch.equal(found, wanted)


def test_workers_see_the_same_items(make: Callable[..., Any]) -> None:
    dataset = make(cache_size=100_000)
    collate = tri_collate if isinstance(dataset, TriDataset) else None
    alone, together = (
        list(DataLoader(dataset, batch_size=3, num_workers=n, collate_fn=collate, multiprocessing_context=context))
        for n, context in ((0, None), (2, multiprocessing.get_context("fork")))
    )
    for found, wanted in zip(together, alone, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(tensors(found), tensors(wanted), strict=True))


@pytest.mark.parametrize("reader", READERS)
def test_boxes_of_one_file_are_kept_apart(root: Path, reader: str) -> None:
    paths, boxes = [root / "3.jpg"] * 3, [(0, 0, 9, 9), (20, 10, 30, 20), (0, 0, 9, 9)]
    transform = get_normalisation_resize_torch(16)
    dataset, cached = (ListDataset(paths, boxes, transform, READERS[reader], cache_size=size) for size in (0, 100_000))
    for i in [0, 1, 2, 0, 1, 2]:
        assert torch.equal(cached[i]["input_tensors"], dataset[i]["input_tensors"])
    assert not torch.allclose(cached[0]["input_tensors"], cached[1]["input_tensors"], atol=0.5)
    if reader != "shrinking":  # which decodes each box at a scale of its own
        assert cached._dataset._images._cache.n_bytes_used == 30 * 20 * 3


def test_pairs_and_triplets_with_an_unreadable_image_are_skipped(root: Path, tmp_path: Path) -> None:
    for name in ("0.jpg", "1.jpg"):
        (tmp_path / name).write_bytes((root / name).read_bytes())
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    good, bad = tmp_path / "0.jpg", tmp_path / "broken.jpg"
    pairs = ImagePairsDataset([good, good, good], [good, bad, good], on_unreadable="skip")
    triplets = TriDataset(
        [("0.jpg", "0.jpg", "broken.jpg"), ("0.jpg", "1.jpg", "1.jpg")], tmp_path, None, 0.0, on_unreadable="skip"
    )
    with pytest.warns(UserWarning, match="broken.jpg.* It is skipped"):
        batch = next(iter(DataLoader(pairs, batch_size=3)))
    assert batch["idx"].tolist() == [0, 2]
    with pytest.warns(UserWarning, match="broken.jpg.* It is skipped"):
        batch = next(iter(DataLoader(triplets, batch_size=2, collate_fn=tri_collate)))
    assert batch["tri_ids"] == ["1_a", "1_p", "1_n"]
    with pytest.raises(OSError, match="broken.jpg"):
        pairs[1]


def test_a_file_that_is_lost_is_an_error_at_once(root: Path, tmp_path: Path) -> None:
    (tmp_path / "0.jpg").write_bytes((root / "0.jpg").read_bytes())
    transform = get_normalisation_resize_torch(16)
    makers: list[Callable[[], Any]] = [
        lambda: DatasetWithLabels(table(boxes=False), dataset_root=tmp_path),
        lambda: DatasetQueryGallery(table(boxes=False), dataset_root=tmp_path),
        lambda: ListDataset([tmp_path / f"{i}.jpg" for i in range(N)]),
        lambda: ImagePairsDataset([tmp_path / "0.jpg"], [tmp_path / "9.jpg"]),
        lambda: TriDataset([("0.jpg", "1.jpg", "2.jpg")], tmp_path, transform, expand_ratio=0.0),
    ]
    for maker in makers:
        with pytest.raises((ValueError, FileNotFoundError), match=r"file.*\.jpg"):
            maker()
