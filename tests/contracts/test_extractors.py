"""What every extractor of the registry promises."""

import copy
import inspect
import pickle
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.models.resnet import BasicBlock, ResNet

from oml import models
from oml.const import CONFIGS_PATH
from oml.interfaces.models import IExtractor
from oml.lightning.modules.extractor import ExtractorModule
from oml.losses.arcface import ArcFaceLoss
from oml.models import ExtractorWithMLP, ResnetExtractor
from oml.models.utils import VIT_SIZES
from oml.models.zoo import ZOO
from oml.registry import EXTRACTORS_REGISTRY
from oml.registry.transforms import TRANSFORMS_FOR_PRETRAINED

# beside the packaged configs: architectures that are quick, others whose weights do not fit, and sides of images
SMALL: dict[str, dict[str, Any]] = {
    "extractor_with_mlp": {"extractor": {"name": "timm", "args": {"weights": None, "arch": "test_convnext"}}},
    "resnet": {"arch": "resnet10"},
    "timm": {"arch": "test_vit"},
}
OTHERS: dict[str, dict[str, Any]] = {
    "extractor_with_mlp": {"mlp_features": [5, 384]},
    "resnet": {"arch": "resnet18"},
    "timm": {"arch": "test_resnet"},
    "vit": {"arch": "vits16"},
    "vit_clip": {"arch": "vitb16_224"},
    "vit_unicom": {"arch": "vitb16_unicom"},
}
SIDES = {"vit_unicom": 224}


@pytest.fixture(scope="module", autouse=True)
def _small_networks() -> Iterator[None]:
    """Of two and four blocks, and no guess which architecture a file may be of: all that takes long."""
    with pytest.MonkeyPatch.context() as patch:
        for size in VIT_SIZES:
            patch.setitem(VIT_SIZES, size, {"embed_dim": 64, "depth": 2, "num_heads": 2})
        patch.setitem(ResnetExtractor.constructors, "resnet10", partial(ResNet, BasicBlock, [1, 1, 1, 1]))
        patch.setattr("oml.models.utils._known", list)
        yield


@pytest.fixture(scope="module", params=sorted(EXTRACTORS_REGISTRY))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def build(name: str, **args: Any) -> IExtractor:
    config: Any = OmegaConf.to_container(OmegaConf.load(CONFIGS_PATH / "extractor" / f"{name}.yaml"))
    config["args"] |= SMALL.get(name, {}) | args
    return EXTRACTORS_REGISTRY.build(config).eval()


@pytest.fixture(scope="module")
def saved(name: str) -> IExtractor:
    """An extractor as it may come out of training: do not change it."""
    torch.manual_seed(0)
    extractor = build(name)
    for name, buffer in extractor.named_buffers():
        if "running" in name:
            buffer.uniform_(*((0.5, 1.5) if "var" in name else (-0.1, 0.1)))
    return extractor


@pytest.fixture(scope="module")
def images(name: str) -> Tensor:
    side = SIDES.get(name, 64)
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def embeddings(saved: IExtractor, images: Tensor) -> Tensor:
    with torch.no_grad():
        embeddings = saved(images)
    assert (embeddings[0] - embeddings[1]).abs().max() > 1e-3  # the images matter
    return embeddings


def test_embeddings_have_the_stated_size(name: str) -> None:
    """The packaged config, too."""
    with torch.device("meta"):
        for extractor in (
            build(name),
            EXTRACTORS_REGISTRY.build(OmegaConf.load(CONFIGS_PATH / "extractor" / f"{name}.yaml")),
        ):
            assert isinstance(extractor, IExtractor)
            extractor.eval()
            for batch in (1, 3):
                output = extractor(torch.empty(batch, 3, 224, 224))
                assert output.shape == (batch, extractor.feat_dim)
                assert output.device.type == "meta"


@torch.no_grad()
def test_embeddings_of_the_same_images(name: str, saved: IExtractor, images: Tensor, embeddings: Tensor) -> None:
    assert embeddings.shape == (2, saved.feat_dim)
    assert embeddings.dtype == torch.float32
    assert torch.equal(saved.extract(images), embeddings)
    torch.testing.assert_close(saved(images[1:]), embeddings[1:], atol=1e-4, rtol=1e-4)  # products in another order
    assert torch.equal(copy.deepcopy(saved)(images), embeddings)
    assert torch.equal(pickle.loads(pickle.dumps(saved))(images), embeddings)


@torch.no_grad()
def test_unit_length(name: str, saved: IExtractor, images: Tensor) -> None:
    if "normalise_features" not in inspect.signature(EXTRACTORS_REGISTRY[name]).parameters:
        return
    plain, unit = build(name, normalise_features=False), build(name, normalise_features=True)
    for extractor in (plain, unit):
        extractor.load_state_dict(saved.state_dict())
    norms = plain(images).norm(dim=1, keepdim=True)
    assert (norms - 1).abs().min() > 1e-3
    torch.testing.assert_close(unit(images), plain(images) / norms)


def test_gradients_reach_the_backbone(name: str, images: Tensor) -> None:
    torch.manual_seed(0)
    extractor = build(name)
    if isinstance(extractor, ExtractorWithMLP):
        extractor.unfreeze()
    output = extractor.train()(images)
    (output * torch.randn_like(output)).sum().backward()
    grads = {name: parameter.grad for name, parameter in extractor.named_parameters()}
    assert not [name for name, grad in grads.items() if grad is None or not grad.isfinite().all()]
    first = next(grad for grad in grads.values() if grad is not None and grad.ndim == 4)  # of a convolution
    assert first.abs().max() > 0


@torch.no_grad()
def test_half_precision(name: str, saved: IExtractor, images: Tensor, embeddings: Tensor) -> None:
    def agrees(found: Tensor) -> bool:
        return bool(torch.cosine_similarity(found.float(), embeddings).min() > 0.99)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert agrees(saved(images))
    low = copy.deepcopy(saved).bfloat16()(images.bfloat16())
    assert low.dtype == torch.bfloat16
    assert agrees(low)
    assert agrees(copy.deepcopy(saved).to(memory_format=torch.channels_last)(images))  # pyright: ignore[reportCallIssue]


@torch.no_grad()
@pytest.mark.parametrize("wrap", ["bare", "state_dict", "lightning", "ddp", "compiled", "safetensors", "half"])
def test_what_is_saved_loads_again(
    name: str, wrap: str, saved: IExtractor, images: Tensor, embeddings: Tensor, tmp_path: Path
) -> None:
    path, state = tmp_path / "weights.ckpt", saved.state_dict()
    prefix = {"ddp": "module.model.", "compiled": "model._orig_mod."}.get(wrap, "")
    if wrap == "safetensors":
        path = tmp_path / "weights.safetensors"
        save_file({f"model.{key}": tensor.contiguous() for key, tensor in state.items()}, path)
    elif wrap == "bare":
        torch.save(state, path)
    elif wrap == "half":
        halves = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in state.items()}
        torch.save(halves, path)
        half = build(name)
        half.load_state_dict(halves)
        embeddings = half(images)
    elif wrap == "lightning":  # with a criterion that has parameters of its own
        module = ExtractorModule(saved, criterion=ArcFaceLoss(in_features=saved.feat_dim, num_classes=3))
        torch.save({"state_dict": module.state_dict(), "epoch": 3, "hyper_parameters": {"lr": 0.1}}, path)
    else:
        torch.save({"state_dict": {prefix + key: tensor for key, tensor in state.items()}}, path)
    torch.manual_seed(1)
    loaded = build(name, weights=path)
    assert {tensor.dtype for tensor in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded(images), embeddings)
    if wrap == "bare":
        assert torch.equal(build(name, weights=str(path))(images), embeddings)


def test_a_checkpoint_of_a_training_with_arcface(tmp_path: Path) -> None:
    extractor = build("resnet")
    criterion = ArcFaceLoss(in_features=512, num_classes=2)
    optimizer = torch.optim.Adam([*extractor.parameters(), *criterion.parameters()], lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    trainer = pl.Trainer(
        default_root_dir=tmp_path, max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
    )  # fmt: skip
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    items: Any = [{"input_tensors": image, "labels": i // 2} for i, image in enumerate(images)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        trainer.fit(ExtractorModule(extractor, criterion, optimizer, scheduler), DataLoader(items, batch_size=4))
        trainer.save_checkpoint(tmp_path / "best.ckpt")
    assert "criterion.weight" in torch.load(tmp_path / "best.ckpt", weights_only=True)["state_dict"]
    with torch.no_grad():
        assert torch.equal(build("resnet", weights=tmp_path / "best.ckpt")(images), extractor.eval()(images))


def test_no_code_runs_from_a_checkpoint(name: str, tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"state_dict": Malicious()}, tmp_path / "weights.ckpt")
    with pytest.raises(ValueError, match=r"weights.ckpt'"):
        build(name, weights=tmp_path / "weights.ckpt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_a_file_of_another_kind(name: str, suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"weights.{suffix}").write_text("epoch,loss\n1,0.5\n")
    with pytest.raises(ValueError, match="is no checkpoint of tensors alone"):
        build(name, weights=tmp_path / f"weights.{suffix}")


def test_foreign_checkpoints(name: str, tmp_path: Path) -> None:
    torch.save({"classifier.weight": torch.zeros(2)}, tmp_path / "foreign.ckpt")
    with pytest.raises(ValueError, match=r"lacks \d+ of the .* Is it of another architecture"):
        build(name, weights=tmp_path / "foreign.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(ValueError, match="no named tensors"):
        build(name, weights=tmp_path / "list.ckpt")


def test_weights_of_another_architecture(name: str, saved: IExtractor, tmp_path: Path) -> None:
    torch.save(saved.state_dict(), tmp_path / "weights.ckpt")
    with pytest.raises(ValueError, match=r"weights.ckpt' does not fit \w+: it (lacks|has) .*, first .*architecture"):
        build(name, weights=tmp_path / "weights.ckpt", **OTHERS[name])


def test_unknown_names(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none.ckpt"):
        build(name, weights=tmp_path / "none.ckpt")
    for weights in ("vits16_dno", "resnet50_mocov2"):
        with pytest.raises(FileNotFoundError, match="did you mean"):
            build(name, weights=weights)
        with pytest.raises(KeyError, match=f"has no pretrained weights '{weights}'"):
            EXTRACTORS_REGISTRY[name].from_pretrained(weights)  # pyright: ignore[reportFunctionMemberAccess]
    if name != "extractor_with_mlp":
        with pytest.raises((ValueError, KeyError), match="'vitb33'"):
            build(name, arch="vitb33")


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda x: (x * 10).byte(), TypeError, "normalised floating-point numbers, got torch.uint8"),
        (lambda x: x[0], ValueError, r"got \(3, \d+, \d+\): one image without a batch; use x\[None\]"),
        (lambda x: x.permute(0, 2, 3, 1), ValueError, r"channels are last; use x.permute\(0, 3, 1, 2\)"),
        (lambda x: x[:, :1], ValueError, r"images of shape \(batch, 3, height, width\), got \(2, 1, "),
        (lambda x: x.numpy(), TypeError, "a tensor of images, got ndarray"),
    ],
    ids=["uint8", "one", "last", "grey", "numpy"],
)
def test_what_are_no_images(saved: IExtractor, images: Tensor, change: Any, error: type[Exception], text: str) -> None:
    extractor = saved.extractor if isinstance(saved, ExtractorWithMLP) else saved
    forward = inspect.unwrap(type(extractor).forward)  # without the checks of shapes that tests add
    with pytest.raises(error, match=rf"^{type(extractor).__name__} needs .*{text}"):
        forward(extractor, change(images))


@pytest.mark.slow
@torch.no_grad()
def test_compiled(name: str, saved: IExtractor, images: Tensor, embeddings: Tensor) -> None:
    """Traced, not made into machine code, which takes minutes."""
    compiled = torch.compile(copy.deepcopy(saved), backend="eager")
    torch.testing.assert_close(compiled(images), embeddings, atol=1e-4, rtol=1e-4)


def test_names_of_the_zoo() -> None:
    """Each is of an extractor that is there, can be built as it says, and has transforms."""
    classes = set(EXTRACTORS_REGISTRY.values())
    for name, entry in ZOO.items():
        extractor: Any = getattr(models, entry.extractor)
        assert extractor in classes, name
        init_args = extractor.pretrained_models[name]["init_args"]
        inspect.signature(extractor).bind(weights=name, **init_args)
        if hasattr(extractor, "constructors"):
            assert init_args["arch"] in extractor.constructors, name
        assert name in TRANSFORMS_FOR_PRETRAINED, name
    for extractor in EXTRACTORS_REGISTRY.values():
        assert set(extractor.pretrained_models) <= set(ZOO)  # pyright: ignore[reportFunctionMemberAccess]
        assert extractor.pretrained_models  # pyright: ignore[reportFunctionMemberAccess]
