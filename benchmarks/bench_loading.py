"""JPEG files to normalised tensors of 224 x 224 pixels, against the peer, OpenCV, Pillow, and decoding alone.

Every contender is a process of its own with one thread; rounds are interleaved. Prints a JSON line per contender and
size of the files: images per second of CPU time, the ratio to the peer's torchvision set round by round, and the mean
absolute difference from Pillow's decoding and antialiased resizing, in units of the normalised tensor. The peer's
environment is made the first time, which takes minutes and GB, see peers.py.

    python benchmarks/bench_loading.py            # a few minutes
    python benchmarks/bench_loading.py --quick    # seconds, to see that it runs
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from common import Worker, circumstances, spread
from loading_worker import CONTENDERS
from peers import python_with
from photographs import write_random_crops

READERS = {"imread_pillow": 0.01, "imread_tensor": 0.01, "ShrinkingReader": 0.08}
REFERENCE, BASE = "Pillow + torchvision", "oml 4.0.0 norm_resize_torch"
#: what contenders may differ from the reference by; the others differ by design, such as those that do not filter
TOLERANCES = {BASE: 0.01} | {
    name: tolerance for name in CONTENDERS for reader, tolerance in READERS.items() if name.startswith(reader)
}


def differences(tensors: dict[str, np.ndarray]) -> dict[str, float]:
    """Mean absolute differences from the reference; those that only decode have none."""
    reference = tensors[REFERENCE]
    found = {
        name: round(float(np.abs(tensor - reference).mean()), 5)
        for name, tensor in tensors.items()
        if tensor.shape == reference.shape
    }
    if wrong := {name: found.get(name) for name, most in TOLERANCES.items() if found.get(name, np.inf) > most}:
        sys.exit(f"These differ from {REFERENCE} by more than they may: {wrong}")
    return found


def bench(size: tuple[int, int], n: int, rounds: int, pythons: dict[str, Path], about: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = write_random_crops(Path(folder) / "images", n, size)
        kilobytes = round(sum(path.stat().st_size for path in paths) / n / 1000)
        workers = {
            name: Worker(Path(__file__).with_name("loading_worker.py"), name, python)
            for name, python in pythons.items()
        }
        try:
            request = [str(path) for path in paths]
            checks = differences({name: np.load(worker(request)) for name, worker in workers.items()})
            seconds: dict[str, list[float]] = {name: [] for name in workers}
            for _ in range(rounds):
                for name, worker in workers.items():
                    seconds[name].append(worker(request)[0])
        finally:
            for worker in workers.values():
                worker.close()
    for name, times in seconds.items():
        result = {
            "benchmark": "loading",
            "contender": name,
            "width": size[0],
            "height": size[1],
            "kilobytes": kilobytes,
            "n": n,
            "rounds": rounds,
            "images_per_cpu_second": spread([n / cpu for cpu in times]),
            "to_peer": spread([base / cpu for cpu, base in zip(times, seconds[BASE], strict=True)]),
            "mean_difference": checks.get(name),
        }
        print(json.dumps(result | about), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--n", type=int, default=60, help="files of each size")
    parser.add_argument("--quick", action="store_true", help="four files, two rounds")
    args = parser.parse_args()
    if args.quick:
        args.n, args.rounds = 4, 2
    pythons = {name: python_with() if peers else Path(sys.executable) for name, (peers, _) in CONTENDERS.items()}
    about = circumstances(1, "torch", "torchvision", "pillow", "simplejpeg", "opencv-python-headless")
    for size in ((640, 480), (1600, 1200)):
        bench(size, args.n, args.rounds, pythons, about)


if __name__ == "__main__":
    main()
