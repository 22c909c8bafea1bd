import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from oml.datasets import _missing
from oml.datasets._missing import missing_files


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in ("many", "few", "empty", "many/folder.jpg"):
        (tmp_path / folder).mkdir()
    for i in range(50):
        (tmp_path / "many" / f"{i}.jpg").touch()
    (tmp_path / "few" / "a.jpg").touch()
    (tmp_path / "top.jpg").touch()
    (tmp_path / "many" / "link.jpg").symlink_to("0.jpg")
    (tmp_path / "many" / "broken.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "many" / "circle.jpg").symlink_to("circle.jpg")
    (tmp_path / "linked").symlink_to("many")
    return tmp_path


@pytest.fixture
def paths(root: Path) -> list[str]:
    names = [*(f"{i}.jpg" for i in range(60)), "link.jpg", "broken.jpg", "circle.jpg", "folder.jpg", "0.JPG", ""]
    relative = [f"{folder}/{name}" for folder in ("many", "linked", "empty", "none", "top.jpg", ".") for name in names]
    relative += [
        "few/a.jpg",
        "few/b.jpg",
        "top.jpg",
        "many",
        "",
        ".",
        "few/../many/1.jpg",
        "x\0.jpg",
        "é.jpg",
        "a" * 999,
    ]
    return [*relative, *relative[::7], str(root / "many" / "3.jpg"), str(root / "many" / "99.jpg"), "/no/where.jpg"]


@pytest.mark.parametrize("worth_listing", [1, 10**9])
def test_it_agrees_with_asking_for_each(
    root: Path, paths: list[str], worth_listing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_missing, "_WORTH_LISTING", worth_listing)
    expected = [not os.path.isfile(os.path.join(root, path)) for path in paths]  # noqa: PTH113, PTH118 (the definition)
    assert 0 < sum(expected) < len(paths)
    assert missing_files(paths, root).tolist() == expected
    assert missing_files(pd.Series(paths), str(root)).tolist() == expected
    assert missing_files([Path(path) for path in paths[:50]], root).tolist() == expected[:50]
    monkeypatch.chdir(root)
    assert missing_files(paths).tolist() == expected


def test_a_folder_is_asked_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = os.path.isfile
    monkeypatch.setattr(os.path, "isfile", lambda path: asked.append(path) or real(path))
    assert not missing_files([f"many/{i}.jpg" for i in range(50)] * 3, root).any()
    assert asked == []
    assert missing_files([f"many/{i}.jpg" for i in range(51)], root).tolist() == [False] * 50 + [True]
    assert asked == [f"{root}/many/50.jpg"]  # it might go by another spelling


def test_a_folder_that_does_not_show_its_files(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: str) -> None:
        raise PermissionError(13, "Permission denied", folder)

    monkeypatch.setattr(os, "scandir", refuse)
    assert missing_files([f"many/{i}.jpg" for i in range(51)], root).tolist() == [False] * 50 + [True]


def test_what_is_no_path_and_what_is_empty(root: Path) -> None:
    cells = pd.Series(["top.jpg", None, np.nan, "top.jpg"], dtype=object)
    assert missing_files(cells, root).tolist() == [False, True, True, False]
    assert missing_files(cells.astype("category"), root).tolist() == [False, True, True, False]
    assert missing_files([], root).tolist() == []
    assert missing_files(pd.Series([], dtype=object), root).tolist() == []
