"""What picks triplets: inside a batch, or among a batch and embeddings of earlier ones."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor

from oml.functional.labels import checked_labels
from oml.functional.triplets import Triplets, lone_labels
from oml.utils.user_warning import warn_user

TTriplets = tuple[Tensor, Tensor, Tensor]
TTripletsIds = tuple[list[int], list[int], list[int]]
TLabels = Tensor | Sequence[int]


def labels2list(labels: TLabels) -> list[int]:
    """The labels as a list of their own, for callers of earlier versions: nothing in OML needs lists of labels.

    Raises:
        TypeError: The labels are neither a tensor nor a sequence.

    Example:
        >>> import torch
        >>> labels2list(torch.tensor([[1], [2]]))
        [1, 2]
    """
    if isinstance(labels, Tensor):
        return labels.flatten().tolist()
    if not isinstance(labels, Sequence):
        raise TypeError(f"labels2list needs a tensor or a list, got {type(labels).__name__}.")
    return list(labels)


class MinedTriplets(NamedTuple):
    """Triplets as positions among candidates, which are the embeddings of the batch and perhaps others after them."""

    candidates: Float[Tensor, "candidate dim"]
    triplets: Triplets
    #: which triplets are of the batch alone; for miners that tell those apart, else ``None``
    is_original: Bool[Tensor, " triplet"] | None = None
    #: L2 distances of the anchors to the positives and to the negatives, without a graph, if the miner looked at them
    distances: tuple[Float[Tensor, " triplet"], Float[Tensor, " triplet"]] | None = None


class ITripletsMiner(ABC):
    """Turns labelled embeddings into triplets of embeddings."""

    @abstractmethod
    def sample(self, features: Float[Tensor, "batch dim"], labels: TLabels) -> tuple[Tensor, ...]:
        """Anchors, positives and negatives, each of shape ``(triplet, dim)``; gradients flow to ``features``.

        A miner may add further tensors with an entry per triplet.
        """

    def takes_all(self, n: int) -> bool:  # noqa: ARG002 (what others look at)
        """``True`` if of any batch of ``n`` items the miner picks each triplet once.

        A loss may then sum over the triplets without a list of them.
        """
        return False

    def checked(self, features: Float[Tensor, "batch dim"], labels: TLabels) -> Int[Tensor, " batch"]:
        """The labels as a tensor on the device of the embeddings.

        Raises:
            ValueError: There is not one integer label per embedding.
        """
        return checked_labels(type(self).__name__, features, labels)


class ITripletsMinerByIds(ITripletsMiner):
    """A miner whose triplets consist of embeddings as they are, so that positions say it all."""

    @abstractmethod
    def pick(self, features: Float[Tensor, "batch dim"], labels: TLabels) -> MinedTriplets:
        """The triplets as positions; gradients flow to ``features`` through the candidates."""

    def sample(self, features: Float[Tensor, "batch dim"], labels: TLabels) -> tuple[Tensor, ...]:
        """The mined triplets' embeddings. A batch without a triplet gives three tensors of shape ``(0, dim)``."""
        candidates, ids, is_original, _ = self.pick(features, labels)
        # not candidates[ids]: on several threads its backward pass adds in an order that differs from run to run
        triplets = tuple(candidates.index_select(0, role) for role in ids)
        return triplets if is_original is None else (*triplets, is_original)


class ITripletsMinerInBatch(ITripletsMinerByIds):
    """A miner that looks at nothing but the batch. To write one, implement :meth:`mine`."""

    _told_of_lone_labels = False

    @abstractmethod
    def mine(self, features: Float[Tensor, "batch dim"], labels: Int[Tensor, " batch"]) -> Triplets:
        """Positions of the triplets in the batch, on the device of ``features``, which have no graph."""

    def pick(self, features: Float[Tensor, "batch dim"], labels: TLabels) -> MinedTriplets:
        """The triplets as positions in the batch.

        Labels with one instance in the batch are named in a warning, once; they serve as negatives.

        Raises:
            ValueError: if there is not one integer label per embedding.
        """
        labels = self.checked(features, labels)
        return MinedTriplets(features, self.mine(features.detach(), labels))

    def checked(self, features: Float[Tensor, "batch dim"], labels: TLabels) -> Int[Tensor, " batch"]:
        """The labels as a tensor on the device of the embeddings, after the checks of :meth:`pick`."""
        labels = super().checked(features, labels)
        if not self._told_of_lone_labels and not labels.is_meta and len(lone := lone_labels(labels)):
            self._told_of_lone_labels = True
            warn_user(
                f"{type(self).__name__} met {len(lone)} labels with a single instance in the batch, such as "
                f"{lone[:3].tolist()}: they give no positive pair and serve as negatives only. A batch sampler "
                "such as BalanceSampler forms batches with several instances a label. This is said once."
            )
        return labels
