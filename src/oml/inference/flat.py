"""Embeddings of whole data sets."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from oml.const import INPUT_TENSORS_KEY
from oml.inference.fast import Inference, for_inference
from oml.interfaces.models import IExtractor


@torch.no_grad()
def extract_embeddings(
    extractor: IExtractor,
    dataset: Dataset,
    batch_size: int = 64,
    num_workers: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
    inference: Inference | None = None,
) -> Float[Tensor, "item dim"]:
    """The embedding of every item, in the order of the data set, on the CPU.

    Computed on the device of the extractor's parameters and in its evaluation mode, which is undone afterwards.

    Args:
        extractor: its ``extract`` is called on batches.
        dataset: items are dicts with the input under ``dataset.input_tensors_key``, ``"input_tensors"`` if it has
            no such attribute.
        batch_size: items at a time; it does not change the result but for rounding.
        num_workers: processes that read the items.
        on_progress: called with the items done and the items in all, after every batch.
        inference: how to compute faster, for data sets of images; see :class:`~oml.inference.fast.Inference`. The
            embeddings of a batch of items from all over the data set are compared with exact ones first.
            To use a fast extractor for several data sets, make it with :func:`~oml.inference.fast.for_inference`.

    Raises:
        ValueError: if the data set is empty, or leaves out items, see ``on_unreadable`` of
            :class:`oml.datasets.base.BaseDataset`; or as :func:`~oml.inference.fast.for_inference` does.

    Example:
        On one CPU core with units for bfloat16, an hour becomes half of one for a ViT-S/16, and eight minutes for an
        EfficientNet-Lite0::

            extract_embeddings(extractor, dataset, inference=Inference(dtype=torch.bfloat16, compile=True))
    """
    total = len(dataset)  # pyright: ignore[reportArgumentType]
    if total == 0:
        raise ValueError("extract_embeddings needs a data set with at least one item.")
    key = getattr(dataset, "input_tensors_key", INPUT_TENSORS_KEY)
    device = next((parameter.device for parameter in extractor.parameters()), torch.device("cpu"))
    if inference is not None:
        items = torch.linspace(0, total - 1, min(batch_size, total), dtype=torch.float64).long().tolist()
        sample = next(iter(DataLoader(Subset(dataset, items), batch_size=len(items), num_workers=num_workers)))
        extractor = for_inference(extractor, sample[key], inference)
    embeddings: Tensor | None = None
    done = 0
    was_training = extractor.training
    extractor.eval()
    try:
        for batch in DataLoader(dataset, batch_size=batch_size, num_workers=num_workers):
            part = extractor.extract(batch[key].to(device)).cpu()
            if len(part) < min(batch_size, total - done):
                raise ValueError(
                    f"extract_embeddings needs an embedding for each of the {total} items, but the data set left some "
                    f"of the items {done} to {min(done + batch_size, total) - 1} out. Take unreadable images out "
                    "of the table first; `oml check TABLE --images` finds them."
                )
            if embeddings is None:
                embeddings = part.new_empty((total, part.shape[1]))
            embeddings[done : done + len(part)] = part
            done += len(part)
            if on_progress is not None:
                on_progress(done, total)
    finally:
        extractor.train(was_training)
    assert embeddings is not None, "a data set with items gives batches"
    return embeddings
