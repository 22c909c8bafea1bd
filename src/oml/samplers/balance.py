"""Batches of several labels with several instances each."""

from collections.abc import Iterator

import numpy as np

from oml.samplers.arguments import TLabels, blocks, whole_number
from oml.samplers.epochs import Epochs, EpochSampler, Seed
from oml.samplers.instances import group_by_label


class BalanceSampler(EpochSampler):
    """Batches of ``n_labels`` labels with ``n_instances`` items each ("PK sampling", Hermans et al. 2017).

    An epoch walks through the labels in random order, each label at most once: ``n_unique // n_labels`` batches;
    the labels left over differ from epoch to epoch. The items of one label stand next to each other. A label
    with fewer than ``n_instances`` items gives all of them and repeats some; one with a single item is reported.

    Each ``iter()`` is a new epoch. Epoch ``e`` depends on the arguments, the seed and ``e`` alone; ``Epochs`` says how
    an interrupted one goes on.

    Args:
        labels: the label of every item of the data set, integers.
        n_labels: labels per batch, at least 2 and at most as many as there are.
        n_instances: items per label, at least 2.
        seed: of all random choices; a generator is asked for one number, once.

    Raises:
        TypeError: if labels or counts are not integers.
        ValueError: if a count is out of its range.

    Example:
        >>> sampler = BalanceSampler([7, 7, 7, 8, 8, 9, 9], n_labels=2, n_instances=2)
        >>> len(sampler), [len(batch) for batch in sampler]
        (1, [4])
    """

    def __init__(self, labels: TLabels, n_labels: int, n_instances: int, seed: Seed = 0) -> None:
        name = type(self).__name__
        self._items = group_by_label(name, labels)
        n_unique = len(self._items.keys)
        self.n_labels = whole_number(name, "n_labels", n_labels, 2, n_unique, "the number of labels")
        self.n_instances = whole_number(name, "n_instances", n_instances, 2)
        self._epochs = Epochs(name, len(self), seed)

    @property
    def batch_size(self) -> int:
        """Items per batch."""
        return self.n_labels * self.n_instances

    def __len__(self) -> int:
        return len(self._items.keys) // self.n_labels

    def _batches(self, rng: np.random.Generator) -> Iterator[list[int]]:
        labels = rng.permutation(len(self._items.keys))[: len(self) * self.n_labels].reshape(-1, self.n_labels)
        for block in blocks(len(self), self.batch_size):
            items = self._items.draw(labels[block].ravel(), self.n_instances, rng)
            yield from items.reshape(-1, self.batch_size).tolist()
