from collections.abc import Callable
from typing import Any

import albumentations as A
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as v1
from torchvision.transforms import v2

from oml.const import MEAN, STD
from oml.registry.transforms import get_transforms
from oml.transforms.images.albumentations import RandomSizedBBoxSafeCropPatched, get_augs_albu
from oml.transforms.images.torchvision import get_augs_hypvit, get_normalisation_torch
from oml.transforms.images.utils import (
    AlbumentationsCall,
    as_callable,
    find_normalisation,
    get_im_reader_for_transforms,
    is_albumentations,
    seed_albumentations,
)
from oml.utils.images.images import imread_cv2, imread_pillow, imread_tensor

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


class Mine(A.Compose):
    pass


@pytest.mark.parametrize(
    ("transforms", "reader"),
    [
        (A.Compose([A.HorizontalFlip()]), imread_cv2),
        (A.HorizontalFlip(), imread_cv2),
        (Mine([A.HorizontalFlip()]), imread_cv2),
        (get_normalisation_torch(), imread_tensor),
        (v2.Compose([v2.ToImage()]), imread_tensor),
        (v2.Compose([v2.RandomHorizontalFlip(), v2.ToImage()]), imread_pillow),
        (v1.Compose([v1.ToTensor()]), imread_pillow),
        (lambda image: image, imread_pillow),
        (None, imread_pillow),
    ],
)
def test_which_reader(transforms: Any, reader: Callable) -> None:
    assert get_im_reader_for_transforms(transforms) is reader
    assert is_albumentations(transforms) == (reader is imread_cv2)


def test_all_are_called_alike() -> None:
    albumentations = as_callable(get_transforms("norm_albu"))
    torchvision = as_callable(get_normalisation_torch())
    torch.testing.assert_close(albumentations(IMAGE), torchvision(IMAGE))
    assert "Normalize" in repr(albumentations)
    function = np.flip
    assert as_callable(function) is function


def test_other_arguments_reach_the_transforms() -> None:
    call = AlbumentationsCall(A.Compose([A.RandomCropNearBBox(max_part_shift=0.0)]))
    assert call(IMAGE, cropping_bbox=(10, 5, 30, 20)).shape == (15, 20, 3)


def test_find_normalisation() -> None:
    for transforms in (get_normalisation_torch(), get_transforms("norm_albu"), v1.Compose([v1.Normalize(MEAN, STD)])):
        found = find_normalisation(transforms)
        assert found is not None
        torch.testing.assert_close(torch.stack(found), torch.tensor([MEAN, STD]))
    for transforms in (v2.Compose([v2.ToImage()]), np.flip):
        assert find_normalisation(transforms) is None


def test_seed_albumentations_seeds_all_steps() -> None:
    def draws(*seeds: int | tuple[int, ...]) -> list[bytes]:
        compose = A.Compose([A.HorizontalFlip(p=0.5), A.OneOf([A.GaussNoise(), A.Affine(rotate=(-90, 90))], p=1)])
        results = []
        for seed in seeds:
            seed_albumentations(compose, seed)
            results.append(b"".join(compose(image=IMAGE)["image"].tobytes() for _ in range(5)))
        return results

    one, other, again, pair, reverse = draws(1, 2, 1, (1, 2), (2, 1))
    assert one == again
    assert len({one, other, pair, reverse}) == 4


class Repeated(Dataset):
    """One image as often as asked."""

    def __init__(self, transform: Callable[[Any], Any]) -> None:
        self.transform = transform

    def __len__(self) -> int:
        return 8

    def __getitem__(self, idx: int) -> torch.Tensor:
        return torch.as_tensor(self.transform(IMAGE))


def epochs(transform: Callable[[Any], Any], generator_seed: int = 0, persistent: bool = False) -> torch.Tensor:
    """Two epochs of a loader with two workers: epoch, item, ..."""
    generator = torch.Generator().manual_seed(generator_seed)
    loader = DataLoader(
        Repeated(transform), num_workers=2, generator=generator, batch_size=None, persistent_workers=persistent
    )
    return torch.stack([torch.stack(list(loader)) for _ in range(2)])


def n_different(samples: torch.Tensor) -> int:
    return len(samples.flatten(0, 1).flatten(1).unique(dim=0))


@pytest.mark.parametrize("seed", [None, 5])
@pytest.mark.parametrize("persistent", [False, True])
def test_workers_and_epochs_draw_different_augmentations(seed: int | None, persistent: bool) -> None:
    samples = epochs(as_callable(get_augs_albu(32, seed=seed)), persistent=persistent)
    assert n_different(samples) >= 14  # two may come out unchanged
    again = epochs(as_callable(get_augs_albu(32, seed=seed)), persistent=persistent)
    assert torch.equal(samples, again)
    assert not torch.equal(samples, epochs(as_callable(get_augs_albu(32, seed=seed)), 1, persistent))
    if seed is not None:
        assert not torch.equal(samples, epochs(as_callable(get_augs_albu(32, seed=6)), 0, persistent))


def test_without_the_call_all_workers_draw_the_same() -> None:
    """What albumentations does by itself. Should this fail one day, AlbumentationsCall may have become needless."""
    transforms = get_augs_albu(32)
    samples = epochs(lambda image: transforms(image=image)["image"])
    assert torch.equal(samples[:, 0::2], samples[:, 1::2])
    assert torch.equal(samples[0], samples[1])


def test_workers_draw_different_crops() -> None:
    crop = RandomSizedBBoxSafeCropPatched(16, 0.0)
    samples = epochs(lambda image: crop(image=image, crop=(20, 10, 30, 20))["image"])
    assert n_different(samples) >= 14  # two may come out unchanged


def test_workers_of_torchvision() -> None:
    samples = epochs(get_augs_hypvit(32))
    assert n_different(samples) >= 14  # two may come out unchanged
    assert torch.equal(samples, epochs(get_augs_hypvit(32)))
