"""A gradient cache is the extractor on the whole batch, as far as anyone can tell."""

import warnings
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from tests.processes import run_processes
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from oml.interfaces.models import IExtractor
from oml.lightning.modules.extractor import ExtractorModule
from oml.losses.triplet import TripletLossWithMiner
from oml.models.gradient_cache import GradientCache
from oml.models.timm_extractor import TimmExtractor
from oml.models.utils import load_weights

LABELS = torch.arange(10) // 2


class Net(IExtractor):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(6, 8), *layers, nn.GELU(), nn.Linear(8, 4))

    @property
    def feat_dim(self) -> int:
        return 4

    def forward(self, x: Any) -> Tensor:
        if isinstance(x, dict):
            x = x["a"] + x["b"][0] * x["b"][1]
        return self.layers(x)

    def extract(self, x: Tensor) -> Tensor:
        return 2 * self.layers(x)


def items(n: int = 10) -> Tensor:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(1))


def loss(embeddings: Tensor) -> Tensor:
    """Looks at all pairs, so that no chunk has its gradient without the others."""
    labels = LABELS[: len(embeddings)]
    similarities = (F.normalize(embeddings.float()) @ F.normalize(embeddings.float()).T) / 0.1
    return F.cross_entropy(similarities.masked_fill(torch.eye(len(labels)).bool(), -torch.inf), labels)


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    return {name.removeprefix("extractor."): parameter.grad for name, parameter in model.named_parameters()}


def in_turn(model: IExtractor, size: int) -> Callable[[Tensor], Tensor]:
    """What is to be compared with if chunks have an effect."""
    return lambda x: torch.cat([model(chunk) for chunk in x.tensor_split(-(-len(x) // size))])


def assert_same_step(cached: GradientCache, plain: Callable[[Tensor], Tensor], model: IExtractor, x: Tensor) -> None:
    """The same embeddings and gradients, of parameters, and of inputs if these need them."""
    copy = x.detach().clone().requires_grad_(x.requires_grad)
    torch.manual_seed(5)
    expected = plain(x)
    loss(expected).backward()
    torch.manual_seed(5)
    embeddings = cached(copy)
    torch.rand(3)  # others draw from the generator before the backward pass, too
    state = torch.get_rng_state()
    loss(embeddings).backward()
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(embeddings, expected)
    assert any(gradient is not None for gradient in gradients(model).values())
    torch.testing.assert_close(gradients(cached), gradients(model))
    if x.requires_grad:
        assert copy.grad is not None
        assert (copy.grad != 0).any(dim=1).all()
        torch.testing.assert_close(copy.grad, x.grad)


@pytest.mark.parametrize("chunk_size", [1, 3, 5, 9, 10, 64])
@pytest.mark.parametrize("inputs_need", [True, False])
def test_gradients_are_those_of_the_whole_batch(chunk_size: int, inputs_need: bool) -> None:
    model = Net()
    cached = GradientCache(deepcopy(model), chunk_size)
    assert_same_step(cached, model, model, items().requires_grad_(inputs_need))


def test_a_convolutional_network_of_timm_in_evaluation_mode() -> None:
    model = TimmExtractor(None, "resnet10t").eval()
    x = torch.randn(10, 3, 32, 32, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert_same_step(GradientCache(deepcopy(model), 4), model, model, x)


def test_only_one_chunk_has_activations() -> None:
    alive = [0, 0]  # tensors kept for a backward pass: now, at most

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor
            alive[0] += 1
            alive[1] = max(alive)

        def __del__(self) -> None:
            alive[0] -= 1

    cached = GradientCache(Net(*[nn.GELU() for _ in range(10)]), 2)
    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        cached(items(2)).sum()
        of_one_chunk = alive[1]
        n_tensors = 1 + len(list(cached.parameters()))  # the inputs and the parameters
        assert of_one_chunk > 2 * n_tensors
        alive[1] = 0
        embeddings = cached(items(10))
        assert alive[1] == of_one_chunk
        assert alive[0] == n_tensors
        alive[1] = 0
        embeddings.sum().backward()
        assert alive[1] <= of_one_chunk + n_tensors + 1


def test_dropout_is_the_same_in_both_passes() -> None:
    model = Net(nn.Dropout(0.5))
    cached = GradientCache(deepcopy(model), 3)
    torch.manual_seed(5)
    assert not torch.equal(model(items()), in_turn(model, 3)(items()))  # masks matter
    assert_same_step(cached, in_turn(model, 3), model, items().requires_grad_())


def test_running_averages_are_updated_once_per_chunk() -> None:
    model = Net(nn.BatchNorm1d(8))
    cached = GradientCache(deepcopy(model), 4)
    assert_same_step(cached, in_turn(model, 4), model, items().requires_grad_())
    torch.testing.assert_close(dict(cached.extractor.named_buffers()), dict(model.named_buffers()))
    assert model.layers[1].num_batches_tracked == 3
    with torch.no_grad():
        cached(items())
        in_turn(model, 4)(items())
    torch.testing.assert_close(dict(cached.extractor.named_buffers()), dict(model.named_buffers()))


def test_no_chunk_is_a_lone_item() -> None:
    """Batch normalisation has no statistics of one."""
    model = Net(nn.BatchNorm1d(8))
    sizes = []
    model.layers[1].register_forward_hook(lambda *args: sizes.append(len(args[-1])))
    cached = GradientCache(model, 3)
    cached(items(10)).sum().backward()
    assert sizes == [3, 3, 2, 2] * 2
    with torch.no_grad():
        cached(items(4))
    assert sizes[8:] == [2, 2]


class Counting(nn.Module):
    """The result depends on a buffer that each call changes, in place or not."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.register_buffer("calls", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        if self.in_place:
            self.calls += 1
        else:
            self.calls = self.calls + 1
        return x * self.calls.clone()


@pytest.mark.parametrize("layer", [Counting(True), Counting(False), spectral_norm(nn.Linear(8, 8))])
def test_buffers_are_as_in_the_first_pass(layer: nn.Module) -> None:
    model = Net(layer)
    cached = GradientCache(deepcopy(model), 3)
    assert_same_step(cached, in_turn(model, 3), model, items().requires_grad_())
    torch.testing.assert_close(dict(cached.extractor.named_buffers()), dict(model.named_buffers()))


@pytest.mark.parametrize("fails_in", ["forward", "backward"])
def test_the_model_is_itself_after_an_error(fails_in: str) -> None:
    calls = []

    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(len(x))
            if len(calls) == (2 if fails_in == "forward" else 5):
                raise MemoryError
            return x

    model = Net(nn.BatchNorm1d(8), Failing())
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with pytest.raises(MemoryError):
        GradientCache(model, 4)(items()).sum().backward()
    now = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert all(now[name] is tensor for name, tensor in tensors.items())


def test_one_module_at_two_places() -> None:
    layer = nn.Linear(8, 8)
    model = Net(layer, nn.GELU(), layer)
    cached = GradientCache(deepcopy(model), 3)
    parameters = list(cached.parameters())
    assert_same_step(cached, model, model, items())
    assert all(now is before for now, before in zip(cached.parameters(), parameters, strict=True))


def test_one_weight_at_two_places() -> None:
    model = Net(nn.Linear(8, 8), nn.Linear(8, 8))
    model.layers[2].weight = model.layers[1].weight
    assert_same_step(GradientCache(deepcopy(model), 3), model, model, items())


def test_hooks_see_one_gradient_of_a_weight_with_two_names() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = self.b = nn.Parameter(torch.linspace(-1, 1, 64).view(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.a + x.flip(1) @ self.b

    cached, model = GradientCache(Net(Twice()), 3), Net(Twice())
    for net in (cached.extractor, model):
        net.layers[1].a.register_hook(torch.sign)  # pyright: ignore
    assert_same_step(cached, model, model, items())


def test_hooks_see_the_gradient_once() -> None:
    cached, model = GradientCache(Net(), 3), Net()
    for net in (cached.extractor, model):
        net.layers[0].weight.register_hook(lambda gradient: 3 * gradient)  # pyright: ignore
    assert_same_step(cached, model, model, items())


class Checkpointed(nn.Module):
    """The reentrant kind calls its layer within the backward pass."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        result = checkpoint(self.layer, x, use_reentrant=True)
        assert isinstance(result, Tensor)
        return result


def test_hooks_see_the_gradient_of_checkpointed_layers_once() -> None:
    model = Net(Checkpointed(nn.Linear(8, 8)))
    cached = GradientCache(deepcopy(model), 3)
    calls = []
    for parameter in cached.parameters():
        parameter.register_post_accumulate_grad_hook(calls.append)
    assert_same_step(cached, model, model, items())
    assert len(calls) == len(list(cached.parameters()))


def test_checkpointed_layers_leave_buffers_alone() -> None:
    cached = GradientCache(Net(Checkpointed(nn.BatchNorm1d(8))), 5)
    embeddings = cached(items())
    before = deepcopy(dict(cached.named_buffers()))
    embeddings.sum().backward()
    torch.testing.assert_close(dict(cached.named_buffers()), before, rtol=0, atol=0)


def test_frozen_models() -> None:
    model = Net()
    model.layers[0].requires_grad_(False)
    cached = GradientCache(deepcopy(model), 3)
    needed = []
    cached.extractor.layers[0].register_forward_hook(lambda layer, *_: needed.append(layer.weight.requires_grad))  # pyright: ignore
    assert_same_step(cached, model, model, items())
    assert needed == [False] * 8  # in the second pass, too, no gradient is computed to be thrown away
    assert model.layers[0].weight.grad is None
    cached = GradientCache(Net().requires_grad_(False), 3)
    assert not cached(items()).requires_grad
    x = items().requires_grad_()
    loss(cached(x)).backward()
    expected = items().requires_grad_()
    loss(cached.extractor(expected)).backward()
    torch.testing.assert_close(x.grad, expected.grad)


def test_weights_that_no_chunk_uses() -> None:
    model = Net()
    model.register_parameter("unused", nn.Parameter(torch.zeros(2)))
    assert_same_step(GradientCache(deepcopy(model), 3), model, model, items())
    assert model.unused.grad is None


def test_there_are_no_second_derivatives() -> None:
    cached = GradientCache(Net(), 3)
    weight = cached.extractor.layers[0].weight  # pyright: ignore
    embeddings = cached(items())
    for value in (loss(embeddings), embeddings.sum()):  # the gradient that comes in depends on the weights, or not
        with pytest.raises(RuntimeError, match="GradientCache of OML has no second derivatives"):
            torch.autograd.grad(value, weight, create_graph=True, retain_graph=True)


def test_gradients_add_up() -> None:
    cached, model = GradientCache(Net(), 3), Net()
    for _ in range(2):
        loss(cached(items())).backward()
        loss(model(items())).backward()
    torch.testing.assert_close(gradients(cached), gradients(model))
    value = loss(cached(items()))
    value.backward(retain_graph=True)
    value.backward()
    for _ in range(2):
        loss(model(items())).backward()
    torch.testing.assert_close(gradients(cached), gradients(model))


def test_changed_weights_are_noticed() -> None:
    cached = GradientCache(Net(), 3)
    value = loss(cached(items()))
    with torch.no_grad():
        cached.extractor.layers[0].weight += 1  # pyright: ignore
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


@pytest.mark.parametrize("backward_inside", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_scaled_gradients(backward_inside: bool, dtype: torch.dtype) -> None:
    """Where masks matter: a second pass in another precision would have embeddings that differ by 1e-3."""
    cached, model = GradientCache(Net(nn.Dropout(0.2)), 3), Net(nn.Dropout(0.2))
    optimizers = [torch.optim.SGD(net.parameters(), lr=1.0) for net in (cached, model)]
    seen: list[list[torch.dtype]] = [[], []]
    for net, embed, optimizer, dtypes in zip(
        (cached, model), (cached, in_turn(model, 3)), optimizers, seen, strict=True
    ):
        inner = net.extractor if isinstance(net, GradientCache) else net
        inner.layers[0].register_forward_hook(lambda *args, d=dtypes: d.append(args[-1].dtype))
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        torch.manual_seed(5)
        with torch.autocast("cpu", dtype):
            embeddings = embed(items())
            value = scaler.scale(loss(embeddings))
            if backward_inside:
                value.backward()
        assert embeddings.dtype == dtype
        if not backward_inside:
            value.backward()
        scaler.step(optimizer)
        scaler.update()
    assert seen == [[dtype] * 8, [dtype] * 4]
    before = Net(nn.Dropout(0.2)).state_dict()
    for name, weight in model.state_dict().items():
        step, difference = weight - before[name], cached.state_dict()[name] - weight
        assert step.norm() > 0
        assert difference.norm() < 0.03 * step.norm()  # sums over the batch are rounded at other places


def test_the_backward_pass_is_in_the_precision_of_its_layers() -> None:
    class InFloat(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", enabled=False):
                return super().forward(x.float())

    model = Net(InFloat(8, 8))
    cached = GradientCache(deepcopy(model), 3)
    results = []
    for net, embed in ((model, in_turn(model, 3)), (cached, cached)):
        x = items()
        with torch.autocast("cpu", torch.bfloat16):
            embeddings = embed(x)
        # no sum over items in bfloat16, so that where chunks end has no effect
        embeddings.backward(F.pad(torch.ones(1, 4), (0, 0, 0, 9)).to(embeddings.dtype))
        results.append(gradients(net)["layers.1.weight"])
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-7)


def test_without_gradients() -> None:
    cached = GradientCache(Net(nn.Dropout(0.5)).eval(), 3)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            embeddings = cached(items())
        assert not embeddings.requires_grad
        torch.testing.assert_close(embeddings, cached.extractor(items()))


def test_extraction_is_that_of_the_extractor() -> None:
    cached = GradientCache(Net(), 3)
    assert cached.feat_dim == 4
    torch.testing.assert_close(cached.extract(items()), 2 * cached(items()))
    cached.extract(items()).sum().backward()
    assert gradients(cached)["layers.0.weight"] is not None


def test_embeddings_without_a_graph_get_none() -> None:
    class Searching(Net):
        def extract(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                return self.layers(x)

    cached = GradientCache(Searching(), 3)
    assert not cached.extract(items().requires_grad_()).requires_grad


def test_a_chunk_without_a_graph() -> None:
    class Gated(Net):
        def forward(self, x: Tensor) -> Tensor:
            with torch.set_grad_enabled(bool(x[0, 0] > 0)):
                return self.layers(x)

    x = items()
    x[:, 0] = torch.tensor([1.0] * 3 + [-1.0] * 3 + [1.0] * 4)
    model = Gated()
    assert_same_step(GradientCache(deepcopy(model), 3), in_turn(model, 3), model, x)


def test_an_empty_batch() -> None:
    cached = GradientCache(Net(), 3)
    embeddings = cached(items(0))
    assert embeddings.shape == (0, 4)
    embeddings.sum().backward()
    assert gradients(cached)["layers.0.weight"] is not None


def test_inputs_of_several_tensors() -> None:
    model = Net()
    cached = GradientCache(deepcopy(model), 4)
    x, y, z = (items() + i for i in range(3))
    x.requires_grad_()
    loss(cached({"a": x, "b": (y, z)})).backward()
    other = x.detach().clone().requires_grad_()
    loss(model(other + y * z)).backward()
    torch.testing.assert_close(gradients(cached), gradients(model))
    torch.testing.assert_close(x.grad, other.grad)


def test_an_input_that_the_model_does_not_use() -> None:
    cached = GradientCache(Net(), 4)
    x, unused = items().requires_grad_(), items().requires_grad_()
    loss(cached({"a": x, "b": (items(), items()), "c": unused})).backward()
    assert x.grad is not None
    assert unused.grad is not None
    assert x.grad.any()
    assert not unused.grad.any()


def test_inputs_that_do_not_fit() -> None:
    cached = GradientCache(Net(), 4)
    with pytest.raises(ValueError, match=r"a row for each item of the batch, got shapes \[\(10, 6\), \(9, 6\)\]"):
        cached([items(10), items(9)])
    with pytest.raises(ValueError, match="got shapes"):
        cached({})
    with pytest.raises(TypeError, match="GradientCache takes tensors, .* got str"):
        cached({"a": items(), "b": "text"})
    with pytest.raises(ValueError, match="chunk_size of 1 or more, got 0"):
        GradientCache(Net(), 0)


def test_weights_are_those_of_the_extractor(tmp_path: Path) -> None:
    model = TimmExtractor(None, "resnet10t")
    cached = GradientCache(TimmExtractor(None, "resnet10t"), 4)
    assert list(cached.state_dict()) == list(model.state_dict())
    cached.load_state_dict(model.state_dict())
    torch.testing.assert_close(cached.state_dict(), model.state_dict(), rtol=0, atol=0)

    module = ExtractorModule(GradientCache(TimmExtractor(None, "resnet10t"), 4))
    assert module.state_dict().keys() == ExtractorModule(model).state_dict().keys()
    torch.save({"state_dict": module.state_dict()}, tmp_path / "run.ckpt")
    load_weights(cached, tmp_path / "run.ckpt")
    load_weights(model, tmp_path / "run.ckpt")
    torch.testing.assert_close(module.model.state_dict(), model.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(module.model.state_dict(), cached.state_dict(), rtol=0, atol=0)
    module.load_state_dict(module.state_dict())
    nested = GradientCache(GradientCache(model, 2), 4)
    nested.load_state_dict(model.state_dict())

    broken = {("model.head" if name == "model.conv1.0.weight" else name): x for name, x in model.state_dict().items()}
    with pytest.raises(RuntimeError, match=r"(?s)Missing key.*conv1.0.weight.*Unexpected key.*model.head"):
        cached.load_state_dict(broken)


class Headed(IExtractor):
    """An extractor that has an extractor, as the cache does."""

    def __init__(self, extractor: IExtractor, head_first: bool) -> None:
        super().__init__()
        modules = {"extractor": extractor, "head": nn.Linear(4, 4)}
        for name in sorted(modules, reverse=head_first):
            self.add_module(name, modules[name])

    @property
    def feat_dim(self) -> int:
        return 4

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.extractor(x))


@pytest.mark.parametrize("head_first", [True, False])
def test_weights_of_extractors_within_extractors(head_first: bool) -> None:
    model, other = (Headed(Headed(Net(), head_first), head_first) for _ in range(2))
    cached = GradientCache(other, 4)
    state = model.state_dict()
    cached.load_state_dict(state)
    torch.testing.assert_close(other.state_dict(), state, rtol=0, atol=0)
    torch.testing.assert_close(dict(cached.state_dict()), dict(state), rtol=0, atol=0)


def test_a_step_of_training_under_lightning(tmp_path: Path) -> None:
    batches = [{"input_tensors": x, "labels": label} for x, label in zip(items(), LABELS.tolist(), strict=True)]
    weights = []
    for chunk_size in (None, 3):
        extractor: IExtractor = Net()
        if chunk_size is not None:
            extractor = GradientCache(extractor, chunk_size)
        optimizer = torch.optim.SGD(extractor.parameters(), lr=1.0)
        module = ExtractorModule(extractor, TripletLossWithMiner(margin=None), optimizer)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="pytorch_lightning")
            trainer = pl.Trainer(
                accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
                enable_model_summary=False, default_root_dir=tmp_path,
            )  # fmt: skip
            trainer.fit(module, DataLoader(batches, batch_size=10))
        weights.append(module.state_dict())
    assert (weights[0]["model.layers.0.weight"] - Net().layers[0].weight).abs().mean() > 0.01
    torch.testing.assert_close(*weights)


def _train_distributed(rank: int, folder: str) -> None:
    x = items() + rank  # each process has its own
    results = []
    for model in (Net(), GradientCache(Net(), 3)):
        wrapped = DistributedDataParallel(model)
        for _ in range(2):
            wrapped.zero_grad()
            loss(wrapped(x)).backward()
        results.append(gradients(model))
    alone = Net()
    loss(alone(x)).backward()
    torch.save([*results, gradients(alone)], f"{folder}/{rank}.pt")


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    run_processes(_train_distributed, str(tmp_path), folder=tmp_path)
    (plain, cached, first), (other_plain, other_cached, second) = (torch.load(tmp_path / f"{i}.pt") for i in range(2))
    torch.testing.assert_close(cached, plain)
    torch.testing.assert_close(cached, other_cached)
    assert not torch.allclose(first["layers.0.weight"], second["layers.0.weight"], rtol=1e-2)
    torch.testing.assert_close(other_plain, {name: (first[name] + second[name]) / 2 for name in first})
