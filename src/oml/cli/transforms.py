"""``oml transforms``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from PIL.Image import Image

transforms = typer.Typer(
    name="transforms",
    help="Look at the named sets of image transforms.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

_LARGEST_CELL = 512  # pixels; larger samples are shown reduced
_MARGIN = 8
_TEXT_HEIGHT = 14


@transforms.command("list")
def list_(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,  # noqa: ARG001 (see main)
) -> None:
    """Name all sets, what they need and what they do."""
    from importlib.util import find_spec

    from oml.registry.transforms import TRANSFORMS_ALBU, TRANSFORMS_REGISTRY

    missing = "" if find_spec("albumentations") else ", not installed"
    for name, constructor in sorted(TRANSFORMS_REGISTRY.items()):
        needs = f" (extra albumentations{missing})" if name in TRANSFORMS_ALBU else ""
        typer.echo(f"{name}{needs}\n    {(constructor.__doc__ or '').splitlines()[0].replace('``', '')}")


@transforms.command()
def show(
    name: Annotated[str, typer.Argument(help="Of the set; 'oml transforms list' has them all.")],
    image: Annotated[Path, typer.Argument(help="File of an image.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Arguments of the set, such as min_scale=0.5.")
    ] = None,
    n: Annotated[int, typer.Option("-n", min=1, max=500, help="Samples to draw.")] = 12,
    size: Annotated[int | None, typer.Option(min=1, help="Side of the samples in pixels: im_size, crop_size.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same one draws the same samples.")] = 0,
    output: Annotated[Path | None, typer.Option(help="File to write; by default NAME.png.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if there is one.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,  # noqa: ARG001 (see main)
) -> None:
    """Write a picture of what a set of transforms makes of an image: the original, and some samples.

    What is not given is as in the packaged config of the set, such as a size of 224 pixels.

    Examples:

    - `oml transforms show augs_albu photo.jpg`
    - `oml transforms show augs_hypvit_torch photo.jpg -n 20 --size 128 min_scale=0.5 --output samples.png`
    """
    output = output or Path(f"{name}.png")
    if output.suffix.lower() != ".png":
        raise typer.BadParameter(f"the picture is a PNG file, call it so instead of {output.name!r}.")
    if output.exists() and not overwrite:
        raise typer.BadParameter(f"there is a file {str(output)!r} already; give --output or --overwrite.")

    import torch

    from oml.registry.transforms import TRANSFORMS_REGISTRY
    from oml.transforms.images.utils import as_callable, get_im_reader_for_transforms
    from oml.utils.images.images import imread_pillow
    from oml.utils.io import atomic_path

    config = _config(name, arguments or [], size)
    try:
        original = imread_pillow(image)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"cannot read the image {str(image)!r}: {_one_line(error)}") from error
    torch.manual_seed(seed)  # torchvision's transforms draw from the global generator
    try:
        made = TRANSFORMS_REGISTRY.build(config, seed=seed)
        read, apply = get_im_reader_for_transforms(made), as_callable(made)
        samples = [_to_pillow(apply(read(image)), made) for _ in range(n)]
    except (TypeError, ValueError, RuntimeError) as error:
        raise typer.BadParameter(f"{name} cannot be applied with {config['args']}: {_one_line(error)}") from error
    title = " ".join([name, *(f"{key}={value}" for key, value in config["args"].items()), f"seed {seed}"])
    picture = _grid([original, *samples], ["original", *map(str, range(1, n + 1))], title)
    try:
        with atomic_path(output) as temporary:
            picture.save(temporary)
    except (FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        reason = (error.strerror or str(error)).lower()
        raise typer.BadParameter(f"cannot write to {str(output)!r}: {reason}. Name another file.") from error
    typer.echo(output)


def _config(name: str, arguments: list[str], size: int | None) -> dict[str, Any]:
    """``{name, args}`` out of the packaged config, ``--size`` and ``key=value``, the later ones before the earlier."""
    from inspect import signature

    import yaml
    from omegaconf import OmegaConf

    from oml.const import CONFIGS_PATH
    from oml.registry.transforms import TRANSFORMS_REGISTRY

    try:
        known = signature(TRANSFORMS_REGISTRY[name]).parameters
    except KeyError as error:
        raise typer.BadParameter(error.args[0]) from error
    args: dict[str, Any] = OmegaConf.to_object(OmegaConf.load(CONFIGS_PATH / "transforms" / f"{name}.yaml"))["args"]  # pyright: ignore
    if size is not None:
        if "im_size" not in known:
            raise typer.BadParameter(f"{name} keeps the size of the image, so there is no --size.")
        args |= {key: size for key in ("im_size", "crop_size") if key in known}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key not in known or key == "seed":
            own = [key for key in known if key != "seed"]
            raise typer.BadParameter(f"{argument!r} is no KEY=VALUE; {name} has the keys {', '.join(own)}.")
        try:
            args[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise typer.BadParameter(f"{argument!r}: the value is no YAML. Write lists as [1, 2].") from error
    return {"name": name, "args": args}


def _to_pillow(sample: Any, transforms: Any) -> "Image":
    from torchvision.transforms.v2.functional import to_pil_image

    from oml.transforms.images.utils import find_normalisation

    found = find_normalisation(transforms)
    assert found is not None, "all named sets normalise"
    mean, std = (values.reshape(3, 1, 1) for values in found)
    return to_pil_image((255 * (sample * std + mean)).round().clamp(0, 255).byte())


def _grid(images: "list[Image]", captions: list[str], title: str) -> "Image":
    """The images row by row, each with its caption and size below, on one picture."""
    from math import ceil, sqrt

    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(_TEXT_HEIGHT)
    captions = [f"{caption}: {image.width} x {image.height}" for caption, image in zip(captions, images, strict=True)]
    # samples in their own pixels, as far as that is sensible; the original no larger than they are
    side = min(max(max(image.size) for image in images[1:]), _LARGEST_CELL)
    for image in images:
        image.thumbnail((side, side))
    width = max(*(image.width for image in images), *(ceil(font.getlength(caption)) for caption in captions)) + _MARGIN
    line = _TEXT_HEIGHT + _MARGIN
    height = max(image.height for image in images) + line + _MARGIN
    columns = ceil(sqrt(len(images)))
    rows = ceil(len(images) / columns)
    total_width = max(columns * width, ceil(font.getlength(title)) + _MARGIN) + _MARGIN
    picture = Image.new(
        "RGB", (total_width, _MARGIN + line + rows * height), (238, 238, 238)
    )  # not white as padding is
    draw = ImageDraw.Draw(picture)
    draw.text((_MARGIN, _MARGIN), title, fill=(0, 0, 0), font=font)
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = _MARGIN + (i % columns) * width, _MARGIN + line + (i // columns) * height
        picture.paste(image, (left, top))
        draw.text((left, top + image.height + _MARGIN // 4), caption, fill=(0, 0, 0), font=font)
    return picture


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
