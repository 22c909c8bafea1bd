"""The examples in docstrings run."""

import doctest
import importlib
import pkgutil

import pytest

import oml

MODULES = sorted(module.name for module in pkgutil.walk_packages(oml.__path__, "oml."))


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    module = importlib.import_module(name)
    names = {"torch": importlib.import_module("torch"), "np": importlib.import_module("numpy")}
    result = doctest.testmod(module, extraglobs=names, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0
