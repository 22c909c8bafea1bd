"""inference_on_dataframe and what it keeps."""

import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tests.processes import run_processes
from torch import Tensor, nn
from torchvision.transforms import v2

from oml.datasets.base import BaseDataset
from oml.datasets.table import TableError
from oml.inference._content_key import UnknownContentError, digest_of_model, digest_of_transforms
from oml.inference.fast import Inference
from oml.inference.flat import extract_embeddings, inference_on_dataframe
from oml.interfaces.models import IExtractor
from oml.transforms.images.torchvision import get_normalisation_resize_torch
from oml.utils.download_mock_dataset import download_mock_dataset


class Linear(IExtractor):
    """Training would give noise, and forward another thing than extract."""

    n_calls = 0

    def __init__(self, normalise: bool = False) -> None:
        super().__init__()
        self.normalise = normalise
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("shift", torch.zeros(3))

    @property
    def feat_dim(self) -> int:
        return 3

    def forward(self, x: Tensor) -> Tensor:
        return torch.full((len(x), 3), torch.nan)

    def extract(self, x: Tensor) -> Tensor:
        type(self).n_calls += 1
        features = x.mean(dim=(2, 3)) * self.scale + self.shift
        return nn.functional.normalize(features) if self.normalise else features


@pytest.fixture
def root(mock_root: Path, tmp_path: Path) -> Path:
    """A copy of the mock data set that a test may change; train and validation rows alternate."""
    shutil.copytree(mock_root, tmp_path / "data")
    df = pd.concat(download_mock_dataset(mock_root))
    order = np.random.default_rng(0).permutation(len(df))
    df.iloc[order].to_csv(tmp_path / "data" / "df.csv", index=False)
    return tmp_path / "data"


TRANSFORMS = get_normalisation_resize_torch(im_size=16)


def embed(root: Path | str, **changes: Any) -> Any:
    arguments: dict[str, Any] = {"extractor": Linear(), "transforms": TRANSFORMS, "batch_size": 5}
    return inference_on_dataframe(root, "df.csv", **(arguments | changes))


def change(root: Path, **columns: Any) -> None:
    pd.read_csv(root / "df.csv").assign(**columns).to_csv(root / "df.csv", index=False)


@pytest.mark.parametrize("kind", ["absolute", "relative", "str", "dot"])
def test_rows_and_roots(root: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root if kind == "dot" else root.parent)
    given: Path | str = {"absolute": root, "relative": Path("data"), "str": "data", "dot": "."}[kind]
    train, val, df_train, df_val = embed(given)
    table = pd.read_csv(root / "df.csv")
    for found, df, split in ((train, df_train, "train"), (val, df_val, "validation")):
        rows = table[table["split"] == split]
        dataset = BaseDataset(rows, dataset_root=root, transform=TRANSFORMS)
        torch.testing.assert_close(found, extract_embeddings(Linear(), dataset))
        assert df.index.tolist() == list(range(len(rows)))
        assert df["path"].tolist() == [root / path for path in rows["path"]]
        assert df["label"].tolist() == rows["label"].tolist()


def test_boxes_are_respected(root: Path) -> None:
    change(root, x_1=3, y_1=2, x_2=12, y_2=9)
    _, val, _, df_val = embed(root)
    dataset = BaseDataset(df_val.drop(columns=["x_1", "x_2", "y_1", "y_2"]), transform=TRANSFORMS)
    assert not torch.allclose(val, extract_embeddings(Linear(), dataset))
    torch.testing.assert_close(val, extract_embeddings(Linear(), BaseDataset(df_val, transform=TRANSFORMS)))


def test_one_split(root: Path) -> None:
    table = pd.read_csv(root / "df.csv")
    table[table["split"] == "validation"].to_csv(root / "df.csv", index=False)
    train, val, df_train, df_val = embed(root)
    assert train.shape == (0, 3)
    assert len(df_train) == 0
    assert len(val) == len(df_val) > 0


def test_bad_tables(root: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none.csv"):
        inference_on_dataframe(root, "none.csv", Linear(), TRANSFORMS)
    change(root, split="test")
    with pytest.raises(TableError, match="split must be"):
        embed(root)


def test_what_is_kept_is_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a fresh extractor with the same weights and fresh transforms, with other labels, and relative roots."""
    cache = root.parent / "kept" / "cache"
    first = embed(root, output_cache_path=cache)
    assert [path.name for path in cache.parent.iterdir()] == ["cache"]
    before = Linear.n_calls
    monkeypatch.chdir(root.parent)
    change(root, label=pd.read_csv(root / "df.csv")["label"] + 100)
    second = embed(
        "data", output_cache_path="kept/cache", transforms=get_normalisation_resize_torch(im_size=16), batch_size=3,
        extractor=Linear().eval(),
    )  # fmt: skip
    assert Linear.n_calls == before
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert second[2]["label"].tolist() != first[2]["label"].tolist()
    with safe_open(cache, framework="pt") as file:
        assert file.keys() == ["embeddings"]


def _shift(extractor: Linear) -> Linear:
    extractor.shift += 1
    return extractor


def _scale(extractor: Linear) -> Linear:
    extractor.scale.data *= 2
    return extractor


class OtherCode(Linear):
    def extract(self, x: Tensor) -> Tensor:
        type(self).n_calls += 1
        return x.amax(dim=(2, 3))


def _swap_rows(root: Path) -> None:
    pd.read_csv(root / "df.csv").iloc[::-1].to_csv(root / "df.csv", index=False)


def _drop_a_row(root: Path) -> None:
    pd.read_csv(root / "df.csv").iloc[1:].to_csv(root / "df.csv", index=False)


def _another_image(root: Path) -> None:
    path = root / pd.read_csv(root / "df.csv")["path"][0]
    stat = path.stat()
    path.write_bytes((root / pd.read_csv(root / "df.csv")["path"][1]).read_bytes())
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1000))


@pytest.mark.parametrize(
    ("touch", "changes", "named"),
    [
        (lambda root: change(root, x_1=3, y_1=2, x_2=12, y_2=9), {}, "the paths or boxes"),
        (_swap_rows, {}, "the paths or boxes"),
        (_drop_a_row, {}, "the paths or boxes"),
        (_another_image, {}, "the image files"),
        (None, {"transforms": get_normalisation_resize_torch(im_size=12)}, "the transforms"),
        (None, {"transforms": v2.Compose([*TRANSFORMS.transforms, lambda x: x * 2])}, "the transforms"),
        (None, {"extractor": _shift(Linear())}, "the extractor"),
        (None, {"extractor": _scale(Linear())}, "the extractor"),
        (None, {"extractor": Linear(normalise=True)}, "the extractor"),
        (None, {"extractor": OtherCode()}, "the extractor"),
        (None, {"inference": Inference(dtype=torch.bfloat16, report=None, min_cosine=-1)}, "the precision"),
    ],
)
def test_whatever_changes_is_computed_anew(
    touch: Callable[[Path], None] | None, changes: dict[str, Any], named: str, root: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache.safetensors"
    embed(root, output_cache_path=cache)
    if touch is not None:
        touch(root)
    with pytest.warns(UserWarning, match=f"anew.*cache.safetensors.*a change of {named}[^,]*$"):
        found = embed(root, output_cache_path=cache, **changes)
    expected = embed(root, **changes)
    torch.testing.assert_close(found[1], expected[1])
    before = Linear.n_calls
    again = embed(root, output_cache_path=cache, **changes)
    assert Linear.n_calls == before
    assert torch.equal(again[0], found[0])


def test_another_root_is_another_data_set(root: Path, tmp_path: Path) -> None:
    """Copied with the times of change; the last letter of the image is another one."""
    shutil.copytree(root, tmp_path / "copy")
    embed(root, output_cache_path=tmp_path / "cache")
    with pytest.warns(UserWarning, match="a change of the root[^,]*$"):
        embed(tmp_path / "copy", output_cache_path=tmp_path / "cache")


def test_damage_is_found(root: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    expected = embed(root, output_cache_path=cache)
    whole = cache.read_bytes()
    for damaged in (whole[:-5], whole[:-3] + b"abc", b""):
        cache.write_bytes(damaged)
        with pytest.warns(UserWarning, match="it is damaged|does not say"):
            assert torch.equal(embed(root, output_cache_path=cache)[1], expected[1])
        before = Linear.n_calls
        assert torch.equal(embed(root, output_cache_path=cache)[1], expected[1])
        assert Linear.n_calls == before


def test_matrices_of_other_versions_are_replaced(root: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache.pth"
    torch.save(torch.zeros(len(pd.read_csv(root / "df.csv")), 3), cache)
    with pytest.warns(UserWarning, match="it does not say what its embeddings were made of"):
        found = embed(root, output_cache_path=cache)
    assert found[0].any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(embed(root, output_cache_path=cache)[0], found[0])


@pytest.mark.parametrize("kind", ["table", "weights", "safetensors"])
def test_files_of_others_stay(root: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "precious"
    if kind == "table":
        path.write_text("label,path\n1,a.jpg\n")
    elif kind == "weights":
        torch.save(Linear().state_dict(), path)
    else:
        save_file({"embeddings": torch.zeros(3, 3)}, path)
    content = path.read_bytes()
    with pytest.warns(UserWarning, match="no file of such embeddings, and stays as it is"):
        assert embed(root, output_cache_path=path)[0].any()
    assert path.read_bytes() == content


def test_files_that_cannot_be_written(root: Path, tmp_path: Path) -> None:
    """What was computed is not lost."""
    with pytest.raises(IsADirectoryError, match="is a folder"):
        embed(root, output_cache_path=tmp_path)
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="could not keep the embeddings in '.*file/cache'"):
        assert embed(root, output_cache_path=tmp_path / "file" / "cache")[0].any()


class Opaque:
    def __call__(self, image: Any) -> Tensor:
        return TRANSFORMS(image)

    def __reduce_ex__(self, protocol: int) -> Any:
        raise TypeError


def test_transforms_that_cannot_be_compared(root: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="neither reads nor writes '.*cache': .*nothing tells what is in a Opaque"):
        embed(root, output_cache_path=tmp_path / "cache", transforms=Opaque())
    assert not (tmp_path / "cache").exists()
    nested: list[Any] = []
    nested.append(nested)
    assert digest_of_transforms(nested) == digest_of_transforms(nested)
    deep: list[Any] = []
    for _ in range(10000):
        deep = [deep]
    with pytest.raises(UnknownContentError):
        digest_of_transforms(deep)


def _made(size: int, function: Any = None) -> list[Any]:
    albumentations = pytest.importorskip("albumentations")
    crop = albumentations.Compose([albumentations.RandomCrop(size, size), albumentations.HorizontalFlip(p=size / 64)])
    return [
        v2.Compose([v2.Resize(size), v2.RandomErasing(size / 64), v2.Normalize([size] * 3, [1.0] * 3)]),
        crop,
        lambda image: image[:size],
        v2.Lambda(lambda image: image * size),
    ]


def test_transforms_are_told_apart_by_what_they_do() -> None:
    keys = [digest_of_transforms(transforms) for transforms in _made(32)]
    used = _made(32)
    used[1](image=np.zeros((64, 64, 3), dtype=np.uint8))
    used[0](torch.zeros(3, 64, 64))
    assert [digest_of_transforms(transforms) for transforms in used] == keys
    others = [digest_of_transforms(transforms) for transforms in _made(16)]
    assert len({*keys, *others}) == 8


def test_models_are_told_apart_by_names_of_weights_too() -> None:
    weights = torch.ones(2, 2)
    models = [nn.ParameterDict({"a": nn.Parameter(weights)}), nn.ParameterDict({"b": nn.Parameter(weights)})]
    models += [
        nn.ParameterDict({"a": nn.Parameter(weights.half())}),
        nn.ParameterDict({"a": nn.Parameter(weights[:1])}),
    ]
    assert len({digest_of_model(model) for model in models}) == 4
    trained = nn.Sequential(nn.Dropout(0.1)).train()
    assert digest_of_model(trained) == digest_of_model(nn.Sequential(nn.Dropout(0.1)).eval())
    assert digest_of_model(trained) != digest_of_model(nn.Sequential(nn.Dropout(0.2)))


def _embed_everywhere(rank: int, root: Path, out: Path) -> None:
    found = embed(root, output_cache_path=out / "cache")
    torch.save((found[0], found[1], Linear.n_calls), out / f"{rank}.pt")


@pytest.mark.slow
def test_processes_keep_one_file(root: Path, tmp_path: Path) -> None:
    expected = embed(root)
    for computed in (True, False):
        folder = tmp_path / str(computed)
        folder.mkdir()
        run_processes(_embed_everywhere, root, tmp_path, folder=folder, n=2)
        for rank in range(2):
            train, val, n_calls = torch.load(tmp_path / f"{rank}.pt")
            torch.testing.assert_close(train, expected[0])
            torch.testing.assert_close(val, expected[1])
            assert (n_calls > 0) == computed
