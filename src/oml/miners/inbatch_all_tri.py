"""All triplets of a batch."""

import sys
import warnings
from itertools import product

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from oml.functional.triplets import Triplets, all_triplets, draw_triplets
from oml.interfaces.miners import ITripletsMinerInBatch, TLabels, TTripletsIds, labels2list
from oml.miners._draws import Draws


class AllTripletsMiner(nn.Module, ITripletsMinerInBatch):
    """Every triplet of the batch, or a uniform random choice of them if there are too many.

    A batch of ``B`` items with ``c`` instances a label holds ``B (c - 1) (B - c)`` triplets. A loss that sums over all
    of them needs no list, see :meth:`takes_all`; with a limit, memory is that of the triplets that are drawn, and
    the state of the draws is part of ``state_dict``.

    Args:
        max_output_triplets: if a batch holds more, exactly so many are drawn, without repetition.
        device: has no effect, triplets are where the labels are; accepted for callers of earlier versions.
        seed: of the draws. Each call draws anew; two miners with one seed draw the same.
    """

    def __init__(
        self, max_output_triplets: int = sys.maxsize, device: str | torch.device | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        if max_output_triplets < 1:
            raise ValueError(f"AllTripletsMiner needs max_output_triplets of 1 or more, got {max_output_triplets}.")
        if device is not None:
            warnings.warn(
                "AllTripletsMiner works on the device of the embeddings: leave out its argument device.",
                DeprecationWarning,
                stacklevel=2,
            )
        self.max_output_triplets = max_output_triplets
        self.draws = Draws(seed) if max_output_triplets < sys.maxsize else None

    def mine(self, features: Float[Tensor, "batch dim"], labels: Int[Tensor, " batch"]) -> Triplets:
        """Positions of the triplets; ``features`` are not looked at."""
        if self.draws is None or self.takes_all(len(features)):
            return all_triplets(labels)
        return draw_triplets(labels, self.max_output_triplets, self.draws.generator)

    def takes_all(self, n: int) -> bool:
        """Whether no batch of ``n`` items, whatever its labels, holds more triplets than the limit."""
        # an item of a label of c has (c - 1) (n - c) triplets: most for c half way
        return n * ((n - 1) // 2) * (n // 2) <= self.max_output_triplets


def get_available_triplets(
    labels: TLabels,
    max_out_triplets: int = sys.maxsize,
    device: str | torch.device = "cpu",
    generator: torch.Generator | None = None,
) -> TTripletsIds:
    """All triplets of the labels, or ``max_out_triplets`` of them, as lists; for callers of earlier versions.

    Each call draws anew, by ``generator`` (of the CPU) or else by the one that ``torch.manual_seed`` sets.

    Example:
        >>> get_available_triplets([5, 5, 7])
        ([0, 1], [1, 0], [2, 2])
    """
    labels = torch.tensor(labels2list(labels), dtype=torch.int64, device=device)
    anchor, positive, negative = draw_triplets(labels, max_out_triplets, generator or torch.default_generator)
    return anchor.tolist(), positive.tolist(), negative.tolist()


def get_available_triplets_naive(
    labels: TLabels, max_out_triplets: int = sys.maxsize, generator: torch.Generator | None = None
) -> TTripletsIds:
    """As :func:`get_available_triplets`, by trying every combination of three items.

    Example:
        >>> get_available_triplets_naive([5, 5, 7])
        ([0, 1], [1, 0], [2, 2])
    """
    values = labels2list(labels)
    triplets = [
        (a, p, n) for a, p, n in product(range(len(values)), repeat=3) if a != p and values[a] == values[p] != values[n]
    ]
    if len(triplets) > max_out_triplets:
        triplets = [triplets[i] for i in torch.randperm(len(triplets), generator=generator)[:max_out_triplets]]
    return [a for a, _, _ in triplets], [p for _, p, _ in triplets], [n for _, _, n in triplets]
