"""Batches of several categories with several labels each, which use up all labels before any comes back."""

from collections.abc import Iterator, Mapping

import numpy as np

from oml.interfaces.samplers import IBatchSampler
from oml.samplers.arguments import TLabels, blocks, whole_number
from oml.samplers.categories import group_by_category
from oml.samplers.epochs import Epochs, Seed
from oml.samplers.instances import Groups, group_by_label


class DistinctCategoryBalanceSampler(IBatchSampler):
    """Batches as those of ``CategoryBalanceSampler``, of labels that this epoch has not used yet as far as possible.

    A batch has ``n_categories`` categories, drawn uniformly from those with unused labels, and ``n_labels`` unused
    labels of each. A category with fewer gives all it has, filled up with labels that it has given before. When fewer
    than ``n_categories`` categories have unused labels, all labels count as unused again. An epoch starts with all
    labels unused and has ``epoch_size`` batches.

    A label with fewer than ``n_instances`` items gives all of them and repeats some; one with a single item is
    reported. Each ``iter()`` is a new epoch. Epoch ``e`` depends on the arguments, the seed and ``e`` alone;
    ``Epochs`` says how an interrupted one goes on.

    Args:
        labels: the label of every item of the data set, integers.
        label2category: the category of every label, all strings or all integers; their order counts, not their type.
        n_categories: categories per batch, at most as many as there are.
        n_labels: labels per category, at least 2 and at most as many as the smallest category has.
        n_instances: items per label, at least 2.
        epoch_size: batches per epoch.
        seed: of all random choices; a generator is asked for one number, once.

    Raises:
        TypeError: if labels or counts are not integers, or categories are of several types.
        ValueError: if a count is out of its range, ``label2category`` has not just these labels, or a category has too
            few of them.

    Example:
        >>> category = {0: "hat", 1: "hat", 2: "bag", 3: "bag"}
        >>> sampler = DistinctCategoryBalanceSampler(
        ...     [0, 0, 1, 1, 2, 2, 3, 3], category, n_categories=1, n_labels=2, n_instances=2, epoch_size=2
        ... )
        >>> len(sampler), sorted(item for batch in sampler for item in batch)
        (2, [0, 1, 2, 3, 4, 5, 6, 7])
    """

    def __init__(
        self,
        labels: TLabels,
        label2category: Mapping[int, str | int],
        n_categories: int,
        n_labels: int,
        n_instances: int,
        epoch_size: int,
        seed: Seed = 0,
    ) -> None:
        name = type(self).__name__
        self._items = group_by_label(name, labels)
        n_unique = len(self._items.keys)
        self.n_labels = whole_number(name, "n_labels", n_labels, 2, n_unique, "the number of labels")
        self.n_instances = whole_number(name, "n_instances", n_instances, 2)
        self._labels = group_by_category(name, self._items.keys, label2category, min_labels=self.n_labels)
        n_present = len(self._labels.keys)
        self.n_categories = whole_number(name, "n_categories", n_categories, 1, n_present, "the number of categories")
        self._n_batches = whole_number(name, "epoch_size", epoch_size, 1)
        self._epochs = Epochs(name, len(self), seed)

    @property
    def batch_size(self) -> int:
        """Items per batch."""
        return self.n_categories * self.n_labels * self.n_instances

    def __len__(self) -> int:
        return self._n_batches

    def __iter__(self) -> Iterator[list[int]]:
        return self._epochs.start(self._batches)

    def set_epoch(self, epoch: int) -> None:
        """Let the next ``iter()`` be that of epoch ``epoch``."""
        self._epochs.set_epoch(epoch)

    def state_dict(self) -> dict[str, int]:
        """The seed, the epoch and how many of its batches were handed out."""
        return self._epochs.state_dict()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Let the next ``iter()`` go on from there."""
        self._epochs.load_state_dict(state)

    def _batches(self, rng: np.random.Generator) -> Iterator[list[int]]:
        pools = _Pools(self._labels, self.n_categories, self.n_labels)
        for block in blocks(len(self), self.batch_size):
            uniform = rng.random((block.stop - block.start, self.n_categories * (1 + self.n_labels))).tolist()
            labels = np.array([label for row in uniform for label in pools.draw(iter(row))])
            items = self._items.draw(labels, self.n_instances, rng)
            yield from items.reshape(-1, self.batch_size).tolist()


class _Pools:
    """The labels of every category, those used first; and the categories that have unused ones.

    Plain lists, as each batch hangs on those before it. A choice moves to the front of what is left (the first steps of
    a Fisher-Yates shuffle), so no pool is ever searched, copied or shuffled as a whole, and a reset costs no time per
    label.
    """

    def __init__(self, labels: Groups, n_categories: int, n_labels: int) -> None:
        self._labels = labels
        self._n_categories = n_categories
        self._n_labels = n_labels
        self._pools: dict[int, list[int]] = {}
        self._reset()

    def _reset(self) -> None:
        self._open = self._labels.keys.tolist()
        self._n_used = [0] * len(self._open)

    def draw(self, uniform: Iterator[float]) -> list[int]:
        """The labels of the next batch, by one random number for each of its categories and labels."""
        if len(self._open) < self._n_categories:
            self._reset()
        _choose(self._open, 0, len(self._open), self._n_categories, uniform)
        drawn = []
        for place in reversed(range(self._n_categories)):  # from the right, as categories are removed
            category = self._open[place]
            if category not in self._pools:
                start, end = self._labels.starts[category : category + 2]
                self._pools[category] = self._labels.members[start:end].tolist()
            pool, n_used = self._pools[category], self._n_used[category]
            n_new = min(self._n_labels, len(pool) - n_used)
            drawn += _choose(pool, n_used, len(pool), n_new, uniform)
            drawn += _choose(pool, 0, n_used, self._n_labels - n_new, uniform)
            self._n_used[category] += n_new
            if self._n_used[category] == len(pool):
                self._open[place] = self._open[-1]
                self._open.pop()
        return drawn


def _choose(pool: list[int], start: int, end: int, n: int, uniform: Iterator[float]) -> list[int]:
    """Swap ``n`` random ones of ``pool[start:end]`` to its start, and return them."""
    for i, number in zip(range(start, start + n), uniform, strict=False):  # takes n numbers and leaves the others
        j = i + int(number * (end - i))
        pool[i], pool[j] = pool[j], pool[i]
    return pool[start : start + n]
