"""Environments of their own for the packages we compare with: what they need seldom fits what we need.

python benchmarks/peers.py    # make the environment, or say where it is
"""

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

#: open-metric-learning's last release was built for numpy 1; torch and torchvision are those that fit each other
OML_PEER = (
    "open-metric-learning==4.0.0",
    "pytorch-metric-learning==2.9.0",
    "faiss-cpu",
    "numpy<2",
    "torch==2.14.1",
    "torchvision==0.29.1",
    "setuptools<81",
    "omegaconf",  # which open-metric-learning imports, and does not ask for
)


def python_with(requirements: tuple[str, ...] = OML_PEER) -> Path:
    """The interpreter of an environment with these packages, made in the cache the first time (several GB, minutes)."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "oml" / "benchmark-peers"
    folder = cache / hashlib.sha256(repr(requirements).encode()).hexdigest()[:12]
    python = folder / "bin" / "python"
    if not (folder / "complete").is_file():
        print(f"Installing {', '.join(requirements)} into {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], check=True)
        (folder / "complete").touch()
    return python


if __name__ == "__main__":
    print(python_with())
