from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from oml.datasets.base import DatasetWithLabels
from oml.inference.flat import extract_embeddings
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
    with (
        pytest.warns(UserWarning, match="row 4, .* It is skipped"),
        pytest.raises(ValueError, match=r"left some of the items 3 to 5 out.*oml check TABLE --images"),
    ):
        extract_embeddings(Mean(), lenient, batch_size=3)
