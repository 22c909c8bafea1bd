import inspect
import warnings
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from oml.functional import metrics
from oml.functional.metrics import (
    apply_mask_to_ignore,
    calc_cmc,
    calc_distance_matrix,
    calc_fnmr_at_fmr,
    calc_gt_mask,
    calc_map,
    calc_mask_to_ignore,
    calc_pcf,
    calc_precision,
    calc_retrieval_metrics,
    calc_topological_metrics,
    calculate_accuracy_on_triplets,
    extract_pos_neg_dists,
    reduce_metrics,
)
from oml.functional.nothing_to_find import NothingToFindError, rows_to_evaluate

# six items of labels 0 0 0 0 1 1, each query and gallery: at which of its five ranks each finds its like
RIGHT_AT = [[0, 1, 3], [0, 3, 4], [1, 2, 4], [2, 3, 4], [0], [3]]
N_GT = [3, 3, 3, 3, 1, 1]
CMC = {1: "1 1 0 0 1 0", 2: "1 1 1 0 1 0", 3: "1 1 1 1 1 0", 4: "1 1 1 1 1 1", 5: "1 1 1 1 1 1"}
PRECISION = {
    1: "1 1 0 0 1 0",
    2: "1 1/2 1/2 0 1 0",
    3: "2/3 1/3 2/3 1/3 1 0",
    4: "1 2/3 2/3 2/3 1 1",
    5: "1 1 1 1 1 1",
}
MAP = {
    1: "1 1 0 0 1 0",
    2: "1 1 1/2 0 1 0",
    3: "1 1 7/12 1/3 1 0",
    4: "11/12 3/4 7/12 5/12 1 1/4",
    5: "11/12 21/30 53/90 43/90 1 1/4",
}


def numbers(text: str) -> Tensor:
    return torch.tensor([float(Fraction(number)) for number in text.split()])


def golden() -> tuple[Tensor, Tensor, Tensor]:
    """Distances that rank the five others of each item as ``RIGHT_AT`` says, the truth, and the item itself first."""
    labels = [0, 0, 0, 0, 1, 1]
    distances = torch.zeros(6, 6)
    for query, right_at in enumerate(RIGHT_AT):
        others = [item for item in range(6) if item != query]
        like = [item for item in others if labels[item] == labels[query]]
        unlike = [item for item in others if labels[item] != labels[query]]
        for rank in range(5):
            distances[query, (like if rank in right_at else unlike).pop(0)] = rank + 1
    everyone = torch.ones(6)
    return distances, calc_gt_mask(labels, everyone, everyone), calc_mask_to_ignore(everyone, everyone)


@pytest.mark.parametrize(("name", "table"), [("cmc", CMC), ("precision", PRECISION), ("map", MAP)])
def test_the_golden_table(name: str, table: dict[int, str]) -> None:
    ks = (*table, 10)
    expected = [numbers(table[min(k, 5)]) for k in ks]
    gt_tops, n_gt = torch.tensor([[rank in right for rank in range(5)] for right in RIGHT_AT]), torch.tensor(N_GT)
    single: Callable[..., list[Tensor]] = {
        "cmc": lambda ks: calc_cmc(gt_tops, ks),
        "precision": lambda ks: calc_precision(gt_tops, n_gt, ks),
        "map": lambda ks: calc_map(gt_tops, n_gt, ks),
    }[name]
    distances, mask_gt, itself = golden()
    others = {f"{other}_top_k": () for other in ("cmc", "precision", "map") if other != name}
    with pytest.warns(UserWarning, match=r"There are 5 ranks: top_k \[10\] count as 5"):
        values = single(ks)
    with pytest.warns(UserWarning, match=r"There are 6 ranks: top_k \[10\] count as 6"):
        found = calc_retrieval_metrics(
            distances, mask_gt, itself, **{f"{name}_top_k": ks}, **others, fmr_vals=(), reduce=False
        )
    assert list(found) == [name]
    assert list(found[name]) == list(ks)
    torch.testing.assert_close(values, expected)
    torch.testing.assert_close(list(found[name].values()), expected)
    torch.testing.assert_close([value for k in table for value in single((k,))], expected[:-1])


@settings(deadline=None, max_examples=200)
@given(
    n_queries=st.integers(1, 4),
    n_galleries=st.integers(1, 6),
    n_far=st.integers(1, 5),
    masked=st.booleans(),
    ks=st.lists(st.integers(1, 7), min_size=1, max_size=2, unique=True),
    seed=st.integers(0, 999),
)
def test_metrics_follow_the_definitions(
    n_queries: int, n_galleries: int, n_far: int, masked: bool, ks: list[int], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (n_queries, n_galleries)
    distances = torch.randint(n_far, shape, generator=generator).float()  # ties galore
    mask_gt = torch.rand(shape, generator=generator) < 0.4
    ignore = torch.rand(shape, generator=generator) < 0.3 if masked else torch.zeros(shape, dtype=torch.bool)
    literal: dict[str, dict[int, list[float]]] = {name: {k: [] for k in ks} for name in ("cmc", "precision", "map")}
    lost = 0
    for q in range(n_queries):
        pairs = [(float(distances[q, g]), g) for g in range(n_galleries) if not ignore[q, g]]
        right = [bool(mask_gt[q, g]) for _, g in sorted(pairs)]
        if not any(right):
            lost += 1
            continue
        for k in ks:
            found = [sum(right[: i + 1]) / (i + 1) for i in range(min(k, len(right))) if right[i]]
            literal["cmc"][k].append(float(any(right[:k])))
            literal["precision"][k].append(sum(right[:k]) / min(k, n_galleries, sum(right)))
            literal["map"][k].append(sum(found) / len(found) if found else 0.0)
    given_to_it = distances.clone(), mask_gt.clone(), ignore.clone() if masked else None
    arguments: dict[str, Any] = {"cmc_top_k": ks, "precision_top_k": ks, "map_top_k": ks, "fmr_vals": ()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of k beyond the gallery, and of queries left out
        if lost:
            with pytest.raises(NothingToFindError, match=f"{lost} of {n_queries} queries have nothing to find"):
                calc_retrieval_metrics(*given_to_it, **arguments)
        if lost < n_queries:
            values = calc_retrieval_metrics(*given_to_it, **arguments, reduce=False, on_missing="ignore")
            means = calc_retrieval_metrics(*given_to_it, **arguments, on_missing="ignore")
            for name, by_k in literal.items():
                for k, expected in by_k.items():
                    assert values[name][k].tolist() == pytest.approx(expected)
                    assert means[name][k].item() == pytest.approx(sum(expected) / len(expected))
    # the described system writes into what it is given
    assert torch.equal(given_to_it[0], distances)
    assert torch.equal(given_to_it[1], mask_gt)


def test_ties_beyond_the_last_rank_are_broken_by_gallery() -> None:
    """Among more equal distances than places, torch.topk takes any."""
    distances = torch.ones(3, 500)
    distances[1, 200] = 0.5
    mask_gt = torch.zeros(3, 500, dtype=torch.bool)
    mask_gt[:, 1] = True
    cmc = calc_retrieval_metrics(distances, mask_gt, cmc_top_k=(1, 2, 3), reduce=False)["cmc"]
    assert [value.tolist() for value in cmc.values()] == [[0, 0, 0], [1, 0, 1], [1, 1, 1]]


def test_ignored_pairs_do_not_count_for_fnmr() -> None:
    """The described system takes them for infinitely far negatives, which lifts every threshold."""
    distances = torch.tensor([[0.0, 4.0, 1.0, 2.0], [4.0, 0.0, 3.0, 5.0]])
    mask_gt, itself = torch.zeros(2, 4, dtype=torch.bool), torch.zeros(2, 4, dtype=torch.bool)
    mask_gt[0, :2] = mask_gt[1, :2] = True
    itself[0, 0] = itself[1, 1] = True
    positive, negative = extract_pos_neg_dists(distances, mask_gt, itself)
    assert (positive.tolist(), negative.tolist()) == ([4, 4], [1, 2, 3, 5])
    # thresholds 5 and 3.4 (numpy's linear quantiles of 1 2 3 5)
    arguments: dict[str, Any] = {"cmc_top_k": (), "precision_top_k": (), "map_top_k": (), "fmr_vals": (1, 0.7333)}
    found = calc_retrieval_metrics(distances, mask_gt, itself, **arguments)["fnmr@fmr"]
    assert {rate: float(value) for rate, value in found.items()} == {1: 0, 0.7333: 1}
    # also if the mask was applied before
    applied = apply_mask_to_ignore(distances.clone(), mask_gt.clone(), itself)
    assert calc_retrieval_metrics(*applied, **arguments)["fnmr@fmr"] == found
    # no mask: an item is its own positive, at distance 0
    assert extract_pos_neg_dists(distances, mask_gt)[0].tolist() == [0, 4, 4, 0]


def test_the_default_rate_is_the_farthest_negative() -> None:
    distances, mask_gt = torch.tensor([[1.0, 5.0, 2.0, 3.0]]), torch.tensor([[True, True, False, False]])
    found = calc_retrieval_metrics(distances, mask_gt, cmc_top_k=(1,), precision_top_k=(), map_top_k=())
    assert found == {"cmc": {1: 1}, "fnmr@fmr": {1: 0.5}}


def test_fnmr_by_hand() -> None:
    pos_dist = torch.tensor([0, 0, 1, 1, 2, 2, 5, 5, 9, 9]).float()
    neg_dist = torch.tensor([3, 3, 4, 4, 6, 6, 7, 7, 8, 8]).float()
    torch.testing.assert_close(calc_fnmr_at_fmr(pos_dist, neg_dist, (0.1, 0.5)), torch.tensor([0.4, 0.2]))
    for rates in ((), (1.1,), (-0.1, 0.5)):
        with pytest.raises(ValueError):  # noqa: PT011 (the text is that of functional.verification)
            calc_fnmr_at_fmr(pos_dist, neg_dist, rates)
    with pytest.raises(ValueError):  # noqa: PT011
        calc_fnmr_at_fmr(pos_dist, neg_dist[:0])


@pytest.mark.parametrize("top_k", [(), (0,), (1, -1), (1.0,), (10.0,), (True,), ("1",)])
def test_top_k_are_positive_ints(top_k: tuple) -> None:
    gt_tops, n_gt = torch.tensor([[True, False]]), torch.tensor([1])
    for function, arguments in (
        (calc_cmc, (gt_tops, top_k)),
        (calc_precision, (gt_tops, n_gt, top_k)),
        (calc_map, (gt_tops, n_gt, top_k)),
        *([(calc_retrieval_metrics, (gt_tops.float(), gt_tops, None, top_k))] if top_k else []),
    ):
        with pytest.raises(ValueError, match="need one or more positive ints as top_k"):
            inspect.unwrap(function)(*arguments)


def test_what_does_not_fit() -> None:
    distances, mask_gt = torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool)
    function = inspect.unwrap(calc_retrieval_metrics)
    with pytest.raises(ValueError, match="needs some of cmc_top_k"):
        function(distances, mask_gt, None, (), (), (), ())
    for masks in ((mask_gt[:, :2],), (mask_gt, mask_gt[:1])):
        with pytest.raises(ValueError, match=r"of one shape, got \[\(2, 3\), "):
            function(distances, *masks)
    with pytest.raises(ValueError, match=r"got NaN for 1 queries, such as \[1\]"):
        function(torch.tensor([[0.0, 1.0], [torch.nan, 1.0]]), mask_gt[:, :2], None, (1,))
    with pytest.raises(ValueError, match="on_missing is 'raise' or 'ignore', got 'skip'"):
        inspect.unwrap(rows_to_evaluate)(torch.tensor([1]), "skip")
    for function, arguments in (
        (calc_gt_mask, ([1, 2], [1, 1], [1])),
        (calc_mask_to_ignore, ([1, 2], [1])),
        (calc_distance_matrix, (torch.ones(3, 2), [1, 1], [1, 1])),
    ):
        with pytest.raises(ValueError, match=f"{function.__name__} needs one entry per item, got shapes"):
            function(*arguments)


def test_queries_with_nothing_to_find_have_no_value() -> None:
    for function in (calc_precision, calc_map):
        with pytest.raises(NothingToFindError, match=r"1 of 2 queries have nothing to find: .* in rows \[1\]"):
            function(torch.tensor([[True], [False]]), torch.tensor([1, 0]), (1,))
    with pytest.raises(NothingToFindError, match=r"in rows \[7, 7, 7\], with labels \[5, 5, 5\], and 1 more rows"):
        rows_to_evaluate(torch.zeros(4).long(), "ignore", ids=torch.full((4,), 7), labels=torch.full((4,), 5))
    with pytest.warns(UserWarning, match=r"in rows \[0\]\. They are left out") as records:
        assert rows_to_evaluate(torch.tensor([0, 2]), "ignore").tolist() == [1]
    assert len(records) == 1


@pytest.mark.parametrize("of", [torch.tensor, np.array, list])
def test_masks_and_distances_of_roles(of: Callable) -> None:
    labels, is_query, is_gallery = of([4, 4, 9, 4]), of([True, False, True, True]), of([1, 1, 0, 1])
    assert calc_gt_mask(labels, is_query, is_gallery).tolist() == [[True] * 3, [False] * 3, [True] * 3]
    assert calc_mask_to_ignore(is_query, is_gallery).tolist() == [
        [True, False, False],
        [False, False, False],
        [False, False, True],
    ]
    points = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    assert calc_distance_matrix(points, is_query, is_gallery).tolist() == [[0, 1, 7], [3, 2, 4], [7, 6, 0]]
    assert calc_distance_matrix(points, is_query, is_query).tolist() == [[0, 3, 7], [3, 0, 4], [7, 4, 0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_distances_are_exact_so_that_ties_stay(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randint(4, (70, 3), generator=generator).to(dtype)
    found = calc_distance_matrix(points, torch.arange(70) < 50, torch.arange(70) >= 30)
    expected = [[float((q.double() - g.double()).square().sum().sqrt()) for g in points[30:]] for q in points[:50]]
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.equal(found, torch.tensor(expected, dtype=found.dtype))


def test_the_mask_is_applied_in_place() -> None:
    distances, mask_gt = torch.zeros(1, 2), torch.tensor([[True, True]])
    masked, gt = apply_mask_to_ignore(distances, mask_gt, torch.tensor([[0, 1]]))
    assert masked is distances
    assert gt is mask_gt
    assert (distances.tolist(), mask_gt.tolist()) == ([[0, torch.inf]], [[True, False]])


def test_accuracy_on_triplets_is_strict() -> None:
    right, tie, wrong = [[0.0], [1.0], [2.0]], [[0.0], [1.0], [-1.0]], [[0.0], [2.0], [1.0]]
    embeddings = torch.tensor([*right, *tie, *wrong, *right])
    assert calculate_accuracy_on_triplets(embeddings, reduce_mean=False).tolist() == [1, 0, 0, 1]
    assert calculate_accuracy_on_triplets(embeddings) == 0.5
    for bad in (embeddings[:4], embeddings[:0]):
        with pytest.raises(ValueError, match="of anchor, positive, negative and so on, got shape"):
            calculate_accuracy_on_triplets(bad)


def test_reduction_takes_means_and_leaves_numbers() -> None:
    nested = {"a": {1: torch.tensor([1.0, 0.0]), 2: np.array([1.0, 3.0])}, "b": torch.tensor([True, False]), "n": 7}
    assert reduce_metrics(nested) == {"a": {1: 0.5, 2: 2.0}, "b": 0.5, "n": 7}
    with pytest.raises(ValueError, match="'cmc' has none"):  # a mean of nothing is NaN
        reduce_metrics({"cmc": torch.empty(0)})


def test_principal_components_fraction() -> None:
    twice = torch.eye(10).repeat(30, 2)
    torch.testing.assert_close(calc_pcf(twice, (0.5, 0.9)), torch.tensor([0.25, 0.45]))
    assert {share: float(value) for share, value in calc_topological_metrics(twice, (0.5,))["pcf"].items()} == {
        0.5: 0.25
    }
    assert calc_topological_metrics(twice, ()) == {}
    for shares in ((), (1.1,)):
        with pytest.raises(ValueError, match="pcf needs one or more variances"):
            calc_pcf(twice, shares)


def test_names_and_their_arguments_are_those_of_earlier_versions() -> None:
    expected = {
        "calc_retrieval_metrics": "distances mask_gt mask_to_ignore=None cmc_top_k=(5,) precision_top_k=(5,) "
        "map_top_k=(5,) fmr_vals=(1,) reduce=True",
        "calc_topological_metrics": "embeddings pfc_variance",
        "calculate_accuracy_on_triplets": "embeddings reduce_mean=True",
        "calc_fnmr_at_fmr": "pos_dist neg_dist fmr_vals=(0.1,)",
        "calc_cmc": "gt_tops top_k",
        "calc_precision": "gt_tops n_gt top_k",
        "calc_map": "gt_tops n_gt top_k",
        "calc_pcf": "embeddings pfc_variance",
    }
    for name, arguments in expected.items():
        parameters = inspect.signature(getattr(metrics, name)).parameters.values()
        found = [
            parameter.name if parameter.default is inspect.Parameter.empty else f"{parameter.name}={parameter.default}"
            for parameter in parameters
        ]
        assert found[: len(arguments.split())] == arguments.split(), name
