"""What the miners of hardest triplets share."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from oml.functional.distances import pairwise_dist
from oml.functional.triplets import Triplets, n_hardest_triplets
from oml.interfaces.miners import MinedTriplets

_NUMBERS = 2**21  # of distances at a time: 8 MiB


def hardest_among(
    candidates: Float[Tensor, "candidate dim"],
    labels: Int[Tensor, " candidate"],
    n_anchors: int,
    positives: slice = slice(0, 1),
    negatives: slice = slice(0, 1),
) -> MinedTriplets:
    """The triplets of the first ``n_anchors`` candidates, with those of all candidates that have these ranks."""
    x = candidates.detach()
    parts = []
    for anchors in torch.arange(n_anchors, device=labels.device).split(max(1, _NUMBERS // max(1, len(labels)))):
        # the tensor itself is known to be symmetric, a part of it is not
        rows = x if len(anchors) == len(x) else x[anchors]
        distances = pairwise_dist(rows, x)
        ids = n_hardest_triplets(distances, labels, positives, negatives, anchors)
        row = ids.anchor - anchors[:1]
        parts.append((*ids, distances[row, ids.positive], distances[row, ids.negative]))
    *ids, to_positives, to_negatives = (torch.cat(values) for values in zip(*parts, strict=True))
    return MinedTriplets(candidates, Triplets(*ids), distances=(to_positives, to_negatives))
