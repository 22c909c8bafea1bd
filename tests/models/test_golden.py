"""Embeddings of the original networks, whose checkpoints golden.json describes; ours must load them and agree."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from oml import models

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text())


def numbers(name: str, shape: list[int]) -> torch.Tensor:
    """The tensor of a checkpoint, by the rule of the file."""
    tensor = torch.empty(shape)
    flat, random, step = tensor.view(-1), np.random.RandomState(zlib.crc32(name.encode())), 2**24
    for start in range(0, len(flat), step):  # numpy draws in float64: the largest would need 5 GB at once
        flat[start : start + step] = torch.from_numpy(random.standard_normal(min(step, len(flat) - start)))
    if name.endswith("running_var"):
        return tensor.abs_().mul_(0.1).add_(1)
    if name.endswith("weight"):
        return tensor.mul_(0.1).add_(1) if len(shape) < 2 else tensor.div_(np.sqrt(np.prod(shape[1:])))
    return tensor.mul_(0.02)


def extractor_args(case: dict[str, Any]) -> dict[str, Any]:
    return {key: case[key] for key in ("gem_p", "remove_fc")} if case["class"] == "ResnetExtractor" else {}


@torch.no_grad()
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case["arch"], marks=[] if case["arch"] in ("vits16", "resnet18") else [pytest.mark.slow])
        for case in GOLDEN["cases"]
    ],
)
def test_original_checkpoints_give_the_original_embeddings(case: dict[str, Any], tmp_path: Path) -> None:
    def tensor(name: str, shape: list[int], dtype: str) -> torch.Tensor:
        return numbers(name, shape) if dtype == "float32" else torch.zeros(shape, dtype=torch.int64)

    torch.save({entry[0]: tensor(*entry) for entry in case["checkpoint"]}, tmp_path / "weights.pth")
    extractor = getattr(models, case["class"])(
        tmp_path / "weights.pth", arch=case["arch"], normalise_features=False, **extractor_args(case)
    ).eval()
    (tmp_path / "weights.pth").unlink()  # up to 4 GB
    size = case["size"]
    images = np.random.RandomState(case["image_seed"]).standard_normal((2, 3, size, size)).astype(np.float32)
    embeddings, expected = extractor(torch.from_numpy(images)), torch.tensor(case["expected"])
    assert embeddings.shape == expected.shape == (2, extractor.feat_dim)
    assert (embeddings - expected).abs().max() <= 2e-4 * expected.abs().max()
