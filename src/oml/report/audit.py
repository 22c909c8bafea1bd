"""The audit of a data set: what its embeddings tell of wrong labels, copies and mixed labels, as a table."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from pandas import DataFrame
from torch import Tensor

from oml.const import LABELS_COLUMN, PATHS_COLUMN, SEQUENCE_COLUMN, SPLIT_COLUMN
from oml.datasets._table_rules import apply, bad_boxes, bad_labels
from oml.datasets.table import TableError
from oml.functional.findings import (
    copy_distances,
    mixed_labels,
    near_copies,
    nearest_across,
    nearest_items,
    wrong_labels,
)
from oml.functional.search import Neighbours

WRONG_LABEL, COPY_ACROSS, COPY_WITHIN, MIXED_LABELS = "wrong_label", "copy_across", "copy_within", "mixed_labels"
COLUMNS = {
    "kind": "object",
    "score": "float64",
    "group": "Int64",
    "row": "Int64",
    "label": "Int64",
    "suggested_label": "Int64",
    "path": "object",
    "split": "object",
    "other_row": "Int64",
    "other_label": "Int64",
    "other_path": "object",
    "other_split": "object",
    "distance": "float64",
    "crossing": "Int64",
}


class Audit(NamedTuple):
    """What was found in those rows of a table that have embeddings."""

    findings: DataFrame
    """a row for each, of each kind the surest first; see docs/retrieval.md for the columns"""
    items: DataFrame
    """the rows that have embeddings; the index tells where they stand in the table"""
    embeddings: Float[Tensor, "item dim"]
    neighbours: Neighbours
    agreement: float
    """how many items have a nearest neighbour of their label, of those that could have one"""
    chance: float
    """the same if neighbours were drawn at random"""


def audit_table(
    table: DataFrame,
    rows: Int[ndarray, " item"],
    embeddings: Float[Tensor, "item dim"],
    *,
    k: int = 10,
    min_score: float | int | None = None,
    max_distance: float | int | None = None,
) -> Audit:
    """Look for wrong labels, copies and mixed labels, see :mod:`oml.functional.findings`.

    If there is a column ``sequence``, items are not compared with those of their own sequence, except across splits.

    Args:
        table: With the columns label and path; split and sequence are used if they are there.
        rows: Positions in the table that the embeddings belong to.
        embeddings: One per row.
        k: Number of neighbours.
        min_score: Of wrong and mixed labels; by default those of the two functions.
        max_distance: Up to which items are copies; by default the data tell.

    Raises:
        TableError: There is no column label or path, or what stands in them or in boxes is none.
    """
    table = table.reset_index(drop=True)
    if missing := [column for column in (LABELS_COLUMN, PATHS_COLUMN) if column not in table.columns]:
        raise TableError(f"An audit needs the columns {missing}; the table has {list(table.columns)}.")
    if violations := apply([(bad_labels, [LABELS_COLUMN]), (bad_boxes, [])], table):
        raise TableError(f"An audit cannot use this table: {' '.join(violations)}")

    items = table.iloc[rows]
    labels = torch.from_numpy(items[LABELS_COLUMN].to_numpy(dtype=np.int64, copy=True))
    splits = items[SPLIT_COLUMN] if SPLIT_COLUMN in items else pd.Series("", index=items.index)
    sides = torch.from_numpy(pd.factorize(splits)[0].astype(np.int64))
    sequences = _sequences(items)
    neighbours = nearest_items(embeddings, k, items=sequences)

    def columns_of(ids: Int[Tensor, " finding"], prefix: str = "") -> dict[str, Any]:
        chosen = items.iloc[ids.numpy()]
        columns = {"row": chosen.index, "label": chosen[LABELS_COLUMN], "path": chosen[PATHS_COLUMN]}
        columns["split"] = splits.iloc[ids.numpy()]
        return {prefix + name: column.to_numpy() for name, column in columns.items()}

    scores = {} if min_score is None else {"min_score": min_score}
    parts = [_wrong(neighbours, labels, sequences, scores, columns_of)]
    limits = copy_distances(neighbours.distances) if max_distance is None else max_distance
    inside = sides[neighbours.ids.clamp(min=0)] == sides[:, None]
    for kind, found in (
        (COPY_ACROSS, nearest_across(embeddings, sides)),
        (COPY_WITHIN, neighbours._replace(distances=neighbours.distances.where(inside, torch.inf))),
    ):
        copies = near_copies(found, limits)
        part: dict[str, Any] = {"kind": kind, "score": copies.scores.numpy(), "group": copies.groups.numpy()}
        part |= columns_of(copies.pairs[:, 0]) | columns_of(copies.pairs[:, 1], "other_")
        parts.append(DataFrame({**part, "distance": copies.distances.numpy()}))
    mixed = mixed_labels(neighbours, labels, items=sequences, **scores)
    pairs = {"label": mixed.labels[:, 0].numpy(), "other_label": mixed.labels[:, 1].numpy()}
    pairs |= {"score": mixed.scores.numpy(), "crossing": mixed.crossing.numpy()}
    parts.append(DataFrame({"kind": MIXED_LABELS, **pairs}))

    findings = pd.concat([part.reindex(columns=list(COLUMNS)).astype(COLUMNS) for part in parts], ignore_index=True)
    return Audit(findings, items, embeddings, neighbours, *_agreement(neighbours, labels))


def _wrong(
    neighbours: Neighbours,
    labels: Int[Tensor, " item"],
    sequences: Int[Tensor, " item"] | None,
    scores: dict[str, Any],
    columns_of: Callable[..., dict[str, Any]],
) -> DataFrame:
    """Each item with its nearest neighbour of the label that is suggested."""
    wrong = wrong_labels(neighbours, labels, items=sequences, **scores)
    carries = labels[neighbours.ids[wrong.items]] == wrong.suggested[:, None]
    if len(wrong.items) == 0:
        return DataFrame({"kind": []})
    place = carries.int().argmax(dim=1, keepdim=True)
    nearest = neighbours.ids[wrong.items].gather(1, place)[:, 0]
    return DataFrame(
        {
            "kind": WRONG_LABEL,
            "score": wrong.scores.numpy(),
            "suggested_label": wrong.suggested.numpy(),
            **columns_of(wrong.items),
            **columns_of(nearest, "other_"),
            "distance": neighbours.distances[wrong.items].gather(1, place)[:, 0].numpy(),
        }
    )


def _sequences(items: DataFrame) -> Int[Tensor, " item"] | None:
    """Numbers of sequences; an item without one gets a number of its own."""
    if SEQUENCE_COLUMN not in items.columns:
        return None
    codes = pd.factorize(items[SEQUENCE_COLUMN])[0].astype(np.int64)
    return torch.from_numpy(np.where(codes < 0, codes.max(initial=0) + 1 + np.arange(len(codes)), codes))


def _agreement(neighbours: Neighbours, labels: Int[Tensor, " item"]) -> tuple[float, float]:
    _, code, counts = labels.unique(return_inverse=True, return_counts=True)
    could = counts[code] > 1
    if not could.any() or neighbours.ids.shape[1] == 0:
        return 0.0, 0.0
    nearest = neighbours.ids[could, 0]
    agrees = (nearest >= 0) & (labels[nearest.clamp(min=0)] == labels[could])
    return agrees.double().mean().item(), ((counts[code] - 1)[could].double().mean() / (len(labels) - 1)).item()
