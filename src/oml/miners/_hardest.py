"""What the miners of hardest triplets share."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from oml.functional.distances import euclidean_pairs
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
    size = max(1, _NUMBERS // max(1, len(x)))
    parts = []
    for anchors in torch.arange(n_anchors, device=labels.device).split(size):
        one_set = len(anchors) == len(x)  # whose distances take fewer steps
        distances = (euclidean_pairs(x) if one_set else euclidean_pairs(x[anchors], x)).distances
        ids = n_hardest_triplets(distances, labels, positives, negatives, anchors)
        row = ids.anchor if len(anchors) == n_anchors else ids.anchor - anchors[0]
        parts.append((*ids, distances[row, ids.positive], distances[row, ids.negative]))
    *ids, to_positives, to_negatives = (
        values[0] if len(values) == 1 else torch.cat(values) for values in zip(*parts, strict=True)
    )
    return MinedTriplets(candidates, Triplets(*ids), distances=(to_positives, to_negatives))
