import re
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from oml.models import ResnetExtractor
from oml.models.resnet.pooling import GEM
from oml.models.zoo import ZOO, ZooEntry, pretrained_models_of, register
from oml.utils.io import calc_file_hash

ARGS = {"gem_p": None, "remove_fc": True, "normalise_features": False}


@pytest.mark.parametrize("p", [1.0, 3.0, 5.5])
@torch.no_grad()
def test_gem_follows_the_definition(p: float, rng: torch.Generator) -> None:
    x = torch.randn(2, 3, 4, 5, generator=rng, dtype=torch.float64)
    pooled = GEM(p)(x)
    assert pooled.shape == (2, 3)
    for b in range(2):
        for c in range(3):
            powers = [max(value.item(), 1e-6) ** p for value in x[b, c].flatten()]
            assert pooled[b, c].item() == pytest.approx((sum(powers) / 20) ** (1 / p), rel=1e-9)
    torch.testing.assert_close(GEM(p)(x.flatten(2)), pooled)  # tokens


def test_gradient_of_gem(rng: torch.Generator) -> None:
    x = torch.rand(2, 2, 2, 3, generator=rng, dtype=torch.float64).add_(0.1).requires_grad_()
    assert torch.autograd.gradcheck(GEM(3.5), x)
    gem = GEM(3.5, learnable=True).double()
    assert torch.autograd.gradcheck(lambda x, p: torch.func.functional_call(gem, {"p": p}, x), (x, gem.p))
    assert not list(GEM(3.5).parameters()) + list(GEM(3.5).state_dict())


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1e12])
@pytest.mark.parametrize("p", [8, 30])
def test_powers_of_gem_neither_vanish_nor_overflow(scale: float, p: int, rng: torch.Generator) -> None:
    """``eps ** 8`` is 0 in float32, whose root has an infinite slope; ``1e12 ** 8`` is infinite."""
    x = (torch.rand(2, 3, 4, 5, generator=rng) * scale).requires_grad_()
    pooled = GEM(p)(x)
    torch.testing.assert_close(pooled, GEM(p)(x.double()).float())
    pooled.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@torch.no_grad()
def test_gem_of_half_precision(rng: torch.Generator) -> None:
    x = torch.rand(2, 3, 7, 7, generator=rng).add_(1)
    half = x.bfloat16()
    exact = GEM(3)(half.float())
    assert torch.equal(GEM(3)(half), exact.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(GEM(3)(half.float()), exact)
    for args in ({"p": 0}, {"p": -1}, {"p": 3, "eps": 0.0}):
        with pytest.raises(ValueError, match="GEM needs p and eps above 0"):
            GEM(**args)


@torch.no_grad()
def test_the_network_is_that_of_torchvision(rng: torch.Generator) -> None:
    extractor = ResnetExtractor(None, "resnet18", **ARGS).eval()
    assert isinstance(extractor.model, torchvision.models.ResNet)
    model = torchvision.models.resnet18().eval()
    model.load_state_dict(extractor.model.state_dict(), strict=False)
    maps = nn.Sequential(*list(model.children())[:-2])
    images = torch.randn(2, 3, 64, 48, generator=rng)
    torch.testing.assert_close(extractor(images), maps(images).mean(dim=(2, 3)))
    gem = ResnetExtractor(None, "resnet18", **(ARGS | {"gem_p": 1})).eval()  # 1 is not the average of torchvision
    assert isinstance(gem.model.avgpool, GEM)
    gem.load_state_dict(extractor.state_dict())
    torch.testing.assert_close(gem(images), GEM(1)(maps(images)))


@pytest.mark.parametrize("arch", ResnetExtractor.constructors)
def test_architectures(arch: str) -> None:
    channels = 512 if arch in ("resnet18", "resnet34") else 2048
    with torch.device("meta"):
        images = torch.empty(2, 3, 32, 32)
        for remove_fc in (True, False):
            extractor = ResnetExtractor(None, arch, gem_p=3.0, remove_fc=remove_fc, normalise_features=True)
            expected = channels if remove_fc else 128 if arch == "resnet50_projector" else 1000
            assert extractor(images).shape == (2, extractor.feat_dim) == (2, expected)
            assert extractor.get_last_conv_channels() == channels


def test_architectures_are_those_of_torchvision() -> None:
    known = set(ResnetExtractor.constructors)
    assert {"resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "resnext50_32x4d"} < known
    assert all("resn" in name for name in known)
    with pytest.raises(ValueError, match="'resnet51', did you mean 'resnet50'. There are .*resnet50_projector"):
        ResnetExtractor(None, "resnet51", **ARGS)


def with_statistics(model: nn.Module) -> nn.Module:
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("saved_fc", [True, False])
@pytest.mark.parametrize("remove_fc", [True, False])
def test_files_with_and_without_fc(
    saved_fc: bool, remove_fc: bool, tmp_path: Path, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oml.models.utils._known", list)  # no guess which architecture it may be: that takes seconds
    saved = with_statistics(ResnetExtractor(None, "resnet18", **(ARGS | {"remove_fc": not saved_fc})))
    torch.save({"state_dict": saved.state_dict()}, tmp_path / "weights.ckpt")

    def load() -> ResnetExtractor:
        return ResnetExtractor(tmp_path / "weights.ckpt", "resnet18", **(ARGS | {"remove_fc": remove_fc})).eval()

    if not saved_fc and not remove_fc:
        with pytest.raises(ValueError, match=re.escape("lacks 2 of the 122 tensors that are needed")):
            load()
        return
    images = torch.randn(2, 3, 64, 64, generator=rng)
    if remove_fc:
        saved.model.fc = nn.Identity()
    assert torch.equal(load()(images), saved(images))


@torch.no_grad()
def test_moco_gives_its_encoder_of_queries(tmp_path: Path, rng: torch.Generator) -> None:
    """The encoder of keys trails behind; the queue is beside them."""
    queries, keys = (
        with_statistics(ResnetExtractor(None, "resnet50_projector", 5, False, False)).model for _ in range(2)
    )
    encoders = [("encoder_k", keys), ("encoder_q", queries)]
    state = {f"module.{name}.{key}": value for name, model in encoders for key, value in model.state_dict().items()}
    state |= {"module.queue": torch.zeros(128, 10), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
    torch.save({"epoch": 800, "arch": "resnet50", "state_dict": state, "optimizer": {}}, tmp_path / "moco.pth.tar")
    extractor = ResnetExtractor(tmp_path / "moco.pth.tar", "resnet50_projector", 5, False, False).eval()
    images = torch.randn(1, 3, 32, 32, generator=rng)
    queries.avgpool = keys.avgpool = GEM(5)  # pyright: ignore[reportAttributeAccessIssue]
    assert torch.equal(extractor(images), queries(images))
    assert not torch.allclose(queries(images), keys(images))


@torch.no_grad()
def test_weights_by_name(checkpoints: Path, monkeypatch: pytest.MonkeyPatch, rng: torch.Generator) -> None:
    model = with_statistics(torchvision.models.resnet18())
    checkpoints.mkdir()
    torch.save(model.state_dict(), checkpoints / "mine.pth")
    for table in (ZOO, pretrained_models_of("ResnetExtractor")):
        monkeypatch.setitem(table, "mine", None)
    register(
        ZooEntry(
            name="mine",
            extractor="ResnetExtractor",
            init_args=ARGS | {"arch": "resnet18"},
            sources=["http://127.0.0.1:9/none"],
            hash=f"md5:{calc_file_hash(checkpoints / 'mine.pth')}",
            file="mine.pth",
            transforms={"name": "norm_resize_torch", "args": {"im_size": 64}},
        )
    )
    images = torch.randn(2, 3, 64, 64, generator=rng)
    assert torch.equal(ResnetExtractor("mine", "resnet18", None, False, False).eval()(images), model(images))
    model.fc = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    assert torch.equal(ResnetExtractor.from_pretrained("mine").eval()(images), model(images))
    with pytest.raises(ValueError, match="weights 'mine' are of the architecture 'resnet18', got arch='resnet34'"):
        ResnetExtractor("mine", "resnet34", **ARGS)


@torch.no_grad()
@pytest.mark.parametrize("remove_fc", [True, False])
def test_half_precision_weights_and_batches_of_any_size(remove_fc: bool, rng: torch.Generator) -> None:
    extractor = ResnetExtractor(None, "resnet18", 3, remove_fc, True).eval()
    images = torch.randn(2, 3, 33, 65, generator=rng)
    exact = extractor(images)
    torch.testing.assert_close(extractor(images[:1]), exact[:1])
    half = extractor.bfloat16()(images.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, atol=0.02, rtol=0.05)
