"""Pooling of feature maps."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from oml.functional.precision import in_full_precision


class GEM(nn.Module):
    """Generalised mean over all positions of a feature map: ``mean(clip(x, eps) ** p) ** (1 / p)`` in each channel.

    ``p = 1`` is the average, and the larger ``p``, the closer to the maximum: Radenovic, Tolias and Chum, "Fine-tuning
    CNN Image Retrieval with No Human Annotation", 2018. Computed in float32 at least, also under autocast, and of
    values over the channel's largest one, so that no power over- or underflows. What is not above ``eps`` has no
    gradient: this pooling is for activations that are mostly positive, as those after a ReLU.

    Args:
        p: the power, above 0.
        eps: least value, above 0.
        learnable: whether ``p`` is a parameter, which starts there; otherwise the module has no state.

    Raises:
        ValueError: ``p`` or ``eps`` is not above 0.

    Example:
        >>> GEM(p=2)(torch.tensor([[[[1.0, 7.0]]]]))  # the root of (1 + 49) / 2
        tensor([[5.]])
    """

    def __init__(self, p: int | float, eps: float = 1e-6, learnable: bool = False) -> None:
        super().__init__()
        if not p > 0 or not eps > 0:
            raise ValueError(f"GEM needs p and eps above 0, got p={p} and eps={eps}.")
        self.p = nn.Parameter(torch.tensor(float(p))) if learnable else float(p)
        self.eps = eps

    def forward(self, x: Float[Tensor, "batch channel *position"]) -> Float[Tensor, "batch channel"]:
        """One value a channel."""
        return _generalised_mean(x, self.p, self.eps).to(x.dtype)

    def extra_repr(self) -> str:
        """Arguments, for ``repr``."""
        return f"p={float(self.p):g}, eps={self.eps:g}"


@in_full_precision
def _generalised_mean(x: Tensor, p: Tensor | float, eps: float) -> Tensor:
    x = x.flatten(2).clamp(min=eps)
    # the mean scales with x, so the scale may count as a constant
    largest = x.detach().amax(dim=2, keepdim=True)
    return (x / largest).pow(p).mean(dim=2).pow(1 / p) * largest[..., 0]
