"""Extractors: models that make embeddings."""

from oml.models.timm_extractor import TimmExtractor
from oml.models.vit_dino.extractor import ViTExtractor

__all__ = ["TimmExtractor", "ViTExtractor"]
