import json
import subprocess
import sys
from collections.abc import Callable

import albumentations as A
import cv2
import numpy as np
import pytest
import torch

from oml.const import MEAN, MEAN_CLIP, STD, STD_CLIP
from oml.registry.transforms import TRANSFORMS_ALBU, get_transforms
from oml.transforms.images import albumentations as ours
from oml.transforms.images.albumentations import (
    Crop,
    RandomSizedBBoxSafeCropPatched,
    get_augs_albu,
    get_blurs,
    get_colors_level,
    get_noise_channels,
    get_noises,
    get_normalisation_albu,
    get_normalisation_resize_albu,
    get_normalisation_resize_albu_clip,
    get_spatials,
)


def noise(height: int = 60, width: int = 90, low: int = 40, high: int = 200) -> np.ndarray:
    return np.random.default_rng(0).integers(low, high, (height, width, 3), dtype=np.uint8)


def pixels(sample: torch.Tensor, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> np.ndarray:
    """Back to 0..255."""
    assert sample.dtype == torch.float32
    array = sample.permute(1, 2, 0).numpy() * std + mean
    return (255 * array).round().astype(int)


def test_norm_keeps_the_size() -> None:
    image = noise()
    sample = get_normalisation_albu()(image=image)["image"]
    expected = torch.from_numpy((image / 255 - MEAN) / STD).permute(2, 0, 1).float()
    torch.testing.assert_close(sample, expected)


@pytest.mark.parametrize(("height", "width"), [(60, 90), (90, 60), (20, 30), (61, 92)])
def test_norm_resize_keeps_proportions_and_centres_on_white(height: int, width: int) -> None:
    image = noise(height, width)
    found = pixels(get_normalisation_resize_albu(48)(image=image)["image"])
    assert found.shape == (48, 48, 3)
    scale = 48 / max(height, width)
    h, w = round(height * scale), round(width * scale)
    assert {h, w} != {48}
    top, left = (48 - h) // 2, (48 - w) // 2
    inside = np.zeros((48, 48), dtype=bool)
    inside[top : top + h, left : left + w] = True
    assert (found[~inside] == 255).all()
    assert (found[inside].reshape(h, w, 3) == cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR)).all()


def test_norm_resize_clip_has_the_statistics_of_clip() -> None:
    image = noise()
    clip = pixels(get_normalisation_resize_albu_clip(48)(image=image)["image"], MEAN_CLIP, STD_CLIP)
    assert (clip == pixels(get_normalisation_resize_albu(48)(image=image)["image"])).all()


@pytest.mark.parametrize("name", TRANSFORMS_ALBU)
def test_every_set_gives_a_float_tensor(name: str) -> None:
    transforms = get_transforms(name, **({} if name == "norm_albu" else {"im_size": 32}))
    for height, width in ((60, 90), (7, 5)):
        sample = transforms(image=noise(height, width))["image"]
        assert type(sample) is torch.Tensor
        assert sample.dtype == torch.float32
        assert sample.shape == (3, *((height, width) if name == "norm_albu" else (32, 32)))
    assert "Normalize" in json.dumps(A.to_dict(transforms))  # loggers save it


GROUPS = [(get_spatials, 3), (get_blurs, 4), (get_colors_level, 6), (get_noises, 2), (get_noise_channels, 3)]


@pytest.mark.parametrize(("group", "n"), GROUPS)
def test_one_of_a_group_is_always_applied(group: Callable[[], list], n: int) -> None:
    assert len(group()) == n
    one_of = A.Compose([A.OneOf(group(), p=1)], seed=0)
    image = noise()
    unchanged = sum((one_of(image=image)["image"] == image).all() for _ in range(40))
    # a permutation of channels, a brightness or a shift may turn out as no change at all; with the members' own p,
    # half of the samples would be unchanged
    assert unchanged <= 4


def sampled(transform: A.BasicTransform, image: np.ndarray, n: int = 60) -> list[np.ndarray]:
    transform.set_random_seed(0)
    return [transform(image=image.copy(), force_apply=True)["image"].astype(int) for _ in range(n)]


def member(group: Callable[[], list], name: str) -> A.BasicTransform:
    return next(transform for transform in group() if type(transform).__name__ == name)


def test_weights_of_the_members() -> None:
    expected = {
        "get_spatials": {"Perspective": 0.5, "Affine": 0.5, "GridDistortion": 0.5},
        "get_blurs": {"MotionBlur": 0.5, "MedianBlur": 0.5, "Blur": 0.5, "GaussianBlur": 0.5},
        "get_colors_level": {
            "ColorJitter": 0.5,
            "HueSaturationValue": 0.1,
            "CLAHE": 0.1,
            "Sharpen": 0.1,
            "Emboss": 0.1,
            "RandomBrightnessContrast": 0.1,
        },
        "get_noises": {"CoarseDropout": 0.3, "GaussNoise": 0.7},
        "get_noise_channels": {"ChannelDropout": 0.1, "ToGray": 0.8, "ChannelShuffle": 0.1},
    }
    for group, weights in expected.items():
        assert {type(step).__name__: step.p for step in getattr(ours, group)()} == weights


def test_the_weights_of_the_groups() -> None:
    groups = [step for step in get_augs_albu(32).transforms if isinstance(step, A.OneOf)]
    first = [type(group.transforms[0]).__name__ for group in groups]
    assert first == ["Perspective", "MotionBlur", "ColorJitter", "ChannelDropout", "CoarseDropout"]
    assert [group.p for group in groups] == [0.5, 0.5, 0.8, 0.2, 0.25]


def test_dropout_is_three_white_squares_of_20_pixels() -> None:
    image = np.zeros((400, 400, 3), dtype=np.uint8)
    n_white = [(sample == 255).all(axis=2).sum() for sample in sampled(member(get_noises, "CoarseDropout"), image)]
    assert max(n_white) == 3 * 20 * 20
    assert sum(n == 3 * 20 * 20 for n in n_white) > 45  # in the others, squares overlap
    assert min(n_white) > 20 * 20


def test_gaussian_noise_has_a_variance_of_10_to_50() -> None:
    image = np.full((100, 100, 3), 128, dtype=np.uint8)
    samples = sampled(member(get_noises, "GaussNoise"), image)
    variances = [sample.var() for sample in samples]
    # albumentations cuts off fractions, which takes about 0.8 of the standard deviation off the variance
    assert 7 < min(variances) < 12
    assert 38 < max(variances) < 48
    assert all(abs(sample.mean() - 128) < 0.5 for sample in samples)
    assert (samples[0][..., 0] != samples[0][..., 1]).mean() > 0.5  # each channel has its own


def test_affine_shifts_by_5_percent_and_shears_by_7_degrees() -> None:
    """A black square in the middle of white tells the centre; what comes into sight is white too."""
    affine = member(get_spatials, "Affine")
    image = np.full((200, 200, 3), 255, dtype=np.uint8)
    image[90:110, 90:110] = 0
    shifts = []
    for sample in sampled(affine, image):
        y, x = np.nonzero(sample[..., 0] < 128)
        shifts.append((x.mean() - 99.5, y.mean() - 99.5))
        assert 330 < len(x) < 470  # its area stays, as nothing is scaled
    x, y = np.array(shifts).T
    assert 8 < np.abs(x).max() <= 10.8
    assert 8 < np.abs(y).max() <= 10.8
    assert abs(np.corrcoef(x, y)[0, 1]) < 0.5  # both axes draw for themselves
    assert affine.shear == {"x": (-7, 7), "y": (-7, 7)}
    assert affine.rotate == (-0.1, 0.1)
    black = np.zeros((200, 200, 3), dtype=np.uint8)
    assert any((sample == 255).all(axis=2).any() for sample in sampled(affine, black))


@pytest.mark.parametrize("name", ["Perspective", "GridDistortion"])
def test_distortions_are_slight_and_bring_white_or_nothing(name: str) -> None:
    black = np.zeros((200, 200, 3), dtype=np.uint8)
    for sample in sampled(member(get_spatials, name), black, n=20):
        assert sample.shape == black.shape
        assert (sample[..., 0] == sample[..., 1]).all()
        assert (sample[60:140, 60:140] == 0).all()
        assert (sample == 255).all(axis=2).mean() < 0.25


def test_what_channels_come_to() -> None:
    image = noise()
    assert all(
        (np.ptp(sample, axis=2) == 0).all() for sample in sampled(member(get_noise_channels, "ToGray"), image, 3)
    )
    for sample in sampled(member(get_noise_channels, "ChannelDropout"), image, 10):
        assert (sample == 0).all(axis=(0, 1)).sum() == 1
    for sample in sampled(member(get_noise_channels, "ChannelShuffle"), image, 10):
        assert sorted(sample.mean(axis=(0, 1))) == sorted(image.mean(axis=(0, 1)))


def test_blurs_blur() -> None:
    image = noise()
    for blur in get_blurs():
        assert all(sample.std() < 0.95 * image.std() for sample in sampled(blur, image, 10)), blur


def test_colours_change_within_their_limits() -> None:
    grey = np.full((20, 20, 3), 100, dtype=np.uint8)
    brightness = [sample.mean() for sample in sampled(member(get_colors_level, "RandomBrightnessContrast"), grey, 300)]
    # 100 * (1 - 0.2) - 0.2 * 255 and 100 * (1 + 0.2) + 0.2 * 255
    assert 28 <= min(brightness) < 45
    assert 155 < max(brightness) <= 172
    jitter = member(get_colors_level, "ColorJitter")
    assert jitter.brightness == jitter.contrast == jitter.saturation == (0.6, 1.4)
    assert jitter.hue == (-0.1, 0.1)


def draws(transforms: A.Compose, n: int) -> torch.Tensor:
    return torch.stack([transforms(image=noise())["image"] for _ in range(n)])


def test_a_seed_repeats() -> None:
    first = draws(get_augs_albu(32, seed=5), 8)
    assert torch.equal(first, draws(get_augs_albu(32, seed=5), 8))
    assert not torch.equal(first, draws(get_augs_albu(32, seed=6), 8))
    assert not torch.equal(draws(get_augs_albu(32), 8), draws(get_augs_albu(32), 8))
    assert not torch.equal(first[:4], first[4:])


def test_steps_of_a_seeded_set_are_independent() -> None:
    """``Compose(seed=...)`` of albumentations starts all steps alike, so flips and distortions coincide."""
    decisions = []
    for seed in range(60):
        transforms = get_augs_albu(32, seed=seed)
        flip, spatial = transforms.transforms[2:4]
        decisions.append((flip.py_random.random() < 0.5, spatial.py_random.random() < 0.5))
    flips, spatials = np.array(decisions).T
    assert 15 < (flips != spatials).sum() < 45


def test_crop() -> None:
    image = np.arange(60 * 90 * 3).reshape(60, 90, 3)
    cropped = Crop()(image=image, crop=(10, 20, 15, 50), other="passes")
    assert (cropped["image"] == image[20:50, 10:15]).all()
    assert cropped["other"] == "passes"
    assert (Crop("box")(image=image, box=np.array([10.0, 20, 15, 50]))["image"] == image[20:50, 10:15]).all()
    whole = A.Compose([Crop(), A.HorizontalFlip(p=1)])(image=noise(), crop=(10, 20, 15, 50))["image"]
    assert (whole == noise()[20:50, 10:15][:, ::-1]).all()


@pytest.mark.parametrize("crop", [Crop(), RandomSizedBBoxSafeCropPatched(8, 0.0)])
def test_boxes_that_cannot_be_cropped(crop: Callable) -> None:
    for box in ((5, 5, 5, 9), (9, 5, 5, 9), (-1, 0, 4, 4), (0, 0, 91, 4), (0, 0, 4, 61)):
        with pytest.raises(ValueError, match="needs a box x1, y1, x2, y2 inside the image of width 90 and height 60"):
            crop(image=noise(), crop=box)
    with pytest.raises(ValueError, match=r"needs crop, called as crop\(image=..., crop=...\)"):
        crop(image=noise())


def test_random_crops_hold_the_box() -> None:
    """The box is the only red part. Without erosion, whole rows and columns of it are in every sample."""
    image = np.zeros((100, 200, 3), dtype=np.uint8)
    image[40:60, 50:80, 0] = 255
    crop = RandomSizedBBoxSafeCropPatched(50, erosion_rate=0.0, seed=0)
    samples = []
    for _ in range(30):
        result = crop(image=image, crop=(50, 40, 80, 60))
        assert set(result) == {"image"}
        samples.append(result["image"])
        assert samples[-1].shape == (50, 50, 3)
        red = samples[-1][..., 0] > 128
        # at least the box's share of the whole image, if nothing of it was cut off
        assert red.mean() >= 0.9 * (20 * 30) / (100 * 200)
    assert len({sample.tobytes() for sample in samples}) > 20
    again = RandomSizedBBoxSafeCropPatched(50, erosion_rate=0.0, seed=0)
    assert (again(image=image, crop=(50, 40, 80, 60))["image"] == samples[0]).all()


def test_a_size_below_that_of_the_white_squares() -> None:
    with pytest.raises(ValueError, match="needs an im_size of 20 at least, the side of its white squares; got 19"):
        get_augs_albu(19)
    draws(get_augs_albu(20, seed=0), 60)


def test_without_albumentations_the_module_imports_and_says_what_is_missing() -> None:
    code = """if True:
        import sys
        sys.modules["albumentations"] = None
        import oml.transforms.images.albumentations as ours
        assert ours.Crop()(image=ours.np.zeros((4, 4, 3)), crop=(0, 0, 1, 2))["image"].shape == (2, 1, 3)
        crop = lambda: ours.RandomSizedBBoxSafeCropPatched(8, 0.0)
        for make in (lambda: ours.get_augs_albu(32), ours.get_blurs, crop):
            try:
                make()
            except ModuleNotFoundError as error:
                assert "pip install 'open-metric-learning[albumentations]'" in str(error)
            else:
                raise AssertionError(make)
    """
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_neither_registry_nor_network_at_import() -> None:
    """Registering does not import the package, and importing it does not ask PyPI for news."""
    code = """if True:
        import socket, sys
        def refuse(*args, **kwargs):
            raise AssertionError("the network was tried")
        socket.getaddrinfo = socket.create_connection = refuse
        import oml.registry.transforms
        assert "albumentations" not in sys.modules and "cv2" not in sys.modules
        import warnings
        warnings.simplefilter("error")
        oml.registry.transforms.get_transforms("augs_albu", im_size=32)
        assert "albumentations" in sys.modules
    """
    subprocess.run([sys.executable, "-c", code], check=True)
