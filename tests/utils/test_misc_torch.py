from collections.abc import Mapping
from inspect import unwrap

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA as ReferencePCA
from torch import Tensor, nn

from oml.functional.topology import pcf
from oml.utils.misc_torch import (
    PCA,
    AvgOnline,
    OnlineAvgDict,
    OnlineDict,
    OnlineSumDict,
    SumOnline,
    assign_2d,
    drop_duplicates_by_ids,
    get_device,
    take_2d,
    temporary_setting_model_mode,
)


def embeddings(n: int, dim: int, **kwargs: object) -> Tensor:
    scales = torch.arange(1, dim + 1)  # so that axes differ in what they explain
    return (torch.randn(n, dim, generator=torch.Generator().manual_seed(0)) * scales + 3).to(**kwargs)


# take_2d, assign_2d


@settings(deadline=None)
@given(rows=st.integers(0, 3), columns=st.integers(1, 3), taken=st.integers(0, 4), seed=st.integers(0, 99))
def test_take_and_assign_follow_the_definition(rows: int, columns: int, taken: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator)
    indices = torch.randint(columns, (rows, taken), generator=generator)
    for dtype in (torch.int64, torch.int32):
        out = take_2d(x, indices.to(dtype))
        assert out.shape == indices.shape
        assert all(out[i, j] == x[i, indices[i, j]] for i in range(rows) for j in range(taken))

    values = x[:, :1].expand(rows, taken) + 10  # the same in a row, so that repeated positions do not matter
    expected = x.clone()
    for i in range(rows):
        for j in range(taken):
            expected[i, indices[i, j]] = values[i, j]
    assert assign_2d(x, indices, values) is x
    assert torch.equal(x, expected)


def test_assigned_values_take_the_type() -> None:
    assert assign_2d(torch.zeros(1, 2), torch.tensor([[1]]), torch.tensor([[3]])).tolist() == [[0, 3]]
    with pytest.raises(ValueError, match="cannot put values of type torch.float32 in a tensor of type torch.int64"):
        assign_2d(torch.zeros(1, 2).long(), torch.tensor([[1]]), torch.tensor([[0.5]]))


def test_shapes_that_do_not_fit() -> None:
    x, indices = torch.zeros(2, 3), torch.zeros(2, 1).long()
    with pytest.raises(ValueError, match=r"take_2d needs .* as many rows, got x of shape \(2, 3\).*\(1, 1\)"):
        unwrap(take_2d)(x, indices[:1])  # gather alone would take it
    with pytest.raises(ValueError, match="assign_2d needs tensors of two dimensions"):
        unwrap(assign_2d)(x, indices, torch.zeros(2))
    with pytest.raises(ValueError, match="a new value per index"):
        unwrap(assign_2d)(x, indices, torch.zeros(2, 2))


# get_device, temporary_setting_model_mode


def test_device_is_that_of_a_parameter_or_buffer() -> None:
    assert get_device(nn.Linear(1, 1)) == "cpu"
    assert get_device(nn.Linear(1, 1, device="meta")) == "meta"
    assert get_device(nn.BatchNorm1d(1, affine=False, device="meta")) == "meta"
    with pytest.raises(ValueError, match="Identity has none"):
        get_device(nn.Identity())


@pytest.mark.parametrize("set_train", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_every_module_gets_its_mode_back(set_train: bool, fails: bool) -> None:
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(1), nn.Dropout()))
    model[1].eval()
    model[1][1].train()  # train, train, eval, eval, train
    before = [module.training for module in model.modules()]
    assert len(set(before)) == 2
    try:
        with temporary_setting_model_mode(model, set_train):
            assert all(module.training == set_train for module in model.modules())
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert [module.training for module in model.modules()] == before


# drop_duplicates_by_ids


def test_first_of_each_id_stays() -> None:
    ids = [5, 3, 5, 1, 3]
    data = torch.tensor([[0], [1], [2], [3], [4]])
    for given_ids in (ids, tuple(ids), np.array(ids), torch.tensor(ids)):
        kept, rows = drop_duplicates_by_ids(given_ids, data)
        assert kept == [1, 3, 5]
        assert rows.tolist() == [[3], [1], [0]]
        kept, rows = drop_duplicates_by_ids(given_ids, data, sort=False)
        assert kept == [5, 3, 1]
        assert rows.tolist() == [[0], [1], [3]]
    assert drop_duplicates_by_ids(["b", "a", "b"], [1, 2, 3]) == (["a", "b"], [2, 1])
    assert drop_duplicates_by_ids([1, 1], np.array([0.5, 1]))[1].tolist() == [0.5]
    assert drop_duplicates_by_ids([], torch.zeros(0, 3))[1].shape == (0, 3)
    with pytest.raises(ValueError, match="got 2 ids and 5 rows"):
        drop_duplicates_by_ids([1, 2], data)


# online


def test_running_means_and_sums() -> None:
    values = [3, 0.5, [1, 2], (4,), np.array([[1.5, 2], [3, 4]]), torch.tensor([7, 8]), torch.tensor(0.25), []]
    flat = np.concatenate([np.asarray(value).ravel() for value in values])
    mean, total = AvgOnline(), SumOnline()
    assert np.isnan(mean.result)
    assert total.result == 0
    for value in values:
        mean.update(value)
        total.update(value)
    assert mean.result == pytest.approx(flat.mean())
    assert total.result == pytest.approx(flat.sum())


def test_sums_of_half_precision_do_not_stall() -> None:
    mean = AvgOnline()
    for _ in range(3):
        mean.update(torch.full((5000,), 1.5, dtype=torch.float16, requires_grad=True))  # the sum exceeds float16
    assert mean.result == 1.5


@pytest.mark.parametrize(("kind", "loss", "after"), [(OnlineAvgDict, 2.0, 9.5), (OnlineSumDict, 6.0, 19.0)])
def test_dictionaries_that_calculate(kind: type[OnlineDict], loss: float, after: float) -> None:
    logs = kind()
    logs.update({"loss": 1.0, 5: torch.tensor(7.0)})
    logs.update({"loss": [2, 3.0]})
    logs.update(accuracy=0.5)
    assert logs.get_dict_with_results() == dict(logs) == {"loss": loss, 5: 7, "accuracy": 0.5}
    assert isinstance(logs, Mapping)
    assert len(logs) == 3
    logs["loss"] = 10  # begins anew
    logs.update({"loss": 9})
    assert logs["loss"] == after
    del logs["loss"]
    assert "loss" not in logs
    with pytest.raises(KeyError):
        logs["loss"]
    assert repr(logs) == f"{kind.__name__}({{5: 7.0, 'accuracy': 0.5}})"


# PCA


@pytest.mark.parametrize(("n", "dim"), [(10, 6), (6, 6), (6, 10), (2, 3), (400, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pca_agrees_with_scikit_learn(n: int, dim: int, dtype: torch.dtype) -> None:
    x = embeddings(n, dim, dtype=dtype)
    ours, theirs = PCA(x), ReferencePCA(svd_solver="full").fit(x.numpy())
    rank = min(n - 1, dim)
    signs = torch.tensor([axis[np.abs(axis).argmax()] for axis in theirs.components_[:rank]]).sign()[:, None]
    expected = signs * torch.from_numpy(theirs.components_[:rank])
    torch.testing.assert_close(ours.components[:rank], expected.to(dtype), rtol=1e-4, atol=1e-5)
    for name in ("singular_values", "explained_variance", "explained_variance_ratio"):
        reference = torch.from_numpy(getattr(theirs, f"{name}_")).to(dtype)
        torch.testing.assert_close(getattr(ours, name), reference, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.mean, x.mean(dim=0, keepdim=True))
    transformed = torch.from_numpy(theirs.transform(x.numpy())[:, :rank]) * signs.T
    torch.testing.assert_close(ours.transform(x, rank), transformed.to(dtype), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("n", "dim"), [(10, 6), (6, 10)])
def test_all_axes_are_a_basis(n: int, dim: int) -> None:
    x = embeddings(n, dim)
    pca = PCA(x)
    assert pca.components.shape == (dim, dim)
    assert len(pca.singular_values) == min(n, dim)
    torch.testing.assert_close(pca.components @ pca.components.T, torch.eye(dim), rtol=0, atol=1e-6)
    largest = pca.components.gather(1, pca.components.abs().argmax(dim=1, keepdim=True))
    assert (largest > 0).all()
    torch.testing.assert_close(pca.inverse_transform(pca.transform(x)), x, rtol=1e-5, atol=1e-5)
    # the first axes keep most of what there is, so that dropping some loses something but not much
    lost = (pca.inverse_transform(pca.transform(x, 3)) - x).square().sum()
    expected = pca.explained_variance[3:].sum() * (n - 1)
    assert lost > 1
    torch.testing.assert_close(lost, expected)


def test_pca_gives_back_the_type_of_what_it_gets() -> None:
    pca = PCA(embeddings(10, 4, dtype=torch.bfloat16))
    assert pca.components.dtype == torch.float32
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        out = pca.transform(embeddings(3, 4, dtype=dtype), 2)
        assert (out.dtype, out.shape) == (dtype, (3, 2))
        assert pca.inverse_transform(out).dtype == dtype


def test_axes_that_there_are_not() -> None:
    pca = PCA(embeddings(10, 4))
    for n in (0, 5):
        with pytest.raises(ValueError, match=f"works with 1 to 4 axes, got {n}"):
            pca.transform(embeddings(3, 4), n)
    with pytest.raises(ValueError, match="works with 1 to 4 axes, got 5"):
        pca.inverse_transform(torch.zeros(3, 5))


@settings(deadline=None)
@given(n=st.integers(2, 6), dim=st.integers(1, 4), seed=st.integers(0, 99))
def test_number_of_axes_agrees_with_pcf(n: int, dim: int, seed: int) -> None:
    x = torch.randint(3, (n, dim), generator=torch.Generator().manual_seed(seed)).float()
    shares = [0, 0.5, 0.9, 1]
    counts = PCA(x).calc_principal_axes_number(shares)
    assert not counts.is_floating_point()
    assert torch.equal(counts, (pcf(x, shares) * dim).round().long())


def test_embeddings_all_the_same() -> None:
    pca = PCA(torch.full((7, 3), 0.1))
    assert pca.explained_variance_ratio.tolist() == [1, 0, 0]
    assert pca.explained_variance.tolist() == [0, 0, 0]
    assert pca.calc_principal_axes_number([0.99]).tolist() == [1]


@pytest.mark.parametrize("shares", [[], [1.5], [-0.1, 0.5]])
def test_shares_that_are_none(shares: list[float]) -> None:
    with pytest.raises(ValueError, match=r"needs one or more shares in \[0, 1\]"):
        PCA(embeddings(4, 2)).calc_principal_axes_number(shares)


def test_embeddings_without_axes() -> None:
    with pytest.raises(ValueError, match=r"two items at least, got \(1, 4\)"):
        PCA(torch.zeros(1, 4))
    with pytest.raises(ValueError, match=r"NaN or inf in 1 rows, \[1\]"):
        PCA(torch.tensor([[0.0], [torch.nan]]))
