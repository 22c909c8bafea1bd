"""Verification against the definitions, with loops over pairs and thresholds, and the stream against the lists."""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from inspect import unwrap
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from oml.functional import pair_counts, verification
from oml.functional.pair_blocks import measured
from oml.functional.pair_counts import AllowedPairs
from oml.functional.verification import (
    distance_histograms,
    eer,
    fnmr_at_fmr,
    roc_auc,
    tar_at_far,
    verification_metrics,
)

few_distances = st.lists(st.integers(0, 5), min_size=1, max_size=12)
shares = st.sampled_from([0, 0.1, 0.25, 1 / 3, 0.5, 0.7, 0.99, 1])


def tensor(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


@settings(deadline=None)
@given(few_distances, few_distances, shares)
def test_fnmr_at_fmr_follows_the_definition(positives: list[int], negatives: list[int], fmr: float) -> None:
    threshold = np.quantile(np.array(negatives, dtype=np.float64), fmr)
    expected = sum(p >= threshold for p in positives) / len(positives)
    assert fnmr_at_fmr(tensor(positives), tensor(negatives), [fmr]).tolist() == pytest.approx([expected])


@settings(deadline=None)
@given(few_distances, few_distances, shares)
def test_tar_at_far_follows_the_definition(positives: list[int], negatives: list[int], far: float) -> None:
    best = 0.0
    for threshold in [*positives, *negatives, math.inf]:
        if sum(n < threshold for n in negatives) / len(negatives) <= far:
            best = max(best, sum(p < threshold for p in positives) / len(positives))
    assert tar_at_far(tensor(positives), tensor(negatives), [far]).tolist() == pytest.approx([best])


def literal_eer(positives: list[float], negatives: list[float]) -> Fraction:
    missed, matched = Fraction(1), Fraction(0)
    for threshold in sorted({*positives, *negatives}):
        new_missed = Fraction(sum(p > threshold for p in positives), len(positives))
        new_matched = Fraction(sum(n <= threshold for n in negatives), len(negatives))
        if new_matched >= new_missed:
            part = (missed - matched) / ((missed - matched) + (new_matched - new_missed))
            return matched + part * (new_matched - matched)
        missed, matched = new_missed, new_matched
    raise AssertionError


def literal_auc(positives: list[float], negatives: list[float]) -> float:
    wins = sum((p < n) + (p == n) / 2 for p in positives for n in negatives)
    return wins / (len(positives) * len(negatives))


@settings(deadline=None)
@given(few_distances, few_distances)
def test_eer_and_area_follow_the_definition(positives: list[int], negatives: list[int]) -> None:
    assert eer(tensor(positives), tensor(negatives)).item() == pytest.approx(float(literal_eer(positives, negatives)))
    assert roc_auc(tensor(positives), tensor(negatives)).item() == pytest.approx(literal_auc(positives, negatives))


def test_values_worked_by_hand() -> None:
    positives, negatives = tensor([0, 0, 1, 1, 2, 2, 5, 5, 9, 9]), tensor([3, 3, 4, 4, 6, 6, 7, 7, 8, 8])
    assert fnmr_at_fmr(positives, negatives, (0.1, 0.5)).tolist() == pytest.approx([0.4, 0.2])
    # thresholds 3, 4, 4, 8 and none: FAR 0, 0.2, 0.2, 0.8 and 1
    assert tar_at_far(positives, negatives, (0, 0.2, 0.3, 0.8, 1)).tolist() == pytest.approx([0.6, 0.6, 0.6, 0.8, 1])
    # accepting up to 4 misses 0.4 and matches 0.4
    assert eer(positives, negatives).item() == pytest.approx(0.4)
    # 6 are nearer than all 10 negatives, 2 than 6 of them, 2 than none
    assert roc_auc(positives, negatives).item() == pytest.approx((6 * 10 + 2 * 6) / 100)
    same = tensor([1])
    assert (eer(same, same).item(), roc_auc(same, same).item()) == (0.5, 0.5)


def test_a_share_that_is_a_count_of_negatives_admits_that_many() -> None:
    negatives, positives = torch.arange(100).float(), torch.arange(100).float() - 0.5
    for count in range(101):  # 0.29 * 100 is below 29, and so on
        assert tar_at_far(positives, negatives, [count / 100]).item() == pytest.approx(min(count + 1, 100) / 100)


@pytest.mark.slow
def test_more_distances_than_torch_takes_for_a_quantile() -> None:
    negatives = torch.arange(2**24 + 4).float().mul_(0.5)
    positives = torch.tensor([0.0, 1.0, 2.0**22 + 2, 2.0**22 + 4])
    assert fnmr_at_fmr(positives, negatives, [0, 0.5, 1]).tolist() == [1, 0.5, 0]


@pytest.mark.parametrize(
    "function", [eer, roc_auc, lambda p, n: fnmr_at_fmr(p, n, [0.1]), lambda p, n: tar_at_far(p, n, [0.1])]
)
def test_lists_without_pairs_or_numbers_are_refused(function) -> None:
    some, none, bad = tensor([1, 2]), tensor([]), torch.tensor([1, math.nan, math.inf])
    with pytest.raises(ValueError, match="needs distances of positive pairs, got none"):
        function(none, some)
    with pytest.raises(ValueError, match="needs distances of negative pairs, got none"):
        function(some, none)
    with pytest.raises(ValueError, match=r"2 of 3 negative pairs, such as \[1, 2\]"):
        function(some, bad)


@pytest.mark.parametrize("values", [[], [-0.1], [0.5, 1.5], [math.nan]])
def test_shares_are_checked(values: list[float]) -> None:
    with pytest.raises(ValueError, match="fnmr_at_fmr needs one or more fmr_vals"):
        unwrap(fnmr_at_fmr)(tensor([1]), tensor([2]), values)
    with pytest.raises(ValueError, match="tar_at_far needs one or more far_vals"):
        unwrap(tar_at_far)(tensor([1]), tensor([2]), values)


few_points = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=40)
SHARES = [0, 1e-9, 0.1, 0.5, 1]


def lists_of_distances(
    queries: Tensor, galleries: Tensor, labels: tuple[Tensor, Tensor], items: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """The distances of positive and of negative pairs, by loops."""
    found: tuple[list[float], list[float]] = [], []
    for i, q in enumerate(queries.double().tolist()):
        for j, g in enumerate(galleries.double().tolist()):
            if items is None or items[0][i] != items[1][j]:
                found[int(labels[0][i] != labels[1][j])].append(
                    math.sqrt(sum((a - b) ** 2 for a, b in zip(q, g, strict=True)))
                )
    dtype = torch.promote_types(queries.dtype, torch.float32)
    return torch.tensor(found[0], dtype=dtype), torch.tensor(found[1], dtype=dtype)


def stream(
    q: Tensor, g: Tensor, labels: tuple[Tensor, Tensor], items: tuple[Tensor, Tensor] | None, **arguments
) -> dict:
    arguments = {"fmr_vals": SHARES, "far_vals": SHARES, "eer": True, "roc_auc": True} | arguments
    if items is not None:
        arguments |= {"query_items": items[0], "gallery_items": items[1]}
    return verification_metrics(q, g, *labels, **arguments)


def assert_as_of_lists(values: dict, positives: Tensor, negatives: Tensor, area_within: float = 0) -> None:
    assert list(values["fnmr@fmr"]) == list(values["tar@far"]) == SHARES
    assert torch.equal(torch.stack(list(values["fnmr@fmr"].values())), fnmr_at_fmr(positives, negatives, SHARES))
    assert torch.equal(torch.stack(list(values["tar@far"].values())), tar_at_far(positives, negatives, SHARES))
    assert torch.equal(values["eer"], eer(positives, negatives))
    assert abs(values["roc_auc"] - roc_auc(positives, negatives)) <= area_within


@contextmanager
def small_blocks(few: int = 0, share: float = 4.0, block: int = 32) -> Iterator[None]:
    """Sizes at which small sets go the ways of large ones: how many and which share of the pairs may be measured."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pair_counts, "BLOCK", block)
        for module in (pair_counts, verification):
            patch.setattr(module, "FEW_PAIRS", few)
        patch.setattr(verification, "_MEASURED", share)
        yield


@settings(deadline=None, max_examples=30)
@given(
    few_points,
    few_points,
    st.integers(0, 99),
    st.sampled_from(["one set", "two sets", "one set, no items", "two sets, no items"]),
    st.sampled_from([(10**6, 4.0), (0, 4.0), (0, 0.0)]),
)
def test_the_stream_equals_the_lists(a: list, b: list, seed: int, kind: str, limits: tuple[int, float]) -> None:
    generator = torch.Generator().manual_seed(seed)
    q = torch.tensor(a, dtype=torch.float32)
    g = q if "one set" in kind else torch.tensor(b, dtype=torch.float32)
    labels, items = (  # items of another label may have one number too, as sequences may
        tuple(torch.randint(most, (len(x),), generator=generator) for x in (q, g)) for most in (3, 9)
    )
    if "one set" in kind:
        labels, items = labels[:1] * 2, items[:1] * 2
    positives, negatives = lists_of_distances(q, g, labels, None if "no items" in kind else items)
    with small_blocks(*limits), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of vague areas
        if len(positives) == 0 or len(negatives) == 0:
            with pytest.raises(ValueError, match="verification_metrics needs (positive|negative) pairs, got none"):
                stream(q, g, labels, None if "no items" in kind else items)
            return
        values = stream(q, g, labels, None if "no items" in kind else items)
    assert_as_of_lists(values, positives, negatives, area_within=1e-6 if limits[1] == 0 else 0)


class Case(NamedTuple):
    q: Tensor
    g: Tensor
    labels: tuple[Tensor, Tensor]
    items: tuple[Tensor, Tensor]
    positives: Tensor
    negatives: Tensor


def make_case(n: int, m: int | None, dim: int = 8, n_labels: int = 40, change: Callable[[Tensor], object] = id) -> Case:
    """Vectors around centres of their labels; ``m=None`` for a set that is compared with itself."""
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(n_labels, dim, generator=generator, dtype=torch.float64)
    labels = [torch.randint(n_labels, (k or n,), generator=generator) for k in (n, m)]
    x = [centres[of] + torch.randn(len(of), dim, generator=generator, dtype=torch.float64) for of in labels]
    x = [v.float() for v in x]
    for v in x:
        change(v)
    items = [torch.randint(k or n, (k or n,), generator=generator) for k in (n, m)]
    if m is None:
        x, labels, items = [x[0]] * 2, [labels[0]] * 2, [items[0]] * 2
    i, j = torch.ones(len(x[0]), len(x[1])).nonzero().unbind(1)
    distances = measured(x[0], x[1], i, j)
    allowed, same = items[0][i] != items[1][j], labels[0][i] == labels[1][j]
    both = (labels[0], labels[1]), (items[0], items[1])
    return Case(x[0], x[1], *both, distances[allowed & same], distances[allowed & ~same])


@pytest.mark.parametrize("m", [None, 530, 20])
def test_a_sample_brackets_the_thresholds(m: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(600, m)
    binned, n_passes = AllowedPairs.binned, []
    monkeypatch.setattr(
        AllowedPairs,
        "binned",
        lambda self, *, positive: (n_passes.append(positive), binned(self, positive=positive))[1],
    )
    with small_blocks(block=128):
        values = stream(*case[:4], roc_auc=False)
    assert (False in n_passes) == (m == 20)  # too few galleries to sample from: then all negatives are counted in bins
    assert_as_of_lists(values | {"roc_auc": roc_auc(case.positives, case.negatives)}, case.positives, case.negatives)


@pytest.mark.parametrize("shift", [-0.3, 0.3, 2.0])
def test_a_misleading_sample_changes_nothing(shift: float, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(150, None)
    shares = []

    def sampled(self: AllowedPairs) -> tuple[Tensor, Tensor]:
        share = self.binned(positive=False).cumsum(0).double() / self.n_negatives + shift
        shares.append(share)
        return share, share

    monkeypatch.setattr(AllowedPairs, "sampled", sampled)
    with small_blocks():
        values = stream(*case[:4], roc_auc=False)
    assert shares
    assert_as_of_lists(values | {"roc_auc": roc_auc(case.positives, case.negatives)}, case.positives, case.negatives)


def far_off(x: Tensor) -> None:
    x[3] *= 1e4


def copies(x: Tensor) -> None:
    x[: len(x) * 3 // 4] = x[0]


def all_the_same(x: Tensor) -> None:
    x[:] = x[0].clone()


def beside(x: Tensor) -> None:
    x += 1000


@pytest.mark.parametrize("m", [None, 90])
@pytest.mark.parametrize("change", [far_off, copies, all_the_same, beside])
def test_odd_vectors(m: int | None, change: Callable[[Tensor], object]) -> None:
    case = make_case(110, m, dim=33, change=change)
    with small_blocks():
        assert_as_of_lists(stream(*case[:4]), case.positives, case.negatives)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    case = make_case(70, 40, dim=3)
    q, g = case.q.to(dtype), case.g.to(dtype)
    i, j = torch.ones(70, 40).nonzero().unbind(1)
    same = case.labels[0][i] == case.labels[1][j]
    distances = measured(q, g, i, j)
    with small_blocks():
        assert_as_of_lists(stream(q, g, case.labels, None), distances[same], distances[~same])


def test_a_set_with_its_copy_and_one_query_at_a_time() -> None:
    case = make_case(100, None)
    with small_blocks():
        values = stream(*case[:4])
        assert str(values) == str(stream(case.q, case.q.clone(), case.labels, case.items))
        row = slice(5, 6)
        one = stream(case.q[row], case.g, (case.labels[0][row], case.labels[1]), (case.items[0][row], case.items[1]))
    allowed, same = case.items[0][row] != case.items[1], case.labels[0][row] == case.labels[1]
    distances = measured(case.q, case.q, torch.full((100,), 5), torch.arange(100))
    assert_as_of_lists(one, distances[same & allowed], distances[~same & allowed])


@pytest.mark.parametrize("roc_auc", [False, True])
def test_budget_threads_and_the_global_seed_change_nothing(roc_auc: bool) -> None:
    case = make_case(550, None)
    shuffled = torch.randperm(550, generator=torch.Generator().manual_seed(2))
    q, labels, items = case.q[shuffled], case.labels[0][shuffled], case.items[0][shuffled]
    n_threads = torch.get_num_threads()
    found = set()
    with small_blocks(share=0.01, block=128):
        for threads, budget, x, of, no in (
            (1, 2**29, case.q, case.labels[0], case.items[0]),
            (3, 2**29, q, labels, items),
            (2, 1, q, labels, items),
        ):
            torch.set_num_threads(threads)
            torch.manual_seed(threads)
            try:
                before = torch.get_rng_state()
                values = stream(
                    x, x, (of, of), (no, no), fmr_vals=[0.1], far_vals=(), roc_auc=roc_auc, memory_budget=budget
                )
                assert torch.equal(torch.get_rng_state(), before)
            finally:
                torch.set_num_threads(n_threads)
            found.add(str(values))
    assert len(found) == 1


def test_an_area_by_bins_is_near_and_a_vague_one_is_told_of() -> None:
    case = make_case(300, None)
    with small_blocks(share=0.0):
        area = stream(*case[:4], fmr_vals=(), far_vals=(), eer=False)["roc_auc"]
        assert 0 < abs(area - roc_auc(case.positives, case.negatives)) < 1e-5  # it is by bins, so not exact
        grid = case.q.sign()
        with pytest.warns(UserWarning, match=r"roc_auc is 0\.\d+, but proven within 0\.\d+ only"):
            stream(grid, grid, case.labels, case.items, fmr_vals=(), far_vals=(), eer=False)


@pytest.mark.parametrize("arguments", [{"eer": True}, {"fmr_vals": [0.1]}, {"far_vals": (1,)}, {"roc_auc": True}])
def test_only_what_was_asked_for_comes(arguments: dict) -> None:
    case = make_case(30, None)
    (value,) = verification_metrics(case.q, case.g, *case.labels, **arguments).values()
    assert isinstance(value, dict) == ("vals" in str(arguments))
    whole = verification_metrics(case.q, case.g, *case.labels, fmr_vals=[0.1], far_vals=[1], eer=True, roc_auc=True)
    assert str(value) in str(whole)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"eer": False}, "needs something to compute"),
        ({"fmr_vals": [2]}, r"needs one or more fmr_vals in \[0, 1\], got \[2\]"),
        ({"far_vals": [-1.0]}, "needs one or more far_vals"),
        ({"galleries": torch.zeros(4, 3)}, r"of one dim > 0, got \(4, 2\) and \(4, 3\)"),
        ({"query_labels": torch.zeros(3, dtype=torch.int64)}, r"4 integer query_labels in one dimension, got \(3,\)"),
        ({"gallery_labels": torch.zeros(4)}, "4 integer gallery_labels in one dimension, got .* of torch.float32"),
        ({"query_items": torch.arange(4)}, "query_items and gallery_items both or neither"),
        ({"memory_budget": 0}, "positive memory_budget"),
        (
            {"queries": torch.tensor([[0, 0], [0, math.nan], [math.inf, 0], [1, 1]])},
            r"in 2 of 4 rows, such as rows \[1, 2\]",
        ),
        ({"gallery_labels": torch.full((4,), 7)}, "needs positive pairs, got none among 4 queries and 4 galleries"),
        ({"query_labels": torch.ones(4, dtype=torch.int64)}, "needs negative pairs, got none"),
        ({"queries": torch.zeros(0, 2), "query_labels": torch.zeros(0, dtype=torch.int64)}, "needs queries, got none"),
    ],
)
def test_bad_input(changed: dict, text: str) -> None:
    labels = torch.ones(4, dtype=torch.int64)
    arguments = {"queries": torch.zeros(4, 2), "galleries": torch.zeros(4, 2), "query_labels": labels - 1, "eer": True}
    with pytest.raises(ValueError, match=text):
        unwrap(verification_metrics)(**{**arguments, "gallery_labels": labels, **changed})


@pytest.mark.parametrize("m", [None, 90])
def test_histograms_count_each_pair_at_its_distance(m: int | None) -> None:
    case = make_case(120, m)
    with small_blocks():
        found = distance_histograms(
            case.q, case.g, *case.labels, n_bins=50, query_items=case.items[0], gallery_items=case.items[1]
        )
    assert found.edges[0] == 0
    assert torch.allclose(found.edges.diff(), found.edges[1])
    farthest = max(case.positives.max(), case.negatives.max())
    assert farthest <= found.edges[-1] < farthest * 1.001
    for counts, distances in ((found.positives, case.positives), (found.negatives, case.negatives)):
        assert counts.sum() == len(distances)
        for edge, n in zip(found.edges[1:], counts.cumsum(0), strict=True):
            assert (distances < edge - 1e-3).sum() <= n <= (distances < edge + 1e-3).sum()
    assert (found.negatives > 0).sum() > 25


def test_histograms_need_bins() -> None:
    with pytest.raises(ValueError, match="n_bins >= 1 as an int, got 0"):
        distance_histograms(
            torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1).long(), torch.zeros(1).long(), n_bins=0
        )


def test_copies_are_told_from_vectors_with_one_sum_of_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]])
    kinds, one_of = pair_counts._kinds(x)
    assert kinds[0] == kinds[2] != kinds[1]
    assert torch.equal(x[one_of[kinds]], x)
    monkeypatch.setattr(torch, "randint", lambda low, high, size, generator: torch.zeros(size, dtype=torch.int64))
    kinds, one_of = pair_counts._kinds(x)
    assert kinds.tolist() == one_of.tolist() == [0, 1, 2]
