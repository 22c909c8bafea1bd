"""Writing files so that a reader never meets half of one, hashing them, and downloading them."""

import hashlib
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from glob import escape
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from oml.const import CKPT_SAVE_ROOT, REQUESTS_TIMEOUT

if TYPE_CHECKING:
    from http.client import HTTPResponse
    from urllib.error import HTTPError

__all__ = [
    "DownloadError",
    "atomic_path",
    "calc_file_hash",
    "calc_folder_hash",
    "check_exists_and_validate_md5",
    "download_checkpoint",
    "download_checkpoint_one_of",
    "download_file_from_url",
    "download_from_hub",
    "find_checkpoint",
    "new_folder",
]

logger = logging.getLogger(__name__)

GDRIVE_URL = "https://drive.google.com/uc?export=download&confirm=t&id="  # confirm: no page about large files
CHUNK = 2**20  # bytes
_OK, _PARTIAL, _RANGE_NOT_SATISFIABLE = 200, 206, 416


class DownloadError(OSError, RuntimeError):
    """A file could not be downloaded. Also a ``RuntimeError``, which callers of earlier versions catch."""


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary name beside ``path`` to write a file or a folder to; renamed to ``path`` once all went well.

    When the body raises, what it wrote is removed and ``path`` is as it was. An existing file is replaced;
    an existing folder is not: that is an error, for nothing may be lost. Missing parents are made.

    Example:
        >>> folder = Path(tempfile.mkdtemp())
        >>> with atomic_path(folder / "note.txt") as temporary:
        ...     _ = temporary.write_text("done")
        >>> [file.name for file in folder.iterdir()]
        ['note.txt']
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # a folder of our own keeps the final name's suffix, by which many writers choose their format
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield scratch / path.name
        if (scratch / path.name).is_file():
            _as_created(scratch / path.name)
        (scratch / path.name).replace(path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _as_created(file: Path) -> None:
    """The permissions that new files have here; some writers leave narrower ones."""
    plain = file.parent / ".mode"
    plain.touch()
    file.chmod(plain.stat().st_mode)


def calc_file_hash(fname: str | Path, algorithm: str = "md5") -> str:
    """The hash of a file's content as hexadecimal text: MD5, or another ``algorithm`` of :mod:`hashlib`."""
    with Path(fname).open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def calc_folder_hash(folder: str | Path) -> str:
    """MD5 of a folder: of the sorted relative paths of its files, then the MD5s of the files in that order, as text.

    Raises:
        NotADirectoryError: ``folder`` is none.

    Example:
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "note.txt").write_text("done")
        >>> calc_folder_hash(folder) == hashlib.md5(b"note.txt" + hashlib.md5(b"done").hexdigest().encode()).hexdigest()
        True
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise NotADirectoryError(f"calc_folder_hash needs a folder, there is none at {str(folder)!r}.")
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    text = "".join([*names, *(calc_file_hash(folder / name) for name in names)])
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def check_exists_and_validate_md5(path: str | Path, md5: str | None = None) -> bool:
    """Whether there is a file or a folder at ``path`` and, if ``md5`` is given, it has that hash.

    Example:
        >>> check_exists_and_validate_md5("/no/such/file")
        False
    """
    path = Path(path)
    if not path.exists():
        return False
    return md5 is None or (calc_folder_hash(path) if path.is_dir() else calc_file_hash(path)) == md5.lower()


def download_file_from_url(
    url: str, fname: str | Path | None = None, timeout: float = REQUESTS_TIMEOUT
) -> bytes | None:
    """Download a file: into ``fname``, or as the bytes that come back if ``fname`` is ``None``.

    A file gets its name once it is whole, and replaces one that is there; missing parents are made.

    Args:
        url: of http or https; redirections are followed, and the proxies that the environment names are used.
        fname: file to write.
        timeout: seconds to wait for the server at any moment, not for the file as a whole.

    Raises:
        ValueError: ``url`` is none.
        DownloadError: The server cannot be reached, does not answer with 200, or sends less than it said it would.
    """
    if not _is_url(url):
        raise ValueError(f"download_file_from_url needs a URL of http or https, got {url!r}.")
    if fname is None:
        return b"".join(_chunks(_ask(url, timeout), url))
    with atomic_path(fname) as temporary, temporary.open("wb") as file:
        file.writelines(_chunks(_ask(url, timeout), url))
    return None


def download_checkpoint(url_or_fid: str, hash_md5: str | None, fname: str | None = None) -> str:
    """The path of a file in ``CKPT_SAVE_ROOT``, which is downloaded unless it is there with the right hash.

    The hash is checked before the file gets its name: what is there is right. A file of another hash is replaced.
    A download that breaks off goes on where it was, at the next call too, if the server can do that.
    Several processes that need the same file wait for the one that downloads it.

    Args:
        url_or_fid: URL, id of a file on Google Drive, ``hf:org/model/file`` on the Hugging Face Hub (without the
            file: ``model.safetensors``, or else ``pytorch_model.bin``; a revision as ``hf:org/model@revision``), or
            ``package:name/file`` for a file of an installed package. Those of the Hub and of packages stay where
            these keep them.
        hash_md5: hexadecimal MD5 of the content, or its first digits; SHA-256 as ``sha256:`` and the digits. With
            ``None`` any content is right. Files of the Hub are checked against the hash that the Hub has of them.
        fname: name of the file; by default the last part of the URL.

    Raises:
        ValueError: ``hash_md5`` is no hash, or the URL ends without a name and ``fname`` is not given.
        DownloadError: The download failed or has another hash. Says where to put the file by hand.
    """
    return download_checkpoint_one_of([url_or_fid], hash_md5, fname)


def download_checkpoint_one_of(
    url_or_fid_list: Sequence[str] | str, hash_md5: str | None, fname: str | None = None
) -> str:
    """As :func:`download_checkpoint`, from the first of several sources that works.

    Args:
        url_or_fid_list: sources in the order in which they are tried; or one of them.
        hash_md5: as in :func:`download_checkpoint`.
        fname: name of the file; by default the last part of the first URL.

    Raises:
        ValueError: There are no sources, or as :func:`download_checkpoint`.
        DownloadError: No source worked. Says why for each, and where to put the file by hand.
    """
    sources = [url_or_fid_list] if isinstance(url_or_fid_list, str) else list(url_or_fid_list)
    if not sources:
        raise ValueError("A checkpoint needs one or more sources to be downloaded from, got none.")
    wanted = None
    if hash_md5 is not None:
        if not re.fullmatch("(md5:)?[0-9a-fA-F]{1,32}|sha256:[0-9a-fA-F]{1,64}", hash_md5):
            raise ValueError(
                f"A checkpoint needs an MD5 hash, or sha256: and a SHA-256 hash, or its first digits, got {hash_md5!r}."
            )
        wanted = (hash_md5 if ":" in hash_md5 else f"md5:{hash_md5}").lower()
    if not (fname := Path(fname or unquote(urlsplit(sources[0]).path.split("/")[-1])).name):
        raise ValueError(f"The URL {sources[0]!r} ends without a file name: give one as fname.")
    path = CKPT_SAVE_ROOT / fname
    if found := _right_file(path, sources, wanted):
        return str(found)

    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    failures = []
    with FileLock(path.with_name(f".{path.name}.lock")):
        if found := _right_file(path, sources, wanted):  # another process was faster
            return str(found)
        if path.exists():
            logger.warning("%s has not the hash %s: it is downloaded anew.", path, wanted)
        for source in sources:
            try:
                return str(_download(source, path, wanted))
            except DownloadError as error:
                failures.append(error)
    wrong = f" The file that is there now has another hash than {wanted}." if path.exists() else ""
    raise DownloadError(
        f"{path.name} could not be downloaded: {' '.join(map(str, failures))} "
        f"If this machine has no access, download the file elsewhere and put it at {path}{wrong}"
    ) from failures[-1]


def find_checkpoint(sources: Iterable[str], fname: str) -> Path | None:
    """The file if it is here: in ``CKPT_SAVE_ROOT``, a package, or the cache of the Hub. Its content is not read."""
    path = CKPT_SAVE_ROOT / fname
    return path if path.is_file() else _kept_elsewhere(sources)


def download_from_hub(name: str) -> Path:
    """A file of the Hugging Face Hub in the cache of ``huggingface_hub``, which downloads it unless it is there.

    What is there is used as it is, without asking whether the Hub has a newer one. ``HF_ENDPOINT``, ``HF_HOME``,
    ``HF_HUB_OFFLINE`` and ``HF_TOKEN`` are respected.

    Args:
        name: ``org/model/file``; without the file it is ``model.safetensors``, or else ``pytorch_model.bin``. A
            revision stands after the model: ``org/model@revision``.

    Raises:
        DownloadError: The file cannot be had, or has not the SHA-256 that the Hub has of it; then it does not stay.
    """
    from huggingface_hub import hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    if cached := _in_hub_cache(name):
        return cached
    repo, revision, (file, *others) = _on_hub(name)
    url = hf_hub_url(repo, file, revision=revision)
    try:
        path = Path(hf_hub_download(repo, file, revision=revision))
    except Exception as error:  # its own, those of the HTTP client below it, which changes, and those of the disk
        unreachable = isinstance(error, LocalEntryNotFoundError)
        if others and isinstance(error, EntryNotFoundError) and not unreachable:
            return download_from_hub(f"{name}/{others[0]}")
        if getattr(error, "errno", None):
            raise
        reason = " ".join(str((unreachable and error.__cause__) or error).split())
        raise DownloadError(f"{url} cannot be downloaded: {reason}") from error
    # the Hub calls large files by their SHA-256, and its client checks no more than their size
    kept_as = path.readlink().name if path.is_symlink() else ""
    if re.fullmatch("[0-9a-f]{64}", kept_as) and calc_file_hash(path, "sha256") != kept_as:
        path.resolve().unlink()
        path.unlink()
        raise DownloadError(f"{url} gave a file with another SHA-256 than {kept_as}.")
    return path


def _right_file(path: Path, sources: Iterable[str], wanted: str | None) -> Path | None:
    return path if _has_hash(path, wanted) else _kept_elsewhere(sources)


def _kept_elsewhere(sources: Iterable[str]) -> Path | None:
    places = {"package": _in_package, "hf": _in_hub_cache}
    kinds = ((places.get(source.partition(":")[0]), source.partition(":")[2]) for source in sources)
    return next((file for find, name in kinds if find and (file := find(name))), None)


def _in_package(name: str) -> Path | None:
    package, _, file = name.partition("/")
    spec = find_spec(package)
    path = Path(spec.origin).parent / file if spec and spec.origin else None
    return path if path and path.is_file() else None


def _in_hub_cache(name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    repo, revision, files = _on_hub(name)
    cached = (try_to_load_from_cache(repo, file, revision=revision) for file in files)
    return next((Path(path) for path in cached if isinstance(path, str)), None)


def _on_hub(name: str) -> tuple[str, str | None, list[str]]:
    """Repository, revision and the files of which the first one that there is is meant."""
    organisation, _, rest = name.partition("/")
    model, _, file = rest.partition("/")
    model, _, revision = model.partition("@")
    return f"{organisation}/{model}", revision or None, [file] if file else ["model.safetensors", "pytorch_model.bin"]


def _download(source: str, path: Path, wanted: str | None) -> Path:
    """The file of a source, at ``path`` unless it is kept elsewhere."""
    kind, _, name = source.partition(":")
    if kind == "hf":
        return download_from_hub(name)
    if kind == "package":
        package = name.partition("/")[0]
        raise DownloadError(f"It comes with a package that is not installed: pip install {package.replace('_', '-')}.")
    url = source if _is_url(source) else GDRIVE_URL + quote(source)
    begun = path.with_name(f".{path.name}.{hashlib.sha256(url.encode()).hexdigest()[:8]}.partial")
    went_on = _fill(begun, url, checked=wanted is not None)
    found = _hash_like(wanted, begun)
    if found != wanted and went_on:  # it may have been made of parts of two files
        begun.unlink()
        _fill(begun, url, checked=True)
        found = _hash_like(wanted, begun)
    wrong = f"a file with the hash {found} instead of {wanted}" if found != wanted else ""
    if wanted is None or wrong:
        wrong = _web_page(begun) or wrong
    if wrong:
        for rest in path.parent.glob(f"{escape(begun.name)}*"):
            rest.unlink()
        raise DownloadError(f"{url} gave {wrong}.")
    begun.replace(path)
    for rest in path.parent.glob(f".{escape(path.name)}.????????.partial*"):
        rest.unlink()
    if wanted is not None:
        _note_right(path, wanted)
    return path


def _web_page(file: Path) -> str:
    """What a web page is called, such as one that asks to log in; empty if the file is none."""
    with file.open("rb") as opened:
        start = opened.read(2**14)
    if not re.match(rb"(\xef\xbb\xbf)?\s*<(!doctype )?html\b", start, re.IGNORECASE):
        return ""
    title = re.search(rb"<title[^>]*>(.*?)</title>", start, re.IGNORECASE | re.DOTALL)
    named = f", {' '.join(title[1].decode(errors='replace').split())!r}," if title else ""
    return f"a web page{named} instead of a file"


def _fill(begun: Path, url: str, checked: bool) -> bool:
    """Download into ``begun``, going on where an earlier attempt broke off if the server can; whether it did.

    Args:
        checked: the content will be compared with a hash. Otherwise what is there is used only if the server can
            tell that it is of the same file.
    """
    note = begun.with_name(f"{begun.name}.validator")
    while True:
        validator = note.read_text() if note.exists() else ""
        start = begun.stat().st_size if begun.exists() and (validator or checked) else 0
        response = _ask(url, REQUESTS_TIMEOUT, start, validator)
        content_range = response.headers.get("Content-Range", "")
        goes_on = start > 0 and content_range.startswith(f"bytes {start}-")
        if response.status != _OK and not goes_on:
            response.close()
            if content_range == f"bytes */{start}":  # nothing was missing
                return True
            begun.unlink()
            continue
        try:
            with begun.open("ab" if goes_on else "wb") as file:
                note.write_text(_validator(response))
                file.writelines(_chunks(response, url, start if goes_on else 0))
        except DownloadError:
            useless = not checked and not note.read_text()
            if useless or begun.stat().st_size < start + CHUNK:  # or hardly anything came
                raise
        except OSError as error:  # of the disk: when it is full, it does not say for what
            error.filename = error.filename or str(begun)
            raise
        else:
            return goes_on


def _validator(response: "HTTPResponse") -> str:
    """By which a server tells, when asked for the rest of a file, whether it is the same file still."""
    etag = response.headers.get("ETag", "W/")
    return response.headers.get("Last-Modified", "") if etag.startswith("W/") else etag


def _has_hash(path: Path, wanted: str | None) -> bool:
    """Whether there is a file with this hash. What was found right is not read again until it changes."""
    if wanted is None or not path.is_file():
        return path.is_file()
    with suppress(OSError):
        if _note_of(path).read_text() == _note(path, wanted):
            return True
    right = _hash_like(wanted, path) == wanted
    if right:
        _note_right(path, wanted)
    return right


def _hash_like(wanted: str | None, path: Path) -> str | None:
    """The hash of a file, of the kind and the number of digits of the one that is wanted."""
    if wanted is None:
        return None
    kind, _, digits = wanted.partition(":")
    return f"{kind}:{calc_file_hash(path, kind)[: len(digits)]}"


def _note_right(path: Path, wanted: str) -> None:
    with suppress(OSError):  # in a folder that others filled
        _note_of(path).write_text(_note(path, wanted))


def _note_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.verified")


def _note(path: Path, wanted: str) -> str:
    stat = path.stat()
    return f"{wanted} {stat.st_size} {stat.st_mtime_ns}"


def _is_url(text: str) -> bool:
    parts = urlsplit(text)
    return parts.scheme in ("http", "https") and bool(parts.netloc)


def _ask(url: str, timeout: float, start: int = 0, validator: str = "") -> "HTTPResponse":
    """The answer to a request for ``url`` from byte ``start`` on, if the server still has what ``validator`` tells.

    Raises:
        DownloadError: The server cannot be reached or has no content. That there is nothing from ``start`` on is an
            answer, of status 416.
    """
    # here, as they take longer to import than all that this module is mostly used for
    from http.client import HTTPException
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    headers = {"User-Agent": "open-metric-learning"}
    if start:
        headers |= {"Range": f"bytes={start}-"} | ({"If-Range": validator} if validator else {})
    try:
        response = urlopen(Request(url, headers=headers), timeout=timeout)  # noqa: S310 (http only)
    except HTTPError as error:
        if start and error.code == _RANGE_NOT_SATISFIABLE:
            return error  # pyright: ignore[reportReturnType] (it is an answer, too)
        reason = " ".join(str(error.reason).split())  # that of redirections has several lines
        raise DownloadError(f"{url} answers with {error.code} {reason}{_detail(error)}.") from error
    except (OSError, HTTPException) as error:
        raise DownloadError(f"{url} cannot be reached: {_reason(error)}.") from error
    if response.status not in ((_OK, _PARTIAL) if start else (_OK,)):
        with response:
            raise DownloadError(f"{url} answers with {response.status} {response.reason} instead of 200.")
    return response


def _chunks(response: "HTTPResponse", url: str, start: int = 0) -> Iterator[bytes]:
    """The content of an answer, piece by piece; ``start`` bytes were there before.

    Raises:
        DownloadError: It ends too early.
    """
    from http.client import HTTPException

    from tqdm import tqdm

    size = None if response.length is None else start + response.length
    done, name = start, urlsplit(url).path.split("/")[-1]
    with response, tqdm(total=size, initial=start, desc=name, unit="B", unit_scale=True, delay=2, leave=False) as bar:
        try:
            while data := response.read1(CHUNK):
                yield data
                done += len(data)
                bar.update(len(data))
        except (OSError, HTTPException) as error:
            raise DownloadError(f"{url} broke off after {done:,} bytes: {_reason(error)}.") from error
    if size is not None and done < size:  # which read1() takes for the end
        raise DownloadError(f"{url} broke off after {done:,} of {size:,} bytes.")


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", error)) or type(error).__name__


def _detail(error: "HTTPError") -> str:
    """What a JSON answer says of an error."""
    from http.client import HTTPException

    with error, suppress(OSError, ValueError, HTTPException):
        if isinstance(answer := json.loads(error.read(CHUNK)), dict) and "detail" in answer:
            return f": {answer['detail']}"
    return ""


def new_folder(parent: str | Path, name: str) -> Path:
    """Make the folder ``parent / name``, or ``name-2``, ``name-3`` ... if there is one: nothing is written over."""
    parent = Path(parent)
    parent.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise AssertionError("count() does not end")
