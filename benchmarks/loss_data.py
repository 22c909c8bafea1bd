"""Data sets for the comparison of losses, as tensors in memory: 1,000 labels with 4 images each, and as many unseen.

``few`` and ``many`` are Glyphs: 4 images a label, or all of them. ``objects`` is another kind of thing, drawn here: a
label is a toy of some coloured parts, an image is one view of it, turned, shifted, lit and partly covered before a
piece of a photograph. What holds for a drawn character and for these may hold elsewhere too.
"""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.random import Generator
from pandas import DataFrame
from PIL import Image, ImageDraw, ImageFilter
from sklearn.datasets import load_sample_images
from torch import Tensor

from oml.datasets.glyphs import load_glyphs
from oml.utils.images.images import imread_tensor

SIDE = 64
N_LABELS, N_IMAGES = 1000, 4
_DRAWN = 2 * SIDE


class Images(NamedTuple):
    """uint8 images and their labels."""

    images: Tensor
    labels: Tensor


class Split(NamedTuple):
    """What to train on, and what to report on: no label is in both."""

    train: Images
    unseen: Images


@cache
def load(name: str) -> Split:
    """``few``, ``many`` or ``objects``."""
    if name == "objects":
        return _objects()
    root, *tables = load_glyphs(image_size=SIDE)
    if name == "few":
        tables = [_few(df, seed) for seed, df in enumerate(tables)]
    else:
        tables[1] = _few(tables[1], 1)
    return Split(
        *(Images(_read(root, df), torch.from_numpy(np.unique(df["label"], return_inverse=True)[1])) for df in tables)
    )


def _few(df: DataFrame, seed: int) -> DataFrame:
    """4 images of 1,000 labels, at random."""
    df = df.sample(frac=1, random_state=seed)
    nth = df.groupby("label").cumcount()
    enough = nth.groupby(df["label"]).transform("max") >= N_IMAGES - 1
    df = df[enough & (nth < N_IMAGES)]
    labels = df["label"].unique()[:N_LABELS]
    return df[df["label"].isin(labels)].sort_values("label", kind="stable")


def _read(root: Path, df: DataFrame) -> Tensor:
    return torch.stack([imread_tensor(root / path) for path in df["path"]])


def _objects() -> Split:
    photographs = [Image.fromarray(photograph) for photograph in load_sample_images().images]
    rng = np.random.default_rng(0)
    images, labels = [], []
    for label in range(2 * N_LABELS):
        toy = _toy(rng)
        for _ in range(N_IMAGES):
            images.append(torch.from_numpy(np.asarray(_view(toy, photographs, rng)).copy()).permute(2, 0, 1))
            labels.append(label % N_LABELS)
    half = N_LABELS * N_IMAGES
    images, labels = torch.stack(images), torch.tensor(labels)
    return Split(Images(images[:half], labels[:half]), Images(images[half:], labels[half:]))


def _toy(rng: Generator) -> Image.Image:
    """Three to five parts on a transparent ground; of any colours."""
    toy = Image.new("RGBA", (_DRAWN, _DRAWN))
    pen = ImageDraw.Draw(toy)
    for _ in range(rng.integers(3, 6)):
        colour = tuple(int(c) for c in rng.integers(0, 256, 3))
        x, y = rng.uniform(0.3, 0.7, 2) * _DRAWN
        w, h = rng.uniform(0.1, 0.25, 2) * _DRAWN
        kind = rng.integers(4)
        if kind == 0:
            pen.ellipse((x - w, y - h, x + w, y + h), fill=colour)
        elif kind == 1:
            pen.rectangle((x - w, y - h, x + w, y + h), fill=colour)
        elif kind == 2:
            angles = np.sort(rng.uniform(0, 2 * np.pi, 5))
            pen.polygon([(x + w * np.cos(a), y + h * np.sin(a)) for a in angles], fill=colour)
        else:
            for i in np.linspace(-1, 1, int(rng.integers(3, 7))):
                pen.line((x - w, y + i * h, x + w, y + i * h), fill=colour, width=4)
    return toy


def _view(toy: Image.Image, photographs: list[Image.Image], rng: Generator) -> Image.Image:
    photograph = photographs[rng.integers(len(photographs))]
    side = int(rng.integers(60, 300))
    left, top = int(rng.integers(photograph.width - side)), int(rng.integers(photograph.height - side))
    view = photograph.resize((_DRAWN, _DRAWN), box=(left, top, left + side, top + side))
    angle, scale, shear = rng.uniform(-0.5, 0.5), rng.uniform(0.65, 1.1), rng.uniform(-0.3, 0.3)
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    a, b, d, e = c, -s + shear, s, c * rng.uniform(0.8, 1.3)
    middle, (x, y) = _DRAWN / 2, _DRAWN * rng.uniform(0.35, 0.65, 2)
    turned = toy.transform(
        toy.size,
        Image.Transform.AFFINE,
        (a, b, middle - a * x - b * y, d, e, middle - d * x - e * y),
        Image.Resampling.BILINEAR,
    )
    view.paste(turned, mask=turned)
    if rng.random() < 0.5:  # something in front of it
        x, y = rng.uniform(0, _DRAWN, 2)
        grey = int(rng.integers(256))
        ImageDraw.Draw(view).ellipse((x - 18, y - 18, x + 18, y + 18), fill=(grey, grey, grey))
    view = view.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.5))).resize((SIDE, SIDE), Image.Resampling.BOX)
    light = rng.uniform(0.6, 1.3) * rng.uniform(0.85, 1.15, 3)
    pixels = np.asarray(view) * light + rng.normal(0, 6, (SIDE, SIDE, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
