"""Which instances of a label go into a batch."""

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray


def draw_instances(
    counts: Int[ndarray, " label"], n_instances: int, rng: np.random.Generator
) -> Int[ndarray, "label instance"]:
    """For every label, ``n_instances`` random positions below its count.

    Distinct ones if the label has enough; else each once, followed by draws with replacement. Distinct positions
    come from Floyd's algorithm (Bentley and Floyd 1987), for all labels at a time.

    Example:
        >>> draw_instances(np.array([2, 9]), 4, np.random.default_rng(0)).max(axis=1) < [2, 9]
        array([ True,  True])
    """
    uniform: Float[ndarray, "label instance"] = rng.random((len(counts), n_instances))
    column = np.arange(n_instances)
    few = np.where(column < counts[:, None], column, (uniform * counts[:, None]).astype(np.int64))

    picked = np.full((len(counts), n_instances), -1, dtype=np.int64)
    for i in range(n_instances):
        last = counts - n_instances + i
        drawn = (uniform[:, i] * (last + 1)).astype(np.int64)
        taken = (picked[:, :i] == drawn[:, None]).any(axis=1)
        picked[:, i] = np.where(taken, last, drawn)
    return np.where(counts[:, None] >= n_instances, picked, few)
