"""What is common to transforms of all libraries: how they are called, which images they take, how they are seeded."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info
from torchvision.transforms import v2

from oml.utils.images.images import TImReader, imread_cv2, imread_pillow, imread_tensor
from oml.utils.randomness import present_draws

#: a ``Compose`` of torchvision (v1 or v2) or of albumentations, or any function of an image
TTransforms = Callable[..., Any]


def is_albumentations(transforms: Any) -> bool:
    """Whether it is a transform, or a ``Compose``, of albumentations; asks without importing the package."""
    return any(kind.__module__.partition(".")[0] == "albumentations" for kind in type(transforms).__mro__)


def get_im_reader_for_transforms(transforms: TTransforms | None) -> TImReader:
    """The reader whose images the transforms want.

    =============================================  ======================================================
    albumentations                                 ``imread_cv2``: uint8 array, height x width x 3
    a v2 ``Compose`` that begins with ``ToImage``  ``imread_tensor``: uint8 tensor (3, height, width); fast
    any other, and ``None``                        ``imread_pillow``: PIL image
    =============================================  ======================================================

    Example:
        >>> get_im_reader_for_transforms(v2.Compose([v2.RandomHorizontalFlip(), v2.ToImage()])).__name__
        'imread_pillow'
    """
    if is_albumentations(transforms):
        return imread_cv2
    if isinstance(transforms, v2.Compose) and isinstance(transforms.transforms[0], v2.ToImage):
        return imread_tensor
    return imread_pillow


def as_callable(transforms: TTransforms) -> Callable[[Any], Any]:
    """The transforms as a function of an image alone, whichever library they are of.

    Those of albumentations are wrapped in :class:`AlbumentationsCall`; others are such functions already.
    """
    return AlbumentationsCall(transforms) if is_albumentations(transforms) else transforms


class AlbumentationsCall:
    """``call(image)`` is ``transforms(image=image)["image"]``, and worker processes draw different augmentations.

    A transform of albumentations (2.0.8 was looked at) carries its generators with it, so each worker of a
    ``DataLoader`` gets the same copy: all of them draw the same augmentations, and the next epoch's workers draw
    them again. So the first call inside a worker seeds the transforms anew, from the seed of theirs, if they have one,
    and the worker's, which torch makes for each worker and epoch out of the loader's ``generator`` or
    ``torch.manual_seed``. The same two seeds and number of workers repeat the same augmentations.

    Inside :func:`oml.utils.randomness.draws_of`, as in a loader for training that can resume, the first call seeds the
    transforms by a draw from torch's generator instead: the number of workers is of no account then.

    Args:
        transforms: of albumentations.
    """

    def __init__(self, transforms: TTransforms) -> None:
        self.transforms = transforms
        self._worker_seed: int | None = None
        self._draws: object | None = None

    def __call__(self, image: np.ndarray, **others: Any) -> Any:
        """The transformed image; ``others`` are further arguments that the transforms want, such as ``bboxes``."""
        if (draws := present_draws()) is not None:
            if draws is not self._draws:
                self._draws = draws
                self._seed(int(torch.randint(2**63 - 1, ())))
        elif (worker := get_worker_info()) is not None and worker.seed != self._worker_seed:
            self._worker_seed = worker.seed
            self._seed(worker.seed)
        return self.transforms(image=image, **others)["image"]

    def _seed(self, seed: int) -> None:
        own = getattr(self.transforms, "seed", None)
        seed_albumentations(self.transforms, seed if own is None else (own, seed))

    def __repr__(self) -> str:
        return f"AlbumentationsCall({self.transforms!r})"


def seed_albumentations(transforms: Any, seed: int | tuple[int, ...]) -> None:
    """Let all steps of a ``Compose`` draw from one generator with this seed.

    Not with the ``seed`` of ``Compose``: that starts every step from the same state, and steps that draw the same
    number then come and go together, such as a flip and a ``OneOf`` that are both applied half of the time.
    """
    numpy_seed, python_seed = np.random.SeedSequence(seed).spawn(2)
    transforms.set_random_state(
        np.random.default_rng(numpy_seed), random.Random(int(python_seed.generate_state(1, np.uint64)[0]))
    )


def find_normalisation(transforms: TTransforms) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Mean and standard deviation, by channel, of the last step that normalises; ``None`` if no step does.

    Example:
        >>> find_normalisation(v2.Compose([v2.ToImage(), v2.Normalize([0.5] * 3, [0.25] * 3)]))
        (tensor([0.5000, 0.5000, 0.5000]), tensor([0.2500, 0.2500, 0.2500]))
    """
    for step in reversed(getattr(transforms, "transforms", [])):
        if hasattr(step, "mean") and hasattr(step, "std"):
            return torch.as_tensor(step.mean), torch.as_tensor(step.std)
    return None
