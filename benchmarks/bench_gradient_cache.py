"""A step of training a small ViT on large batches, with and without the gradient cache.

The loss is InfoNCE over the whole batch; what it needs itself, a matrix of the batch by itself, is not in chunks and is
measured beside. The floor has no loss over the batch: chunks of 64 one after another, gradients accumulated. Every
contender is a process of its own with one thread. Prints a JSON line per contender and batch size, after checking that
its gradients are those of the plain model on a batch of 256.

    python benchmarks/bench_gradient_cache.py            # about three minutes, and 3 GB of memory
    python benchmarks/bench_gradient_cache.py --quick    # seconds, to see that it runs
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import Worker, circumstances, peak_growth, spread, timed

CHUNK = 64
FLOOR, PLAIN, CACHED = "floor", "plain", "gradient cache"
N_CHECKED = 256
TOLERANCE = 1e-5  # of the largest gradient: sums are in another order


class Model:
    """The extractor of a contender, and a step of its training."""

    def __init__(self, contender: str) -> None:
        import timm

        from oml.interfaces.models import IExtractor
        from oml.models.gradient_cache import GradientCache

        class ViT(IExtractor):
            def __init__(self) -> None:
                super().__init__()
                torch.manual_seed(0)
                self.model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=4, num_classes=0)

            @property
            def feat_dim(self) -> int:
                return 192

            def forward(self, x: Tensor) -> Tensor:
                return self.model(x)

        extractor = ViT()
        self.parameters = list(extractor.parameters())
        self.extractor: nn.Module = GradientCache(extractor, CHUNK) if contender == CACHED else extractor
        self.in_parts = contender == FLOOR

    def step(self, images: Tensor) -> None:
        for parameter in self.parameters:
            parameter.grad = None
        if self.in_parts:
            for part in images.split(CHUNK):
                self.extractor(part).square().mean().backward()
        else:
            info_nce(self.extractor(images)).backward()

    def gradients(self) -> Tensor:
        return torch.cat([parameter.grad.flatten() for parameter in self.parameters if parameter.grad is not None])

    def answer(self, what: str, n: int) -> Any:
        """CPU seconds of a step, MiB that it adds or that the loss does, or the gradients after it."""
        if what == "loss":
            return peak_growth(lambda: info_nce(torch.randn(n, 192, requires_grad=True)).backward())
        step = partial(self.step, make(n))
        if what == "time":
            return timed(step)[0]
        if what == "memory":
            return peak_growth(step)
        step()
        return self.gradients().tolist()


def info_nce(embeddings: Tensor) -> Tensor:
    """Rows 2 i and 2 i + 1 belong together."""
    x = F.normalize(embeddings)
    similarities = (x @ x.T / 0.1).fill_diagonal_(-torch.inf)
    return F.cross_entropy(similarities, torch.arange(len(x)) ^ 1)


def make(n: int) -> Tensor:
    return torch.randn(n, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def answer(contender: str) -> None:
    """Work as one contender: each line of standard input names what to do and a batch size."""
    torch.set_num_threads(1)
    model = Model(contender)
    for line in sys.stdin:
        what, n = json.loads(line)
        print(json.dumps(model.answer(what, n)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="batches of 64 and 256, two rounds")
    args = parser.parse_args()
    cases = {FLOOR: [64, 1024, 4096], PLAIN: [64, 1024], CACHED: [64, 1024, 4096]}
    if args.quick:
        cases, args.rounds = {contender: [64, 256] for contender in cases}, 2
    about = circumstances(1, "torch", "timm")
    workers = {contender: Worker(Path(__file__), contender, Path(sys.executable)) for contender in cases}
    try:
        gradients = {name: torch.tensor(workers[name](["gradients", N_CHECKED])) for name in (PLAIN, CACHED)}
        difference = ((gradients[CACHED] - gradients[PLAIN]).abs().max() / gradients[PLAIN].abs().max()).item()
        if not difference < TOLERANCE:
            sys.exit(f"The gradients differ from those of the plain model by {difference} of the largest.")
        for n in sorted({n for sizes in cases.values() for n in sizes}):
            taking_part = {name: worker for name, worker in workers.items() if n in cases[name]}
            memory = {name: worker(["memory", n]) for name, worker in taking_part.items()}  # warms up as well
            seconds: dict[str, list[float]] = {name: [] for name in taking_part}
            for _ in range(args.rounds):
                for name, worker in taking_part.items():
                    seconds[name].append(worker(["time", n]))
            of_loss = taking_part[FLOOR](["loss", n])
            for name, times in seconds.items():
                result = {
                    "benchmark": "gradient_cache",
                    "contender": name,
                    "batch_size": n,
                    "chunk_size": None if name == PLAIN else CHUNK,
                    "dtype": "float32",
                    "rounds": args.rounds,
                    "cpu_seconds": spread(times),
                    "to_floor": round(median(times) / median(seconds[FLOOR]), 3),
                    "peak_growth_mib": memory[name],
                    "peak_growth_of_loss_alone_mib": of_loss,
                    "gradients_differ_by": difference,
                }
                print(json.dumps(result | about), flush=True)
    finally:
        for worker in workers.values():
            worker.close()


if __name__ == "__main__":
    contenders = (FLOOR, PLAIN, CACHED)
    answer(sys.argv[1]) if sys.argv[1:2] and sys.argv[1] in contenders else main()
