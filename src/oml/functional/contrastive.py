"""Losses over all pairs of a batch, as functions of similarities and of which pairs are positive or negative.

Pairs are given by two masks ``(anchor, candidate)``; a pair in neither of them, such as an item and itself, plays no
part. Nothing here is larger than these masks.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from oml.functional.precision import in_full_precision
from oml.functional.triplets import Triplets

Similarities = Float[Tensor, "anchor candidate"]
PairMask = Bool[Tensor, "anchor candidate"]


def labelled_pairs(
    labels: Int[Tensor, " anchor"], candidate_labels: Int[Tensor, " candidate"]
) -> tuple[PairMask, PairMask]:
    """Masks of positive and of negative pairs, when the first candidates are the anchors themselves, in order.

    An anchor and itself are neither.

    Example:
        >>> positive, negative = labelled_pairs(torch.tensor([5, 5]), torch.tensor([5, 5, 7]))
        >>> positive.tolist(), negative.tolist()
        ([[False, True, False], [True, False, False]], [[False, False, True], [False, False, True]])
    """
    same = labels[:, None] == candidate_labels
    negative = ~same
    return same.fill_diagonal_(False), negative


@in_full_precision
def supcon_loss(
    similarities: Similarities, positive: PairMask, negative: PairMask, temperature: int | float
) -> Float[Tensor, " anchor"]:
    """SupCon, the form with the sum outside of the logarithm (Khosla et al. 2020, eq. 2), for each anchor.

    ``log(sum over all its pairs z of exp(s_z / t)) - mean over its positives p of s_p / t``: the mean of
    ``-log(exp(s_p / t) / sum over z of exp(s_z / t))``, where ``z`` are positives, ``p`` included, and negatives. An
    anchor without positives has 0.

    Args:
        similarities: of anchors and candidates.
        positive: the positive pairs.
        negative: the negative pairs.
        temperature: ``t``, above 0.

    Example:
        >>> one, none = torch.tensor([[True, False]]), torch.tensor([[False, True]])
        >>> supcon_loss(torch.tensor([[1.0, 1.0]]), one, none, temperature=0.1)  # ln 2
        tensor([0.6931])
    """
    logits = similarities / temperature
    n_positives = positive.sum(dim=1)
    mean = torch.where(positive, logits, 0).sum(dim=1) / n_positives.clamp(min=1)
    return torch.where(n_positives > 0, _log_sum_exp(logits, positive | negative) - mean, 0)


@in_full_precision
def info_nce_loss(
    similarities: Similarities, positive: PairMask, negative: PairMask, temperature: int | float
) -> Float[Tensor, " anchor"]:
    """InfoNCE (van den Oord et al. 2018), for each anchor the mean over its positives.

    One term for each positive pair: ``-log(exp(s_p / t) / (exp(s_p / t) + sum over negatives n of exp(s_n / t)))``.
    Other positives of the anchor are not in the denominator, as they are in :func:`supcon_loss`: with one positive for
    each anchor the two agree. An anchor without positives has 0.

    Args:
        similarities: of anchors and candidates.
        positive: the positive pairs.
        negative: the negative pairs.
        temperature: ``t``, above 0.

    Example:
        >>> positive, negative = torch.tensor([[True, True, False]]), torch.tensor([[False, False, True]])
        >>> info_nce_loss(torch.tensor([[1.0, 1.0, 1.0]]), positive, negative, temperature=0.1)  # ln 2
        tensor([0.6931])
    """
    logits = similarities / temperature
    terms = F.softplus(_log_sum_exp(logits, negative)[:, None] - logits)
    return torch.where(positive, terms, 0).sum(dim=1) / positive.sum(dim=1).clamp(min=1)


@in_full_precision
def multi_similarity_loss(
    similarities: Similarities,
    positive: PairMask,
    negative: PairMask,
    alpha: int | float,
    beta: int | float,
    base: int | float,
) -> Float[Tensor, " anchor"]:
    """Multi-Similarity (Wang et al. 2019, eq. 15), for each anchor.

    ``log(1 + sum over positives p of exp(-alpha (s_p - base))) / alpha
    + log(1 + sum over negatives n of exp(beta (s_n - base))) / beta``; an anchor without pairs has 0.

    Args:
        similarities: of anchors and candidates.
        positive: the positive pairs, after mining if there is any.
        negative: the negative pairs, likewise.
        alpha: scale of positive pairs, above 0.
        beta: scale of negative pairs, above 0.
        base: the similarity that positives should be above and negatives below.

    Example:
        >>> one, none = torch.tensor([[True]]), torch.tensor([[False]])
        >>> multi_similarity_loss(torch.tensor([[0.5]]), one, none, alpha=2.0, beta=50.0, base=0.5)  # ln 2 / 2
        tensor([0.3466])
    """
    pull = _log_1_sum_exp(-alpha * (similarities - base), positive) / alpha
    push = _log_1_sum_exp(beta * (similarities - base), negative) / beta
    return pull + push


def multi_similarity_pairs(
    similarities: Similarities, positive: PairMask, negative: PairMask, epsilon: int | float
) -> tuple[PairMask, PairMask]:
    """The informative ones of positive and negative pairs (Wang et al. 2019, eq. 11 and 12).

    A negative is kept if it is more similar than the anchor's least similar positive, less ``epsilon``; a positive, if
    it is less similar than the most similar negative, plus ``epsilon``. An anchor that lacks positives or negatives
    keeps nothing.

    Example:
        >>> similarities, positive = torch.tensor([[0.9, 0.5, 0.45, 0.1]]), torch.tensor([[True, True, False, False]])
        >>> multi_similarity_pairs(similarities, positive, ~positive, epsilon=0.1)[1]
        tensor([[False, False,  True, False]])
    """
    if not similarities.numel():
        return positive, negative  # there is no least of nothing
    least = similarities.masked_fill(~positive, torch.inf).amin(dim=1, keepdim=True)
    most = similarities.masked_fill(~negative, -torch.inf).amax(dim=1, keepdim=True)
    # in this form a NaN is kept, so that the loss tells of it
    return positive & ~(similarities >= most + epsilon), negative & ~(similarities <= least - epsilon)


def combined_pairs(positive: PairMask, negative: PairMask) -> Triplets:
    """The triplets of each positive pair with each negative pair of the same anchor, by anchor, positive, negative.

    Needs memory for one bool per positive pair and candidate.

    Example:
        >>> combined_pairs(torch.tensor([[False, True, True, False]]), torch.tensor([[False, False, False, True]]))
        Triplets(anchor=tensor([0, 0]), positive=tensor([1, 2]), negative=tensor([3, 3]))
    """
    anchor, closer = positive.nonzero(as_tuple=True)
    pair, farther = negative[anchor].nonzero(as_tuple=True)
    return Triplets(anchor[pair], closer[pair], farther)


def _log_sum_exp(logits: Tensor, mask: Tensor) -> Tensor:
    # not -inf: the gradient of a row without any would be NaN
    return logits.masked_fill(~mask, torch.finfo(logits.dtype).min).logsumexp(dim=1)


def _log_1_sum_exp(logits: Tensor, mask: Tensor) -> Tensor:
    return F.pad(logits.masked_fill(~mask, -torch.inf), (1, 0)).logsumexp(dim=1)  # padded by 0, that is exp(0) = 1
