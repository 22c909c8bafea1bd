"""Thresholds for wanted rates of false matches over all pairs, and what a threshold costs, query by query."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from oml.functional.pair_blocks import measured
from oml.functional.pair_counts import AllowedPairs, positive_pairs
from oml.functional.verification import check_shares, n_admitted_at, negatives_around


class MatchRates(NamedTuple):
    """How many pairs match, which are those nearer than a threshold.

    Example:
        >>> points, labels = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([0, 0, 1])
        >>> rates = match_rates(points[:1], points[1:], labels[:1], labels[1:], torch.tensor([2.0]))
        >>> rates.n_false, rates.n_true
        (tensor([0]), tensor([[1]]))
    """

    n_false: Int[Tensor, " threshold"]
    """pairs of two labels that match"""
    n_negatives: int
    """pairs of two labels"""
    n_true: Int[Tensor, "threshold query"]
    """pairs of one label that match"""
    n_positives: Int[Tensor, " query"]
    """pairs of one label"""


@torch.no_grad()
def match_thresholds(
    queries: Float[Tensor, "query dim"],
    galleries: Float[Tensor, "gallery dim"],
    query_labels: Int[Tensor, " query"],
    gallery_labels: Int[Tensor, " gallery"],
    fmr_vals: Sequence[float | int],
    *,
    query_items: Int[Tensor, " query"] | None = None,
    gallery_items: Int[Tensor, " gallery"] | None = None,
    memory_budget: int = 512 * 2**20,
) -> Float[Tensor, " fmr"]:
    """The largest threshold below which at most a share of all pairs of two labels lies, for each wanted share.

    With ``c`` the largest count with ``c / n_negatives <= fmr``, it is the distance of the negative of rank ``c + 1``,
    and ``inf`` if there is none: a pair matches if it is *nearer* than that. So the rate holds exactly on these pairs,
    whatever distances are equal. It is the threshold of :func:`oml.functional.verification.tar_at_far`; distances and
    the way to count them are those of :func:`oml.functional.verification.verification_metrics`.

    Args:
        queries, galleries, query_labels, gallery_labels, query_items, gallery_items, memory_budget: as there.
        fmr_vals: shares in [0, 1].

    Raises:
        ValueError: as there.

    Example:
        >>> points, labels = torch.tensor([[0.0], [1.0], [3.0], [4.0]]), torch.tensor([0, 0, 1, 1])
        >>> match_thresholds(points[:1], points[1:], labels[:1], labels[1:], [0, 0.5, 1])
        tensor([3., 4., inf])
    """
    check_shares("match_thresholds", "fmr_vals", fmr_vals)
    pairs = AllowedPairs(
        "match_thresholds",
        queries,
        galleries,
        query_labels,
        gallery_labels,
        query_items,
        gallery_items,
        memory_budget,
    )
    ranks = [n_admitted_at(pairs.n_negatives, fmr) for fmr in fmr_vals]
    wanted = sorted({rank for rank in ranks if rank < pairs.n_negatives})
    around, _ = negatives_around(pairs, [(rank, rank) for rank in wanted], False, None, None)
    found = {rank: near.rank(rank) for rank, near in zip(wanted, around, strict=True)}
    return torch.tensor([found.get(rank, math.inf) for rank in ranks], dtype=pairs.dtype, device=queries.device)


@torch.no_grad()
def match_rates(
    queries: Float[Tensor, "query dim"],
    galleries: Float[Tensor, "gallery dim"],
    query_labels: Int[Tensor, " query"],
    gallery_labels: Int[Tensor, " gallery"],
    thresholds: Float[Tensor, " threshold"],
    *,
    query_items: Int[Tensor, " query"] | None = None,
    gallery_items: Int[Tensor, " gallery"] | None = None,
    memory_budget: int = 512 * 2**20,
) -> MatchRates:
    """How many of all pairs are nearer than each threshold: wrong ones in all, right ones by query.

    ``n_false / n_negatives`` is the false match rate; one less ``n_true.sum(1) / n_positives.sum()`` is the false
    non-match rate. Right pairs are told by query so that it can be told how sure their rate is, see
    :func:`oml.functional.calibration.share_interval`.

    Args:
        queries, galleries, query_labels, gallery_labels, query_items, gallery_items, memory_budget: of
            :func:`oml.functional.verification.verification_metrics`.
        thresholds: in any order; ``inf`` lets all pairs match.

    Raises:
        ValueError: as there, or if thresholds are NaN.

    Example:
        >>> points, labels = torch.tensor([[0.0], [1.0], [3.0], [4.0]]), torch.tensor([0, 0, 1, 1])
        >>> match_rates(points[:1], points[1:], labels[:1], labels[1:], torch.tensor([1.0, 3.5]))
        MatchRates(n_false=tensor([0, 1]), n_negatives=2, n_true=tensor([[0], [1]]), n_positives=tensor([1]))
    """
    if thresholds.isnan().any():
        raise ValueError("match_rates needs thresholds, got NaN.")
    pairs = AllowedPairs(
        "match_rates", queries, galleries, query_labels, gallery_labels, query_items, gallery_items, memory_budget
    )
    # the next number of the distances' dtype: nothing lies between
    limits = thresholds.to(pairs.dtype)
    limits = torch.where(limits < thresholds, limits.nextafter(limits.new_tensor(math.inf)), limits)
    values = sorted({limit for limit in limits.tolist() if 0 < limit < math.inf})
    near = pairs.counted([(value, value) for value in values], positive=False)
    below = {value: counted.n_below for value, counted in zip(values, near, strict=True)}
    n_false = [below.get(limit, pairs.n_negatives if limit > 0 else 0) for limit in limits.tolist()]

    n_true = torch.zeros(len(limits), len(queries), dtype=torch.int64, device=queries.device)
    n_positives = torch.zeros_like(query_labels, dtype=torch.int64)
    items = None if query_items is None or gallery_items is None else (query_items, gallery_items)
    n_at_once = max(1024, min(2**18, memory_budget // 256))
    for query, gallery in positive_pairs((query_labels, gallery_labels), items, n_at_once):
        distances = measured(queries, galleries, query, gallery, memory_budget // 8)
        n_positives.index_add_(0, query, torch.ones_like(query))
        for of_threshold, limit in zip(n_true, limits, strict=True):
            of_threshold.index_add_(0, query, (distances < limit).long())
    return MatchRates(torch.tensor(n_false, device=queries.device), pairs.n_negatives, n_true, n_positives)
