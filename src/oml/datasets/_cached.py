"""Folders of files made by us: written whole or not at all, with a manifest by which they are checked when read."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from oml.const import IS_GALLERY_COLUMN, IS_QUERY_COLUMN, SPLIT_COLUMN, TRAIN_SPLIT, VALIDATION_SPLIT
from oml.utils.io import atomic_path

MANIFEST = "manifest.json"

Recipe = Mapping[str, Any]
"""All that a folder's content depends on, as JSON values; ``recipe["dataset"]`` names what it is."""


class Manifest(NamedTuple):
    """What a folder was made from, and the digest of each of its files by the file's relative path."""

    recipe: Recipe
    files: dict[str, str]


def digest(data: bytes) -> str:
    """SHA-256 of ``data``, the first 16 of its 64 hexadecimal digits: against accidents, not against forgers.

    Example:
        >>> digest(b"glyph")
        'fd1890afaf4b6544'
    """
    return hashlib.sha256(data).hexdigest()[:16]


def recipe_key(recipe: Recipe) -> str:
    """A short text that differs between recipes, to name a folder by.

    Example:
        >>> recipe_key({"size": 64, "seed": 0}) == recipe_key({"seed": 0, "size": 64}) != recipe_key({"size": 32})
        True
    """
    return digest(json.dumps(recipe, sort_keys=True).encode())[:12]


def manifest_text(recipe: Recipe, files: Mapping[str, str]) -> str:
    """The content of a manifest: JSON, so that a person can read it too."""
    return json.dumps({"recipe": recipe, "files": files}, indent=0, sort_keys=True)


def write_folder(root: Path, recipe: Recipe, files: Iterable[tuple[str, bytes]]) -> None:
    """Write ``files``, pairs of a relative path and its content, and their manifest into the new folder ``root``.

    ``root`` must not exist or be empty. When anything fails it stays so and the error goes on. When another
    process has meanwhile finished the same folder, that one is kept and ours thrown away.
    """
    try:
        with atomic_path(root) as temporary:
            digests, parents = {}, set()
            temporary.mkdir()
            for name, data in files:
                path = temporary / name
                if path.parent not in parents:  # asked once a folder, not once a file
                    path.parent.mkdir(parents=True, exist_ok=True)
                    parents.add(path.parent)
                path.write_bytes(data)
                digests[name] = digest(data)
            (temporary / MANIFEST).write_text(manifest_text(recipe, digests), encoding="utf-8")
    except OSError:
        if not (root / MANIFEST).is_file():
            raise


def read_manifest(root: Path, dataset: str) -> Manifest | None:
    """The manifest of the ``dataset`` in the folder ``root``, or ``None`` if nothing stands there yet.

    Raises:
        FileExistsError: ``root`` holds something else, that must not be touched.
        ValueError: The manifest cannot be read.
    """
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return None
    foreign = FileExistsError(
        f"{root} exists and is not a folder of the {dataset} data set: nothing was touched. "
        "Choose another folder, or move this one away."
    )
    if not (root / MANIFEST).is_file():
        raise foreign
    try:
        content = json.loads((root / MANIFEST).read_bytes())
    except ValueError as error:
        raise ValueError(
            f"The folder {root} is damaged: {MANIFEST} is no JSON ({error}). "
            f"If it is the {dataset} data set, delete the folder {root} and run again: it will be made anew."
        ) from error
    match content:
        case {"recipe": {"dataset": str(found), **recipe}, "files": dict(files)} if found == dataset:
            return Manifest({"dataset": found, **recipe}, files)
    raise foreign


def changed_files(root: Path, files: Mapping[str, str]) -> list[str]:
    """Those of ``files``, digests by relative path, that are missing in ``root`` or hold something else now.

    Every byte is read: 30,000 images take about half a second.
    """
    changed = []
    for name, expected in files.items():
        try:
            intact = digest((root / name).read_bytes()) == expected
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            intact = False
        if not intact:
            changed.append(name)
    return changed


def check_folder(root: Path, recipe: Recipe) -> None:
    """Raise a ``ValueError`` unless ``root`` was made after ``recipe`` and no file of it has changed since."""
    dataset = recipe["dataset"]
    manifest = read_manifest(root, dataset)
    if manifest is None:
        raise FileNotFoundError(f"The {dataset} folder {root} was removed while it was being read: run again.")
    remedy = f"Delete the folder {root} and run again: it will be made anew."
    if differing := [key for key in recipe if manifest.recipe.get(key) != recipe[key]]:
        raise ValueError(
            f"The {dataset} in {root} were made with "
            + ", ".join(f"{key}={manifest.recipe.get(key)} instead of {recipe[key]}" for key in differing)
            + f". Choose another root; or: {remedy}"
        )
    if damaged := changed_files(root, manifest.files):
        raise ValueError(
            f"The {dataset} in {root} are damaged: {len(damaged)} of {len(manifest.files)} files are missing or "
            f"changed, such as {', '.join(damaged[:3])}. {remedy}"
        )


def table_bytes(df: pd.DataFrame) -> bytes:
    """A table as CSV, without its index and alike on all systems."""
    return df.to_csv(index=False, lineterminator="\n").encode()


def split_table(df: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The train and the validation rows of a table, renumbered; the roles of the latter become bool."""
    train, validation = (
        df.loc[df[SPLIT_COLUMN] == split].reset_index(drop=True) for split in (TRAIN_SPLIT, VALIDATION_SPLIT)
    )
    return train, validation.astype({IS_QUERY_COLUMN: bool, IS_GALLERY_COLUMN: bool})
