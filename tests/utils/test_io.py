import hashlib
from pathlib import Path

import pytest

from oml.utils.io import atomic_path, calc_file_hash, new_folder


def test_a_file_appears_complete_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("first")
        assert temporary.suffix == ".txt"
        assert not path.exists()
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:  # noqa: PT012 (both are under test)
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "first"
    with atomic_path(path) as temporary:
        temporary.write_text("second")
    assert path.read_text() == "second"
    assert [file.name for file in path.parent.iterdir()] == ["file.txt"]


def test_a_folder_appears_complete_and_never_over_another(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    for content in ("first", "second"):
        try:
            with atomic_path(path) as temporary:
                temporary.mkdir()
                (temporary / "file").write_text(content)
        except OSError:
            assert content == "second"
    assert (path / "file").read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_new_folders_never_meet(tmp_path: Path) -> None:
    folders = [new_folder(tmp_path / "runs", "demo") for _ in range(3)]
    assert [folder.name for folder in folders] == ["demo", "demo-2", "demo-3"]
    with pytest.raises(OSError, match="Not a directory|File exists"):
        new_folder(__file__, "demo")


def test_file_hash(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    assert calc_file_hash(tmp_path / "file") == hashlib.md5(b"content").hexdigest()
