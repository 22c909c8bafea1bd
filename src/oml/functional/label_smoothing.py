"""Label smoothing: targets that leave some probability to other labels."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


@torch.no_grad()
def label_smoothing(
    y: Int[Tensor, " batch"],
    num_classes: int,
    epsilon: int | float = 0.2,
    categories: Any = None,
) -> Float[Tensor, "batch label"]:
    """The probability of every label for every item: ``1 - epsilon`` for its own one, ``epsilon`` shared equally.

    Without categories, all labels share ``epsilon``, the item's own one included (Szegedy et al. 2016; the
    ``label_smoothing`` of ``torch.nn.CrossEntropyLoss`` is the same). With categories, the labels of the category of
    the item's label share it, and all others get 0.

    Args:
        y: labels of 0 to ``num_classes - 1``.
        num_classes: how many labels there are.
        epsilon: at least 0 and below 1.
        categories: the category of each of the labels: a tensor, a numpy array or a list of integers.

    Raises:
        ValueError: if ``epsilon`` is out of range or there is not one category per label.

    Example:
        >>> label_smoothing(torch.tensor([0]), num_classes=4, epsilon=0.2)
        tensor([[0.8500, 0.0500, 0.0500, 0.0500]])
        >>> label_smoothing(torch.tensor([0]), num_classes=4, epsilon=0.2, categories=torch.tensor([5, 5, 3, 3]))
        tensor([[0.9000, 0.1000, 0.0000, 0.0000]])
    """
    check_epsilon("label_smoothing", epsilon)
    if categories is not None and len(categories) != num_classes:
        raise ValueError(
            f"label_smoothing needs one category per label, got {len(categories)} categories and {num_classes} labels."
        )
    if categories is None:
        targets = torch.full((len(y), num_classes), epsilon / num_classes, device=y.device)
    else:
        categories = torch.as_tensor(categories, device=y.device)
        related = categories == categories[y][:, None]
        targets = related * (epsilon / related.sum(dim=1, keepdim=True))
    own = y.long()[:, None]
    return targets.scatter_add_(1, own, torch.full_like(own, 1 - epsilon, dtype=targets.dtype))


def check_epsilon(owner: str, epsilon: int | float) -> None:
    """Raise ``ValueError`` unless ``epsilon`` may be the share of probability that smoothing moves."""
    if not 0 <= epsilon < 1:
        raise ValueError(f"{owner} needs a smoothing epsilon of at least 0 and below 1, got {epsilon}.")
