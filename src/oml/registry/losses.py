"""Losses by name."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from oml.ddp.sharded_classes import ShardedArcFaceLoss, ShardedCosFaceLoss
from oml.losses.arcface import ArcFaceLoss, ArcFaceLossWithMLP
from oml.losses.contrastive import InfoNCELoss, SupConLoss
from oml.losses.cosface import CosFaceLoss
from oml.losses.matryoshka import MatryoshkaLoss
from oml.losses.multi_similarity import MultiSimilarityLoss
from oml.losses.proxy_anchor import ProxyAnchorLoss
from oml.losses.recall_surrogate import RecallAtKSurrogate
from oml.losses.sub_center_arcface import SubCenterArcFaceLoss
from oml.losses.surrogate_precision import SurrogatePrecision
from oml.losses.triplet import TripletLoss, TripletLossPlain, TripletLossWithMiner
from oml.registry.miners import MINERS_REGISTRY
from oml.registry.pml import get_pml_criterion, pml_registries
from oml.registry.registry import Registry

LOSSES_REGISTRY = Registry(
    "criterion",
    {
        "triplet": TripletLoss,
        "triplet_plain": TripletLossPlain,
        "triplet_with_miner": TripletLossWithMiner,
        "arcface": ArcFaceLoss,
        "mlp_arcface": ArcFaceLossWithMLP,
        "cosface": CosFaceLoss,
        "sub_center_arcface": SubCenterArcFaceLoss,
        "sharded_arcface": ShardedArcFaceLoss,
        "sharded_cosface": ShardedCosFaceLoss,
        "proxy_anchor": ProxyAnchorLoss,
        "surrogate_precision": SurrogatePrecision,
        "recall_surrogate": RecallAtKSurrogate,
        "supcon": SupConLoss,
        "info_nce": InfoNCELoss,
        "multi_similarity": MultiSimilarityLoss,
        "matryoshka": MatryoshkaLoss,
        "pml": get_pml_criterion,
    },
    nested={"miner": MINERS_REGISTRY},
    takes_configs={"pml": pml_registries},
    base=nn.Module,
)
LOSSES_REGISTRY.nested["criterion"] = LOSSES_REGISTRY


def get_criterion(name: str, **kwargs: Any) -> nn.Module:
    """A loss by its name and arguments; a miner may be given as a config."""
    return LOSSES_REGISTRY.build({"name": name, "args": kwargs})


def get_criterion_by_cfg(cfg: Mapping[str, Any], **kwargs_runtime: Any) -> nn.Module:
    """The loss that ``{name, args}`` describes; what is offered at run time goes to a loss that asks for it."""
    return LOSSES_REGISTRY.build(cfg, **kwargs_runtime)
