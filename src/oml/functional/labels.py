"""The labels of a batch, checked."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor


def checked_labels(
    owner: str, embeddings: Float[Tensor, "batch dim"], labels: Tensor | Sequence[int], n_labels: int | None = None
) -> Int[Tensor, " batch"]:
    """``labels`` as an int64 tensor on the device of ``embeddings``.

    Args:
        owner: who asks, for the message.
        embeddings: what is labelled.
        labels: a list or a tensor, one integer per embedding, in one dimension or in a column.
        n_labels: labels must be 0 to ``n_labels - 1`` if this is given.

    Raises:
        ValueError: There is not one integer label per embedding, labels are out of range, or embeddings are no matrix
            of floats.

    Example:
        >>> checked_labels("TripletLoss", torch.zeros(2, 8), [3, 3])
        tensor([3, 3])
    """
    if embeddings.ndim != 2 or not embeddings.is_floating_point():
        raise ValueError(
            f"{owner} needs embeddings of floats, with two dimensions, batch and dim; "
            f"got shape {tuple(embeddings.shape)} and type {embeddings.dtype}."
        )
    asked = f"{owner} needs one integer label per embedding, got embeddings of shape {tuple(embeddings.shape)} and "
    try:
        none = isinstance(labels, list) and not labels  # which torch takes for floats
        labels = torch.as_tensor(labels, device=embeddings.device, dtype=torch.int64 if none else None)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{asked}labels that are no numbers: {str(labels)[:100]}.") from error
    if labels.shape == (len(embeddings), 1):
        labels = labels[:, 0]
    if labels.shape != embeddings.shape[:1] or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"{asked}labels of shape {tuple(labels.shape)} and type {labels.dtype}.")
    if n_labels is not None and not labels.is_meta:
        wrong = labels[(labels < 0) | (labels >= n_labels)]
        if len(wrong):
            raise ValueError(
                f"{owner} needs labels of 0 to {n_labels - 1}, as it was built for {n_labels} labels; "
                f"got {len(wrong)} others of {len(labels)}, such as {wrong[:3].tolist()}."
            )
    return labels.long()
