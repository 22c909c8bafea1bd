"""Attention maps, Grad-CAM and similarity maps against their definitions, and that they leave models as they were."""

import copy
import math
from collections.abc import Callable, Iterator
from inspect import unwrap
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from oml.interfaces.models import IExtractor
from oml.models import ExtractorWithMLP, TimmExtractor, ViTExtractor
from oml.models.pictures import (
    attention_map,
    attention_weights,
    draw_gradcam,
    draw_similarity,
    grad_cam,
    similarity_map,
    vis_vit,
)


def tiny_vit(arch: str = "vit_tiny_patch16_224", **kwargs: Any) -> Any:
    torch.manual_seed(0)
    size = {} if "dynamic_img_size" in kwargs else {"img_size": kwargs.pop("img_size", 64)}
    return timm.create_model(arch, num_classes=0, depth=2, **size, **kwargs)


class TinyCNN(nn.Module):
    """A classifier in training mode whose pieces tell if they were touched."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 5, 3, stride=2)
        self.norm = nn.BatchNorm2d(5).eval()  # a frozen one
        self.relu = nn.ReLU(inplace=inplace)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        features = self.relu(self.norm(self.conv(x))) ** 2
        return self.fc(self.drop(features.mean(dim=(2, 3))))


class PlainAttention(TorchFunctionMode):
    """Keeps the weights that timm's unfused attention makes by its softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is Tensor.softmax:
            self.weights.append(result)
        return result


def state_of(model: nn.Module) -> list[Any]:
    return [
        *[(module.training, len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()],
        *[(parameter.requires_grad, parameter.grad) for parameter in model.parameters()],
        *[getattr(module, "fused_attn", None) for module in model.modules()],
        *[getattr(module, "normalise_features", None) for module in model.modules()],
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
    ]


def assert_same_state(one: list[Any], two: list[Any]) -> None:
    assert one[:-1] == two[:-1]
    torch.testing.assert_close(one[-1], two[-1], rtol=0, atol=0)


@pytest.fixture
def images(rng: torch.Generator) -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=rng)


# --- attention


def test_attention_is_the_softmax_of_queries_and_keys(images: Tensor) -> None:
    vit = tiny_vit(qk_norm=True).eval()
    taken: list[Tensor] = []
    vit.blocks[-1].attn.register_forward_pre_hook(lambda _, args: taken.append(args[0]))
    with torch.no_grad():
        vit(images)
        attn, tokens = vit.blocks[-1].attn, taken[0]
        query, key = attn.qkv(tokens).chunk(3, dim=-1)[:2]
        expected = torch.zeros(2, attn.num_heads, 17, 17)
        for image in range(2):
            for head in range(attn.num_heads):
                mine = slice(head * attn.head_dim, (head + 1) * attn.head_dim)
                q, k = attn.q_norm(query[image, :, mine]), attn.k_norm(key[image, :, mine])
                for token in range(17):
                    row = (q[token] * k).sum(dim=1) / math.sqrt(attn.head_dim)
                    expected[image, head, token] = row.exp() / row.exp().sum()
    torch.testing.assert_close(attention_weights(vit, images), expected)
    assert expected.std() > 1e-3  # it could tell


@pytest.mark.parametrize(
    ("arch", "n_prefix"),
    [
        ("vit_tiny_patch16_224", 1),
        ("vit_small_patch14_reg4_dinov2", 5),
        ("deit_tiny_distilled_patch16_224", 2),
        ("vit_base_patch16_clip_quickgelu_224", 1),
        ("eva02_tiny_patch14_224", 1),
        ("vit_small_patch16_dinov3", 5),
        ("beit_base_patch16_224", 1),
        ("vit_small_patch16_rope_224", 1),
    ],
)
def test_attention_agrees_with_timm_unfused(arch: str, n_prefix: int, rng: torch.Generator) -> None:
    vit = tiny_vit(arch, img_size=56 if "patch14" in arch else 64).eval()
    images = torch.randn(2, 3, *vit.patch_embed.img_size, generator=rng)
    weights = attention_weights(vit, images)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:3]))

    plain = copy.deepcopy(vit)
    for module in plain.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    with torch.no_grad(), PlainAttention() as attention:
        plain(images)
    assert len(attention.weights) == 2
    torch.testing.assert_close(weights, attention.weights[-1])
    torch.testing.assert_close(attention_weights(plain, images), weights)  # unfused networks are shown as well

    maps = attention_map(vit, images)
    torch.testing.assert_close(maps, weights[:, :, 0, n_prefix:].mean(dim=1).reshape(2, 4, 4))
    per_head = attention_map(vit, images, per_head=True)
    assert per_head.shape == (2, weights.shape[1], 4, 4)
    torch.testing.assert_close(per_head.mean(dim=1), maps)


def test_without_a_class_token_the_pooling_is_shown(images: Tensor) -> None:
    vit = tiny_vit("vit_base_patch16_siglip_224").eval()
    plain = copy.deepcopy(vit)
    plain.attn_pool.fused_attn = False
    with torch.no_grad(), PlainAttention() as attention:
        plain(images)
    expected = attention.weights[-1]
    assert expected.shape == (2, 12, 1, 16)
    torch.testing.assert_close(attention_map(vit, images), expected.mean(dim=1).reshape(2, 4, 4))


def test_without_class_token_and_pooling_it_is_the_attention_received(images: Tensor) -> None:
    vit = tiny_vit(class_token=False, global_pool="avg")
    weights = attention_weights(vit, images)
    assert weights.shape == (2, 3, 16, 16)
    torch.testing.assert_close(attention_map(vit, images), weights.mean(dim=(1, 2)).reshape(2, 4, 4))


@pytest.fixture(scope="module")
def bright_seeker() -> Any:
    """A ViT whose class token attends to bright patches, and to nothing else."""
    vit: Any = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1, dynamic_img_size=True)
    with torch.no_grad():
        for parameter in [vit.pos_embed, vit.cls_token, *vit.patch_embed.parameters()]:
            parameter.zero_()
        vit.patch_embed.proj.weight[0] = 1.0  # channel 0 is the brightness of a patch
        attn = vit.blocks[0].attn
        attn.qkv.weight.zero_()
        attn.qkv.bias.zero_()
        for head in range(attn.num_heads):
            attn.qkv.bias[head * attn.head_dim] = 5.0  # the query asks ...
            attn.qkv.weight[192 + head * attn.head_dim, 0] = 5.0  # ... for channel 0 of the keys
    return vit


@pytest.mark.parametrize(("row", "column"), [(0, 0), (1, 3), (2, 0)])
@pytest.mark.parametrize("kind", ["numpy", "pillow"])
def test_the_drawing_is_hot_where_attention_goes(kind: str, row: int, column: int, bright_seeker: Any) -> None:
    pixels = np.full((16 * 3 + 9, 16 * 4 + 7, 3), 60, dtype=np.uint8)
    patch = (slice(row * 16, row * 16 + 16), slice(column * 16, column * 16 + 16))
    pixels[patch] = 250
    drawn = vis_vit(bright_seeker, Image.fromarray(pixels) if kind == "pillow" else pixels)
    assert isinstance(drawn, Image.Image if kind == "pillow" else np.ndarray)
    drawn = np.asarray(drawn).astype(int)
    assert drawn.shape == pixels.shape
    centre = row * 16 + 8, column * 16 + 8
    red, _, blue = drawn[centre]
    assert red > blue + 50  # hot
    cold = np.ones(pixels.shape[:2], dtype=bool)
    cold[max(row * 16 - 16, 0) : row * 16 + 32, max(column * 16 - 16, 0) : column * 16 + 32] = False
    assert (drawn[cold][:, 0] - drawn[cold][:, 2] <= 0).all()


def test_attention_is_drawn_at_any_size_and_brightness(bright_seeker: Any, rng: torch.Generator) -> None:
    for size in [(16, 16), (17, 31), (50, 70)]:
        for level in (0, 255):
            drawn = vis_vit(bright_seeker, np.full((*size, 3), level, dtype=np.uint8))
            assert drawn.shape == (*size, 3)
            assert drawn.dtype == np.uint8
    with pytest.raises(ValueError, match="at least one patch, 16 x 16 pixels .* got \\(1, 3, 15, 40\\)"):
        vis_vit(bright_seeker, np.zeros((15, 40, 3), dtype=np.uint8))


def test_a_network_of_one_size_gets_images_of_it(rng: torch.Generator) -> None:
    vit = tiny_vit(img_size=64)
    assert vit.patch_embed.strict_img_size
    assert vis_vit(vit, np.zeros((50, 200, 3), dtype=np.uint8)).shape == (50, 200, 3)
    big = torch.randn(1, 3, 128, 128, generator=rng)
    small = F.interpolate(big, (64, 64), mode="bicubic", antialias=True)
    torch.testing.assert_close(attention_map(vit, big), attention_map(vit, small))


@pytest.mark.parametrize(
    ("arch", "kwargs", "message"),
    [
        ("resnet10t", {}, "Attention maps need a vision transformer, got ResNet"),
        ("cait_xxs24_224", {"img_size": 32, "depth": 1}, "does so 0 times"),
    ],
)
def test_other_kinds_of_attention_are_refused(arch: str, kwargs: dict[str, Any], message: str) -> None:
    model = timm.create_model(arch, num_classes=0, **kwargs)
    with pytest.raises(ValueError, match=message):
        attention_map(model, torch.zeros(1, 3, 32, 32))
    assert_same_state(state_of(model), state_of(copy.deepcopy(model)))


# --- Grad-CAM


def grad_cam_by_definition(features: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
    """Of the feature map of one image; by float64 central differences instead of gradients."""
    features = features.double()
    channels, rows, columns = features.shape
    weights, step = [], 1e-5
    for channel in range(channels):
        total = 0.0
        for row in range(rows):
            for column in range(columns):
                more, less = features.clone(), features.clone()
                more[channel, row, column] += step
                less[channel, row, column] -= step
                total += float(score(more) - score(less)) / (2 * step)
        weights.append(total / (rows * columns))
    cam = torch.zeros(rows, columns)
    for row in range(rows):
        for column in range(columns):
            value = sum(weights[channel] * float(features[channel, row, column]) for channel in range(channels))
            cam[row, column] = max(value, 0.0)
    return cam


TARGETS: list[Any] = [None, torch.tensor([[1.0, -2.0, 0.5, 1.0]]), lambda outputs: outputs.norm(dim=1)]


@pytest.mark.parametrize("target", TARGETS, ids=["class", "embeddings", "function"])
def test_grad_cam_follows_the_definition(target: Any, rng: torch.Generator) -> None:
    model, images = TinyCNN(), 3 * torch.randn(2, 3, 9, 11, generator=rng)
    double = copy.deepcopy(model).double().eval()
    features = F.relu(model.norm(model.conv(images))).detach()
    label = double(images.double()).argmax(dim=1)

    def score(one: Tensor, image: int) -> Tensor:
        outputs = double.fc((one**2).mean(dim=(1, 2)))
        if target is None:
            return outputs[label[image]]
        if isinstance(target, Tensor):
            return (outputs @ target[0].double()) / outputs.norm() / target.norm()
        return outputs.norm()

    with torch.no_grad():
        expected = [grad_cam_by_definition(features[i], lambda one, i=i: score(one, i)) for i in range(2)]
    assert all((cam > 0.01).any() for cam in expected)
    assert any((cam == 0).any() for cam in expected)
    torch.testing.assert_close(grad_cam(model, model.relu, images, target), torch.stack(expected), rtol=1e-4, atol=1e-6)


@pytest.fixture(params=["plain", "no_grad", "inference_mode"])
def surroundings(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.param == "plain":
        yield
    else:
        with getattr(torch, request.param)():
            yield


def test_pictures_work_anywhere_and_leave_nothing(surroundings: None, rng: torch.Generator) -> None:
    with torch.inference_mode(False):
        model = TinyCNN(inplace=True)
        model.conv.weight.requires_grad_(False)
        vit = ViTExtractor(None, arch="vits16", normalise_features=True)
        vit.model.blocks = vit.model.blocks[-1:]  # pyright: ignore[reportIndexIssue]
        vit.model.blocks[0].eval()  # pyright: ignore[reportIndexIssue]
        cnn = TimmExtractor(None, arch="resnet10t", normalise_features=True)
        before = [state_of(each) for each in (model, vit, cnn)]
    images = torch.randn(1, 3, 33, 40, generator=rng)
    expected = grad_cam(model, model.relu, images)
    assert torch.equal(grad_cam(model, model.norm, images).isnan(), torch.zeros(1, 16, 19, dtype=torch.bool))
    with torch.inference_mode(False), torch.enable_grad():
        assert torch.equal(grad_cam(model, model.relu, images.clone()), expected)
    assert not expected.requires_grad
    assert not attention_map(vit, images).requires_grad
    pixels = np.zeros((33, 40, 3), dtype=np.uint8)
    vis_vit(vit, pixels)
    draw_gradcam(cnn, pixels, pixels)
    draw_similarity(cnn, pixels, pixels)
    similarity_map(vit, images, images)
    with pytest.raises(ZeroDivisionError):
        grad_cam(model, model.relu, images, lambda outputs: outputs * (1 / 0))
    for each, old in zip((model, vit, cnn), before, strict=True):
        assert_same_state(old, state_of(each))


def test_grad_cam_says_what_is_wrong(rng: torch.Generator) -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.head = TinyCNN(), nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                embeddings = self.model(x)
            return self.head(embeddings)

    frozen, images = Frozen(), torch.randn(1, 3, 9, 9, generator=rng)
    for frozen.head in (nn.Identity(), nn.Linear(4, 2)):  # a head that learns does not help
        with pytest.raises(ValueError, match="Frozen computes it without gradients"):
            grad_cam(frozen, frozen.model.relu, images)
    with pytest.raises(ValueError, match=r"the one of Linear is \(1, 4\)"):
        grad_cam(frozen.model, frozen.model.fc, images)
    with pytest.raises(ValueError, match="of the type Conv2d, ran 0 times"):
        grad_cam(frozen.model, nn.Conv2d(3, 3, 3), images)
    with pytest.raises(ValueError, match="Frozen holds no network of timm"):
        grad_cam(frozen, None, images)
    with pytest.raises(ValueError, match="VisionTransformer ends in no feature map"):
        grad_cam(tiny_vit(), None, torch.zeros(1, 3, 64, 64))


def test_a_frozen_backbone_is_shown_as_one_that_learns(rng: torch.Generator) -> None:
    extractor = ExtractorWithMLP(TimmExtractor(None, arch="test_resnet"), [8])
    images = torch.randn(1, 3, 64, 64, generator=rng)
    cam = grad_cam(extractor, None, images)
    assert not extractor.train_backbone
    extractor.unfreeze()
    assert torch.equal(grad_cam(extractor, None, images), cam)


@pytest.mark.parametrize(
    ("arch", "name"),
    [
        ("resnet10t", "layer4"),
        ("efficientnet_lite0", "bn2"),
        ("mobilenetv3_small_050", "blocks"),
        ("convnext_atto", "norm_pre"),
        ("swin_tiny_patch4_window7_224", "norm"),
    ],
)
def test_the_last_feature_map_is_what_is_pooled(arch: str, name: str, rng: torch.Generator) -> None:
    torch.manual_seed(0)
    model: Any = timm.create_model(arch, num_classes=6, **({"img_size": 64} if "swin" in arch else {})).eval()
    images = torch.randn(1, 3, 64, 64, generator=rng)
    features = model.forward_features(images).detach().requires_grad_()
    score = model.forward_head(features).amax()
    (gradient,) = torch.autograd.grad(score, features)
    positions, channels = ((1, 2), 3) if "swin" in arch else ((2, 3), 1)
    expected = (gradient.mean(dim=positions, keepdim=True) * features.detach()).sum(dim=channels).relu()
    assert expected.amax() > 0
    assert torch.equal(grad_cam(model, model.get_submodule(name), images), expected)
    torch.testing.assert_close(grad_cam(model, None, images), expected)


def test_grad_cam_of_torchvision(rng: torch.Generator) -> None:
    from torchvision.models import resnet18

    model, images = resnet18(num_classes=4), torch.randn(1, 3, 64, 96, generator=rng)
    cam = grad_cam(model, None, images)
    assert cam.shape == (1, 2, 3)
    assert torch.equal(cam, grad_cam(model, model.layer4[-1], images))
    cells = similarity_map(model, images, images)
    assert cells.query_grid == cells.gallery_grid == (2, 3)
    torch.testing.assert_close(cells.similarities.diagonal(), torch.ones(6))


@pytest.fixture(scope="module")
def classifier() -> nn.Module:
    from oml.models.efficientnet_lite0 import packaged_efficientnet_lite0

    return packaged_efficientnet_lite0()


@pytest.fixture(scope="module")
def photos() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_sample_image

    return load_sample_image("china.jpg"), load_sample_image("flower.jpg")


LITE = {"mean": (127 / 255,) * 3, "std": (128 / 255,) * 3}


@pytest.mark.slow
def test_grad_cam_finds_the_dahlia(classifier: nn.Module, photos: tuple[np.ndarray, np.ndarray]) -> None:
    """Its blossom is the circle about (310, 225) of radius 135; all else is out of focus."""
    image = (torch.from_numpy(photos[1].copy()).permute(2, 0, 1)[None] / 255 - 127 / 255) / (128 / 255)
    cam = grad_cam(classifier, None, image)[0]
    assert cam.shape == (14, 20)
    y, x = torch.arange(14)[:, None] * 32 + 16, torch.arange(20) * 32 + 16
    blossom = (x - 310) ** 2 + (y - 225) ** 2 < 135**2
    assert cam[blossom].mean() > 4 * cam[~blossom].mean()
    drawn = draw_gradcam(classifier, photos[1], **LITE).astype(int) - photos[1]
    assert np.array_equal(
        drawn, draw_gradcam(classifier, photos[1], lambda x: x.amax(dim=1), **LITE) - photos[1].astype(int)
    )
    assert drawn[..., 2][:, 450:].mean() > 0 > drawn[..., 2][200:250, 250:400].mean()  # blue is cold


def test_both_kinds_of_images_give_the_same_pixels(
    classifier: nn.Module, photos: tuple[np.ndarray, np.ndarray], bright_seeker: Any
) -> None:
    image = photos[0][:100, :130]
    for draw in (lambda picture: draw_gradcam(classifier, picture), lambda picture: vis_vit(bright_seeker, picture)):
        drawn = draw(Image.fromarray(image))
        assert isinstance(drawn, Image.Image)
        assert drawn.size == (130, 100)
        assert np.array_equal(np.asarray(drawn), draw(image))
        assert np.array_equal(image, photos[0][:100, :130])  # what was drawn on is as it was


def test_pictures_are_drawn_on_images_only(classifier: nn.Module) -> None:
    for draw in (draw_gradcam, vis_vit):
        draw = unwrap(draw)
        with pytest.raises(TypeError, match="on a numpy array or an image of PIL, got list"):
            draw(classifier, [[0]])
        with pytest.raises(ValueError, match=r"uint8 and of shape \(height, width, 3\), got float32 and \(4, 4, 3\)"):
            draw(classifier, np.zeros((4, 4, 3), dtype=np.float32))
    grey = Image.new("L", (64, 40))
    assert draw_gradcam(classifier, grey).size == (64, 40)


# --- similarity


def test_similarities_are_cosines_of_patches(rng: torch.Generator) -> None:
    vit = tiny_vit("vit_small_patch14_reg4_dinov2", dynamic_img_size=True).eval()
    one, two = torch.randn(1, 3, 30, 45, generator=rng), torch.randn(1, 3, 28, 28, generator=rng)
    found = similarity_map(vit, one, two)
    assert (found.query_grid, found.gallery_grid) == ((2, 3), (2, 2))
    with torch.no_grad():
        ours, theirs = vit.forward_features(one[..., :28, :42])[0, 5:], vit.forward_features(two)[0, 5:]
    for i in range(6):
        for j in range(4):
            expected = (ours[i] @ theirs[j]) / ours[i].norm() / theirs[j].norm()
            torch.testing.assert_close(found.similarities[i, j], expected)
    with pytest.raises(ValueError, match="needs one image each, got 2 queries and 1 galleries"):
        unwrap(similarity_map)(vit, one.expand(2, -1, -1, -1), two)


def test_mutual_neighbours_by_definition(rng: torch.Generator) -> None:
    vit = tiny_vit(dynamic_img_size=True)
    one, two = torch.randn(2, 1, 3, 80, 80, generator=rng)
    found = similarity_map(vit, one, two)
    table = found.similarities.tolist()
    mutual = [
        (table[i][j], i, j)
        for i in range(25)
        for j in range(25)
        if table[i][j] == max(table[i]) and table[i][j] == max(row[j] for row in table)
    ]
    expected = [[i, j] for _, i, j in sorted(mutual, reverse=True)]
    assert len(expected) > 2
    assert found.mutual_neighbours(100).tolist() == expected
    assert found.mutual_neighbours(2).tolist() == expected[:2]


def test_a_moved_patch_is_found_again(bright_seeker: Any) -> None:
    """The network without position embeddings knows a patch by its look."""
    vit = copy.deepcopy(bright_seeker)
    torch.manual_seed(0)
    nn.init.normal_(vit.patch_embed.proj.weight, std=0.05)
    query, gallery = (np.full((64, 96, 3), 90, dtype=np.uint8) for _ in range(2))
    pattern = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    query[16:32, 64:80], gallery[48:64, 0:16] = pattern, pattern  # patches 10 and 18 of 4 x 6
    figure = draw_similarity(vit, query, gallery, point=(70, 20))
    left, right = (np.asarray(axes.get_images()[0].get_array()).astype(int) for axes in figure.axes[:2])
    assert np.array_equal(left, query)
    assert right[56, 8, 0] - pattern[8, 8, 0] - right[56, 8, 2] + pattern[8, 8, 2] > 60  # hot
    assert (right[:24, 40:, 2] >= right[:24, 40:, 0]).all()  # cold

    figure = draw_similarity(vit, query, gallery, n_lines=3)
    lines = figure.artists
    assert 1 <= len(lines) <= 3
    ends = {(tuple(line.xy1), tuple(line.xy2)) for line in lines}  # pyright: ignore[reportAttributeAccessIssue]
    assert ((72.0, 24.0), (8.0, 56.0)) in ends
    with pytest.raises(ValueError, match=r"inside of 96 x 64 pixels, got \(96, 0\)"):
        draw_similarity(vit, query, gallery, point=(96, 0))


# --- anywhere


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_images_go_where_the_model_is(dtype: torch.dtype, bright_seeker: Any) -> None:
    """Inputs are made on the device and in the precision of the parameters."""
    vit, cnn = copy.deepcopy(bright_seeker).to(dtype), TimmExtractor(None, arch="resnet10t").to(dtype)
    seen: list[tuple[torch.dtype, torch.device]] = []
    for each in (vit, cnn):
        each.register_forward_pre_hook(lambda _, args: seen.append((args[0].dtype, args[0].device)))
    pixels = np.random.default_rng(0).integers(0, 255, (40, 64, 3), dtype=np.uint8)
    assert vis_vit(vit, pixels).shape == draw_gradcam(cnn, pixels, pixels).shape == pixels.shape
    draw_similarity(vit, pixels, pixels)
    assert len(seen) >= 3
    assert set(seen) == {(dtype, torch.device("cpu"))}


def test_compiled_and_checkpointed_models_are_shown_too(rng: torch.Generator) -> None:
    vit, images = tiny_vit(dynamic_img_size=True), torch.randn(1, 3, 32, 48, generator=rng)
    plain = attention_map(vit, images)
    vit.set_grad_checkpointing()
    vit.compile(backend="eager")
    vit(images)
    torch.testing.assert_close(attention_map(vit, images), plain)
    cnn = TinyCNN()
    plain = grad_cam(cnn, cnn.relu, images)
    cnn.compile(backend="eager")
    cnn(images)
    torch.testing.assert_close(grad_cam(cnn, cnn.relu, images), plain)


def test_extractors_are_as_good_as_their_networks(images: Tensor) -> None:
    extractor: IExtractor = ViTExtractor(None, arch="vits16", normalise_features=True)
    torch.testing.assert_close(attention_map(extractor, images), attention_map(extractor.model, images))  # pyright: ignore[reportArgumentType]
