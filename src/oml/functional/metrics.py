"""Metrics of a given matrix of distances, under the names and signatures that callers of earlier versions know.

The formulas are those of :mod:`oml.functional.ranking`, :mod:`oml.functional.verification` and
:mod:`oml.functional.topology`. A matrix of all queries by all galleries is what these functions are given; for more
than some ten thousand items take :class:`oml.retrieval.RetrievalResults`, which never makes one.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from oml.functional.distances import elementwise_dist, pairwise_dist
from oml.functional.nothing_to_find import rows_to_evaluate
from oml.functional.ranking import average_precision_at_k, cmc_at_k, precision_at_k
from oml.functional.topology import pcf
from oml.functional.verification import fnmr_at_fmr

#: metric -> k (or false match rate, or share of variance) -> value
TMetricsDict = dict[str, dict[int | float, Tensor]]

_NUMBERS = 2**22  # of float64 distances at a time: 32 MiB
_Vector = Any  # a tensor, an array or a list of one entry per item; numpy is not loaded for its name


def calc_retrieval_metrics(
    distances: Float[Tensor, "query gallery"],
    mask_gt: Shaped[Tensor, "query gallery"],
    mask_to_ignore: Shaped[Tensor, "query gallery"] | None = None,
    cmc_top_k: Sequence[int] = (5,),
    precision_top_k: Sequence[int] = (5,),
    map_top_k: Sequence[int] = (5,),
    fmr_vals: Sequence[float | int] = (1,),
    reduce: bool = True,
    on_missing: Literal["raise", "ignore"] = "raise",
) -> TMetricsDict:
    """``{"cmc": {k: ...}, "precision": {k: ...}, "map": {k: ...}, "fnmr@fmr": {rate: ...}}``, of what is asked for.

    Equal distances rank by gallery. precision divides by ``min(k, n_relevant)``, map by the relevant items found.
    fnmr@fmr pools all pairs; its default rate of 1 sets the threshold at the largest distance of a negative pair. The
    tensors given are not changed.

    Args:
        distances: Of all pairs; smaller is closer.
        mask_gt: Whether the gallery is right for the query.
        mask_to_ignore: Pairs that count as neither right nor wrong, such as an item and itself.
        cmc_top_k, precision_top_k, map_top_k: Values of ``k``. One beyond the gallery is warned of, computed for the
            whole gallery, and reported under its own name.
        fmr_vals: False match rates in [0, 1].
        reduce: Return means over queries, otherwise a value per query; fnmr@fmr is one number anyway.
        on_missing: What to do about queries that have nothing to find: ``raise``, or ``ignore`` to leave them out of
            cmc, precision and map, with a warning.

    Raises:
        NothingToFindError: See ``on_missing``.
        ValueError: Nothing is asked for, shapes differ, distances are NaN, or a ``k`` or rate is out of range.

    Example:
        >>> distances = torch.tensor([[0.0, 2.0, 1.0], [2.0, 0.0, 3.0]])
        >>> mask_gt = torch.tensor([[True, True, False], [True, True, False]])
        >>> itself = torch.tensor([[True, False, False], [False, True, False]])
        >>> calc_retrieval_metrics(distances, mask_gt, itself, cmc_top_k=(1, 2), precision_top_k=(), map_top_k=())
        {'cmc': {1: tensor(0.5000), 2: tensor(1.)}, 'fnmr@fmr': {1: tensor(0.)}}
    """
    top_k = [*cmc_top_k, *precision_top_k, *map_top_k]
    if not (top_k or fmr_vals):
        raise ValueError("calc_retrieval_metrics needs some of cmc_top_k, precision_top_k, map_top_k, fmr_vals.")
    shapes = [tuple(given.shape) for given in (distances, mask_gt, mask_to_ignore) if given is not None]
    if distances.ndim != 2 or len(set(shapes)) > 1:
        raise ValueError(f"calc_retrieval_metrics needs matrices (query, gallery) of one shape, got {shapes}.")
    if (bad := distances.isnan().any(dim=1).nonzero().squeeze(1)).numel():
        raise ValueError(
            f"calc_retrieval_metrics needs distances, got NaN for {len(bad)} queries, such as {bad[:3].tolist()}."
        )
    metrics: TMetricsDict = {}
    if top_k:
        cut = dict(zip(top_k, _clipped(top_k, distances.shape[1]), strict=True))
        near, right = distances, mask_gt.bool()
        if mask_to_ignore is not None:
            near, right = apply_mask_to_ignore(near.clone(), right.clone(), mask_to_ignore)
        n_gt = right.sum(dim=1)
        rows = rows_to_evaluate(n_gt, on_missing)
        if len(rows) < len(n_gt):
            near, right, n_gt = near[rows], right[rows], n_gt[rows]
        gt_tops = right.gather(1, _nearest(near, max(cut.values())))
        values: TMetricsDict = {
            "cmc": {k: cmc_at_k(gt_tops, cut[k]) for k in cmc_top_k},
            "precision": {k: precision_at_k(gt_tops, n_gt, cut[k]) for k in precision_top_k},
            "map": {k: average_precision_at_k(gt_tops, cut[k]) for k in map_top_k},
        }
        metrics = {name: by_k for name, by_k in values.items() if by_k}
    if fmr_vals:
        pos_dist, neg_dist = extract_pos_neg_dists(distances, mask_gt, mask_to_ignore)
        metrics["fnmr@fmr"] = dict(zip(fmr_vals, calc_fnmr_at_fmr(pos_dist, neg_dist, fmr_vals), strict=True))
    return reduce_metrics(metrics) if reduce else metrics


def calc_topological_metrics(
    embeddings: Float[Tensor, "item dim"], pfc_variance: Sequence[float | int]
) -> TMetricsDict:
    """``{"pcf": {share of the variance: principal components fraction}}``, or ``{}`` if no shares are given.

    Example:
        >>> calc_topological_metrics(torch.eye(4, 10), pfc_variance=(0.5,))
        {'pcf': {0.5: tensor(0.2000)}}
    """
    if not pfc_variance:
        return {}
    return {"pcf": dict(zip(pfc_variance, calc_pcf(embeddings, pfc_variance), strict=True))}


def reduce_metrics(metrics_to_reduce: Mapping[Any, Any]) -> dict[Any, Any]:
    """The same nested dict with the mean of every tensor and array; numbers stay.

    Raises:
        ValueError: There is nothing to take the mean of.

    Example:
        >>> reduce_metrics({"OVERALL": {"cmc": {1: torch.tensor([1.0, 0.0])}, "n": 2}})
        {'OVERALL': {'cmc': {1: tensor(0.5000)}, 'n': 2}}
    """
    reduced = {}
    for name, value in metrics_to_reduce.items():
        if isinstance(value, Mapping):
            reduced[name] = reduce_metrics(value)
        elif isinstance(value, int | float):
            reduced[name] = value
        else:
            values = torch.as_tensor(value)
            if not values.numel():
                raise ValueError(f"reduce_metrics needs values to take the mean of, {name!r} has none.")
            reduced[name] = (values if values.is_floating_point() else values.float()).mean()
    return reduced


def calc_gt_mask(labels: _Vector, is_query: _Vector, is_gallery: _Vector) -> Bool[Tensor, "query gallery"]:
    """Whether query and gallery have the same label, also where both are the same item.

    Args:
        labels, is_query, is_gallery: Of all items; vectors of integers and of bools (or 0 and 1).

    Example:
        >>> calc_gt_mask([7, 7, 8], [1, 0, 0], [0, 1, 1])
        tensor([[ True, False]])
    """
    labels, is_query, is_gallery = _of_items("calc_gt_mask", labels, is_query, is_gallery)
    return labels[is_query.bool()][:, None] == labels[is_gallery.bool()]


def calc_mask_to_ignore(is_query: _Vector, is_gallery: _Vector) -> Bool[Tensor, "query gallery"]:
    """Whether query and gallery are the same item.

    Args:
        is_query, is_gallery: Of all items; vectors of bools (or 0 and 1).

    Example:
        >>> calc_mask_to_ignore([1, 1, 0], [0, 1, 1])
        tensor([[False, False],
                [ True, False]])
    """
    is_query, is_gallery = _of_items("calc_mask_to_ignore", is_query, is_gallery)
    return is_query.nonzero() == is_gallery.nonzero().squeeze(1)


def calc_distance_matrix(embeddings: _Vector, is_query: _Vector, is_gallery: _Vector) -> Float[Tensor, "query gallery"]:
    """L2 distances of all queries and galleries, in the order of the items.

    As in :func:`oml.functional.search.exact_search` they are evaluated in float64 and rounded to the inputs' dtype
    (float32 for half precision), so that what is equally far stays so.

    Args:
        embeddings: Of all items, (item, dim).
        is_query, is_gallery: Of all items; vectors of bools (or 0 and 1).

    Example:
        >>> calc_distance_matrix(torch.tensor([[0.0], [3.0], [7.0]]), [1, 0, 0], [0, 1, 1])
        tensor([[3., 7.]])
    """
    embeddings, is_query, is_gallery = _of_items("calc_distance_matrix", embeddings, is_query, is_gallery)
    dtype = torch.promote_types(embeddings.dtype, torch.float32)
    queries, galleries = (embeddings[role.bool()].double() for role in (is_query, is_gallery))
    parts = queries.split(max(1, _NUMBERS // max(1, len(galleries))))
    return torch.cat([pairwise_dist(part, galleries).to(dtype) for part in parts])


def apply_mask_to_ignore(
    distances: Float[Tensor, "query gallery"],
    mask_gt: Bool[Tensor, "query gallery"],
    mask_to_ignore: Shaped[Tensor, "query gallery"],
) -> tuple[Float[Tensor, "query gallery"], Bool[Tensor, "query gallery"]]:
    """Both matrices, changed in place: an ignored pair is infinitely far and not right.

    Example:
        >>> apply_mask_to_ignore(torch.zeros(1, 2), torch.tensor([[True, True]]), torch.tensor([[True, False]]))
        (tensor([[inf, 0.]]), tensor([[False,  True]]))
    """
    mask_to_ignore = mask_to_ignore.bool()
    return distances.masked_fill_(mask_to_ignore, torch.inf), mask_gt.masked_fill_(mask_to_ignore, False)


def extract_pos_neg_dists(
    distances: Float[Tensor, "query gallery"],
    mask_gt: Shaped[Tensor, "query gallery"],
    mask_to_ignore: Shaped[Tensor, "query gallery"] | None = None,
) -> tuple[Float[Tensor, " positive"], Float[Tensor, " negative"]]:
    """The distances of the right and of the wrong pairs, without those to ignore.

    Wrong pairs at infinite distance are left out too: :func:`apply_mask_to_ignore` made them so.

    Example:
        >>> extract_pos_neg_dists(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[True, False, False]]))
        (tensor([1.]), tensor([2., 3.]))
    """
    is_positive = mask_gt.bool()
    is_negative = ~is_positive & (distances != torch.inf)
    if mask_to_ignore is not None:
        is_positive, is_negative = (mask & ~mask_to_ignore.bool() for mask in (is_positive, is_negative))
    return distances[is_positive], distances[is_negative]


def calculate_accuracy_on_triplets(
    embeddings: Float[Tensor, "item dim"], reduce_mean: bool = True
) -> Float[Tensor, ""] | Float[Tensor, " triplet"]:
    """The share of triplets whose positive is strictly nearer than the negative, or 1 or 0 for each.

    Args:
        embeddings: Of anchor, positive, negative, anchor, positive, negative, ...
        reduce_mean: Whether to return the share.

    Raises:
        ValueError: The rows are not those of triplets, or not finite.

    Example:
        >>> calculate_accuracy_on_triplets(torch.tensor([[0.0], [1.0], [2.0], [0.0], [1.0], [1.0]]))
        tensor(0.5000)
    """
    if embeddings.ndim != 2 or len(embeddings) == 0 or len(embeddings) % 3:
        raise ValueError(
            "calculate_accuracy_on_triplets needs embeddings (item, dim) of anchor, positive, negative and so on, got "
            f"shape {tuple(embeddings.shape)}."
        )
    if len(bad := (~embeddings.isfinite().all(dim=1)).nonzero().squeeze(1)):
        raise ValueError(
            f"calculate_accuracy_on_triplets needs finite embeddings, got NaN or inf in {len(bad)} rows, such as "
            f"{bad[:5].tolist()}."
        )
    embeddings = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
    anchor, positive, negative = (embeddings[role::3] for role in range(3))
    right = (elementwise_dist(anchor, positive) < elementwise_dist(anchor, negative)).float()
    return right.mean() if reduce_mean else right


def calc_cmc(gt_tops: Shaped[Tensor, "query rank"], top_k: Sequence[int]) -> list[Float[Tensor, " query"]]:
    """For each ``k`` whether anything among the first ``k`` is right; see :func:`oml.functional.ranking.cmc_at_k`.

    Args:
        gt_tops: Whether the gallery at each rank is right.
        top_k: Values of ``k``; one beyond the ranks is warned of and cut.

    Example:
        >>> calc_cmc(torch.tensor([[False, True], [False, False]]), top_k=(1, 2))
        [tensor([0., 0.]), tensor([1., 0.])]
    """
    return [cmc_at_k(gt_tops.bool(), k) for k in _clipped(top_k, gt_tops.shape[1])]


def calc_precision(
    gt_tops: Shaped[Tensor, "query rank"], n_gt: Shaped[Tensor, " query"], top_k: Sequence[int]
) -> list[Float[Tensor, " query"]]:
    """For each ``k`` what is right among the first ``k``, divided by ``min(k, n_gt)``: an ideal ranking scores 1.

    See :func:`oml.functional.ranking.precision_at_k`.

    Args:
        gt_tops: Whether the gallery at each rank is right.
        n_gt: How many galleries are right for each query; at least 1.
        top_k: Values of ``k``; one beyond the ranks is warned of and cut.

    Example:
        >>> calc_precision(torch.tensor([[True, False, True]]), torch.tensor([2]), top_k=(2, 3))
        [tensor([0.5000]), tensor([1.])]
    """
    rows_to_evaluate(n_gt)
    return [precision_at_k(gt_tops.bool(), n_gt.long(), k) for k in _clipped(top_k, gt_tops.shape[1])]


def calc_map(
    gt_tops: Shaped[Tensor, "query rank"], n_gt: Shaped[Tensor, " query"], top_k: Sequence[int]
) -> list[Float[Tensor, " query"]]:
    """For each ``k`` the mean of the precisions at those of the first ``k`` ranks that are right.

    The denominator is the number of right galleries *found* among the first ``k``, and ``n_gt`` does not enter; see
    :func:`oml.functional.ranking.average_precision_at_k` for other denominators.

    Args:
        gt_tops: Whether the gallery at each rank is right.
        n_gt: How many galleries are right for each query; at least 1.
        top_k: Values of ``k``; one beyond the ranks is warned of and cut.

    Example:
        >>> calc_map(torch.tensor([[True, False, True]]), torch.tensor([4]), top_k=(2, 3))
        [tensor([1.]), tensor([0.8333])]
    """
    rows_to_evaluate(n_gt)
    return [average_precision_at_k(gt_tops.bool(), k) for k in _clipped(top_k, gt_tops.shape[1])]


def calc_fnmr_at_fmr(
    pos_dist: Float[Tensor, " positive"], neg_dist: Float[Tensor, " negative"], fmr_vals: Sequence[float | int] = (0.1,)
) -> Float[Tensor, " rate"]:
    """For each false match rate the share of positive pairs that its threshold turns down.

    See :func:`oml.functional.verification.fnmr_at_fmr`.

    Args:
        pos_dist: Distances of pairs of one label.
        neg_dist: Distances of pairs of two labels.
        fmr_vals: Rates in [0, 1].

    Example:
        >>> pos_dist = torch.tensor([0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 5.0, 5.0, 9.0, 9.0])
        >>> neg_dist = torch.tensor([3.0, 3.0, 4.0, 4.0, 6.0, 6.0, 7.0, 7.0, 8.0, 8.0])
        >>> calc_fnmr_at_fmr(pos_dist, neg_dist, fmr_vals=(0.1, 0.5))
        tensor([0.4000, 0.2000])
    """
    return fnmr_at_fmr(pos_dist, neg_dist, fmr_vals)


def calc_pcf(embeddings: Float[Tensor, "item dim"], pfc_variance: Sequence[float | int]) -> Float[Tensor, " variance"]:
    """The share of the dimensions that explains more than each share of the variance.

    See :func:`oml.functional.topology.pcf`.

    Example:
        >>> calc_pcf(torch.eye(4, 10), pfc_variance=(0.5, 1))
        tensor([0.2000, 0.5000])
    """
    return pcf(embeddings, pfc_variance)


def _of_items(owner: str, *values: _Vector) -> tuple[Tensor, ...]:
    tensors = tuple(torch.as_tensor(value) for value in values)
    if len({tuple(tensor.shape[:1]) for tensor in tensors}) > 1 or any(tensor.ndim != 1 for tensor in tensors[1:]):
        raise ValueError(f"{owner} needs one entry per item, got shapes {[tuple(tensor.shape) for tensor in tensors]}.")
    return tensors


def _clipped(top_k: Sequence[Any], n_ranks: int) -> list[int]:
    if not len(top_k) or any(isinstance(k, bool) or not isinstance(k, int) or k < 1 for k in top_k):
        raise ValueError(f"Metrics of a ranking need one or more positive ints as top_k, got {top_k!r}.")
    if beyond := sorted({k for k in top_k if k > n_ranks}):
        warnings.warn(f"There are {n_ranks} ranks: top_k {beyond} count as {n_ranks}.", stacklevel=3)
    return [min(k, max(n_ranks, 1)) for k in top_k]


def _nearest(distances: Float[Tensor, "query gallery"], k: int) -> Int[Tensor, "query rank"]:
    """The ``k`` nearest galleries of each query; equal distances rank by gallery."""
    nearest, ids = distances.topk(k, largest=False)
    ids = ids.sort(dim=1).values
    ids = ids.gather(1, distances.gather(1, ids).argsort(dim=1, stable=True))
    # which of several at the distance of the last rank is found is left open by topk
    last = nearest[:, -1:]
    tied = ((distances == last).sum(dim=1) > (nearest == last).sum(dim=1)).nonzero().squeeze(1)
    ids[tied] = distances[tied].argsort(dim=1, stable=True)[:, :k]
    return ids
