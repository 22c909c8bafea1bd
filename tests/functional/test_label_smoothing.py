import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from oml.functional.label_smoothing import label_smoothing


def literal(y: list[int], num_classes: int, epsilon: float, categories: list[int] | None) -> torch.Tensor:
    targets = torch.zeros(len(y), num_classes)
    for i, own in enumerate(y):
        related = [c for c in range(num_classes) if categories is None or categories[c] == categories[own]]
        for c in related:
            targets[i, c] = epsilon / len(related)
        targets[i, own] += 1 - epsilon
    return targets


def test_by_hand() -> None:
    y = torch.tensor([0, 1])
    torch.testing.assert_close(label_smoothing(y, 2, epsilon=0.5), torch.tensor([[0.75, 0.25], [0.25, 0.75]]))
    thirds = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]])
    torch.testing.assert_close(label_smoothing(y, 3, epsilon=0.3), thirds)


def test_by_hand_in_categories() -> None:
    two = label_smoothing(torch.tensor([0, 1]), 2, epsilon=0.5, categories=torch.tensor([0, 1]))
    torch.testing.assert_close(two, torch.eye(2))  # alone in its category, a label keeps it all
    three = label_smoothing(torch.tensor([0, 1, 2]), 3, epsilon=0.4, categories=torch.tensor([7, 2, 7]))
    torch.testing.assert_close(three, torch.tensor([[0.8, 0.0, 0.2], [0.0, 1.0, 0.0], [0.2, 0.0, 0.8]]))


@given(data=st.data(), num_classes=st.integers(1, 5), epsilon=st.sampled_from([0, 0.1, 0.5, 0.99]))
@settings(deadline=None)
def test_follows_the_definition(data: st.DataObject, num_classes: int, epsilon: float) -> None:
    y = data.draw(st.lists(st.integers(0, num_classes - 1), max_size=6))
    one_each = st.lists(st.integers(-1, 2), min_size=num_classes, max_size=num_classes)
    categories = data.draw(st.none() | one_each)
    given_categories = None if categories is None else torch.tensor(categories)
    smoothed = label_smoothing(torch.tensor(y, dtype=torch.int64), num_classes, epsilon, given_categories)
    torch.testing.assert_close(smoothed, literal(y, num_classes, epsilon, categories))
    torch.testing.assert_close(smoothed.sum(dim=1), torch.ones(len(y)))


def test_without_categories_it_is_that_of_torch(rng: torch.Generator) -> None:
    logits, y = torch.randn(16, 5, generator=rng), torch.randint(5, (16,), generator=rng)
    ours = F.cross_entropy(logits, label_smoothing(y, 5, epsilon=0.3))
    torch.testing.assert_close(ours, F.cross_entropy(logits, y, label_smoothing=0.3))
    assert (ours - F.cross_entropy(logits, y)).abs() > 0.01


@pytest.mark.parametrize("epsilon", [-1.0, -0.1, 1.0, 1.5, float("nan")])
def test_epsilon_out_of_range(epsilon: float) -> None:
    with pytest.raises(ValueError, match="label_smoothing needs a smoothing epsilon of at least 0 and below 1, got"):
        label_smoothing(torch.tensor([0]), 2, epsilon)


def test_one_category_per_label() -> None:
    with pytest.raises(ValueError, match="one category per label, got 2 categories and 3 labels"):
        label_smoothing(torch.tensor([0]), 3, categories=torch.tensor([0, 1]))


def test_categories_may_be_an_array_or_a_list() -> None:
    y, categories = torch.tensor([0, 1, 2]), [7, 2, 7]
    expected = label_smoothing(y, 3, epsilon=0.4, categories=torch.tensor(categories))
    assert torch.equal(label_smoothing(y, 3, epsilon=0.4, categories=np.array(categories)), expected)
    assert torch.equal(label_smoothing(y, 3, epsilon=0.4, categories=categories), expected)


def test_on_the_device_of_the_labels() -> None:
    y, categories = torch.zeros(4, dtype=torch.int32), torch.zeros(3, dtype=torch.int64)
    assert label_smoothing(y.to("meta"), 3).is_meta
    assert label_smoothing(y.to("meta"), 3, categories=categories.to("meta")).is_meta
