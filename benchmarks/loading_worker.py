"""One contender of bench_loading.py, in a process of its own, for allocators remember what others did.

Each line of standard input is a JSON list of image files to load. For the first one, which warms up, it answers with
the name of a file that holds the last tensor; for all others with the CPU and wall seconds.
"""

import io
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from common import timed

SIZE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TLoad = Callable[[bytes], Any]


def ours(reader: str, min_side: int = SIZE, without: tuple[str, ...] = ()) -> TLoad:
    from oml.transforms.images.torchvision import get_normalisation_resize_torch
    from oml.utils.images import decoding, images

    for decoder in without:
        setattr(decoding, f"_{decoder}", lambda: None)
    read = images.ShrinkingReader(min_side) if reader == "ShrinkingReader" else getattr(images, reader)
    transform = get_normalisation_resize_torch(SIZE)
    return lambda content: transform(read(content))


def ours_albumentations() -> TLoad:
    from oml.registry.transforms import get_transforms
    from oml.utils.images.images import imread_cv2

    transform = get_transforms("norm_resize_albu", im_size=SIZE)
    return lambda content: transform(image=imread_cv2(content))["image"]


def peer(transforms: str) -> TLoad:
    from oml.registry.transforms import get_transforms
    from oml.utils.images.images import imread_cv2, imread_pillow

    transform = get_transforms(transforms, im_size=SIZE, mean=MEAN, std=STD)
    if transforms.endswith("albu"):
        return lambda content: transform(image=imread_cv2(content))["image"]
    return lambda content: transform(imread_pillow(content))


def torchvision_pillow() -> TLoad:
    from torchvision.transforms import v2

    transform = v2.Compose(
        [v2.Resize((SIZE, SIZE)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    )
    return lambda content: transform(Image.open(io.BytesIO(content)).convert("RGB"))


def opencv_unfiltered() -> TLoad:
    mean, std = (255 * np.array(values, dtype=np.float32) for values in (MEAN, STD))

    def load(content: bytes) -> torch.Tensor:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        assert image is not None
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        image = (cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR).astype(np.float32) - mean) / std
        return torch.from_numpy(image.transpose(2, 0, 1).copy())

    return load


def decode(colorspace: str, **options: Any) -> TLoad:
    import simplejpeg

    return lambda content: simplejpeg.decode_jpeg(content, colorspace, **options)


#: name -> whether it runs with the peer's packages, and what makes the function from bytes to tensor
CONTENDERS: dict[str, tuple[bool, Callable[[], TLoad]]] = {
    "oml 4.0.0 norm_resize_torch": (True, lambda: peer("norm_resize_torch")),
    "oml 4.0.0 norm_resize_albu (unfiltered)": (True, lambda: peer("norm_resize_albu")),
    "OpenCV, unfiltered": (False, opencv_unfiltered),
    "Pillow + torchvision": (False, torchvision_pillow),
    "imread_pillow": (False, lambda: ours("imread_pillow")),
    "imread_tensor": (False, lambda: ours("imread_tensor")),
    "imread_tensor, without extras": (False, lambda: ours("imread_tensor", without=("simplejpeg",))),
    "imread_tensor, Pillow alone": (
        False,
        lambda: ours("imread_tensor", without=("simplejpeg", "torchvision_decoder")),
    ),
    "imread_cv2 + norm_resize_albu": (False, ours_albumentations),
    "ShrinkingReader(224)": (False, lambda: ours("ShrinkingReader")),
    "ShrinkingReader(224), without extras": (False, lambda: ours("ShrinkingReader", without=("simplejpeg",))),
    "ShrinkingReader(448)": (False, lambda: ours("ShrinkingReader", min_side=448)),
    "decode alone": (False, lambda: decode("RGB")),
    "decode alone, 1/8, luma": (False, lambda: decode("GRAY", min_width=1, min_height=1)),
}


def load_all(load: TLoad, paths: list[Path]) -> None:
    """Keeps nothing: what only decodes would pay for the pages of all its images."""
    for path in paths:
        load(path.read_bytes())


def main(contender: str) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    load = CONTENDERS[contender][1]()
    with tempfile.TemporaryDirectory() as folder:
        for number, line in enumerate(sys.stdin):
            paths = [Path(path) for path in json.loads(line)]
            if number == 0:
                save = Path(folder) / "tensor.npy"
                load_all(load, paths[:-1])
                np.save(save, np.asarray(load(paths[-1].read_bytes())))
                answer = str(save)
            else:
                answer = timed(lambda paths=paths: load_all(load, paths))
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
