import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.web import Answer, WebServer

from oml.models.zoo import ZOO, register

Oml = Callable[..., tuple[int, str, str]]


@pytest.fixture
def from_web(web: WebServer, checkpoints: Path) -> Iterator[WebServer]:
    """The weights vits16_dino are on the server, four bytes."""
    before = ZOO["vits16_dino"]
    web.answers = {"/a.pth": Answer(b"dino")}
    digits = f"md5:{hashlib.md5(b'dino').hexdigest()}"
    register(replace(before, sources=[f"{web.url}/a.pth"], hash=digits))
    yield web
    register(before)


def test_the_table(oml: Oml) -> None:
    code, output, _ = oml("zoo")
    assert code == 0
    assert oml("zoo", "list")[1] == output
    assert oml("zoo", "unicom")[1] == oml("zoo", "list", "unicom")[1] != output
    assert all(f"{command} " in oml("zoo", "--help")[1] for command in ("list", "show", "fetch"))
    listed = [line.split()[0] for line in output.splitlines() if line.strip()]
    assert [name for name in listed if name in ZOO] == list(ZOO)
    (row,) = [line for line in output.splitlines() if " vits16_inshop " in line]
    assert row.split()[1:4] == ["ViTExtractor", "87", "224"]
    assert "InShop cmc@1 0.921 [" in row
    assert "[3] cropped to ground-truth boxes" in output
    assert "k-NN accuracy 0.790 at 224 px [" in output  # other than the side of the transforms


def test_a_narrow_terminal(oml: Oml, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    table, _, _ = oml("zoo")[1].partition("\n[1]")
    assert max(map(len, table.splitlines())) <= 80
    assert "…" not in table
    assert set(ZOO) <= set(table.split())
    assert "1,713" in table.split()


def test_filters(oml: Oml, from_web: WebServer, checkpoints: Path) -> None:
    def found(*arguments: str) -> list[str]:
        code, output, _ = oml("zoo", "list", "--json", *arguments)
        assert code == 0
        return [entry["name"] for entry in json.loads(output)]

    assert found("unicom") == ["vitb32_unicom", "vitb16_unicom", "vitl14_unicom", "vitl14_336px_unicom"]
    assert found("DINO", "mit") == []
    assert found("dinov2", "reg4", "base") == ["vit_base_patch14_reg4_dinov2.lvd142m"]
    assert set(found("--extractor", "clip")) == {name for name in ZOO if ZOO[name].extractor == "ViTCLIPExtractor"}
    assert found("--data-set", "sop")[:2] == ["vits16_sop", "vitl14_336px_unicom"]
    assert found("convnext_tiny.fb_in1k") == []
    assert found("--timm", "convnext_tiny.fb_in1k") == ["convnext_tiny.fb_in1k"]
    assert found("--here", "dino") == []
    checkpoints.mkdir()
    (checkpoints / "vits16_dino.ckpt").write_bytes(b"dino")
    assert found("--here", "dino") == ["vits16_dino"]


def test_show(oml: Oml) -> None:
    code, output, _ = oml("zoo", "show", "vits16_cub")
    assert code == 0
    for text in (
        "ViTExtractor.from_pretrained('vits16_cub')",
        "arch='vits16', normalise_features=False",
        "/cub/vits16_cub.ckpt",
        "1p2tUosFpGXh5sCCdzlXtjV87kCDfG34G",
        "md5:e82633",
        "about 87 MB",
        "vits16_cub.ckpt, not here",
        "name: norm_resize_albu",
        "CUB cmc@1 0.837, 224 px: cropped to ground-truth boxes",
    ):
        assert text in output
    entry = json.loads(oml("zoo", "show", "vits16_cub", "--json")[1])
    assert entry["figures"][0]["value"] == 0.837
    assert entry["here"] is None
    assert "about 21 MB" in oml("zoo", "show", "efficientnet_b0.ra_in1k")[1]  # counted


def test_fetch(oml: Oml, from_web: WebServer, checkpoints: Path) -> None:
    file = checkpoints / "vits16_dino.ckpt"
    assert oml("zoo", "fetch", "vits16_dino", "vits16_dino")[:2] == (0, f"{file}\n{file}\n")
    assert file.read_bytes() == b"dino"
    assert from_web.requests == ["/a.pth"]
    assert str(file) in oml("zoo", "show", "vits16_dino")[1]


def test_fetch_that_fails(oml: Oml, from_web: WebServer, checkpoints: Path) -> None:
    from_web.answers = {"/a.pth": Answer(b"other")}
    code, output, errors = oml("zoo", "fetch", "vits16_dino")
    assert (code, output) == (1, "")
    assert "gave a file with the hash" in errors
    assert f"put it at {checkpoints}/vits16_dino.ckpt" in errors
    assert not (checkpoints / "vits16_dino.ckpt").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["show", "vits16_dinno"], "did you mean vits16_dino or"),
        (["fetch", "vits16_dino", "vits16_dinno"], "did you mean vits16_dino or"),
        (["list", "qqqq"], "the zoo has nothing like that; --timm looks"),
        (["list", "--timm", "qqqq"], "the zoo has nothing like that."),
        (["list", "--data-set", "MNIST"], "no figures for 'MNIST'; there are some for CARS196, CUB, "),
    ],
)
def test_what_there_is_not(oml: Oml, from_web: WebServer, arguments: list[str], text: str) -> None:
    code, output, errors = oml("zoo", *arguments)
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert text in errors
    assert from_web.requests == []
