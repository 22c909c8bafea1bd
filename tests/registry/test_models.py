from collections.abc import Callable
from typing import Any

import pytest
from omegaconf import OmegaConf

from oml.models import ConcatSiamese, ExtractorWithMLP, TimmExtractor
from oml.registry.models import (
    EXTRACTORS_REGISTRY,
    PAIRWISE_MODELS_REGISTRY,
    get_extractor,
    get_extractor_by_cfg,
    get_pairwise_model,
    get_pairwise_model_by_cfg,
    raise_if_needed,
)

INNER = {"name": "timm", "args": {"weights": None, "arch": "test_resnet"}}


def test_names() -> None:
    described = {"resnet", "vit", "vit_clip", "vit_unicom", "extractor_with_mlp"}
    assert set(EXTRACTORS_REGISTRY) == described | {"timm"}
    assert set(PAIRWISE_MODELS_REGISTRY) == {
        "linear_siamese",
        "concat_siamese",
        "cross_attention_siamese",
        "trivial_distance_siamese",
    }


@pytest.mark.parametrize("as_config", [dict, OmegaConf.create])
def test_a_config_within_is_built_first(as_config: Callable[[Any], Any]) -> None:
    args = {"extractor": INNER, "mlp_features": [3]}
    for extractor in (
        get_extractor("extractor_with_mlp", **as_config(args)),
        get_extractor_by_cfg(as_config({"name": "extractor_with_mlp", "args": args})),
    ):
        assert type(extractor) is ExtractorWithMLP
        assert type(extractor.extractor) is TimmExtractor
        assert extractor.mlp_features == [3]
    args = {"extractor": {"name": "extractor_with_mlp", "args": args}, "mlp_hidden_dims": [2]}
    for model in (
        get_pairwise_model("concat_siamese", **as_config(args)),
        get_pairwise_model_by_cfg(as_config({"name": "concat_siamese", "args": args})),
    ):
        assert type(model) is ConcatSiamese
        assert type(model.extractor.extractor) is TimmExtractor


def test_an_extractor_within_as_it_is() -> None:
    backbone = get_extractor_by_cfg(INNER)
    extractor = get_extractor("extractor_with_mlp", extractor=backbone, mlp_features=[3])
    assert isinstance(extractor, ExtractorWithMLP)
    assert extractor.extractor is backbone


@pytest.mark.parametrize("name", ["extractor_with_mlp", "concat_siamese"])
def test_weights_may_be_given_once(name: str) -> None:
    size = {"mlp_features": [3]} if name == "extractor_with_mlp" else {"mlp_hidden_dims": [3]}
    build = get_extractor if name == "extractor_with_mlp" else get_pairwise_model
    inner = {"name": "timm", "args": {"weights": "inner.ckpt", "arch": "test_resnet"}}
    with pytest.raises(ValueError, match=f"{name!r} has the weights 'outer.ckpt'.*has that extractor, 'inner.ckpt'"):
        build(name, extractor=inner, weights="outer.ckpt", **size)
    within = {"name": "extractor_with_mlp", "args": {"extractor": inner, "weights": "outer.ckpt"}}
    with pytest.raises(ValueError, match="outer.ckpt"):  # deeper down, too
        build(name, extractor=within, **size)
    with pytest.raises(FileNotFoundError, match="inner.ckpt"):
        build(name, extractor=inner, weights=None, **size)
    with pytest.raises(FileNotFoundError, match="outer.ckpt"):
        build(name, extractor=INNER, weights="outer.ckpt", **size)
    assert build(name, extractor=INNER, **size)


@pytest.mark.parametrize("inner", ["a.ckpt", None])
@pytest.mark.parametrize("outer", ["b.ckpt", None])
def test_raise_if_needed(inner: str | None, outer: str | None) -> None:
    arguments = ({"name": "vit", "args": {"weights": inner}}, {"weights": outer}, "extractor_with_mlp")
    if inner and outer:
        with pytest.raises(ValueError, match="'extractor_with_mlp' has the weights 'b.ckpt'.*'a.ckpt'"):
            raise_if_needed(*arguments)
    else:
        raise_if_needed(*arguments)
    raise_if_needed({"name": "vit"}, {}, "concat_siamese")


def test_unknown_names_have_hints() -> None:
    with pytest.raises(KeyError, match="No extractor is called 'resnt'; did you mean resnet"):
        get_extractor("resnt")
    with pytest.raises(KeyError, match="No pairwise model is called 'concat'"):
        get_pairwise_model("concat")
    with pytest.raises(KeyError, match="No extractor is called 'timmm'"):
        get_pairwise_model("trivial_distance_siamese", extractor={"name": "timmm"})
