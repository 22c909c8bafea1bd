from dataclasses import replace

import albumentations as A
import pytest
import timm
import torch
from omegaconf import OmegaConf
from PIL import Image
from sklearn.datasets import load_sample_image
from timm.data import create_transform, resolve_data_config
from torchvision.transforms import v2

from oml.const import CONFIGS_PATH, MEAN, MEAN_CLIP, STD, STD_CLIP
from oml.models.zoo import ZOO
from oml.registry import EXTRACTORS_REGISTRY
from oml.registry.transforms import (
    TRANSFORMS_ALBU,
    TRANSFORMS_FOR_PRETRAINED,
    TRANSFORMS_REGISTRY,
    TRANSFORMS_TORCH,
    get_transforms,
    get_transforms_by_cfg,
    get_transforms_for_pretrained,
)
from oml.transforms.images.utils import as_callable, find_normalisation
from oml.utils.images.images import imread_cv2, imread_tensor

IMAGENET, CLIP = (MEAN, STD), (MEAN_CLIP, STD_CLIP)
#: weights -> set, side, library, statistics, and what is resized to which size before
EXPECTED = {
    **dict.fromkeys(
        ["resnet50_moco_v2", *(f"resnet{depth}_imagenet1k_v1" for depth in (18, 34, 50, 101, 152))],
        ("torch", 224, IMAGENET, [256]),
    ),
    **dict.fromkeys(["vits8_dino", "vits16_dino", "vitb8_dino", "vitb16_dino"], ("torch", 224, IMAGENET, [224, 224])),
    **{
        f"{origin}_{arch}": ("albu", side, CLIP, [side])
        for origin in ("openai", "sber")
        for arch, side in {"vitb16_224": 224, "vitb32_224": 224, "vitl14_224": 224, "vitl14_336": 336}.items()
        if (origin, side) != ("sber", 336)
    },
    **dict.fromkeys(["vits16_inshop", "vits16_sop"], ("torch", 224, IMAGENET, [224])),
    **dict.fromkeys(["vits16_cars", "vits16_cub"], ("albu", 224, IMAGENET, [224])),
    "vits16_224_mlp_384_inshop": ("torch", 224, IMAGENET, [256]),
    **dict.fromkeys(["vitb32_unicom", "vitb16_unicom", "vitl14_unicom"], ("torch", 224, CLIP, [224])),
    "vitl14_336px_unicom": ("torch", 336, CLIP, [336]),
    "efficientnet_lite0_imagenet": ("torch", 224, ((127 / 255,) * 3, (128 / 255,) * 3), [224, 224]),
}


def test_the_table_is_complete() -> None:
    others = set(TRANSFORMS_FOR_PRETRAINED) - set(EXPECTED)
    assert set(EXPECTED) < set(TRANSFORMS_FOR_PRETRAINED)
    assert len(TRANSFORMS_FOR_PRETRAINED) == len(EXPECTED) + len(others)
    assert all(timm.models.is_model_pretrained(name) for name in others)


@pytest.mark.parametrize("weights", EXPECTED)
def test_transforms_of_pretrained_weights(weights: str) -> None:
    library, side, statistics, resized = EXPECTED[weights]
    transforms, reader = get_transforms_for_pretrained(weights)
    found = find_normalisation(transforms)
    assert found is not None
    torch.testing.assert_close(torch.stack(found).float(), torch.tensor(statistics))
    if library == "albu":
        assert reader is imread_cv2
        image = torch.zeros(300, 400, 3, dtype=torch.uint8).numpy()
        assert [step.max_size for step in transforms.transforms if isinstance(step, A.LongestMaxSize)] == resized
    else:
        assert reader is imread_tensor
        image = torch.zeros(3, 300, 400, dtype=torch.uint8)
        assert [step.size for step in transforms.transforms if isinstance(step, v2.Resize)] == [resized]
    assert as_callable(transforms)(image).shape == (3, side, side)


def test_every_zoo_name_has_transforms() -> None:
    names = {name for extractor in EXTRACTORS_REGISTRY.values() for name in getattr(extractor, "pretrained_models", {})}
    assert len(names) > 60
    image = torch.zeros(3, 40, 50, dtype=torch.uint8)
    for name in names:
        transforms, reader = get_transforms_for_pretrained(name)
        sample = as_callable(transforms)(image.permute(1, 2, 0).numpy() if reader is imread_cv2 else image)
        assert sample.dtype == torch.float32
        assert sample.shape[0] == 3


def test_the_demo_normalises_as_its_weights_want() -> None:
    demo = OmegaConf.load(CONFIGS_PATH / "demo.yaml").transforms.args
    found = find_normalisation(TRANSFORMS_FOR_PRETRAINED["efficientnet_lite0_imagenet"])
    assert found is not None
    torch.testing.assert_close(torch.stack(found).float(), torch.tensor([demo.mean, demo.std]), atol=1e-4, rtol=0)


def names_of_timm() -> list[str]:
    """Of all ways in which timm evaluates, and in the table or not."""
    found = {}
    for name in timm.list_pretrained():
        config = timm.get_pretrained_cfg(name)
        _, height, width = config.input_size
        kind = (config.crop_mode, config.interpolation, height == width, config.crop_pct == 1, name in ZOO)
        found.setdefault(kind, name)
    return [*found.values(), "convnext_tiny.fb_in1k"]


def test_any_name_of_timm() -> None:
    photo = Image.fromarray(load_sample_image("china.jpg")).resize((160, 120))
    names = names_of_timm()
    assert len(names) > 8
    for name in names:
        theirs = create_transform(**resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict()))(photo)
        ours = get_transforms_for_pretrained(name)[0](photo)
        deviation = torch.tensor(timm.get_pretrained_cfg(name).std)[:, None, None]
        assert ((ours - theirs) * deviation * 255).abs().max() < 3.5, name


def test_objects_are_made_on_access(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = replace(ZOO["vits16_dino"], name="mine", transforms={"name": "no_such_set", "args": {}})
    monkeypatch.setitem(ZOO, "mine", entry)
    assert "mine" in TRANSFORMS_FOR_PRETRAINED
    assert "other" not in TRANSFORMS_FOR_PRETRAINED
    with pytest.raises(KeyError, match="No transform is called 'no_such_set'"):
        TRANSFORMS_FOR_PRETRAINED["mine"]
    assert TRANSFORMS_FOR_PRETRAINED["vits16_dino"] is not TRANSFORMS_FOR_PRETRAINED["vits16_dino"]


def test_unknown_weights_have_a_hint() -> None:
    with pytest.raises(KeyError, match=r"no pretrained weights 'vits16_dinno'; did you mean .*vits16_dino"):
        get_transforms_for_pretrained("vits16_dinno")
    with pytest.raises(KeyError, match="did you mean convnext_tiny.*fb"):
        get_transforms_for_pretrained("convnext_tiny")
    with pytest.raises(KeyError, match="'oml zoo list' has those there are"):
        TRANSFORMS_FOR_PRETRAINED["qqqqqq"]


def test_the_union_and_the_factories() -> None:
    assert dict(TRANSFORMS_REGISTRY) == {**TRANSFORMS_ALBU, **TRANSFORMS_TORCH}
    for built in (
        get_transforms("norm_resize_torch", im_size=8),
        get_transforms_by_cfg(OmegaConf.create({"name": "norm_resize_torch", "args": {"im_size": 8}})),
    ):
        assert built(torch.zeros(3, 5, 5, dtype=torch.uint8)).shape == (3, 8, 8)


def test_users_add_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TRANSFORMS_REGISTRY, "mine", lambda side: v2.Compose([v2.Resize(side)]))
    assert get_transforms_by_cfg({"name": "mine", "args": {"side": 7}}).transforms[0].size == [7]
