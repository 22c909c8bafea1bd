"""Distances of pairs, by a pairwise model."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from oml.datasets.list_dataset import TBBoxes
from oml.ddp.utils import in_all_processes
from oml.inference._batches import OnProgress, all_rows, device_of, patient_bar, rank_and_world, share
from oml.inference._pairs import CACHE_SIZE, ImageItem, score_embeddings, score_images
from oml.interfaces.models import IPairwiseModel
from oml.transforms.images.utils import TTransforms
from oml.utils.images.images import TImReader


def pairwise_inference_on_images(
    model: IPairwiseModel,
    paths1: Sequence[Path | str],
    paths2: Sequence[Path | str],
    transform: TTransforms | None,
    num_workers: int,
    batch_size: int,
    verbose: bool | None = True,
    f_imread: TImReader | None = None,
    use_fp16: bool = False,
    accumulate_on_cpu: bool = True,
    *,
    bboxes1: TBBoxes | None = None,
    bboxes2: TBBoxes | None = None,
    cache_size: int = CACHE_SIZE,
) -> Float[Tensor, " pair"]:
    """What a pairwise model says of pairs of image files, in their order.

    ``model.predict(x1, x2)`` is called on batches, on the device of the model's weights, in its evaluation mode, which
    is undone afterwards. An image that is in many pairs is read once, if ``cache_size`` allows, and more often if not.
    If ``torch.distributed`` is at work, each process computes a part, and all get all.

    Args:
        model: its ``predict`` is called.
        paths1, paths2: of the images of each pair.
        transform, f_imread: image -> tensor, and how files are read; see :class:`oml.datasets.base.BaseDataset`.
        num_workers: processes that read the images.
        batch_size: pairs at a time.
        verbose: show a bar; ``None`` does once it has taken two seconds.
        use_fp16: compute in float16 by autocast, on devices with units for it; a CPU goes on in float32.
        accumulate_on_cpu: move results to the CPU batch by batch; otherwise they stay on the device.
        bboxes1, bboxes2: x1, y1, x2, y2 of the part to look at, for each path, or ``None`` for the whole image.
        cache_size: bytes of transformed images to keep on the device of the model while they will be needed again.

    Returns:
        A number per pair in float32, or float64 if the model gives these.

    Raises:
        ValueError: there are no pairs, numbers of paths differ, files do not exist, the boxes do not fit, or the model
            does not give a number per pair.
        UnreadableImageError: an image cannot be decoded.
    """
    first, second = _items("1", paths1, bboxes1), _items("2", paths2, bboxes2)
    _check_pairs("pairwise_inference_on_images", first, second)

    def part(own: slice, on_progress: OnProgress | None) -> Tensor:
        return score_images(
            model, first[own], second[own], transform, f_imread, num_workers=num_workers, batch_size=batch_size,
            cache_size=cache_size, use_fp16=use_fp16, on_cpu=accumulate_on_cpu, on_progress=on_progress,
        )  # fmt: skip

    return _shared_out(part, len(first), model, verbose, accumulate_on_cpu)


def pairwise_inference_on_embeddings(
    model: IPairwiseModel,
    embeddings1: Float[Tensor, "pair ..."],
    embeddings2: Float[Tensor, "pair ..."],
    num_workers: int,  # noqa: ARG001 (as for images)
    batch_size: int,
    verbose: bool | None = False,
    use_fp16: bool = False,
    accumulate_on_cpu: bool = True,
) -> Float[Tensor, " pair"]:
    """What a pairwise model says of pairs of embeddings, in their order.

    Args:
        model, batch_size, verbose, use_fp16, accumulate_on_cpu: see :func:`pairwise_inference_on_images`.
        embeddings1, embeddings2: of the items of each pair.
        num_workers: of no account: what is in memory takes no processes to read.

    Returns:
        As :func:`pairwise_inference_on_images`.

    Raises:
        ValueError: there are no pairs, numbers of embeddings differ, or the model does not give a number per pair.

    Example:
        >>> from oml.models import LinearTrivialDistanceSiamese
        >>> model = LinearTrivialDistanceSiamese(feat_dim=2, identity_init=True)
        >>> ones = torch.ones(3, 2)
        >>> pairwise_inference_on_embeddings(model, ones, ones, num_workers=0, batch_size=2)
        tensor([0., 0., 0.])
    """
    _check_pairs("pairwise_inference_on_embeddings", embeddings1, embeddings2)
    ids = torch.arange(len(embeddings1))

    def part(own: slice, on_progress: OnProgress | None) -> Tensor:
        return score_embeddings(
            model, embeddings1, embeddings2, ids[own], ids[own], batch_size=batch_size, use_fp16=use_fp16,
            on_cpu=accumulate_on_cpu, on_progress=on_progress,
        )  # fmt: skip

    return _shared_out(part, len(ids), model, verbose, accumulate_on_cpu)


def _shared_out(
    part: Callable[[slice, OnProgress | None], Tensor],
    n: int,
    model: IPairwiseModel,
    verbose: bool | None,
    on_cpu: bool,
) -> Tensor:
    """What all processes have computed together, in each of them."""
    own = share(n, *rank_and_world())
    with patient_bar("Comparing pairs", verbose) as on_progress:
        scores = in_all_processes(lambda: part(slice(own.start, own.stop), on_progress) if len(own) else None)
    return all_rows(scores, n, torch.device("cpu") if on_cpu else device_of(model))


def _items(name: str, paths: Sequence[Path | str], boxes: TBBoxes | None) -> list[ImageItem]:
    if isinstance(paths, str | Path):
        raise TypeError(f"pairwise_inference_on_images needs a list as paths{name}, got the path {str(paths)!r} alone.")
    if boxes is not None and len(boxes) != len(paths):
        raise ValueError(
            f"pairwise_inference_on_images needs a box or None for every path, got {len(boxes)} bboxes{name} for "
            f"{len(paths)} paths{name}."
        )
    return [(str(path), box) for path, box in zip(paths, boxes or [None] * len(paths), strict=True)]


def _check_pairs(owner: str, first: Sequence[Any] | Tensor, second: Sequence[Any] | Tensor) -> None:
    if len(first) != len(second) or len(first) == 0:
        raise ValueError(f"{owner} needs pairs, at least one, got {len(first)} first and {len(second)} second members.")
