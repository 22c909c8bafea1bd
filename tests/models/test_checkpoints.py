"""Reading checkpoints and fitting them to modules; extractors have tests of their own formats."""

import os
import pathlib
import pickle
import subprocess
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import timedelta
from inspect import unwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from pytorch_lightning.utilities.parsing import AttributeDict
from safetensors.torch import save_file
from torch import Tensor, nn

from oml.models import ResnetExtractor, ViTExtractor
from oml.models.utils import (
    build,
    check_images,
    filter_state_dict,
    find_prefix_in_state_dict,
    load_weights,
    patch_device_and_float,
    read_checkpoint,
    remove_prefix_from_state_dict,
)


class Net(nn.Module):
    """Small, with a counter, a bare parameter and nested names of which one ends like another."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 4))
        self.norm = nn.BatchNorm1d(4)
        self.blocks = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.BatchNorm1d(4)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.norm(x) + self.token)


@pytest.fixture
def net() -> Net:
    torch.manual_seed(1)
    net = Net()
    net(torch.randn(8, 4))  # moves the running statistics
    return net


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def other(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor + 1 for name, tensor in state.items()}


class Settings:
    """What a user keeps among hyper-parameters."""

    def __init__(self) -> None:
        self.rate = 0.1


LIGHTNING = {
    "epoch": 1,
    "pytorch-lightning_version": "2.5.1",
    "callbacks": {"ModelCheckpoint{'monitor': 'cmc'}": {"best_model_score": torch.ones(()), "dirpath": Path("logs")}},
    "optimizer_states": [{"state": defaultdict(dict, {0: {"step": 1}}), "param_groups": [{"lr": np.float64(0.1)}]}],
    "hyper_parameters": {
        "cfg": OmegaConf.create({"root": Path("data"), "sizes": [1, 2], "same": "${sizes}"}),
        "args": AttributeDict(rate=0.1, every=timedelta(hours=1)),
        "table": np.eye(2),
        "own": Settings(),
        "activation": torch.nn.functional.relu,
    },
}

WRAPPERS: dict[str, Callable[[dict[str, Tensor]], dict[str, Any]]] = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 1},
    "model": lambda state: {"model": state},
    "model_state_dict": lambda state: {"model_state_dict": state, "optimizer_state_dict": {"state": {}}},
    "any prefix": lambda state: under("a.b.c.", state),
    "DataParallel": lambda state: {"state_dict": under("module.", state)},
    "compiled": lambda state: under("model._orig_mod.", state),
    "Lightning": lambda state: {
        **LIGHTNING,
        "state_dict": {"criterion.weight": torch.ones(3, 4), **under("model.model.", state), "bank": torch.zeros(9)},
    },
    "MoCo": lambda state: {
        "arch": "net",
        "state_dict": {**under("module.encoder_k.", other(state)), **under("module.encoder_q.", state)},
    },
    "twice the same": lambda state: {**under("model.", state), **under("extractor.", state)},
    "distilled": lambda state: {**under("old.", {name: torch.ones(2, 2) for name in state}), **under("model.", state)},
    "numbers as names": lambda state: {0: torch.ones(1), **state},
    "a classifier besides": lambda state: {**under("m.", state), "m.fc.weight": torch.ones(2, 4)},
    "no counters": lambda state: {name: value for name, value in state.items() if "num_batches" not in name},
}


@pytest.mark.parametrize("on_meta", [False, True], ids=["in place", "assigned"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapped_checkpoints_load(wrapper: str, on_meta: bool, net: Net, tmp_path: Path) -> None:
    torch.save(WRAPPERS[wrapper](net.state_dict()), tmp_path / "weights.ckpt")
    if on_meta:
        loaded = build(Net, tmp_path / "weights.ckpt")
    else:
        loaded = Net()
        load_weights(loaded, tmp_path / "weights.ckpt")
    expected = net.state_dict()
    assert all(
        name in expected and torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items()
    ) == (wrapper != "no counters")
    x = torch.randn(3, 4)
    assert torch.equal(loaded.eval()(x), net.eval()(x))
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_other_weights_of_the_same_network_are_mentioned(net: Net, tmp_path: Path) -> None:
    averaged = {name: value.half() if value.is_floating_point() else value for name, value in net.state_dict().items()}
    torch.save({**under("ema.model.", averaged), **under("model.", net.state_dict())}, tmp_path / "weights.ckpt")
    with pytest.warns(UserWarning, match=r"Net more than once: those under 'model\.' are .* under \['ema\.model\.'\]"):
        loaded = build(Net, tmp_path / "weights.ckpt")
    torch.testing.assert_close(loaded.state_dict(), net.state_dict(), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:Validating sparse tensor:UserWarning")
@pytest.mark.parametrize("change", [Tensor.to_sparse, lambda token: token.to("meta")], ids=["sparse", "no numbers"])
def test_tensors_that_no_parameter_can_be(change: Callable[[Tensor], Tensor], net: Net, tmp_path: Path) -> None:
    torch.save({**net.state_dict(), "token": change(net.token.detach())}, tmp_path / "weights.ckpt")
    with pytest.raises(ValueError, match=r"holds 1 tensors that are sparse, .*, first \['token'\]\. Save dense ones"):
        build(Net, tmp_path / "weights.ckpt")


def test_weights_are_where_new_ones_would_be(net: Net, tmp_path: Path) -> None:
    torch.save(net.state_dict(), tmp_path / "weights.ckpt")
    with torch.device("meta"):
        assert not any(tensor.is_meta for tensor in read_checkpoint(tmp_path / "weights.ckpt").values())
        assert all(tensor.is_meta for tensor in build(Net, tmp_path / "weights.ckpt").state_dict().values())


def test_other_files_load(net: Net, tmp_path: Path) -> None:
    save_file(under("model.", net.state_dict()), tmp_path / "weights.safetensors")
    torch.save({"state_dict": net.state_dict()}, tmp_path / "old.pth.tar", _use_new_zipfile_serialization=False)
    for file in ("weights.safetensors", "old.pth.tar"):
        loaded = build(Net, str(tmp_path / file))
        torch.testing.assert_close(loaded.state_dict(), net.state_dict(), rtol=0, atol=0)


def test_half_precision_becomes_that_of_the_module(net: Net, tmp_path: Path) -> None:
    half = {name: value.half() if value.is_floating_point() else value for name, value in net.state_dict().items()}
    torch.save(half, tmp_path / "weights.pt")
    loaded = Net()
    load_weights(loaded, tmp_path / "weights.pt")
    assert not torch.equal(loaded.token, net.token)
    for module in (loaded, build(Net, tmp_path / "weights.pt")):
        assert module.token.dtype == module.norm.running_mean.dtype == torch.float32  # pyright: ignore[reportOptionalMemberAccess]
        assert module.norm.num_batches_tracked.dtype == torch.int64  # pyright: ignore[reportOptionalMemberAccess]
        assert torch.equal(module.token, net.token.half().float())


def test_parameters_have_memory_of_their_own(tmp_path: Path) -> None:
    whole = torch.randn(3, 4)
    torch.save({"weight": whole[1:2].T}, tmp_path / "weights.pt")
    loaded = build(lambda: nn.Linear(1, 4, bias=False), tmp_path / "weights.pt")
    assert torch.equal(loaded.weight, whole[1:2].T)
    assert loaded.weight.is_contiguous()
    assert loaded.weight.untyped_storage().nbytes() == 16


@pytest.fixture
def _torchscript() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch.jit")
        yield


class Bomb(nn.Module):
    """Its code runs when ``torch.jit.load`` reads it."""

    def forward(self, x: Tensor) -> Tensor:
        return x

    @torch.jit.export
    def __getstate__(self) -> tuple[int, bool]:
        return 1, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[int, bool]) -> None:
        raise RuntimeError("boom")


class Scripted(nn.Module):
    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.sizes = [1, 2]
        self.visual = visual
        self.bomb = Bomb()

    def forward(self, x: Tensor) -> Tensor:
        return self.visual(self.bomb(x)) * self.scale


@pytest.mark.usefixtures("_torchscript")
def test_torchscript_archives_give_their_tensors_and_run_nothing(net: Net, tmp_path: Path) -> None:
    torch.jit.script(Scripted(net)).save(tmp_path / "clip.pt")
    with pytest.raises(torch.jit.Error, match="boom"):
        torch.jit.load(tmp_path / "clip.pt")
    assert read_checkpoint(tmp_path / "clip.pt").keys() == {"scale", *under("visual.", net.state_dict())}
    torch.testing.assert_close(build(Net, tmp_path / "clip.pt").state_dict(), net.state_dict(), rtol=0, atol=0)


class Reduced:
    """An object whose pickle calls a function."""

    def __init__(self, function: Callable, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "attack",
    [
        lambda path: Reduced(os.system, f"touch {path}"),
        lambda path: Reduced(subprocess.Popen, ["touch", path]),
        lambda path: Reduced(exec, f"open({path!r}, 'w')"),
        lambda path: Reduced(pathlib.Path.touch, Path(path)),
    ],
    ids=["os", "subprocess", "builtins", "pathlib"],
)
def test_no_code_runs(attack: Callable[[str], Any], legacy: bool, net: Net, tmp_path: Path) -> None:
    bad = attack(str(tmp_path / "ran"))
    for content in (bad, {"state_dict": bad}, {"state_dict": {**net.state_dict(), "bad": bad}}):
        torch.save(content, tmp_path / "weights.ckpt", _use_new_zipfile_serialization=not legacy)
        with pytest.raises(ValueError, match="no checkpoint of tensors alone.*it names"):
            read_checkpoint(tmp_path / "weights.ckpt")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(bad))
    with pytest.raises(ValueError, match="no checkpoint of tensors alone"):
        read_checkpoint(tmp_path / "plain.pkl")
    assert not (tmp_path / "ran").exists()


def test_objects_of_other_packages_stay_lifeless(net: Net, tmp_path: Path) -> None:
    bad = Reduced(torch.save, torch.ones(1), str(tmp_path / "ran"))
    torch.save({"state_dict": net.state_dict(), "bad": bad}, tmp_path / "weights.ckpt")
    assert read_checkpoint(tmp_path / "weights.ckpt").keys() == net.state_dict().keys()
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "weights.ckpt", weights_only=False)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 1}, nn.Linear(1, 1), torch.ones(2)], ids=str)
def test_files_without_names(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.ckpt")
    found = r", but \['epoch'\]" if isinstance(content, dict) else ""
    with pytest.raises(ValueError, match=rf"no named tensors, neither bare nor under 'state_dict'{found}\. Save the s"):
        read_checkpoint(tmp_path / "weights.ckpt")


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize(
    "content",
    [b"", b"epoch,loss\n1,0.5\n", b"<html>", b"PK\x03\x04" + bytes(40)],
    ids=["empty", "text", "page", "zip"],
)
def test_damaged_files(content: bytes, suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"weights{suffix}").write_bytes(content)
    with pytest.raises(ValueError, match=r"weights.* is no checkpoint of tensors alone") as error:
        read_checkpoint(tmp_path / f"weights{suffix}")
    assert "weights_only" not in str(error.value)  # no advice of torch's to run what the file says


def test_truncated_file(net: Net, tmp_path: Path) -> None:
    torch.save(net.state_dict(), tmp_path / "weights.ckpt")
    whole = (tmp_path / "weights.ckpt").read_bytes()
    (tmp_path / "weights.ckpt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="of another format, damaged"):
        read_checkpoint(tmp_path / "weights.ckpt")


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*none.ckpt"):
        read_checkpoint(tmp_path / "none.ckpt")
    with pytest.raises(FileNotFoundError, match=r"none.ckpt"):
        load_weights(nn.Linear(1, 1), tmp_path / "none.ckpt")
    with pytest.raises(FileNotFoundError, match=r"vits16_dino"):
        load_weights(nn.Linear(1, 1), "vits16_dno")


def test_what_does_not_fit_is_named(net: Net, tmp_path: Path) -> None:
    state = net.state_dict()
    del state["norm.bias"], state["norm.weight"]
    state["token"] = torch.ones(2, 2)
    state["blocks.2.weight"] = torch.ones(2)
    state["fc.weight"] = torch.ones(2)
    torch.save(under("model.", state), tmp_path / "weights.ckpt")
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(ValueError, match="does not fit") as error:
        load_weights(net, tmp_path / "weights.ckpt")
    assert str(error.value) == (
        f"The checkpoint {str(tmp_path / 'weights.ckpt')!r} does not fit Net: it lacks 2 of the 13 tensors that are "
        "needed, first ['norm.weight', 'norm.bias']; has 1 that are not, first ['blocks.2.weight']; has 1 of other "
        "shapes, first token (2, 2) instead of (1, 4). Is it of another architecture?"
    )
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)


def test_a_deeper_network_is_another_one(net: Net, tmp_path: Path) -> None:
    """As ResNet-101, which has all that ResNet-50 needs, and more."""
    torch.save({**net.state_dict(), "blocks.1.1.weight": torch.ones(4)}, tmp_path / "weights.ckpt")
    with pytest.raises(ValueError, match=r"it has 1 that are not, first \['blocks.1.1.weight'\]\. Is it of"):
        load_weights(net, tmp_path / "weights.ckpt")


def test_weights_of_a_part_are_told(net: Net, tmp_path: Path) -> None:
    """As those of a backbone, for an extractor with a head."""
    torch.save(under("module.", net.state_dict()), tmp_path / "weights.ckpt")
    whole = nn.ModuleDict({"head": nn.Linear(4, 2), "extractor": nn.ModuleDict({"model": Net()})})
    with pytest.raises(ValueError, match=r"has weights of the part 'extractor.model': .*load_weights\(it\.extr"):
        load_weights(whole, tmp_path / "weights.ckpt")
    load_weights(whole.extractor.model, tmp_path / "weights.ckpt")  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("arch", ["vitb8", "vits16", "resnet50", "vitb32_224", "vitl14_336", "vitb16_unicom"])
def test_the_architecture_of_a_checkpoint_is_guessed(arch: str, tmp_path: Path) -> None:
    from oml import models

    extractor = next(
        extractor for name in models.__all__ if arch in getattr(extractor := getattr(models, name), "constructors", {})
    )
    with torch.device("meta"):
        names = {name: tensor.shape for name, tensor in extractor.constructors[arch]().state_dict().items()}
    # numbers do not matter: a file of few bytes
    torch.save({f"model.{name}": torch.zeros(()).expand(shape) for name, shape in names.items()}, tmp_path / "w.ckpt")
    with pytest.raises(ValueError, match=rf"It looks like weights of {extractor.__name__}\(arch='{arch}'\)\."):
        ResnetExtractor(tmp_path / "w.ckpt", "resnet18", gem_p=None, remove_fc=True, normalise_features=False)


def test_weights_of_the_zoo_and_another_arch(tmp_path: Path) -> None:
    saved = ViTExtractor(None, "vitt16", normalise_features=False)
    torch.save(saved.state_dict(), tmp_path / "w.ckpt")
    with pytest.raises(ValueError, match=r"has 150 of other shapes, first .* weights of ViTExtractor\(arch='vitt16'\)"):
        ViTExtractor(tmp_path / "w.ckpt", "vits16", normalise_features=False)


def test_helpers_of_earlier_versions() -> None:
    state = {"criterion.weight": 1, "model.norm.bias": 2, "model.fc.bias": 3}
    assert find_prefix_in_state_dict(state, "norm.bias") == "model."
    with pytest.raises(IndexError, match=r"contains 'norm1.bias'; the first are \['criterion.weight'"):
        find_prefix_in_state_dict(state, "norm1.bias")
    assert remove_prefix_from_state_dict(state, "norm.bias") is state
    assert state == {"norm.bias": 2, "fc.bias": 3}
    assert remove_prefix_from_state_dict(state, "norm.bias") == {"norm.bias": 2, "fc.bias": 3}
    assert filter_state_dict(state, ["fc.bias", "x"]) is state
    assert state == {"fc.bias": 3}


class HardCoded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        made = torch.full((5,), 5.0, dtype=torch.float32, device="meta")
        return x.to(torch.half) + made


@pytest.mark.usefixtures("_torchscript")
def test_code_of_torchscript_is_patched() -> None:
    module = nn.Sequential(torch.jit.script(HardCoded()))
    patch_device_and_float(module, "cpu")
    x = torch.full((5,), 0.1)
    assert torch.equal(module(x), x + 5)  # 0.1 is another number in half precision


class Who(nn.Linear):
    """Takes images, let us say."""


@pytest.mark.parametrize(
    ("images", "error", "text"),
    [
        (np.zeros((1, 3, 8, 8)), TypeError, "Who needs a tensor of images, got ndarray"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), TypeError, r"got torch.uint8 of shape \(1, 3, 8, 8\): apply a tr"),
        (
            torch.zeros(1, 3, 8, 8).double(),
            TypeError,
            "Who has parameters of torch.float32, got .*float64",
        ),
        (torch.zeros(3, 8, 8), ValueError, r"got \(3, 8, 8\): one image without a batch; use x\[None\]"),
        (torch.zeros(1, 8, 8, 3), ValueError, r"got \(1, 8, 8, 3\): channels are last; use x.permute\(0, 3, 1, 2\)"),
        (torch.zeros(1, 1, 8, 8), ValueError, r"of shape \(batch, 3, height, width\), got \(1, 1, 8, 8\)\."),
        (torch.zeros(4, 3), ValueError, r"got \(4, 3\)\."),
    ],
)
def test_what_is_no_batch_of_images(images: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        unwrap(check_images)(Who(1, 1), images)
    check_images(Who(1, 1), torch.zeros(1, 3, 8, 8, dtype=torch.bfloat16))
    check_images(Who(1, 1).double(), torch.zeros(1, 3, 8, 8, dtype=torch.float64))
    check_images(Who(1, 1), torch.zeros(1, 1, 8, 8), channels=1)
