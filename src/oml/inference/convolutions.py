"""Convolutions made fast: laid out as their kernels want, joined with their batch normalisation, and in few bits."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

TModule = TypeVar("TModule", bound=nn.Module)
_N_ADJUSTED = 16  # weights of a filter that make up for the rounding of all


def is_convolutional(model: nn.Module) -> bool:
    """Whether it has several convolutions: a transformer has one, to make tokens of patches."""
    return sum(isinstance(module, nn.Conv2d) for module in model.modules()) > 1


def lay_out(model: TModule) -> TModule:
    """The same network, with the weights of several convolutions channels last: on a CPU they take half the time then.

    Not on Apple's GPUs, of whose kernels for that layout little is known.
    """
    if is_convolutional(model) and not torch.backends.mps.is_available():
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return model


def fold_batch_norms(model: nn.Module, run: Callable[[], Any]) -> None:
    """Scale weights and set biases of convolutions, in place, so that the batch normalisations behind them can go.

    The model is watched at work: a convolution and a normalisation belong together if all that one gives goes into the
    other, and nothing else does. What else the model does with the result of the convolution is not seen, so compare
    its outputs with those of before.

    Args:
        model: in evaluation mode.
        run: calls the model.
    """
    made: dict[int, tuple[Tensor, nn.Module]] = {}  # with the tensors, so that no other one gets their id
    behind: dict[nn.Module, set[nn.Module]] = defaultdict(set)
    before: dict[nn.Module, set[nn.Module | None]] = defaultdict(set)

    def convolved(module: nn.Module, _: Any, output: Tensor) -> None:
        made[id(output)] = output, module

    def normalised(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        source = made[id(inputs[0])][1] if id(inputs[0]) in made else None
        before[module].add(source)
        if source is not None:
            behind[source].add(module)

    hooks = [module.register_forward_hook(convolved) for module in model.modules() if type(module) is nn.Conv2d]
    hooks += [module.register_forward_pre_hook(normalised) for module in model.modules() if _folds(module)]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    names = {module: name for name, module in model.named_modules()}
    for norm, sources in before.items():
        conv = next(iter(sources))
        if len(sources) == 1 and isinstance(conv, nn.Conv2d) and behind[conv] == {norm}:
            assert isinstance(norm, nn.BatchNorm2d), "the hooks are on these alone"
            assert norm.running_mean is not None, "_folds asks for it"
            assert norm.running_var is not None, "it is there where the mean is"
            conv.weight, conv.bias = nn.utils.fuse_conv_bn_weights(
                conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
            # timm's may drop parts of the image, which is nothing in evaluation mode, and activate
            model.set_submodule(names[norm], getattr(norm, "act", nn.Identity()))


def _folds(module: nn.Module) -> bool:
    from timm.layers.norm_act import BatchNormAct2d

    return type(module) in (nn.BatchNorm2d, BatchNormAct2d) and module.running_mean is not None


def round_convolutions(model: nn.Module, run: Callable[[], Any], dtype: torch.dtype) -> None:
    """Round weights and biases of convolutions to a narrow type, in place, so that the channels keep their means.

    To the nearest number each, the roundings of a filter add up to an error that is the same for all positions and
    images, as what goes in is positive and smooth. It is by far the largest one in filters of few weights, such as
    those of each channel of a MobileNet. So some weights are rounded up or down to make up for the others and
    for the bias, given the mean of each channel that goes in. For EfficientNet-Lite0 in bfloat16 on photographs, the
    mean cosine to float32 rises from 0.9970 to 0.9996, the least from 0.992 to 0.999.

    Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction", correct the same
    error in biases, which here are as coarse.

    Args:
        model: in evaluation mode; weights stay of their type, but have values of the narrow one.
        run: calls the model with typical inputs.
        dtype: the narrow type.
    """
    sums: dict[nn.Conv2d, Tensor] = {}
    n_calls: dict[nn.Conv2d, int] = defaultdict(int)

    def measure(module: nn.Conv2d, inputs: tuple[Tensor, ...]) -> None:
        mean = inputs[0].mean(dim=(0, 2, 3))
        sums[module] = sums[module] + mean if module in sums else mean
        n_calls[module] += 1

    hooks = [module.register_forward_pre_hook(measure) for module in model.modules() if type(module) is nn.Conv2d]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    for conv, total in sums.items():
        means = (total / n_calls[conv]).view(conv.groups, -1).repeat_interleave(len(conv.weight) // conv.groups, dim=0)
        means = means[:, :, None, None].expand_as(conv.weight).flatten(1)
        error = torch.zeros_like(means[:, 0])
        if conv.bias is not None:
            rounded = conv.bias.to(dtype).to(conv.bias.dtype)
            error = conv.bias - rounded
            conv.bias.copy_(rounded)
        conv.weight.copy_(_rounded(conv.weight.flatten(1), means, error, dtype).view_as(conv.weight))


def _rounded(weights: Tensor, means: Tensor, error: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows of the narrow type's values for which ``sum(row * means)`` is nearly ``sum(weights * means) + error``."""
    rounded = weights.to(dtype).to(weights.dtype)
    n = weights.shape[1]
    # the last ones have the finest steps
    order = (weights * means).abs().argsort(dim=1, descending=True, stable=True)
    chosen = order[:, torch.linspace(0, n - 1, min(n, _N_ADJUSTED), device=order.device).long()]
    error = error + ((weights - rounded) * means).sum(dim=1)
    for column in chosen.T:
        weight, nearest, mean = (x.gather(1, column[:, None]).squeeze(1) for x in (weights, rounded, means))
        error = error - (weight - nearest) * mean
        step = nearest.abs() * torch.finfo(dtype).eps / 2  # at least half the distance to the next number
        wanted = weight + torch.where(mean == 0, 0, error / mean).clamp(-step, step)
        value = wanted.to(dtype).to(weights.dtype)
        error = error + (weight - value) * mean
        rounded.scatter_(1, column[:, None], value[:, None])
    return rounded
