"""What :class:`oml.metrics.embeddings.EmbeddingMetrics` needs to be given."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from oml.const import X1_KEY, X2_KEY, Y1_KEY, Y2_KEY
from oml.interfaces.retrieval import IDistancesPostprocessor
from oml.retrieval._checks import check_roles
from oml.retrieval.postprocessors.base import Postprocessor

BOX_KEYS = (X1_KEY, Y1_KEY, X2_KEY, Y2_KEY)


def check_arguments(
    top_k: Mapping[str, Any],
    fmr_vals: Any,
    pfc_variance: Any,
    extra_keys: Any,
    metrics_to_exclude_from_visualization: Any,
    postprocessor: Any,
    *,
    returned_metrics: bool,
    map_divide_by: str,
    on_missing: str,
) -> None:
    """Refuse arguments of its constructor that are out of their range; ``top_k`` holds those that end so."""
    names = {
        "extra_keys": extra_keys,
        "metrics_to_exclude_from_visualization": metrics_to_exclude_from_visualization,
    }
    for name, values in names.items():
        if isinstance(values, str):
            raise ValueError(
                f"EmbeddingMetrics needs a sequence of names in {name}, got the text {values!r}: give [{values!r}]."
            )
    sequences = {f"{name}_top_k": values for name, values in top_k.items()}
    sequences |= {"fmr_vals": fmr_vals, "pfc_variance": pfc_variance, "extra_keys": extra_keys}
    for name, values in sequences.items():
        if not isinstance(values, Sequence):
            raise TypeError(f"EmbeddingMetrics needs a list or tuple as {name}, got {values!r}.")
    if not (fmr_vals or returned_metrics or any(top_k.values())):
        raise ValueError("EmbeddingMetrics needs at least one of cmc_top_k, precision_top_k, map_top_k, fmr_vals.")
    for name, values in top_k.items():
        by_r, or_r = (("r",), " or 'r'") if name in ("precision", "map") else ((), "")
        if bad := [k for k in values if k not in by_r and (isinstance(k, bool) or not isinstance(k, int) or k < 1)]:
            raise ValueError(f"EmbeddingMetrics needs whole numbers of 1 or more{or_r} in {name}_top_k, got {bad}.")
    for name, values in (("fmr_vals", fmr_vals), ("pfc_variance", pfc_variance)):
        if bad := [share for share in values if not 0 <= share <= 1]:
            raise ValueError(f"EmbeddingMetrics needs shares between 0 and 1 in {name}, got {bad}.")
    if map_divide_by not in ("found", "min(k, n)", "n"):
        raise ValueError(f"EmbeddingMetrics divides map by 'found', 'min(k, n)' or 'n', got {map_divide_by!r}.")
    if on_missing not in ("raise", "ignore"):
        raise ValueError(f"EmbeddingMetrics: on_missing is 'raise' or 'ignore', got {on_missing!r}.")
    if not isinstance(postprocessor, Postprocessor | IDistancesPostprocessor | None):
        raise TypeError(
            "EmbeddingMetrics needs a Postprocessor, of oml.retrieval.postprocessors.base, or None as "
            f"postprocessor, got {type(postprocessor).__name__}."
        )
    lacking = [key for key in BOX_KEYS if key not in extra_keys]
    if 0 < len(lacking) < len(BOX_KEYS):
        raise ValueError(
            f"EmbeddingMetrics needs all four sides of boxes among its extra_keys or none, it lacks {lacking}."
        )


def as_tensor(key: str, values: Any) -> Tensor:
    """The numbers of an entry."""
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"EmbeddingMetrics needs numbers in {key!r}, got {type(values).__name__} of {values[0]!r} and others. "
            "Texts are numbered by pandas.factorize(texts)[0]."
        ) from error


def check_numbers(key: str, numbers: Tensor, *, is_role: bool) -> None:
    """Refuse what is not one whole number per item, or one of two for a role."""
    if numbers.ndim != 1:
        raise ValueError(f"EmbeddingMetrics needs one number per item in {key!r}, got shape {tuple(numbers.shape)}.")
    if is_role:
        check_roles("EmbeddingMetrics", key, numbers)
    elif numbers.is_floating_point() or numbers.dtype == torch.bool:
        raise ValueError(f"EmbeddingMetrics needs whole numbers in {key!r}, got {numbers.dtype}.")
