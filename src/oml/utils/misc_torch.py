"""Helpers for tensors and models, under the import path that callers know."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from oml.functional.distances import elementwise_dist, normalise, pairwise_dist
from oml.utils.misc import find_first_occurrences

__all__ = [
    "PCA",
    "AvgOnline",
    "OnlineAvgDict",
    "OnlineCalc",
    "OnlineDict",
    "OnlineSumDict",
    "SumOnline",
    "assign_2d",
    "drop_duplicates_by_ids",
    "elementwise_dist",
    "get_device",
    "normalise",
    "pairwise_dist",
    "take_2d",
    "temporary_setting_model_mode",
]

TData = TypeVar("TData", Tensor, np.ndarray, list)
TNumbers = float | int | Sequence[float | int] | np.ndarray | Tensor

_ROUNDING = 1e-6  # of shares of the variance, as in oml.functional.topology


def take_2d(x: Shaped[Tensor, "row column"], indices: Int[Tensor, "row taken"]) -> Shaped[Tensor, "row taken"]:
    """``x[i, indices[i, j]]`` for each row ``i``; a position may be taken several times.

    Raises:
        ValueError: The tensors do not have two dimensions and as many rows.

    Example:
        >>> take_2d(torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([[2, 2], [0, 1]]))
        tensor([[3, 3],
                [4, 5]])
    """
    _check_rows("take_2d", x=x, indices=indices)
    return x.gather(1, indices.long())


def assign_2d(
    x: Shaped[Tensor, "row column"], indices: Int[Tensor, "row taken"], new_values: Shaped[Tensor, "row taken"]
) -> Shaped[Tensor, "row column"]:
    """Set ``x[i, indices[i, j]] = new_values[i, j]`` in place, and return ``x``.

    Which value stays at a position that a row names twice is not specified. Values take the type of ``x``.

    Raises:
        ValueError: The tensors do not have two dimensions and as many rows, ``indices`` and ``new_values`` have
            different shapes, or the values do not fit the type of ``x`` (fractions for integers).

    Example:
        >>> assign_2d(torch.zeros(2, 3), torch.tensor([[2], [0]]), torch.tensor([[7.0], [8.0]]))
        tensor([[0., 0., 7.],
                [8., 0., 0.]])
    """
    _check_rows("assign_2d", x=x, indices=indices, new_values=new_values)
    if indices.shape != new_values.shape:
        raise ValueError(
            "assign_2d needs a new value per index, got indices of shape "
            f"{tuple(indices.shape)} and new_values of shape {tuple(new_values.shape)}."
        )
    if not torch.can_cast(new_values.dtype, x.dtype):
        raise ValueError(f"assign_2d cannot put values of type {new_values.dtype} in a tensor of type {x.dtype}.")
    return x.scatter_(1, indices.long(), new_values.to(x.dtype))


def _check_rows(owner: str, **tensors: Tensor) -> None:
    if any(tensor.ndim != 2 for tensor in tensors.values()) or len({len(tensor) for tensor in tensors.values()}) > 1:
        shapes = ", ".join(f"{name} of shape {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(f"{owner} needs tensors of two dimensions with as many rows, got {shapes}.")


def get_device(model: nn.Module) -> str:
    """The device of the model's first parameter, or first buffer if it has no parameters.

    Raises:
        ValueError: The model has neither, so it is on no device.

    Example:
        >>> get_device(torch.nn.Linear(1, 1))
        'cpu'
    """
    tensor = next(chain(model.parameters(), model.buffers()), None)
    if tensor is None:
        raise ValueError(f"get_device needs a model with parameters or buffers, {type(model).__name__} has none.")
    return str(tensor.device)


def drop_duplicates_by_ids(
    ids: Sequence[Any] | np.ndarray | Tensor, data: TData, sort: bool = True
) -> tuple[list, TData]:
    """The ids without repetitions, and the rows of ``data`` at which each occurs first.

    Args:
        ids: One per row of ``data``.
        data: A tensor, an array or a list.
        sort: By id; otherwise rows keep their order.

    Raises:
        ValueError: The lengths differ.

    Example:
        >>> drop_duplicates_by_ids([7, 3, 7], torch.tensor([10, 20, 30]))
        ([3, 7], tensor([20, 10]))
    """
    ids = ids.tolist() if isinstance(ids, np.ndarray | Tensor) else list(ids)
    if len(ids) != len(data):
        raise ValueError(f"drop_duplicates_by_ids needs one id per row, got {len(ids)} ids and {len(data)} rows.")
    first = find_first_occurrences(ids)
    if sort:
        first.sort(key=lambda i: ids[i])
    kept: Any = [data[i] for i in first] if isinstance(data, list) else data[np.array(first, dtype=np.int64)]
    return [ids[i] for i in first], kept


@contextmanager
def temporary_setting_model_mode(model: nn.Module, set_train: bool) -> Iterator[None]:
    """Within, the model is in training mode or, if ``set_train`` is false, in evaluation mode.

    Afterwards, also after an error, each of its modules is in the mode in which it was: a frozen batch normalisation
    stays in evaluation mode inside a model in training mode.

    Example:
        >>> model = torch.nn.Dropout()
        >>> with temporary_setting_model_mode(model, set_train=False):
        ...     model(torch.ones(3))
        tensor([1., 1., 1.])
        >>> model.training
        True
    """
    modes = [(module, module.training) for module in model.modules()]
    model.train(set_train)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


class OnlineCalc(ABC):
    """A number that is known at any time while others arrive: alone, or many in a sequence, an array or a tensor.

    Sums are made in float64.
    """

    def __init__(self) -> None:
        self._sum = 0.0
        self._n = 0

    def update(self, value: TNumbers) -> None:
        """Take in one number or all numbers of a sequence, an array or a tensor."""
        numbers = value.detach().cpu() if isinstance(value, Tensor) else torch.as_tensor(value, dtype=torch.float64)
        self._sum += numbers.double().sum().item()
        self._n += numbers.numel()

    @property
    @abstractmethod
    def result(self) -> float:
        """The number, for what has arrived."""


class AvgOnline(OnlineCalc):
    """The mean of all numbers so far; NaN before the first.

    Example:
        >>> mean = AvgOnline()
        >>> mean.update(4)
        >>> mean.update([1.0, 1.0])
        >>> mean.result
        2.0
    """

    @property
    def result(self) -> float:
        """The mean."""
        return self._sum / self._n if self._n else float("nan")


class SumOnline(OnlineCalc):
    """The sum of all numbers so far.

    Example:
        >>> total = SumOnline()
        >>> total.update(torch.ones(2, 2))
        >>> total.result
        4.0
    """

    @property
    def result(self) -> float:
        """The sum."""
        return self._sum


class OnlineDict(MutableMapping[Hashable, float]):
    """A dictionary that calculates: :meth:`update` adds numbers to those of its keys, reading gives the result so far.

    Assignment to a key forgets what the key had.
    """

    #: what is calculated for each key
    calculator: ClassVar[type[OnlineCalc]]

    def __init__(self) -> None:
        self._calculators: dict[Hashable, OnlineCalc] = {}

    def __getitem__(self, key: Hashable) -> float:
        return self._calculators[key].result

    def __setitem__(self, key: Hashable, value: TNumbers) -> None:
        self._calculators[key] = self.calculator()
        self._calculators[key].update(value)

    def __delitem__(self, key: Hashable) -> None:
        del self._calculators[key]

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self._calculators)

    def __len__(self) -> int:
        return len(self._calculators)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.get_dict_with_results()})"

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Take in what a dictionary (or what else makes one) has for each key; new keys are added."""
        for key, value in dict(*args, **kwargs).items():
            if key in self._calculators:
                self._calculators[key].update(value)
            else:
                self[key] = value

    def get_dict_with_results(self) -> dict[Hashable, float]:
        """The results so far as a plain dictionary."""
        return dict(self)


class OnlineAvgDict(OnlineDict):
    """The mean for each key.

    Example:
        >>> logs = OnlineAvgDict()
        >>> logs.update({"loss": 1.0, "accuracy": [0.0, 1.0]})
        >>> logs.update({"loss": 2.0})
        >>> logs.get_dict_with_results()
        {'loss': 1.5, 'accuracy': 0.5}
    """

    calculator = AvgOnline


class OnlineSumDict(OnlineDict):
    """The sum for each key.

    Example:
        >>> logs = OnlineSumDict()
        >>> logs.update({"items": 3})
        >>> logs.update({"items": [1, 1]})
        >>> logs["items"]
        5.0
    """

    calculator = SumOnline


class PCA:
    """Principal axes of a set of embeddings, by a singular value decomposition of the centred embeddings in float64.

    Of each axis the entry with the largest absolute value is positive; scikit-learn's signs may differ. Embeddings
    that are all the same have no direction: the first axis counts as explaining everything then.

    Args:
        embeddings: At least two rows.

    Attributes:
        mean: Of the embeddings, ``(1, dim)``.
        components: The axes, one a row, that which explains most first: always ``dim`` of them. Those beyond
            ``min(item, dim)`` explain nothing and complete the basis.
        singular_values: Of the centred embeddings, ``min(item, dim)`` of them, the largest first.
        explained_variance: ``singular_values ** 2 / (item - 1)``, the variances along the axes.
        explained_variance_ratio: The same as shares of their sum.

    Raises:
        ValueError: Fewer than two items, embeddings that are not finite.

    Example:
        >>> pca = PCA(torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]]))
        >>> pca.components[0]
        tensor([0.6000, 0.8000])
        >>> pca.transform(torch.tensor([[6.0, 8.0]]), n_components=1)
        tensor([[5.]])
    """

    def __init__(self, embeddings: Float[Tensor, "item dim"]) -> None:
        if embeddings.ndim != 2 or len(embeddings) < 2 or embeddings.shape[1] == 0:
            raise ValueError(f"PCA needs embeddings (item, dim) of two items at least, got {tuple(embeddings.shape)}.")
        x = embeddings.detach().double()
        if not (finite := x.isfinite().all(dim=1)).all():
            bad = (~finite).nonzero().squeeze(1)
            raise ValueError(f"PCA needs finite embeddings, got NaN or inf in {len(bad)} rows, {bad[:5].tolist()}.")
        n_items, dim = x.shape
        rounding = x.abs().amax() * 4 * torch.finfo(x.dtype).eps
        mean = x.mean(dim=0, keepdim=True)
        x = x - mean
        if n_items > dim:
            x = torch.linalg.qr(x, mode="r").R  # has the axes and singular values of x, in dim rows
        _, singular_values, components = torch.linalg.svd(x, full_matrices=True)
        largest = components.gather(1, components.abs().argmax(dim=1, keepdim=True))
        if singular_values.square().sum() <= n_items * dim * rounding.square():
            singular_values = torch.zeros_like(singular_values)
        variance = singular_values.square()
        ratio = variance / variance.sum() if variance.any() else torch.eye(1, len(variance))[0].to(variance)

        dtype = torch.promote_types(embeddings.dtype, torch.float32)
        self.mean = mean.to(dtype)
        self.components = (components * largest.sign()).to(dtype)
        self.singular_values = singular_values.to(dtype)
        self.explained_variance = (variance / (n_items - 1)).to(dtype)
        self.explained_variance_ratio = ratio.to(dtype)

    def transform(
        self, embeddings: Float[Tensor, "item dim"], n_components: int | None = None
    ) -> Float[Tensor, "item axis"]:
        """Coordinates of embeddings along the first ``n_components`` axes, by default along all.

        Raises:
            ValueError: There are not so many axes.
        """
        n_components = len(self.components) if n_components is None else n_components
        axes = self._axes("transform", n_components)
        return ((embeddings.to(self.mean) - self.mean) @ axes.T).to(embeddings)

    def inverse_transform(self, embeddings: Float[Tensor, "item axis"]) -> Float[Tensor, "item dim"]:
        """The embeddings that have these coordinates along the first axes, one per column, and the mean's along others.

        Raises:
            ValueError: There are more columns than axes.
        """
        axes = self._axes("inverse_transform", embeddings.shape[1])
        return (embeddings.to(self.mean) @ axes + self.mean).to(embeddings)

    def calc_principal_axes_number(self, pfc_variance: Sequence[float | int]) -> Int[Tensor, " variance"]:
        """How many axes it takes to explain more than each of these shares of the variance.

        With ``c_i`` the share that the first ``i`` of ``min(item, dim)`` axes explain, ``1 + #{i: c_i <= share}``;
        so for a share of 1, which nothing exceeds, one more than there are. Equal means up to rounding.

        Raises:
            ValueError: No shares, or shares outside [0, 1].

        Example:
            >>> PCA(torch.eye(4, 10)).calc_principal_axes_number([0.5, 1])
            tensor([2, 5])
        """
        if len(pfc_variance) == 0 or not all(0 <= share <= 1 for share in pfc_variance):
            raise ValueError(
                f"calc_principal_axes_number needs one or more shares in [0, 1], got {list(pfc_variance)}."
            )
        explained = self.explained_variance_ratio.double().cumsum(dim=0)
        shares = torch.tensor(list(pfc_variance), dtype=explained.dtype, device=explained.device)
        return torch.searchsorted(explained, shares + _ROUNDING, right=True) + 1

    def _axes(self, owner: str, n: int) -> Tensor:
        if not 0 < n <= len(self.components):
            raise ValueError(f"PCA.{owner} works with 1 to {len(self.components)} axes, got {n}.")
        return self.components[:n]
