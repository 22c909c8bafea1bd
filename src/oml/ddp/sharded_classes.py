"""Classification losses over so many labels that processes share out their proxies."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from oml.ddp.global_batch import global_batch
from oml.ddp.utils import gather_rows, get_world_size_safe, is_main_process
from oml.functional.derivatives import first_order_only
from oml.functional.labels import checked_labels
from oml.functional.precision import in_full_precision
from oml.functional.proxies import arcface_logits, cosface_logits, cosines_to_proxies
from oml.interfaces.miners import TLabels
from oml.losses._proxies import check_sizes, checked_batch

_DRAWN_AT_ONCE = 2**14  # rows of a new table: those of other processes are there for a moment only


class _ShardedMarginSoftmaxLoss(nn.Module, ABC):
    """Cross-entropy over scaled cosines with a margin, of proxies that are shared out; leaves say which margin."""

    criterion_name: str
    n_draws: Int[Tensor, ""] | None

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        m: int | float,
        max_m: int | float,
        s: int | float,
        sample_rate: int | float,
        seed: int,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        check_sizes(name, in_features=in_features, num_classes=num_classes)
        if not (0 <= m <= max_m and s > 0):
            raise ValueError(f"{name} needs a margin m of 0 to {max_m:.4g} and a scale s above 0, got {m} and {s}.")
        if not 0 < sample_rate <= 1:
            raise ValueError(f"{name} needs a sample_rate above 0 and up to 1, which is all labels; got {sample_rate}.")
        self.in_features = in_features
        self.num_classes = num_classes
        self.m = m
        self.rescale = s
        self.sample_rate = sample_rate
        self.seed = seed
        self.last_logs: dict[str, Tensor] = {}
        self.own_labels = _own_labels(num_classes)
        self.weight = nn.Parameter(_new_rows(in_features, num_classes, self.own_labels, seed))
        self.register_buffer("n_draws", torch.zeros((), dtype=torch.int64) if sample_rate < 1 else None)

    def forward(self, features: Float[Tensor, "batch dim"], labels: TLabels) -> Float[Tensor, ""]:
        """The mean loss over the batches of all processes, the same in each; labels are 0 to ``num_classes - 1``."""
        name = type(self).__name__
        if self.own_labels != (expected := _own_labels(self.num_classes)):
            raise ValueError(
                f"{name} has the proxies of {_as_text(self.own_labels)}, where this process is to have those of "
                f"{_as_text(expected)}: it was built before the group of processes. Call shard_classes(module) before "
                "DistributedDataParallel takes the module; ExtractorModule does it under Lightning."
            )
        x, labels = global_batch(features, checked_labels(name, features, labels))
        labels = checked_batch(name, x, labels, self.num_classes, self.in_features)  # of all, so that all raise
        x = x.to(torch.promote_types(x.dtype, torch.float32))  # for the sum of gradients too
        if x.requires_grad and get_world_size_safe() > 1:
            x.register_hook(lambda gradient: _reduced(gradient.clone(), dist.ReduceOp.SUM))
        is_own = (labels >= self.own_labels.start) & (labels < self.own_labels.stop)
        proxies, columns = self._sample(labels - self.own_labels.start, is_own)
        columns = columns.where(is_own, 0)[:, None]

        cosines = cosines_to_proxies(x, proxies)
        own = cosines.gather(1, columns) if cosines.shape[1] else cosines.new_zeros(len(x), 1)
        losses, is_nearest = _CrossEntropy.apply(
            cosines, own, self._logits(own), columns, is_own[:, None], self.rescale
        )
        self.last_logs = {"accuracy": is_nearest.float().mean()} if len(x) else {}
        return losses.sum() / max(1, len(x))

    def extra_repr(self) -> str:
        """The sizes."""
        return f"in_features={self.in_features}, num_classes={self.num_classes}, own_labels={self.own_labels}"

    def shard(self) -> None:
        """Drop the proxies of labels that other processes have, see :func:`shard_classes`."""
        rows = _own_labels(self.num_classes)
        if rows != self.own_labels and len(self.own_labels) < self.num_classes:
            raise ValueError(
                f"{type(self).__name__} has the proxies of {_as_text(self.own_labels)} only, which are not all of "
                f"{_as_text(rows)}: a checkpoint brings them to another number of processes."
            )
        if rows != self.own_labels:
            self.weight.data = self.weight.data[rows.start : rows.stop].clone()  # optimizers have this parameter
            self.own_labels = rows

    def _sample(
        self, columns: Int[Tensor, " batch"], is_own: Bool[Tensor, " batch"]
    ) -> tuple[Float[Tensor, "label dim"], Int[Tensor, " batch"]]:
        """Proxies of the labels in the batch and of others at random, and in which columns of them items belong."""
        n = len(self.own_labels)
        if self.n_draws is None or not self.training:
            return self.weight, columns
        self.n_draws += 1
        key = (self.own_labels.start, int(self.n_draws))
        seed = int(np.random.SeedSequence(self.seed, spawn_key=key).generate_state(1, np.uint64)[0] >> 1)
        generator = torch.Generator(columns.device).manual_seed(seed)
        order = torch.rand(n, generator=generator, device=columns.device, dtype=torch.float32)
        positives = columns[is_own].unique()
        order[positives] = 2
        drawn = order.topk(max(len(positives), math.ceil(self.sample_rate * n))).indices.sort().values
        return self.weight.index_select(0, drawn), torch.searchsorted(drawn, columns)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Whole tables load as well, such as those of checkpoints, whatever number of processes wrote them."""
        table = state_dict.get(f"{prefix}weight")
        if table is not None and len(table) == self.num_classes:
            state_dict[f"{prefix}weight"] = table[self.own_labels.start : self.own_labels.stop]
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @abstractmethod
    def _logits(self, own: Float[Tensor, "batch 1"]) -> Float[Tensor, "batch 1"]:
        """Scaled cosines with the proxies of the own labels, with the margin."""


class ShardedArcFaceLoss(_ShardedMarginSoftmaxLoss):
    """:class:`~oml.losses.arcface.ArcFaceLoss` whose proxies are shared out: each process has those of some labels.

    So the memory and the time that proxies, their gradients, their optimizer and the cosines with them take fall with
    the number of processes. Each process gathers the embeddings of all, compares them with its own proxies, and the
    loss, equal in all of them, is that of one process with all proxies and the whole batch; so are the gradients, once
    ``DistributedDataParallel`` has taken the mean of those of the network. Without a group of processes there is one
    that has all.

    With a ``sample_rate`` below 1, a training step compares with the labels of the batch and some of the others, drawn
    anew in every step: "Partial FC" (An et al. 2022, "Killing two birds with one stone: Efficient and robust training
    of face recognition CNNs by Partial FC"), which holds that a tenth does as well for millions of labels. Proxies that
    were not drawn have gradients of 0; optimizers with momentum or weight decay move them nevertheless. After
    ``eval()`` all labels count.

    ``DistributedDataParallel`` must leave the proxies alone, and a loss that was built before the group must drop those
    of other processes: see :func:`shard_classes`, which ``ExtractorModule`` calls under Lightning. Do not give it
    embeddings from :func:`~oml.ddp.global_batch.global_batch`: it gathers them itself. Other strategies, such as FSDP,
    do not know of it.

    Args:
        in_features: size of the embeddings.
        num_classes: number of labels, of all processes together; those of a batch are 0 to ``num_classes - 1``.
        m: margin in radians, from 0 to pi.
        s: scale of the cosines, above 0.
        sample_rate: share of its labels that a process compares with in a step, above 0 and up to 1; those of the batch
            always are among them.
        seed: of the proxies, which are those of ``ArcFaceLoss`` after ``torch.manual_seed(seed)``, and of the draws.

    ``last_logs`` holds the ``accuracy`` of the last batch of all processes: the share of embeddings that are nearer to
    their own label's proxy than to any other that was compared with, without the margin.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> criterion = ShardedArcFaceLoss(in_features=2, num_classes=2, m=0.0, s=1)
        >>> _ = criterion.load_state_dict({"weight": torch.eye(2)})
        >>> criterion(torch.tensor([[3.0, 4.0]]), torch.tensor([1]))  # log(1 + exp(0.6 - 0.8))
        tensor(0.5981, grad_fn=<DivBackward0>)
    """

    criterion_name = "arcface"

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        m: int | float = 0.5,
        s: int | float = 64,
        sample_rate: int | float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(in_features, num_classes, m, math.pi, s, sample_rate, seed)

    def _logits(self, own: Float[Tensor, "batch 1"]) -> Float[Tensor, "batch 1"]:
        return arcface_logits(own, own.new_zeros(len(own), dtype=torch.int64), self.m, self.rescale)


class ShardedCosFaceLoss(_ShardedMarginSoftmaxLoss):
    """:class:`~oml.losses.cosface.CosFaceLoss` whose proxies are shared out, as those of :class:`ShardedArcFaceLoss`.

    Args:
        in_features: size of the embeddings.
        num_classes: number of labels, of all processes together.
        m: margin, from 0 to 2: what the cosine with the own proxy must win by.
        s: scale of the cosines, above 0.
        sample_rate: share of its labels that a process compares with in a step.
        seed: of the proxies and the draws.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> criterion = ShardedCosFaceLoss(in_features=2, num_classes=2, m=0.2, s=1)
        >>> _ = criterion.load_state_dict({"weight": torch.eye(2)})
        >>> criterion(torch.tensor([[3.0, 4.0]]), torch.tensor([1]))  # log(1 + exp(0.6 - (0.8 - 0.2)))
        tensor(0.6931, grad_fn=<DivBackward0>)
    """

    criterion_name = "cosface"

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        m: int | float = 0.35,
        s: int | float = 64,
        sample_rate: int | float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(in_features, num_classes, m, 2, s, sample_rate, seed)

    def _logits(self, own: Float[Tensor, "batch 1"]) -> Float[Tensor, "batch 1"]:
        return cosface_logits(own, own.new_zeros(len(own), dtype=torch.int64), self.m, self.rescale)


def shard_classes(module: nn.Module) -> list[str]:
    """Let losses with shared-out proxies within a module have those of this process only; the names of these.

    A loss that was built before the group of processes has all proxies until then. Those named are not for
    ``DistributedDataParallel``: it would take a mean of proxies of different labels.

    Args:
        module: of network and loss, or a loss.

    Example:
        >>> step = nn.ModuleDict({"network": nn.Linear(5, 4), "loss": ShardedArcFaceLoss(4, num_classes=10)})
        >>> step._ddp_params_and_buffers_to_ignore = shard_classes(step)  # DistributedDataParallel(step) is to follow
        >>> step._ddp_params_and_buffers_to_ignore
        ['loss.weight']
    """
    for _, loss in _sharded_losses(module):
        loss.shard()
    return [name for name, _ in _sharded_losses(module)]


def gather_shards(module: nn.Module, optimizer: Optimizer | None, checkpoint: dict[str, Any]) -> None:
    """Put whole tables into the checkpoint of rank 0, and what the optimizer knows of them.

    Every process must call it. Tables travel in chunks to the memory of the main process, not to that of its device.

    Args:
        module: of network and loss.
        optimizer: which has the proxies.
        checkpoint: of Lightning; its dicts with names of the module's parameters, and its ``optimizer_states``, change.
    """
    if get_world_size_safe() < 2:
        return
    for name, loss in _sharded_losses(module):
        for state in checkpoint.values():
            if isinstance(state, dict) and name in state:
                state[name] = _whole(state[name])
        _replace(loss.weight, optimizer, checkpoint, loss.weight.shape, _whole)


def take_shards(module: nn.Module, optimizer: Optimizer | None, checkpoint: dict[str, Any]) -> None:
    """Leave in a checkpoint of :func:`gather_shards` what the optimizer knows of the proxies of this process only.

    The tables themselves may stay: losses take their rows of them.
    """
    for _, loss in _sharded_losses(module):
        shape, rows = torch.Size((loss.num_classes, loss.in_features)), loss.own_labels
        _replace(
            loss.weight, optimizer, checkpoint, shape, lambda table, rows=rows: table[rows.start : rows.stop].clone()
        )


def clip_norm_with_shards(module: nn.Module, optimizer: Optimizer, max_norm: int | float) -> Tensor:
    """Scale gradients so that their norm, of the proxies of all processes too, is ``max_norm`` at most; the norm.

    ``torch.nn.utils.clip_grad_norm_`` would take each process's own proxies, and scale the gradients of the network,
    which must stay equal, differently in each. Every process must call it.

    Args:
        module: of network and loss.
        optimizer: whose parameters count.
        max_norm: of all gradients as one vector.
    """
    shards = {id(loss.weight) for _, loss in _sharded_losses(module)}
    parameters = [each for group in optimizer.param_groups for each in group["params"] if each.grad is not None]
    if not parameters:
        return torch.zeros(())
    of_shards, of_others = (
        get_total_norm([each.grad for each in parameters if (id(each) in shards) == among]).to(parameters[0].device)
        for among in (True, False)
    )
    norm = (_reduced(of_shards.square(), dist.ReduceOp.SUM) + of_others.square()).sqrt()
    clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


class _CrossEntropy(torch.autograd.Function):
    """``log(sum(exp(logits))) - own logit`` of each item, over the labels of all processes.

    Logits are ``scale * cosines``, but that of the own label. Also, whether its cosine is the largest one.
    """

    @staticmethod
    def forward(
        ctx: Any, cosines: Tensor, own: Tensor, own_logits: Tensor, columns: Tensor, is_own: Tensor, scale: int | float
    ) -> tuple[Tensor, Tensor]:
        others = scale * cosines  # and nothing at the own label
        if cosines.shape[1]:
            others.scatter_(1, columns, others.gather(1, columns).masked_fill_(is_own, -torch.inf))
            largest = others.amax(dim=1, keepdim=True)
        else:
            largest = torch.full_like(own, -torch.inf)
        here = torch.cat([scale * own, own_logits], dim=1).masked_fill_(~is_own, -torch.inf)
        largest, own, own_logits = _reduced(torch.cat([largest, here], dim=1), dist.ReduceOp.MAX).split(1, dim=1)
        top = torch.maximum(largest, own_logits)
        others.sub_(top).exp_()
        rest = _reduced(others.sum(dim=1, keepdim=True), dist.ReduceOp.SUM)
        total = rest + (own_logits - top).exp()
        ctx.save_for_backward(others, rest, total, is_own)
        ctx.scale = scale
        losses, is_nearest = total.log() + (top - own_logits), own > largest
        ctx.mark_non_differentiable(is_nearest)
        return losses, is_nearest

    @staticmethod
    @first_order_only
    @in_full_precision
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        others, rest, total, is_own = ctx.saved_tensors
        slope = gradient / total
        return others * (ctx.scale * slope), None, torch.where(is_own, -slope * rest, 0), None, None, None


def _reduced(tensor: Tensor, operation: Any) -> Tensor:
    """The tensor, which is overwritten, with those of other processes."""
    if get_world_size_safe() > 1:
        dist.all_reduce(tensor, operation)
    return tensor


def _sharded_losses(module: nn.Module) -> Iterator[tuple[str, _ShardedMarginSoftmaxLoss]]:
    """With the names of their proxies."""
    for name, part in module.named_modules():
        if isinstance(part, _ShardedMarginSoftmaxLoss):
            yield f"{name}.weight".lstrip("."), part


def _own_labels(num_classes: int) -> range:
    """Those of this process: as many as others have, or one more or less."""
    n = max(1, get_world_size_safe())
    rank = dist.get_rank() if n > 1 else 0
    share, left = divmod(num_classes, n)
    first = rank * share + min(rank, left)
    return range(first, first + share + (rank < left))


def _as_text(labels: range) -> str:
    return f"labels {labels.start} to {labels.stop - 1}" if labels else "no labels"


def _new_rows(in_features: int, num_classes: int, rows: range, seed: int) -> Tensor:
    """Some rows of the table that ``xavier_uniform_`` fills after ``torch.manual_seed(seed)``."""
    bound = math.sqrt(3) * math.sqrt(2 / (num_classes + in_features))
    generator = torch.Generator().manual_seed(seed)
    table = torch.empty(len(rows), in_features, device="cpu")
    for start in range(0, rows.stop, _DRAWN_AT_ONCE):
        stop = min(start + _DRAWN_AT_ONCE, rows.stop)
        drawn = torch.empty(stop - start, in_features, device="cpu").uniform_(-bound, bound, generator=generator)
        if stop > rows.start:
            table[max(0, start - rows.start) : stop - rows.start] = drawn[max(0, rows.start - start) :]
    return table


def _whole(rows: Tensor) -> Tensor:
    """The rows of all processes in the main one; in others, theirs."""
    whole = gather_rows(rows, only_to_main=True)
    return whole if is_main_process() else rows


def _replace(
    weight: Tensor,
    optimizer: Optimizer | None,
    checkpoint: dict[str, Any],
    shape: torch.Size,
    change: Callable[[Tensor], Tensor],
) -> None:
    """Change what a checkpoint's states of the optimizer hold of a parameter in the shape of its table."""
    order = [] if optimizer is None else [id(each) for group in optimizer.param_groups for each in group["params"]]
    if id(weight) not in order:
        return
    place = order.index(id(weight))
    for states in checkpoint.get("optimizer_states", []):
        states["state"][place] = {  # a new dict: the optimizer has the old one
            key: change(value) if isinstance(value, Tensor) and value.shape == shape else value
            for key, value in states["state"].get(place, {}).items()
        }
