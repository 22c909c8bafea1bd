from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from oml.datasets.base import DatasetQueryGallery
from oml.functional.topology import pcf
from oml.metrics.embeddings import EmbeddingMetrics
from oml.utils.download_mock_dataset import download_mock_dataset


def compute(batches: list[dict], **kwargs: object) -> EmbeddingMetrics:
    metric = EmbeddingMetrics(**{"verbose": False, **kwargs})  # pyright: ignore[reportArgumentType]
    metric.setup(sum(len(batch["labels"]) for batch in batches))
    for batch in batches:
        metric.update_data(batch)
    metric.compute_metrics()
    return metric


def one_vs_rest(embeddings: Tensor, labels: Tensor, **extra: object) -> dict:
    everyone = torch.ones(len(labels), dtype=torch.bool)
    return {"embeddings": embeddings, "labels": labels, "is_query": everyone, "is_gallery": everyone, **extra}


# positions on a line: those at 4 and 3 find a stranger first, all others find their like
LINE = torch.tensor([[0.0], [1.0], [4.0], [3.0], [20.0], [21.0], [7.0]])
LABELS = torch.tensor([0, 0, 1, 0, 2, 2, 1])
CATEGORIES = ["a", "a", "a", "a", "b", "b", "a"]


def literal(embeddings: Tensor, labels: Tensor, is_query: Tensor, is_gallery: Tensor, k: int) -> dict[str, list[float]]:
    """cmc, precision and map by the words of their definitions."""
    values: dict[str, list[float]] = {"cmc": [], "precision": [], "map": []}
    for q in is_query.nonzero().flatten().tolist():
        galleries = [g for g in is_gallery.nonzero().flatten().tolist() if g != q]
        ranked = sorted(galleries, key=lambda g: ((embeddings[q].double() - embeddings[g].double()).norm().item(), g))
        hits = [bool(labels[g] == labels[q]) for g in ranked]
        found = [sum(hits[: i + 1]) / (i + 1) for i in range(min(k, len(hits))) if hits[i]]
        values["cmc"].append(float(any(hits[:k])))
        values["precision"].append(float(sum(hits[:k])) / min(k, sum(hits)))
        values["map"].append(float(sum(found)) / len(found) if found else 0.0)
    return values


@given(data=st.data(), seed=st.integers(0, 999), k=st.integers(1, 9), shared=st.booleans())
def test_metrics_follow_the_definitions(data: st.DataObject, seed: int, k: int, shared: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    n_labels = data.draw(st.integers(1, 3))
    labels = torch.arange(n_labels).repeat_interleave(3)
    n = len(labels)
    embeddings = torch.randint(3, (n, 2), generator=generator).float()
    order = torch.randperm(n, generator=generator)
    is_query = torch.ones(n, dtype=torch.bool) if shared else torch.arange(n) % 3 == 0
    is_gallery = torch.ones(n, dtype=torch.bool) if shared else ~is_query
    batch = {"embeddings": embeddings, "labels": labels, "is_query": is_query, "is_gallery": is_gallery}
    batch = {name: values[order] for name, values in batch.items()}
    metric = compute([batch], cmc_top_k=(k,), precision_top_k=(k,), map_top_k=(k,))
    expected = literal(**batch, k=k)
    for name, values in expected.items():
        assert metric.metrics_unreduced["OVERALL"][name][k].tolist() == pytest.approx(values, abs=1e-6)
        assert metric.metrics["OVERALL"][name][k].item() == pytest.approx(float(np.mean(values)), abs=1e-6)


def test_by_hand_with_categories() -> None:
    metric = compute(
        [one_vs_rest(LINE, LABELS, categories=CATEGORIES)],
        categories_key="categories",
        cmc_top_k=(1,),
        precision_top_k=(2,),
        map_top_k=(2,),
    )
    unreduced = metric.metrics_unreduced
    assert unreduced["OVERALL"]["cmc"][1].tolist() == [1, 1, 0, 0, 1, 1, 1]
    assert unreduced["a"]["cmc"][1].tolist() == [1, 1, 0, 0, 1]
    assert unreduced["b"]["precision"][2].tolist() == [1, 1]
    assert metric.metrics["OVERALL"]["cmc"][1] == pytest.approx(5 / 7)
    assert metric.metrics["a"]["cmc"][1] == pytest.approx(3 / 5)
    assert metric.metrics["b"]["map"][2] == 1
    torch.testing.assert_close(metric.metrics["a"]["pcf"][0.5], pcf(LINE[[0, 1, 2, 3, 6]], (0.5,))[0])


@pytest.mark.parametrize("categories", [torch.tensor([5, 5, 5, 5, 3, 3, 5]), np.array([5, 5, 5, 5, 3, 3, 5])])
def test_categories_may_be_numbers(categories: Tensor | np.ndarray) -> None:
    metric = compute([one_vs_rest(LINE, LABELS, categories=categories)], categories_key="categories", cmc_top_k=(1,))
    assert set(metric.metrics) == {"OVERALL", 3, 5}
    assert metric.metrics[3]["cmc"][1] == 1


def test_batches_and_epochs_do_not_matter() -> None:
    whole = one_vs_rest(LINE, LABELS)
    parts = [{name: values[rows] for name, values in whole.items()} for rows in (slice(0, 3), slice(3, 7))]
    metric = compute(parts)
    expected = metric.metrics
    metric.setup(7)
    assert metric.metrics == {}
    for part in parts:
        metric.update_data(part)
    assert metric.compute_metrics() == expected
    assert compute([whole]).metrics == expected


def test_worst_queries_of_a_category_are_named_by_their_place_among_all() -> None:
    """The described system gives positions inside the category, and draws the wrong pictures."""
    order = torch.tensor([4, 5, 0, 1, 2, 3, 6])  # category b comes first
    metric = compute(
        [one_vs_rest(LINE[order], LABELS[order], categories=[CATEGORIES[i] for i in order])],
        categories_key="categories",
        cmc_top_k=(1,),
    )
    assert metric.get_worst_queries_ids("a/cmc/1", 3) == [4, 5, 2]
    assert metric.get_worst_queries_ids("b/cmc/1", 9) == [0, 1]
    with pytest.raises(ValueError, match="No metric is called 'a/cmc/2'; there are OVERALL/cmc/1"):
        metric.get_worst_queries_ids("a/cmc/2", 3)
    with pytest.raises(ValueError, match="no value per query"):
        metric.get_worst_queries_ids("a/pcf/0.5", 3)


def test_one_query_is_enough() -> None:
    batch = one_vs_rest(LINE[:2], LABELS[:2]) | {"is_query": torch.tensor([True, False])}
    assert compute([batch], pfc_variance=()).metrics["OVERALL"]["cmc"][5] == 1


def test_a_query_with_nothing_to_find_is_an_error_unless_ignored() -> None:
    batch = one_vs_rest(LINE, torch.tensor([0, 0, 1, 0, 2, 2, 9]))
    with pytest.raises(AssertionError, match="2"):
        compute([batch])
    with pytest.warns(UserWarning, match="2"):
        metric = compute([batch], on_missing="ignore", cmc_top_k=(1,))
    assert metric.metrics_unreduced["OVERALL"]["cmc"][1].tolist() == [1, 1, 0, 1, 1]


def test_parts_can_be_switched_off() -> None:
    metric = compute([one_vs_rest(LINE, LABELS)], precision_top_k=(), map_top_k=(), pfc_variance=())
    assert set(metric.metrics["OVERALL"]) == {"cmc"}
    with pytest.raises(ValueError, match="at least one of"):
        EmbeddingMetrics(cmc_top_k=(), precision_top_k=(), map_top_k=())


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ({"cmc_top_k": (0,)}, "in cmc_top_k, got \\[0\\]"),
        ({"map_top_k": (1, -1)}, "in map_top_k"),
        ({"pfc_variance": (50.0,)}, "in pfc_variance"),
        ({"extra_keys": "paths"}, "got the text 'paths'"),
    ],
)
def test_arguments_are_checked_before_an_epoch_is_spent(argument: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        EmbeddingMetrics(**argument)


def test_no_category_takes_the_name_of_all() -> None:
    batch = one_vs_rest(LINE, LABELS, categories=["OVERALL", *CATEGORIES[1:]])
    with pytest.raises(ValueError, match="keeps the name 'OVERALL'"):
        compute([batch], categories_key="categories")


def test_only_the_main_category_is_returned_if_asked() -> None:
    batch = one_vs_rest(LINE, LABELS, categories=CATEGORIES)
    metric = compute([batch], categories_key="categories", return_only_main_category=True)
    assert set(metric.metrics) == {"OVERALL", "a", "b"}
    assert set(metric.compute_metrics()) == {"OVERALL"}


def test_verbose_prints(capsys: pytest.CaptureFixture) -> None:
    compute([one_vs_rest(LINE, LABELS)], verbose=True)
    assert "OVERALL" in capsys.readouterr().out


def test_all_items_must_have_come() -> None:
    metric = EmbeddingMetrics()
    metric.setup(8)
    metric.update_data(one_vs_rest(LINE, LABELS))
    with pytest.raises(ValueError, match="needs all 8 items .* 7 came"):
        metric.compute_metrics()


@pytest.fixture(scope="module")
def on_images(mock_root: Path) -> EmbeddingMetrics:
    ds = DatasetQueryGallery(download_mock_dataset(mock_root)[1], dataset_root=mock_root)
    batches = [
        {**batch, "embeddings": batch["input_tensors"].flatten(1)[:, ::97]} for batch in DataLoader(ds, batch_size=5)
    ]
    return compute(batches, extra_keys=["paths"], cmc_top_k=(1, 5))


def test_pictures_have_a_title_each(on_images: EmbeddingMetrics) -> None:
    assert on_images.ready_to_visualize()
    figures, titles = on_images.visualize()
    assert titles == [f"top 5 worst by OVERALL_{name}" for name in ("cmc_1", "cmc_5", "precision_5", "map_5")]
    assert [len(figure.axes) > 0 for figure in figures] == [True] * 4


def test_pictures_show_the_boxes(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "image.png")
    sides = {"x1": 5, "y1": 2, "x2": 25, "y2": 12}
    boxes = {key: torch.full((7,), side) for key, side in sides.items()}
    batch = one_vs_rest(LINE, LABELS, paths=[str(tmp_path / "image.png")] * 7, **boxes)
    figure = compute([batch], extra_keys=["paths", *sides]).get_plot_for_queries([0], 2)
    assert {image.get_array().shape[:2] for axes in figure.axes for image in axes.get_images()} == {(10, 20)}


def test_more_instances_than_were_ranked_are_searched_for(on_images: EmbeddingMetrics) -> None:
    assert on_images.results is not None
    n_drawn = [
        len([axes for axes in on_images.get_plot_for_queries([2, 0], n).axes if axes.has_data()]) for n in (5, 8)
    ]
    assert n_drawn[1] - n_drawn[0] == 2 * 3  # three more for each of two queries


def test_pictures_need_metrics_and_paths(on_images: EmbeddingMetrics) -> None:
    with pytest.raises(ValueError, match=r"compute_metrics\(\) before"):
        EmbeddingMetrics(extra_keys=["paths"]).get_plot_for_queries([0], 5)
    with pytest.raises(ValueError, match=r"compute_metrics\(\) before"):
        EmbeddingMetrics(extra_keys=["paths"]).visualize()
    without_paths = compute([one_vs_rest(LINE, LABELS)])
    assert not without_paths.ready_to_visualize()
    with pytest.raises(ValueError, match="'paths' among its extra_keys"):
        without_paths.get_plot_for_queries([0], 5)
    with pytest.raises(ValueError, match=r"has 4 queries, there is no query \[4\]"):
        on_images.get_plot_for_queries([4], 5)


def test_a_query_does_not_retrieve_its_sequence() -> None:
    batch = {
        "embeddings": torch.tensor([[0.0], [1.0], [9.0], [1.5]]),
        "labels": torch.tensor([0, 0, 0, 1]),
        "is_query": torch.tensor([True, False, False, False]),
        "is_gallery": torch.tensor([False, True, True, True]),
        "sequence": torch.tensor([3, 3, -1, -1]),
    }
    values = []
    for key in (None, "sequence"):
        calculator = EmbeddingMetrics(cmc_top_k=(1, 2), sequence_key=key, verbose=False)
        calculator.setup(num_samples=4)
        calculator.update_data(batch)
        values.append([value.item() for value in calculator.compute_metrics()["OVERALL"]["cmc"].values()])
    assert values == [[1.0, 1.0], [0.0, 1.0]]
