"""What is wrong with a config, without building anything."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from oml.const import CONFIGS_PATH
from oml.registry import REGISTRIES
from oml.registry.arguments import argument_problems, fits, type_name
from oml.registry.losses import LOSSES_REGISTRY
from oml.registry.models import EXTRACTORS_REGISTRY
from oml.registry.registry import Registry

OFFERED = {
    "optimizer": ["params"],
    "sampler": ["labels", "label2category"],
    "scheduler": ["optimizer", "lr_lambda", "total_steps"],
}


@pytest.mark.parametrize("group", sorted({*REGISTRIES} - {"logger"}))  # which look for keys
def test_packaged_configs_have_none(group: str) -> None:
    files = sorted((CONFIGS_PATH / group).glob("*.yaml"))
    assert files
    for file in files:
        assert REGISTRIES[group].problems(OmegaConf.load(file), OFFERED.get(group, ())) == [], file


def test_all_are_told_at_every_depth() -> None:
    config = {
        "name": "extractor_with_mlp",
        "args": {
            "mlp_featurs": [8],
            "train_backbone": "yes",
            "weights": "mine.ckpt",
            "extractor": {"name": "vit", "args": {"arch": 16, "weights": "vits16_dino"}},
        },
    }
    assert EXTRACTORS_REGISTRY.problems(config, place="model") == [
        "model: The extractor 'extractor_with_mlp' has no argument 'mlp_featurs'; did you mean mlp_features?",
        "model: The extractor 'extractor_with_mlp' needs bool as train_backbone, got 'yes'.",
        "model.args.extractor: The extractor 'vit' needs str as arch, got 16.",
        "model.args.extractor: The extractor 'vit' needs the argument 'normalise_features', which is missing.",
        "model: 'ExtractorWithMLP' has the weights 'mine.ckpt', which are of the extractor within as "
        "well, and so has that extractor, 'vits16_dino': set the weights of one of them to null.",
    ]


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (3, "criterion: The criterion's config needs a name and may have args and nothing else: 3."),
        ({"name": "arcface", "arg": {}}, "criterion: The criterion's config needs a name and may have args"),
        ({"name": "arcface", "args": [1]}, "criterion: The criterion's config needs a text as name and a mapping"),
        ({"name": "arcfase"}, "criterion: No criterion is called 'arcfase'; did you mean arcface"),
        ({"name": "no_such_module.Loss"}, "criterion: No criterion is called 'no_such_module.Loss', and there is no"),
        ({"name": "os.system"}, "criterion: 'os.system' cannot be the criterion"),
        ({"name": "pml", "args": {"loss": {"name": "TripletMarginLoss", "args": {"distance": {"name": "LpDistanse"}}}}},
         "criterion.args.loss.args.distance: No distance is called 'LpDistanse'; did you mean"),
        ({"name": "matryoshka", "args": {"dims": [2], "criterion": [{"name": "arcfase"}]}},
         "criterion.args.criterion[0]: No criterion is called 'arcfase'"),
    ],
)  # fmt: skip
def test_a_config_of_the_wrong_form_or_name(config: Any, text: str) -> None:
    found = LOSSES_REGISTRY.problems(config)
    assert len(found) == 1
    assert found[0].startswith(text)


def test_pml_arguments_that_a_loss_gives_to_its_base() -> None:
    losses = [{"name": "ContrastiveLoss", "args": {"pos_margin": 0.1}}, {"name": "NTXentLoss", "args": {}}]
    for loss in losses:
        assert LOSSES_REGISTRY.problems({"name": "pml", "args": {"loss": loss}}) == []
        LOSSES_REGISTRY.build({"name": "pml", "args": {"loss": loss}})


def test_nothing_is_built() -> None:
    def fail(size: int, **_: Any) -> None:
        raise AssertionError(size)

    registry = Registry("part", {"failing": fail})
    assert registry.problems({"name": "failing", "args": {"size": 1, "more": 2}}) == []
    assert registry.problems({"name": "failing"}) == [
        "part: The part 'failing' needs the argument 'size', which is missing."
    ]


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (1, int, True), (True, int, False), (1.0, int, False), ("1", int, False),
        (1, float, True), (True, float, False), ("1e-5", float | Tensor, False),
        ("a", str, True), (1, str, False), (True, bool, True), (1, bool, False), (None, int, False), (None, None, True),
        (None, int | None, True), (3, Union[str, int], True), (3.5, int | str, False),  # noqa: UP007 (as torch writes it)
        ([1, 2], list[int], True), ([1, "2"], list[int], False), ("ab", Sequence[str], False), ([1], Sequence, True),
        ([0.9, 1], tuple[float, float], True), ([0.9], tuple[float, float], False), ([1, 2, 3], tuple[int, ...], True),
        ({"a": 1}, Mapping[str, int], True), ([1], dict, False), ("a", Path, True), (1, Path | None, False),
        ("min", Literal["min", "max"], True), (True, Literal[1], False), (1, nn.Module, False), ([1], nn.Module, True),
        ("f", Callable[[int], int], True), ("float32", torch.dtype, True), (1, "Unknown", True), (1, Any, True),
    ],
)  # fmt: skip
def test_whether_a_value_fits(value: Any, annotation: Any, expected: bool) -> None:
    assert fits(value, annotation) is expected


def test_names_of_types() -> None:
    assert type_name(Union[float, Tensor, None]) == "float | Tensor | None"  # noqa: UP007 (as torch writes it)
    assert type_name(Literal["a.b", 1]) == "'a.b' | 1"


def test_annotations_that_cannot_be_evaluated_check_nothing() -> None:
    def build(size: "NoSuchType") -> None:  # noqa: F821 # pyright: ignore[reportUndefinedVariable]
        raise AssertionError(size)

    assert argument_problems("build", build, {"size": "x"}) == []
    assert argument_problems("build", build, {}) == ["build needs the argument 'size', which is missing."]
