"""Aids for fine-tuning: learning rates that fall layer by layer, and layers that learn later than others."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any

from timm.models import group_parameters
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint
from torchvision.models import ResNet

_RESNET_GROUPS = {"stem": r"^conv1|bn1", "blocks": r"^layer(\d+)\.(\d+)"}  # as timm groups the ResNets of its own
_HEAD = "\0"  # no regular expression of timm matches it, and what matches none is the head


def find_backbone(model: nn.Module) -> tuple[str, nn.Module]:
    """The network of timm, or the ResNet of torchvision, inside an extractor: its name there and itself.

    Raises:
        ValueError: if there is none.

    Example:
        >>> from oml.models import TimmExtractor
        >>> name, backbone = find_backbone(TimmExtractor(None, arch="resnet18"))
        >>> name, type(backbone).__module__
        ('model', 'timm.models.resnet')
    """
    for name, module in model.named_modules():
        if isinstance(module, ResNet) or hasattr(module, "group_matcher"):
            return name, module
    raise ValueError(
        f"{type(model).__name__} holds no network of timm and no ResNet of torchvision; of others the layers are not "
        "known."
    )


def number_layers(model: nn.Module) -> tuple[dict[str, int], int]:
    """The layer of each parameter and buffer, by its name, and the number of the head, the layer above them all.

    Layer 0 is the stem, with position embeddings and class token. Then come the blocks in the order of computation,
    as timm groups them; a norm behind the last one belongs to it. The head is what the backbone was not pretrained
    for or what pools: a classifier, an attention pooling, and all that stands outside of the backbone, such as a
    projection. A model without any has the same numbers, and nothing in the head.

    Args:
        model: an extractor, or any module with a network of timm or a ResNet of torchvision inside.

    Raises:
        ValueError: see :func:`find_backbone`.

    Example:
        >>> from oml.models import ViTExtractor
        >>> layers, head = number_layers(ViTExtractor(None, arch="vits16", normalise_features=False))
        >>> layers["model.cls_token"], layers["model.blocks.0.norm1.bias"], layers["model.norm.bias"], head
        (0, 1, 12, 13)
    """
    name, backbone = find_backbone(model)
    prefix = f"{name}." if name else ""
    matcher: Any = _RESNET_GROUPS if isinstance(backbone, ResNet) else backbone.group_matcher(coarse=False)  # pyright: ignore[reportCallIssue]
    inside = [key for key, _ in [*backbone.named_parameters(), *backbone.named_buffers()]]
    # timm asks its argument for named parameters only: so buffers, and a head where there is none, can be among them
    named = SimpleNamespace(named_parameters=lambda: ((key, None) for key in [*inside, _HEAD]))
    numbers: Any = group_parameters(named, matcher, reverse=True)  # pyright: ignore[reportArgumentType]
    head: int = numbers.pop(_HEAD)
    layers: dict[str, int] = {f"{prefix}{key}": layer for key, layer in numbers.items()}
    names = [key for key, _ in [*model.named_parameters(), *model.named_buffers()]]
    return {key: layers.get(key, head) for key in names}, head


def layer_decay_groups(
    model: nn.Module, lr: float, *, layer_decay: float = 0.75, weight_decay: float = 0.05
) -> list[dict[str, Any]]:
    """Groups of parameters for an optimizer whose learning rates fall from the head down to the stem.

    Layer-wise learning-rate decay (Clark et al. 2020, ELECTRA; Bao et al. 2022, BEiT): the rate of a layer is
    ``lr * layer_decay ** (head - layer)``, numbered by :func:`number_layers`. Biases, gains of norms and what timm
    names in the network's ``no_weight_decay`` (class token, position embeddings) have no weight decay. Each parameter
    that requires a gradient is in one group; groups have a ``name`` for ``LearningRateMonitor``, and those of the
    highest rate come first.

    Args:
        model: an extractor, or any module with a network of timm or a ResNet of torchvision inside.
        lr: of the head. Without a head, the last block has ``lr * layer_decay``.
        layer_decay: factor from each layer to the one below it, in (0, 1]; 0.65 to 0.9 are usual for ViTs.
        weight_decay: of the groups that have one.

    Raises:
        ValueError: if ``layer_decay`` is out of range, or by :func:`find_backbone`.

    Example:
        >>> import torch
        >>> from oml.models import ViTExtractor
        >>> extractor = ViTExtractor(None, arch="vits16", normalise_features=False)
        >>> groups = layer_decay_groups(extractor, lr=1e-3, layer_decay=0.5)
        >>> optimizer = torch.optim.AdamW(groups)  # further parameters, such as those of a loss, are a group more
        >>> [(group["name"], group["lr"]) for group in optimizer.param_groups[:2]]
        [('layer_12', 0.0005), ('layer_12_no_decay', 0.0005)]
    """
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay_groups needs 0 < layer_decay <= 1, got {layer_decay}.")
    layers, head = number_layers(model)
    prefix, backbone = find_backbone(model)
    listed = getattr(backbone, "no_weight_decay", set)()
    exempt = {f"{prefix}.{name}" if prefix else name for name in listed}
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            layer, decays = layers[name], parameter.ndim > 1 and name not in exempt
            group = {
                "params": [],
                "lr": lr * layer_decay ** (head - layer),
                "weight_decay": weight_decay if decays else 0.0,
                "name": f"layer_{layer}{'' if decays else '_no_decay'}",
            }
            groups.setdefault((layer, decays), group)["params"].append(parameter)
    return [groups[key] for key in sorted(groups, reverse=True)]


def freeze_below(model: nn.Module, n_layers: int | None) -> list[nn.Module]:
    """Keep all from learning but the head and the last ``n_layers`` layers below it (see :func:`number_layers`).

    Parameters of the others no longer require a gradient, and their batch normalisations go to evaluation mode:
    running statistics stay what they are. The head and layers above are left as they are.

    Args:
        model: an extractor, or any module with a network of timm or a ResNet of torchvision inside.
        n_layers: 0: the head learns only; ``None``: everything, nothing is frozen.

    Returns:
        The modules that went to evaluation mode; ``model.train()`` undoes it.

    Raises:
        ValueError: see :func:`find_backbone`.

    Example:
        >>> from oml.models import TimmExtractor
        >>> extractor = TimmExtractor(None, arch="resnet18")
        >>> norms = freeze_below(extractor, n_layers=1)
        >>> {name.split(".")[1] for name, p in extractor.named_parameters() if p.requires_grad}, len(norms)
        ({'layer4'}, 18)
    """
    if n_layers is None:
        return []
    layers, head = number_layers(model)
    frozen = {name for name, layer in layers.items() if layer < head - n_layers}
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
            parameter.grad = None  # an optimizer would use up what an earlier step left
    stopped = []
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.training:
            own = [key for key, _ in [*module.named_parameters(prefix=name), *module.named_buffers(prefix=name)]]
            if own and frozen.issuperset(own):
                stopped.append(module.eval())
    return stopped


def checkpoint_stages(resnet: ResNet, enable: bool = True) -> None:
    """Gradient checkpointing of the four stages of torchvision's ResNet: less memory for a second forward pass.

    Gradients are the same. Batch normalisations take up the statistics of a batch once, in the first pass.
    """
    for stage in (resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4):
        vars(stage).pop("forward", None)
        if enable:
            contexts = partial(_first_and_second_pass, stage)
            stage.forward = partial(checkpoint, stage.forward, use_reentrant=False, context_fn=contexts)


def _first_and_second_pass(stage: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _statistics_stay(stage)


@contextmanager
def _statistics_stay(stage: nn.Module) -> Iterator[None]:
    norms = [(module, module.momentum) for module in stage.modules() if isinstance(module, _BatchNorm)]
    for norm, _ in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in norms:
            norm.momentum = momentum
