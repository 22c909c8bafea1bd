import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oml.functional.topology import pcf


def literal(embeddings: torch.Tensor, variance: float) -> float:
    """The components are counted one by one; their variances are the eigenvalues of the covariance matrix."""
    n, dim = embeddings.shape
    covariance = np.cov(embeddings.double().numpy(), rowvar=False).reshape(dim, dim)
    variances = sorted(np.linalg.eigvalsh(covariance), reverse=True)[: min(n, dim)]
    n_components = 1
    for i in range(len(variances)):
        n_components += bool(sum(variances[: i + 1]) / sum(variances) <= variance + 1e-6)
    return n_components / dim


def test_examples_of_the_specification() -> None:
    torch.testing.assert_close(pcf(torch.eye(4, 10), (0.5, 1)), torch.tensor([0.2, 0.5]))
    twice = torch.eye(300, 10).repeat(1, 2)
    torch.testing.assert_close(pcf(twice, (0.5, 0.9)), torch.tensor([0.25, 0.45]))


@settings(deadline=None, max_examples=60)
@given(n=st.integers(3, 30), dim=st.integers(1, 8), seed=st.integers(0, 999), variance=st.floats(0, 0.999))
def test_pcf_follows_the_definition(n: int, dim: int, seed: int, variance: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, dim, generator=generator) * torch.arange(1, dim + 1)
    assert pcf(x, [variance]).item() == pytest.approx(literal(x, variance))


def test_sums_that_equal_the_share_up_to_rounding_count_as_equal() -> None:
    # four equal variances: two components explain exactly one half, so it takes three to explain more
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        rotation, _ = torch.linalg.qr(torch.randn(4, 4, generator=generator).double())
        x = torch.cat([rotation, -rotation]).float()
        assert pcf(x, (0.25, 0.5, 0.75)).tolist() == [2 / 4, 3 / 4, 4 / 4]


def test_all_of_the_variance_takes_one_more_than_all_components() -> None:
    generator = torch.Generator().manual_seed(0)
    assert pcf(torch.randn(50, 4, generator=generator), [1.0]).tolist() == [5 / 4]
    assert pcf(torch.randn(3, 8, generator=generator), [1.0]).tolist() == [4 / 8]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_embeddings_that_are_all_the_same_have_collapsed(dtype: torch.dtype) -> None:
    x = torch.rand(1, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    for n in (1, 3, 100):
        assert pcf(x.expand(n, -1), (0, 0.5, 0.99)).tolist() == [1 / 8] * 3


def test_large_norms_and_small_spreads_keep_their_digits() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, generator=generator).double()
    expected = pcf(x, np.linspace(0, 0.99, 30).tolist())
    assert len(expected.unique()) > 4
    torch.testing.assert_close(pcf(1e6 + 1e-3 * x, np.linspace(0, 0.99, 30).tolist()), expected)


def test_bad_arguments() -> None:
    x = torch.rand(3, 2)
    for variances in ([], [1.1], [0.5, -0.1], [math.nan]):
        with pytest.raises(ValueError, match=r"variances in \[0, 1\], got \["):
            pcf(x, variances)
    with pytest.raises(ValueError, match="at least one item"):
        pcf(torch.empty(0, 4), [0.5])
    x[1, 0] = math.nan
    with pytest.raises(ValueError, match=r"NaN or inf in 1 rows, such as \[1\]"):
        pcf(x, [0.5])
