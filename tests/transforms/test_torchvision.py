import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from oml.const import MEAN, MEAN_CLIP, STD, STD_CLIP
from oml.registry.transforms import TRANSFORMS_TORCH, get_transforms
from oml.transforms.images.torchvision import (
    Normalise,
    get_augs_crop,
    get_augs_hypvit,
    get_augs_torch,
    get_normalisation_resize_hypvit,
    get_normalisation_resize_timm,
    get_normalisation_resize_torch,
    get_normalisation_torch,
    get_transforms_unicom,
)

SIZES = {name: {"im_size": 32} for name in TRANSFORMS_TORCH} | {
    "norm_torch": {},
    "norm_resize_hypvit_torch": {"im_size": 40, "crop_size": 32},
}


def picture(width: int = 90, height: int = 60) -> Image.Image:
    """Smooth shapes, edges and noise, the sides and channels all different."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    noise = np.random.default_rng(0).integers(-20, 21, (height, width, 3))
    channels = [255 * x / width, 255 * ((x // 7 + y // 5) % 2), 128 + 100 * np.sin(y / 9)]
    return Image.fromarray((np.stack(channels, -1) + noise).clip(0, 255).astype(np.uint8))


def normalised(image: Image.Image, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> torch.Tensor:
    array = (np.asarray(image).astype(np.float64) / 255 - mean) / std
    return torch.from_numpy(array).permute(2, 0, 1).float()


@pytest.mark.parametrize("name", TRANSFORMS_TORCH)
def test_every_kind_of_image_gives_the_same(name: str) -> None:
    transforms = get_transforms(name, **SIZES[name])
    image = picture()
    array = np.array(image)
    before = array.copy()
    kinds = [
        image,
        array,
        torch.from_numpy(array).permute(2, 0, 1),
        torch.from_numpy(array).permute(2, 0, 1).contiguous(),
    ]
    results = []
    for kind in kinds:
        torch.manual_seed(0)
        results.append(transforms(kind))
    assert (array == before).all()
    for result in results:
        assert type(result) is torch.Tensor
        assert result.dtype == torch.float32
        assert result.is_contiguous()
        assert result.shape == ((3, 60, 90) if name == "norm_torch" else (3, 32, 32))
        torch.testing.assert_close(result, results[0])
    assert results[0].std() > 0.5


def test_the_data_set_can_tell_that_they_take_tensors() -> None:
    for name in TRANSFORMS_TORCH:
        assert isinstance(get_transforms(name, **SIZES[name]).transforms[0], v2.ToImage), name


@pytest.mark.parametrize(("resample", "mode"), [("BILINEAR", "bilinear"), ("BICUBIC", "bicubic")])
@pytest.mark.parametrize("size", [(30, 45), (7, 11), (100, 150)])
def test_resized_tensors_are_as_pillow_resizes(resample: str, mode: str, size: tuple[int, int]) -> None:
    """The documented agreement: 1 or 2 of 255, in few values. Without antialiasing they would differ by dozens."""
    image = picture()
    expected = np.asarray(image.resize(size[::-1], Image.Resampling[resample])).astype(int)
    resize = v2.Resize(size, interpolation=v2.InterpolationMode(mode), antialias=True)
    found = resize(v2.functional.to_image(image)).permute(1, 2, 0).numpy().astype(int)
    difference = np.abs(found - expected)
    assert difference.max() <= (1 if mode == "bilinear" else 2)
    assert (difference > 0).mean() < 0.02


def close_to_pillow(found: torch.Tensor, image: Image.Image, std: tuple[float, ...] = STD, **statistics: tuple) -> None:
    expected = normalised(image, std=std, **statistics)
    step = 1 / 255 / torch.tensor(std).reshape(3, 1, 1)
    assert ((found - expected).abs() <= 2.01 * step).all()
    assert ((found - expected).abs() > 0.5 * step).float().mean() < 0.02


def test_norm() -> None:
    torch.testing.assert_close(get_normalisation_torch()(picture()), normalised(picture()))
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    torch.testing.assert_close(get_normalisation_torch(mean, std)(picture()), normalised(picture(), mean, std))


def test_norm_resize_ignores_proportions() -> None:
    close_to_pillow(
        get_normalisation_resize_torch(32)(picture()), picture().resize((32, 32), Image.Resampling.BILINEAR)
    )


@pytest.mark.parametrize("upright", [False, True])
def test_norm_resize_hypvit_takes_the_centre(upright: bool) -> None:
    image = picture(60, 90) if upright else picture(90, 60)
    resized = image.resize((40, 60) if upright else (60, 40), Image.Resampling.BICUBIC)
    left, top = (resized.width - 32) // 2, (resized.height - 32) // 2
    close_to_pillow(get_normalisation_resize_hypvit(40, 32)(image), resized.crop((left, top, left + 32, top + 32)))
    with pytest.raises(ValueError, match="A crop of 48 pixels needs a larger image: im_size is 40"):
        get_normalisation_resize_hypvit(40, 48)


def test_unicom_takes_the_centre() -> None:
    expected = picture().resize((48, 32), Image.Resampling.BICUBIC).crop((8, 0, 40, 32))
    close_to_pillow(get_transforms_unicom(32)(picture()), expected, std=STD_CLIP, mean=MEAN_CLIP)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_pil_images_of_any_mode(mode: str) -> None:
    image = picture().convert(mode)
    assert torch.equal(get_transforms_unicom(32)(image), get_transforms_unicom(32)(image.convert("RGB")))


def test_augs_torch_mirrors_half_of_the_time() -> None:
    plain = get_normalisation_resize_torch(32)(picture())
    torch.manual_seed(0)
    mirrored = 0
    for _ in range(100):
        sample = get_augs_torch(32)(picture())
        assert torch.equal(sample, plain) != torch.equal(sample, plain.flip(2))
        mirrored += torch.equal(sample, plain.flip(2))
    assert 30 <= mirrored <= 70


def test_augs_crop_shows_most_of_it_and_never_a_mirror_image() -> None:
    ramp = torch.arange(100, dtype=torch.uint8).expand(3, 100, 100)
    for _ in range(20):
        row = get_augs_crop(50, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))(ramp)[0, 25] * 255
        assert row[-1] - row[0] > 80  # a side is 0.84 of the image at least
    assert not torch.equal(*(get_augs_crop(50)(ramp) for _ in range(2)))


def test_augs_hypvit_shows_a_part() -> None:
    """Of an image whose pixels say where they are, the part's share of the area and its proportions can be read."""
    x, y = np.meshgrid(np.arange(200), np.arange(200))
    image = Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))
    transforms = get_augs_hypvit(50, min_scale=0.3, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    torch.manual_seed(0)
    shares, mirrored = [], 0
    for _ in range(200):
        sample = 255 * transforms(image)
        slope_x, slope_y = sample[0, 25, 40] - sample[0, 25, 10], sample[1, 40, 25] - sample[1, 10, 25]
        width, height = 50 * abs(slope_x.item()) / 30, 50 * slope_y.item() / 30
        assert 0.7 <= width / height <= 1.42
        shares.append(width * height / 200**2)
        mirrored += bool(slope_x < 0)
    assert 0.28 <= min(shares) < 0.4
    assert 0.8 < max(shares) <= 1.02
    assert 70 <= mirrored <= 130


def test_normalise_is_torchvisions() -> None:
    every_value = torch.arange(256, dtype=torch.uint8).expand(3, 2, 256)
    for mean, std in ((MEAN, STD), (MEAN_CLIP, STD_CLIP), ((0.5, 0.0, 1.0), (0.5, 1.0, 0.25))):
        reference = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))])
        torch.testing.assert_close(Normalise(mean, std)(every_value), reference(every_value), atol=1e-6, rtol=0)
    assert "mean=(0.5, 0.0, 1.0)" in repr(Normalise(mean, std))
    assert pickle.loads(pickle.dumps(Normalise(mean, std))).mean == mean  # for workers that are spawned


def test_what_normalise_refuses() -> None:
    zeros, ones = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    for mean, std in ((zeros[:2], ones), (zeros, ones[:2]), (zeros, (1.0, 0.0, 1.0))):
        with pytest.raises(ValueError, match="three means and three positive deviations"):
            Normalise(mean, std)
    normalise = Normalise(MEAN, STD)
    with pytest.raises(TypeError, match=r"needs a uint8 tensor \(3, height, width\), got torch.float32 \(3, 2, 2\)"):
        normalise(torch.zeros(3, 2, 2))
    with pytest.raises(TypeError, match=r"got torch.uint8 \(1, 4, 5\). Read images as RGB"):
        get_normalisation_torch()(torch.zeros(1, 4, 5, dtype=torch.uint8))
    with pytest.raises(TypeError, match="got Image"):
        normalise(picture())


@pytest.mark.parametrize("size", [224, (128, 192), (300, 200)], ids=str)
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_as_timm_evaluates(size: int | tuple[int, int], crop_mode: str) -> None:
    from sklearn.datasets import load_sample_image
    from timm.data import create_transform

    photo = Image.fromarray(load_sample_image("china.jpg"))
    height, width = (size, size) if isinstance(size, int) else size
    rotated = photo.transpose(Image.Transpose.ROTATE_90)
    for image, crop_pct, interpolation in [(photo, 1, "bicubic"), (rotated, 0.9, "bilinear")]:
        args = {"crop_pct": crop_pct, "crop_mode": crop_mode, "interpolation": interpolation}
        args |= {"mean": MEAN_CLIP, "std": STD_CLIP}
        ours = get_normalisation_resize_timm(size, **args)(image)
        theirs = create_transform((3, height, width), **args)(image)
        assert ours.shape == (3, height, width)
        of_255 = (ours - theirs).abs() * torch.tensor(STD_CLIP)[:, None, None] * 255
        assert of_255.max() < 3.01  # torch rounds resized pixels otherwise than Pillow
        assert of_255.mean() < 0.2


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ({"crop_pct": 1.5}, "crop_pct needs to be above 0 and at most 1, got 1.5"),
        ({"crop_pct": 0}, "crop_pct needs to be above 0"),
        ({"crop_mode": "centre"}, "no crop_mode 'centre'; there are center, squash, border"),
        ({"interpolation": "cubic"}, "no interpolation 'cubic'; there are .*bicubic"),
    ],
)
def test_what_timm_does_not_know(args: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        get_normalisation_resize_timm(**args)
