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

from oml.functional.precision import without_autocast

BLOCK = 1024  # queries x galleries of a block: 4 MiB of float32 stay in a CPU's cache
GROUP = 32  # neighbouring numbers of a block that are looked at together; sides of blocks are multiples of it
_CENTRE_OF = 256  # galleries that the centre is found from: a median takes its time
_NUMBERS = 2**18  # of the vectors that are subtracted at a time: 2 MiB of float64 stay in a CPU's cache

S = TypeVar("S")
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
    number is ``x . y - |x|^2 / 2 - |y|^2 / 2``. With ``u = eps / 2``, a sum of ``n`` products in any order is off by at
    most ``n * u / (1 - n * u)`` of the sum of their absolute values, which here is at most ``|x|^2 + |y|^2``; centring
    and rounding the squared norms add a few ``u`` of it. So ``(dim + 16) * u * (|x|^2 + |y|^2)`` bounds all errors,
    with ``dim * tiny`` for products too small for a normal number. The norms are shrunk by it: half of the slack.

    Products in bfloat16 take half the time or less on hardware that has them. Its vectors ``X = x + dx``, with
    ``|dx| <= rho * |x|`` as measured, add ``|x . y - X . Y| <= |dx| * |y| + |X| * |dy|``, at most
    ``rho * (1 + rho / 2) * (|x|^2 + |y|^2)``. The norms are in six further entries, three for each, so that only the
    sum is rounded to bfloat16. For that, the lower bound is
    ``nearness * (1 + rounding) - query_slack[q] - gallery_slack[g]``, where a nearness above 0 counts as 0.

    If ``galleries is queries``, block (j, i) is block (i, j) transposed (up to rounding), and half of them are enough.

    Args:
        queries, galleries: Vectors on one device, finite and far enough from overflow when squared.
        shape: At most how many queries and galleries a block has.
        memory_budget: Bytes that prepared vectors may take. Otherwise every block prepares its own.
        product_dtype: What to multiply in: bfloat16, float64, or by default the vectors' dtype, at least float32.
    """

    def __init__(
        self,
        queries: Float[Tensor, "query dim"],
        galleries: Float[Tensor, "gallery dim"],
        *,
        shape: tuple[int, int] = (BLOCK, BLOCK),
        memory_budget: int = 0,
        product_dtype: torch.dtype | None = None,
    ) -> None:
        self.symmetric = galleries is queries
        self._queries, self._galleries = queries.detach(), galleries.detach()
        self.dtype = torch.promote_types(torch.promote_types(queries.dtype, galleries.dtype), torch.float32)
        if product_dtype == torch.float64:
            self.dtype = torch.float64
        self._product_dtype = product_dtype or self.dtype
        assert self._product_dtype in (self.dtype, torch.bfloat16), "exact_search refuses other dtypes"
        self.n_rows, self.n_columns = (
            min(size, -(-len(vectors) // GROUP) * GROUP)
            for size, vectors in zip(shape, (queries, galleries), strict=True)
        )
        # unlike the mean, the median does not follow a few vectors that are far off
        self._centre = self._galleries[:: -(-len(galleries) // _CENTRE_OF)].to(self.dtype).median(dim=0).values
        info, dim = torch.finfo(self.dtype), queries.shape[1]
        self._error = (dim + 16) * info.eps / 2 / (1 - (dim + 16) * info.eps / 2)
        self.rounding = 0.0
        squares, rho = self._squares(self._queries)
        other_squares, other_rho = (squares, rho) if self.symmetric else self._squares(self._galleries)
        if self._product_dtype != self.dtype:
            rho = float(torch.maximum(rho, other_rho))
            # twice the error of float32: units that multiply bfloat16 need not round to the nearest
            self._error = (rho * (1 + rho / 2) + 2 * self._error) * (1 + 2 * self._error)
            self._half_ulp = torch.finfo(self._product_dtype).eps / 2
            self.rounding = 2.02 * self._half_ulp
        self.query_slack, self._query_terms = self._slack_and_terms(squares, self.n_rows)
        self.gallery_slack, self._gallery_terms = (
            (self.query_slack, self._query_terms)
            if self.symmetric and self.n_rows == self.n_columns
            else self._slack_and_terms(other_squares, self.n_columns)
        )
        self._in_full = self._product_dtype == self.dtype
        n_sides = len(galleries) + (0 if self.symmetric and self._in_full else len(queries))
        n_bytes = n_sides * (dim + 6) * torch.finfo(self._product_dtype).bits // 8
        self._prepared: dict[tuple[int, bool], Tensor] | None = {} if n_bytes <= memory_budget else None

    @property
    def n_query_blocks(self) -> int:
        """How many blocks stand below each other."""
        return -(-len(self._queries) // self.n_rows)

    @property
    def n_gallery_blocks(self) -> int:
        """How many blocks stand beside each other."""
        return -(-len(self._galleries) // self.n_columns)

    def visit(self, blocks: Sequence[tuple[int, int]], look: Callable[[Block], T]) -> list[T]:
        """What ``look`` makes of each of these blocks (by their row and column of blocks), in order.

        On a CPU each thread of torch takes blocks of its own, so ``look`` must not write what others read. The
        numbers of a block are overwritten after it; rows and columns that fill up the last blocks are far off.
        """
        buffers = local()

        def work(place: tuple[int, int]) -> T:
            if not hasattr(buffers, "block"):
                buffers.block = self._centre.new_empty(self.n_rows, self.n_columns)
                buffers.product = buffers.block.to(self._product_dtype)
                buffers.row = -1
            row, column = place
            if buffers.row != row:
                buffers.row, buffers.side = row, self._side(row, False)
            side = self._side(column, True)
            if self._in_full:
                of_row, of_column = self._terms(row, False), self._terms(column, True)
                torch.add(of_row[:, None], of_column, out=buffers.block).addmm_(buffers.side, side.T)
            else:
                torch.mm(buffers.side, side.T, out=buffers.product)
                buffers.block.copy_(buffers.product).mul_(1 - self._half_ulp)
            return look(Block(row * self.n_rows, column * self.n_columns, buffers.block))

        with full_precision_products(), without_autocast(self._centre.device.type):
            return in_threads(work, blocks, self._centre.device)

    def _terms(self, index: int, of_galleries: bool) -> Tensor:
        terms, size = (self._gallery_terms, self.n_columns) if of_galleries else (self._query_terms, self.n_rows)
        return terms[index * size : (index + 1) * size]

    def _side(self, index: int, of_galleries: bool) -> Tensor:
        """The centred vectors of a row or column of blocks, in bfloat16 with the entries that make their terms."""
        key = index, of_galleries and not (self._in_full and self.symmetric)
        if self._prepared is not None and key in self._prepared:
            return self._prepared[key]
        vectors, size = (self._galleries, self.n_columns) if of_galleries else (self._queries, self.n_rows)
        part, dim = vectors[index * size : (index + 1) * size], vectors.shape[1]
        x = self._centre.new_empty(size, dim if self._in_full else dim + 6, dtype=self._product_dtype)
        x[: len(part), :dim] = part.to(self.dtype) - self._centre
        x[len(part) :] = 0
        if not self._in_full:
            pieces, ones = x[:, dim:].split(3, dim=1) if of_galleries else x[:, dim:].split(3, dim=1)[::-1]
            ones.fill_(1)
            rest = self._terms(index, of_galleries).clone()
            for piece in pieces.unbind(1):
                piece.copy_(rest)
                rest -= piece
        if self._prepared is not None:
            self._prepared[key] = x
        return x

    def _squares(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """The squared norms of the centred vectors in float64, and the largest relative error of a rounded one."""
        # a list of parts would be strewn between the freed vectors
        squares = torch.empty(len(vectors), dtype=torch.float64, device=vectors.device)

        def fill(part: tuple[Tensor, Tensor]) -> Tensor:
            vectors, squares = part
            x = vectors.to(self.dtype) - self._centre
            torch.sum(x.double().square_(), dim=1, out=squares)
            if self._product_dtype == self.dtype:
                return squares.new_zeros(())
            errors = (x - x.to(self._product_dtype)).double().square_().sum(dim=1)
            return (errors / squares).nan_to_num_(0.0).amax().sqrt()

        parts = list(zip(vectors.split(BLOCK), squares.split(BLOCK), strict=True))
        return squares, torch.stack(in_threads(fill, parts, vectors.device)).amax()

    def _slack_and_terms(self, squares: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """The slack of each vector, and what it adds to its numbers; half of the slack is in there already."""
        info, smallest = torch.finfo(self.dtype), self._centre.shape[0] * torch.finfo(self.dtype).tiny
        slack = squares.mul(2 * self._error * (1 + 2 * info.eps)).add_(2 * smallest).to(self.dtype)
        terms = squares.mul(self._error - 0.5).add_(smallest).to(self.dtype)
        # those that fill up the blocks are far off
        return slack, F.pad(terms, (0, -len(squares) % size), value=-info.max / 8)


def check_pairs(
    owner: str,
    queries: Tensor,
    galleries: Tensor,
    memory_budget: int,
    **numbers: tuple[Tensor | None, Tensor | None],
) -> None:
    """Refuse vectors that cannot be compared, and numbers of queries and galleries, such as labels, that do not fit."""
    if queries.ndim != 2 or galleries.ndim != 2 or queries.shape[1] != galleries.shape[1] or queries.shape[1] == 0:
        raise ValueError(
            f"{owner} needs queries (query, dim) and galleries (gallery, dim) of one dim > 0, "
            f"got {tuple(queries.shape)} and {tuple(galleries.shape)}."
        )
    if memory_budget < 1:
        raise ValueError(f"{owner} needs a positive memory_budget in bytes, got {memory_budget}.")
    tensors = [queries, galleries]
    for name, of_sides in numbers.items():
        if (of_sides[0] is None) != (of_sides[1] is None):
            raise ValueError(f"{owner} needs query_{name} and gallery_{name} both or neither, got one of them.")
        for side, values, vectors in zip(("query", "gallery"), of_sides, (queries, galleries), strict=True):
            if values is None:
                continue
            if values.shape != vectors.shape[:1] or values.is_floating_point() or values.dtype == torch.bool:
                raise ValueError(
                    f"{owner} needs {len(vectors)} integer {side}_{name} in one dimension, "
                    f"got {tuple(values.shape)} of {values.dtype}."
                )
            tensors.append(values)
    if len(devices := {str(tensor.device) for tensor in tensors}) > 1:
        raise ValueError(f"{owner} needs all tensors on one device, got {', '.join(sorted(devices))}.")
    dtype = torch.promote_types(torch.promote_types(queries.dtype, galleries.dtype), torch.float32)
    limit = (torch.finfo(dtype).max / (32 * queries.shape[1])) ** 0.5  # squares must not overflow, even after centring
    for name, vectors in (("queries", queries), ("galleries", galleries)):
        if len(vectors) == 0 or torch.stack(vectors.aminmax()).to(dtype).abs().amax() <= limit:
            continue
        parts = (part.to(dtype).abs() <= limit for part in vectors.split(BLOCK))
        bad = torch.cat([~part.all(dim=1) for part in parts]).nonzero().squeeze(1)
        raise ValueError(
            f"{owner} needs finite {name} below {limit:.0e}, got NaN, infinite or larger numbers in {len(bad)} of "
            f"{len(vectors)} rows, such as rows {bad[:5].tolist()}. Look at the model or the inputs of these rows."
        )


def copies(vectors: Float[Tensor, "item dim"]) -> tuple[Int[Tensor, " place"], Int[Tensor, " place"]]:
    """The rows of vectors with copies, bit for bit, behind each other, lower rows first, and numbers of the copies.

    Numbers ascend from 0, and only copies share one. If ever two different vectors have one sum of their multiplied
    bits, some of their copies may have other numbers.
    """
    of_bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[vectors.element_size()]
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**62), 2**62, vectors.shape[1:], generator=generator).to(vectors.device)
    # sums of integers are the same in any order; a list of parts would be strewn between the freed products
    sums = torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)

    def fill(part: tuple[Tensor, Tensor]) -> None:
        torch.sum(part[0].contiguous().view(of_bits) * factors, dim=1, out=part[1])

    in_threads(fill, list(zip(vectors.split(BLOCK), sums.split(BLOCK), strict=True)), vectors.device)
    sums, order = sums.sort(stable=True)
    is_copy = F.pad(sums[1:] == sums[:-1], (1, 0))  # of the one before
    for places in is_copy.nonzero().squeeze(1).split(BLOCK):
        bits = (vectors[order[some]].view(of_bits) for some in (places, places - 1))
        is_copy[places] = torch.eq(*bits).all(dim=1)
    return order, (~is_copy).cumsum(0) - 1


def near_rows(
    nearness: Float[Tensor, "query gallery"], limits: Float[Tensor, " query"]
) -> tuple[Int[Tensor, " pair"], Int[Tensor, " pair"]]:
    """Rows (ascending) and columns of the numbers of a block that reach their row's limit.

    Quick if few do: a group without any is passed over.
    """
    n_groups = nearness.shape[1] // GROUP
    groups = (nearness.unflatten(1, (-1, GROUP)).amax(dim=2) >= limits[:, None]).flatten().nonzero().squeeze(1)
    row = groups // n_groups
    numbers = nearness.view(-1, GROUP).index_select(0, groups)
    hits = (numbers >= limits.index_select(0, row)[:, None]).flatten().nonzero().squeeze(1)
    group = hits // GROUP
    column = (groups - row * n_groups).index_select(0, group).mul_(GROUP).add_(hits % GROUP)
    return row.index_select(0, group), column


def near_columns(
    nearness: Float[Tensor, "query gallery"], limits: Float[Tensor, " gallery"]
) -> tuple[Int[Tensor, " pair"], Int[Tensor, " pair"]]:
    """Columns (ascending) and rows of the numbers that reach their column's limit: as for a block transposed."""
    size = GROUP // 2  # what stands below each other is slower to collect
    n_groups, width = nearness.shape[0] // size, nearness.shape[1]
    groups = (nearness.unflatten(0, (-1, size)).amax(dim=1) >= limits).T.flatten().nonzero().squeeze(1)
    column = groups // n_groups
    row = (groups - column * n_groups).mul_(size)
    first = row * width + column
    numbers = nearness.view(-1).take(first[:, None] + torch.arange(0, size * width, width, device=first.device))
    hits = (numbers >= limits.index_select(0, column)[:, None]).flatten().nonzero().squeeze(1)
    group = hits // size
    return column.index_select(0, group), row.index_select(0, group).add_(hits % size)


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
        distances[part] = row_sums(squares).sqrt()
    return distances


def row_sums(numbers: Float[Tensor, "row column"]) -> Float[Tensor, " row"]:
    """Sums with the same bits for any number of rows, which ``sum`` does not promise. Overwrites the numbers."""
    while (width := numbers.shape[1]) > 1:
        numbers[:, : width // 2] += numbers[:, -(width // 2) :]
        numbers = numbers[:, : -(width // 2)]
    return numbers[:, 0]


def nearness_within(distances: Float[Tensor, " pair"], dim: int) -> Float[Tensor, " pair"]:
    """A bound for what counts as near: pairs whose nearness is below it are farther than ``distances`` after rounding.

    ``-distance^2 / 2``, less what rounding the two distances to their dtype, and evaluating them, may hide.
    """
    info = torch.finfo(distances.dtype)
    slack = 4 * info.eps + dim * torch.finfo(torch.float64).eps
    limit = (distances.double() * (1 + slack) + info.tiny).square().mul_(-0.5)
    # rounded down, as the comparison is with numbers of the distances' dtype
    return limit.mul_(1 + info.eps).to(distances.dtype).sub_(info.tiny)


def in_threads(work: Callable[[S], T], parts: Sequence[S], device: torch.device) -> list[T]:
    """``work(part)`` of each part, in order: on a CPU in as many threads as torch has, each with parts of its own.

    So threads wait for each other once, not in every operation, which takes long if the machine has more to do.
    Whether gradients are on, and inference mode, hold for one thread each, and here for all.
    """
    is_inference, has_gradients = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def work_alike(part: S) -> T:
        with torch.inference_mode(is_inference), torch.set_grad_enabled(has_gradients):
            return work(part)

    before = torch.get_num_threads()
    n_threads = min(before, len(parts)) if device.type == "cpu" else 1
    if n_threads <= 1:
        return [work(part) for part in parts]
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(n_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work_alike, parts))
    finally:
        torch.set_num_threads(before)


@contextmanager
def full_precision_products() -> Iterator[None]:
    """Without TF32 and sums in bfloat16: the bounds count on the rounding of the dtype they are computed in."""
    cuda, mkldnn = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]
    before = cuda.fp32_precision, mkldnn.fp32_precision, cuda.allow_bf16_reduced_precision_reduction
    try:
        cuda.fp32_precision = mkldnn.fp32_precision = "ieee"
        cuda.allow_bf16_reduced_precision_reduction = False
        yield
    finally:
        cuda.fp32_precision, mkldnn.fp32_precision, cuda.allow_bf16_reduced_precision_reduction = before
