"""Reading checkpoints. A checkpoint never runs code: tensors only."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

TStateDict = dict[str, Tensor]


def read_checkpoint(path: Path | str) -> TStateDict:
    """The tensors of a checkpoint file, by name: safetensors, or torch's own format, loaded with ``weights_only``.

    A Lightning checkpoint, or any that keeps its tensors under the key ``state_dict``, gives these tensors.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file cannot be read, holds more than tensors and plain values, or no named tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint {str(path)!r}.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on foreign bytes, readers raise whatever they stumble over
        raise ValueError(
            f"{str(path)!r} is no checkpoint of tensors alone: it is of another format, damaged, or holds objects "
            "that would run code when loaded. Save the state_dict of the model."
        ) from error
    state = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not any(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"The checkpoint {str(path)!r} holds no named tensors, neither bare nor under 'state_dict'.")
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def select_state(checkpoint: Mapping[str, Tensor], needed: Iterable[str]) -> TStateDict:
    """Those tensors of a checkpoint that a module needs, whatever prefix they carry there.

    A training run saves an extractor's ``norm.weight`` as ``model.model.norm.weight``, say, beside weights of a
    loss: the prefix under which all needed names are found is the one that counts, and the rest is left behind.

    Raises:
        ValueError: if no prefix has them all; the text names what the closest one lacks.

    Example:
        >>> select_state({"model.fc.bias": torch.ones(1), "criterion.weight": torch.zeros(1)}, ["fc.bias"])
        {'fc.bias': tensor([1.])}
    """
    needed = list(needed)
    # a name could end like another one, so the one that the fewest names of the checkpoint end with decides
    ends = {name: [key for key in checkpoint if key == name or key.endswith(f".{name}")] for name in needed}
    rarest = min(needed, key=lambda name: len(ends[name]) or len(checkpoint) + 1)
    prefixes = [key.removesuffix(rarest) for key in ends[rarest]] or [""]
    missing = {prefix: [name for name in needed if prefix + name not in checkpoint] for prefix in prefixes}
    best = min(missing, key=lambda prefix: (len(missing[prefix]), len(prefix)))
    if lacking := missing[best]:
        raise ValueError(
            f"The checkpoint lacks {len(lacking)} of the {len(needed)} tensors that are needed, such as {lacking[:3]}; "
            f"it has {len(checkpoint)}, such as {list(checkpoint)[:3]}. Is it of another architecture?"
        )
    return {name: checkpoint[best + name] for name in needed}


def load_weights(module: nn.Module, path: Path | str) -> None:
    """Load a checkpoint file into ``module``: every tensor of the module must be there with its shape.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_checkpoint` and :func:`select_state`.
    """
    needed = module.state_dict()
    state = select_state(read_checkpoint(path), needed)
    if bad := [name for name, tensor in state.items() if tensor.shape != needed[name].shape]:
        name = bad[0]
        raise ValueError(
            f"{len(bad)} tensors of the checkpoint {str(path)!r} have another shape, such as {name}: "
            f"{tuple(state[name].shape)} there, {tuple(needed[name].shape)} here. Is it of another architecture?"
        )
    module.load_state_dict(state)
