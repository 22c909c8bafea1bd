"""Labels by category, and which categories go into a batch."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Int, Int32
from numpy import ndarray

from oml.samplers.arguments import label_array
from oml.samplers.instances import Groups, group


def group_by_category(
    owner: str, labels: Int[ndarray, " label"], label2category: Mapping[int, str | int], min_labels: int = 1
) -> Groups:
    """The positions in ``labels`` of every category's labels; keys are the ranks of the sorted categories.

    Args:
        owner: the sampler's name, for messages.
        labels: distinct and ascending.
        label2category: the category of each of them and of no other.
        min_labels: what every category must have.

    Raises:
        TypeError: if categories are neither all strings nor all integers.
        ValueError: if labels and the mapping do not cover each other, or a category has too few labels.

    Example:
        >>> group_by_category("CategoryBalanceSampler", np.array([3, 5, 7]), {7: "hat", 3: "hat", 5: "bag"}).members
        array([1, 0, 2], dtype=int32)
    """
    categories = set(label2category.values())
    if not any(all(isinstance(one, kind) for one in categories) for kind in (str, int | np.integer)):
        odd = [pair for pair in label2category.items() if not isinstance(pair[1], str)][:3]
        raise TypeError(f"{owner} needs categories that are all strings or all integers, got {dict(odd)} and others.")
    names = sorted(categories)
    rank = {name: i for i, name in enumerate(names)}
    by_label = group(label_array(owner, list(label2category), "labels in label2category"))
    if not np.array_equal(by_label.keys, labels):
        bare, extra = np.setdiff1d(labels, by_label.keys), np.setdiff1d(by_label.keys, labels)
        raise ValueError(
            f"{owner} needs a category for every label and for no other: {len(bare)} of {len(labels)} labels have none "
            f"in label2category, such as {bare[:3].tolist()}; {len(extra)} in label2category have no item, such as "
            f"{extra[:3].tolist()}."
        )
    ranks = np.fromiter(map(rank.__getitem__, label2category.values()), np.int32, len(label2category))
    groups = group(ranks[by_label.members])
    if len(small := np.flatnonzero(groups.sizes < min_labels)):
        raise ValueError(
            f"{owner}: All the categories must have at least {min_labels} unique labels, but {len(small)} of "
            f"{len(names)} have fewer, such as { ({names[i]: int(groups.sizes[i]) for i in small[:3]}) }. "
            "Lower n_labels, leave them out, or use CategoryBalanceSampler with resample_labels=True."
        )
    return groups


def draw_categories(
    weights: Int[ndarray, " category"], n_batches: int, n_categories: int, rng: np.random.Generator
) -> Int32[ndarray, "batch drawn"]:
    """For every batch, distinct categories: each draw takes one of those left with probability by weight.

    The same distribution as ``rng.choice(len(weights), n_categories, replace=False, p=weights / weights.sum())``, for
    all batches at a time. The weights lie on a line one after the other; a point of the line with the drawn categories
    cut out becomes one of the whole line by stepping over the cuts on its left.

    Args:
        weights: whole numbers above 0.
        n_batches: rows of the result.
        n_categories: columns of the result, at most as many as there are weights.
        rng: of all random choices.

    Example:
        >>> np.sort(draw_categories(np.array([1, 5, 2]), 2, 3, np.random.default_rng(0)))
        array([[0, 1, 2],
               [0, 1, 2]], dtype=int32)
    """
    ends = np.cumsum(weights)
    starts = ends - weights
    drawn = np.empty((n_categories, n_batches), dtype=np.int32)
    for i in range(n_categories):
        points = (rng.random(n_batches) * (ends[-1] - weights[drawn[:i]].sum(axis=0))).astype(np.int64)
        for cut in np.sort(drawn[:i], axis=0):
            points += weights[cut] * (points >= starts[cut])
        drawn[i] = np.searchsorted(ends, points, side="right")
    return drawn.T
