"""Writing files so that a reader never meets half of one, hashing them, and downloading them."""

import hashlib
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from oml.const import CKPT_SAVE_ROOT, REQUESTS_TIMEOUT

if TYPE_CHECKING:
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
    "new_folder",
]

logger = logging.getLogger(__name__)

GDRIVE_URL = "https://drive.google.com/uc?export=download&confirm=t&id="  # confirm: no page about large files
CHUNK = 2**20  # bytes


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


def calc_file_hash(fname: str | Path) -> str:
    """MD5 of a file's content, as hexadecimal text."""
    with Path(fname).open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


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
        return b"".join(_chunks(url, timeout))
    with atomic_path(fname) as temporary, temporary.open("wb") as file:
        file.writelines(_chunks(url, timeout))
    return None


def download_checkpoint(url_or_fid: str, hash_md5: str, fname: str | None = None) -> str:
    """The path of a file in ``CKPT_SAVE_ROOT``, which is downloaded unless it is there with the right hash.

    The hash is checked before the file gets its name: what is there is right. A file of another hash is replaced.
    Several processes that need the same file wait for the one that downloads it.

    Args:
        url_or_fid: URL, or the id of a file on Google Drive.
        hash_md5: hexadecimal MD5 of the content, or its first digits.
        fname: name of the file; by default the last part of the URL.

    Raises:
        ValueError: ``hash_md5`` is no hexadecimal text, or the URL ends without a name and ``fname`` is not given.
        DownloadError: The download failed or has another hash. Says where to put the file by hand.
    """
    return download_checkpoint_one_of([url_or_fid], hash_md5, fname)


def download_checkpoint_one_of(url_or_fid_list: Sequence[str] | str, hash_md5: str, fname: str | None = None) -> str:
    """As :func:`download_checkpoint`, from the first of several sources that works.

    Args:
        url_or_fid_list: URLs and ids of Google Drive, in the order in which they are tried; or one of them.
        hash_md5: hexadecimal MD5 of the content, or its first digits.
        fname: name of the file; by default the last part of the first URL.

    Raises:
        ValueError: There are no sources, or as :func:`download_checkpoint`.
        DownloadError: No source worked. Says why for each, and where to put the file by hand.
    """
    sources = [url_or_fid_list] if isinstance(url_or_fid_list, str) else list(url_or_fid_list)
    if not sources:
        raise ValueError("A checkpoint needs one or more sources to be downloaded from, got none.")
    if not re.fullmatch("[0-9a-fA-F]{1,32}", hash_md5):
        raise ValueError(f"A checkpoint needs an MD5 hash, or its first digits, got {hash_md5!r}.")
    if not (fname := Path(fname or unquote(urlsplit(sources[0]).path.split("/")[-1])).name):
        raise ValueError(f"The URL {sources[0]!r} ends without a file name: give one as fname.")
    path = CKPT_SAVE_ROOT / fname
    if _has_hash(path, hash_md5):
        return str(path)

    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    failures = []
    with FileLock(path.with_name(f".{path.name}.lock")):
        if _has_hash(path, hash_md5):  # another process was faster
            return str(path)
        if path.exists():
            logger.warning("%s has not the hash %s...: it is downloaded anew.", path, hash_md5)
        for source in sources:
            try:
                with atomic_path(path) as temporary:
                    download_file_from_url(source if _is_url(source) else GDRIVE_URL + quote(source), temporary)
                    if not _has_hash(temporary, hash_md5):
                        raise DownloadError(
                            f"{source} gave a file with the MD5 {calc_file_hash(temporary)} instead of {hash_md5}..."
                        )
            except DownloadError as error:
                failures.append(error)
            else:
                return str(path)
    raise DownloadError(
        f"{path.name} could not be downloaded: {' '.join(map(str, failures))} "
        f"If this machine has no access, download the file elsewhere and put it at {path}"
    ) from failures[-1]


def _has_hash(path: Path, start: str) -> bool:
    return path.is_file() and calc_file_hash(path).startswith(start.lower())


def _is_url(text: str) -> bool:
    parts = urlsplit(text)
    return parts.scheme in ("http", "https") and bool(parts.netloc)


def _chunks(url: str, timeout: float) -> Iterator[bytes]:
    """The content at ``url``, piece by piece; a failure of the network or the server is a ``DownloadError``."""
    # here, as they take longer to import than all that this module is mostly used for
    from http.client import OK, HTTPException
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    from tqdm import tqdm

    request = Request(url, headers={"User-Agent": "open-metric-learning"})  # noqa: S310 (http only)
    try:
        with urlopen(request, timeout=timeout) as response:  # noqa: S310
            if response.status != OK:
                raise DownloadError(f"{url} answers with {response.status} {response.reason} instead of 200.")
            size, done = response.length, 0
            name = urlsplit(url).path.split("/")[-1]
            with tqdm(total=size, desc=name, unit="B", unit_scale=True, delay=2, leave=False) as bar:
                while data := response.read(CHUNK):
                    yield data
                    done += len(data)
                    bar.update(len(data))
            if size is not None and done < size:  # which read() takes for the end
                raise DownloadError(f"{url} broke off after {done:,} of {size:,} bytes.")
    except DownloadError:
        raise
    except HTTPError as error:
        raise DownloadError(f"{url} answers with {error.code} {error.reason}{_detail(error)}.") from error
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise DownloadError(f"{url} cannot be reached: {reason or type(error).__name__}.") from error


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
