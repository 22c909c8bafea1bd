from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from oml.metrics.triplets import AccuracyOnTriplets

RIGHT, TIE, WRONG = [[0.0], [1.0], [2.0]], [[0.0], [1.0], [-1.0]], [[0.0], [2.0], [1.0]]
EMBEDDINGS = torch.tensor([*RIGHT, *RIGHT, *TIE, *RIGHT, *WRONG])
CATEGORIES = ["cat", "dog", "cat", "dog", "cat"]
EXPECTED = {"OVERALL": 3 / 5, "cat": 1 / 3, "dog": 1.0}


def values(metric: AccuracyOnTriplets) -> dict[Any, float]:
    return {category: named["accuracy_on_triplets"] for category, named in metric.compute_metrics().items()}


def batches(sizes: list[int]) -> list[dict[str, Any]]:
    return [
        {"embeddings": embeddings.reshape(-1, 1), "categories": [CATEGORIES[i] for i in ids]}
        for embeddings, ids in zip(EMBEDDINGS.reshape(5, 3, 1).split(sizes), torch.arange(5).split(sizes), strict=True)
    ]


@given(first=st.integers(1, 4))
def test_batches_epochs_and_parts_do_not_matter(first: int) -> None:
    metric, parts = AccuracyOnTriplets(categories_key="categories"), []
    for _ in range(2):
        metric.setup(num_samples=15)
        for batch in batches([first, 5 - first]):
            metric.update_data(batch)
            parts.append(AccuracyOnTriplets(categories_key="categories"))
            parts[-1].setup()
            parts[-1].update_data(batch)
        assert values(metric) == pytest.approx(EXPECTED)
    assert values(parts[0].merge(parts[1])) == pytest.approx(EXPECTED)


@pytest.mark.parametrize("of", [torch.tensor, np.array, tuple])
def test_categories_may_be_numbers(of: Any) -> None:
    metric = AccuracyOnTriplets("x", "kinds")
    metric.update_data({"x": EMBEDDINGS, "kinds": of([7, 3, 7, 3, 7])})
    assert values(metric) == pytest.approx({"OVERALL": 3 / 5, 3: 1, 7: 1 / 3})
    assert all(type(value) is float for value in values(metric).values())
    metric.setup()
    metric.update_data({"x": EMBEDDINGS.numpy(), "kinds": of([7, 3, 7, 3, 7])})
    assert values(metric) == pytest.approx({"OVERALL": 3 / 5, 3: 1, 7: 1 / 3})


@pytest.mark.parametrize(
    ("batch", "text"),
    [
        ({"embeddings": EMBEDDINGS}, r"needs the entries \['categories'\]; the batch has \['embeddings'\]"),
        ({"embeddings": EMBEDDINGS, "categories": CATEGORIES * 3}, "a category per triplet, got 15 for 5"),
        ({"embeddings": EMBEDDINGS[:4], "categories": ["a"]}, r"positive, negative and so on, got shape \(4, 1\)"),
        (
            {"embeddings": EMBEDDINGS.sqrt(), "categories": CATEGORIES},
            r"finite embeddings, .* in 1 rows, such as \[8\]",
        ),
    ],
)
def test_what_does_not_fit(batch: dict[str, Tensor], text: str) -> None:
    metric = AccuracyOnTriplets(categories_key="categories")
    with pytest.raises(ValueError, match=text):
        metric.update_data(batch)
    with pytest.raises(ValueError, match="at least one triplet, none came"):
        metric.compute_metrics()


def test_no_category_takes_the_name_of_all() -> None:
    metric = AccuracyOnTriplets(categories_key="categories")
    metric.update_data({"embeddings": EMBEDDINGS[:3], "categories": ["OVERALL"]})
    with pytest.raises(ValueError, match="keeps the name 'OVERALL'"):
        metric.compute_metrics()
