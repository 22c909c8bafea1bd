from collections.abc import Mapping

import pytest
from omegaconf import OmegaConf

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
    registry = Registry("outer", OUTER, nested={"inner": INNER}, takes_configs={"outer"})
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
