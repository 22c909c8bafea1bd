"""Verification against the definitions, with loops over pairs and thresholds, and the stream against the lists."""

import math
from fractions import Fraction
from inspect import unwrap

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from oml.functional.verification import eer, fnmr_at_fmr, roc_auc, tar_at_far

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
