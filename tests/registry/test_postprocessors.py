"""Postprocessors out of configs, with what is within them."""

from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from oml.interfaces.retrieval import IDistancesPostprocessor
from oml.models import LinearTrivialDistanceSiamese
from oml.registry.postprocessors import POSTPROCESSORS_REGISTRY, get_postprocessor, get_postprocessor_by_cfg
from oml.retrieval.postprocessors.pairwise import PairwiseEmbeddingsPostprocessor, PairwiseImagesPostprocessor

LINEAR = {"name": "linear_siamese", "args": {"feat_dim": 2, "identity_init": True}}
ARGS: dict[str, Any] = {"top_n": 3, "pairwise_model": LINEAR, "num_workers": 0, "batch_size": 4}


def test_a_model_within_is_built() -> None:
    for built in (
        get_postprocessor("pairwise_embeddings", **ARGS),
        get_postprocessor_by_cfg({"name": "pairwise_embeddings", "args": ARGS}),
        get_postprocessor_by_cfg(OmegaConf.create({"name": "pairwise_embeddings", "args": ARGS})),
    ):
        assert isinstance(built, PairwiseEmbeddingsPostprocessor)
        assert isinstance(built.model, LinearTrivialDistanceSiamese)
        assert torch.equal(built.model.proj.weight, torch.eye(2))
    model = LinearTrivialDistanceSiamese(2, True)
    built = get_postprocessor("pairwise_embeddings", **ARGS | {"pairwise_model": model})
    assert isinstance(built, PairwiseEmbeddingsPostprocessor)
    assert built.model is model


def test_transforms_within_are_built() -> None:
    transforms = {"name": "norm_resize_torch", "args": {"im_size": 16}}
    built = get_postprocessor("pairwise_images", **ARGS, transforms=transforms)
    assert isinstance(built, PairwiseImagesPostprocessor)
    assert built.image_transforms is not None
    assert built.f_imread.__name__ == "imread_tensor"


def test_names_and_arguments_have_hints() -> None:
    with pytest.raises(KeyError, match="did you mean pairwise_images"):
        get_postprocessor("pairwise_image")
    with pytest.raises(ValueError, match="'topn': did you mean top_n"):
        get_postprocessor("pairwise_embeddings", **ARGS, topn=3)
    assert POSTPROCESSORS_REGISTRY.problems({"name": "pairwise_embeddings", "args": ARGS}) == []
    (problem,) = POSTPROCESSORS_REGISTRY.problems(
        {"name": "pairwise_embeddings", "args": ARGS | {"pairwise_model": {"name": "linear_siames"}}}
    )
    assert "did you mean linear_siamese" in problem


def test_a_class_of_a_user_by_its_path() -> None:
    assert POSTPROCESSORS_REGISTRY.find(f"{__name__}.Doubled") is Doubled


class Doubled(IDistancesPostprocessor):
    needed_keys = ()  # pyright: ignore[reportAssignmentType]

    def process(self, distances: torch.Tensor, queries: Any, galleries: Any) -> torch.Tensor:
        return 2 * distances

    def process_by_dict(self, distances: torch.Tensor, data: dict[str, Any]) -> torch.Tensor:
        return self.process(distances, None, None)
