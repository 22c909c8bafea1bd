import re
import subprocess
import sys
from functools import partial
from inspect import signature

import pytest
from torch import nn

from oml.registry import REGISTRIES, show_registry
from oml.registry.overview import call_of, describe
from oml.registry.registry import Registry


def test_show_registry(capsys: pytest.CaptureFixture[str]) -> None:
    show_registry()
    groups: dict[str, list[str]] = {}
    for line in capsys.readouterr().out.splitlines():
        if line.startswith("  "):
            groups[list(groups)[-1]].append(line)
        else:
            groups[line] = []
    expected = {
        "Losses:": ["criterion"],
        "Miners:": ["miner"],
        "Models:": ["extractor", "pairwise_model"],
        "Optimizers:": ["optimizer"],
        "Postprocessors:": ["postprocessor"],
        "Samplers:": ["sampler"],
        "Schedulers:": ["scheduler"],
        "Augmentations:": ["transforms"],
    }
    assert list(groups) == list(expected)
    assert {kind for kinds in expected.values() for kind in kinds} == REGISTRIES.keys() - {"logger"}  # as described
    for group, kinds in expected.items():
        entries = [item for kind in kinds for item in REGISTRIES[kind].items()]
        for line, (name, constructor) in zip(groups[group], entries, strict=True):
            assert line.startswith(f"  {name}: {constructor.__name__}(")
            assert all(key in line for key in signature(constructor).parameters)
    assert "  triplet: TripletLoss(margin, reduction='mean', need_logs=False)" in groups["Losses:"]


def test_loggers_are_imported_when_they_are_asked_for() -> None:
    """Lightning takes longer than all else."""
    code = (
        "import sys; from oml.registry import REGISTRIES; print(len(REGISTRIES), 'logger' in REGISTRIES);"
        "print('pytorch_lightning' in sys.modules, REGISTRIES['logger'].kind, 'pytorch_lightning' in sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.split() == [str(len(REGISTRIES)), "True", "False", "logger", "True"]
    with pytest.raises(KeyError, match="loggers"):
        REGISTRIES["loggers"]


def of_a_user(size: "int", ratio: float = 0.5, *sizes: nn.Module, name: str = "a.b", **others: object) -> None:
    """First of :class:`~torch.nn.Module`, e.g. of ``torch.nn``
    on two lines.  And a second sentence.

    More.
    """


def test_what_is_known_of_an_entry() -> None:
    registry = Registry("thing", {"mine": of_a_user, "bare": lambda: None, "partial": partial(of_a_user, ratio=2)})
    known = describe(registry, "thing", "mine")
    assert known["call"] == "of_a_user(size, ratio=0.5, *sizes, name='a.b', **others)"
    assert known["summary"] == "First of Module, e.g. of nn on two lines."
    assert known["arguments"] == {
        "size": {"type": "int"},
        "ratio": {"type": "float", "default": "0.5"},
        "sizes": {"type": "Module"},
        "name": {"type": "str", "default": "'a.b'"},
        "others": {"type": "object"},
    }
    assert known["config"] is None
    assert describe(registry, "thing", "bare")["summary"] == ""
    assert "ratio=2" in describe(registry, "thing", "partial")["call"]


@pytest.mark.parametrize("kind", REGISTRIES)
def test_summaries_are_sentences(kind: str) -> None:
    for name in REGISTRIES[kind]:
        summary = describe(REGISTRIES[kind], kind, name)["summary"]
        assert re.fullmatch(r"[^`\n]{20,}\.", summary), name
        assert not re.search(r":\w+:|[.] [A-Z]", summary), name
        assert "<" not in call_of(REGISTRIES[kind][name])  # the repr of an object
