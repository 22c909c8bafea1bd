"""All triplets of a batch."""

import sys

import torch
from jaxtyping import Float, Int
from torch import Tensor

from oml.functional.triplets import Triplets, all_triplets
from oml.interfaces.miners import ITripletsMinerInBatch


class AllTripletsMiner(ITripletsMinerInBatch):
    """Every triplet of the batch, or a uniform random choice of them if there are too many.

    A batch of ``B`` items with ``c`` instances a label holds ``B (c - 1) (B - c)`` triplets, each of which the
    loss sees as three embeddings: keep batches small or set a limit.

    Args:
        max_output_triplets: if a batch holds more, exactly so many are drawn, without repetition.
        seed: of that draw. Each call draws anew; two miners with one seed draw the same.
    """

    def __init__(self, max_output_triplets: int = sys.maxsize, seed: int = 0) -> None:
        if max_output_triplets < 1:
            raise ValueError(f"AllTripletsMiner needs max_output_triplets of 1 or more, got {max_output_triplets}.")
        self.max_output_triplets = max_output_triplets
        self._generator = torch.Generator().manual_seed(seed)

    def mine(self, features: Float[Tensor, "batch dim"], labels: Int[Tensor, " batch"]) -> Triplets:
        """Positions of the triplets; ``features`` are not looked at."""
        triplets = all_triplets(labels)
        total = len(triplets.anchor)
        if total <= self.max_output_triplets:
            return triplets
        # drawn on the CPU, so that the same seed gives the same triplets on every device
        kept = torch.randperm(total, generator=self._generator)[: self.max_output_triplets].to(features.device)
        return Triplets(*(ids[kept] for ids in triplets))
