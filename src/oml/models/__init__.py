"""Extractors, models that make embeddings, and models of pairs."""

from oml.models.meta.cross_attention import CrossAttentionSiamese
from oml.models.meta.projection import ExtractorWithMLP
from oml.models.meta.siamese import ConcatSiamese, LinearTrivialDistanceSiamese, TrivialDistanceSiamese
from oml.models.resnet.extractor import ResnetExtractor
from oml.models.timm_extractor import TimmExtractor
from oml.models.vit_clip.extractor import ViTCLIPExtractor
from oml.models.vit_dino.extractor import ViTExtractor
from oml.models.vit_unicom.extractor import ViTUnicomExtractor

__all__ = [
    "ConcatSiamese",
    "CrossAttentionSiamese",
    "ExtractorWithMLP",
    "LinearTrivialDistanceSiamese",
    "ResnetExtractor",
    "TimmExtractor",
    "TrivialDistanceSiamese",
    "ViTCLIPExtractor",
    "ViTExtractor",
    "ViTUnicomExtractor",
]
