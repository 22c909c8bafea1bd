import copy
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from oml.interfaces.models import IExtractor
from oml.models import CrossAttentionSiamese


class Backbone(IExtractor):
    """Two maps of different sizes, and an embedding in which it matters what is where. Counts the images it sees."""

    feat_dim = 5  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4))
        self.second = nn.Conv2d(4, 5, 2, stride=2)
        self.n_seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.n_seen += len(x)
        maps = self.second(self.first(x).relu())
        return (maps * torch.linspace(0, 9, maps.shape[2])[:, None]).mean(dim=(2, 3))


def siamese(learned: bool = True, **args: Any) -> CrossAttentionSiamese:
    torch.manual_seed(0)
    model = CrossAttentionSiamese(Backbone(), **{"layers": ["first", "second"], "dim": 6, "n_heads": 2} | args)
    if learned:  # as training would leave it: nothing is zero
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.5)
    backbone(model).n_seen = 0
    return model


def backbone(model: CrossAttentionSiamese) -> Backbone:
    assert isinstance(model.extractor, Backbone)
    return model.extractor


@pytest.fixture
def images(rng: torch.Generator) -> Tensor:
    return torch.randn(6, 3, 12, 9, generator=rng)


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


@torch.no_grad()
def test_an_untrained_model_ranks_as_the_extractor(images: Tensor) -> None:
    model, other = siamese(learned=False).eval(), images.roll(1, 0)
    distances = (unit(model.extractor(images)) - unit(model.extractor(other))).norm(dim=1)
    assert distances.min() > 0.01
    torch.testing.assert_close(model(images, other), 10 * (distances - 0.7))
    torch.testing.assert_close(model.predict(images, other), torch.sigmoid(10 * (distances - 0.7)))


@torch.no_grad()
def test_against_the_definition(images: Tensor) -> None:
    model = siamese().eval()
    x1, x2 = images[:3], images[3:]
    maps = [backbone(model).first(images)]
    maps.append(nn.functional.interpolate(backbone(model).second(maps[0].relu()), maps[0].shape[2:], mode="bilinear"))
    n_rows, n_columns = maps[0].shape[2:]
    assert (n_rows, n_columns) == (5, 4)
    tokens = model.tokens(torch.cat(maps, dim=1).permute(0, 2, 3, 1))  # image, row, column, dim
    keys = model.key(tokens)

    def compared(one: int, other: int) -> Tensor:
        made = []
        for row in range(n_rows):
            for column in range(n_columns):
                found = []
                for head, log_width in enumerate(model.log_width):
                    part = slice(3 * head, 3 * head + 3)
                    logits = torch.empty(n_rows, n_columns)
                    for r in range(n_rows):
                        for c in range(n_columns):
                            alike = keys[one, row, column, part] @ keys[other, r, c, part] / 3**0.5
                            away = ((row - r) ** 2 + (column - c) ** 2) / (2 * log_width.exp() ** 2)
                            logits[r, c] = alike - away
                    attention = logits.flatten().softmax(0)
                    found.append(attention @ tokens[other, :, :, part].reshape(-1, 3))
                own, there = tokens[one, row, column], torch.cat(found)
                made.append(model.parts(torch.cat([(own - there).abs(), own * there, own])))
        return torch.cat([torch.stack(made).mean(dim=0), torch.stack(made).amax(dim=0)])

    embeddings = unit(model.extractor(images))
    expected = []
    for i in range(3):
        distance = (embeddings[i] - embeddings[i + 3]).norm()
        correction = model.correction(compared(i, i + 3) + compared(i + 3, i))
        expected.append(model.scale * (distance - model.middle) + correction[0])
    torch.testing.assert_close(model(x1, x2), torch.stack(expected))
    torch.testing.assert_close(model.predict(x1, x2), torch.stack(expected).sigmoid())


@torch.no_grad()
def test_neither_order_nor_company_matters(images: Tensor) -> None:
    model = siamese().eval()
    ids1, ids2 = torch.combinations(torch.arange(6), with_replacement=True).T
    there = model(images[ids1], images[ids2])
    assert there.std() > 0.01
    torch.testing.assert_close(model(images[ids2], images[ids1]), there)
    alone = [model(images[i, None], images[j, None]) for i, j in zip(ids1.tolist(), ids2.tolist(), strict=True)]
    torch.testing.assert_close(torch.cat(alone), there)


@torch.no_grad()
def test_an_image_in_many_pairs_is_seen_once(images: Tensor) -> None:
    model = siamese().eval()
    ids1, ids2 = torch.combinations(torch.arange(6)).T
    model(images[ids1], images[ids2])
    assert backbone(model).n_seen == 6


def test_what_learns(images: Tensor) -> None:
    model = siamese().train()
    assert not model.extractor.training
    model(images, images.roll(1, 0)).sum().backward()
    own = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert own == {name for name, _ in model.named_parameters() if not name.startswith("extractor")}
    model.unfreeze()
    assert model.extractor.training
    model(images, images.roll(1, 0)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_learns_what_the_extractor_does_not_tell(rng: torch.Generator) -> None:
    """A dot, here or there, is no matter to the mean over columns."""
    images = 0.1 * torch.randn(8, 3, 12, 12, generator=rng)
    images[::2, :, 5:7, 2:5] += 2
    images[1::2, :, 5:7, 8:11] += 2
    ids1, ids2 = torch.combinations(torch.arange(8)).T
    is_negative = ((ids1 + ids2) % 2).float()
    model = siamese(learned=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    for _ in range(30):
        optimizer.zero_grad()
        nn.BCEWithLogitsLoss()(model(images[ids1], images[ids2]), is_negative).backward()
        optimizer.step()
    model.eval()
    distances = model.predict(images[ids1], images[ids2])
    assert distances[is_negative == 1].min() > distances[is_negative == 0].max()


@torch.no_grad()
def test_layers_are_watched_only_while_it_runs(images: Tensor) -> None:
    model = siamese().eval()
    copied = copy.deepcopy(model)
    nn.init.zeros_(backbone(model).first[0].weight)  # pyright: ignore[reportArgumentType]
    assert not torch.equal(copied(images, images.flip(0)), model(images, images.flip(0)))
    assert not any(module._forward_hooks for module in model.modules())


@torch.no_grad()
def test_what_is_saved_loads_again(images: Tensor, tmp_path: Path) -> None:
    saved = siamese().eval()
    torch.save(saved.state_dict(), tmp_path / "weights.ckpt")
    loaded = siamese(weights=tmp_path / "weights.ckpt", learned=False).eval()
    assert torch.equal(loaded(images, images.flip(0)), saved(images, images.flip(0)))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"layers": ["frist"]}, r"The Backbone has no layer 'frist'; did you mean first"),
        ({"layers": []}, r"needs a list of names of layers, one or more, got \[\]"),
        ({"layers": "first"}, r"needs a list of names of layers, one or more, got 'first'"),
        ({"layers": [""]}, r"has no layer ''"),
        ({"n_heads": 4}, r"needs n_heads that divide dim=6, got 4"),
        ({"n_heads": 0}, r"needs n_heads that divide dim=6, got 0"),
    ],
)
def test_bad_arguments(args: dict[str, Any], message: str) -> None:
    init = inspect.unwrap(CrossAttentionSiamese.__init__)
    with pytest.raises(ValueError, match=message):
        init(
            CrossAttentionSiamese.__new__(CrossAttentionSiamese),
            Backbone(),
            **{"layers": ["first"], "dim": 6, "n_heads": 2} | args,
        )


def test_a_layer_without_a_map() -> None:
    class Pooled(Backbone):
        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.Flatten()

        def forward(self, x: Tensor) -> Tensor:
            return self.pool(super().forward(x))

    with pytest.raises(ValueError, match=r"needs layers that make maps .*'pool' makes \(1, 5\)"):
        CrossAttentionSiamese(Pooled(), layers=["first", "pool"])


def test_pairs_that_do_not_fit(images: Tensor) -> None:
    model = siamese()
    forward = inspect.unwrap(type(model).forward)  # without the checks of shapes that tests add
    with pytest.raises(ValueError, match=r"one shape on both sides, got \(6, 3, 12, 9\) and \(6, 3, 12, 8\)"):
        forward(model, images, images[..., :8])
    with pytest.raises(TypeError, match=r"CrossAttentionSiamese needs images of normalised .* got torch.uint8"):
        forward(model, images.byte(), images)
