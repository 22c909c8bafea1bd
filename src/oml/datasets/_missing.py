"""Which of many files do not exist."""

# A Path for each of a million rows would take seconds.
# ruff: noqa: PTH113, PTH118

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool
from numpy import ndarray

_WORTH_LISTING = 32  # files of a folder; for fewer, each is asked for by name


def missing_files(paths: "pd.Series | Sequence[Path | str]", root: Path | str | None = None) -> Bool[ndarray, " path"]:
    """True for each path that is no file; relative ones are below ``root``, by default the working directory.

    The system is asked once for every folder that many of the paths are in, and otherwise once for every distinct
    path. Links count as what they point at, spelling as the file system has it.

    Example:
        >>> missing_files([__file__, __file__ + ".bak"]).tolist()
        [False, True]
    """
    cells = paths if isinstance(paths, pd.Series) else np.array([os.fspath(path) for path in paths], dtype=object)
    codes, distinct = pd.factorize(cells)
    numbers: dict[str, list[int]] = defaultdict(list)
    names: dict[str, list[str]] = defaultdict(list)
    for number, path in enumerate(distinct):
        folder, name = os.path.split(path)
        numbers[folder].append(number)
        names[folder].append(name)
    missing = np.ones(len(distinct) + 1, dtype=bool)  # the last one is for empty cells, whose code is -1
    for folder in numbers:
        missing[numbers[folder]] = ~np.fromiter(_are_files(os.path.join(root or "", folder), names[folder]), dtype=bool)
    return missing[codes]


def _are_files(folder: str, names: Sequence[str]) -> Iterable[bool]:
    listed: set[str] = set()
    if len(names) >= _WORTH_LISTING:
        try:
            with os.scandir(folder or ".") as entries:
                # of a folder much larger than what is looked for, not all is read
                listed = {entry.name for entry in islice(entries, 8 * len(names)) if _is_file(entry)}
        except (FileNotFoundError, NotADirectoryError):
            return (False for _ in names)
        except (OSError, ValueError):
            pass  # a folder may be open and still not show what is in it
    # what is not listed may go by another spelling where upper and lower case are one
    return (name in listed or os.path.isfile(os.path.join(folder, name)) for name in names)


def _is_file(entry: os.DirEntry) -> bool:
    try:
        return entry.is_file()
    except OSError:  # links that point at each other
        return False
