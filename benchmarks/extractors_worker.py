"""One contender of bench_extractors.py, in a process of its own: the peer has other packages.

A check is answered with the name of a file of the embeddings; the bare products have none.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from contest import saved, serve

BATCH = 8  # of the bare products: with more, their numbers leave the caches
TRun = Callable[[Tensor, Tensor], Tensor | None]
TMake = Callable[[], TRun]


def filled(model: nn.Module) -> nn.Module:
    """A vision transformer with weights that depend on their names' order alone: the same for all contenders."""
    generator = torch.Generator().manual_seed(0)
    state = model.state_dict()
    for name in sorted(state):
        noise = 0.03 * torch.randn(state[name].shape, generator=generator)
        state[name].copy_(noise + 1 if "norm" in name and name.endswith("weight") else noise)
    return model.eval()


def bare(network: str) -> nn.Module:
    if network == VIT:
        import timm

        return filled(timm.create_model("vit_small_patch16_224", num_classes=0))
    from oml.models.efficientnet_lite0 import packaged_efficientnet_lite0

    model: Any = packaged_efficientnet_lite0()
    model.reset_classifier(0)
    return model.eval()


def extractor(network: str) -> Any:
    if network == VIT:
        from oml.models import ViTExtractor

        vit = ViTExtractor(None, "vits16", normalise_features=False)
        filled(vit.model)
        return vit.eval()
    from oml.models import TimmExtractor

    return TimmExtractor("efficientnet_lite0_imagenet", "efficientnet_lite0").eval()


def eager(make: Callable[[], nn.Module], memory_format: torch.memory_format | None = None) -> TMake:
    def made() -> TRun:
        model = make()
        if memory_format is not None:
            model.to(memory_format=memory_format)  # pyright: ignore[reportCallIssue]

        @torch.no_grad()
        def run(x: Tensor, _labels: Tensor) -> Tensor:
            return model(x if memory_format is None else x.contiguous(memory_format=memory_format))

        return run

    return made


def setting(network: str, **how: Any) -> TMake:
    def made() -> TRun:
        from oml.inference.fast import FastExtractor, Inference, for_inference

        model = extractor(network)
        fast: list[FastExtractor] = []  # made of the first batch

        def run(x: Tensor, _labels: Tensor) -> Tensor:
            if not fast:
                fast.append(for_inference(model, x, Inference(report=None, **how)))
            return fast[0].extract(x)

        return run

    return made


def peer() -> nn.Module:
    from oml.models import ViTExtractor

    vit = ViTExtractor(weights=None, arch="vits16", normalise_features=False)
    filled(vit.model)
    return vit.eval()


class Products(TorchDispatchMode):
    """Takes down the matrix products of what runs under it, as (products, rows, inner, columns).

    A convolution of one group counts as the product it amounts to; those by channel are left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, int, int, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm", "bmm"):
            a, b = args[-2:]
            self.shapes.append((len(a) if a.ndim == 3 else 1, *a.shape[-2:], b.shape[-1]))
        elif name == "convolution" and args[-1] == 1:
            n_channels = len(args[1])
            self.shapes.append((1, out.numel() // n_channels, args[1][0].numel(), n_channels))
        elif name.startswith("_scaled_dot_product"):
            n, heads, tokens, dim = args[0].shape
            self.shapes += [(n * heads, tokens, dim, tokens), (n * heads, tokens, tokens, dim)]
        return out


def products(network: str, dtype: torch.dtype) -> TMake:
    def made() -> TRun:
        model = bare(network)
        matrices: dict[tuple[int, int, int, int], tuple[Tensor, Tensor, Tensor]] = {}
        shapes: list[tuple[int, int, int, int]] = []

        @torch.no_grad()
        def run(x: Tensor, _labels: Tensor) -> None:
            if not shapes:
                with Products() as taken:
                    model(x[:BATCH])
                shapes.extend(taken.shapes)
                for n, rows, inner, columns in set(shapes):
                    sizes = (n, rows, inner), (n, inner, columns), (n, rows, columns)
                    a, b, c = (torch.rand(size).to(dtype) for size in sizes)
                    matrices[n, rows, inner, columns] = (a, b, c) if n > 1 else (a[0], b[0], c[0])
            for _ in range(len(x) // BATCH):
                for shape in shapes:
                    a, b, c = matrices[shape]
                    torch.matmul(a, b, out=c)

        return run

    return made


VIT, CNN = "ViT-S/16", "EfficientNet-Lite0"
#: network -> name -> whether it runs in the environment of the peers, and what makes it
CONTENDERS: dict[str, dict[str, tuple[bool, TMake]]] = {
    network: {
        "timm": (False, eager(lambda network=network: bare(network))),
        **({"oml 4.0.0": (True, eager(peer))} if network == VIT else {}),
        "oml": (False, eager(lambda network=network: extractor(network))),
        **(
            {"oml, channels last": (False, eager(lambda: extractor(CNN), torch.channels_last))}
            if network == CNN
            else {}
        ),
        "oml, inference": (False, setting(network)),
        "oml, inference, compiled": (False, setting(network, compile=True)),
        "oml, inference, bfloat16": (False, setting(network, dtype=torch.bfloat16)),
        "oml, inference, bfloat16, compiled": (False, setting(network, dtype=torch.bfloat16, compile=True)),
        "products, float32": (False, products(network, torch.float32)),
        "products, bfloat16": (False, products(network, torch.bfloat16)),
    }
    for network in (VIT, CNN)
}


def main() -> None:
    network, name = sys.argv[1].split(": ")
    serve(
        CONTENDERS[network][name][1](),
        lambda embeddings: None if embeddings is None else saved("embeddings", embeddings.numpy()),
    )


if __name__ == "__main__":
    main()
