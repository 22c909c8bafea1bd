"""Importing is cheap: what is not needed is not loaded."""

import pkgutil
import subprocess
import sys

from oml import functional

HEAVY = {"torch", "pandas", "matplotlib", "omegaconf", "pytorch_lightning", "timm", "torchvision", "PIL", "rich"}


def loaded(code: str) -> set[str]:
    """Which of the heavy packages a fresh interpreter has loaded after running some code."""
    code = f"{code}\nimport sys; print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stderr.split()) & HEAVY


def test_oml_is_instant() -> None:
    assert loaded("import oml, oml.const") == set()


def test_formulas_load_torch_alone() -> None:
    modules = sorted(module.name for module in pkgutil.iter_modules(functional.__path__, "oml.functional."))
    assert {"oml.functional.losses", "oml.functional.search"} <= set(modules)
    assert loaded(f"import {', '.join(modules)}") == {"torch"}


def test_the_library_loads_neither_lightning_nor_plots() -> None:
    code = (
        "import oml.datasets.base, oml.losses.triplet, oml.metrics.embeddings, oml.samplers.balance, oml.retrieval, "
        "oml.datasets.converters, oml.utils.misc"
    )
    assert not loaded(code) & {"pytorch_lightning", "matplotlib", "omegaconf", "timm", "rich"}


def test_help_needs_no_torch() -> None:
    code = "import oml.cli\ntry: oml.cli.main(['demo', '--help'])\nexcept SystemExit: pass"
    assert not loaded(code) - {"rich"}
