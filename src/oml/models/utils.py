"""Checkpoints: reading their tensors, whatever wraps them, and fitting them to a module. No code of theirs runs."""

import builtins
import logging
import re
import sys
import warnings
from _compat_pickle import IMPORT_MAPPING
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from functools import partial
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple, TypeVar
from zipfile import ZipFile, is_zipfile

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from oml.models.zoo import ZOO, weights_path

TStateDict = dict[str, Tensor]
TModule = TypeVar("TModule", bound=nn.Module)

logger = logging.getLogger(__name__)

#: arguments of timm's ``VisionTransformer`` for the sizes tiny, small, base and large
VIT_SIZES: dict[str, dict[str, Any]] = {
    "t": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "s": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "b": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "l": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
}

#: sides of the patches that vision transformers have, in pixels
PATCHES = (8, 14, 16, 32)

# Ends of names of classes, such as Lightning's, whose instances have items.
_DICTIONARIES = ("collections.defaultdict", ".AttributeDict")

# What wrappers of torch put into the names of the modules within.
_WRAPPERS = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")

# Modules of Python whose objects are data. Files that name others, such as `os`, are meant to do harm.
_HARMLESS = {
    "_codecs", "argparse", "builtins", "collections", "copyreg", "dataclasses", "datetime", "decimal", "enum",
    "fractions", "functools", "ipaddress", "logging", "numbers", "pathlib", "re", "string", "types", "typing", "uuid",
}  # fmt: skip


def unknown_arch(owner: str, arch: str, known: Iterable[str]) -> str:
    """The text of an error about an architecture that there is not.

    Example:
        >>> unknown_arch("ViTExtractor", "vits17", ["vits8", "vits16"])
        "ViTExtractor has no architecture 'vits17', did you mean 'vits16'? There are vits8, vits16."
    """
    known = list(known)
    near = get_close_matches(str(arch), known, n=1)
    hint = f", did you mean {near[0]!r}?" if near else ";"
    return f"{owner} has no architecture {arch!r}{hint} {'There' if near else 'there'} are {', '.join(known)}."


def check_images(model: nn.Module, x: Any, channels: int = 3) -> None:
    """Check that ``x`` is a batch of images as models take them: floating-point numbers of shape (B, C, H, W).

    Args:
        model: who needs them.
        x: what came.
        channels: of an image.

    Raises:
        TypeError: ``x`` is no tensor, or not of floating-point numbers, or of float64 and the model is not.
        ValueError: It has another shape.
    """
    owner = type(model).__name__
    if not isinstance(x, Tensor):
        raise TypeError(f"{owner} needs a tensor of images, got {type(x).__name__}.")
    shape = tuple(x.shape)
    if not x.is_floating_point():
        raise TypeError(
            f"{owner} needs images of normalised floating-point numbers, got {x.dtype} of shape {shape}: apply a "
            "transform first, such as that of get_transforms_for_pretrained, which divides by 255 and normalises."
        )
    # other types may be right within autocast, which leaves this one alone
    if x.dtype == torch.float64 and (own := next(model.parameters(), x).dtype) != x.dtype:
        raise TypeError(f"{owner} has parameters of {own}, got images of {x.dtype}, as NumPy makes: use x.float().")
    if len(shape) == 4 and shape[1] == channels:
        return
    if len(shape) == 3:
        hint = ": one image without a batch; use x[None]"
    elif len(shape) == 4 and shape[3] == channels:
        hint = ": channels are last; use x.permute(0, 3, 1, 2)"
    else:
        hint = ""
    raise ValueError(f"{owner} needs images of shape (batch, {channels}, height, width), got {shape}{hint}.")


def check_image_pairs(model: nn.Module, x1: Any, x2: Any) -> None:
    """Check that ``x1`` and ``x2`` are batches of images of one shape, see :func:`check_images`.

    Raises:
        TypeError, ValueError: as there, or if their shapes differ.
    """
    check_images(model, x1)
    check_images(model, x2)
    if x1.shape != x2.shape:
        raise ValueError(
            f"{type(model).__name__} needs images of one shape on both sides, got {tuple(x1.shape)} and "
            f"{tuple(x2.shape)}."
        )


def whole_patches(owner: str, x: Tensor, patch: int) -> Tensor:
    """Images without the pixels beyond the last whole patch, right and below.

    Raises:
        ValueError: There is not a single patch.
    """
    height, width = (side // patch * patch for side in x.shape[-2:])
    if not height or not width:
        raise ValueError(
            f"{owner} needs images of at least one patch, {patch} x {patch} pixels at each scale, got {tuple(x.shape)}."
        )
    return x if x.shape[-2:] == (height, width) else x[..., :height, :width]


def build(
    constructor: Callable[[], TModule],
    weights: Path | str | None,
    translate: Callable[[TStateDict], TStateDict] | None = None,
) -> TModule:
    """A module with the given weights, or with random ones if ``weights`` is ``None``.

    With weights no random ones are drawn before, which would take longer than to read the file.

    Args:
        constructor: makes the module; all its parameters and buffers are part of its ``state_dict``.
        weights: see :func:`load_weights`.
        translate: see :func:`load_weights`.
    """
    if weights is None:
        return constructor()
    with torch.device("meta"):
        module = constructor()
    load_weights(module, weights, translate=translate)
    return module


def load_weights(
    module: nn.Module, weights: Path | str, *, translate: Callable[[TStateDict], TStateDict] | None = None
) -> None:
    """Load a checkpoint into ``module``: all its tensors must be there, with their shapes, under some common prefix.

    A training run saves an extractor's ``norm.weight`` as ``model.model.norm.weight``, say, beside the weights of a
    loss. What is not under the prefix is left behind, and so are modules beside those of ``module``, such as a
    classifier that it does not have. But further tensors within its own modules, such as a 13th block, are an error.
    Parameters keep their type: half-precision weights become float32.

    Args:
        module: parameters on the meta device become those that were read.
        weights: a name out of the zoo, which is downloaded, or the path of a file.
        translate: makes the module's names and tensors out of those of another format, whatever their prefix. It is
            tried if the file does not fit as it is. By default that of the first submodule with a method ``translate``.

    Raises:
        FileNotFoundError: There is no such file, nor such a name in the zoo.
        ValueError: The file cannot be read, see :func:`read_checkpoint`, or is of another architecture. Says which
            tensors are missing, unexpected or of other shapes, and of which architecture they look.

    Warns:
        UserWarning: The file has further weights of the same network, such as an average: says which are loaded.
    """
    path = weights_path(weights)
    checkpoint = read_checkpoint(path)
    needed = module.state_dict()
    translate = translate or next((part.translate for part in module.modules() if hasattr(part, "translate")), None)  # pyright: ignore[reportAssignmentType]
    fit = _fit(checkpoint, needed)
    if fit.problems and translate is not None:
        fit = min(fit, _fit(translate(checkpoint), needed), key=lambda one: one.problems)
    if fit.problems:
        raise ValueError(_misfit(path, module, fit, checkpoint))
    if fit.rivals:
        warnings.warn(
            f"The checkpoint {str(path)!r} has weights of {type(module).__name__} more than once: those under "
            f"{fit.prefix!r} are loaded, not those under {fit.rivals}. To load others, save them alone.",
            stacklevel=2,
        )
    del checkpoint  # of which tensors that are not needed may go
    on_meta = any(tensor.is_meta for tensor in needed.values())
    module.load_state_dict(
        {name: _own(tensor, needed[name].dtype) if on_meta else tensor for name, tensor in fit.state.items()},
        assign=on_meta,
    )


def read_checkpoint(path: Path | str) -> TStateDict:
    """The tensors of a checkpoint file by name.

    Reads safetensors; torch's own format, bare or under the key ``state_dict``, ``model_state_dict`` or ``model``,
    from a Lightning checkpoint with all that it holds besides; and TorchScript archives, of which the tensors alone
    are read. Nothing that is not a tensor or plain data comes to life: the unpickler is that of ``weights_only=True``,
    and instances of classes that it does not know become empty objects.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be read, would run code, or holds no named tensors or others than dense ones.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint {str(path)!r}.")
    try:
        with torch.device("cpu"):
            content = load_file(path) if path.suffix == ".safetensors" else _load(path)
    except Exception as error:  # on foreign bytes, readers raise whatever they stumble over
        raise ValueError(
            f"{str(path)!r} is no checkpoint of tensors alone: it is of another format, damaged, or holds objects "
            f"that would run code when loaded ({_reason(error)}). "
            "Save the state_dict of the model: torch.save(model.state_dict(), path)."
        ) from error
    if isinstance(content, _StandIn):
        content = dict(_tensors(content, ""))
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    state = {name: value for name, value in _items(content) if isinstance(name, str) and isinstance(value, Tensor)}
    if not state:
        names = [str(name) for name, _ in _items(content)][:5]
        raise ValueError(
            f"The checkpoint {str(path)!r} holds no named tensors, neither bare nor under 'state_dict'"
            f"{f', but {names}' if names else ''}. "
            "Save the state_dict of the model: torch.save(model.state_dict(), path)."
        )
    if odd := [name for name, tensor in state.items() if not _is_dense(tensor)]:
        raise ValueError(
            f"The checkpoint {str(path)!r} holds {len(odd)} tensors that are sparse, quantised, parts of one that is "
            f"spread over processes, or without numbers, first {odd[:3]}. Save dense ones."
        )
    return {_WRAPPERS.sub("", name): tensor for name, tensor in state.items()}


def _reason(error: Exception) -> str:
    """What went wrong, in short: the name that the unpickler refuses, or the first line of the error."""
    text = str(error).rpartition("WeightsUnpickler error: ")[2].strip()  # before it, torch advises to trust the file
    name = re.search(r"GLOBAL (\S+)", text)
    return f"it names {name[1]}" if name else (text.splitlines() or [type(error).__name__])[0]


def _is_dense(tensor: Tensor) -> bool:
    """Whether a tensor is one block of numbers, as parameters are."""
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided
    return plain and not tensor.is_quantized and not tensor.is_meta


def _items(content: Any) -> Iterable[tuple[Any, Any]]:
    return content.items() if isinstance(content, Mapping) else ()


class _StandIn(list):
    """Takes the place of an instance of any class in a pickle: keeps what it was given, and does nothing."""

    __hash__ = object.__hash__  # pyright: ignore[reportAssignmentType]
    state: Any = None

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _DictStandIn:
    """The same for subclasses of dictionaries: the unpickler sets items of this one class."""

    def __new__(cls, *_: Any, **__: Any) -> OrderedDict[Any, Any]:
        return OrderedDict()


def _load(path: Path) -> Any:
    """The content of a file of ``torch.save`` or ``torch.jit.save``, with stand-ins for what is not plain."""
    file = _without_code(path) if _is_torchscript(path) else path
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError:
        if not is_zipfile(path):
            raise
    _rewind(file)
    names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    if harmful := sorted(name for name in names if _is_harmful(name)):
        raise UnpicklingError(f"it names {', '.join(harmful)}")
    _rewind(file)
    stand_ins: list[Any] = [(_DictStandIn if name.endswith(_DICTIONARIES) else _StandIn, name) for name in names]
    with torch.serialization.safe_globals(stand_ins):
        return torch.load(file, map_location="cpu", weights_only=True)


def _rewind(file: Path | BytesIO) -> None:
    if not isinstance(file, Path):
        file.seek(0)


def _is_harmful(name: str) -> bool:
    module, _, rest = name.partition(".")
    module = IMPORT_MAPPING.get(module, module)  # pickles may have the names that Python 2 used
    if module == "builtins":
        return not isinstance(getattr(builtins, rest, None), type)
    return module in sys.stdlib_module_names and module not in _HARMLESS


def _is_torchscript(path: Path) -> bool:
    if not is_zipfile(path):
        return False
    with ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _without_code(path: Path) -> BytesIO:
    """A TorchScript archive as a file of ``torch.save``: ``torch.jit.load`` would compile, and could run, its code."""
    copy = BytesIO()
    with ZipFile(path) as archive, ZipFile(copy, "w") as target:
        for entry in archive.infolist():
            if "/code/" not in entry.filename and not entry.filename.endswith("/constants.pkl"):
                target.writestr(entry, archive.read(entry))
    copy.seek(0)
    return copy


def _tensors(module: _StandIn, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a scripted module, whose state are its attributes."""
    for name, value in _items(module.state):
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, _StandIn):
            yield from _tensors(value, f"{prefix}{name}.")


class _Fit(NamedTuple):
    """The tensors that a module needs, as far as a checkpoint has them, and the names of those that do not fit."""

    prefix: str
    rivals: list[str]  # prefixes of other weights that fit as well
    state: TStateDict
    missing: list[str]
    unexpected: list[str]
    misshaped: list[str]
    others: list[str]

    @property
    def problems(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.misshaped)


def _fit(checkpoint: Mapping[str, Tensor], needed: Mapping[str, Tensor]) -> _Fit:
    """The tensors of a checkpoint under that prefix where they fit a module best."""
    prefixes = defaultdict(list)  # of each name that ends names of the checkpoint: what precedes it there
    for key in checkpoint:
        for start in (0, *(dot.end() for dot in re.finditer(r"\.", key))):
            prefixes[key[start:]].append(key[:start])
    scores: Counter[str] = Counter()
    for name, tensor in needed.items():
        for prefix in prefixes.get(name, ()):
            scores[prefix] += 2 if checkpoint[prefix + name].shape == tensor.shape else 1
    # MoCo's encoder of keys follows, with its momentum, that of queries, which is the one to use
    best = max(scores, key=lambda prefix: (scores[prefix], "encoder_k." not in prefix, -len(prefix)), default="")

    state = {name: checkpoint[best + name] for name in needed if best + name in checkpoint}
    missing = [name for name in needed if name not in state]
    # counters that only a module without momentum reads; old checkpoints have none
    for name in [name for name in missing if name.endswith("num_batches_tracked")]:
        state[name] = torch.zeros_like(needed[name], device="cpu")
        missing.remove(name)
    rivals = [
        prefix
        for prefix, score in scores.items()
        if score == scores[best] and prefix != best and "encoder_k." not in prefix
        if not all(_equal(checkpoint.get(prefix + name), tensor) for name, tensor in state.items())
    ]
    others = [key.removeprefix(best) for key in checkpoint if key.startswith(best) and key[len(best) :] not in needed]
    parts = {name.partition(".")[0] for name in needed}
    return _Fit(
        prefix=best,
        rivals=rivals,
        state=state,
        missing=missing,
        unexpected=[name for name in others if name.partition(".")[0] in parts],
        misshaped=[name for name, tensor in state.items() if tensor.shape != needed[name].shape],
        others=others,
    )


def _equal(one: Tensor | None, other: Tensor) -> bool:
    return one is not None and one.dtype == other.dtype and torch.equal(one, other)


def _own(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in memory that is its own, for it becomes a parameter, and where new ones are made."""
    tensor = tensor.to(torch.get_default_device(), dtype).contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _misfit(path: Path, module: nn.Module, fit: _Fit, checkpoint: TStateDict) -> str:
    """What is wrong with a checkpoint of another architecture."""
    needed = module.state_dict()
    facts = []
    if fit.missing:
        facts.append(f"lacks {len(fit.missing)} of the {len(needed)} tensors that are needed, first {fit.missing[:3]}")
    if names := fit.unexpected or (fit.others if fit.missing else []):
        facts.append(f"has {len(names)} that are not, first {names[:3]}")
    if fit.misshaped:
        shapes = [
            f"{name} {tuple(fit.state[name].shape)} instead of {tuple(needed[name].shape)}"
            for name in fit.misshaped[:3]
        ]
        facts.append(f"has {len(fit.misshaped)} of other shapes, first {', '.join(shapes)}")
    parts = module.named_modules() if 2 * len(fit.missing) > len(needed) else ()
    states = ((name, part.state_dict()) for name, part in parts)
    most = (name for name, state in states if 2 * len(state) > len(needed) and not _fit(checkpoint, state).problems)
    if part := next(most, None):
        looks = (
            f"It has weights of the part {part!r}: build it all without weights, then load_weights(it.{part}, path)."
        )
    elif guess := _guess(checkpoint):
        looks = f"It looks like weights of {guess}."
    else:
        looks = "Is it of another architecture?"
    return f"The checkpoint {str(path)!r} does not fit {type(module).__name__}: it {'; '.join(facts)}. {looks}"


def _guess(checkpoint: TStateDict) -> str | None:
    """The architecture, of all that we know, that a checkpoint fits, but for one in ten tensors."""
    best, least = None, 0.1
    # building all would take seconds: the patches that a convolution sees say which transformers it can be
    sides = {tensor.shape[3] for tensor in checkpoint.values() if tensor.ndim == 4 and tensor.shape[1] == 3}
    patches = sides.intersection(PATCHES) or ({None} if sides else {})
    for name, constructor in _known():
        patch = re.search(r"'vit\w*?(\d+)", name)
        if (patch and int(patch[1])) not in patches:
            continue
        with torch.device("meta"):
            module = constructor()
        needed = module.state_dict()
        forms = [checkpoint, module.translate(checkpoint)] if hasattr(module, "translate") else [checkpoint]  # pyright: ignore[reportCallIssue]
        share = min(_fit(form, needed).problems for form in forms) / len(needed)
        if share < least:
            best, least = name, share
        if not share:
            break
    return best


def _known() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """The architectures of our extractors and of timm's entries in the zoo, with what makes them."""
    import timm

    from oml import models  # which imports this module

    for extractor in (getattr(models, name) for name in models.__all__):
        for arch, constructor in getattr(extractor, "constructors", {}).items():
            yield f"{extractor.__name__}(arch={arch!r})", constructor
    for arch in {entry.init_args["arch"]: None for entry in ZOO.values() if entry.extractor == "TimmExtractor"}:
        yield f"TimmExtractor(arch={arch!r})", partial(timm.create_model, arch, num_classes=0)


def find_prefix_in_state_dict(state_dict: Mapping[str, Any], trial_key: str) -> str:
    """What precedes ``trial_key`` in the first name that contains it.

    Raises:
        IndexError: No name contains it.

    Example:
        >>> find_prefix_in_state_dict({"criterion.weight": 0, "model.norm.bias": 1}, "norm.bias")
        'model.'
    """
    for name in state_dict:
        if trial_key in name:
            return name[: name.index(trial_key)]
    raise IndexError(f"No name of the state dict contains {trial_key!r}; the first are {list(state_dict)[:3]}.")


def remove_prefix_from_state_dict(state_dict: dict[str, Any], trial_key: str) -> dict[str, Any]:
    """Strip the prefix of ``trial_key`` from all names, in place, and drop those without it; see also load_weights.

    Example:
        >>> remove_prefix_from_state_dict({"criterion.weight": 0, "model.norm.bias": 1}, "norm.bias")
        {'norm.bias': 1}
    """
    if prefix := find_prefix_in_state_dict(state_dict, trial_key):
        logger.info("The prefix %r is removed from names of tensors.", prefix)
        kept = {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
        state_dict.clear()
        state_dict.update(kept)
    return state_dict


def filter_state_dict(state_dict: dict[str, Any], needed_keys: Iterable[str]) -> dict[str, Any]:
    """Drop all other names, in place.

    Example:
        >>> filter_state_dict({"norm.bias": 1, "fc.bias": 0}, ["norm.bias"])
        {'norm.bias': 1}
    """
    for name in state_dict.keys() - set(needed_keys):
        del state_dict[name]
    return state_dict


def patch_device_and_float(module: nn.Module, device: str = "cuda") -> None:
    """:func:`patch_device` and :func:`patch_float`."""
    patch_device(module, device)
    patch_float(module)


def patch_device(module: nn.Module, device: str = "cuda") -> None:
    """Let a TorchScript module compute on ``device``, where its code names another; its tensors stay where they are."""
    for graph in _graphs(module):
        for node in graph.findAllNodes("prim::Constant"):
            if node.output().type().kind() == "DeviceObjType":
                node.s_("value", device)


def patch_float(module: nn.Module) -> None:
    """Let a TorchScript module convert to float32 where its code says half; its tensors keep their types."""
    half, full = 5, 6  # TorchScript's numbers of the types
    for graph in _graphs(module):
        for node in graph.findAllNodes("aten::to"):
            for i, value in enumerate(node.inputs()):
                if value.type().kind() == "IntType" and value.toIValue() == half:
                    graph.setInsertPoint(node)
                    node.replaceInput(i, graph.insertConstant(full))


def _graphs(module: nn.Module) -> Iterator[Any]:
    """The code of all methods of a TorchScript module and of those within."""
    for part in module.modules():
        for name in getattr(getattr(part, "_c", None), "_method_names", list)():
            yield part._c._get_method(name).graph  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
