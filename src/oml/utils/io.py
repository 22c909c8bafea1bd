"""Writing files so that a reader never meets half of one, and hashing them."""

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path


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
