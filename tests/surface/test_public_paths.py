"""The public names are a list, ``public_paths.txt``: a line per module, its names after a colon.

A name is public if it does not begin with an underscore and is made in its module, or is in the module's ``__all__``.
To add or drop some on purpose, change the list accordingly; the failing test prints the lines.
"""

import ast
import importlib
from pathlib import Path

import oml

PACKAGE = Path(oml.__file__).parent
LIST = Path(__file__).with_name("public_paths.txt")


def public_names(path: Path) -> list[str]:
    made: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            made.add(node.name)
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name) and target.id == "__all__":
                    return sorted(ast.literal_eval(node.value))
                made |= {name.id for name in ast.walk(target) if isinstance(name, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            made.add(node.target.id)
    return sorted(name for name in made if not name.startswith("_"))


def module_name(path: Path) -> str:
    return ".".join(("oml", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def lines() -> list[str]:
    paths = [path for path in sorted(PACKAGE.rglob("*.py")) if not path.name.startswith("_") or path.stem == "__init__"]
    return [f"{module_name(path)}: {' '.join(names)}" for path in paths if (names := public_names(path))]


def test_public_names_are_those_of_the_list() -> None:
    expected, found = set(LIST.read_text().splitlines()), set(lines())
    assert found == expected, "\n".join(["add:", *sorted(found - expected), "drop:", *sorted(expected - found)])


def test_public_names_can_be_imported() -> None:
    for line in LIST.read_text().splitlines():
        module, names = line.split(": ")
        for name in names.split():
            assert hasattr(importlib.import_module(module), name), f"{module}.{name}"
