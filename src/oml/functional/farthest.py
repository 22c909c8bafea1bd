"""For every item the one farthest from it, in bounded memory."""

import torch
from jaxtyping import Float
from torch import Tensor

from oml.functional.pair_blocks import BLOCK, GROUP, Block, PairBlocks, measured


def farthest_distances(
    embeddings: Float[Tensor, "item dim"], memory_budget: int = 512 * 2**20
) -> Float[Tensor, " item"]:
    """The L2 distance of each item from the one that is farthest from it.

    The farthest is found by products in the embeddings' dtype, block by block, and then measured: if two are nearly as
    far, it may be either.

    Example:
        >>> farthest_distances(torch.tensor([[0.0], [1.0], [3.0]]))
        tensor([3., 2., 3.])
    """
    n, side = len(embeddings), BLOCK
    n_threads = torch.get_num_threads() if embeddings.device.type == "cpu" else 1
    while side > GROUP and n_threads * side * side * 8 > memory_budget // 4:
        side //= 2
    blocks = PairBlocks(embeddings, embeddings, shape=(side, side), memory_budget=memory_budget // 4)
    n_blocks = blocks.n_query_blocks
    half_slack = blocks.query_slack / 2
    lowest = torch.full((n,), torch.inf, dtype=blocks.dtype, device=embeddings.device)
    partner = torch.arange(n, device=embeddings.device)

    def look(block: Block) -> list[tuple[Tensor, Tensor, Tensor]]:
        q, g, numbers = block
        numbers = numbers[: n - q, : n - g]
        # without the slack of the bounds the numbers are as near to the truth as rounding allows
        numbers -= half_slack[q : q + side, None]
        numbers -= half_slack[g : g + side]
        found = []
        for first, other, of_side in ((q, g, numbers), (g, q, numbers.T))[: 1 + (q != g)]:
            nearness = of_side.amin(dim=1)
            rows = (nearness < lowest[first : first + len(nearness)]).nonzero().squeeze(1)
            found.append((rows + first, nearness[rows], of_side[rows].argmin(dim=1) + other))
        return found

    for step in range(n_blocks // 2 + 1):
        # in the last step of an even number, half of the blocks are the others transposed
        places = [(row, (row + step) % n_blocks) for row in range(n_blocks) if 2 * step < n_blocks or row < step]
        for sides in blocks.visit(places, look):
            for rows, nearness, others in sides:
                farther = nearness < lowest[rows]
                lowest[rows[farther]], partner[rows[farther]] = nearness[farther], others[farther]
    return measured(embeddings, embeddings, torch.arange(n, device=partner.device), partner, memory_budget)
