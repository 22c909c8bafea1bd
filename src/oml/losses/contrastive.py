"""SupCon and InfoNCE: each anchor is to tell its positives from everything else in the batch, and in a bank."""

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor

from oml.functional.contrastive import PairMask, Similarities, info_nce_loss, labelled_pairs, supcon_loss
from oml.functional.distances import normalise
from oml.functional.labels import checked_labels
from oml.functional.precision import in_full_precision
from oml.interfaces.miners import TLabels
from oml.losses._instances import NeedsInstances
from oml.miners.bank import Bank


class _ContrastiveLoss(NeedsInstances, ABC):
    """The mean of a loss of pairs over the items of the batch that have a positive, by cosines."""

    #: whether items in the bank are positives of anchors of their label
    bank_has_positives: bool

    def __init__(self, temperature: int | float, bank_size: int) -> None:
        super().__init__()
        if not (temperature > 0 and bank_size >= 0):
            raise ValueError(
                f"{type(self).__name__} needs a temperature above 0 and a bank_size of 0 or more, "
                f"got {temperature} and {bank_size}."
            )
        self.temperature = temperature
        self.bank = Bank(bank_size) if bank_size else None
        self.last_logs: dict[str, Tensor] = {}

    @in_full_precision
    def forward(self, features: Float[Tensor, "batch dim"], labels: TLabels) -> Float[Tensor, ""]:
        """The loss of the batch; ``labels`` are integers, one per embedding. In training mode the bank takes it in."""
        labels = checked_labels(type(self).__name__, features, labels)
        if self.bank is None or not self.bank_has_positives:
            self._look_at_first(labels)
        embeddings = normalise(features)
        candidates = (embeddings, labels) if self.bank is None else self.bank.joined(embeddings, labels)
        positive, negative = labelled_pairs(labels, candidates[1])
        if not self.bank_has_positives:
            positive[:, len(labels) :] = False
        losses = self._losses(embeddings @ candidates[0].T, positive, negative)
        n_anchors = positive.any(dim=1).sum()
        self.last_logs = {"n_anchors": n_anchors.float()}
        if self.bank is not None and self.training:
            self.bank.push(embeddings, labels)
        return losses.sum() / n_anchors.clamp(min=1)  # other items have a loss of 0

    @abstractmethod
    def _losses(self, similarities: Similarities, positive: PairMask, negative: PairMask) -> Float[Tensor, " anchor"]:
        """The loss of each anchor."""


class SupConLoss(_ContrastiveLoss):
    """Cross-entropy of each anchor's positives among all other items, by their cosines.

    Khosla et al. 2020, "Supervised Contrastive Learning", the form L_out; the formula stands at
    :func:`oml.functional.contrastive.supcon_loss`. The mean is over the items that have a positive; a batch without
    any gives 0, connected to the embeddings. Embeddings need not be normalised.

    Needs several instances of a label in a batch, which ``BalanceSampler`` provides, and no miner. It gains from
    large batches: see :class:`~oml.models.gradient_cache.GradientCache`, or take a bank.

    With a bank (Wang et al. 2020, "Cross-Batch Memory for Embedding Learning") the last ``bank_size`` embeddings of
    earlier batches are candidates too, as positives and as negatives, without gradients of their own. Then a label
    may be alone in the batch. Embeddings drift quickly in the first epochs, when a large bank is of little use. An
    item that is still in the bank when it comes again is its own positive there: keep the bank below an epoch.

    Args:
        temperature: divides the cosines, above 0.
        bank_size: how many embeddings of earlier batches to keep; 0 for no bank.

    After each call, ``last_logs`` has ``n_anchors``: how many items had a positive.

    Raises:
        ValueError: the temperature is not above 0, or ``bank_size`` is negative.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> SupConLoss(temperature=1.0)(x, torch.tensor([5, 5, 7, 7]))  # log(e + 2) - 1
        tensor(0.5514)
    """

    criterion_name = "supcon"
    bank_has_positives = True

    def __init__(self, temperature: int | float = 0.1, bank_size: int = 0) -> None:
        super().__init__(temperature, bank_size)

    def _losses(self, similarities: Similarities, positive: PairMask, negative: PairMask) -> Float[Tensor, " anchor"]:
        return supcon_loss(similarities, positive, negative, self.temperature)


class InfoNCELoss(_ContrastiveLoss):
    """For each pair of views, cross-entropy of the one among itself and the items of other labels, by their cosines.

    van den Oord et al. 2018, "Representation Learning with Contrastive Predictive Coding"; the formula stands at
    :func:`oml.functional.contrastive.info_nce_loss`. Labels say what are views of one thing: every two items of a
    label are a positive pair, in both orders, and every item of another label is a negative. For two augmented views
    of each image, the labels are the numbers of the images. Unlike in :class:`SupConLoss`, other positives are
    not in the denominator, so that positives do not compete; with two items of each label the two losses agree.

    The mean is over the items that have a positive, after that over the positives of each; a batch without any gives
    0, connected to the embeddings. Embeddings need not be normalised. Needs two or more instances of a label in
    a batch, which ``BalanceSampler`` provides, and no miner.

    With a bank, the last ``bank_size`` embeddings of earlier batches are negatives too, without gradients of their own
    (He et al. 2020, "Momentum Contrast", though without its second encoder). Those of the anchor's label take no part:
    a pair of views is of one batch. Negatives alone push from where embeddings were, which collapses a training from
    scratch: wait until the weights move slowly, or start from pretrained ones.

    Args:
        temperature: divides the cosines, above 0.
        bank_size: how many embeddings of earlier batches to keep; 0 for no bank.

    After each call, ``last_logs`` has ``n_anchors``: how many items had a positive.

    Raises:
        ValueError: the temperature is not above 0, or ``bank_size`` is negative.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> InfoNCELoss(temperature=1.0)(x, torch.tensor([5, 5, 5, 7]))  # log(e + 1) - 1
        tensor(0.3133)
    """

    criterion_name = "info_nce"
    bank_has_positives = False

    def __init__(self, temperature: int | float = 0.07, bank_size: int = 0) -> None:
        super().__init__(temperature, bank_size)

    def _losses(self, similarities: Similarities, positive: PairMask, negative: PairMask) -> Float[Tensor, " anchor"]:
        return info_nce_loss(similarities, positive, negative, self.temperature)
