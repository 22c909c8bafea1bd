"""Pairs of images in batches, each image decoded as seldom as the memory allows."""

import heapq
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from oml.datasets.list_dataset import ListDataset, TBBox
from oml.inference._batches import Items, collate, different_sizes
from oml.transforms.images.utils import TTransforms
from oml.utils.images.images import TImReader

#: the path of an image, and the box to look at or ``None`` for the whole image
ImageItem = tuple[str, TBBox | None]


class _Step(NamedTuple):
    """What to do before a batch: images to throw out, then images to load."""

    drop: list[int]
    load: list[int]


class ImagePairs:
    """Pairs of images in their order, in batches of two tensors on a device; each image is transformed once it is read.

    Images stay on the device, in ``cache_size`` bytes, as long as they will be needed again. Which pairs come is known
    from the start, so those that are thrown out for lack of room are those that will be needed last (Belady's
    algorithm): no other way would read fewer.

    Args:
        first, second: the two images of each pair.
        transform, f_imread: see :class:`~oml.datasets.list_dataset.ListDataset`.
        cache_size: bytes of transformed images to hold; those of one batch always are, and what workers have read ahead
            comes on top.

    Raises:
        ValueError: files do not exist, the boxes do not fit, or images come out of the transform in several sizes.
        UnreadableImageError: an image cannot be decoded.
    """

    def __init__(
        self,
        first: Sequence[ImageItem],
        second: Sequence[ImageItem],
        transform: TTransforms | None,
        f_imread: TImReader | None,
        *,
        batch_size: int,
        num_workers: int,
        cache_size: int,
        device: torch.device,
    ) -> None:
        numbers: dict[ImageItem, int] = {}
        self._pairs = [
            (numbers.setdefault(one, len(numbers)), numbers.setdefault(other, len(numbers)))
            for one, other in zip(first, second, strict=True)
        ]
        boxes = [box for _, box in numbers]
        self._dataset = ListDataset(
            [path for path, _ in numbers], boxes if any(boxes) else None, transform=transform, f_imread=f_imread
        )
        self._batch_size, self._num_workers = batch_size, num_workers
        self._cache_size, self._device = cache_size, device

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        key = self._dataset.input_tensors_key
        batches = [self._pairs[i : i + self._batch_size] for i in range(0, len(self._pairs), self._batch_size)]
        start = self._pairs[0][0]
        image: Tensor = self._dataset[start][key]
        n_fit = self._cache_size // max(1, image.nbytes)
        most = max(len(set(chain(*batch))) for batch in batches)
        held = image.new_empty((min(len(self._dataset), max(n_fit, most)), *image.shape), device=self._device)
        held[0] = image.to(self._device)
        place = {start: 0}
        free = list(range(1, len(held)))
        steps = list(_schedule(batches, len(held), start))
        loader = DataLoader(
            Items(self._dataset, range(len(self._dataset)), "raise"),
            batch_sampler=[step.load for step in steps if step.load],
            num_workers=self._num_workers,
            collate_fn=collate,
        )
        loaded: Iterator[Any] = iter(loader)
        for batch, step in zip(batches, steps, strict=True):
            free += [place.pop(number) for number in step.drop]
            if step.load:
                images: Tensor = next(loaded).entries[key]
                if images.shape[1:] != image.shape:
                    raise different_sizes([images.shape[1:], image.shape])
                place |= {number: free.pop() for number in step.load}
                held[[place[number] for number in step.load]] = images.to(self._device)
            ones, others = zip(*batch, strict=True)
            yield held[[place[number] for number in ones]], held[[place[number] for number in others]]


def _schedule(batches: Sequence[Sequence[tuple[int, int]]], n_places: int, there: int) -> Iterator[_Step]:
    """What to drop and load before each batch, for ``n_places`` images, of which one is there at the start."""
    uses: defaultdict[int, deque[int]] = defaultdict(deque)  # of each image: the batches to come
    for number, batch in enumerate(batches):
        for image in set(chain(*batch)):
            uses[image].append(number)
    kept = {there}
    for batch in batches:
        needed = dict.fromkeys(chain(*batch))
        load = [image for image in needed if image not in kept]
        others = [image for image in kept if image not in needed]
        drop = [image for image in others if not uses[image]]
        n_over = len(kept) + len(load) - len(drop) - n_places
        if n_over > 0:
            later = (image for image in others if uses[image])
            drop += heapq.nlargest(n_over, later, key=lambda image: (uses[image][0], image))
        kept = kept.difference(drop).union(load)
        for image in needed:
            uses[image].popleft()
        yield _Step(drop, load)
