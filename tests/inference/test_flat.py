from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.processes import run_processes
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor

from oml.datasets.base import DatasetWithLabels
from oml.datasets.image_files import UnreadableImageError
from oml.datasets.list_dataset import ListDataset
from oml.inference.fast import Inference
from oml.inference.flat import extract_embeddings, inference_on_images
from oml.interfaces.models import IExtractor
from oml.utils.download_mock_dataset import download_mock_dataset


class Mean(IExtractor):
    """The mean colour; in training mode, noise."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    @property
    def feat_dim(self) -> int:
        return 3

    def forward(self, x: Tensor) -> Tensor:
        return torch.rand_like(x.mean(dim=(2, 3))) if self.training else x.mean(dim=(2, 3)) * self.scale


@pytest.fixture(scope="module")
def dataset(mock_root: Path) -> DatasetWithLabels:
    return DatasetWithLabels(download_mock_dataset(mock_root)[0], dataset_root=mock_root, input_tensors_key="x")


@pytest.mark.parametrize(("batch_size", "num_workers"), [(1, 0), (7, 0), (100, 0), (7, 1)])
def test_rows_follow_the_data_set(dataset: DatasetWithLabels, batch_size: int, num_workers: int) -> None:
    calls: list[tuple[int, int]] = []
    embeddings = extract_embeddings(
        Mean(), dataset, batch_size, num_workers, on_progress=lambda *call: calls.append(call)
    )
    expected = torch.stack([dataset[i]["x"].mean(dim=(1, 2)) for i in range(len(dataset))])
    torch.testing.assert_close(embeddings, expected)
    assert not embeddings.requires_grad
    assert calls[-1] == (len(dataset), len(dataset))


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_restored(dataset: DatasetWithLabels, training: bool) -> None:
    extractor = Mean().train(training)
    extract_embeddings(extractor, dataset)
    assert extractor.training is training

    def fail(done: int, total: int) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        extract_embeddings(extractor, dataset, on_progress=fail)
    assert extractor.training is training


def test_an_empty_data_set(dataset: DatasetWithLabels) -> None:
    with pytest.raises(ValueError, match="at least one item"):
        extract_embeddings(Mean(), torch.utils.data.Subset(dataset, []))


def test_items_left_out_are_an_error(dataset: DatasetWithLabels, tmp_path: Path) -> None:
    """Otherwise the rows after them would belong to other items."""
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    df = dataset.df.copy()
    df.loc[4, "path"] = str(tmp_path / "broken.jpg")
    lenient = DatasetWithLabels(df, on_unreadable="skip")
    with pytest.raises(UnreadableImageError, match=r"row 4, .*broken.jpg"):
        extract_embeddings(Mean(), lenient, batch_size=3)


@pytest.fixture(scope="module")
def paths(mock_root: Path) -> list[Path]:
    return [mock_root / path for path in download_mock_dataset(mock_root)[0]["path"]]


def means(paths: Sequence[Path | str], boxes: Any = None) -> Tensor:
    dataset = ListDataset(paths, boxes)
    return torch.stack([dataset[i]["input_tensors"].mean(dim=(1, 2)) for i in range(len(dataset))])


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_images_in_their_order(paths: list[Path], batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed: list[Path | str] = [str(paths[3]), paths[0], paths[3], *paths]
    model = Mean().train()
    found = inference_on_images(model, mixed, None, num_workers=0, batch_size=batch_size)
    torch.testing.assert_close(found, means(mixed))
    assert model.training
    assert not found.requires_grad
    monkeypatch.chdir(paths[0].parent)
    relative = inference_on_images(model, [paths[0].name], None, 0, 1)
    torch.testing.assert_close(relative, found[1:2])


def test_images_by_workers_and_in_parts(paths: list[Path]) -> None:
    boxes = [(i, 2, i + 8, 7) for i in range(len(paths))]
    found = inference_on_images(Mean(), paths, None, num_workers=1, batch_size=3, bboxes=boxes, accumulate_on_cpu=False)
    torch.testing.assert_close(found, means(paths, boxes))
    mixed = [None, *boxes[1:]]
    found = inference_on_images(Mean(), paths, None, 0, 1, bboxes=mixed)
    torch.testing.assert_close(found, means(paths, mixed))
    assert not torch.allclose(found[1:], means(paths)[1:])


def test_frozen_parts_stay_in_their_mode(paths: list[Path]) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).train()
    model[0].eval()
    inference_on_images(model, paths, None, 0, 4)
    assert [module.training for module in model.modules()] == [True, False, True, True]


def test_narrow_types(paths: list[Path]) -> None:
    """On a CPU use_fp16 changes nothing, also when some autocast is around; results are no narrower than float32."""
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
    exact = inference_on_images(model, paths, None, 0, 4)
    assert exact.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(inference_on_images(model, paths, None, 0, 4, use_fp16=True), exact)
    narrow = inference_on_images(model.bfloat16(), paths, lambda image: pil_to_tensor(image).bfloat16(), 0, 4)
    assert narrow.dtype == torch.float32
    wide = inference_on_images(model.double(), paths, lambda image: pil_to_tensor(image).double(), 0, 4)
    assert wide.dtype == torch.float64


def test_faster_inference_of_any_module(paths: list[Path]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).train()
    said: list[str] = []
    fast = Inference(dtype=torch.bfloat16, report=said.append)
    found = inference_on_images(model, paths, None, 0, 4, inference=fast)
    exact = inference_on_images(model, paths, None, 0, 4)
    assert "on 4 images" in said[0]
    assert found.dtype == torch.float32
    assert not torch.equal(found, exact)
    torch.testing.assert_close(found, exact, rtol=0.05, atol=0.05)
    with pytest.raises(ValueError, match=r"give Inference\(dtype=torch.float16\) alone"):
        inference_on_images(model, paths, None, 0, 4, use_fp16=True, inference=fast)


def test_what_no_rows_can_be_made_of(paths: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one row"):
        inference_on_images(Mean(), [], None, 0, 4)
    with pytest.raises(ValueError, match="there is none for row 0 .*none.jpg"):
        inference_on_images(Mean(), [tmp_path / "none.jpg"], None, 0, 4)
    with pytest.raises(ValueError, match=r"makes \(4, 3, \d+, \d+\) of 4 images"):
        inference_on_images(nn.Identity(), paths, None, 0, 4)
    boxes = [(0, 0, 5 + i, 5) for i in range(len(paths))]
    for num_workers in (0, 1):
        with pytest.raises(ValueError, match=r"images of one size, got \[3, 5, 5\], \[3, 5, 6\].*resize"):
            inference_on_images(Mean(), paths, None, num_workers, 4, bboxes=boxes)
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(UnreadableImageError, match="broken.jpg"):
        inference_on_images(Mean(), [*paths, tmp_path / "broken.jpg"], None, 0, 4)


@pytest.mark.parametrize(
    ("verbose", "patience", "shown"), [(True, 60, True), (None, 60, False), (None, 0, True), (False, 0, False)]
)
def test_progress(
    verbose: bool | None,
    patience: int,
    shown: bool,
    paths: list[Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("oml.inference._batches._PATIENCE", patience)
    inference_on_images(Mean(), paths, None, 0, 4, verbose)
    said = "".join(capsys.readouterr())
    assert (f"{len(paths)}/{len(paths)}" in said) == shown


def _embed_everywhere(rank: int, paths: list[str], out: Path) -> None:
    torch.save(inference_on_images(Mean(), paths, None, 0, 2), out / f"{rank}.pt")


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 7, 9])
def test_processes_share_the_images(n: int, paths: list[Path], tmp_path: Path) -> None:
    """Also when the images are fewer than the processes, or do not divide."""
    chosen = [str(path) for path in (paths * 2)[:n]]
    run_processes(_embed_everywhere, chosen, tmp_path, folder=tmp_path, n=3)
    for rank in range(3):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), means(chosen))
