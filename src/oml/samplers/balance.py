"""Batches of several labels with several instances each."""

import warnings
from collections.abc import Iterator, Sequence

import numpy as np

from oml.interfaces.samplers import IBatchSampler
from oml.samplers.instances import draw_instances


class BalanceSampler(IBatchSampler):
    """Batches of ``n_labels`` labels with ``n_instances`` items each ("PK sampling", Hermans et al. 2017).

    An epoch walks through the labels in random order, each label at most once: ``n_unique // n_labels`` batches;
    the labels left over differ from epoch to epoch. The items of one label stand next to each other. A label
    with fewer than ``n_instances`` items gives all of them and repeats some.

    Each ``iter()`` is a new epoch. Epoch ``e`` depends on the arguments, the seed and ``e`` alone.

    Args:
        labels: the label of every item of the data set.
        n_labels: labels per batch, at least 2 and at most as many as there are.
        n_instances: items per label, at least 2.
        seed: of all random choices.

    Example:
        >>> sampler = BalanceSampler([7, 7, 7, 8, 8, 9, 9], n_labels=2, n_instances=2)
        >>> len(sampler), [len(batch) for batch in sampler]
        (1, [4])
    """

    def __init__(self, labels: Sequence[int] | np.ndarray, n_labels: int, n_instances: int, seed: int = 0) -> None:
        unique, label_ids, counts = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
        if not 2 <= n_labels <= len(unique):
            raise ValueError(
                f"BalanceSampler needs n_labels between 2 and the number of labels, {len(unique)}, got {n_labels}."
            )
        if seed < 0:
            raise ValueError(f"BalanceSampler needs a seed of 0 or more, got {seed}.")
        if n_instances < 2:
            raise ValueError(f"BalanceSampler needs n_instances of 2 or more, got {n_instances}.")
        if len(lone := unique[counts == 1]):
            warnings.warn(
                f"BalanceSampler got {len(lone)} of {len(unique)} labels with a single item, such as "
                f"{lone[:3].tolist()}: the item is repeated, which teaches nothing as a positive pair. "
                "Consider leaving such labels out of the training table.",
                stacklevel=2,
            )
        self.n_labels = n_labels
        self.n_instances = n_instances
        self.seed = seed
        self._epoch = 0
        self._counts = counts
        # the items of label i stand at _items[_starts[i] : _starts[i] + counts[i]]
        self._items = np.argsort(label_ids, kind="stable")
        self._starts = np.concatenate([[0], np.cumsum(counts)[:-1]])

    @property
    def batch_size(self) -> int:
        """Items per batch."""
        return self.n_labels * self.n_instances

    def set_epoch(self, epoch: int) -> None:
        """Let the next ``iter()`` be that of epoch ``epoch``."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._counts) // self.n_labels

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.seed, self._epoch])
        self._epoch += 1
        return self._batches(rng)

    def _batches(self, rng: np.random.Generator) -> Iterator[list[int]]:
        chosen = rng.permutation(len(self._counts))[: len(self) * self.n_labels]
        block = 256 * self.n_labels  # enough to spread the cost of a call, small enough to stay lazy
        for start in range(0, len(chosen), block):
            labels = chosen[start : start + block]
            offsets = draw_instances(self._counts[labels], self.n_instances, rng)
            items = self._items[self._starts[labels][:, None] + offsets]
            yield from items.reshape(-1, self.batch_size).tolist()
