import multiprocessing
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from oml.datasets.image_cache import Decoded, DecodedImageCache, pixels_of


def picture(seed: int, height: int = 4, width: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)


def folder_of(cache: DecodedImageCache) -> Path:
    return cache._path.parent


@pytest.mark.parametrize("kind", ["pillow", "array", "tensor"])
def test_what_comes_out_is_what_went_in(kind: str) -> None:
    pixels = picture(0)
    image = {
        "pillow": Image.fromarray(pixels),
        "array": pixels,
        "tensor": torch.from_numpy(pixels).permute(2, 0, 1),
    }[kind]
    cache = DecodedImageCache(n_images=3, n_bytes=1_000)
    assert cache.get(1) is None
    cache.put(1, Decoded(image, full_size=(50, 40)))
    kept = cache.get(1)
    assert kept is not None
    assert type(kept.image) is type(image)
    assert np.array_equal(pixels_of(kept.image), pixels)
    assert kept.full_size == (50, 40)
    assert cache.get(0) is cache.get(2) is None


def test_images_may_be_changed_without_changing_the_cache() -> None:
    cache = DecodedImageCache(n_images=1, n_bytes=1_000)
    cache.put(0, Decoded(picture(0), (5, 4)))
    cache.get(0).image[:] = 0
    assert np.array_equal(cache.get(0).image, picture(0))


def test_it_keeps_no_more_than_it_may() -> None:
    cache = DecodedImageCache(n_images=10, n_bytes=3 * 60 + 59)  # an image has 60 bytes
    for number in range(10):
        cache.put(number, Decoded(picture(number), (5, 4)))
    kept = [number for number in range(10) if cache.get(number) is not None]
    assert kept == [0, 1, 2]  # and no one is thrown out for another
    assert cache.n_bytes_used == 180
    assert all(np.array_equal(cache.get(number).image, picture(number)) for number in kept)
    cache.put(9, Decoded(picture(9, height=1, width=1), (1, 1)))  # a small one still fits
    assert cache.get(9) is not None


def test_a_cache_too_small_for_an_image_says_so() -> None:
    """Callers of earlier versions counted files."""
    cache = DecodedImageCache(n_images=2, n_bytes=50)
    with pytest.warns(
        UserWarning, match="of 50 bytes has no room for an image of 60. cache_size is a number of bytes"
    ) as caught:
        _fill(cache, [0, 1])
    assert len(caught) == 1
    assert cache.get(0) is None


def test_an_image_is_kept_once() -> None:
    cache = DecodedImageCache(n_images=2, n_bytes=1_000)
    for _ in range(3):
        cache.put(1, Decoded(picture(1), (5, 4)))
    assert cache.n_bytes_used == 60


@pytest.mark.parametrize(
    "image",
    [
        Image.new("L", (4, 4)),
        Image.new("YCbCr", (4, 4)),
        np.zeros((4, 4), np.uint8),
        torch.zeros(3, 4, 4),
        "an image of another library",
    ],
)
def test_what_it_cannot_keep_is_left_alone(image: object) -> None:
    cache = DecodedImageCache(n_images=1, n_bytes=1_000)
    cache.put(0, Decoded(image, (4, 4)))
    assert cache.get(0) is None
    assert cache.n_bytes_used == 0


def _fill(cache: DecodedImageCache, numbers: list[int]) -> None:
    for number in numbers:
        cache.put(number, Decoded(picture(number), (5, 4)))


def _fill_together(cache: DecodedImageCache, start: Any, seed: int) -> None:
    start.wait()
    for number in np.random.default_rng(seed).permutation(200).tolist():
        cache.put(number, Decoded(picture(number, height=50), (5, 50)))


def test_processes_do_not_write_over_each_other_nor_beyond_the_limit() -> None:
    size = 50 * 5 * 3
    cache = DecodedImageCache(n_images=200, n_bytes=150 * size)
    context = multiprocessing.get_context("fork")
    start = context.Barrier(4)
    workers = [context.Process(target=_fill_together, args=(cache, start, seed)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    kept = [number for number in range(200) if cache.get(number) is not None]
    assert len(kept) > 100
    assert all(np.array_equal(cache.get(number).image, picture(number, height=50)) for number in kept)
    assert cache.n_bytes_used <= 150 * size
    assert cache._path.stat().st_size <= cache._first + 150 * size


def test_a_forked_process_that_ends_does_not_remove_it() -> None:
    """Unlike those of multiprocessing, such a one runs what is to be run at the end."""
    begin = "from oml.datasets.image_cache import DecodedImageCache as C; c = C(1, 100); import os\n"
    code = f"{begin}if os.fork() == 0: raise SystemExit\nos.wait()\nassert c._path.is_file()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_processes_share_it(start: str) -> None:
    cache = DecodedImageCache(n_images=40, n_bytes=10_000)
    _fill(cache, [39])
    context = multiprocessing.get_context(start)
    workers = [context.Process(target=_fill, args=(cache, list(range(i, 39, 2)))) for i in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert all(np.array_equal(cache.get(number).image, picture(number)) for number in range(40))
    assert cache.n_bytes_used == 40 * 60
    assert folder_of(cache).is_dir()  # the workers' ends did not remove it


def test_copies_share_it_and_its_maker_removes_it() -> None:
    cache = DecodedImageCache(n_images=2, n_bytes=1_000)
    copy = pickle.loads(pickle.dumps(cache))
    _fill(copy, [1])
    assert cache.get(1) is not None
    folder = folder_of(cache)
    del cache
    assert not folder.exists()
    assert copy.get(1) is None  # and the copy goes on without
    copy.put(1, Decoded(picture(1), (5, 4)))


def test_a_full_disk_stops_the_caching_and_nothing_else() -> None:
    """In a process of its own, where no file may grow beyond a limit."""
    code = """
import resource, signal, sys, warnings
sys.dont_write_bytecode = True  # or Python cuts off a file of bytecode, which other tests would read
import numpy as np
from oml.datasets.image_cache import Decoded, DecodedImageCache
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))
cache = DecodedImageCache(n_images=4, n_bytes=100_000)
image = np.full((20, 50, 3), 7, dtype=np.uint8)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for number in range(4):
        cache.put(number, Decoded(image, (50, 20)))
assert "keeps no more images than it has" in str(caught[0].message) and "TMPDIR" in str(caught[0].message), caught
assert len(caught) == 1
assert (cache.get(0).image == 7).all() and cache.get(1) is None and cache.get(3) is None
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr
