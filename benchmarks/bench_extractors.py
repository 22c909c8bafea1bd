"""Images to embeddings on one core, against bare timm, the peer, and the matrix products of the networks alone.

A batch of 32 images of 224 x 224 pixels, crops of photographs. ViT-S/16 has random weights, the same for all;
EfficientNet-Lite0 has those of ImageNet, out of the extra ``demo``, and no counterpart in the peer. "oml, inference"
is ``for_inference``. The products are those of batches of 8, without the convolutions by channel, what lies between,
and the rearrangement that makes a convolution a product: no network can be faster by the same arithmetic.

Prints a JSON line per network and contender, after comparing the embeddings with those of timm. Contenders are
processes of their own; rounds are interleaved, ratios are taken round by round, times are CPU seconds of the process.
The peer's environment is made the first time, which takes minutes and GB, see peers.py.

    python benchmarks/bench_extractors.py                       # ten minutes, half of them compiling
    python benchmarks/bench_extractors.py --networks EfficientNet-Lite0 --contenders timm bfloat16 --rounds 3
    python benchmarks/bench_extractors.py --quick               # one round of 8 images, to see that it runs
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common import circumstances, spread
from contest import Turns, take_turns
from extractors_worker import BATCH, CONTENDERS
from photographs import sources

BASE, PEER, N_IMAGES, SIDE = "timm", "oml 4.0.0", 32, 224
LEAST_COSINE = {True: 0.999, False: 0.999999}  # of bfloat16, of float32


def images(n: int) -> Tensor:
    """Crops of the photographs, normalised as EfficientNet-Lite0 was trained."""
    rng = np.random.default_rng(0)
    photographs = [np.asarray(photograph) for photograph in sources()]
    crops = []
    for i in range(n):
        pixels = photographs[i % len(photographs)]
        y, x = (rng.integers(side - SIDE) for side in pixels.shape[:2])
        crops.append(pixels[y : y + SIDE, x : x + SIDE])
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).sub(127).div(128).contiguous()


def check(answers: dict[str, str | None]) -> dict[str, dict[str, float]]:
    """For each contender with embeddings their cosines to those of timm, and the largest difference of a number."""
    embeddings = {}
    for name, path in answers.items():
        if path is not None:
            embeddings[name] = torch.from_numpy(np.load(path)).double()
            shutil.rmtree(Path(path).parent)
    reference = embeddings[next(name for name in embeddings if name.endswith(f": {BASE}"))]
    checks = {}
    for name, found in embeddings.items():
        cosines = torch.cosine_similarity(found, reference)
        difference = (found - reference).abs().max() / reference.abs().max()
        checks[name] = {
            "min_cosine": round(cosines.min().item(), 7),
            "mean_cosine": round(cosines.mean().item(), 7),
            "relative_difference": round(difference.item(), 7),
        }
        if checks[name]["min_cosine"] < LEAST_COSINE["bfloat16" in name]:
            sys.exit(f"The embeddings of {name} are not those of timm: {checks[name]}")
    return checks


def figures(name: str, n: int, turns: Turns) -> dict[str, Any]:
    seconds = {other.split(": ")[1]: [cpu for cpu, _ in times] for other, times in turns.times.items()}

    def speed_relative_to(other: str) -> dict[str, float]:
        return spread([theirs / own for theirs, own in zip(seconds[other], seconds[name], strict=True)])

    return {
        "rounds": len(seconds[name]),
        "images_per_cpu_second": spread([n / cpu for cpu in seconds[name]]),
        "speed_to": {other: speed_relative_to(other) for other in (BASE, PEER) if other in seconds},
    }


def bench(network: str, texts: list[str], n: int, rounds: int, threads: int, about: dict[str, Any]) -> None:
    names = [name for name in CONTENDERS[network] if name == BASE or any(text in name for text in texts)]
    is_peer = {f"{network}: {name}": CONTENDERS[network][name][0] for name in names}
    checks, turns = take_turns("extractors_worker.py", is_peer, images(n), torch.zeros(0), rounds, threads, check)
    for name in names:
        key = f"{network}: {name}"
        result = {"benchmark": "extractors", "network": network, "contender": name, "n": n, "side": SIDE}
        result |= figures(name, n, turns) | {"peak_growth_mib": turns.growth[key]} | checks.get(key, {})
        print(json.dumps(result | about), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--contenders", nargs="+", default=[""], help="only those whose name has one of these texts")
    parser.add_argument("--quick", action="store_true", help=f"{BATCH} images, one round, no inference setting")
    args = parser.parse_args()
    n = N_IMAGES
    if args.quick:
        n, args.rounds, args.contenders = BATCH, 1, ["oml 4.0.0", "channels last", "products"]
    about = circumstances(args.threads, "torch", "timm")
    for network in args.networks:
        bench(network, args.contenders, n, args.rounds, args.threads, about)


if __name__ == "__main__":
    main()
