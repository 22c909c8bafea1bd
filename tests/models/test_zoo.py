"""The table of pretrained weights, and what users do with it: the server is real, the checkpoints are small."""

import hashlib
import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save
from tests.web import Answer, WebServer, on_hub
from torch import nn

import oml.models
from oml.models import ExtractorWithMLP, TimmExtractor, ViTExtractor
from oml.models.utils import VIT_SIZES
from oml.models.zoo import (
    ZOO,
    Figure,
    ZooEntry,
    count_bytes,
    fetch,
    find_entry,
    local_file,
    pretrained_models_of,
    register,
    weights_path,
)
from oml.utils.io import DownloadError

#: the names that version 0.4.4 knew, and what its specification says of them
SPECIFIED: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("zoo.json").read_text())


@pytest.fixture(autouse=True)
def _table() -> Iterator[None]:
    """The table is as it was after each test."""
    before = dict(ZOO)
    yield
    for name in set(ZOO) - set(before):
        del pretrained_models_of(ZOO.pop(name).extractor)[name]
    for entry in before.values():
        if ZOO[entry.name] is not entry:
            register(entry)


def test_the_names_of_earlier_versions() -> None:
    for extractor in {told["extractor"] for told in SPECIFIED.values()}:
        names = {name for name, told in SPECIFIED.items() if told["extractor"] == extractor}
        assert set(getattr(oml.models, extractor).pretrained_models) == names


@pytest.mark.parametrize(("name", "told"), SPECIFIED.items(), ids=SPECIFIED.keys())
def test_entries_are_as_specified(name: str, told: dict[str, Any]) -> None:
    entry = ZOO[name]
    for key in ("extractor", "init_args", "hash", "file", "transforms"):
        assert getattr(entry, key) == told[key]
    assert list(entry.sources[: len(told["sources"])]) == told["sources"]  # others may follow
    assert {each.data_set: each.value for each in entry.figures if each.metric == "cmc@1"} == told["cmc@1"]


@pytest.mark.parametrize("entry", ZOO.values(), ids=ZOO.keys())
def test_entries(entry: ZooEntry) -> None:
    assert ZOO[entry.name] is entry
    assert isinstance(getattr(oml.models, entry.extractor), type)
    assert entry.sources
    for source in entry.sources:
        assert re.fullmatch(r"https://\S+\.\w+|hf:timm/\S+|package:\S+/\S+\.pth|1[\w-]{32}", source)
    assert entry.hash is None or re.fullmatch("md5:[0-9a-f]{6,32}|sha256:[0-9a-f]{8,64}", entry.hash)
    assert entry.hash or entry.sources[0].startswith("hf:")
    assert "/" not in entry.file
    assert entry.page is None or entry.page.startswith("https://")
    for figure in entry.figures:
        assert 0 < figure.value < 1
        assert len(figure.protocol) > 20
        if figure.data_set in ("CUB", "CARS196"):
            assert "not the zero-shot protocol" in figure.protocol


def test_files_are_of_one_entry_each() -> None:
    assert len({entry.file for entry in ZOO.values()}) == len(ZOO)


def test_resnets_are_as_torchvision_has_them() -> None:
    for depth in (18, 34, 50, 101, 152):
        entry, weights = ZOO[f"resnet{depth}_imagenet1k_v1"], torchvision.models.get_model_weights(f"resnet{depth}")
        weights = weights["IMAGENET1K_V1"]
        assert entry.sources == [weights.url]
        assert entry.hash == f"sha256:{weights.url.rpartition('-')[2].removesuffix('.pth')}"
        assert entry.size == pytest.approx(weights.meta["_file_size"] * 2**20, rel=0.001)
        accuracy = entry.figures[-1].value
        assert accuracy == pytest.approx(weights.meta["_metrics"]["ImageNet-1K"]["acc@1"] / 100)


def tensor_bytes(entry: ZooEntry) -> float:
    """What the file of an entry must hold, by its architecture."""
    with torch.device("meta"):
        if entry.extractor == "TimmExtractor":
            return count_bytes(entry.name) if entry.hash is None else 18.8e6
        if entry.extractor == "ExtractorWithMLP":
            inner = ViTExtractor(**entry.init_args["extractor"]["args"])
            model: nn.Module = ExtractorWithMLP(inner, entry.init_args["mlp_features"])
        else:
            model = getattr(oml.models, entry.extractor)(weights=None, **entry.init_args)
        numbers = sum(value.numel() for value in model.state_dict().values() if value.is_floating_point())
    if entry.extractor == "ViTUnicomExtractor":
        return 2 * numbers
    if entry.extractor != "ViTCLIPExtractor":
        return 4 * numbers
    width = {"b": 512, "l": 768}[entry.init_args["arch"][3]]  # of the part for texts: 12 blocks, 49,408 tokens
    embeddings = (49408 + 77) * width
    texts = 12 * (12 * width**2 + 13 * width) + 2 * width + width**2 + embeddings
    # OpenAI keeps matrices in half precision, and embeddings in full
    return 4 * (numbers + texts) if entry.name.startswith("sber") else 2 * (numbers + texts + embeddings)


def sized(extractor: str) -> list[str]:
    resnets = [name for name in ZOO if "imagenet1k" in name]  # which torchvision knows the sizes of
    return [name for name, entry in ZOO.items() if entry.extractor == extractor and entry.size and name not in resnets]


@pytest.mark.parametrize("extractor", ["ViTExtractor", "ViTCLIPExtractor", "ViTUnicomExtractor", "ExtractorWithMLP"])
def test_sizes(extractor: str) -> None:
    for name in sized(extractor):
        assert ZOO[name].size == pytest.approx(tensor_bytes(ZOO[name]), rel=0.005), name


@pytest.mark.slow
def test_sizes_of_timm() -> None:
    for name in sized("TimmExtractor"):
        assert ZOO[name].size == pytest.approx(tensor_bytes(ZOO[name]), rel=0.005), name


def test_names_of_timm_need_no_row() -> None:
    entry = find_entry("convnext_tiny.fb_in1k")
    assert entry.name not in ZOO
    assert (entry.extractor, entry.init_args) == ("TimmExtractor", {"arch": "convnext_tiny"})
    assert entry.sources == ["hf:timm/convnext_tiny.fb_in1k"]
    assert entry.licence == "apache-2.0"
    without_hub = find_entry("gcvit_tiny.in1k")
    assert without_hub.hash == "sha256:ac783954"
    assert without_hub.file == "gcvit_tiny_224_nvidia-ac783954.pth"
    assert without_hub.sources[0].endswith(f"/{without_hub.file}")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("vits16_dinno", "did you mean vits16_dino or"),
        ("ViTS16_DINO", "did you mean vits16_dino or"),
        ("convnext_tiny", r"did you mean convnext_tiny\.\w+ or"),
        ("convnext_tiny.fb_in1", "did you mean convnext_tiny.fb_in1k or"),
        ("qqqqqqqq", "'oml zoo list' has those there are"),
        *[(f"hf-hub:{name}", "models on the Hugging Face Hub are named") for name in ("", "no", "a/b/c.json")],
    ],
)
def test_unknown_names(name: str, hint: str) -> None:
    for ask in (find_entry, fetch):
        with pytest.raises(KeyError, match=f"no pretrained weights '{name}'; {hint}"):
            ask(name)
    with pytest.raises(FileNotFoundError, match=f"no checkpoint '{name}', nor are there weights of that name; {hint}"):
        weights_path(name)


def in_zoo(name: str, server: WebServer, content: bytes, **changes: Any) -> ZooEntry:
    """An entry whose file comes from the server, which has it."""
    server.answers[f"/{name}"] = Answer(content)
    digits = f"sha256:{hashlib.sha256(content).hexdigest()}"
    entry = replace(ZOO["vits16_dino"], name=name, sources=[f"{server.url}/{name}"], hash=digits, file=f"{name}.ckpt")
    register(entry := replace(entry, **changes))
    return entry


def test_names_come_before_files(
    web: WebServer, checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    entry = in_zoo("mine", web, b"of the zoo")
    assert local_file(entry) is None
    Path("mine").write_bytes(b"in the folder")
    assert weights_path("mine").read_bytes() == b"of the zoo"
    assert local_file(entry) == weights_path("mine") == fetch("mine") == checkpoints / "mine.ckpt"
    assert weights_path("./mine").read_bytes() == weights_path(Path("mine")).read_bytes() == b"in the folder"
    with pytest.raises(FileNotFoundError, match=r"no checkpoint 'theirs'\.$"):
        weights_path(Path("theirs"))


def test_entries_are_added_and_replaced(web: WebServer, checkpoints: Path) -> None:
    models = ViTExtractor.pretrained_models
    in_zoo("mine", web, b"first", init_args={"arch": "vitb8", "normalise_features": True})
    assert models["mine"] == {"init_args": {"arch": "vitb8", "normalise_features": True}}
    in_zoo("mine", web, b"second", extractor="ResnetExtractor", file="second.ckpt")
    assert "mine" not in models
    assert "mine" in oml.models.ResnetExtractor.pretrained_models
    assert fetch("mine").read_bytes() == b"second"


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """The network that vits16 is in this test."""
    monkeypatch.setitem(VIT_SIZES, "s", {"embed_dim": 12, "depth": 1, "num_heads": 2})
    return ViTExtractor(None, "vits16", False).model


def as_file(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def test_what_users_do(web: WebServer, checkpoints: Path, tiny: nn.Module) -> None:
    content = as_file(tiny.state_dict())
    good = in_zoo("vits16_dino", web, content, file="vits16_dino.ckpt")
    register(replace(good, sources=[f"{web.url}/gone.pth", good.sources[0]]))
    images = torch.randn(2, 3, 32, 48)
    for _ in range(2):
        extractor = ViTExtractor.from_pretrained("vits16_dino").eval()
        torch.testing.assert_close(extractor(images), tiny.eval()(images))
    assert web.requests == ["/gone.pth", "/vits16_dino"]  # once
    assert (checkpoints / "vits16_dino.ckpt").read_bytes() == content


def test_what_users_do_offline(web: WebServer, checkpoints: Path, tiny: nn.Module) -> None:
    content = as_file(tiny.state_dict())
    in_zoo("vits16_dino", web, content, file="vits16_dino.ckpt", sources=["http://127.0.0.1:1/a.pth"])
    with pytest.raises(DownloadError, match=rf"put it at {checkpoints}/vits16_dino\.ckpt"):
        ViTExtractor.from_pretrained("vits16_dino")
    (checkpoints / "vits16_dino.ckpt").write_bytes(content)
    ViTExtractor.from_pretrained("vits16_dino")


def test_a_changed_file_does_not_load(web: WebServer, checkpoints: Path, tiny: nn.Module) -> None:
    entry = in_zoo("vits16_dino", web, as_file(tiny.state_dict()))
    web.answers["/vits16_dino"] = Answer(as_file({"other": torch.ones(1)}))
    with pytest.raises(DownloadError, match=f"instead of {entry.hash}"):
        ViTExtractor.from_pretrained("vits16_dino")
    assert local_file(entry) is None


def test_a_model_with_a_head(web: WebServer, checkpoints: Path, tiny: nn.Module) -> None:
    args = ZOO["vits16_224_mlp_384_inshop"].init_args
    model = ExtractorWithMLP(ViTExtractor(**args["extractor"]["args"]), args["mlp_features"])
    content = as_file({"state_dict": {f"model.{name}": value for name, value in model.state_dict().items()}})
    entry = ZOO["vits16_224_mlp_384_inshop"]
    in_zoo(entry.name, web, content, extractor=entry.extractor, init_args=entry.init_args)
    images = torch.randn(2, 3, 32, 32)
    for _ in range(2):  # a second call failed in 0.4.4
        extractor = ExtractorWithMLP.from_pretrained(entry.name).eval()
        torch.testing.assert_close(extractor(images), model.eval()(images))


def of_timm(name: str, **args: Any) -> tuple[nn.Module, bytes]:
    model = timm.create_model(name, **args)
    return model, save(model.state_dict())


def test_weights_of_timm(hub: WebServer, checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, content = of_timm("test_vit")
    hub.answers["/timm/test_vit.r160_in1k/resolve/main/model.safetensors"] = on_hub(content)
    images = torch.randn(2, 3, 160, 160)
    model.reset_classifier(0)  # pyright: ignore[reportCallIssue]
    expected = model.eval()(images)
    torch.testing.assert_close(TimmExtractor.from_pretrained("test_vit.r160_in1k").eval()(images), expected)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    torch.testing.assert_close(TimmExtractor.from_pretrained("test_vit.r160_in1k").eval()(images), expected)
    assert [path for path in hub.requests if path.startswith("/timm")] == list(hub.answers)  # once
    by_hand = checkpoints / "test_vit2.r160_in1k.safetensors"
    with pytest.raises(DownloadError, match=f"offline mode.*put it at {by_hand}"):
        TimmExtractor.from_pretrained("test_vit2.r160_in1k")
    model, content = of_timm("test_vit2")
    by_hand.write_bytes(content)
    TimmExtractor.from_pretrained("test_vit2.r160_in1k")


def test_models_on_the_hub(hub: WebServer, checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, content = of_timm("test_vit", num_classes=5, img_size=96)
    config = {
        "architecture": "test_vit",
        "num_classes": 5,
        "model_args": {"img_size": 96},
        "pretrained_cfg": {
            "input_size": [3, 96, 96],
            "crop_pct": 0.9,
            "mean": [0.2] * 3,
            "std": [0.7] * 3,
            "license": "mit",
        },
    }
    hub.answers["/org/mine/resolve/main/config.json"] = on_hub(json.dumps(config).encode())
    hub.answers["/org/mine/resolve/main/model.safetensors"] = on_hub(content)
    entry = find_entry("hf-hub:org/mine")
    assert (entry.licence, entry.page) == ("mit", "https://huggingface.co/org/mine")
    assert entry.transforms["args"] | {"im_size": 96, "crop_pct": 0.9, "mean": [0.2] * 3} == entry.transforms["args"]
    images = torch.randn(2, 3, 96, 96)
    model.reset_classifier(0)  # pyright: ignore[reportCallIssue]
    extractor = TimmExtractor.from_pretrained("hf-hub:org/mine").eval()
    torch.testing.assert_close(extractor(images), model.eval()(images))

    drawn_by = []
    monkeypatch.setattr("oml.models.timm_extractor.vis_vit", lambda *args: (drawn_by.append(args[2:]), args[1])[1])
    extractor.draw_attention(Image.new("RGB", (96, 96)))
    assert drawn_by == [((0.2,) * 3, (0.7,) * 3)]  # by the model's own, not the architecture's

    config["model_args"] = {"embed_dim": 8}
    hub.answers["/org/other/resolve/main/config.json"] = on_hub(json.dumps(config).encode())
    with pytest.raises(ValueError, match="'hf-hub:org/other' is built with embed_dim, which TimmExtractor cannot set"):
        find_entry("hf-hub:org/other")
    with pytest.raises(DownloadError, match="/org/no/resolve/main/config.json cannot be downloaded"):
        find_entry("hf-hub:org/no")


def test_weights_in_a_package() -> None:
    entry = ZOO["efficientnet_lite0_imagenet"]
    path = fetch(entry.name)
    assert path == local_file(entry)
    assert f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" == entry.hash
    assert path.stat().st_size == pytest.approx(entry.size, rel=0.005)


def test_figures_say_their_protocol() -> None:
    figure = ZOO["vitl14_336px_unicom"].figures[0]
    assert isinstance(figure, Figure)
    assert figure.image_size == 336
