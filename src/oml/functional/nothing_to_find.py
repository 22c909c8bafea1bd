"""One rule for queries that have nothing to find: they are found out before, named, and an error unless asked for."""

import warnings
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor


class NothingToFindError(ValueError, AssertionError):
    """Some queries have no relevant item in the gallery. Also an ``AssertionError``, which old callers catch.

    Example:
        >>> issubclass(NothingToFindError, ValueError) and issubclass(NothingToFindError, AssertionError)
        True
    """


def rows_to_evaluate(
    n_relevant: Int[Tensor, " query"],
    on_missing: Literal["raise", "ignore"] = "raise",
    *,
    ids: Int[Tensor, " query"] | None = None,
    labels: Int[Tensor, " query"] | None = None,
) -> Int[Tensor, " kept"]:
    """The rows of the queries that have something to find: all of them, unless others may be left out.

    A query with nothing to find has no meaningful value of any metric: its precision would be 0 / 0.

    Args:
        n_relevant: How many galleries are right for each query.
        on_missing: What to do about queries without any: ``raise``, or ``ignore`` to leave them out, with a warning.
        ids: What to call the queries, such as their rows in the data set; otherwise their own rows.
        labels: Theirs, for the text.

    Raises:
        NothingToFindError: There are such queries and they are not ignored, or none are left.
        ValueError: ``on_missing`` is something else.

    Example:
        >>> import torch
        >>> rows_to_evaluate(torch.tensor([2, 1]))
        tensor([0, 1])
    """
    if on_missing not in ("raise", "ignore"):
        raise ValueError(f"Queries with nothing to find: on_missing is 'raise' or 'ignore', got {on_missing!r}.")
    rows = (n_relevant > 0).nonzero().squeeze(1)
    if n_missing := len(n_relevant) - len(rows):
        missing = (n_relevant <= 0).nonzero().squeeze(1)[:3]
        text = (
            f"{n_missing} of {len(n_relevant)} queries have nothing to find: no other item of their label (and of "
            "another sequence, if they have one) is in the gallery. They are in rows "
            f"{(missing if ids is None else ids[missing]).tolist()}"
            + ("" if labels is None else f", with labels {labels[missing].tolist()}")
            + (f", and {n_missing - 3} more rows." if n_missing > 3 else ".")
        )
        if on_missing == "raise" or not len(rows):
            raise NothingToFindError(f"{text} Take them out of the queries, or pass on_missing='ignore'.")
        warnings.warn(f"{text} They are left out.", stacklevel=3)
    return rows


def count_relevant(
    is_gallery: Bool[Tensor, " query"],
    query_labels: Tensor,
    gallery_labels: Tensor,
    query_sequences: Tensor | None,
    gallery_sequences: Tensor | None,
) -> Tensor:
    """For each query the galleries of its label, less itself, if it is one, and those of its sequence.

    Args:
        is_gallery: Whether the query is a gallery, too.
        query_labels, gallery_labels: Theirs.
        query_sequences, gallery_sequences: Numbers of the sequences that they are from, -1 for none; both or neither.

    Example:
        >>> count_relevant(torch.tensor([True, False]), torch.tensor([7, 8]), torch.tensor([7, 7, 8]), None, None)
        tensor([1, 1])
    """
    found = _count(query_labels, gallery_labels)
    if query_sequences is None or gallery_sequences is None:
        return found - is_gallery.long()
    values, labels = torch.cat([query_labels, gallery_labels]).unique(return_inverse=True)
    pairs = (torch.cat([query_sequences, gallery_sequences]).long() + 1) * len(values) + labels
    own = _count(pairs[: len(query_labels)], pairs[len(query_labels) :])
    return found - torch.where(query_sequences < 0, is_gallery.long(), own)


def _count(wanted: Tensor, among: Tensor) -> Tensor:
    """How often each of ``wanted`` occurs in ``among``."""
    values, counts = among.unique(return_counts=True)
    if len(values) == 0:
        return torch.zeros_like(wanted)
    place = torch.searchsorted(values, wanted.contiguous()).clamp(max=len(values) - 1)
    return torch.where(values[place] == wanted, counts[place], 0)
