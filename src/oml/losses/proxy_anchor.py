"""Proxy-Anchor: proxies pull and push the items of a batch."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from oml.functional.proxies import cosines_to_proxies, proxy_anchor_loss
from oml.interfaces.miners import TLabels
from oml.losses._proxies import accuracy_logs, check_sizes, checked_batch


class ProxyAnchorLoss(nn.Module):
    """Each label's proxy pulls the hardest of its items most, and pushes the hardest of the others most.

    Kim et al. 2020, "Proxy Anchor Loss for Deep Metric Learning"; the formula stands at
    :func:`oml.functional.proxies.proxy_anchor_loss`.

    Needs labels from 0 to ``num_classes - 1``, no miner and no special sampler, though several instances of a label
    in a batch let it compare them. Its ``proxies`` are parameters: give them to the optimizer, in the paper with a
    learning rate 100 times that of the model. ``last_logs`` holds the ``accuracy``: the share of embeddings that are
    nearest to their own label's proxy. It is a mean over proxies, not over items, so it has no other reduction.

    Args:
        in_features: size of the embeddings.
        num_classes: number of labels.
        margin: items are pulled up to a cosine of about ``margin``, others pushed down to about ``-margin``.
        scale: of the cosines, above 0; the higher, the more the hardest item counts.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> criterion = ProxyAnchorLoss(in_features=2, num_classes=2, margin=0.0, scale=1.0)
        >>> _ = criterion.load_state_dict({"proxies": torch.tensor([[1.0, 0.0], [-1.0, 0.0]])})
        >>> with torch.no_grad():
        ...     criterion(torch.tensor([[5.0, 0.0]]), torch.tensor([0]))  # 3/2 of log(1 + exp(-1))
        tensor(0.4699)
    """

    criterion_name = "proxy_anchor"

    def __init__(self, in_features: int, num_classes: int, margin: int | float = 0.1, scale: int | float = 32) -> None:
        super().__init__()
        check_sizes("ProxyAnchorLoss", in_features=in_features, num_classes=num_classes)
        if not (-1 <= margin <= 1 and scale > 0):
            raise ValueError(
                f"ProxyAnchorLoss needs a margin of -1 to 1 and a scale above 0, got {margin} and {scale}."
            )
        self.margin = margin
        self.scale = scale
        self.last_logs: dict[str, Tensor] = {}
        # normal numbers, as in the paper: all directions are equally likely
        self.proxies = nn.Parameter(nn.init.kaiming_normal_(torch.empty(num_classes, in_features), mode="fan_out"))

    def forward(self, features: Float[Tensor, "batch dim"], labels: TLabels) -> Float[Tensor, ""]:
        """The loss of the batch; labels are 0 to ``num_classes - 1``."""
        labels = checked_batch("ProxyAnchorLoss", features, labels, *self.proxies.shape)
        cosines = cosines_to_proxies(features, self.proxies)
        self.last_logs = accuracy_logs(cosines, labels)
        return proxy_anchor_loss(cosines, labels, self.margin, self.scale)
