"""All pairs of queries and galleries, block by block: how near they are, within proven bounds."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import local
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 1024  # queries x galleries of a block: 4 MiB of float32 stay in a CPU's cache
GROUP = 32  # neighbouring numbers of a block that are looked at together; sides of blocks are multiples of it
_NUMBERS = 2**18  # of the vectors that are subtracted at a time: 2 MiB of float64 stay in a CPU's cache

T = TypeVar("T")


class Block(NamedTuple):
    """The bounds of ``nearness`` of the queries from ``first_query`` and the galleries from ``first_gallery`` on."""

    first_query: int
    first_gallery: int
    nearness: Float[Tensor, "query gallery"]


class PairBlocks:
    """``-|q - g|^2 / 2`` of all pairs, the nearer the larger, within proven bounds: a block is one matrix product.

    Each number of a block is an upper bound: ``nearness >= -|q - g|^2 / 2``. It is not far off:
    ``nearness - query_slack[q] - gallery_slack[g] <= -|q - g|^2 / 2``. So comparisons decide on nearly all pairs, and
    only those that they leave open have to be measured, see :func:`measured`.

    With ``x = q - centre`` and ``y = g - centre`` (the nearer the origin to the vectors, the tighter the bounds), the
    number is ``x . y - |x|^2 / 2 - |y|^2 / 2``, as one product of vectors with two further entries. With
    ``u = eps / 2``, a sum of ``n`` products in any order is off by at most ``n * u / (1 - n * u)`` of the sum of their
    absolute values, which here is at most ``|x|^2 + |y|^2``; centring and rounding the squared norms add a few ``u``
    of it. So ``(dim + 16) * u * (|x|^2 + |y|^2)`` bounds all errors, with ``dim * tiny`` for products too small for a
    normal number. Half of the slack is in the further entries already.

    If ``galleries is queries``, block (j, i) is block (i, j) transposed (up to rounding), and half of them are enough.

    Args:
        queries, galleries: Vectors on one device, finite and far enough from overflow when squared.
        shape: At most how many queries and galleries a block has.
        memory_budget: Bytes that prepared vectors may take. Otherwise every block prepares its own.
    """

    def __init__(
        self,
        queries: Float[Tensor, "query dim"],
        galleries: Float[Tensor, "gallery dim"],
        *,
        shape: tuple[int, int] = (BLOCK, BLOCK),
        memory_budget: int = 0,
    ) -> None:
        self.symmetric = galleries is queries
        self._queries, self._galleries = queries.detach(), galleries.detach()
        self.dtype = torch.promote_types(torch.promote_types(queries.dtype, galleries.dtype), torch.float32)
        self._n_rows, self._n_columns = (
            min(size, -(-len(vectors) // GROUP) * GROUP)
            for size, vectors in zip(shape, (queries, galleries), strict=True)
        )
        self._centre = self._galleries[:: -(-len(galleries) // BLOCK)].to(self.dtype).mean(dim=0)
        info, dim = torch.finfo(self.dtype), queries.shape[1]
        self._error = (dim + 16) * info.eps / 2 / (1 - (dim + 16) * info.eps / 2)
        self._smallest = dim * info.tiny
        self._never = -info.max / 8  # of rows and columns that fill up a block
        self.query_slack = self._slack(self._queries)
        self.gallery_slack = self.query_slack if self.symmetric else self._slack(self._galleries)
        n_bytes = (len(galleries) + (0 if self.symmetric else len(queries))) * (dim + 2) * info.bits // 8
        self._prepared: dict[tuple[int, bool], Tensor] | None = {} if n_bytes <= memory_budget else None

    @property
    def n_query_blocks(self) -> int:
        """How many blocks stand below each other."""
        return -(-len(self._queries) // self._n_rows)

    @property
    def n_gallery_blocks(self) -> int:
        """How many blocks stand beside each other."""
        return -(-len(self._galleries) // self._n_columns)

    def visit(self, blocks: Sequence[tuple[int, int]], look: Callable[[Block], T]) -> list[T]:
        """What ``look`` makes of each of these blocks (by their row and column of blocks), in order.

        On a CPU each thread of torch takes blocks of its own, so ``look`` must not write what others read. The
        numbers of a block are overwritten after it; rows and columns that fill up the last blocks are far off.
        """
        buffers = local()

        def work(place: tuple[int, int]) -> T:
            if not hasattr(buffers, "block"):
                buffers.block = self._centre.new_empty(self._n_rows, self._n_columns)
            row, column = place
            torch.mm(self._side(row, False), self._side(column, True).T, out=buffers.block)
            return look(Block(row * self._n_rows, column * self._n_columns, buffers.block))

        n_threads = min(torch.get_num_threads(), len(blocks)) if self._centre.device.type == "cpu" else 1
        with _full_precision_products():
            if n_threads <= 1:
                with torch.autocast(self._centre.device.type, enabled=False):
                    return [work(place) for place in blocks]
            with _threads(n_threads) as pool:
                return list(pool.map(work, blocks))

    def _side(self, index: int, of_galleries: bool) -> Tensor:
        """The vectors of a row or column of blocks with their two further entries."""
        if self._prepared is not None and (index, of_galleries) in self._prepared:
            return self._prepared[index, of_galleries]
        vectors, size = (self._galleries, self._n_columns) if of_galleries else (self._queries, self._n_rows)
        x = vectors[index * size : (index + 1) * size].to(self.dtype) - self._centre
        # half of the slack is here: both further entries of a pair make its number an upper bound
        half_squared = x.double().square().sum(dim=1).mul_(0.5 - self._error).sub_(self._smallest).to(self.dtype)
        ones = torch.ones_like(half_squared)
        x = torch.column_stack([x, ones, -half_squared] if not of_galleries else [x, -half_squared, ones])
        if missing := size - len(x):
            x = F.pad(x, (0, 0, 0, missing))
            x[-missing:, -2 if of_galleries else -1] = self._never
            x[-missing:, -1 if of_galleries else -2] = 1
        if self._prepared is not None:
            self._prepared[index, of_galleries] = x
        return x

    def _slack(self, vectors: Tensor) -> Tensor:
        squared = [(part.to(self.dtype) - self._centre).square().sum(dim=1) for part in vectors.split(BLOCK)]
        return torch.cat(squared).mul_(2 * self._error * (1 + 2 * self._error)).add_(2 * self._smallest)


def near_rows(
    nearness: Float[Tensor, "query gallery"], limits: Float[Tensor, " query"]
) -> tuple[Int[Tensor, " pair"], Int[Tensor, " pair"]]:
    """Rows (ascending) and columns of the numbers of a block that reach their row's limit.

    Quick if few do: a group without any is passed over.
    """
    n_groups = nearness.shape[1] // GROUP
    hits = (nearness.unflatten(1, (-1, GROUP)).amax(dim=2) >= limits[:, None]).flatten().nonzero().squeeze(1)
    row = hits // n_groups
    hit, place = (nearness.view(-1, GROUP)[hits] >= limits[row, None]).nonzero().unbind(1)
    return row[hit], hits[hit] % n_groups * GROUP + place


def near_columns(
    nearness: Float[Tensor, "query gallery"], limits: Float[Tensor, " gallery"]
) -> tuple[Int[Tensor, " pair"], Int[Tensor, " pair"]]:
    """Columns (ascending) and rows of the numbers that reach their column's limit: as for a block transposed."""
    groups = nearness.unflatten(0, (-1, GROUP))
    column, group = (groups.amax(dim=1) >= limits).T.nonzero().unbind(1)
    hit, place = (groups[group, :, column] >= limits[column, None]).nonzero().unbind(1)
    return column[hit], group[hit] * GROUP + place


def measured(
    queries: Float[Tensor, "query dim"],
    galleries: Float[Tensor, "gallery dim"],
    query_ids: Int[Tensor, " pair"],
    gallery_ids: Int[Tensor, " pair"],
    memory_budget: int = 64 * 2**20,
) -> Float[Tensor, " pair"]:
    """The L2 distances of pairs, evaluated in float64 as they are defined, then rounded to the vectors' dtype.

    No bit of them depends on which pairs are measured together.
    """
    dtype = torch.promote_types(torch.promote_types(queries.dtype, galleries.dtype), torch.float32)
    distances = torch.empty(len(query_ids), dtype=dtype, device=queries.device)
    n_pairs = max(1, min(_NUMBERS, memory_budget // 32) // queries.shape[1])
    for start in range(0, len(query_ids), n_pairs):
        part = slice(start, start + n_pairs)
        squares = queries.index_select(0, query_ids[part]).double()
        squares.sub_(galleries.index_select(0, gallery_ids[part])).square_()
        while (width := squares.shape[1]) > 1:
            # Adding the right half to the left one gives the same bits for any number of pairs; sum() may not.
            squares[:, : width // 2] += squares[:, -(width // 2) :]
            squares = squares[:, : -(width // 2)]
        distances[part] = squares[:, 0].sqrt()
    return distances


def nearness_within(distances: Float[Tensor, " pair"], dim: int) -> Float[Tensor, " pair"]:
    """A bound for what counts as near: pairs whose nearness is below it are farther than ``distances`` after rounding.

    ``-distance^2 / 2``, less what rounding the two distances to their dtype, and evaluating them, may hide.
    """
    info = torch.finfo(distances.dtype)
    slack = 4 * info.eps + dim * torch.finfo(torch.float64).eps
    limit = (distances.double() * (1 + slack) + info.tiny).square().mul_(-0.5)
    # rounded down, as the comparison is with numbers of the distances' dtype
    return limit.mul_(1 + info.eps).to(distances.dtype).sub_(info.tiny)


@contextmanager
def _threads(n: int) -> Iterator[ThreadPoolExecutor]:
    """Threads whose operations do not start threads of their own."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(n, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


@contextmanager
def _full_precision_products() -> Iterator[None]:
    """Without TF32 and bfloat16: the bounds count on the rounding of the dtype they are computed in."""
    backends = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
