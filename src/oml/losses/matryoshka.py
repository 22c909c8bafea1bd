"""A loss over nested prefixes of the embedding."""

from collections.abc import Sequence
from copy import deepcopy
from inspect import signature

from jaxtyping import Float
from torch import Tensor, nn

from oml.functional.arguments import whole_numbers
from oml.functional.distances import normalise
from oml.functional.precision import in_full_precision
from oml.interfaces.miners import TLabels


class MatryoshkaLoss(nn.Module):
    """``sum over d of weight[d] * criterion(first d numbers of each embedding)``.

    Kusupati et al. 2022, "Matryoshka Representation Learning": embeddings that may be cut off at any of ``dims``, to
    search faster. Labels, miners and samplers are those that the criterion needs.

    Prefixes of normalised embeddings are not normalised. That makes no difference to losses by cosines (SupCon,
    InfoNCE, Multi-Similarity, the Recall@k surrogate, ArcFace and others with proxies). Losses by L2 distances
    (triplet, SurrogatePrecision) see short prefixes nearer to each other, so that a margin asks more of them: pass
    ``normalise=True`` if prefixes are normalised when they are searched, as they mostly are.

    Args:
        criterion: of embeddings and labels. It is copied for each of ``dims``, so that banks, parameters and logs are
            apart. A loss that is built for a size of embeddings, such as ArcFace, cannot be copied: give a
            sequence of losses, one for each of ``dims``, which are taken as they are.
        dims: sizes of the prefixes, each once; mostly the size of the embedding is among them.
        weights: of the losses, one for each of ``dims``; 1 by default.
        normalise: whether each prefix is divided by its L2 norm first.

    After each call, ``last_logs`` has ``loss_<d>`` for each ``d`` of ``dims`` and what that loss logs, with ``_<d>``
    behind the name.

    Raises:
        TypeError: ``dims`` are no sequence of ints.
        ValueError: ``dims`` are none, not above 0 or repeated, numbers of losses or weights differ from theirs,
            or one loss for a fixed size of embeddings is to serve several.

    Example:
        >>> from oml.losses.triplet import TripletLossWithMiner
        >>> criterion = MatryoshkaLoss(TripletLossWithMiner(margin=0.5), dims=[1, 2], weights=[1.0, 10.0])
        >>> x = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 0.3], [0.0, 0.3]])
        >>> criterion(x, torch.tensor([5, 5, 7, 7]))  # 0.5 + 10 * (0.5 - 0.3)
        tensor(2.5000)
    """

    def __init__(
        self,
        criterion: nn.Module | Sequence[nn.Module],
        dims: Sequence[int],
        weights: Sequence[int | float] | None = None,
        normalise: bool = False,
    ) -> None:
        super().__init__()
        dims = whole_numbers("MatryoshkaLoss", "dims", dims)
        if len(set(dims)) < len(dims):
            raise ValueError(f"MatryoshkaLoss needs each of its dims once, got {list(dims)}.")
        if isinstance(criterion, nn.Module) and not isinstance(criterion, nn.ModuleList):
            criterion = _copies(criterion, len(dims))
        weights = [1.0] * len(dims) if weights is None else list(weights)
        if not len(criterion) == len(weights) == len(dims):
            raise ValueError(
                f"MatryoshkaLoss needs a criterion and a weight for each of the dims {list(dims)}, "
                f"got {len(criterion)} criteria and {len(weights)} weights."
            )
        self.criteria = nn.ModuleList(criterion)
        self.dims = list(dims)
        self.weights = weights
        self.normalise = normalise
        names = dict.fromkeys(getattr(inner, "criterion_name", "") for inner in criterion)
        self.criterion_name = "_".join(["matryoshka", *filter(None, names)])
        self.last_logs: dict[str, Tensor] = {}

    @in_full_precision
    def forward(self, features: Float[Tensor, "batch dim"], labels: TLabels) -> Float[Tensor, "..."]:
        """The weighted sum of the losses; ``labels`` are as the criterion needs them.

        Raises:
            ValueError: embeddings are smaller than one of ``dims``.
        """
        if features.shape[1] < max(self.dims):
            raise ValueError(
                f"MatryoshkaLoss was built for prefixes of {max(self.dims)} numbers, got embeddings of "
                f"{features.shape[1]}: change dims, or the extractor."
            )
        losses, self.last_logs = [], {}
        for dim, weight, criterion in zip(self.dims, self.weights, self.criteria, strict=True):
            prefix = features[:, :dim]
            loss = criterion(normalise(prefix) if self.normalise else prefix, labels)
            losses.append(weight * loss)
            logs = {**getattr(criterion, "last_logs", {}), "loss": loss.detach().mean()}
            self.last_logs |= {f"{name}_{dim}": log for name, log in logs.items()}
        return sum(losses[1:], start=losses[0])


def _copies(criterion: nn.Module, n: int) -> list[nn.Module]:
    for part in criterion.modules() if n > 1 else ():  # a wrapper hides what it wraps
        # a subclass may hand its parent's arguments on without naming them
        arguments = {name for parent in type(part).__mro__ for name in signature(parent.__init__).parameters}
        if sizes := arguments & {"in_features", "embedding_size"}:
            raise ValueError(
                f"MatryoshkaLoss cannot copy {type(criterion).__name__}, as {type(part).__name__} is built for one "
                f"size of embeddings: give a sequence of losses, one for each of the dims, with {min(sizes)} of that "
                "size."
            )
    return [deepcopy(criterion) for _ in range(n)]
