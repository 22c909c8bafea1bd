"""JPEG files like those of a camera, made of scikit-learn's two sample photographs."""

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

QUALITY = 90


def sources() -> list[Image.Image]:
    """A temple and a flower, 640 x 427 pixels each."""
    return [Image.fromarray(image) for image in load_sample_images().images]


def write_photograph(path: Path, image: Image.Image, rng: np.random.Generator, noise: float = 3.0) -> None:
    """Save an image with the noise of a sensor, which is what makes files of photographs large."""
    pixels = np.asarray(image) + rng.normal(0, noise, (image.height, image.width, 3))
    Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8)).save(path, quality=QUALITY)


def write_random_crops(folder: Path, n: int, size: tuple[int, int], seed: int = 0) -> list[Path]:
    """``n`` files of ``size`` pixels (width, height): crops of the photographs, enlarged, noisy."""
    rng = np.random.default_rng(seed)
    photographs = sources()
    folder.mkdir(parents=True)
    paths = [folder / f"{i}.jpg" for i in range(n)]
    for i, path in enumerate(paths):
        photograph = photographs[i % len(photographs)]
        width = rng.uniform(0.6, 1) * min(photograph.width, photograph.height * size[0] / size[1])
        height = width * size[1] / size[0]
        x, y = rng.uniform(0, photograph.width - width), rng.uniform(0, photograph.height - height)
        box = (x, y, x + width, y + height)
        write_photograph(path, photograph.resize(size, Image.Resampling.BICUBIC, box=box), rng)
    return paths
