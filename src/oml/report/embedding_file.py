"""Which rows of a table embeddings out of a file belong to."""

from collections.abc import Hashable

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from pandas import DataFrame
from torch import Tensor

from oml.const import SPLIT_COLUMN
from oml.datasets._table_rules import rows_where


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
