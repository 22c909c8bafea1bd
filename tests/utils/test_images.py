from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oml.utils.images.images import imread_pillow


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1"])
def test_everything_comes_as_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "image.png"
    Image.new("RGB", (4, 3), (255, 255, 255)).convert(mode).save(path)
    for source in (path, str(path), path.read_bytes()):
        image = imread_pillow(source)
        assert (image.mode, image.size) == ("RGB", (4, 3))
        assert (np.asarray(image) == 255).all()


def test_a_broken_chunk_is_an_oserror(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.effect_noise((64, 64), 50).save(path)
    content = bytearray(path.read_bytes())
    content[37:41] = b"\xff\xff\xff\xff"  # the type of the first data chunk
    path.write_bytes(content)
    with pytest.raises(OSError):  # noqa: PT011 (Pillow's own text)
        imread_pillow(path)


def test_other_sources_are_refused() -> None:
    with pytest.raises(TypeError):  # the type checker of the test run says it before the function does
        imread_pillow(3)  # pyright: ignore[reportArgumentType]
