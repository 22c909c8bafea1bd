"""The ViTs of DINO, CLIP and Unicom; test_golden.py compares them with the originals."""

import math
import re
import warnings
from collections.abc import Callable
from inspect import unwrap
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oml.interfaces.models import IExtractor
from oml.models import ViTCLIPExtractor, ViTExtractor, ViTUnicomExtractor
from oml.models.utils import VIT_SIZES, load_weights


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small networks in place of the small and base ones; the heads differ from all other numbers."""
    monkeypatch.setitem(VIT_SIZES, "s", {"embed_dim": 24, "depth": 2, "num_heads": 3})
    monkeypatch.setitem(VIT_SIZES, "b", {"embed_dim": 24, "depth": 3, "num_heads": 2})
    torch.manual_seed(0)


def dino(**args: Any) -> ViTExtractor:
    return ViTExtractor(**{"weights": None, "arch": "vits16", "normalise_features": False, **args}).eval()


def clip(**args: Any) -> ViTCLIPExtractor:
    return ViTCLIPExtractor(**{"weights": None, "arch": "vitb32_224", "normalise_features": False, **args}).eval()


def unicom(**args: Any) -> ViTUnicomExtractor:
    return ViTUnicomExtractor(**{"weights": None, "arch": "vitb32_unicom", "normalise_features": False, **args}).eval()


def images(*size: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, *(size or (224, 224)), generator=torch.Generator().manual_seed(1))


def mapped(state: dict[str, Tensor], rename: Callable[[str], str]) -> dict[str, Tensor]:
    return {rename(name): tensor for name, tensor in state.items()}


every = pytest.mark.parametrize("make", [dino, clip, unicom])


# What all have in common


@every
@torch.no_grad()
def test_embeddings(make: Callable[..., IExtractor]) -> None:
    extractor, x = make(), images()
    embeddings = extractor(x)
    assert embeddings.shape == (2, extractor.feat_dim)
    assert (embeddings[0] - embeddings[1]).abs().max() > 1e-3
    unit = make(normalise_features=True)
    unit.load_state_dict(extractor.state_dict())
    torch.testing.assert_close(unit(x), F.normalize(embeddings))
    assert not torch.equal(unit(x), embeddings)


@every
@pytest.mark.parametrize("prefix", ["", "model.", "model.model.extractor."])
def test_what_is_saved_loads_again(make: Callable[..., IExtractor], prefix: str, tmp_path: Path) -> None:
    extractor = make()
    state = mapped(extractor.state_dict(), lambda name: prefix + name)
    torch.save({"state_dict": {**state, "criterion.weight": torch.ones(3, 512)}}, tmp_path / "last.ckpt")
    loaded = make(weights=tmp_path / "last.ckpt")
    torch.testing.assert_close(loaded.state_dict(), extractor.state_dict(), rtol=0, atol=0)


@every
def test_bad_images(make: Callable[..., IExtractor]) -> None:
    extractor = make()
    forward = unwrap(type(extractor).forward)
    who = type(extractor).__name__
    with pytest.raises(TypeError, match=f"{who} needs images of normalised floating-point numbers, got torch.uint8"):
        forward(extractor, torch.zeros(1, 3, 224, 224, dtype=torch.uint8))
    with pytest.raises(ValueError, match=rf"{who} needs images of shape .* got \(3, 224, 224\): one image without"):
        forward(extractor, torch.zeros(3, 224, 224))


@every
@torch.no_grad()
def test_half_precision(make: Callable[..., IExtractor]) -> None:
    extractor, x = make(), images()
    expected = extractor(x)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = extractor(x)
    half = extractor.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    for embeddings in (mixed, half):
        assert not torch.equal(embeddings.float(), expected)
        assert F.cosine_similarity(embeddings.float(), expected).min() > 0.999


@every
def test_checkpointing_gradients_changes_none(make: Callable[..., IExtractor], monkeypatch: pytest.MonkeyPatch) -> None:
    extractor, x = make().train(), images()
    module: Any = getattr(extractor, "visual", None) or extractor.model
    calls: list[None] = []
    module.blocks[0].register_forward_pre_hook(lambda *_: calls.append(None))

    def step() -> list[Tensor]:
        torch.manual_seed(3)  # of stochastic depth
        extractor.zero_grad()
        extractor(x).pow(2).sum().backward()
        return [parameter.grad.clone() for parameter in extractor.parameters() if parameter.grad is not None]

    plain = step()
    assert len(calls) == 1
    module.set_grad_checkpointing()
    torch.testing.assert_close(step(), plain)
    assert len(calls) == 3  # one more for the first step's pass, and one anew in the backward pass


@pytest.mark.slow
@every
def test_compiled(make: Callable[..., IExtractor]) -> None:
    """The network alone: tests check the types of what extractors take, which compilers cannot follow."""
    extractor = make()
    network = getattr(extractor, "visual", None) or extractor.model
    torch.compiler.reset()
    compiled = torch.compile(network, backend="aot_eager")
    with torch.no_grad():
        for x in (images(), images(64, 96)) if make is not unicom else (images(),):
            torch.testing.assert_close(compiled(x), network(x))
    compiled(images()).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    torch.compiler.reset()


@every
def test_exported(make: Callable[..., IExtractor]) -> None:
    extractor, x = make(normalise_features=True), images(batch=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(
            extractor, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},), strict=False
        )
        module = program.module()
    torch.testing.assert_close(module(images(batch=5)), extractor(images(batch=5)))


@pytest.mark.parametrize(
    ("make", "error"), [(dino, ValueError), (clip, KeyError), (unicom, ValueError)], ids=["dino", "clip", "unicom"]
)
def test_unknown_architectures(make: Callable[..., IExtractor], error: type[Exception]) -> None:
    near = make().arch  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(error, match=f"{type(make()).__name__} has no architecture '{near}x', did you mean '{near}'"):
        make(arch=f"{near}x")


@pytest.mark.parametrize("extractor", [ViTExtractor, ViTCLIPExtractor, ViTUnicomExtractor])
def test_names_of_the_zoo_are_built(extractor: type[IExtractor]) -> None:
    assert extractor.pretrained_models
    for entry in extractor.pretrained_models.values():
        args = entry["init_args"]
        assert args["arch"] in extractor.constructors  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(KeyError, match="did you mean"):
        extractor.from_pretrained(f"{next(iter(extractor.pretrained_models))}0")


@pytest.mark.parametrize(
    ("arch", "width", "depth", "heads", "tokens", "feat_dim"),
    [
        ("vits8", 384, 12, 6, 785, 384),
        ("vits16", 384, 12, 6, 197, 384),
        ("vitb8", 768, 12, 12, 785, 768),
        ("vitb16", 768, 12, 12, 197, 768),
        ("vitb16_224", 768, 12, 12, 197, 512),
        ("vitb32_224", 768, 12, 12, 50, 512),
        ("vitl14_224", 1024, 24, 16, 257, 768),
        ("vitl14_336", 1024, 24, 16, 577, 768),
        ("vitb32_unicom", 768, 12, 12, 49, 512),
        ("vitb16_unicom", 768, 12, 12, 196, 768),
        ("vitl14_unicom", 1024, 24, 16, 256, 768),
        ("vitl14_336px_unicom", 1024, 24, 16, 576, 768),
    ],
)
def test_sizes(
    arch: str, width: int, depth: int, heads: int, tokens: int, feat_dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    kind = ViTUnicomExtractor if "unicom" in arch else ViTCLIPExtractor if "_" in arch else ViTExtractor
    with torch.device("meta"):
        extractor = kind(None, arch, normalise_features=False)
    module: Any = getattr(extractor, "visual", None) or extractor.model
    assert module.pos_embed.shape == (1, tokens, width)
    assert len(module.blocks) == depth
    assert module.blocks[0].attn.num_heads == heads
    assert module.blocks[0].mlp.fc1.out_features == 4 * width
    assert extractor.feat_dim == feat_dim


# DINO


def cubic(x: float) -> float:
    """The kernel of Keys 1981 with a = -3/4."""
    x, a = abs(x), -0.75
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def interpolation(new: int, old: int) -> Tensor:
    """The weight of each of the old positions in each of the new, along an axis: scaled by (new + 0.1) / old."""
    weights = torch.zeros(new, old, dtype=torch.float64)
    for i in range(new):
        source = (i + 0.5) / ((new + 0.1) / old) - 0.5
        for j in range(math.floor(source) - 1, math.floor(source) + 3):
            weights[i, min(max(j, 0), old - 1)] += cubic(source - j)
    return weights


@torch.no_grad()
@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (13, 14), (14, 15), (20, 20), (7, 28), (28, 7), (30, 5)], ids=str)
def test_positions_are_interpolated_as_dino_does(grid: tuple[int, int]) -> None:
    """The first tokens that the blocks see, of an image that is 0: the sums of biases and position embeddings."""
    extractor = dino()
    model: Any = extractor.model
    seen: list[Tensor] = []
    model.blocks.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    extractor(torch.zeros(1, 3, 16 * grid[0], 16 * grid[1]))
    table = model.pos_embed[0, 1:].reshape(14, 14, -1).double()
    rows, columns = interpolation(grid[0], 14), interpolation(grid[1], 14)
    expected = torch.einsum("ai,bj,ijd->abd", rows, columns, table).flatten(0, 1).float()
    torch.testing.assert_close(seen[0][0, 1:] - model.patch_embed.proj.bias, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(seen[0][0, 0], model.pos_embed[0, 0] + model.cls_token[0, 0])
    assert expected.std() > 0.005


@torch.no_grad()
def test_dino_of_the_usual_size_is_timms() -> None:
    extractor = dino()
    args = {"embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 0, "patch_size": 16}
    reference = timm.models.VisionTransformer(**args).eval()
    reference.load_state_dict(extractor.model.state_dict())
    assert torch.equal(extractor(images()), reference(images()))
    again = ViTExtractor(None, "vits16", normalise_features=False)
    assert 0.01 < again.model.cls_token.std() < 0.04  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]


@torch.no_grad()
@pytest.mark.parametrize("make", [dino, clip])
@pytest.mark.parametrize("size", [(32, 32), (64, 96), (75, 40), (240, 255)], ids=str)
def test_pixels_beyond_the_last_patch_do_not_count(make: Callable[..., Any], size: tuple[int, int]) -> None:
    extractor, x = make(), images(*size)
    embeddings = extractor(x)
    height, width = (side // extractor.patch_size * extractor.patch_size for side in size)
    assert torch.equal(extractor(x[..., :height, :width].contiguous()), embeddings)
    with pytest.raises(ValueError, match=rf"at least one patch, {extractor.patch_size} x .* got \(1, 3, 7, 64\)"):
        extractor(torch.zeros(1, 3, 7, 64))


def test_no_images_have_no_embeddings() -> None:
    assert dino()(images(batch=0)).shape == (0, 24)


@torch.no_grad()
def test_multi_scale_averages() -> None:
    extractor, x = dino(), images(64, 96)
    several = dino(use_multi_scale=True)
    several.load_state_dict(extractor.state_dict())
    assert (several.mscale, extractor.mscale) == (True, False)
    scaled = [x, *(F.interpolate(x, scale_factor=scale, mode="bilinear") for scale in (2**-0.5, 0.5))]
    assert [tuple(image.shape[2:]) for image in scaled] == [(64, 96), (45, 67), (32, 48)]
    expected = torch.stack([extractor(image) for image in scaled]).mean(dim=0)
    torch.testing.assert_close(several(x), expected)
    several.normalise_features = True
    torch.testing.assert_close(several(x), F.normalize(expected))


# CLIP


class OpenAIBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
        self.mlp.add_module("c_proj", nn.Linear(4 * width, width))
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        y = self.mlp.c_fc(self.ln_2(x))
        return x + self.mlp.c_proj(y * torch.sigmoid(1.702 * y))


class OpenAIVisual(nn.Module):
    """Visual transformer of CLIP by its description, with OpenAI's names."""

    def __init__(self, patch: int = 32, width: int = 24, depth: int = 3, heads: int = 2, dim: int = 512) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn((224 // patch) ** 2 + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.Sequential(*(OpenAIBlock(width, heads) for _ in range(depth)))
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.randn(width, dim))
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                nn.init.normal_(module.weight, 1, 0.1)
                nn.init.normal_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(x.shape[0], 1, -1), x], dim=1)
        x = self.transformer.resblocks(self.ln_pre(x + self.positional_embedding))
        return self.ln_post(x[:, 0]) @ self.proj


class OpenAI(nn.Module):
    """Both towers; that of texts has names that look like those of images."""

    def __init__(self) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(77, 16))
        self.text_projection = nn.Parameter(torch.randn(16, 512))
        self.visual = OpenAIVisual()
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.Sequential(OpenAIBlock(16, 2))
        self.ln_final = nn.LayerNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        return self.visual(x)


@torch.no_grad()
@pytest.mark.parametrize("wrap", ["visual alone", "both towers", "Lightning", "TorchScript"])
def test_clip_reads_openais_files(wrap: str, tmp_path: Path) -> None:
    original = OpenAI().eval()
    file = tmp_path / "clip.pt"
    if wrap == "visual alone":
        torch.save(original.visual.state_dict(), file)
    elif wrap == "both towers":
        torch.save(original.state_dict(), file)
    elif wrap == "Lightning":
        state = mapped(original.visual.state_dict(), "model.visual.{}".format)
        torch.save({"state_dict": {**state, "criterion.weight": torch.ones(3, 512)}}, file)
    else:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`torch.jit")
            torch.jit.trace(original, images()).save(file)
    expected = original(images())
    torch.testing.assert_close(clip(weights=file)(images()), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(clip(weights=file, normalise_features=True)(images()), F.normalize(expected))


@torch.no_grad()
def test_openais_names_are_read_within_other_models(tmp_path: Path) -> None:
    original, head = OpenAIVisual(), nn.Linear(512, 4)
    whole = nn.ModuleDict({"extractor": nn.ModuleDict({"visual": original}), "projection": head})
    torch.save(whole.state_dict(), tmp_path / "weights.ckpt")
    ours = nn.ModuleDict({"extractor": clip(), "projection": nn.Linear(512, 4)})
    load_weights(ours, tmp_path / "weights.ckpt")
    torch.testing.assert_close(ours["extractor"](images()), original(images()), rtol=1e-4, atol=1e-4)
    assert torch.equal(ours["projection"].weight, head.weight)  # pyright: ignore[reportArgumentType]


def test_clip_normalises_by_default() -> None:
    assert ViTCLIPExtractor(None, "vitb32_224").normalise_features


@torch.no_grad()
def test_norms_of_clip_are_in_float32(tmp_path: Path) -> None:
    extractor = clip()
    model: Any = extractor.visual
    x = 100 + torch.randn(4, 24)
    expected = model.norm(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.norm(x), expected)
    model.bfloat16()
    kinds = {type(module).__name__ for module in model.modules() if "Norm" in type(module).__name__}
    assert kinds == {"LayerNormFp32"}


@torch.no_grad()
def test_clip_resamples_positions(tmp_path: Path) -> None:
    """A picture twice as large is seen about the same: with positions that are not resampled it would not be."""
    extractor = clip()
    nn.init.normal_(extractor.visual.pos_embed)  # pyright: ignore[reportArgumentType]
    assert torch.isfinite(extractor(images(96, 320))).all()
    resampled = timm.layers.resample_abs_pos_embed(extractor.visual.pos_embed, [3, 10], [7, 7])  # pyright: ignore[reportArgumentType]
    seen: list[Tensor] = []
    extractor.visual.norm_pre.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))  # pyright: ignore
    extractor(torch.zeros(1, 3, 96, 320))
    torch.testing.assert_close(seen[0][:, 1:], resampled[:, 1:])


# Unicom


class Unicom(nn.Module):
    """Unicom by its description, on the weights of ours, in loops."""

    def __init__(self, weights: dict[str, Tensor], heads: int, patch: int) -> None:
        super().__init__()
        self.w, self.heads, self.patch = weights, heads, patch

    def norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.w[f"{name}.weight"], self.w[f"{name}.bias"], eps=1e-5)

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.w[f"{name}.weight"].T + self.w.get(f"{name}.bias", torch.zeros(()))

    def batch_norm(self, x: Tensor, name: str) -> Tensor:
        mean, var = self.w[f"{name}.running_mean"], self.w[f"{name}.running_var"]
        return (x - mean) / torch.sqrt(var + 2e-5) * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def forward(self, x: Tensor) -> Tensor:
        w, name = self.w, "patch_embed.proj"
        x = F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], stride=self.patch).flatten(2).mT + w["pos_embed"]
        for i in range(3):
            y = self.linear(self.norm(x, f"blocks.{i}.norm1"), f"blocks.{i}.attn.qkv")
            heads = []
            for q, k, v in zip(*(part.chunk(self.heads, dim=-1) for part in y.chunk(3, dim=-1)), strict=True):
                heads.append((q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1) @ v)
            x = x + self.linear(torch.cat(heads, dim=-1), f"blocks.{i}.attn.proj")
            y = self.linear(self.norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1").clamp(0, 6)
            x = x + self.linear(y, f"blocks.{i}.mlp.fc2")
        x = self.batch_norm(self.linear(self.norm(x, "norm").flatten(1), "feature.0"), "feature.1")
        return self.batch_norm(self.linear(x, "feature.2"), "feature.3")


@torch.no_grad()
def test_unicom_by_its_description(tmp_path: Path) -> None:
    extractor = unicom()
    for name, tensor in extractor.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(
                torch.rand(tensor.shape) + 0.5 if "norm" in name or ".var" in name else torch.randn(tensor.shape)
            )
    for index in (1, 3):
        extractor.model.feature[index].running_var.uniform_(1e-5, 1)  # pyright: ignore
    expected = Unicom(extractor.model.state_dict(), heads=2, patch=32)(images())
    torch.testing.assert_close(extractor(images()), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    state = {
        name: value.half() if value.is_floating_point() else value
        for name, value in extractor.model.state_dict().items()
    }
    torch.save(state, tmp_path / "FP16.pt")
    loaded = unicom(weights=tmp_path / "FP16.pt")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def test_unicom_takes_one_size() -> None:
    with pytest.raises(ValueError, match=re.escape("needs images of 224 x 224 pixels, got (1, 3, 256, 224): resize")):
        unicom()(torch.zeros(1, 3, 256, 224))


def test_unicom_checkpoints_gradients_in_training_only() -> None:
    extractor = unicom()
    extractor.model.set_grad_checkpointing()  # pyright: ignore[reportCallIssue]
    calls: list[None] = []
    extractor.model.blocks[0].register_forward_pre_hook(lambda *_: calls.append(None))  # pyright: ignore
    extractor(images()).sum().backward()
    assert len(calls) == 1
    extractor.train()(images()).sum().backward()
    assert len(calls) == 3


def test_stochastic_depth_of_unicom() -> None:
    rates = [getattr(block.drop_path1, "drop_prob", 0) for block in unicom().model.blocks]  # pyright: ignore
    assert rates == pytest.approx([0, 0.05, 0.1])
