"""Imports point down. The order is that of docs/index.md."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import oml

PACKAGE = Path(oml.__file__).parent
LAYERS = [
    {"const"},
    {"functional"},
    {"interfaces", "utils"},
    {"datasets", "transforms", "samplers", "miners", "losses", "models"},
    {"retrieval", "metrics", "inference", "ddp"},
    {"registry", "configs"},
    {"report", "lightning"},
    {"cli"},
]
HEIGHT = {room: height for height, rooms in enumerate(LAYERS) for room in rooms}
#: modules that stand with another room than their folder: the loggers of a config are Lightning's
ELSEWHERE = {"registry.loggers": "lightning"}
#: modules of old paths, which may point anywhere: they hold nothing but a re-export
REEXPORTS = {"utils.dataframe_format", "utils.download_mock_dataset"}
FILES = sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            assert node.module is not None
            yield from (f"oml.{alias.name}" for alias in node.names) if node.module == "oml" else [node.module]


def room_of(module: str) -> str:
    return ELSEWHERE.get(module, module.split(".")[0])


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__").removesuffix("__init__")


def test_every_room_has_its_place() -> None:
    rooms = {module_of(path).split(".")[0] for path in FILES} - {""}
    assert rooms | {"configs"} == set(HEIGHT)


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_point_down(path: Path) -> None:
    if not (module := module_of(path)) or module in REEXPORTS:
        return
    for name in imported(path):
        if name.startswith("oml."):
            target = room_of(name.removeprefix("oml."))
            assert HEIGHT[target] <= HEIGHT[room_of(module)], f"oml.{module} imports {name}, which stands above it"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_heavy_packages_stay_in_their_rooms(path: Path) -> None:
    packages = {name.split(".")[0] for name in imported(path)}
    room = room_of(module_of(path))
    if room != "lightning":
        assert "pytorch_lightning" not in packages
    if room == "functional":
        assert packages <= {
            "torch",
            "jaxtyping",
            "oml",
            "collections",
            "concurrent",
            "typing",
            "math",
            "contextlib",
            "functools",
            "itertools",
            "threading",
            "warnings",
        }


def test_reexports_hold_nothing_else() -> None:
    for module in REEXPORTS:
        body = ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text()).body
        kinds = [type(node).__name__ for node in body]
        assert kinds == ["Expr", *["ImportFrom"] * (len(kinds) - 2), "Assign"], module
