"""Miners of pytorch-metric-learning."""

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from oml.functional.precision import in_full_precision
from oml.functional.triplets import Triplets
from oml.interfaces.miners import ITripletsMinerInBatch


class PMLMiner(ITripletsMinerInBatch):
    """A miner of pytorch-metric-learning in place of one of ours, such as in ``TripletLossWithMiner``::

        from pytorch_metric_learning import miners

        criterion = TripletLossWithMiner(margin=0.2, miner=PMLMiner(miners.MultiSimilarityMiner(epsilon=0.1)))

    Of a miner that gives pairs, each positive pair is joined with each negative pair of the same anchor. It mines in
    float32 at least. To use it with a loss of pytorch-metric-learning, see :class:`oml.losses.pml.PMLLoss`.

    Args:
        miner: gives positions in the batch, as triplets or as pairs.

    Raises:
        ModuleNotFoundError: pytorch-metric-learning is not installed.
        TypeError: ``miner`` is not one of its miners.
    """

    def __init__(self, miner: nn.Module) -> None:
        try:
            from pytorch_metric_learning.miners import BaseMiner
            from pytorch_metric_learning.utils.loss_and_miner_utils import convert_to_triplets
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "PMLMiner needs pytorch-metric-learning: pip install 'open-metric-learning[pml]'", name=error.name
            ) from error
        if not isinstance(miner, BaseMiner):
            raise TypeError(f"PMLMiner needs a miner of pytorch-metric-learning, got {type(miner).__name__}.")
        self.miner: Any = miner
        self._convert = convert_to_triplets

    @in_full_precision
    def mine(self, features: Float[Tensor, "batch dim"], labels: Int[Tensor, " batch"]) -> Triplets:
        """Positions of the triplets that the miner finds, or that its pairs make up."""
        return Triplets(*self._convert(self.miner(features, labels), labels))
