"""Pairs of items in batches, and what a model says of them; each image is decoded as seldom as the memory allows."""

import heapq
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import DataLoader

from oml.datasets.list_dataset import ListDataset, TBBox
from oml.inference._batches import Items, OnProgress, collate, device_of, different_sizes, evaluation
from oml.interfaces.models import IPairwiseModel
from oml.transforms.images.utils import TTransforms
from oml.utils.images.images import TImReader

CACHE_SIZE = 512 * 2**20  # bytes

#: the path of an image, and the box to look at or ``None`` for the whole image
ImageItem = tuple[str, TBBox | None]


class _Step(NamedTuple):
    """What to do before a batch: images to throw out, then images to load."""

    drop: list[int]
    load: list[int]


class ImagePairs:
    """Pairs of images in batches of two tensors on a device, in an order in which images need to be read seldom.

    Images stay on the device, in ``cache_size`` bytes, as long as they will be needed again. Which pairs come is known
    from the start, so those that are thrown out for lack of room are those that will be needed last (Belady's
    algorithm): no other way would read fewer. The order of the pairs, and so what is in a batch, does not depend on the
    room. The tensors of a batch are those of the next one, overwritten: new memory takes longer than the images' way
    into it.

    Args:
        first, second: the two images of each pair.
        transform, f_imread: see :class:`~oml.datasets.list_dataset.ListDataset`.
        cache_size: bytes of transformed images to hold; those of one batch always are, and what workers have read ahead
            comes on top.

    Attributes:
        order: positions of the pairs in the order in which they come.

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
        pairs = [
            (numbers.setdefault(one, len(numbers)), numbers.setdefault(other, len(numbers)))
            for one, other in zip(first, second, strict=True)
        ]
        self.order = _order_by_kin(pairs)
        self._pairs = [pairs[position] for position in self.order]
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
        image: Tensor = collate([(start, self._dataset[start])]).entries[key][0]
        n_places = max(self._cache_size // image.nbytes, *(len(set(chain(*batch))) for batch in batches))
        held = image.new_empty((min(len(self._dataset), n_places), *image.shape), device=self._device)
        held[0] = image.to(self._device)
        ones, others = (held.new_empty((len(batches[0]), *image.shape)) for _ in range(2))
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
            places = torch.tensor([(place[one], place[other]) for one, other in batch], device=self._device)
            torch.index_select(held, 0, places[:, 0], out=ones[: len(batch)])
            torch.index_select(held, 0, places[:, 1], out=others[: len(batch)])
            yield ones[: len(batch)], others[: len(batch)]


def score_images(
    model: IPairwiseModel,
    first: Sequence[ImageItem],
    second: Sequence[ImageItem],
    transform: TTransforms | None,
    f_imread: TImReader | None,
    *,
    num_workers: int,
    batch_size: int,
    cache_size: int,
    **how: Any,
) -> Float[Tensor, " pair"]:
    """What the model says of pairs of images, all of them computed in this process."""
    if cache_size < 0:
        raise ValueError(f"Pairs of images need a cache_size of 0 or more bytes, got {cache_size}.")
    pairs = ImagePairs(
        first, second, transform, f_imread, batch_size=batch_size, num_workers=num_workers, cache_size=cache_size,
        device=device_of(model),
    )  # fmt: skip
    scores = _predicted(model, pairs, len(first), **how)
    return torch.empty_like(scores).index_put_((torch.tensor(pairs.order, device=scores.device),), scores)


def score_embeddings(
    model: IPairwiseModel,
    embeddings1: Float[Tensor, "item1 ..."],
    embeddings2: Float[Tensor, "item2 ..."],
    ids1: Int[Tensor, " pair"],
    ids2: Int[Tensor, " pair"],
    *,
    batch_size: int,
    **how: Any,
) -> Float[Tensor, " pair"]:
    """What the model says of pairs of rows of two tensors, all of them computed in this process."""
    device = device_of(model)
    dtype = next((weight.dtype for weight in model.parameters()), None)  # autocast leaves bfloat16 embeddings, say
    pairs = (
        (embeddings1[rows1].to(device, dtype), embeddings2[rows2].to(device, dtype))
        for rows1, rows2 in zip(
            ids1.to(embeddings1.device).split(batch_size), ids2.to(embeddings2.device).split(batch_size), strict=True
        )
    )
    return _predicted(model, pairs, len(ids1), **how)


def _predicted(
    model: IPairwiseModel,
    pairs: Iterable[tuple[Tensor, Tensor]],
    n: int,
    *,
    use_fp16: bool,
    on_cpu: bool = True,
    on_progress: OnProgress | None = None,
) -> Tensor:
    scores: Tensor | None = None
    done = 0
    with evaluation(model, use_fp16):
        for x1, x2 in pairs:
            part = model.predict(x1, x2)
            if part.shape != (len(x1),):
                raise ValueError(
                    f"Inference on pairs needs a model that gives a number for each pair, but {type(model).__name__} "
                    f"makes {tuple(part.shape)} of {len(x1)} pairs."
                )
            part = part.to("cpu" if on_cpu else part.device, torch.promote_types(part.dtype, torch.float32))
            scores = part.new_empty(n) if scores is None else scores
            scores[done : done + len(part)] = part
            done += len(part)
            if on_progress is not None:
                on_progress(done, n)
    assert scores is not None, "there are pairs"
    return scores


def _order_by_kin(pairs: Sequence[tuple[int, int]]) -> list[int]:
    """Positions of pairs: those with the same first image together, and next such that share an image with them.

    A walk through the graph of the pairs, depth first, so that what has just been looked at is looked at again soon.
    """
    positions: dict[int, list[int]] = {}  # of the pairs of each first image
    seconds: defaultdict[int, list[int]] = defaultdict(list)  # of each second image: the first ones
    for position, (one, other) in enumerate(pairs):
        positions.setdefault(one, []).append(position)
        seconds[other].append(one)
    order: list[int] = []
    for start in list(positions):
        stack = [start]
        while stack:
            one = stack.pop()
            own = positions.pop(one, [])
            order += own
            for image in (one, *(pairs[position][1] for position in reversed(own))):
                stack += seconds.pop(image, [])
                if image in positions:
                    stack.append(image)
    return order


def _schedule(batches: Sequence[Sequence[tuple[int, int]]], n_places: int, there: int) -> Iterator[_Step]:
    """What to drop and load before each batch, for ``n_places`` images, of which one is there at the start."""
    uses: defaultdict[int, deque[int]] = defaultdict(deque)  # of each image: the batches to come
    for number, batch in enumerate(batches):
        for image in set(chain(*batch)):
            uses[image].append(number)
    kept, drop = {there}, []
    for batch in batches:
        needed = dict.fromkeys(chain(*batch))
        load = [image for image in needed if image not in kept]
        if (n_over := len(kept) + len(load) - n_places) > 0:
            others = kept.difference(needed)
            drop += heapq.nlargest(n_over, others, key=lambda image: uses[image][0])
        yield _Step(drop, load)
        for image in needed:
            uses[image].popleft()
        kept.difference_update(drop)
        kept.update(load)
        drop = [image for image in needed if not uses[image]]
        kept.difference_update(drop)
