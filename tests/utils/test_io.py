import hashlib
import logging
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import oml.utils.io
from oml.utils.io import (
    DownloadError,
    atomic_path,
    calc_file_hash,
    calc_folder_hash,
    check_exists_and_validate_md5,
    download_checkpoint,
    download_checkpoint_one_of,
    download_file_from_url,
    new_folder,
)


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


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def test_folder_hash(tmp_path: Path) -> None:
    (tmp_path / "b" / "deep").mkdir(parents=True)
    (tmp_path / "b" / "deep" / "x").write_bytes(b"1")
    (tmp_path / "b.txt").write_bytes(b"2")
    (tmp_path / "a").write_bytes(b"3")
    by_hand = "a" + "b.txt" + "b/deep/x" + md5(b"3") + md5(b"2") + md5(b"1")  # "." sorts before "/"
    assert calc_folder_hash(tmp_path) == md5(by_hand.encode())
    (tmp_path / "a").rename(tmp_path / "A")
    assert calc_folder_hash(str(tmp_path)) != md5(by_hand.encode())
    with pytest.raises(NotADirectoryError, match="needs a folder"):
        calc_folder_hash(tmp_path / "A")


def test_what_exists_is_compared_with_its_hash(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    assert check_exists_and_validate_md5(tmp_path / "file")
    assert check_exists_and_validate_md5(str(tmp_path / "file"), md5(b"content").upper())
    assert not check_exists_and_validate_md5(tmp_path / "file", md5(b"other"))
    assert check_exists_and_validate_md5(tmp_path)
    assert check_exists_and_validate_md5(tmp_path, calc_folder_hash(tmp_path))
    assert not check_exists_and_validate_md5(tmp_path, md5(b"content"))
    assert not check_exists_and_validate_md5(tmp_path / "absent")
    assert not check_exists_and_validate_md5(tmp_path / "absent", md5(b"content"))


CONTENT = bytes(range(256)) * 10_000  # more than one piece


def test_a_file_is_downloaded(web, answer, tmp_path: Path) -> None:
    web.answers = {"/a/file.bin?v=1": answer(CONTENT), "/moved": answer(b"", 302, location="/a/file.bin?v=1")}
    assert download_file_from_url(f"{web.url}/a/file.bin?v=1") == CONTENT
    assert download_file_from_url(f"{web.url}/moved", tmp_path / "new" / "file.bin") is None
    assert download_file_from_url(f"{web.url}/moved", str(tmp_path / "new" / "file.bin")) is None
    assert (tmp_path / "new" / "file.bin").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file.bin"]


def unused_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_failing_downloads_leave_nothing(web, answer, tmp_path: Path) -> None:
    web.answers = {
        "/short": answer(CONTENT, missing=7),
        "/empty": answer(b"", 204),
        "/broken": answer(b'{"detail": "disk on fire"}', 500),
        "/list": answer(b"[1, 2]", 500),
    }
    file = tmp_path / "file"
    file.write_text("as it was")
    for url, text in [
        (f"{web.url}/absent", "/absent answers with 404 Not Found."),
        (f"{web.url}/short", "/short broke off after 2,560,000 of 2,560,007 bytes."),
        (f"{web.url}/empty", "/empty answers with 204 No Content instead of 200."),
        (f"{web.url}/broken", "/broken answers with 500 Internal Server Error: disk on fire."),
        (f"{web.url}/list", "/list answers with 500 Internal Server Error."),
        (f"http://127.0.0.1:{unused_port()}/file", "Connection refused."),
    ]:
        for target in (file, None):
            with pytest.raises(DownloadError) as error:
                download_file_from_url(url, target)
            assert str(error.value).endswith(text)
            assert isinstance(error.value, RuntimeError)
    assert file.read_text() == "as it was"
    assert list(tmp_path.iterdir()) == [file]
    for url in ("", "file.bin", "file:///etc/passwd", "https://", "ftp://a.b/c"):
        with pytest.raises(ValueError, match=f"needs a URL of http or https, got {url!r}"):
            download_file_from_url(url, tmp_path / "new")


def test_a_silent_server_is_given_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts and never answers
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/file"
        with pytest.raises(DownloadError, match="/file cannot be reached: timed out"):
            download_file_from_url(url, tmp_path / "file", timeout=0.05)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(oml.utils.io, "CKPT_SAVE_ROOT", tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_a_checkpoint_is_downloaded_once(web, answer, checkpoints: Path) -> None:
    web.answers = {"/weights/my%20model.ckpt?x=1": answer(CONTENT)}
    url = f"{web.url}/weights/my%20model.ckpt?x=1"
    for hash_md5 in (md5(CONTENT)[:6], md5(CONTENT).upper()):
        assert download_checkpoint(url, hash_md5) == str(checkpoints / "my model.ckpt")
    assert len(web.requests) == 1
    assert download_checkpoint(url, md5(CONTENT), "other.ckpt") == str(checkpoints / "other.ckpt")
    assert names(checkpoints) == ["my model.ckpt", "other.ckpt"]
    assert {path.read_bytes() for path in map(checkpoints.joinpath, names(checkpoints))} == {CONTENT}


def test_a_file_put_by_hand_needs_no_network(checkpoints: Path) -> None:
    checkpoints.mkdir()
    (checkpoints / "model.ckpt").write_bytes(CONTENT)
    url = f"http://127.0.0.1:{unused_port()}/model.ckpt"
    assert Path(download_checkpoint(url, md5(CONTENT))).read_bytes() == CONTENT
    assert [path.name for path in checkpoints.iterdir()] == ["model.ckpt"]
    with pytest.raises(DownloadError, match=rf"Connection refused.*put it at {checkpoints}/model2\.ckpt"):
        download_checkpoint(url, md5(CONTENT), "model2.ckpt")


def test_a_wrong_file_does_not_stay(web, answer, checkpoints: Path, caplog: pytest.LogCaptureFixture) -> None:
    web.answers = {"/model.ckpt": answer(b"<html>please log in</html>")}
    with pytest.raises(DownloadError, match=f"gave a file with the MD5 {md5(b'<html>please log in</html>')} instead"):
        download_checkpoint(f"{web.url}/model.ckpt", md5(CONTENT))
    assert names(checkpoints) == []
    (checkpoints / "model.ckpt").write_bytes(b"of last year")
    web.answers = {"/model.ckpt": answer(CONTENT)}
    with caplog.at_level(logging.INFO):
        path = download_checkpoint(f"{web.url}/model.ckpt", md5(CONTENT))
    assert Path(path).read_bytes() == CONTENT
    assert "has not the hash" in caplog.text


def test_sources_are_tried_in_order(web, answer, checkpoints: Path) -> None:
    web.answers = {
        "/short/model.ckpt": answer(CONTENT, missing=1),
        "/wrong/model.ckpt": answer(b"other"),
        "/good/model.ckpt": answer(CONTENT),
    }
    bad = [f"{web.url}/{name}/model.ckpt" for name in ("absent", "short", "wrong")]
    good = f"{web.url}/good/model.ckpt"
    path = download_checkpoint_one_of([*bad, good, *bad], md5(CONTENT))
    assert path == str(checkpoints / "model.ckpt")
    assert Path(path).read_bytes() == CONTENT
    assert web.requests == [f"/{name}/model.ckpt" for name in ("absent", "short", "wrong", "good")]
    assert download_checkpoint_one_of(good, md5(CONTENT), "single.ckpt") == str(checkpoints / "single.ckpt")
    with pytest.raises(DownloadError) as error:
        download_checkpoint_one_of(bad, md5(CONTENT), "third.ckpt")
    for text in ("third.ckpt could", "404 Not Found", "broke off", f"the MD5 {md5(b'other')}", "by hand", "third.ckpt"):
        assert (text in str(error.value)) == (text != "by hand")
    assert "instead of" in str(error.value.__cause__)  # the last failure
    assert names(checkpoints) == ["model.ckpt", "single.ckpt"]


def test_ids_of_google_drive(web, answer, checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert oml.utils.io.GDRIVE_URL + "1abc" == "https://drive.google.com/uc?export=download&confirm=t&id=1abc"
    monkeypatch.setattr(oml.utils.io, "GDRIVE_URL", f"{web.url}/uc?id=")
    web.answers = {"/uc?id=1a_B-c": answer(CONTENT)}
    assert download_checkpoint("1a_B-c", md5(CONTENT)[:4], "model.ckpt") == str(checkpoints / "model.ckpt")
    assert download_checkpoint("1a_B-c", md5(CONTENT)[:4]) == str(checkpoints / "1a_B-c")


def test_checkpoints_check_their_arguments(checkpoints: Path) -> None:
    for hash_md5 in ("", "xyz", "0" * 33):
        with pytest.raises(ValueError, match=f"needs an MD5 hash, or its first digits, got {hash_md5!r}"):
            download_checkpoint("http://127.0.0.1/a", hash_md5)
    with pytest.raises(ValueError, match="ends without a file name"):
        download_checkpoint("http://127.0.0.1/a/", "00")
    with pytest.raises(ValueError, match="one or more sources"):
        download_checkpoint_one_of([], "00")
    assert not checkpoints.exists()


def test_callers_at_the_same_time_download_once(web, answer, checkpoints: Path) -> None:
    web.answers = {"/model.ckpt": answer(CONTENT)}
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: download_checkpoint(f"{web.url}/model.ckpt", md5(CONTENT)), range(8)))
    assert set(paths) == {str(checkpoints / "model.ckpt")}
    assert len(web.requests) == 1
    assert names(checkpoints) == ["model.ckpt"]


def test_processes_at_the_same_time_download_once(web, answer, tmp_path: Path) -> None:
    web.answers = {"/model.ckpt": answer(CONTENT)}
    code = "import sys; from oml.utils.io import download_checkpoint; print(download_checkpoint(*sys.argv[1:]))"
    command = [sys.executable, "-c", code, f"{web.url}/model.ckpt", md5(CONTENT)]
    environment = {"XDG_CACHE_HOME": str(tmp_path), "no_proxy": "127.0.0.1"}
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    printed = {process.communicate()[0] for process in processes}
    (path,) = printed
    assert Path(path.strip()).read_bytes() == CONTENT
    assert len(web.requests) == 1
