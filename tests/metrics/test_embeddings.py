import inspect
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.processes import run_processes
from torch import Tensor
from torch.utils.data import DataLoader

from oml.datasets.base import DatasetQueryGallery
from oml.functional.statistics import bootstrap_interval
from oml.functional.topology import pcf
from oml.metrics.embeddings import EmbeddingMetrics, EmbeddingMetricsDDP, validate_dataset
from oml.retrieval import NothingToFindError
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


def test_pcf_of_a_category_is_that_of_all_its_items() -> None:
    embeddings = torch.randn(24, 6, generator=torch.Generator().manual_seed(0))
    categories, is_query = torch.arange(24) % 2, torch.arange(24) < 6
    batch = one_vs_rest(embeddings, torch.arange(24) % 3, categories=categories) | {"is_query": is_query}
    metric = compute([batch], categories_key="categories", pfc_variance=(0.5, 0.9))
    for category, rows in (("OVERALL", categories >= 0), (0, categories == 0), (1, categories == 1)):
        expected = pcf(embeddings[rows], (0.5, 0.9))
        assert list(metric.metrics[category]["pcf"].values()) == expected.tolist()
        assert not torch.equal(expected, pcf(embeddings[rows & is_query], (0.5, 0.9)))


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
    with pytest.raises(ValueError, match="got n_queries=-1"):
        metric.get_worst_queries_ids("a/cmc/1", -1)


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
    others: Any = {"cmc_top_k": (), "precision_top_k": (), "map_top_k": ()}
    metric = compute([one_vs_rest(LINE, LABELS)], **others, recall_top_k=(1,), ndcg_top_k=(2,), mrr_top_k=(3,))
    assert list(metric.metrics["OVERALL"]) == ["recall", "ndcg", "mrr", "pcf"]
    assert metric.metrics_unreduced["OVERALL"]["recall"][1].tolist() == [0.5, 0.5, 0, 0, 1, 1, 1]
    torch.testing.assert_close(
        metric.metrics_unreduced["OVERALL"]["mrr"][3], torch.tensor([1, 1, 1 / 3, 1 / 2, 1, 1, 1])
    )


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ({"cmc_top_k": (0,)}, "in cmc_top_k, got \\[0\\]"),
        ({"map_top_k": (1, -1)}, "in map_top_k"),
        ({"ndcg_top_k": (True,)}, "in ndcg_top_k"),
        ({"cmc_top_k": ("r",)}, "1 or more in cmc_top_k, got .'r'"),
        ({"map_top_k": ("r", "5")}, "1 or more or 'r' in map_top_k, got .'5'"),
        ({"pfc_variance": (50.0,)}, "in pfc_variance"),
        ({"fmr_vals": (0.1, -1.0)}, "in fmr_vals, got \\[-1.0\\]"),
        ({"extra_keys": "paths"}, "in extra_keys, got the text 'paths'"),
        (
            {"metrics_to_exclude_from_visualization": "cmc"},
            r"exclude_from_visualization, got the text 'cmc': give \['c",
        ),
        ({"cmc_top_k": 5}, "a list or tuple as cmc_top_k, got 5"),
        ({"map_top_k": np.array([1, 5])}, "a list or tuple as map_top_k, got array"),
        ({"fmr_vals": 0.1}, "a list or tuple as fmr_vals, got 0.1"),
        ({"extra_keys": None}, "a list or tuple as extra_keys, got None"),
        ({"extra_keys": ("paths", "x1", "y1")}, r"all four sides of boxes .* lacks \['x2', 'y2'\]"),
        ({"on_missing": "skip"}, "on_missing is 'raise' or 'ignore', got 'skip'"),
    ],
)
def test_arguments_are_checked_before_an_epoch_is_spent(argument: dict, text: str) -> None:
    with pytest.raises((ValueError, TypeError), match=text):
        inspect.unwrap(EmbeddingMetrics.__init__)(object.__new__(EmbeddingMetrics), **argument)


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ({"labels": list("aabbbca")}, "needs numbers in 'labels', got list of 'a'"),
        ({"labels": np.array(list("aabbbca"))}, "needs numbers in 'labels', got ndarray of .*'a'"),
        ({"labels": LABELS.float()}, r"whole numbers in 'labels', got torch\.float32"),
        ({"labels": LABELS[:, None]}, r"one number per item in 'labels', got shape \(7, 1\)"),
        ({"is_query": ["True"] * 7}, "needs numbers in 'is_query'"),
        ({"is_query": torch.full((7,), 2)}, "True or False, or 1 or 0, in 'is_query', got 2"),
        ({"is_gallery": torch.full((7,), torch.nan)}, "in 'is_gallery', got nan"),
        ({"sequence": torch.full((7,), torch.nan)}, r"whole numbers in 'sequence', got torch\.float32"),
    ],
)
def test_a_batch_is_checked_when_it_comes(entry: dict, text: str) -> None:
    metric = EmbeddingMetrics(sequence_key="sequence")
    metric.setup(7)
    with pytest.raises((ValueError, TypeError), match=text):
        metric.update_data({**one_vs_rest(LINE, LABELS, sequence=torch.arange(7)), **entry})
    assert metric.acc.collected_samples == 0


@pytest.mark.parametrize(
    "roles", [[1, 0, 1, 1, 1, 1, 1], np.array([1, 0, 1, 1, 1, 1, 1]), torch.ones(7) - torch.eye(7)[1]]
)
def test_roles_may_be_ones_and_zeros(roles: object) -> None:
    metric = compute([{**one_vs_rest(LINE, LABELS), "is_query": roles, "labels": LABELS.int().numpy()}])
    assert metric.results is not None
    assert metric.results.query_ids.tolist() == [0, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("empty", [None, float("nan"), 3])
def test_categories_are_of_one_kind_without_gaps(empty: object) -> None:
    batch = one_vs_rest(LINE, LABELS, categories=["a", empty, *CATEGORIES[2:]])
    with pytest.raises(ValueError, match=r"Categories need to be all texts or all whole numbers, got .* item 1"):
        compute([batch], categories_key="categories")


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
    with pytest.raises(ValueError, match=r"needs setup\(num_samples\) first"):
        EmbeddingMetrics().compute_metrics()


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
        with nullcontext() if key else pytest.warns(UserWarning, match="sequence_key='sequence'") as told:
            calculator.update_data(batch)
        values.append([value.item() for value in calculator.compute_metrics()["OVERALL"]["cmc"].values()])
        assert told is None or [Path(warning.filename).name for warning in told] == ["test_embeddings.py"]
        calculator.setup(num_samples=4)
        calculator.update_data(batch)  # there is one warning only, and that is an error in tests
    assert values == [[1.0, 1.0], [0.0, 1.0]]


def test_a_category_without_pairs_of_different_labels_is_named() -> None:
    batch = one_vs_rest(LINE[:4], torch.tensor([0, 1, 0, 1]), categories=list("abca"), sequence=[-1, 5, -1, 5])
    batch |= {
        "is_gallery": torch.tensor([True, True, True, True]),
        "is_query": torch.tensor([True, False, True, False]),
    }
    arguments: Any = {"categories_key": "categories", "sequence_key": "sequence", "fmr_vals": (0.1,)}
    compute([batch], **arguments)
    batch["sequence"] = [-1, 5, 5, 5]  # the query in c has no galleries of label 1 left
    with pytest.raises(ValueError, match=r"category 'c' has none: its 1 queries are of 1 labels, such as \[0\]"):
        compute([batch], **arguments)
    with pytest.raises(ValueError, match="the data has none: .* Give no fmr_vals, or galleries of further labels"):
        compute([one_vs_rest(LINE[:4], LABELS[:4] * 0)], fmr_vals=(0.1,))


@settings(deadline=None, max_examples=6)
@given(seed=st.integers(0, 999), shared=st.booleans(), with_sequences=st.booleans())
def test_pairs_of_an_item_and_itself_do_not_count_for_fnmr(seed: int, shared: bool, with_sequences: bool) -> None:
    """The described system takes them for infinitely far negatives."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 0, 1, 2])
    embeddings = torch.randint(3, (9, 2), generator=generator).float()
    is_query = torch.ones(9, dtype=torch.bool) if shared else torch.arange(9) < 6
    sequences = torch.tensor([-1, 0, 0, 1, -1, 2, 0, 0, 2])
    batch = one_vs_rest(embeddings, labels, categories=list("aabbcccba")) | {"is_query": is_query}
    batch |= {"sequence": sequences} if with_sequences else {}
    metric = compute(
        [batch],
        fmr_vals=(0, 0.3, 1),
        categories_key="categories",
        sequence_key="sequence" if with_sequences else None,
    )
    for category, found in metric.metrics.items():
        positive, negative = [], []
        for q in is_query.nonzero().flatten().tolist():
            if category not in ("OVERALL", batch["categories"][q]):
                continue
            for g in range(9):
                same_sequence = with_sequences and sequences[q] >= 0 and sequences[q] == sequences[g]
                if g != q and not same_sequence:
                    distance = (embeddings[q].double() - embeddings[g]).norm().float().item()
                    (positive if labels[q] == labels[g] else negative).append(distance)
        for rate, value in found["fnmr@fmr"].items():
            threshold = np.quantile(negative, float(rate))
            assert value.item() == pytest.approx(np.mean([distance >= threshold for distance in positive])), category
    # the dense matrices tell the same
    pairs, right = metric.distance_matrix.isfinite(), metric.mask_gt
    assert not (right & ~pairs).any()
    for row, query in enumerate(is_query.nonzero().flatten().tolist()):
        if not with_sequences:
            assert (~pairs[row]).nonzero().flatten().tolist() == [query]
    assert metric.results is not None
    nearest = metric.distance_matrix.sort(dim=1, stable=True)
    width = metric.results.retrieved_ids.shape[1]
    torch.testing.assert_close(nearest.values[:, :width], metric.results.distances)
    assert torch.equal(right.gather(1, nearest.indices)[:, :width], metric.results.is_relevant)
    assert torch.equal(right.sum(dim=1), metric.results.n_relevant)


@pytest.mark.parametrize("shared", [True, False])
def test_k_beyond_any_list(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """map over the whole gallery, from the places of what is relevant."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 30
    embeddings = torch.randint(4, (120, 3), generator=generator).float()  # with ties
    everyone = torch.ones(120, dtype=torch.bool)
    is_query = everyone if shared else torch.arange(120) < 60
    batch = {"embeddings": embeddings, "labels": labels, "is_query": is_query, "is_gallery": everyone}
    ks = (1, 105, 10**9)
    metric = compute([batch], cmc_top_k=ks, precision_top_k=ks, map_top_k=ks)
    assert metric.results is not None
    assert metric.results.retrieved_ids.shape[1] == 100
    for k in ks[1:]:
        for name, values in literal(**batch, k=k).items():
            assert metric.metrics_unreduced["OVERALL"][name][k].tolist() == pytest.approx(values, abs=1e-6)
    monkeypatch.setattr("oml.metrics.embeddings._LONGEST_LIST", 120)
    assert compute([batch], cmc_top_k=ks, precision_top_k=ks, map_top_k=ks).metrics == metric.metrics


def test_the_order_of_items_does_not_matter() -> None:
    positions = LINE + torch.linspace(0, 0.3, 7)[:, None].square()  # no two distances are equal
    batch = one_vs_rest(positions, LABELS, categories=torch.tensor([0, 0, 0, 0, 1, 1, 0]))
    order = torch.tensor([3, 6, 1, 0, 5, 2, 4])
    arguments: Any = {"categories_key": "categories", "fmr_vals": (0.1,), "cmc_top_k": (1, 3)}
    expected = compute([batch], **arguments).metrics
    found = compute([{name: values[order] for name, values in batch.items()}], **arguments).metrics
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("n_wrong", "n_shared"), [(0, 0), (2, 0), (2, 1), (4, 4)])
def test_perfect_imperfect_and_worst(n_wrong: int, n_shared: int) -> None:
    """Two queries and two galleries of each of two labels; some queries look like the other label."""
    labels = torch.tensor([0, 0, 1, 1, 0, 0, 1, 1])
    looks_like = labels.clone()
    looks_like[:n_wrong] = 1 - looks_like[:n_wrong]
    batch = {
        "embeddings": torch.eye(2)[looks_like],
        "labels": labels,
        "is_query": torch.tensor([1, 1, 1, 1, 0, 0, 0, 0]),
        "is_gallery": torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]),
        "kind": np.array(list("xxyyxxyy")),
    }
    metric = compute([batch], cmc_top_k=(1,), categories_key="kind", extra_keys=["kind"])
    assert metric.metrics["OVERALL"]["cmc"][1] == 1 - n_wrong / 4
    assert metric.metrics["x"]["cmc"][1] == 1 - min(n_wrong, 2) / 2
    assert set(metric.distance_matrix.flatten().tolist()) == {0, torch.tensor(2.0).sqrt().item()}
    assert set(metric.mask_gt.flatten().tolist()) == {True, False}
    assert metric.acc.collected_samples == 8


@pytest.mark.parametrize("longest", [100, 2])
def test_cut_at_the_number_of_relevant_items(longest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oml.metrics.embeddings._LONGEST_LIST", longest)
    monkeypatch.setattr("oml.metrics.embeddings.LOG_TOPK_IMAGES_PER_ROW", 1)
    n = 30
    labels = torch.arange(n) % 3
    points = torch.randint(9, (n, 2), generator=torch.Generator().manual_seed(0)).float()
    metric = compute([one_vs_rest(points, labels)], cmc_top_k=(1,), precision_top_k=("r",), map_top_k=(1, "r"))
    r = n // 3 - 1
    cut = compute([one_vs_rest(points, labels)], precision_top_k=(r,), map_top_k=(r,), map_divide_by="n")
    for name in ("precision", "map"):
        assert torch.equal(metric.metrics_unreduced["OVERALL"][name]["r"], cut.metrics_unreduced["OVERALL"][name][r])
    assert "OVERALL/map/r" in dict(metric._names())
    assert len(metric.get_worst_queries_ids("OVERALL/map/r", 3)) == 3
    assert metric.intervals(n_resamples=10)["OVERALL"]["map"]["r"].mean > 0


def test_intervals_draw_whole_labels() -> None:
    batch = one_vs_rest(LINE, LABELS, categories=CATEGORIES)
    metric = compute([batch], categories_key="categories", cmc_top_k=(1,), fmr_vals=(0.1,))
    found = metric.intervals(confidence=0.8, n_resamples=500, seed=3)
    assert list(found) == ["OVERALL", "a", "b"]
    assert all(list(by_metric) == ["cmc", "precision", "map"] for by_metric in found.values())
    hits, labels = torch.tensor([1.0, 1, 0, 0, 1]), torch.tensor([0, 0, 1, 0, 1])  # of category a
    expected = bootstrap_interval(hits, clusters=labels, confidence=0.8, n_resamples=500, seed=3)
    assert expected.low < expected.high
    assert found["a"]["cmc"][1] == expected
    assert found["b"]["cmc"][1] == (1, 1, 1)
    with pytest.raises(ValueError, match=r"needs compute_metrics\(\) before"):
        EmbeddingMetrics().intervals()


def test_distances_are_drawn() -> None:
    metric = compute([one_vs_rest(LINE, LABELS)])
    (axes,) = metric.get_plot_for_distances().axes
    # of 42 pairs: 3 items of label 0 have two of their like, 4 of the other labels have one
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "right: 10 pairs, median 2",
        "wrong: 32 pairs, median 14",
    ]
    drawn = [metric.get_plot_for_distances(n_pairs=9, seed=seed).axes[0].get_legend().get_texts() for seed in (0, 0, 1)]
    texts = [[text.get_text() for text in of_one] for of_one in drawn]
    assert texts[0] == texts[1]  # the same draw
    assert all(1 <= int(text.split()[1]) <= 9 for of_one in texts for text in of_one)  # less items with themselves


def test_items_that_come_twice_count_once() -> None:
    whole = one_vs_rest(LINE, LABELS, categories=CATEGORIES, idx=torch.arange(7))
    rows = [5, 0, 3, 3, 1, 2, 6, 0, 4]
    padded = {
        name: [values[i] for i in rows] if isinstance(values, list) else values[rows] for name, values in whole.items()
    }
    arguments: Any = {"categories_key": "categories", "cmc_top_k": (1, 2), "fmr_vals": (0.2,)}
    expected = compute([whole], **arguments)
    assert compute([padded], **arguments).metrics != expected.metrics  # as in the described system
    found = compute([padded], **arguments, index_key="idx")
    assert found.metrics == expected.metrics
    assert found.acc.collected_samples == 7
    torch.testing.assert_close(found.metrics_unreduced, expected.metrics_unreduced)


def test_validation_of_masks() -> None:
    mask_gt = torch.tensor([[True, False], [True, True]])
    validate_dataset(mask_gt)
    with pytest.raises(NothingToFindError, match=r"1 of 2 queries have nothing to find.* rows \[0\]"):
        validate_dataset(mask_gt, mask_to_ignore=torch.eye(2, dtype=torch.bool))


def _part(rank: int, n_ranks: int) -> dict[str, Any]:
    """What a process sees of the digits 0 to 6 on the line, with the first ones again to fill up."""
    rows = [*range(7), *range(-7 % n_ranks)][rank::n_ranks]
    return {
        **one_vs_rest(LINE[rows], LABELS[rows], paths=[f"{i}.png" for i in rows]),
        "categories": np.array(CATEGORIES)[rows],
        "idx": torch.tensor(rows),
    }


ARGUMENTS: Any = {"categories_key": "categories", "extra_keys": ["paths"], "cmc_top_k": (1, 2), "verbose": False}


def _process(rank: int, n_ranks: int, out: str) -> None:
    metric = EmbeddingMetricsDDP(**ARGUMENTS)
    part = _part(rank, n_ranks)
    metric.setup(len(part["labels"]))
    metric.update_data(part)
    metric.sync()
    found = metric.compute_metrics()
    torch.save((found, metric.acc.storage["paths"], metric.metrics_unreduced), f"{out}/{rank}")


@pytest.mark.slow
@pytest.mark.parametrize("n_ranks", [2, 3])
def test_processes_agree_with_one(n_ranks: int, tmp_path: Path) -> None:
    run_processes(_process, n_ranks, str(tmp_path), folder=tmp_path, n=n_ranks)
    alone = EmbeddingMetricsDDP(**ARGUMENTS)
    part = _part(0, 1)
    alone.setup(7)
    alone.update_data(part)
    alone.sync()  # there is nobody else
    expected = alone.compute_metrics()
    for rank in range(n_ranks):
        found, paths, by_query = torch.load(tmp_path / str(rank), weights_only=False)
        assert found == expected
        torch.testing.assert_close(by_query, alone.metrics_unreduced, rtol=0, atol=0)
        assert paths == part["paths"]


def _roles(n_queries: int) -> dict[str, Tensor]:
    """The first items are queries, all others are galleries."""
    is_query = torch.arange(7) < n_queries
    return {"is_query": is_query, "is_gallery": ~is_query}


def _few_queries(rank: int, out: str) -> None:
    metric = EmbeddingMetricsDDP(verbose=False, cmc_top_k=(1,))
    part = _part(rank, 2)
    rows = part["idx"]
    metric.setup(len(rows))
    metric.update_data({**part, **{key: roles[rows] for key, roles in _roles(1).items()}})
    metric.sync()
    found = metric.compute_metrics()

    metric.setup(len(rows))
    nowhere = part["embeddings"].where(rows[:, None] != 1, torch.nan)  # a query of rank 1's
    metric.update_data({**part, **{key: roles[rows] for key, roles in _roles(2).items()}, "embeddings": nowhere})
    metric.sync()
    with pytest.raises(ValueError, match="finite"):
        metric.compute_metrics()
    torch.save(found, f"{out}/{rank}")


@pytest.mark.slow
def test_processes_without_queries_and_errors_of_one_in_all(tmp_path: Path) -> None:
    run_processes(_few_queries, str(tmp_path), folder=tmp_path)
    alone = EmbeddingMetrics(verbose=False, cmc_top_k=(1,))
    alone.setup(7)
    alone.update_data({**_part(0, 1), **_roles(1)})
    expected = alone.compute_metrics()
    assert [torch.load(tmp_path / str(rank), weights_only=False) for rank in (0, 1)] == [expected, expected]
