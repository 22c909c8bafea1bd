"""Items by label, and which of them go into a batch."""

import warnings
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int32, Int64
from numpy import ndarray

from oml.samplers.arguments import TLabels, label_array


class Groups(NamedTuple):
    """Things with equal keys together, by ascending key: group ``i`` is ``members[starts[i] : starts[i + 1]]``."""

    keys: Int64[ndarray, " group"]
    members: Int32[ndarray, " member"]
    starts: Int32[ndarray, " group_and_end"]

    @property
    def sizes(self) -> Int32[ndarray, " group"]:
        """Members per group."""
        return np.diff(self.starts)

    def draw(
        self, groups: Int[ndarray, " row"], n_members: int, rng: np.random.Generator
    ) -> Int32[ndarray, "row drawn"]:
        """For each of these groups ``n_members`` of its members, by the rule of ``draw_instances``."""
        starts = self.starts[groups]
        places = starts[:, None] + draw_instances(self.starts[groups + 1] - starts, n_members, rng)
        return self.members.take(places)  # twice as fast as members[places]


def group(keys: Int[ndarray, " member"]) -> Groups:
    """Sort positions by their key; equal keys stay in order.

    The sort looks at 16 bits of the keys at a time, for which numpy has a radix sort: as many passes as the range of
    the keys needs, three times faster than comparing them.

    Example:
        >>> group(np.array([7, 5, 7]))
        Groups(keys=array([5, 7]), members=array([1, 0, 2], dtype=int32), starts=array([0, 1, 3], dtype=int32))
    """
    if len(keys) > np.iinfo(np.int32).max:
        raise ValueError(f"At most 2147483647 items can be sampled from, got {len(keys)}.")
    lowest = keys.min()
    offsets = keys.astype(np.uint64) - np.uint64(int(lowest) % 2**64)  # unsigned, so that no range is too wide
    n_bits = int(offsets.max()).bit_length()
    if n_bits <= 32:
        offsets = offsets.astype(np.uint32)
    order = np.argsort(offsets.astype(np.uint16), kind="stable").astype(np.int32)
    for shift in range(16, n_bits, 16):
        digits = (offsets >> shift).astype(np.uint16)[order]
        order = order[np.argsort(digits, kind="stable")]
    offsets = offsets[order]
    firsts = np.concatenate([[0], np.flatnonzero(offsets[1:] != offsets[:-1]) + 1, [len(keys)]]).astype(np.int32)
    return Groups(keys[order[firsts[:-1]]].astype(np.int64), order, firsts)


def group_by_label(owner: str, labels: TLabels) -> Groups:
    """The positions of the items of every label; labels with a single item get a warning."""
    groups = group(label_array(owner, labels))
    if len(lone := groups.keys[groups.sizes == 1]):
        warnings.warn(
            f"{owner} got {len(lone)} of {len(groups.keys)} labels with a single item, such as "
            f"{lone[:3].tolist()}: the item is repeated, which teaches nothing as a positive pair. "
            "Consider leaving such labels out of the training table.",
            stacklevel=3,
        )
    return groups


def draw_instances(
    counts: Int[ndarray, " label"], n_instances: int, rng: np.random.Generator
) -> Int32[ndarray, "label instance"]:
    """For every label, ``n_instances`` random positions below its count.

    Distinct ones if the label has enough; else each once, followed by draws with replacement. Distinct positions
    come from Floyd's algorithm (Bentley and Floyd 1987), for all labels at a time.

    Example:
        >>> draw_instances(np.array([2, 9]), 4, np.random.default_rng(0)).max(axis=1) < [2, 9]
        array([ True,  True])
    """
    choices = counts - np.arange(n_instances - 1, -1, -1, dtype=np.int32)[:, None]
    uniform = rng.random(choices.shape)
    picked = (uniform * choices).astype(np.int32)  # a row per instance, for whole rows are compared
    for i in range(1, n_instances):
        row = picked[i]
        taken = row == picked[0]
        for earlier in picked[1:i]:
            taken |= row == earlier
        row += taken * (choices[i] - 1 - row)
    if len(few := np.flatnonzero(counts < n_instances)):
        counts, each = counts[few], np.arange(n_instances)[:, None]
        picked[:, few] = np.where(each < counts, each, uniform[:, few] * counts)
    return picked.T
