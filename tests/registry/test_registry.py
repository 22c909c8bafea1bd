import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from inspect import unwrap
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from oml.registry import REGISTRIES
from oml.registry.registry import Registry


class Inner:
    def __init__(self, size: int = 1) -> None:
        self.size = size


class Outer:
    def __init__(self, margin: float, inner: Inner | None = None, labels: tuple | list = ()) -> None:
        self.margin, self.inner, self.labels = margin, inner, labels


INNER = Registry("inner", {"small": Inner})
OUTER = Registry("outer", {"outer": Outer}, nested={"inner": INNER})
CONFIG = {"name": "outer", "args": {"margin": 0.5, "inner": {"name": "small", "args": {"size": 3}}}}


@pytest.mark.parametrize("config", [CONFIG, OmegaConf.create(CONFIG)])
def test_a_config_is_the_constructor_call(config: Mapping) -> None:
    built = OUTER.build(config, labels=(1, 2), parameters="not asked for")
    assert (built.margin, built.inner.size, built.labels) == (0.5, 3, (1, 2))
    assert CONFIG["args"]["inner"]["name"] == "small"  # the config is as it was


def test_a_list_of_nested_configs() -> None:
    config = {"name": "outer", "args": {"margin": 0.5, "labels": [{"name": "small", "args": {"size": 3}}, "as it is"]}}
    lists = Registry("outer", OUTER, nested={"labels": INNER})
    first, second = lists.build(config).labels
    assert (first.size, second) == (3, "as it is")


def test_args_may_be_omegaconf_nodes_inside_plain_containers() -> None:
    """As of a caller who takes a part of a config and puts it among arguments of their own."""
    registry = Registry("outer", OUTER, nested={"labels": INNER, "inner": INNER})
    node = OmegaConf.create({"size": 3, "all": [{"name": "small", "args": {"size": "${size}"}}, "as it is"]})
    built = registry.build({"name": "outer", "args": {"margin": 0.5, "labels": node.all, "inner": node.all[0]}})
    assert (built.inner.size, built.labels[0].size, built.labels[1]) == (3, 3, "as it is")
    assert type(built.labels) is list
    registry = Registry("outer", OUTER)
    args = OmegaConf.create({"margin": 0.5, "labels": [[1], {"a": 2}]})
    for config in ({"name": "outer", "args": args}, {"name": "outer", "args": dict(args)}):
        assert type(registry.build(config).labels[1]) is dict
    config = {"name": "outer", "args": {"margin": 0.5, "labels": [args.labels[1]]}}
    assert type(registry.build(config).labels[0]) is dict


def test_an_entry_that_builds_what_is_within_itself() -> None:
    registry = Registry("outer", OUTER, nested={"inner": INNER}, takes_configs={"outer": lambda _: {"inner": INNER}})
    registry["outer"] = lambda inner: inner
    assert registry.build({"name": "outer", "args": {"inner": {"name": "any"}}}) == {"name": "any"}


def test_what_is_offered_reaches_nested_components() -> None:
    assert OUTER.build(CONFIG, size=5).inner.size == 5


def test_args_may_be_absent() -> None:
    assert INNER.build({"name": "small"}).size == INNER.build({"name": "small", "args": None}).size == 1


def test_an_unknown_name_has_a_hint() -> None:
    with pytest.raises(KeyError, match="No inner is called 'smal'; did you mean small"):
        INNER.build({"name": "smal"})
    with pytest.raises(KeyError, match="No inner is called 'zzz'; there are small"):
        INNER.build({"name": "zzz"})


def test_an_unknown_argument_has_a_hint() -> None:
    """The described system drops such keys in silence, so a typo trains with the default."""
    with pytest.raises(ValueError, match=r"The outer 'outer' has no argument 'margn': did you mean margin\?"):
        OUTER.build({"name": "outer", "args": {"margn": 0.5}})


def test_a_config_of_another_shape() -> None:
    for config in ({"args": {}}, {"name": "small", "margin": 1}):
        with pytest.raises(ValueError, match="needs a name and may have args"):
            INNER.build(config)


def test_users_add_their_own() -> None:
    registry = Registry("inner", {})
    registry["mine"] = Inner
    assert registry.build({"name": "mine"}).size == 1


def test_the_decorator_adds_too() -> None:
    registry = Registry("inner", {"small": Inner})

    @registry.register("mine")
    class Mine(Inner):
        pass

    @registry.register("of_three")
    def of_three() -> Inner:
        return Inner(size=3)

    assert type(registry.build({"name": "mine"})) is Mine
    assert registry.build({"name": "of_three"}).size == of_three().size == 3
    with pytest.raises(ValueError, match=r"inner 'small' is .*\.Inner already: register .*\.Mine by another name"):
        registry.register("small")(Mine)
    assert registry["small"] is Inner


def test_a_class_that_is_defined_again_replaces_the_first() -> None:
    registry = Registry("inner", {})
    for size in (1, 2):

        @registry.register("mine")
        def mine(size: int = size) -> Inner:
            return Inner(size)

    assert registry.build({"name": "mine"}).size == 2


def test_the_decorator_needs_a_name() -> None:
    with pytest.raises(TypeError, match=r"as @register\(\"mine\"\), got <class"):
        unwrap(Registry.register)(INNER, Inner)  # pyright: ignore[reportArgumentType]


MODULE = """
from tests.registry.test_registry import BASED, Inner

marks = []
helper = print

class Mine(Inner):
    pass

class Other:
    def __init__(self, size=1):
        marks.append("called")

def function():
    marks.append("called")
    return Inner(size=8)

@BASED.register("by_decorator")
def registered(size=5):
    return Inner(size)
"""
BASED = Registry("inner", {"small": Inner}, base=Inner)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """``their``, which a user wrote, with a module as it should be, and some that fail."""
    modules = {
        "__init__": "",
        "parts": MODULE,
        "lacks": "import no_such_package_at_all",
        "fails": "raise RuntimeError('at once')",
        "typo": "class Mine(:",
    }
    (tmp_path / "their").mkdir()
    for module, text in modules.items():
        (tmp_path / "their" / f"{module}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    BASED.pop("by_decorator", None)
    for module in modules:
        sys.modules.pop(f"their.{module}", None)
    sys.modules.pop("their", None)


@pytest.mark.usefixtures("package")
def test_import_paths() -> None:
    built = BASED.build({"name": "their.parts.Mine", "args": {"size": 3}})
    assert (built.__class__.__qualname__, built.size) == ("Mine", 3)
    assert BASED.build({"name": "their.parts.registered"}).size == 5
    assert BASED.build({"name": "by_decorator"}).size == 5
    assert set(BASED) == {"small", "by_decorator"}
    outer = Registry("outer", {"outer": Outer}, nested={"inner": BASED})
    config = {"name": "outer", "args": {"margin": 1.0, "inner": {"name": "their.parts.Mine"}}}
    assert outer.build(config, size=7).inner.size == 7
    with pytest.raises(ValueError, match=r"The inner '.*\.parts\.Mine' has no argument 'siz': did you mean size"):
        BASED.build({"name": "their.parts.Mine", "args": {"siz": 3}})


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("name", ["Other", "function", "helper", "marks"])
def test_an_import_path_does_not_call_anything_at_all(name: str) -> None:
    path = f"their.parts.{name}"
    with pytest.raises(TypeError, match=rf"{path}' cannot be the inner: derive it from .*\.Inner, or register it"):
        BASED.build({"name": path})
    with pytest.raises(TypeError, match=rf"{path}' cannot be the inner: register it"):
        INNER.build({"name": path})  # which has no base
    assert import_module("their.parts").marks == []


@pytest.mark.parametrize(
    "name", ["os.system", "builtins.eval", "subprocess.Popen", "pickle.load", "torch.load", "torch.hub.load"]
)
@pytest.mark.parametrize("kind", REGISTRIES)
def test_a_config_cannot_call_what_is_no_component(kind: str, name: str) -> None:
    with pytest.raises(TypeError, match=f"{name}' cannot be the"):
        REGISTRIES[kind].build({"name": name, "args": {}})


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("their.parts.Mne", r"The module 'their.parts' has no inner 'Mne'; did you mean Mine\?"),
        ("their.parts.zzz", r"The module 'their.parts' has no inner 'zzz'; there are Inner, Mine, registered."),
        ("their.part.Mine", r"there is no module 'their.part' to import: did you mean their.parts.Mine\?"),
        ("theri.parts.Mine", r"there is no module 'theri' to import: did you mean their.parts.Mine"),
        ("their.parts.Mine.Mine", r"there is no module 'their.parts.Mine' to import: install it, or set"),
        ("zzzzzzzz.parts.Mine", r"there is no module 'zzzzzzzz' to import: install it, or set PYTHONPATH"),
        ("smal.l", r"No inner is called 'smal.l', and there is no module 'smal' to import: did you mean small"),
        ("small.", r"No inner is called 'small.'; did you mean small"),
        (".small", r"No inner is called '.small'; did you mean small"),
        ("a/b.ckpt", r"No inner is called 'a/b.ckpt'; there are small"),
    ],
)
def test_an_import_path_that_leads_nowhere(name: str, text: str) -> None:
    with pytest.raises(KeyError, match=text):
        BASED.build({"name": name})


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("module", "error", "text"),
    [
        ("lacks", ModuleNotFoundError, "ModuleNotFoundError: No module named 'no_such_package_at_all'"),
        ("fails", RuntimeError, "RuntimeError: at once"),
        ("typo", SyntaxError, "SyntaxError: invalid syntax"),
    ],
)
def test_a_module_that_fails(module: str, error: type[Exception], text: str) -> None:
    name = f"their.{module}"
    with pytest.raises(
        ImportError, match=f"The inner '{name}.Mine' cannot be imported: {name} raises {text}"
    ) as raised:
        BASED.build({"name": f"{name}.Mine"})
    assert type(raised.value.__cause__) is error


@pytest.mark.parametrize(
    "config", [{"name": None}, {"name": 3}, {"name": "small", "args": [1]}, {"name": "small", "args": "x"}]
)
def test_names_are_texts_and_args_mappings(config: dict) -> None:
    with pytest.raises(ValueError, match="The inner's config needs a text as name and a mapping as args"):
        INNER.build(config)
