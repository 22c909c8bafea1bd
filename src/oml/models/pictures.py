"""Pictures of what extractors look at. Matplotlib is loaded when one is drawn.

Nothing here leaves a trace on a model: hooks are removed, each module is in its mode again, gradients and what
requires them are as before. All of it works on any device and inside ``torch.no_grad()``.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision.models import ResNet

from oml.const import MEAN, STD, TNormParam
from oml.models.fine_tuning import find_backbone
from oml.models.utils import whole_patches
from oml.utils.misc_torch import temporary_setting_model_mode

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TPicture = TypeVar("TPicture", np.ndarray, Image.Image)
Images = Float[Tensor, "batch channel height width"]

_PALETTE = "turbo"


def attention_weights(vit: nn.Module, images: Images) -> Float[Tensor, "batch head token token"]:
    """The attention of all tokens to all tokens in the last block of a vision transformer: each row sums to one.

    ``softmax(q k^T / sqrt(d))`` of each head, with the norms of queries and keys, rotary positions and biases that the
    block applies. Tokens are in the network's order: class token and registers, if there are any, then the patches row
    by row. Works for timm's networks that attend over all tokens in one ``scaled_dot_product_attention`` a block:
    ``VisionTransformer`` (DINO, DeiT, CLIP, DINOv2 with registers, SigLIP), ``Eva`` (EVA-02, DINOv3) and ``Beit``.

    Args:
        vit: such a network, or an extractor with one inside.
        images: normalised. Pixels beyond the last whole patch, right and below, are left out; a network of one
            size gets images resized to it.

    Raises:
        ValueError: if there is no such network, or its attention is of another kind.

    Example:
        >>> import timm
        >>> vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=2, img_size=32)
        >>> weights = attention_weights(vit, torch.randn(1, 3, 32, 32))
        >>> weights.shape, bool(torch.allclose(weights.sum(dim=-1), torch.ones(1)))
        (torch.Size([1, 3, 5, 5]), True)
    """
    network, images = _vit(vit, images)
    rows, columns = _grid(network, images)
    weights = _attention_inside(network, network.blocks[-1], images)  # pyright: ignore[reportIndexIssue, reportArgumentType]
    n_tokens = _n_prefix(network) + rows * columns
    if weights.shape[-2:] != (n_tokens, n_tokens):
        raise ValueError(
            f"The last block of {type(network).__name__} attends from {weights.shape[-2]} to {weights.shape[-1]} "
            f"tokens, not between all {n_tokens} of an image: its attention is of another kind than that of a ViT."
        )
    return weights


def attention_map(
    vit: nn.Module, images: Images, *, per_head: bool = False
) -> Float[Tensor, "batch *head rows columns"]:
    """How much a vision transformer attends to each patch where it makes the embedding, mean over the heads.

    With a class token: the attention of this token in the last block, see :func:`attention_weights`; the parts of it
    that go to the class token itself and to registers are left out, so maps sum to at most one. With an attention
    pooling (SigLIP): the attention of its query. With neither (Unicom): the attention that a patch receives, mean
    over all patches.

    Args:
        vit, images: see :func:`attention_weights`.
        per_head: a map for each head instead of their mean.

    Raises:
        ValueError: see :func:`attention_weights`.

    Example:
        >>> from oml.models import ViTExtractor
        >>> extractor = ViTExtractor(None, arch="vits16", normalise_features=False)
        >>> attention_map(extractor, torch.randn(1, 3, 48, 70)).shape  # 3 x 4 whole patches
        torch.Size([1, 3, 4])
    """
    network, images = _vit(vit, images)
    rows, columns = _grid(network, images)
    pooling = getattr(network, "attn_pool", None)
    if pooling is not None:
        weights = _attention_inside(network, pooling, images).mean(dim=2)
    elif getattr(network, "cls_token", None) is not None:
        weights = attention_weights(network, images)[:, :, 0]
    else:
        weights = attention_weights(network, images).mean(dim=2)
    weights = weights[..., weights.shape[-1] - rows * columns :].unflatten(-1, (rows, columns))
    return weights if per_head else weights.mean(dim=1)


def grad_cam(
    model: nn.Module,
    layer: nn.Module | None,
    images: Images,
    target: Float[Tensor, "#batch dim"] | Callable[[Tensor], Tensor] | None = None,
) -> Float[Tensor, "batch rows columns"]:
    r"""Grad-CAM (Selvaraju et al. 2017): which cells of a feature map speak for the target.

    ``relu(sum_k a_k A_k)`` over the channels ``k`` of the feature map ``A``, where ``a_k`` is the mean over all cells
    of the gradient of the target with respect to ``A_k``.

    Args:
        model: gives outputs of shape ``(batch, dim)``: logits or embeddings.
        layer: a module inside it whose output is a feature map ``(batch, channel, rows, columns)``, as a rule the
            last one; ``None`` finds it in networks of timm and in torchvision's ResNets.
        images: normalised.
        target: ``None``, the highest output of each image, as fits a classifier; embeddings, such as those of a second
            image: the cosine similarity to them; or a function from outputs to a number for each image, such as
            ``lambda logits: logits[:, 281]`` or ``lambda embeddings: embeddings.norm(dim=1)``.

    Raises:
        ValueError: if the layer gives no feature map, or the target does not depend on it.

    Example:
        >>> from oml.models import TimmExtractor
        >>> extractor = TimmExtractor(None, arch="resnet18")
        >>> one, two = torch.randn(2, 1, 3, 64, 96)
        >>> grad_cam(extractor, None, one, target=extractor(two)).shape
        torch.Size([1, 2, 3])
    """
    layer = _last_feature_map(model, images) if layer is None else layer
    kept: list[Tensor] = []

    def start_here(_module: nn.Module, _args: Any, output: Any) -> Tensor:
        if not isinstance(output, Tensor) or output.ndim != 4:
            raise ValueError(
                f"grad_cam needs a layer whose output is a feature map (batch, channel, rows, columns), the one of "
                f"{type(layer).__name__} is {tuple(output.shape) if isinstance(output, Tensor) else type(output)}."
            )
        kept.append(output.detach().requires_grad_())
        return kept[-1].clone()  # the next module may work in place

    # a frozen backbone is looked into as any other
    with _watching(model), _setting(model, "train_backbone", True), torch.enable_grad():
        handle = layer.register_forward_hook(start_here)
        try:
            outputs = model(images.clone())  # a normal tensor, also of one made in inference mode
        finally:
            handle.remove()
        if len(kept) != 1:
            raise ValueError(
                f"grad_cam needs a layer that {type(model).__name__} runs once for a batch; this one, of the type "
                f"{type(layer).__name__}, ran {len(kept)} times."
            )
        if target is None:
            scores = outputs.amax(dim=1)
        elif isinstance(target, Tensor):
            scores = F.cosine_similarity(outputs, target.to(outputs), dim=1)
        else:
            scores = target(outputs)
        (gradient,) = torch.autograd.grad(scores.sum(), kept, allow_unused=True) if scores.requires_grad else (None,)
        if gradient is None:
            raise ValueError(
                f"The target does not depend on the output of the layer, or {type(model).__name__} computes it without "
                "gradients."
            )
    features = kept[0].detach()
    if _is_channels_last(model):
        features, gradient = features.movedim(-1, 1), gradient.movedim(-1, 1)
    return (features * gradient.mean(dim=(2, 3), keepdim=True)).sum(dim=1).relu()


class SimilarityMap(NamedTuple):
    """Cosine similarities between the cells of two images; cells are patches, or those of a feature map, row by row."""

    similarities: Float[Tensor, "query_cell gallery_cell"]
    query_grid: tuple[int, int]
    gallery_grid: tuple[int, int]

    def mutual_neighbours(self, n: int) -> Int[Tensor, "pair 2"]:
        """The up to ``n`` most similar pairs of cells of which each is the other's nearest, the most similar first.

        Example:
            >>> SimilarityMap(torch.tensor([[0.5, 0.1], [0.3, 0.9]]), (1, 2), (1, 2)).mutual_neighbours(5)
            tensor([[1, 1],
                    [0, 0]])
        """
        nearest = self.similarities.argmax(dim=1)
        queries = torch.arange(len(nearest), device=nearest.device)
        mutual = (self.similarities.argmax(dim=0)[nearest] == queries).nonzero().squeeze(1)
        best = self.similarities[mutual, nearest[mutual]].argsort(descending=True, stable=True)[:n]
        return torch.stack([mutual[best], nearest[mutual[best]]], dim=1)


def similarity_map(
    extractor: nn.Module,
    query: Float[Tensor, "1 channel query_height query_width"],
    gallery: Float[Tensor, "1 channel gallery_height gallery_width"],
) -> SimilarityMap:
    """Which parts of one image an extractor finds alike to which parts of another one.

    Compared are the tokens of patches after the last norm of a ViT, or the cells of the last feature map of a CNN.

    Args:
        extractor: with a network of timm or torchvision's ResNet inside.
        query, gallery: one normalised image each, ``(1, channel, height, width)``, of any two sizes.

    Raises:
        ValueError: if there are several images, or no such network.

    Example:
        >>> from oml.models import ViTExtractor
        >>> extractor = ViTExtractor(None, arch="vits16", normalise_features=False)
        >>> found = similarity_map(extractor, torch.randn(1, 3, 32, 32), torch.randn(1, 3, 48, 64))
        >>> found.similarities.shape, found.query_grid, found.gallery_grid
        (torch.Size([4, 12]), (2, 2), (3, 4))
    """
    if len(query) != 1 or len(gallery) != 1:
        raise ValueError(f"similarity_map needs one image each, got {len(query)} queries and {len(gallery)} galleries.")
    cells = [_cells(extractor, image) for image in (query, gallery)]
    ours, theirs = (F.normalize(grid.flatten(end_dim=1), dim=1) for grid in cells)
    (query_grid, gallery_grid) = ((grid.shape[0], grid.shape[1]) for grid in cells)
    return SimilarityMap(ours @ theirs.T, query_grid, gallery_grid)


def vis_vit(vit: nn.Module, image: TPicture, mean: TNormParam = MEAN, std: TNormParam = STD) -> TPicture:
    """The image under a heat map of where a vision transformer looks, see :func:`attention_map`.

    Heat is full from 0.6 of the greatest attention on.

    Args:
        vit: the network, or an extractor with it inside.
        image: uint8, ``(height, width, 3)``, or of PIL, of any size with at least one patch.
        mean, std: by which the network wants its images normalised, of pixels from 0 to 1.

    Returns:
        A picture of the type and size of ``image``.

    Raises:
        TypeError, ValueError: if ``image`` is of another kind; see also :func:`attention_map`.

    Example:
        >>> from oml.models import ViTExtractor
        >>> extractor = ViTExtractor(None, arch="vits16", normalise_features=False)
        >>> vis_vit(extractor, Image.new("RGB", (70, 48))).size
        (70, 48)
    """
    pixels = _pixels(image)
    weights = attention_map(vit, _normalised(vit, pixels, mean, std))[0]
    heat = weights / (0.6 * weights.amax()).clamp(min=torch.finfo(weights.dtype).tiny)
    return _as(image, _blend(pixels, _spread(heat, find_backbone(vit)[1], pixels)))


def draw_gradcam(
    extractor: nn.Module,
    image: TPicture,
    target: TPicture | Callable[[Tensor], Tensor] | None = None,
    mean: TNormParam = MEAN,
    std: TNormParam = STD,
) -> TPicture:
    """The image under a heat map of what in it speaks for the target, see :func:`grad_cam`.

    Embeddings are taken as they are before they are scaled to unit length.

    Args:
        extractor: with a convolutional network of timm or torchvision's ResNet inside.
        image: uint8, ``(height, width, 3)``, or of PIL, of any size.
        target: ``None``, the class of highest score; another image: the similarity of the embeddings to each other;
            or a function from outputs to a number for each image.
        mean, std: by which the network wants its images normalised, of pixels from 0 to 1.

    Returns:
        A picture of the type and size of ``image``.

    Raises:
        TypeError, ValueError: if ``image`` is of another kind; see also :func:`grad_cam`.

    Example:
        >>> from oml.models import TimmExtractor
        >>> image = Image.new("RGB", (70, 48))
        >>> draw_gradcam(TimmExtractor(None, arch="resnet18"), image, target=image).size
        (70, 48)
    """
    pixels = _pixels(image)
    inputs = _normalised(extractor, pixels, mean, std)
    goal: Any = target
    with _setting(extractor, "normalise_features", False):
        if isinstance(target, np.ndarray | Image.Image):
            with _watching(extractor), torch.no_grad():
                goal = extractor(_normalised(extractor, _pixels(target), mean, std))
        cam = grad_cam(extractor, None, inputs, goal)[0]
    heat = cam / cam.amax().clamp(min=torch.finfo(cam.dtype).tiny)
    return _as(image, _blend(pixels, _spread(heat, find_backbone(extractor)[1], pixels)))


def draw_similarity(
    extractor: nn.Module,
    query: np.ndarray | Image.Image,
    gallery: np.ndarray | Image.Image,
    *,
    point: tuple[int, int] | None = None,
    n_lines: int = 10,
    mean: TNormParam = MEAN,
    std: TNormParam = STD,
) -> "Figure":
    """Two images side by side: which parts of the one an extractor finds alike to which of the other.

    The heat of a cell is its cosine similarity to the most similar cell of the other image; lines join the most
    similar pairs of cells of which each is the other's nearest. With a ``point`` of the query, the heat of the gallery
    is the similarity to this point's cell, and there are no lines. See :func:`similarity_map`.

    Args:
        extractor: with a network of timm or torchvision's ResNet inside.
        query, gallery: uint8, ``(height, width, 3)``, or of PIL.
        point: x and y in the query, in pixels.
        n_lines: at most so many.
        mean, std: by which the network wants its images normalised, of pixels from 0 to 1.

    Returns:
        A figure; ``figure.savefig("similarity.png")`` keeps it.

    Raises:
        TypeError, ValueError: if images are of another kind, or the point is outside of what the network sees.

    Example:
        >>> from oml.models import TimmExtractor
        >>> images = Image.new("RGB", (96, 64)), Image.new("RGB", (64, 64))
        >>> figure = draw_similarity(TimmExtractor(None, arch="resnet18"), *images)
        >>> [axes.get_title() for axes in figure.axes[:2]]
        ['query', 'gallery']
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.patches import ConnectionPatch
    from matplotlib.patheffects import Normal, Stroke

    network = find_backbone(extractor)[1]
    pixels = [_pixels(query), _pixels(gallery)]
    found = similarity_map(extractor, *(_normalised(extractor, side, mean, std) for side in pixels))
    grids = found.query_grid, found.gallery_grid
    sizes = [_seen(network, side, grid) for side, grid in zip(pixels, grids, strict=True)]
    if point is None:
        heats = [found.similarities.amax(dim=1), found.similarities.amax(dim=0)]
    else:
        (height, width), (rows, columns) = sizes[0], grids[0]
        if not (0 <= point[0] < width and 0 <= point[1] < height):
            raise ValueError(f"draw_similarity needs a point (x, y) inside of {width} x {height} pixels, got {point}.")
        cell = int(point[1] * rows / height) * columns + int(point[0] * columns / width)
        heats = [None, found.similarities[cell]]

    shown = torch.cat([heat for heat in heats if heat is not None])
    low, high = (float(end) for end in (shown.amin(), shown.amax()))
    figure = Figure(figsize=(12, 5), layout="constrained")
    both = figure.subplots(1, 2)
    for axes, side, heat, grid, title in zip(both, pixels, heats, grids, ("query", "gallery"), strict=True):
        if heat is not None:
            scaled = (heat.reshape(grid) - low) / max(high - low, 1e-6)
            side = _blend(side, _spread(scaled, network, side))
        axes.imshow(side)
        axes.set(xticks=[], yticks=[])
        axes.set_title(title)
    outlined = [Stroke(linewidth=3, foreground="black"), Normal()]  # visible on any image, and between the two
    if point is not None:
        both[0].plot(*point, marker="+", markersize=14, color="white", markeredgewidth=1.5, path_effects=outlined)
    else:
        for pair in found.mutual_neighbours(n_lines).tolist():
            centres = [
                ((i % columns + 0.5) * width / columns, (i // columns + 0.5) * height / rows)
                for i, (rows, columns), (height, width) in zip(pair, grids, sizes, strict=True)
            ]
            ends = {"xyA": centres[0], "xyB": centres[1], "axesA": both[0], "axesB": both[1]}
            line = ConnectionPatch(**ends, coordsA="data", coordsB="data", arrowstyle="-", color="white", linewidth=1.5)
            line.set_path_effects(outlined)
            figure.add_artist(line)
            for axes, centre in zip(both, centres, strict=True):
                axes.plot(*centre, marker="o", markersize=4, color="white", markeredgecolor="black")
    bar = ScalarMappable(Normalize(low, high), _PALETTE)
    figure.colorbar(bar, ax=list(both), label="cosine similarity", shrink=0.8)
    return figure


class _Attention(TorchFunctionMode):
    """Notes the weights of all attention that is computed within: the product with an identity in place of values."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            given = dict(zip(("query", "key", "value", "attn_mask", "dropout_p", "is_causal"), args, strict=False))
            given |= kwargs
            query, key = given["query"].float(), given["key"].float()
            identity = torch.eye(key.shape[-2], device=key.device).expand(*key.shape[:-1], key.shape[-2])
            if (mask := given.get("attn_mask")) is not None and mask.is_floating_point():
                mask = mask.float()
            self.weights.append(
                func(**given | {"query": query, "key": key, "value": identity, "attn_mask": mask, "dropout_p": 0.0})
            )
        return func(*args, **kwargs)


def _attention_inside(network: nn.Module, block: nn.Module, images: Tensor) -> Tensor:
    """The weights of the one attention that ``block`` computes while ``network`` works on images."""
    inputs: list[tuple[Any, Any]] = []
    with _watching(network), torch.no_grad():
        handle = block.register_forward_hook(
            lambda _, args, kwargs, __: inputs.append((args, kwargs)), with_kwargs=True
        )
        try:
            network(images)
        finally:
            handle.remove()
        args, kwargs = inputs[-1]
        with _setting(block, "fused_attn", True), _Attention() as attention:
            block(*args, **kwargs)
    if len(attention.weights) != 1:
        raise ValueError(
            f"Attention can be shown of blocks that compute it once, by scaled_dot_product_attention; "
            f"{type(block).__name__} of {type(network).__name__} does so {len(attention.weights)} times."
        )
    return attention.weights[0]


@contextmanager
def _watching(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, module by module as written, with gradients possible; afterwards everything is as before."""
    with ExitStack() as stack:
        stack.enter_context(temporary_setting_model_mode(model, set_train=False))
        stack.enter_context(torch.inference_mode(False))
        if any(getattr(module, "_compiled_call_impl", None) is not None for module in model.modules()):
            stack.enter_context(torch.compiler.set_stance("force_eager"))  # compiled code may pass hooks by
        yield


@contextmanager
def _setting(model: nn.Module, name: str, value: Any) -> Iterator[None]:
    """Within, the attribute has this value in all modules that have it."""
    before = [(module, getattr(module, name)) for module in model.modules() if hasattr(module, name)]
    for module, _ in before:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, old in before:
            setattr(module, name, old)


def _vit(model: nn.Module, images: Tensor) -> tuple[Any, Tensor]:
    network = find_backbone(model)[1]
    if not (hasattr(network, "blocks") and hasattr(network, "patch_embed") and hasattr(network, "num_prefix_tokens")):
        raise ValueError(
            f"Attention maps need a vision transformer, got {type(network).__name__}. Of convolutional networks, "
            "grad_cam shows what they look at."
        )
    return network, _fitted(network, images)


def _n_prefix(network: Any) -> int:
    return int(getattr(network, "num_prefix_tokens", 0))


def _grid(network: Any, images: Tensor) -> tuple[int, int]:
    rows, columns = network.patch_embed.dynamic_feat_size(tuple(images.shape[-2:]))
    return int(rows), int(columns)


def _one_size(network: nn.Module) -> tuple[int, int] | None:
    """The only size of images that a network takes."""
    embed = getattr(network, "patch_embed", None)
    return embed.img_size if getattr(embed, "strict_img_size", False) else None  # pyright: ignore[reportOptionalMemberAccess]


def _fitted(network: nn.Module, images: Tensor) -> Tensor:
    """Images of a size that a network takes: without what goes beyond its last whole patch, or resized."""
    images = images.clone()  # a normal tensor, also of one made in inference mode
    if (size := _one_size(network)) is not None:
        if tuple(images.shape[-2:]) == tuple(size):
            return images
        return F.interpolate(images, tuple(size), mode="bicubic", antialias=True)
    patch: Any = getattr(getattr(network, "patch_embed", None), "patch_size", (1, 1))
    return whole_patches(type(network).__name__, images, max(patch))


def _is_channels_last(model: nn.Module) -> bool:
    return any(str(getattr(module, "output_fmt", "NCHW")) == "NHWC" for module in model.modules())


def _last_feature_map(model: nn.Module, images: Tensor) -> nn.Module:
    """The last module that gives the feature map which the network pools."""
    network: Any = find_backbone(model)[1]
    if isinstance(network, ResNet):
        return network.layer4
    given: list[tuple[nn.Module, Any]] = []
    with _watching(network), torch.no_grad(), ExitStack() as stack:
        for module in network.modules():
            handle = module.register_forward_hook(lambda module, _, output: given.append((module, output)))
            stack.callback(handle.remove)
        features = network.forward_features(_fitted(network, images[:1]))
    layers = [module for module, output in given if output is features]
    if features.ndim != 4 or not layers:
        raise ValueError(
            f"{type(network).__name__} ends in no feature map, so there is none for Grad-CAM. Of vision transformers, "
            "attention_map shows what they look at."
        )
    return layers[-1]


def _cells(model: nn.Module, image: Tensor) -> Float[Tensor, "rows columns dim"]:
    """What a network knows of each part of an image before it pools."""
    network: Any = find_backbone(model)[1]
    image = _fitted(network, image)
    with _watching(network), torch.no_grad():
        if isinstance(network, ResNet):
            kept: list[Tensor] = []
            handle = network.layer4.register_forward_hook(lambda _, __, output: kept.append(output))  # pyright: ignore[reportArgumentType]
            try:
                network(image)
            finally:
                handle.remove()
            features = kept[0]
        else:
            features = network.forward_features(image)
    if features.ndim == 3:
        return features[0, _n_prefix(network) :].float().unflatten(0, _grid(network, image))
    return (features[0] if _is_channels_last(network) else features[0].movedim(0, -1)).float()


def _pixels(image: Any) -> np.ndarray:
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"))
    if not isinstance(image, np.ndarray):
        raise TypeError(f"A picture is drawn on a numpy array or an image of PIL, got {type(image).__name__}.")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"A picture is drawn on an array of uint8 and of shape (height, width, 3), got {image.dtype} and "
            f"{image.shape}."
        )
    return image


def _as(image: TPicture, pixels: np.ndarray) -> TPicture:
    return Image.fromarray(pixels) if isinstance(image, Image.Image) else pixels  # pyright: ignore[reportReturnType]


def _normalised(model: nn.Module, pixels: np.ndarray, mean: TNormParam, std: TNormParam) -> Tensor:
    """The image as a batch of one, where the model is and in its precision."""
    like = next(parameter for parameter in model.parameters())
    image = torch.from_numpy(np.array(pixels)).to(like.device).permute(2, 0, 1)[None].float() / 255
    shift, scale = (torch.tensor(values, device=like.device)[:, None, None] for values in (mean, std))
    return ((image - shift) / scale).to(like.dtype)


def _seen(network: nn.Module, pixels: np.ndarray, grid: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the part of an image that a network sees, from the top left corner."""
    patch: Any = getattr(getattr(network, "patch_embed", None), "patch_size", None)
    if patch is None or _one_size(network) is not None:
        return pixels.shape[0], pixels.shape[1]
    return grid[0] * patch[0], grid[1] * patch[1]


def _spread(heat: Float[Tensor, "rows columns"], network: nn.Module, pixels: np.ndarray) -> np.ndarray:
    """Heat of cells as heat of pixels, 0 where the network sees nothing."""
    height, width = _seen(network, pixels, (heat.shape[0], heat.shape[1]))
    smooth = F.interpolate(heat[None, None].float(), (height, width), mode="bicubic")[0, 0].clamp(0, 1)
    spread = np.zeros(pixels.shape[:2], dtype=np.float32)
    spread[:height, :width] = smooth.cpu().numpy()
    return spread


def _blend(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """The image under the colours of heat, which cover it the more the hotter it is."""
    from matplotlib import colormaps

    colours = colormaps[_PALETTE](heat)[..., :3] * 255
    opacity = (0.15 + 0.45 * heat)[..., None]
    return np.round(pixels * (1 - opacity) + colours * opacity).astype(np.uint8)
