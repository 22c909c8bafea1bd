"""What is kept of a calibration, and how it is read."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin

T = TypeVar("T")


@dataclass(frozen=True)
class FittedOn:
    """What a calibration was fitted on; ``None`` is what it was not told.

    ``n_pairs`` of a query and a result, ``n_relevant`` of them right, of ``n_queries`` queries of ``n_labels`` labels,
    of each the first ``top_k`` results. ``distance`` is the kind of the distances; ``extractor`` and ``table`` are
    digests of what the embeddings were made by and of.

    Example:
        >>> FittedOn(n_pairs=10, n_relevant=5).top_k is None
        True
    """

    n_pairs: int
    n_relevant: int
    n_queries: int | None = None
    n_labels: int | None = None
    top_k: int | None = None
    distance: str | None = None
    extractor: str | None = None
    table: str | None = None


@dataclass(frozen=True)
class Curve:
    """A :class:`oml.functional.calibration.Reliability` of ten bins as plain numbers.

    Example:
        >>> Curve((9,), (20,), (0.97,), (1.0,), (0.8,), (1.0,)).counts
        (20,)
    """

    bins: tuple[int, ...]
    counts: tuple[int, ...]
    predicted: tuple[float, ...]
    observed: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class Quality:
    """How right probabilities are for labels that they were not fitted on.

    Half of the labels, drawn by ``seed``, were fitted on, the pairs of the others judged. What is ``before`` takes for
    the probability what people take who have none: 1 at the smallest distance that was fitted on, 0 at the largest,
    straight in between. Intervals of the curves take whole labels as one, see
    :func:`oml.functional.calibration.share_interval`.

    Example:
        >>> Quality.__dataclass_fields__.keys() >= {"ece", "brier", "log_loss"}
        True
    """

    n_pairs: int
    n_labels: int
    seed: int
    base_rate: float
    ece: float
    brier: float
    log_loss: float
    ece_before: float
    brier_before: float
    curve: Curve
    curve_before: Curve


@dataclass(frozen=True)
class MatchThreshold:
    """Below which distance at most the share ``fmr`` of all ``n_wrong`` pairs of two labels lies.

    ``fnmr`` is the share of the pairs of one label that do not match at it, ``low`` to ``high`` its interval over
    labels. The same threshold of half of the labels alone gives the rates ``held_out_fmr`` and ``held_out_fnmr`` on the
    other half, ``None`` if these have no such pairs.

    Example:
        >>> MatchThreshold(0.01, 0.7, 1000, 0.2, 0.1, 0.3).distance
        0.7
    """

    fmr: float
    distance: float
    n_wrong: int
    fnmr: float
    low: float
    high: float
    held_out_fmr: float | None = None
    held_out_fnmr: float | None = None


def read_record(kind: type[T], content: Mapping[str, Any]) -> T:
    """A data class of the values that JSON has of it; those of further data classes have been made.

    Raises:
        ValueError: if values are missing, unknown or of another type.
    """
    hints = {field.name: field.type for field in fields(kind)}  # pyright: ignore[reportArgumentType] (all are data classes)
    if not isinstance(content, Mapping) or set(content) != set(hints):
        raise ValueError(f"it needs {', '.join(hints)} of a {kind.__name__}, and has {content!r:.200}.")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}
    if wrong := [key for key, value in values.items() if not _is(value, hints[key])]:
        raise ValueError(f"{wrong[0]} of a {kind.__name__} is {values[wrong[0]]!r:.200}.")
    return kind(**values)


def _is(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin is tuple:
        return isinstance(value, tuple) and all(_is(each, get_args(hint)[0]) for each in value)
    if origin is Literal:
        return value in get_args(hint)
    if origin is UnionType:
        return any(_is(value, each) for each in get_args(hint))
    return isinstance(value, int | float if hint is float else hint) and not isinstance(value, bool)
