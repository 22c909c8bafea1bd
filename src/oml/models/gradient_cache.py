"""Batches larger than memory, for losses that look at a whole batch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import get_device_states, set_device_states

from oml.functional.derivatives import first_order_only
from oml.functional.precision import without_autocast
from oml.interfaces.models import IExtractor


class GradientCache(IExtractor):
    """An extractor that works on a batch in chunks: a loss over all of the batch trains in the memory of one chunk.

    Between the forward and the backward pass there are only the inputs and the embeddings; the backward pass computes
    one chunk after another once more, with the same dropout, and needs its activations alone. So a step takes
    one more forward pass, about a third more time, and gradients are those of the whole batch: accumulating them
    over small batches instead would hide from a contrastive loss most of its pairs. What the loss itself needs, such
    as a matrix of distances, is not in chunks. Batches of up to ``chunk_size`` items take the usual way.

    Works with any loss and optimizer, with autocast and gradient scaling, and under ``DistributedDataParallel``::

        extractor = GradientCache(extractor, chunk_size=64)
        module = ExtractorModule(extractor, criterion, optimizer)  # batches may have 4096 items

    Batch normalisation in training mode takes its statistics from each chunk and updates its running averages once per
    chunk, as if the chunks were batches; all else equals the extractor on the whole batch. Buffers that the model
    changes in its forward pass change once and not again in the backward pass; other state of modules, such as a
    counter or a generator of their own, is not restored. Forward hooks are called in both passes. There are no second
    derivatives: ``create_graph=True`` is an error. To compile, call ``compile()`` of the inner extractor, which leaves
    the names of weights as they are.

    A ``state_dict`` is that of the inner extractor, without a prefix: each loads what the other saved.

    Source: Gao et al. 2021, "Scaling deep contrastive learning batch size under memory limited setup".

    Args:
        extractor: of any kind; its inputs are tensors, or dictionaries, tuples and lists of tensors, with a row
            for each item.
        chunk_size: how many items fit into memory for training, 1 or more.

    Raises:
        ValueError: ``chunk_size`` is below 1.
    """

    def __init__(self, extractor: IExtractor, chunk_size: int) -> None:
        super().__init__()
        if chunk_size < 1:
            raise ValueError(f"GradientCache needs a chunk_size of 1 or more, got {chunk_size}.")
        self.extractor = extractor
        self.chunk_size = chunk_size
        self.register_state_dict_post_hook(_drop_prefix)
        self.register_load_state_dict_pre_hook(_add_prefix)

    @property
    def feat_dim(self) -> int:
        """Size of an embedding."""
        return self.extractor.feat_dim

    def forward(self, x: Any) -> Float[Tensor, "batch dim"]:
        """Embeddings of all items of the batch.

        Raises:
            TypeError, ValueError: the inputs are not tensors, or have different numbers of rows.
        """
        return self._in_chunks(self.extractor, x)

    def extract(self, x: Any) -> Float[Tensor, "batch dim"]:
        """Embeddings at inference: those of the inner extractor's ``extract``, also in chunks."""
        return self._in_chunks(self.extractor.extract, x)

    def _in_chunks(self, embed: Callable[[Any], Tensor], x: Any) -> Tensor:
        inputs: list[Tensor] = []
        _map(inputs.append, x)
        if len({len(tensor) for tensor in inputs}) != 1:
            shapes = [tuple(tensor.shape) for tensor in inputs]
            raise ValueError(f"GradientCache needs tensors with a row for each item of the batch, got shapes {shapes}.")
        if len(inputs[0]) <= self.chunk_size:
            return embed(x)
        n, n_chunks = len(inputs[0]), -(-len(inputs[0]) // self.chunk_size)
        # of nearly equal sizes: batch normalisation has no statistics of a last chunk of one item
        bounds = [i * (n // n_chunks) + min(i, n % n_chunks) for i in range(n_chunks + 1)]
        chunks = [slice(*ends) for ends in pairwise(bounds)]
        parameters = list(self.extractor.parameters())
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (*inputs, *parameters)):
            # what gradients are for has to be named as an argument
            embeddings = _GradientCache.apply(self.extractor, partial(_embed, embed, x), chunks, *inputs, *parameters)
            assert isinstance(embeddings, Tensor)
            return embeddings
        return torch.cat([_embed(embed, x, [tensor[rows] for tensor in inputs]) for rows in chunks])


class _GradientCache(torch.autograd.Function):
    """Embeds chunks and keeps nothing else; for their gradients embeds them anew, each followed by its backward pass.

    Checkpointing each chunk would give the same, but keeps the nodes of all graphs, small objects between which a
    CPU's memory allocator no longer finds the room that a chunk has left: tens of times a chunk's memory.
    """

    @staticmethod
    def forward(
        ctx: Any,
        extractor: nn.Module,
        embed: Callable[[Sequence[Tensor]], Tensor],
        chunks: Sequence[slice],
        *tensors: Tensor,
    ) -> Tensor:
        inputs = tensors[: len(tensors) - len(list(extractor.parameters()))]
        embeddings = None
        needs_grad = False
        states = []
        for rows in chunks:
            state = _State(extractor, inputs)
            with torch.enable_grad():  # as in the second pass, so that the same kernels run
                part = embed([tensor[rows] for tensor in inputs])
            needs_grad |= part.requires_grad
            part = part.detach()
            if embeddings is None:
                embeddings = part.new_empty(len(inputs[0]), *part.shape[1:])
            embeddings[rows] = part
            state.forget_unchanged_buffers()
            states.append(state)
        assert embeddings is not None, "there is a chunk"
        if not needs_grad:
            ctx.mark_non_differentiable(embeddings)
        ctx.save_for_backward(*tensors)
        ctx.extractor, ctx.embed, ctx.chunks, ctx.states, ctx.n_inputs = extractor, embed, chunks, states, len(inputs)
        return embeddings

    @staticmethod
    @first_order_only
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        tensors = ctx.saved_tensors  # raises an error if weights have changed in between
        needed = ctx.needs_input_grad[3:]
        inputs, input_needed = tensors[: ctx.n_inputs], needed[: ctx.n_inputs]
        input_gradients = [torch.zeros_like(x) if need else None for x, need in zip(inputs, input_needed, strict=True)]
        # The second pass has parameters of its own, with the same values: chunks sum up in their gradients, and hooks
        # on the model's, such as those of DistributedDataParallel, see the sum only.
        parameters = {
            parameter: nn.Parameter(parameter.detach(), parameter.requires_grad)
            for parameter in ctx.extractor.parameters()
        }
        for rows, state in zip(ctx.chunks, ctx.states, strict=True):
            leaves = [x[rows].detach().requires_grad_(need) for x, need in zip(inputs, input_needed, strict=True)]
            with state.restored(parameters):
                with torch.enable_grad():
                    embeddings = ctx.embed(leaves)
                if embeddings.requires_grad:
                    # layers have chosen their types in the forward pass; checkpointed ones restore what they need
                    with without_autocast(gradient.device.type):
                        torch.autograd.backward(embeddings, gradient[rows])
            for whole, leaf in zip(input_gradients, leaves, strict=True):
                if whole is not None and leaf.grad is not None:
                    whole[rows] = leaf.grad
        return None, None, None, *input_gradients, *(parameter.grad for parameter in parameters.values())


class _State:
    """What a forward pass depends on besides its inputs and parameters, as it is now."""

    def __init__(self, model: nn.Module, inputs: Sequence[Tensor]) -> None:
        self._model = model
        self._device = inputs[0].device.type
        self._autocast = {
            device: (torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
            for device in {self._device, "cpu"}
            if torch.amp.is_autocast_available(device)
        }
        self._random = torch.get_rng_state()
        self._random_of_devices = get_device_states(*inputs)
        # The kernels of batch normalisation change running averages and leave the version number as it is. In training
        # mode they do not read them, so that the values of later do as well.
        self._buffers = {key: (buffer, buffer._version, buffer.clone()) for key, buffer in _buffers(model).items()}

    def forget_unchanged_buffers(self) -> None:
        """Keep only what the forward pass has changed; to be called after it."""
        now = _buffers(self._model)
        self._buffers = {
            key: (buffer, version, value)
            for key, (buffer, version, value) in self._buffers.items()
            if now.get(key) is not buffer or buffer._version != version
        }

    @contextmanager
    def restored(self, parameters: Mapping[nn.Parameter, nn.Parameter]) -> Iterator[None]:
        """Within, all is as it was, and the model has these parameters and copies of buffers in place of its own."""
        devices, states = self._random_of_devices
        own = {
            (module, name): parameter
            for module in self._model.modules()
            for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
        }
        buffers = _buffers(self._model)
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices, device_type=self._device))
            torch.set_rng_state(self._random)
            set_device_states(devices, states, device_type=self._device)
            for device, (dtype, enabled) in self._autocast.items():
                # without the cache, which under an outer autocast would keep copies of parameters that are for now
                stack.enter_context(torch.autocast(device, dtype, enabled, cache_enabled=False))
            try:
                for (module, name), parameter in own.items():
                    setattr(module, name, parameters[parameter])
                for (module, name), buffer in buffers.items():
                    *_, value = self._buffers.get((module, name), (buffer,))
                    setattr(module, name, value.clone())
                yield
            finally:
                for (module, name), tensor in {**own, **buffers}.items():
                    setattr(module, name, tensor)


def _buffers(model: nn.Module) -> dict[tuple[nn.Module, str], Tensor]:
    return {
        (module, name): buffer for module in model.modules() for name, buffer in module.named_buffers(recurse=False)
    }


def _map(f: Callable[[Tensor], Any], x: Any) -> Any:
    """``x`` with ``f(tensor)`` in place of each tensor."""
    if isinstance(x, Tensor):
        return f(x)
    if isinstance(x, Mapping):
        return {key: _map(f, part) for key, part in x.items()}
    if isinstance(x, tuple | list):
        parts = [_map(f, part) for part in x]
        return parts if isinstance(x, list) else tuple(parts)
    raise TypeError(f"GradientCache takes tensors, and dictionaries, tuples and lists of them, got {type(x).__name__}.")


def _embed(embed: Callable[[Any], Tensor], x: Any, tensors: Sequence[Tensor]) -> Tensor:
    """The embeddings of what looks like ``x`` and has these tensors."""
    remaining = iter(tensors)
    return embed(_map(lambda _: next(remaining), x))


def _drop_prefix(_: nn.Module, state: dict[str, Any], prefix: str, __: Any) -> None:
    own = f"{prefix}extractor."
    # all at once, as the extractor may hold an `extractor` as well
    state.update({prefix + name.removeprefix(own): state.pop(name) for name in list(state) if name.startswith(own)})


def _add_prefix(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
    own = f"{prefix}extractor."
    state.update({own + name.removeprefix(prefix): state.pop(name) for name in list(state) if name.startswith(prefix)})
