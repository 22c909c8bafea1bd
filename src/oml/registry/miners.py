"""Miners by name."""

from collections.abc import Mapping
from typing import Any

from oml.interfaces.miners import ITripletsMiner
from oml.miners.cross_batch import TripletMinerWithMemory
from oml.miners.inbatch_all_tri import AllTripletsMiner
from oml.miners.inbatch_hard_cluster import HardClusterMiner
from oml.miners.inbatch_hard_tri import HardTripletsMiner
from oml.miners.inbatch_nhard_tri import NHardTripletsMiner
from oml.miners.miner_with_bank import MinerWithBank
from oml.miners.multi_similarity import MultiSimilarityMiner
from oml.registry.registry import Registry

MINERS_REGISTRY = Registry(
    "miner",
    {
        "all_triplets": AllTripletsMiner,
        "hard_cluster": HardClusterMiner,
        "hard_triplets": HardTripletsMiner,
        "miner_with_bank": MinerWithBank,
        "multi_similarity": MultiSimilarityMiner,
        "n_hard_triplets": NHardTripletsMiner,
        "triplets_with_memory": TripletMinerWithMemory,
    },
    base=ITripletsMiner,
)
MINERS_REGISTRY.nested["miner"] = MINERS_REGISTRY


def get_miner(name: str, **kwargs: Any) -> ITripletsMiner:
    """A miner by its name and arguments."""
    return MINERS_REGISTRY.build({"name": name, "args": kwargs})


def get_miner_by_cfg(cfg: Mapping[str, Any]) -> ITripletsMiner:
    """The miner that ``{name, args}`` describes."""
    return MINERS_REGISTRY.build(cfg)
