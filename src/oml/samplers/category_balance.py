"""Batches of several categories with several labels each."""

from collections.abc import Iterator, Mapping

import numpy as np

from oml.samplers.arguments import TLabels, blocks, whole_number
from oml.samplers.categories import draw_categories, group_by_category
from oml.samplers.epochs import Epochs, EpochSampler, Seed
from oml.samplers.instances import group_by_label


class CategoryBalanceSampler(EpochSampler):
    """Batches of ``n_categories`` categories with ``n_labels`` labels each and ``n_instances`` items of each label.

    Negatives of the same category are the hard ones: a batch of few categories has more of them. Every batch is drawn
    for itself, so labels come back within an epoch of ``ceil(n_unique_labels / n_labels)`` batches, while the batches
    hold ``n_categories`` times as many. Categories are drawn without replacement, with a probability by their number of
    labels or uniformly; then labels within each, then items within each label. The items of a label stand next to each
    other, the labels of a category too.

    A label with fewer than ``n_instances`` items gives all of them and repeats some; one with a single item is
    reported. Each ``iter()`` is a new epoch. Epoch ``e`` depends on the arguments, the seed and ``e`` alone;
    ``Epochs`` says how an interrupted one goes on.

    Args:
        labels: the label of every item of the data set, integers.
        label2category: the category of every label, all strings or all integers; their order counts, not their type.
        n_categories: categories per batch, at most as many as there are.
        n_labels: labels per category, at least 2 and at most as many as there are.
        n_instances: items per label, at least 2.
        resample_labels: a category with fewer than ``n_labels`` labels gives all of them and repeats some, instead of
            being an error. A repeated label has ``n_instances`` more items, drawn again from the same.
        weight_categories: draw categories by their number of labels, instead of uniformly.
        seed: of all random choices; a generator is asked for one number, once.

    Raises:
        TypeError: if labels or counts are not integers, or categories are of several types.
        ValueError: if a count is out of its range, ``label2category`` has not just these labels, or a category has too
            few of them.

    Example:
        >>> category = {0: "hat", 1: "hat", 2: "bag", 3: "bag"}
        >>> sampler = CategoryBalanceSampler(
        ...     [0, 0, 1, 1, 2, 2, 3, 3], category, n_categories=1, n_labels=2, n_instances=2
        ... )
        >>> len(sampler), [len(batch) for batch in sampler]
        (2, [4, 4])
    """

    def __init__(
        self,
        labels: TLabels,
        label2category: Mapping[int, str | int],
        n_categories: int,
        n_labels: int,
        n_instances: int,
        resample_labels: bool = False,
        weight_categories: bool = True,
        seed: Seed = 0,
    ) -> None:
        name = type(self).__name__
        self._items = group_by_label(name, labels)
        n_unique = len(self._items.keys)
        self.n_labels = whole_number(name, "n_labels", n_labels, 2, n_unique, "the number of labels")
        self.n_instances = whole_number(name, "n_instances", n_instances, 2)
        self._labels = group_by_category(
            name, self._items.keys, label2category, min_labels=1 if resample_labels else self.n_labels
        )
        n_present = len(self._labels.keys)
        self.n_categories = whole_number(name, "n_categories", n_categories, 1, n_present, "the number of categories")
        self._weights = self._labels.sizes.astype(np.int64) if weight_categories else np.ones(n_present, np.int64)
        self._epochs = Epochs(name, len(self), seed)

    @property
    def batch_size(self) -> int:
        """Items per batch."""
        return self.n_categories * self.n_labels * self.n_instances

    def __len__(self) -> int:
        return -(-len(self._items.keys) // self.n_labels)

    def _batches(self, rng: np.random.Generator) -> Iterator[list[int]]:
        for block in blocks(len(self), self.batch_size):
            categories = draw_categories(self._weights, block.stop - block.start, self.n_categories, rng)
            labels = self._labels.draw(categories.ravel(), self.n_labels, rng)
            items = self._items.draw(labels.ravel(), self.n_instances, rng)
            yield from items.reshape(-1, self.batch_size).tolist()
