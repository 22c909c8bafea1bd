import json
from pathlib import Path

import pytest
from tests.web import Answer

from oml.utils import remote_storage
from oml.utils.io import DownloadError
from oml.utils.remote_storage import download_file_from_remote_storage, download_folder_from_remote_storage


@pytest.fixture
def storage(web, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(remote_storage, "STORAGE_URL", web.url)
    return web


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_file(storage, tmp_path: Path) -> None:
    storage.answers = {"/download/some%20folder/df.csv": Answer(b"label")}
    for path in ("some folder/df.csv", "/some folder/df.csv", "some folder/df.csv/"):
        assert download_file_from_remote_storage(path) == b"label"
    assert download_file_from_remote_storage("some folder/df.csv", tmp_path / "df.csv") is None
    assert content(tmp_path) == {"df.csv": b"label"}
    with pytest.raises(DownloadError, match="/download/other answers with 404"):
        download_file_from_remote_storage("other", tmp_path / "other")


@pytest.mark.parametrize("prefix", ["", "mock/set/"])
def test_a_folder(storage, tmp_path: Path, prefix: str) -> None:
    files = {"df.csv": b"label", "images/1.jpg": b"one", "images/deep/2 3.jpg": b"two"}
    listing = json.dumps({"remote_files": [prefix + name for name in files]}).encode()
    storage.answers = {f"/download/mock/set/{name.replace(' ', '%20')}": Answer(data) for name, data in files.items()}
    storage.answers["/ls/mock/set"] = Answer(listing)
    (tmp_path / "df.csv").write_bytes(b"old")
    download_folder_from_remote_storage("/mock/set/", tmp_path)
    assert content(tmp_path) == files


def test_listings_that_cannot_be_used(storage, tmp_path: Path) -> None:
    for listing, status, text in [
        (b'{"detail": "no such folder"}', 404, r"/ls/mock answers with 404 Not Found: no such folder\."),
        (b"<html>", 200, "/ls/mock gives no list of files"),
        (b"[]", 200, "/ls/mock gives no list of files"),
        (b"{}", 200, "/ls/mock gives no list of files"),
        (b'{"remote_files": [1]}', 200, "/ls/mock gives no list of files"),
        (b'{"remote_files": ["a.txt", "../b.txt"]}', 200, r"lists '\.\./b\.txt', which is not in the folder"),
        (b'{"remote_files": ["mock/../../b.txt"]}', 200, r"lists '\.\./\.\./b\.txt', which is not in the folder"),
        (b'{"remote_files": ["/etc/passwd"]}', 200, "lists '/etc/passwd', which is not in the folder"),
    ]:
        storage.answers = {"/ls/mock": Answer(listing, status)}
        with pytest.raises(DownloadError, match=text):
            download_folder_from_remote_storage("mock", tmp_path)
    assert storage.requests == ["/ls/mock"] * 8
    assert content(tmp_path) == {}
