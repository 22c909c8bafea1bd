"""Layers of extractors: their learning rates, freezing, gradient checkpointing, compiling."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from oml.interfaces.models import IExtractor
from oml.models import (
    ExtractorWithMLP,
    ResnetExtractor,
    TimmExtractor,
    ViTCLIPExtractor,
    ViTExtractor,
    ViTUnicomExtractor,
)
from oml.models.fine_tuning import find_backbone, freeze_below, layer_decay_groups, number_layers
from oml.models.utils import load_weights

EXTRACTORS: dict[str, Callable[[], IExtractor]] = {
    "vit": lambda: ViTExtractor(None, "vits16", normalise_features=False),
    "clip": lambda: ViTCLIPExtractor(None, "vitb32_224"),
    "unicom": lambda: ViTUnicomExtractor(None, "vitb32_unicom", normalise_features=True),
    "resnet": lambda: ResnetExtractor(None, "resnet18", gem_p=3, remove_fc=True, normalise_features=False),
    "resnet with fc": lambda: ResnetExtractor(None, "resnet50_projector", None, False, True),
    "mlp": lambda: ExtractorWithMLP(ViTExtractor(None, "vits16", normalise_features=False), [8, 4]),
    "timm": lambda: TimmExtractor(None, "resnet18", pooling="gem", learn_gem_p=True, embedding_dim=4, batch_norm=True),
    "siglip": lambda: TimmExtractor(None, "vit_base_patch16_siglip_224"),
    "dinov3": lambda: TimmExtractor(None, "vit_small_patch16_dinov3"),
    "lite": lambda: TimmExtractor(None, "efficientnet_lite0"),
    "convnext": lambda: TimmExtractor(None, "convnext_atto"),
    "swin": lambda: TimmExtractor(None, "swin_tiny_patch4_window7_224"),
}


def without_memory(make: Callable[[], IExtractor]) -> IExtractor:
    with torch.device("meta"):
        return make()


@pytest.mark.parametrize("make", EXTRACTORS.values(), ids=EXTRACTORS.keys())
def test_each_parameter_is_in_one_group(make: Callable[[], IExtractor]) -> None:
    extractor = without_memory(make)
    named = dict(extractor.named_parameters())
    untouched = list(named)[3]
    named.pop(untouched).requires_grad_(False)
    names = {id(parameter): name for name, parameter in named.items()}
    groups = layer_decay_groups(extractor, lr=1.0, layer_decay=0.5, weight_decay=0.1)

    grouped = [names[id(parameter)] for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(named)
    assert len({group["name"] for group in groups}) == len(groups)
    layers, head = number_layers(extractor)
    prefix, backbone = find_backbone(extractor)
    listed = backbone.no_weight_decay() if hasattr(backbone, "no_weight_decay") else set()  # pyright: ignore[reportCallIssue]
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert group["lr"] == 0.5 ** (head - layers[name])
            exempt = parameter.ndim < 2 or name.removeprefix(f"{prefix}.") in listed
            assert group["weight_decay"] == (0.0 if exempt else 0.1), name
    rates = [group["lr"] for group in groups]
    assert rates == sorted(rates, reverse=True)
    assert len(set(rates)) > 5
    torch.optim.AdamW(groups)


def test_rates_fall_from_the_head_to_the_stem() -> None:
    extractor = without_memory(EXTRACTORS["mlp"])
    groups = layer_decay_groups(extractor, lr=0.1, layer_decay=0.75, weight_decay=0.05)
    rates = {id(parameter): (group["lr"], group["weight_decay"]) for group in groups for parameter in group["params"]}
    got = {name: rates[id(parameter)] for name, parameter in extractor.named_parameters()}
    assert got["projection.0.weight"] == (0.1, 0.05)
    assert got["projection.3.bias"] == (0.1, 0.0)
    assert got["extractor.model.norm.weight"] == (0.1 * 0.75, 0.0)
    for block in range(12):
        assert got[f"extractor.model.blocks.{block}.attn.qkv.weight"] == (0.1 * 0.75 ** (12 - block), 0.05)
    for name in ("cls_token", "pos_embed", "patch_embed.proj.bias"):
        assert got[f"extractor.model.{name}"] == (0.1 * 0.75**13, 0.0)
    assert got["extractor.model.patch_embed.proj.weight"] == (0.1 * 0.75**13, 0.05)


def test_layers_of_a_resnet() -> None:
    layers, head = number_layers(without_memory(EXTRACTORS["resnet with fc"]))
    blocks = [f"model.layer{stage}.{i}" for stage, n in ((1, 3), (2, 4), (3, 6), (4, 3)) for i in range(n)]
    assert head == 17
    assert layers["model.bn1.running_mean"] == layers["model.conv1.weight"] == 0
    assert [layers[f"{block}.conv2.weight"] for block in blocks] == list(range(1, 17))
    assert {layers[name] for name in layers if name.startswith("model.fc.")} == {17}


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("vit", set()),
        ("unicom", {"feature"}),
        ("siglip", {"attn_pool"}),
        ("convnext", {"head"}),
        ("timm", {"gem", "head"}),
    ],
)
def test_the_head_is_what_is_new_or_pools(kind: str, names: set[str]) -> None:
    layers, head = number_layers(without_memory(EXTRACTORS[kind]))
    assert {name.removeprefix("model.").split(".")[0] for name, layer in layers.items() if layer == head} == names
    assert sorted(set(layers.values()) | {head}) == list(range(head + 1))


def test_layers_of_unknown_networks_are_not_guessed() -> None:
    with pytest.raises(ValueError, match="Sequential holds no network of timm"):
        number_layers(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="needs 0 < layer_decay <= 1, got 1.5"):
        layer_decay_groups(without_memory(EXTRACTORS["resnet"]), lr=0.1, layer_decay=1.5)


def test_frozen_layers_keep_weights_and_statistics(rng: torch.Generator) -> None:
    torch.manual_seed(0)
    extractor = TimmExtractor(None, "test_resnet", embedding_dim=4, batch_norm=True).train()
    for parameter in extractor.parameters():  # timm starts residual branches with zeros: nothing could move in them
        nn.init.uniform_(parameter, 0.0, 0.1)
    layers, head = number_layers(extractor)
    optimizer = torch.optim.AdamW(extractor.parameters(), lr=0.1, weight_decay=0.1)

    def learn() -> None:
        embeddings = extractor(torch.randn(4, 3, 64, 64, generator=rng))
        (embeddings * torch.linspace(-1, 1, 16).reshape(4, 4)).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)  # a gradient of zeros would let momentum and weight decay go on

    learn()
    stopped = freeze_below(extractor, 1)
    before = {name: tensor.clone() for name, tensor in extractor.state_dict().items()}
    learn()
    for name, tensor in extractor.state_dict().items():
        moved = not torch.equal(tensor, before[name])
        assert moved == (layers[name] >= head - 1), name
    assert len(stopped) == sum(name.endswith("running_mean") for name, layer in layers.items() if layer < head - 1)
    extractor.train()
    assert all(module.training for module in stopped)
    assert freeze_below(extractor, None) == []
    stopped[0].eval()  # by somebody else, so that it is not ours to undo
    assert freeze_below(extractor, 1) == stopped[1:]


@pytest.fixture(scope="module")
def vit() -> ViTExtractor:
    torch.manual_seed(0)
    extractor = ViTExtractor(None, "vitt16", normalise_features=True)
    extractor.model.blocks = extractor.model.blocks[:2]  # pyright: ignore[reportIndexIssue]
    return extractor


@pytest.fixture(scope="module")
def resnet() -> ResnetExtractor:
    torch.manual_seed(0)
    return ResnetExtractor(None, "resnet18", gem_p=None, remove_fc=True, normalise_features=True)


def gradients(extractor: IExtractor, images: Tensor) -> dict[str, Tensor]:
    extractor.zero_grad()
    embeddings = extractor(images)
    (embeddings * torch.linspace(-1, 1, embeddings.numel()).reshape(embeddings.shape)).sum().backward()
    return {name: parameter.grad for name, parameter in extractor.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_gradient_checkpointing_changes_no_number(
    kind: str, request: pytest.FixtureRequest, rng: torch.Generator
) -> None:
    plain: IExtractor = copy.deepcopy(request.getfixturevalue(kind)).train()
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing(True)
    saving = copy.deepcopy(saving)  # as for an average of weights: the copy computes with its own
    runs: list[int] = []
    network: Any = find_backbone(saving)[1]
    block = network.blocks[1] if kind == "vit" else network.layer3[0]
    block.register_forward_pre_hook(lambda *_: runs.append(1))
    images = torch.randn(3, 3, 48, 48, generator=rng)

    expected, got = gradients(plain, images), gradients(saving, images)
    assert len(runs) == 2  # once forward, once again for the gradient
    torch.testing.assert_close(got, expected)
    assert sum(float(gradient.abs().sum()) for gradient in expected.values()) > 1
    mine, theirs = saving.state_dict(), plain.state_dict()
    assert list(mine) == list(theirs)
    for name in mine:  # the second pass adds to counts of batches, which nothing uses, but not to statistics
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(mine[name], theirs[name]), name

    saving.set_grad_checkpointing(False)
    runs.clear()
    torch.testing.assert_close(gradients(saving, images), gradients(plain, images))
    assert len(runs) == 1


def test_wrappers_pass_gradient_checkpointing_on(vit: ViTExtractor) -> None:
    inner = copy.deepcopy(vit)
    ExtractorWithMLP(inner, [4]).set_grad_checkpointing()
    assert inner.model.grad_checkpointing

    class Plain(IExtractor):
        feat_dim = 3  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

        def forward(self, x: Tensor) -> Tensor:
            return x.mean(dim=(2, 3))

    with pytest.raises(ValueError, match="Plain holds no network that can do gradient checkpointing"):
        Plain().set_grad_checkpointing()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # of tracing
@pytest.mark.slow
def test_compiling_in_place_keeps_names(vit: ViTExtractor, rng: torch.Generator, tmp_path: Path) -> None:
    """PyTorch's ``extractor.compile()`` is the switch; ``torch.compile(extractor)`` would add a prefix to the names."""
    compiled, images = copy.deepcopy(vit), torch.randn(2, 3, 32, 32, generator=rng)
    compiled.compile(backend="eager")
    torch.testing.assert_close(gradients(compiled, images), gradients(vit, images))
    assert list(compiled.state_dict()) == list(vit.state_dict())
    torch.save({"state_dict": compiled.state_dict()}, tmp_path / "compiled.ckpt")
    loaded = copy.deepcopy(vit)
    loaded.requires_grad_(False).model.norm.weight.zero_()  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
    load_weights(loaded, tmp_path / "compiled.ckpt")
    assert torch.equal(loaded(images), vit(images))
