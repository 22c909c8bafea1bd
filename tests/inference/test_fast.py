import inspect
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from oml.inference.convolutions import fold_batch_norms, round_convolutions
from oml.inference.fast import Fidelity, Inference, for_inference
from oml.inference.flat import extract_embeddings
from oml.interfaces.models import IExtractor
from oml.models import TimmExtractor

BF16 = Inference(dtype=torch.bfloat16, report=None)
SILENT = Inference(report=None)


class Tensors(torch.utils.data.Dataset):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"input_tensors": self.images[i]}


class Wrapped(IExtractor):
    """Some module as an extractor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @property
    def feat_dim(self) -> int:
        return 4

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def extract(self, x: Tensor) -> Tensor:
        return self.model(x)


def with_statistics(extractor: IExtractor) -> IExtractor:
    """Batch normalisations as after training: those of a new network do nearly nothing."""
    generator = torch.Generator().manual_seed(1)
    for module in extractor.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) - 0.5)
    return extractor.eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(19, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def cnn() -> IExtractor:
    torch.manual_seed(0)
    return with_statistics(TimmExtractor(None, "test_efficientnet", normalise_features=True))


@pytest.fixture(scope="module")
def vit() -> IExtractor:
    torch.manual_seed(0)
    return TimmExtractor(None, "test_vit").eval()


@pytest.fixture(params=["cnn", "vit"])
def extractor(request: pytest.FixtureRequest) -> IExtractor:
    return request.getfixturevalue(request.param)


def exact(extractor: IExtractor, images: Tensor) -> Tensor:
    with torch.no_grad():
        return deepcopy(extractor).eval().extract(images)


def test_in_float32_embeddings_are_the_same(extractor: IExtractor, images: Tensor) -> None:
    fast = for_inference(extractor, images, SILENT)
    torch.testing.assert_close(fast.extract(images), exact(extractor, images), rtol=1e-4, atol=1e-5)
    assert fast.feat_dim == extractor.feat_dim


def test_the_fidelity_is_that_of_its_definition(extractor: IExtractor, images: Tensor) -> None:
    fast = for_inference(extractor, images, BF16)
    cosines = []
    for a, b in zip(fast.extract(images).double(), exact(extractor, images).double(), strict=True):
        cosines.append(sum(x * y for x, y in zip(a, b, strict=True)) / (sum(a**2) * sum(b**2)) ** 0.5)
    assert 0.999 < min(cosines) < 1 - 1e-7  # in float32 it would be 1
    expected = Fidelity(len(images), float(sum(cosines)) / len(cosines), float(min(cosines)))
    assert tuple(fast.fidelity) == pytest.approx(tuple(expected), abs=1e-9)


@pytest.mark.parametrize("n", [0, 1, 4, 7, 8, 19])
def test_batches_of_any_size_keep_their_order(cnn: IExtractor, images: Tensor, n: int) -> None:
    fast = for_inference(cnn, images, Inference(batch_size=4, report=None))
    embeddings = fast(images[:n])
    assert embeddings.shape == (n, cnn.feat_dim)
    torch.testing.assert_close(embeddings, exact(cnn, images)[:n], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_the_extractor_stays_as_it_is(cnn: IExtractor, images: Tensor, training: bool) -> None:
    extractor = deepcopy(cnn).train(training)
    before = {name: (tensor.clone(), tensor.stride()) for name, tensor in extractor.state_dict().items()}
    modules = [type(module) for module in extractor.modules()]
    fast = for_inference(extractor, images, BF16)
    fast.extract(images)
    assert extractor.training is training
    assert [type(module) for module in extractor.modules()] == modules
    assert all(parameter.requires_grad for parameter in extractor.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in extractor.modules())
    for name, tensor in extractor.state_dict().items():
        value, stride = before[name]
        assert tensor.dtype == value.dtype
        assert tensor.stride() == stride
        assert torch.equal(tensor, value)
    own = {tensor.data_ptr() for tensor in extractor.state_dict().values() if tensor.numel()}
    assert own.isdisjoint(tensor.data_ptr() for tensor in fast.state_dict().values())


def test_lengths_of_1_are_so_in_float32(cnn: IExtractor, images: Tensor) -> None:
    embeddings = for_inference(cnn, images, BF16).extract(images)
    assert embeddings.dtype == torch.float32
    assert not embeddings.requires_grad
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(len(images)), rtol=0, atol=1e-6)


def test_other_lengths_stay(vit: IExtractor, images: Tensor) -> None:
    lengths = exact(vit, images).norm(dim=1)
    assert (lengths - 1).abs().min() > 0.1
    torch.testing.assert_close(for_inference(vit, images, BF16).extract(images).norm(dim=1), lengths, rtol=0.01, atol=0)


def test_an_autocast_around_it_changes_nothing(cnn: IExtractor, images: Tensor) -> None:
    fast = for_inference(cnn, images, SILENT)
    alone = fast.extract(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fast.extract(images), alone)


def test_layouts(cnn: IExtractor, vit: IExtractor, images: Tensor) -> None:
    def is_last(extractor: IExtractor, channels_last: bool | None) -> bool:
        fast = for_inference(extractor, images, Inference(channels_last=channels_last, report=None))
        weight = next(m.weight for m in fast.modules() if isinstance(m, nn.Conv2d) and m.weight.shape[1] > 1)
        return weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()

    assert [is_last(cnn, given) for given in (None, True, False)] == [True, True, False]
    assert [is_last(vit, given) for given in (None, True, False)] == [False, True, False]


class Cancelling(nn.Module):
    """Differences of large numbers, which narrow types lose."""

    def __init__(self, offset: float = 1e3) -> None:
        super().__init__()
        self.head = nn.Linear(3, 4)
        nn.init.eye_(self.head.weight)
        nn.init.constant_(self.head.bias, offset)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.mean(dim=(2, 3))) - self.head.bias


@pytest.mark.parametrize(
    ("dtype", "offset"), [(torch.bfloat16, 1e3), (torch.float16, 1e6)], ids=["rounding", "overflow to NaN"]
)
def test_low_cosines_warn_or_raise(images: Tensor, dtype: torch.dtype, offset: float) -> None:
    extractor = Wrapped(Cancelling(offset))
    said: list[str] = []
    with pytest.warns(UserWarning, match=r"Inference in \w+: cosine .* on 19 images.* below the 0.999") as caught:
        fast = for_inference(extractor, images, Inference(dtype=dtype, report=said.append))
    assert len(caught) == 1
    assert not fast.fidelity.min_cosine > 0.999
    assert said == []
    with pytest.raises(ValueError, match="below the 0.999 that is wanted"):
        for_inference(extractor, images, Inference(dtype=dtype, on_low_cosine="raise"))


def test_the_fidelity_is_printed(cnn: IExtractor, images: Tensor, capsys: pytest.CaptureFixture[str]) -> None:
    fast = for_inference(cnn, images, Inference(dtype=torch.bfloat16))
    assert capsys.readouterr().out == (
        "Inference in bfloat16, channels last: cosine to the float32 extractor on 19 images: "
        f"mean {fast.fidelity.mean_cosine:.6f}, min {fast.fidelity.min_cosine:.6f}.\n"
    )
    for_inference(cnn, images, BF16)
    assert capsys.readouterr().out == ""


def test_data_sets(cnn: IExtractor, images: Tensor) -> None:
    extractor = deepcopy(cnn).train()
    said: list[str] = []
    embeddings = extract_embeddings(
        extractor, Tensors(images), batch_size=5, inference=Inference(batch_size=3, report=said.append)
    )
    torch.testing.assert_close(embeddings, exact(cnn, images), rtol=1e-4, atol=1e-5)
    assert extractor.training
    assert len(said) == 1
    assert "on 5 images" in said[0]
    fast = for_inference(cnn, images, SILENT)
    torch.testing.assert_close(extract_embeddings(fast, Tensors(images), 5), embeddings, rtol=1e-4, atol=1e-5)


def test_a_data_set_is_checked_from_end_to_end(images: Tensor) -> None:
    """Also if the first items are well."""
    torch.manual_seed(0)
    x = torch.cat([torch.full((10, 3, 8, 8), 100.0), torch.rand(10, 3, 1, 1).expand(10, 3, 8, 8) / 100])
    extractor = Wrapped(Cancelling(1.0))
    for_inference(extractor, x[:10], BF16)
    with pytest.raises(ValueError, match="below"):
        extract_embeddings(extractor, Tensors(x), 4, inference=Inference(dtype=torch.bfloat16, on_low_cosine="raise"))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"dtype": torch.int8}, "dtype out of torch.float32, torch.bfloat16, torch.float16, got torch.int8"),
        ({"batch_size": 0}, "batch_size of 1 or more"),
        ({"min_cosine": 1.5}, "min_cosine between -1 and 1"),
        ({"on_low_cosine": "ignore"}, "'warn' and 'raise', got 'ignore'"),
    ],
)
def test_wrong_settings(arguments: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        inspect.unwrap(Inference.__init__)(object.__new__(Inference), **arguments)


def test_wrong_inputs(cnn: IExtractor, images: Tensor) -> None:
    call = inspect.unwrap(for_inference)
    with pytest.raises(TypeError, match="images as a tensor, got list"):
        call(cnn, [1, 2])
    with pytest.raises(ValueError, match="empty batch"):
        call(cnn, images[:0])
    with pytest.raises(ValueError, match=r"weights in float32.* got torch.bfloat16"):
        call(deepcopy(cnn).bfloat16(), images)


def test_it_does_not_train(cnn: IExtractor, images: Tensor) -> None:
    fast = for_inference(cnn, images, SILENT)
    with pytest.raises(ValueError, match="inference alone"):
        fast.train()
    assert not any(module.training for module in fast.eval().modules())


class Pairs(nn.Module):
    """Convolutions whose normalisations can be folded: the first. The others are used twice, or looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1, bias=False), nn.Conv2d(4, 4, 1)
        self.bn1, self.bn2, self.bn3 = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(self.conv2(x)) + self.bn3(self.conv2(x))
        return self.bn3(self.conv3(x)).mean(dim=(2, 3))


def test_batch_norms_are_folded_where_they_can_be(images: Tensor) -> None:
    torch.manual_seed(0)
    extractor = with_statistics(Wrapped(Pairs()))
    before = exact(extractor, images)
    with torch.no_grad():
        fold_batch_norms(extractor, lambda: extractor(images[:1]))
    kinds = [type(getattr(extractor.model, f"bn{i}")) for i in (1, 2, 3)]
    assert kinds == [nn.Identity, nn.BatchNorm2d, nn.BatchNorm2d]
    torch.testing.assert_close(exact(extractor, images), before)


def test_all_of_a_cnn_are_folded(cnn: IExtractor, images: Tensor) -> None:
    assert any(isinstance(module, nn.BatchNorm2d) for module in cnn.modules())
    fast = for_inference(cnn, images, SILENT)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.modules())


class Shortcut(nn.Module):
    """Adds the result of a convolution to its normalised one, so that folding would be wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return (x + self.bn(x)).mean(dim=(2, 3))


def test_what_cannot_be_folded_is_found_out(images: Tensor) -> None:
    torch.manual_seed(0)
    extractor = with_statistics(Wrapped(Shortcut()))
    fast = for_inference(extractor, images, SILENT)
    assert any(isinstance(module, nn.BatchNorm2d) for module in fast.modules())
    torch.testing.assert_close(fast.extract(images), exact(extractor, images))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_rounded_convolutions_keep_the_means_of_channels(groups: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 16, 3, groups=groups).requires_grad_(False)
    x = torch.rand(4, 8, 9, 9) + torch.arange(8).view(8, 1, 1) / 8
    flat = x.mean(dim=(0, 2, 3), keepdim=True).expand(1, 8, 3, 3)
    rounded, nearest = deepcopy(conv), deepcopy(conv)
    round_convolutions(rounded, lambda: rounded(x), dtype)
    for tensor in nearest.parameters():
        tensor.copy_(tensor.to(dtype).float())
    for tensor, original in zip(rounded.parameters(), conv.parameters(), strict=True):
        assert torch.equal(tensor.to(dtype).float(), tensor)  # they are of the narrow type
        assert ((tensor - original).abs() <= 2 * torch.finfo(dtype).eps * original.abs()).all()
    error, usual = ((other(flat) - conv(flat)).abs().mean() for other in (rounded, nearest))
    assert error < usual / 5


@pytest.mark.slow
def test_compiled(images: Tensor) -> None:
    """Of a class of the tests, as the checks of annotations in oml that tests run with compile anew for all sizes."""
    from torch._dynamo.utils import counters

    torch.manual_seed(0)
    extractor = with_statistics(Wrapped(timm.create_model("test_efficientnet", num_classes=0)))
    before = exact(extractor, images)
    counters.clear()
    fast = for_inference(extractor, images, Inference(dtype=torch.bfloat16, compile=True, batch_size=4, report=None))
    assert fast.inference.compile
    assert fast.fidelity.min_cosine > 0.999
    for n in (0, 1, 4, 7, 19):
        embeddings = fast.extract(images[:n])
        assert embeddings.dtype == torch.float32
        assert embeddings.shape == before[:n].shape
        assert torch.cosine_similarity(embeddings, before[:n]).gt(0.999).all()
    assert counters["stats"]["unique_graphs"] == 1  # none for remainders
    assert torch.equal(exact(extractor, images), before)


@pytest.mark.slow
def test_without_a_compiler_it_works_eagerly(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import torch, warnings\n"
        "from oml.inference.fast import Inference, for_inference\n"
        "from oml.models import TimmExtractor\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    images = torch.rand(3, 3, 32, 32)\n"
        "    fast = for_inference(TimmExtractor(None, 'test_efficientnet'), images, Inference(compile=True))\n"
        "print(fast.extract(images).shape[0], fast.inference.compile)\n"
        "print(*(f'{warning.filename} {warning.message}' for warning in caught))\n"
    )
    done = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        check=True,
        env={"CXX": "/nonexistent/g++", "PATH": "/nonexistent", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)},
    )
    assert "3 False" in done.stdout
    assert f"{script} The extractor could not be compiled and works without (" in done.stdout
    assert "install g++ or clang, or set CXX" in done.stdout
    assert "compiled" not in done.stdout.splitlines()[0]
