"""Networks whose parameters are shared out over processes: FSDP2 of torch."""

from typing import Any

from pytorch_lightning.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.optim import Optimizer


def fsdp_strategy(n_processes: int) -> ModelParallelStrategy:
    """The strategy of Lightning for modules that call :func:`share_out_parameters`; checkpoints are whole files."""
    return ModelParallelStrategy(n_processes, tensor_parallel_size=1, save_distributed_checkpoint=False)


def share_out_parameters(networks: list[nn.Module], optimizer: Optimizer | None, mesh: Any) -> None:
    """Let each process keep its part of the parameters, their gradients and what the optimizer knows of them.

    They come together when they are needed: those of a block of layers, an entry of a ``ModuleList`` or
    ``Sequential``, as it is called, and others with the network.

    Args:
        networks: such as extractor and loss. Once is enough: those that are shared out already stay as they are.
        optimizer: gets the new parameters for the old ones, in the same groups.
        mesh: the processes, of torch.
    """
    names = {id(parameter): (i, name) for i, net in enumerate(networks) for name, parameter in net.named_parameters()}
    for network in networks:
        if isinstance(network, FSDPModule) or not any(True for _ in network.parameters()):
            continue
        for parameter in network.parameters():
            parameter.data = parameter.data.contiguous()  # as FSDP wants them
        for block in _blocks(network):
            fully_shard(block, mesh=mesh)
        fully_shard(network, mesh=mesh)
        if hasattr(network, "extract"):
            register_fsdp_forward_method(network, "extract")
    shards = {(i, name): parameter for i, net in enumerate(networks) for name, parameter in net.named_parameters()}
    for group in [] if optimizer is None else optimizer.param_groups:
        group["params"] = [shards[names[id(each)]] if id(each) in names else each for each in group["params"]]


def _blocks(network: nn.Module) -> list[nn.Module]:
    """The entries of the outermost lists of layers."""
    found: list[nn.Module] = []
    for child in network.children():
        if isinstance(child, nn.ModuleList | nn.Sequential):
            found += [each for each in child if any(True for _ in each.parameters())]
        else:
            found += _blocks(child)
    return found
