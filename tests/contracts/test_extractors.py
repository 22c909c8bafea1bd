"""What every extractor of the registry promises."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from oml.const import CONFIGS_PATH
from oml.interfaces.models import IExtractor
from oml.lightning.modules.extractor import ExtractorModule
from oml.registry import EXTRACTORS_REGISTRY


@pytest.fixture(scope="module", params=sorted(EXTRACTORS_REGISTRY))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def build(name: str, **args: object) -> IExtractor:
    config = OmegaConf.to_container(OmegaConf.load(CONFIGS_PATH / "extractor" / f"{name}.yaml"))
    config["args"].update(args)
    return EXTRACTORS_REGISTRY.build(config).eval()


@torch.no_grad()
def test_embeddings_have_the_stated_size(name: str) -> None:
    extractor = build(name)
    images = torch.randn(2, 3, 40, 48)
    embeddings = extractor(images)
    assert embeddings.shape == (2, extractor.feat_dim)
    assert torch.equal(extractor.extract(images), embeddings)
    unit = build(name, normalise_features=True)
    unit.load_state_dict(extractor.state_dict())
    torch.testing.assert_close(unit(images), embeddings / embeddings.norm(dim=1, keepdim=True))


@torch.no_grad()
@pytest.mark.parametrize("wrap", ["bare", "state_dict", "lightning"])
def test_what_is_saved_loads_again(name: str, wrap: str, tmp_path: Path) -> None:
    saved = build(name)
    for buffer in saved.buffers():  # running statistics, too
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    if wrap == "bare":
        torch.save(saved.state_dict(), tmp_path / "weights.ckpt")
    elif wrap == "state_dict":
        torch.save({"state_dict": saved.state_dict(), "epoch": 3}, tmp_path / "weights.ckpt")
    else:  # a training run whose criterion has parameters of its own
        module = ExtractorModule(saved, criterion=torch.nn.Linear(4, 4))
        torch.save({"state_dict": module.state_dict(), "hyper": {"lr": 0.1}}, tmp_path / "weights.ckpt")
    images = torch.randn(2, 3, 40, 48)
    torch.testing.assert_close(build(name, weights=tmp_path / "weights.ckpt")(images), saved(images), rtol=0, atol=0)


def test_no_code_runs_from_a_checkpoint(name: str, tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"state_dict": Malicious()}, tmp_path / "weights.ckpt")
    with pytest.raises(ValueError, match=r"weights.ckpt' is no checkpoint of tensors alone"):
        build(name, weights=tmp_path / "weights.ckpt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_a_file_of_another_kind(name: str, suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"weights.{suffix}").write_text("epoch,loss\n1,0.5\n")
    with pytest.raises(ValueError, match="is no checkpoint of tensors alone"):
        build(name, weights=tmp_path / f"weights.{suffix}")


def test_missing_and_foreign_checkpoints(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        build(name, weights=tmp_path / "none.ckpt")
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "foreign.ckpt")
    with pytest.raises(ValueError, match=r"lacks \d+ of the .* Is it of another architecture"):
        build(name, weights=tmp_path / "foreign.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(ValueError, match="no named tensors"):
        build(name, weights=tmp_path / "list.ckpt")


def test_unknown_pretrained_weights(name: str) -> None:
    with pytest.raises(KeyError, match="has no pretrained weights 'vits16_dno'"):
        EXTRACTORS_REGISTRY[name].from_pretrained("vits16_dno")  # pyright: ignore[reportFunctionMemberAccess]
