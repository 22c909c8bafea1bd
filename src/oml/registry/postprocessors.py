"""What re-ranks results of a search, by name."""

from collections.abc import Mapping
from typing import Any

from oml.interfaces.retrieval import IDistancesPostprocessor
from oml.registry.models import PAIRWISE_MODELS_REGISTRY
from oml.registry.registry import Registry
from oml.registry.transforms import TRANSFORMS_REGISTRY
from oml.retrieval.postprocessors.base import Postprocessor
from oml.retrieval.postprocessors.calibrated import CalibratedThresholding
from oml.retrieval.postprocessors.chain import Chain
from oml.retrieval.postprocessors.k_reciprocal import KReciprocalPostprocessor
from oml.retrieval.postprocessors.pairwise import PairwiseEmbeddingsPostprocessor, PairwiseImagesPostprocessor
from oml.retrieval.postprocessors.query_expansion import DatabaseAugmentationPostprocessor, QueryExpansionPostprocessor
from oml.retrieval.postprocessors.thresholding import AdaptiveThresholding, ConstantThresholding

POSTPROCESSORS_REGISTRY = Registry(
    "postprocessor",
    {
        "adaptive_threshold": AdaptiveThresholding,
        "calibrated_threshold": CalibratedThresholding,
        "chain": Chain,
        "constant_threshold": ConstantThresholding,
        "database_augmentation": DatabaseAugmentationPostprocessor,
        "k_reciprocal": KReciprocalPostprocessor,
        "pairwise_embeddings": PairwiseEmbeddingsPostprocessor,
        "pairwise_images": PairwiseImagesPostprocessor,
        "query_expansion": QueryExpansionPostprocessor,
    },
    nested={"pairwise_model": PAIRWISE_MODELS_REGISTRY, "transforms": TRANSFORMS_REGISTRY},
    base=(Postprocessor, IDistancesPostprocessor),
)
POSTPROCESSORS_REGISTRY.nested["postprocessors"] = POSTPROCESSORS_REGISTRY


def get_postprocessor(name: str, **kwargs: Any) -> Postprocessor | IDistancesPostprocessor:
    """A postprocessor by its name and arguments; configs of models and transforms among them are built first.

    Example:
        >>> linear = {"name": "linear_siamese", "args": {"feat_dim": 2, "identity_init": True}}
        >>> get_postprocessor("pairwise_embeddings", top_n=5, pairwise_model=linear, num_workers=0, batch_size=4).top_n
        5
    """
    return POSTPROCESSORS_REGISTRY.build({"name": name, "args": kwargs})


def get_postprocessor_by_cfg(cfg: Mapping[str, Any]) -> Postprocessor | IDistancesPostprocessor:
    """The postprocessor that ``{name, args}`` describes."""
    return POSTPROCESSORS_REGISTRY.build(cfg)
