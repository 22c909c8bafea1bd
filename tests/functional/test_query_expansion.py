import inspect
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from oml.functional import query_expansion
from oml.functional.query_expansion import expanded


def literal(vector: list[float], neighbours: list[list[float]], alpha: float) -> list[float]:
    """The formula of the papers, number by number."""
    if not neighbours:
        return vector
    length = math.hypot(*vector)
    total = list(vector)
    for neighbour in neighbours:
        lengths = length * math.hypot(*neighbour)
        cosine = sum(a * b for a, b in zip(vector, neighbour, strict=True)) / lengths if lengths else 0.0
        weight = max(0.0, cosine) ** alpha
        total = [a + weight * b for a, b in zip(total, neighbour, strict=True)]
    norm = math.hypot(*total)
    return [a / norm * length if norm else 0.0 for a in total]


@settings(deadline=None)
@given(
    n=st.integers(1, 6),
    n_galleries=st.integers(1, 5),
    n_ranks=st.integers(0, 4),
    alpha=st.sampled_from([0, 0.5, 1, 3.0, 10]),
    block=st.integers(1, 7),
    seed=st.integers(0, 9999),
)
def test_expanded_follows_the_definition(
    n: int, n_galleries: int, n_ranks: int, alpha: float, block: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    vectors, galleries = (torch.randint(-2, 3, (size, 3), generator=generator).double() for size in (n, n_galleries))
    ids = torch.randint(-1, n_galleries, (n, n_ranks), generator=generator)
    expected = [
        literal(vector, [galleries[i].tolist() for i in row if i >= 0], alpha)
        for vector, row in zip(vectors.tolist(), ids.tolist(), strict=True)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(query_expansion, "BLOCK", block)
        torch.testing.assert_close(expanded(vectors, galleries, ids, alpha), torch.tensor(expected).double())


@settings(deadline=None)
@given(alpha=st.sampled_from([0, 1, 3.0]), row=st.integers(0, 29), seed=st.integers(0, 999))
def test_no_bit_depends_on_other_vectors(alpha: float, row: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    vectors, galleries = torch.randn(30, 17, generator=generator), torch.randn(20, 17, generator=generator)
    ids = torch.randint(-1, 20, (30, 4), generator=generator)
    alone = expanded(vectors[row : row + 1], galleries, ids[row : row + 1], alpha)
    assert torch.equal(expanded(vectors, galleries, ids, alpha)[row : row + 1], alone)


@given(seed=st.integers(0, 999), alpha=st.integers(0, 4))
def test_vectors_of_length_1_stay_so_and_come_nearer_to_their_neighbour(seed: int, alpha: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, g = torch.nn.functional.normalize(torch.randn(2, 1, 5, generator=generator, dtype=torch.float64), dim=2)
    assume(0.1 < float((x * g).sum()) < 0.999)  # so that its weight of 1e-4 or more tells
    new = expanded(x, g, torch.tensor([[0]]), alpha)
    torch.testing.assert_close(new.norm(dim=1), torch.ones(1, dtype=torch.float64))
    assert float((new * g).sum()) > float((x * g).sum())


def test_vectors_without_neighbours_stay_bit_for_bit() -> None:
    vectors = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    none = torch.full((50, 2), -1)
    assert torch.equal(expanded(vectors, vectors, none, 1), vectors)


def test_half_precision_comes_back_as_float32_and_inputs_stay() -> None:
    x, galleries = torch.tensor([[1.0, 0.0]]).half(), torch.tensor([[0.0, 1.0]]).half()
    new = expanded(x, galleries, torch.tensor([[0]]), 0)
    torch.testing.assert_close(new, torch.tensor([[0.5**0.5, 0.5**0.5]]))
    assert x.tolist() == [[1, 0]]
    assert galleries.tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": -1}, "alpha of 0 or more, got -1"),
        ({"alpha": math.nan}, "alpha of 0 or more, got nan"),
        ({"alpha": math.inf}, "alpha of 0 or more, got inf"),
        ({"galleries": torch.ones(2, 4)}, r"got \(3, 2\), \(2, 4\) and \(3, 1\)"),
        ({"neighbour_ids": torch.zeros(2, 1).long()}, r"got \(3, 2\), \(2, 2\) and \(2, 1\)"),
        ({"neighbour_ids": torch.tensor([[0], [2], [1]])}, "from -1 to 1, the last of the galleries, got 0 to 2"),
        ({"neighbour_ids": torch.tensor([[0], [-2], [1]])}, "from -1 to 1, the last of the galleries, got -2 to 1"),
    ],
)
def test_bad_arguments_are_refused(change: dict[str, object], message: str) -> None:
    good = {
        "vectors": torch.ones(3, 2),
        "galleries": torch.ones(2, 2),
        "neighbour_ids": torch.zeros(3, 1).long(),
        "alpha": 1,
    }
    expanded(**good)
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(expanded)(**{**good, **change})
