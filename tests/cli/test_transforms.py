"""``oml transforms``: run inside the test's process, as loading torch takes seconds."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from oml.cli import main
from oml.registry.transforms import TRANSFORMS_ALBU, TRANSFORMS_REGISTRY

TOP = 8 + 22  # of the first row of samples, below the title


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an image: a white disc on the left of a coloured ground."""
    monkeypatch.chdir(tmp_path)
    x, y = np.meshgrid(np.arange(60), np.arange(40))
    ground = np.stack([4 * x, 6 * y, 0 * x + 30], axis=-1)
    ground[(x - 15) ** 2 + (y - 20) ** 2 < 100] = 255
    Image.fromarray(ground.astype(np.uint8)).save("photo.png")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    def run(*arguments: str) -> tuple[int, str, str]:
        """Exit code, standard output and error of ``oml transforms ARGUMENTS``."""
        with pytest.raises(SystemExit) as left, torch.random.fork_rng():
            main(["transforms", *arguments])
        assert isinstance(left.value.code, int)
        return left.value.code, *capsys.readouterr()

    return run


def pixels(path: str) -> np.ndarray:
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return np.asarray(image).astype(int)


def test_samples_are_shown_as_they_are(run) -> None:
    """What is normalised for the network is shown in the image's own colours."""
    for name in ("norm_torch", "norm_albu"):
        assert run("show", name, "photo.png", "-n", "3") == (0, f"{name}.png\n", "")
        picture, original = pixels(f"{name}.png"), pixels("photo.png")
        width = (picture.shape[1] - 8) // 2
        for row in range(2):
            for column in range(2):
                left, top = 8 + column * width, TOP + row * (40 + 22 + 8)
                assert np.abs(picture[top : top + 40, left : left + 60] - original).max() <= 1


@pytest.mark.parametrize("name", TRANSFORMS_REGISTRY)
def test_every_set(name: str, run) -> None:
    assert run("show", name, "photo.png", "-n", "2")[0] == 0
    assert pixels(f"{name}.png").std() > 10


def test_clip_is_shown_with_the_statistics_of_clip(run) -> None:
    samples = []
    for name in ("norm_resize_albu", "norm_resize_albu_clip"):
        assert run("show", name, "photo.png", "-n", "1", "--size", "200")[0] == 0
        samples.append(pixels(f"{name}.png")[TOP : TOP + 200, 216:416])
    assert (samples[0] == samples[1]).all()
    assert (samples[0][:30] == 255).all()  # the padding
    assert np.abs(samples[0][100, 199] - [4 * 59, 6 * 20, 30]).max() <= 3


@pytest.mark.parametrize("name", ["augs_albu", "augs_hypvit_torch"])
def test_the_seed_repeats(name: str, run) -> None:
    for output, seed in (("a.png", "3"), ("b.png", "3"), ("c.png", "4")):
        assert run("show", name, "photo.png", "-n", "5", "--seed", seed, "--output", output)[0] == 0
    a, b, c = (pixels(output)[TOP:] for output in ("a.png", "b.png", "c.png"))  # below the title
    assert (a == b).all()
    assert (a != c).any()


def test_arguments_and_size(run) -> None:
    """The whole image each time: no two samples differ but by their direction."""
    wanted = ["min_scale=1.0", "mean=[0.5, 0.5, 0.5]"]
    assert run("show", "augs_hypvit_torch", "photo.png", "-n", "1", "--size", "100", *wanted)[0] == 0
    assert pixels("augs_hypvit_torch.png").shape[0] == TOP + 100 + 22 + 8
    hypvit = ["show", "norm_resize_hypvit_torch", "photo.png", "-n", "1", "--size", "96"]
    assert run(*hypvit)[0] == 0  # crop_size too: a crop larger than the image would be refused
    assert run(*hypvit, "--overwrite", "im_size=64", "crop_size=32")[0] == 0
    assert pixels("norm_resize_hypvit_torch.png").shape[0] == TOP + 32 + 22 + 8


BROKEN = ["show", "norm_torch", "broken.png"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["show", "augs_torhc", "photo.png"], "No transform is called 'augs_torhc'; did you mean augs_torch"),
        (["show", "norm_torch", "missing.png"], "cannot read the image 'missing.png'"),
        (BROKEN, "cannot read the image 'broken.png'"),
        (["show", "norm_torch", "."], "cannot read the image '.'"),
        (
            ["show", "augs_torch", "photo.png", "im_siz=3"],
            "'im_siz=3' is no KEY=VALUE; augs_torch has the keys im_s",
        ),
        (["show", "augs_torch", "photo.png", "im_size"], "'im_size' is no KEY=VALUE"),
        (["show", "augs_albu", "photo.png", "seed=1"], "'seed=1' is no KEY=VALUE"),
        (["show", "augs_torch", "photo.png", "mean=[1"], "'mean=[1': the value is no YAML"),
        (["show", "augs_albu", "photo.png", "--size", "8"], "augs_albu cannot be applied with {'im_size': 8}"),
        (["show", "augs_torch", "photo.png", "mean=[0.5]"], "three means and three positive deviations"),
        (["show", "norm_torch", "photo.png", "--size", "8"], "norm_torch keeps the size of the image"),
        (["show", "norm_torch", "photo.png", "--output", "a.jpg"], "the picture is a PNG file"),
        (["show", "norm_torch", "photo.png", "--output", "photo.png"], "there is a file 'photo.png' already"),
        (["show", "norm_torch", "photo.png", "--output", "photo.png/a.png"], "cannot write to 'photo.png/a.png'"),
        (["show", "norm_torch", "photo.png", "-n", "0"], "Invalid value for '-n': Input should be greater"),
    ],
)
def test_what_is_refused(arguments: list[str], text: str, run) -> None:
    Path("broken.png").write_bytes(Path("photo.png").read_bytes()[:60])
    before = {path: path.read_bytes() for path in Path().iterdir()}
    code, output, errors = run(*arguments)
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert text in errors
    assert {path: path.read_bytes() for path in Path().iterdir()} == before


def test_a_full_disk_leaves_nothing(run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Image.Image, "save", refuse)
    code, _, errors = run("show", "norm_torch", "photo.png")
    assert code == 1
    assert "No space left on device" in errors
    assert [path.name for path in Path().iterdir()] == ["photo.png"]


def test_list_names_all_sets(run, monkeypatch: pytest.MonkeyPatch) -> None:
    code, output, _ = run("list")
    lines = output.splitlines()
    assert code == 0
    assert [line.split()[0] for line in lines[::2]] == sorted(TRANSFORMS_REGISTRY)
    assert all(line.startswith("    ") and line.endswith(".") for line in lines[1::2])
    assert output.count("(extra albumentations)") == len(TRANSFORMS_ALBU)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run("list")[1].count("(extra albumentations, not installed)") == len(TRANSFORMS_ALBU)
