"""Batches of several categories with several labels each, which use up all labels before any comes back."""

from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Int, Int64
from numpy import ndarray

from oml.samplers.arguments import TLabels, blocks, whole_number
from oml.samplers.categories import group_by_category
from oml.samplers.epochs import Epochs, EpochSampler, Seed
from oml.samplers.instances import group_by_label


class DistinctCategoryBalanceSampler(EpochSampler):
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

    def _batches(self, rng: np.random.Generator) -> Iterator[list[int]]:
        sizes = self._labels.sizes
        turns = _Turns(sizes.tolist(), self.n_categories, self.n_labels)
        order = self._labels.members.tolist()  # in each category the used labels come first
        for block in blocks(len(self), self.batch_size):
            uniform = rng.random((block.stop - block.start, self.n_categories)).tolist()
            categories, n_used = np.array([turn for numbers in uniform for turn in turns.draw(numbers)]).T
            swaps = _swaps(sizes[categories], n_used, self.n_labels, rng)
            here, there = ((self._labels.starts[categories, None] + places).ravel().tolist() for places in swaps)
            labels = []
            for i, j in zip(here, there, strict=True):
                order[i], order[j] = order[j], order[i]
                labels.append(order[i])
            items = self._items.draw(np.array(labels), self.n_instances, rng)
            yield from items.reshape(-1, self.batch_size).tolist()


class _Turns:
    """Which categories have their turn in a batch, and how many labels of each are used by then.

    Plain lists, as every batch hangs on those before it.
    """

    def __init__(self, sizes: list[int], n_categories: int, n_labels: int) -> None:
        self._sizes = sizes
        self._n_categories = n_categories
        self._n_labels = n_labels
        self._reset()

    def _reset(self) -> None:
        self._open = list(range(len(self._sizes)))  # those with unused labels
        self._n_used = [0] * len(self._sizes)

    def draw(self, uniform: list[float]) -> list[tuple[int, int]]:
        """Category and number of its used labels, by one random number each, for the next batch."""
        if len(self._open) < self._n_categories:
            self._reset()
        turns = []
        for i, number in enumerate(uniform):
            j = i + int(number * (len(self._open) - i))
            category = self._open[j]
            self._open[i], self._open[j] = category, self._open[i]
            turns.append((category, self._n_used[category]))
            self._n_used[category] += self._n_labels
        for i in reversed(range(len(turns))):  # from the right, as the last one fills the gap
            if self._n_used[self._open[i]] >= self._sizes[self._open[i]]:
                self._open[i] = self._open[-1]
                self._open.pop()
        return turns


def _swaps(
    sizes: Int[ndarray, " turn"], n_used: Int[ndarray, " turn"], n_labels: int, rng: np.random.Generator
) -> tuple[Int64[ndarray, "turn label"], Int64[ndarray, "turn label"]]:
    """Which places of a category to swap, one pair after the other, so that the first of each pair has the label drawn.

    The first steps of a Fisher-Yates shuffle of the unused labels, and if they are too few, of the used ones. They
    leave every category in some order that the next shuffle may start from, so a reset costs no time per label.
    """
    n_used = n_used[:, None]
    n_new = np.minimum(n_labels, sizes[:, None] - n_used)
    column = np.arange(n_labels)
    here = np.where(column < n_new, n_used + column, column - n_new)
    end = np.where(column < n_new, sizes[:, None], n_used)
    return here, here + (rng.random(here.shape) * (end - here)).astype(np.int64)
