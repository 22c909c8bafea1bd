"""What decoding at a reduced scale does to cmc@1, against exact decoding, with a network of ImageNet weights.

No labelled photographs can be fetched here, so the data set is made: a label is a mosaic of patches of scikit-learn's
two photographs in their own resolution, so there is fine detail for a decoder to lose. Labels come in families of five
that share four of nine patches, which makes retrieval hard. An item shows its label with others in one of nine places,
as a crop, in another light, with noise, as a JPEG file. Every item is query and gallery. Prints a JSON line per reader
and size of the files: cmc@1, its difference from exact decoding in percentage points with the standard error of the
paired difference, queries whose first item is right with one of the two only, and the mean and least cosine of the
embeddings.

    python benchmarks/effect_scaled_decoding.py            # 8,000 items of each size: about an hour
    python benchmarks/effect_scaled_decoding.py --quick    # seconds, to see that it runs
"""

import argparse
import io
import json
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance
from torch import Tensor

from common import circumstances
from oml.functional.search import exact_search
from oml.models.timm_extractor import TimmExtractor
from oml.transforms.images.torchvision import get_normalisation_resize_torch
from oml.utils.images.images import ShrinkingReader, imread_tensor
from photographs import sources

IM_SIZE, WEIGHTS = 224, "efficientnet_lite0_imagenet"
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3  # of these weights
FAMILY, N_INSTANCES = 5, 4
OWN, FOREIGN = 5 / 9, 1 / 9  # shares of the patches
PATCH = 230  # pixels at most
READERS = {"exact": imread_tensor, **{f"min_side={n}": ShrinkingReader(n) for n in (IM_SIZE, 2 * IM_SIZE)}}


class Mosaics:
    """Items of labels, made when they are asked for."""

    def __init__(self, size: tuple[int, int], n_labels: int, seed: int) -> None:
        self.size, self.seed, self._photographs = size, seed, sources()
        self._grid = grid = -(-max(size) // PATCH)
        self._cell = (-(-size[0] // grid), -(-size[1] // grid))
        rng = np.random.default_rng(seed)
        self._patches = []
        for _ in range(-(-n_labels // FAMILY)):
            family = np.repeat(self._draw(rng, grid**2)[None], FAMILY, axis=0)
            places = rng.choice(grid**2, round(OWN * grid**2), replace=False)
            for own in family:
                own[places] = self._draw(rng, len(places))
            self._patches.extend(family)

    def item(self, label: int, instance: int) -> bytes:
        """A JPEG file."""
        rng = np.random.default_rng((self.seed, label, instance))
        patches = self._patches[label].copy()
        places = rng.choice(len(patches), round(FOREIGN * len(patches)), replace=False)
        patches[places] = self._draw(rng, len(places))
        (width, height), (cell_width, cell_height) = self.size, self._cell
        canvas = Image.new("RGB", (self._grid * cell_width, self._grid * cell_height))
        for place, (which, x, y, mirrored) in enumerate(patches):
            photograph = self._photographs[round(which)]
            left, top = x * (photograph.width - cell_width), y * (photograph.height - cell_height)
            patch = photograph.crop((round(left), round(top), round(left) + cell_width, round(top) + cell_height))
            patch = patch.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored > 0.5 else patch
            canvas.paste(patch, (place % self._grid * cell_width, place // self._grid * cell_height))
        share = rng.uniform(0.8, 1)
        left, top = rng.uniform(0, 1 - share, 2) * self.size
        box = (left, top, left + share * width, top + share * height)
        image = canvas.resize(self.size, Image.Resampling.BICUBIC, box=box)
        image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.7, 1.3))
        pixels = np.asarray(image) + 3 * rng.standard_normal((height, width, 3), dtype=np.float32)
        file = io.BytesIO()
        Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        return file.getvalue()

    def _draw(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Patches: which photograph, where from left and from above, whether mirrored; the first and last rounded."""
        return rng.random((n, 4))


@torch.inference_mode()
def embeddings(mosaics: Mosaics, n_labels: int, batch_size: int = 32) -> dict[str, Tensor]:
    """Unit vectors of all items by reader, the items of a label one after another."""
    extractor = TimmExtractor(WEIGHTS, "efficientnet_lite0", normalise_features=True).eval()
    extractor.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    transform = get_normalisation_resize_torch(IM_SIZE, MEAN, STD)
    items = [(label, instance) for label in range(n_labels) for instance in range(N_INSTANCES)]
    found: dict[str, list[Tensor]] = {name: [] for name in READERS}
    for start in range(0, len(items), batch_size):
        files = [mosaics.item(*item) for item in items[start : start + batch_size]]
        for name, read in READERS.items():
            images = torch.stack([transform(read(file)) for file in files])
            found[name].append(extractor(images.to(memory_format=torch.channels_last)))
    return {name: torch.cat(parts) for name, parts in found.items()}


def is_first_right(embeddings: Tensor) -> Tensor:
    """For each query whether the nearest other item has its label."""
    items = torch.arange(len(embeddings))
    first = exact_search(embeddings, embeddings, 1, query_items=items, gallery_items=items).ids[:, 0]
    return first // N_INSTANCES == items // N_INSTANCES


def measure(size: tuple[int, int], n_labels: int, seed: int, about: dict[str, Any]) -> None:
    found = embeddings(Mosaics(size, n_labels, seed), n_labels)
    exact = is_first_right(found["exact"])
    for name, vectors in found.items():
        right = is_first_right(vectors)
        lost, gained = int((exact & ~right).sum()), int((right & ~exact).sum())
        cosines = F.cosine_similarity(vectors, found["exact"])
        n = len(right)
        result = {
            "benchmark": "effect_scaled_decoding",
            "reader": name,
            "width": size[0],
            "height": size[1],
            "labels": n_labels,
            "queries": n,
            "cmc@1": round(right.double().mean().item(), 5),
            "points_from_exact": round(100 * (gained - lost) / n, 4),
            "standard_error": round(100 * (lost + gained) ** 0.5 / n, 4),
            "lost": lost,
            "gained": gained,
            "cosine": {"mean": round(cosines.mean().item(), 6), "min": round(cosines.min().item(), 6)},
            "weights": WEIGHTS,
            "seed": seed,
        }
        print(json.dumps(result | about), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, default=2_000)
    parser.add_argument("--width", type=int, nargs="+", default=[640, 1600], help="of files in the ratio 4:3")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="20 labels")
    args = parser.parse_args()
    n_labels = 20 if args.quick else args.labels
    about = circumstances(torch.get_num_threads(), "torch", "torchvision", "pillow", "simplejpeg", "timm")
    for width in args.width:
        measure((width, width * 3 // 4), n_labels, args.seed, about)


if __name__ == "__main__":
    main()
