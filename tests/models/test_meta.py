import inspect
import warnings
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from oml.functional.distances import elementwise_dist
from oml.interfaces.models import IExtractor, IFreezable, IPairwiseModel
from oml.lightning.modules.extractor import ExtractorModule
from oml.losses.triplet import TripletLossWithMiner
from oml.miners.inbatch_all_tri import AllTripletsMiner
from oml.models import (
    ConcatSiamese,
    ExtractorWithMLP,
    LinearTrivialDistanceSiamese,
    TimmExtractor,
    TrivialDistanceSiamese,
    ViTExtractor,
)
from oml.models.zoo import ZOO, ZooEntry, pretrained_models_of, register
from oml.registry.models import get_extractor_by_cfg
from oml.utils.io import calc_file_hash


class Backbone(IExtractor):
    """With all that behaves in its own way in training, BatchNorm and dropout; and what is where matters."""

    feat_dim = 6  # pyright: ignore[reportAssignmentType]

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        maps = self.model(x)
        return (maps * torch.linspace(0, 9, maps.shape[2])[:, None]).mean(dim=(2, 3))


@pytest.fixture
def images(rng: torch.Generator) -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=rng)


def with_mlp(**args: Any) -> ExtractorWithMLP:
    torch.manual_seed(0)
    return ExtractorWithMLP(Backbone(), [5, 2], **args)


def concat(**args: Any) -> ConcatSiamese:
    torch.manual_seed(0)
    return ConcatSiamese(Backbone(), [5, 3], **args)


def run(model: nn.Module, images: Tensor) -> Tensor:
    return model(images, images.flip(0)) if isinstance(model, IPairwiseModel) else model(images)


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def changed(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}


def train(model: nn.Module, images: Tensor) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        run(model, images).square().sum().backward()
        optimizer.step()


@torch.no_grad()
def test_projection_of_embeddings(images: Tensor) -> None:
    extractor = with_mlp().eval()
    assert [type(layer) for layer in extractor.projection] == [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear, nn.Dropout]
    first, _, _, second, _ = extractor.projection
    hidden = (extractor.extractor(images) @ first.weight.T + first.bias).clamp(min=0)  # pyright: ignore
    torch.testing.assert_close(extractor(images), hidden @ second.weight.T + second.bias)  # pyright: ignore
    assert extractor(images).shape == (4, extractor.feat_dim) == (4, 2)
    assert torch.equal(extractor.extract(images), extractor(images))
    with pytest.raises(ValueError, match="needs the size of one layer or more as mlp_features, got none"):
        ExtractorWithMLP(Backbone(), [])


def test_backbones_are_frozen_or_not() -> None:
    assert not with_mlp().train_backbone
    assert with_mlp(train_backbone=True).train_backbone
    assert concat().train_backbone
    assert all(isinstance(model, IFreezable) for model in (with_mlp(), concat()))


@pytest.mark.parametrize("build", [with_mlp, concat])
def test_a_frozen_backbone_stays_as_it_is(build: Any, images: Tensor) -> None:
    model = build().train()
    model.freeze()
    assert not model.train_backbone
    before = snapshot(model)
    train(model, images)
    assert changed(model, before)
    assert not [name for name in changed(model, before) if name.startswith("extractor.")]
    torch.testing.assert_close(model.extractor(images), model.extractor(images), rtol=0, atol=0)  # no dropout

    model.unfreeze()
    assert model.train_backbone
    before = snapshot(model)
    train(model, images)
    names = {"extractor.model.0.weight", "extractor.model.1.running_mean", "extractor.model.1.weight"}
    assert names <= changed(model, before)


@pytest.mark.parametrize("build", [with_mlp, concat])
def test_modes_of_a_frozen_backbone(build: Any) -> None:
    model = build()
    head = model.projection if isinstance(model, ExtractorWithMLP) else model.head

    def modes() -> tuple[bool, bool, bool]:
        bn = model.extractor.model[1].training
        assert bn == model.extractor.training
        return model.training, head.training, bn

    model.freeze()
    assert modes() == (True, True, False)
    model.eval()
    assert modes() == (False, False, False)
    model.train()
    assert modes() == (True, True, False)
    model.unfreeze()
    assert modes() == (True, True, True)
    model.eval()
    model.unfreeze()
    assert modes() == (False, False, False)
    model.freeze()
    nn.Sequential(model).train()  # as a part of a module
    assert modes() == (True, True, False)
    if isinstance(model, ExtractorWithMLP):
        assert not ExtractorWithMLP(Backbone().train(), [2]).extractor.training
        assert ExtractorWithMLP(Backbone().train(), [2], train_backbone=True).extractor.training


@pytest.mark.parametrize("build", [with_mlp, concat])
@pytest.mark.parametrize("frozen", [True, False])
def test_no_graph_within_no_grad(build: Any, frozen: bool, images: Tensor) -> None:
    """In the described system, a backbone that learns switches gradients on within ``no_grad`` too."""
    model = build()
    (model.freeze if frozen else model.unfreeze)()
    seen = []
    model.extractor.register_forward_hook(lambda module, args, output: seen.append(output.requires_grad))
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert not run(model, images).requires_grad
    assert run(model, images).requires_grad
    assert seen == [False, False, not frozen]
    assert torch.is_grad_enabled()


def test_a_frozen_backbone_in_a_training_with_lightning(images: Tensor, tmp_path: Path) -> None:
    """Lightning changes the modes of all modules before and after validation."""
    model = with_mlp()
    criterion = TripletLossWithMiner(margin=1.0, miner=AllTripletsMiner())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    items = [{"input_tensors": image, "labels": i // 2} for i, image in enumerate(images)]
    before, loader = snapshot(model), DataLoader(items, batch_size=4)  # pyright: ignore[reportArgumentType]
    trainer = pl.Trainer(
        default_root_dir=tmp_path, max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1, num_sanity_val_steps=1,
    )  # fmt: skip
    module = ExtractorModule(model, criterion, optimizer)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        trainer.fit(module, loader, loader)
    assert {name.split(".")[0] for name in changed(model, before)} == {"projection"}


@torch.no_grad()
def test_pretrained_weights_load_twice(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch, rng: torch.Generator
) -> None:
    """In the described system, the second call raises a KeyError: the first one has changed the table."""
    saved = ExtractorWithMLP(TimmExtractor(None, "test_vit"), [5], train_backbone=True).eval()
    checkpoints.mkdir()
    state = {f"model.{key}": tensor for key, tensor in saved.state_dict().items()}
    torch.save({"state_dict": state}, checkpoints / "mine.ckpt")
    for table in (ZOO, pretrained_models_of("ExtractorWithMLP")):
        monkeypatch.setitem(table, "mine", None)
    register(
        ZooEntry(
            name="mine",
            extractor="ExtractorWithMLP",
            init_args={
                "extractor": {"name": "timm", "args": {"weights": None, "arch": "test_vit"}},
                "mlp_features": [5],
                "train_backbone": True,
            },
            sources=["http://127.0.0.1:9/none"],
            hash=f"md5:{calc_file_hash(checkpoints / 'mine.ckpt')}",
            file="mine.ckpt",
            transforms={"name": "norm_resize_torch", "args": {"im_size": 64}},
        )
    )
    images = torch.randn(1, 3, 32, 32, generator=rng)
    for _ in range(2):
        loaded = ExtractorWithMLP.from_pretrained("mine").eval()
        assert torch.equal(loaded(images), saved(images))
        assert loaded.train_backbone
    with pytest.raises(KeyError, match="ExtractorWithMLP has no pretrained weights 'min', did you mean 'mine'"):
        ExtractorWithMLP.from_pretrained("min")


def test_the_described_weights_are_of_a_vit() -> None:
    args = dict(ExtractorWithMLP.pretrained_models["vits16_224_mlp_384_inshop"]["init_args"])
    backbone = args.pop("extractor")
    with torch.device("meta"):
        extractor = ExtractorWithMLP(get_extractor_by_cfg(backbone), **args)
    assert isinstance(extractor.extractor, ViTExtractor)
    assert (extractor.extractor.arch, extractor.feat_dim, extractor.train_backbone) == ("vits16", 384, True)
    assert {"projection.0.weight", "projection.0.bias", "extractor.model.cls_token"} < set(extractor.state_dict())


@pytest.mark.parametrize("batch", [1, 4, 32])
def test_identity_gives_plain_distances(batch: int, rng: torch.Generator) -> None:
    x1, x2 = torch.randn(2, batch, 8, generator=rng)
    model = LinearTrivialDistanceSiamese(feat_dim=8, identity_init=True)
    expected = elementwise_dist(x1, x2)
    torch.testing.assert_close(model(x1, x2), expected)
    torch.testing.assert_close(model.predict(x1, x2), expected)
    assert list(model.state_dict()) == ["proj.weight"]
    other = LinearTrivialDistanceSiamese(feat_dim=8, identity_init=False)
    torch.testing.assert_close(other(x1, x2), ((x1 - x2) @ other.proj.weight.T).norm(dim=1))
    assert not torch.allclose(other(x1, x2), expected)


@torch.no_grad()
def test_distances_of_images(images: Tensor) -> None:
    backbone = Backbone().eval()
    model = TrivialDistanceSiamese(backbone).eval()
    expected = (backbone(images) - backbone(images.flip(0))).norm(dim=1)
    assert expected.min() > 0
    torch.testing.assert_close(model(images, images.flip(0)), expected)
    assert torch.equal(model.predict(images, images.flip(0)), model(images, images.flip(0)))
    assert TrivialDistanceSiamese.pretrained_models == ConcatSiamese.pretrained_models == {}


@torch.no_grad()
def test_two_images_in_one_picture(images: Tensor) -> None:
    model, other = concat().eval(), images.flip(0)
    first, _, _, second, _, _, last, _ = model.head
    layers = ["Linear", "Sigmoid", "Dropout", "Linear", "Sigmoid", "Dropout", "Linear", "Identity"]
    assert [type(layer).__name__ for layer in model.head] == layers
    assert [layer.p for layer in model.head if isinstance(layer, nn.Dropout)] == [0.5, 0.5]
    names = ["0.weight", "0.bias", "3.weight", "3.bias", "6.weight"]
    assert [name for name in model.state_dict() if name.startswith("head")] == [f"head.{name}" for name in names]
    embeddings = model.extractor(torch.cat([images, other], dim=2))
    hidden = second(first(embeddings).sigmoid()).sigmoid()
    logits = (hidden @ last.weight.T).squeeze(1)  # pyright: ignore
    torch.testing.assert_close(model(images, other), logits)
    torch.testing.assert_close(model.predict(images, other), logits.sigmoid())
    assert model(images[:1], other[:1]).shape == (1,)
    assert ConcatSiamese(Backbone(), []).eval()(images, other).shape == (4,)


@torch.no_grad()
def test_prediction_of_both_orders(images: Tensor) -> None:
    one, both = concat().eval(), concat(use_tta=True).eval()
    for parameter in (*one.head.parameters(), *both.head.parameters()):
        parameter.mul_(5)
    other = images.roll(1, 0)
    there, back = one.predict(images, other), one.predict(other, images)
    assert not torch.allclose(there, back, rtol=1e-3)
    torch.testing.assert_close(both.predict(images, other), (there + back) / 2)
    assert torch.equal(both.predict(images, other), both.predict(other, images))
    torch.testing.assert_close(both(images, other), one(images, other))  # in training, the order is as it came


@torch.no_grad()
@pytest.mark.parametrize("build", [with_mlp, concat])
@pytest.mark.parametrize("prefix", ["", "model.", "module.model."])
def test_what_is_saved_loads_again(build: Any, prefix: str, images: Tensor, tmp_path: Path) -> None:
    saved = build().eval()
    saved.extractor.model[1].running_mean.uniform_(-1, 1)
    torch.save({"state_dict": {prefix + k: v for k, v in saved.state_dict().items()}}, tmp_path / "weights.ckpt")
    torch.manual_seed(1)
    args = {"mlp_features": [5, 2]} if build is with_mlp else {"mlp_hidden_dims": [5, 3]}
    loaded = type(saved)(Backbone(), weights=tmp_path / "weights.ckpt", **args).eval()
    assert torch.equal(run(loaded, images), run(saved, images))


def test_pairs_that_do_not_fit(images: Tensor) -> None:
    model = concat()
    forward = inspect.unwrap(type(model).forward)  # without the checks of shapes that tests add
    with pytest.raises(ValueError, match=r"one shape on both sides, got \(4, 3, 8, 8\) and \(4, 3, 8, 6\)"):
        forward(model, images, images[..., :6])
    with pytest.raises(TypeError, match=r"ConcatSiamese needs images of normalised .* got torch.uint8"):
        forward(model, images.byte(), images)
