"""Embeddings of a table's rows, out of a file."""

from collections.abc import Hashable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from pandas import DataFrame
from torch import Tensor

from oml.const import EMBEDDINGS_KEY, SPLIT_COLUMN
from oml.datasets._table_rules import rows_where


def read_embeddings(path: Path | str) -> Float[Tensor, "item dim"]:
    """The embeddings in a file.

    A .safetensors file has them under the key ``embeddings``, as ``oml demo`` writes them, a .npy file is one array, a
    .parquet file has a column ``embeddings`` of lists.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Another suffix, a file that cannot be read, no such key or column, or no matrix of floats.
        ModuleNotFoundError: A Parquet file without the extra ``parquet``.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"Embeddings are needed, but there is no file {str(path)!r}.")
    readers = {".safetensors": _read_safetensors, ".npy": _read_npy, ".parquet": _read_parquet, ".pq": _read_parquet}
    if (suffix := path.suffix.lower()) not in readers:
        raise ValueError(f"Embeddings are read from .safetensors, .npy or .parquet, got {str(path)!r}.")
    try:
        embeddings = readers[suffix](path)
    except (ModuleNotFoundError, _WrongContentError):
        raise
    except Exception as error:  # parsers have many kinds
        raise ValueError(f"Embeddings cannot be read from {str(path)!r}: {' '.join(str(error).split())}") from error
    if embeddings.ndim != 2 or not embeddings.is_floating_point() or embeddings.shape[1] == 0:
        raise ValueError(
            f"Embeddings need to be floats in two dimensions, item and dim, but those of {str(path)!r} have shape "
            f"{tuple(embeddings.shape)} and type {str(embeddings.dtype).removeprefix('torch.')}."
        )
    return embeddings


class _WrongContentError(ValueError):
    pass


def _read_safetensors(path: Path) -> Tensor:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        if EMBEDDINGS_KEY not in file.keys():  # noqa: SIM118 (it is no mapping)
            raise _WrongContentError(
                f"Embeddings are read under the key {EMBEDDINGS_KEY!r}, but {str(path)!r} has {sorted(file.keys())}."
            )
        return file.get_tensor(EMBEDDINGS_KEY)


def _read_npy(path: Path) -> Tensor:
    return torch.from_numpy(np.load(path, allow_pickle=False))


def _read_parquet(path: Path) -> Tensor:
    try:
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Embeddings in a Parquet file need pyarrow: pip install 'open-metric-learning[parquet]'."
        ) from error
    if EMBEDDINGS_KEY not in (names := parquet.read_schema(path).names):
        raise _WrongContentError(
            f"Embeddings are read from the column {EMBEDDINGS_KEY!r}, but {str(path)!r} has the columns {names}."
        )
    cells = parquet.read_table(path, columns=[EMBEDDINGS_KEY]).column(0).to_numpy()
    if len(cells) == 0:
        return torch.zeros(0, 1)
    sizes = np.array([-1 if cell is None else np.size(cell) for cell in cells])
    if len(bad := np.flatnonzero(sizes != sizes.max())):
        raise _WrongContentError(
            f"Embeddings need lists of one length in every row, but in {str(path)!r} rows {bad[:3].tolist()} "
            f"({len(bad)} in all) have not the {sizes.max()} numbers of the others."
        )
    return torch.from_numpy(np.stack(cells.tolist()))


def rows_of_embeddings(
    embeddings: Float[Tensor, "item dim"], table: DataFrame, split: Hashable | None = None
) -> Int[ndarray, " item"]:
    """Which rows of a table the embeddings belong to: all of them, or those of a split, in their order.

    Args:
        embeddings: One row per row of the table, or per row of the split.
        table: With or without a column ``split``.
        split: Of the embeddings. Without it, it is told by the number of rows.

    Raises:
        ValueError: The numbers do not fit, or fit more than one split; or embeddings are not finite.
    """
    parts = {"the whole table": np.arange(len(table))}
    if SPLIT_COLUMN in table.columns:
        splits = table[SPLIT_COLUMN]
        parts |= {f"its {name} rows": np.flatnonzero(splits == name) for name in splits.dropna().unique()}
        if split is not None and split not in splits.unique():
            raise ValueError(f"The table has no split {split!r}, but {sorted(map(str, splits.dropna().unique()))}.")
    elif split is not None:
        raise ValueError(f"The split {split!r} is asked for, but the table has no column {SPLIT_COLUMN!r}.")
    counts = ", ".join(f"{len(rows):,} for {name}" for name, rows in parts.items())
    wanted = parts if split is None else {f"its {split} rows": parts[f"its {split} rows"]}
    fitting = {name: rows for name, rows in wanted.items() if len(rows) == len(embeddings)}
    if not fitting:
        raise ValueError(
            f"Embeddings are needed for every row of the table or of one split ({counts}), got {len(embeddings):,}"
            f"{'' if split is None else f' for the split {split!r}'}. Embed exactly these rows, in their order."
        )
    if len(fitting) > 1 and "the whole table" not in fitting:
        raise ValueError(
            f"{len(embeddings):,} embeddings fit {' and '.join(fitting)} alike: say which split they are of."
        )
    rows = next(iter(fitting.values()))
    bad = np.zeros(len(table), dtype=bool)
    bad[rows] = ~embeddings.isfinite().all(dim=1).numpy()
    if bad.any():
        raise ValueError(
            f"Embeddings need to be finite, but {bad.sum():,} of {len(rows):,} have NaN or infinite numbers, those of "
            f"the table's {rows_where(bad)}. Look at the model, or at the images of these rows."
        )
    return rows
