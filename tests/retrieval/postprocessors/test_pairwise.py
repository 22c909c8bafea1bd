from collections import Counter
from collections.abc import Callable
from inspect import unwrap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.lightning.tiny import Tiny
from torch import Tensor, nn
from torchvision.transforms import v2

from oml.datasets.base import DatasetQueryGallery
from oml.inference.flat import extract_embeddings
from oml.interfaces.models import IPairwiseModel
from oml.metrics.per_query import ranking_metrics
from oml.models.meta.siamese import LinearTrivialDistanceSiamese, TrivialDistanceSiamese
from oml.registry.transforms import get_transforms
from oml.retrieval.postprocessors.pairwise import (
    PairwiseEmbeddingsPostprocessor,
    PairwiseImagesPostprocessor,
    PairwisePostprocessor,
)
from oml.retrieval.results import RetrievalResults
from oml.utils.download_mock_dataset import download_mock_dataset
from oml.utils.images.images import imread_tensor


class Table(IPairwiseModel):
    """Distances that stand in a table, of items whose embedding is their number; knows what it was asked."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table, requires_grad=table.requires_grad)
        self.asked: Counter[tuple[int, int]] = Counter()

    def forward(self, x1: Any, x2: Any) -> Tensor:
        raise AssertionError("re-ranking is by predict")

    def predict(self, x1: Tensor, x2: Tensor) -> Tensor:
        queries, galleries = x1[:, 0].long(), x2[:, 0].long()
        self.asked.update(zip(queries.tolist(), galleries.tolist(), strict=True))
        return self.table[queries, galleries]


class Case(NamedTuple):
    results: RetrievalResults
    table: Tensor
    top_n: int

    @property
    def data(self) -> dict[str, Tensor]:
        n = len(self.table)
        return {
            "embeddings": torch.arange(n).float()[:, None],
            "is_query": torch.isin(torch.arange(n), self.results.query_ids),
            "is_gallery": torch.isin(torch.arange(n), self.results.gallery_ids),
        }

    def postprocessor(self, batch_size: int = 3) -> PairwiseEmbeddingsPostprocessor:
        return PairwiseEmbeddingsPostprocessor(self.top_n, Table(self.table), 0, batch_size)

    def distances(self) -> Tensor:
        """The matrix that the results are of."""
        return as_matrix(self.results)


def as_matrix(results: RetrievalResults) -> Tensor:
    matrix = results.distances.new_full((len(results), len(results.gallery_ids)), torch.inf)
    columns = torch.searchsorted(results.gallery_ids, results.retrieved_ids.clamp(min=0))
    for row, column, distance, gallery in zip(matrix, columns, results.distances, results.retrieved_ids, strict=True):
        row[column[gallery >= 0]] = distance[gallery >= 0]
    return matrix


Make = Callable[[], Case]


@st.composite
def cases(draw: st.DrawFn, magnitudes: tuple[float, ...] = (1.0,)) -> Make:
    """A few items in roles, now and then of sequences, searched through; a table of distances with many ties.

    Made in the test, as beartype draws numbers that hypothesis does not want to see.
    """
    n = draw(st.integers(2, 8))
    shared = draw(st.booleans())
    is_query = torch.tensor([shared or i % 2 == 0 for i in range(n)])
    sequences = draw(st.none() | st.lists(st.integers(-1, 1), min_size=n, max_size=n))
    numbers = st.integers(0, 4)
    scale, offset = draw(st.sampled_from(magnitudes)), draw(st.sampled_from((0.0, *magnitudes)))
    points = draw(st.lists(numbers, min_size=n, max_size=n))
    labels = draw(st.lists(st.integers(0, 1), min_size=n, max_size=n))
    table = draw(st.lists(st.lists(st.integers(-2, 2), min_size=n, max_size=n), min_size=n, max_size=n))
    top_n = draw(st.sampled_from([2, 3, 5, 100]))

    def make() -> Case:
        x, ids, of = torch.tensor(points).float() * scale, torch.arange(n), torch.tensor(labels)
        queries, galleries = ids[is_query], ids if shared else ids[~is_query]
        hidden = queries[:, None] == galleries
        numbers = None if sequences is None else torch.tensor(sequences)
        if numbers is not None:
            hidden |= (numbers[queries][:, None] == numbers[galleries]) & (numbers[galleries] >= 0)
        distances = (x[queries][:, None] - x[galleries]).abs().masked_fill(hidden, torch.inf)
        distances, columns = distances.sort(dim=1, stable=True)
        results = RetrievalResults(
            queries,
            of[queries],
            galleries,
            of[galleries],
            galleries[columns].masked_fill(distances.isinf(), -1),
            distances,
            *(None if numbers is None else numbers[roles] for roles in (queries, galleries)),
        )
        return Case(results, torch.tensor(table).float() / 2 + offset, top_n)

    return make


@settings(deadline=None, max_examples=50)
@given(cases(), st.integers(1, 5))
def test_the_top_comes_in_the_order_of_the_model(make: Make, batch_size: int) -> None:
    case = make()
    postprocessor = case.postprocessor(batch_size)
    new = postprocessor.rerank(case.results, case.data)
    n_pairs: Counter[tuple[int, int]] = Counter()
    for row, query in enumerate(case.results.query_ids.tolist()):
        found = [gallery for gallery in case.results.retrieved_ids[row].tolist() if gallery >= 0]
        top = found[: case.top_n]
        n_pairs.update((query, gallery) for gallery in top)
        top = sorted(top, key=lambda gallery: float(case.table[query, gallery]))
        n_none = new.retrieved_ids.shape[1] - len(found)
        assert new.retrieved_ids[row].tolist() == top + found[case.top_n :] + [-1] * n_none
        assert new.distances[row, : len(top)].tolist() == case.table[query, top].tolist()
    assert postprocessor.model.asked == n_pairs  # each pair once, and no other


@settings(deadline=None, max_examples=50)
@given(cases())
def test_the_other_galleries_stay_as_they_were_behind_the_top(make: Make) -> None:
    case = make()
    new = case.postprocessor().rerank(case.results, case.data)
    n = case.top_n
    for old, moved, top in zip(case.results.distances[:, n:], new.distances[:, n:], new.distances[:, :n], strict=True):
        is_there = old.isfinite()
        assert torch.equal(is_there, moved.isfinite())
        if is_there.any():
            torch.testing.assert_close(moved[is_there] - moved[0], old[is_there] - old[0], atol=1e-6, rtol=0)
            assert 0.9e-5 < moved[0] - top.max() < 1.1e-5


@settings(deadline=None, max_examples=50)
@given(cases(magnitudes=(1e-3, 1.0, 1e6)))
def test_a_matrix_is_re_ranked_as_results_are(make: Make) -> None:
    case = make()
    old = case.distances()
    before = old.clone()
    by_results = case.postprocessor().rerank(case.results, case.data)
    by_matrix = case.postprocessor().process_by_dict(old, case.data)
    assert torch.equal(by_matrix, as_matrix(by_results))
    assert torch.equal(old, before)
    queries, galleries = (case.data["embeddings"][ids] for ids in (case.results.query_ids, case.results.gallery_ids))
    assert torch.equal(case.postprocessor().process(old, queries, galleries), by_matrix)


@settings(deadline=None, max_examples=50)
@given(cases())
def test_what_depends_on_the_top_as_a_set_stays(make: Make) -> None:
    case = make()
    labelled = case.results.of_queries((case.results.n_relevant > 0).nonzero().squeeze(1))
    if len(labelled):
        new = case.postprocessor().rerank(labelled, case.data)
        tops = {"cmc_top_k": (case.top_n,), "precision_top_k": (case.top_n,), "map_top_k": ()}
        before, after = ranking_metrics(labelled, **tops), ranking_metrics(new, **tops)
        for name in ("cmc", "precision"):
            torch.testing.assert_close(after[name][case.top_n], before[name][case.top_n])


@settings(deadline=None, max_examples=50)
@given(cases())
def test_the_truth_worsens_no_metric(make: Make) -> None:
    """Distances of any quality, repaired by a model that tells same from different."""
    case = make()
    labelled = case.results.of_queries((case.results.n_relevant > 0).nonzero().squeeze(1))
    if len(labelled):
        labels = torch.zeros(len(case.table))
        labels[case.results.query_ids] = case.results.query_labels.float()
        labels[case.results.gallery_ids] = case.results.gallery_labels.float()
        truth = (labels[:, None] != labels).float()
        new = PairwiseEmbeddingsPostprocessor(case.top_n, Table(truth), 0, 4).rerank(labelled, case.data)
        ks = {f"{name}_top_k": (1, 2, 5) for name in ("cmc", "precision", "map")}
        before, after = (
            ranking_metrics(labelled, **ks, map_divide_by="n"),
            ranking_metrics(new, **ks, map_divide_by="n"),
        )
        for name, by_k in before.items():
            for k, values in by_k.items():
                assert (after[name][k] >= values).all(), (name, k)


def test_nobody_who_is_not_to_be_found_comes_back() -> None:
    """Though the model finds each item nearest to itself, and next the items of its sequence."""
    n = 6
    everyone, labels = torch.ones(n, dtype=torch.bool), torch.zeros(n, dtype=torch.long)
    sequences = torch.tensor([0, 0, 1, 1, -1, -1])
    results = RetrievalResults.from_embeddings(
        torch.arange(n).float()[:, None], labels, everyone, everyone, top_k=n, sequences=sequences
    )
    case = Case(results, -torch.eye(n) - (sequences[:, None] == sequences).float(), top_n=n)
    assert (results.retrieved_ids < 0).sum(dim=1).tolist() == [2, 2, 2, 2, 1, 1]
    new = case.postprocessor().rerank(results, case.data)
    assert torch.equal(new.retrieved_ids < 0, results.retrieved_ids < 0)
    for top_n in (n - 1, n):  # with n - 1, none of the others is re-ranked
        matrix = case._replace(top_n=top_n).postprocessor().process_by_dict(case.distances(), case.data)
        assert torch.equal(matrix.isinf(), case.distances().isinf())
        assert torch.equal(matrix.diagonal(), torch.full((n,), torch.inf))
        assert not matrix.isnan().any()


class SwapsTopTwo(PairwisePostprocessor):
    """As another package would derive it."""

    def __init__(self, top_n: int) -> None:
        self.top_n = top_n

    @property
    def needed_keys(self) -> list[str]:
        return ["is_query", "is_gallery", "embeddings"]

    def inference(self, queries: Tensor, galleries: Tensor, ii_top: Tensor, top_n: int) -> Tensor:
        assert ii_top.shape == (len(queries), top_n)
        return torch.tensor([1, 0, *range(2, top_n)]).expand(len(queries), -1)


def test_the_first_two_change_places() -> None:
    labels = torch.tensor([0, 0, 1, 0, 1])
    is_query = torch.tensor([True, False, False, False, False])
    points = torch.tensor([[0.0], [1.0], [2.0], [3.0], [4.0]])
    results = RetrievalResults.from_embeddings(points, labels, is_query, ~is_query, top_k=4)
    new = SwapsTopTwo(3).rerank(results, {"embeddings": points})
    assert new.retrieved_ids.tolist() == [[2, 1, 3, 4]]
    before, after = (ranking_metrics(r, cmc_top_k=(), precision_top_k=(1, 3), map_top_k=()) for r in (results, new))
    assert (before["precision"][1].item(), after["precision"][1].item()) == (1, 0)
    assert before["precision"][3].item() == after["precision"][3].item() > 0
    for dtype in (torch.float16, torch.float32, torch.float64):
        matrix = SwapsTopTwo(3).process(torch.tensor([[1.0, 2, 3, 4]], dtype=dtype), points[:1], points[1:])
        assert matrix.dtype == dtype
        assert matrix.argsort().tolist() == [[1, 0, 2, 3]]


@pytest.mark.parametrize("kind", [torch.tensor, np.array, list])
def test_the_items_of_another_class(kind: Callable[..., Any]) -> None:
    postprocessor, data = SwapsTopTwo(2), {"embeddings": kind([[1.0], [2.0], [3.0]])}
    assert [list(item) for item in postprocessor.items(data, torch.tensor([2, 0]))] == [[3], [1]]
    assert [list(item) for item in postprocessor.items(data)] == [[1], [2], [3]]


TRANSFORMS = get_transforms("norm_resize_torch", im_size=16)


class World(NamedTuple):
    extractor: Tiny
    embeddings: Tensor
    separate: RetrievalResults
    shared: RetrievalResults
    data: dict[str, Any]


@pytest.fixture(scope="module")
def world(mock_root: Path) -> World:
    dataset = DatasetQueryGallery(download_mock_dataset(mock_root)[1], dataset_root=mock_root, transform=TRANSFORMS)
    extractor = Tiny()
    embeddings = extract_embeddings(extractor, dataset)
    everyone = torch.ones(len(dataset), dtype=torch.bool)
    return World(
        extractor,
        embeddings,
        RetrievalResults.from_dataset(embeddings, dataset, top_k=100),
        RetrievalResults.from_embeddings(
            embeddings, torch.from_numpy(dataset.get_labels()), everyone, everyone, top_k=100
        ),
        {"embeddings": embeddings, "paths": dataset.df["path"].tolist()},
    )


@pytest.mark.parametrize("top_n", [2, 5, 100])
@pytest.mark.parametrize("roles", ["separate", "shared"])
@pytest.mark.parametrize("kind", ["embeddings", "images"])
def test_a_model_of_plain_distances_changes_nothing(world: World, kind: str, roles: str, top_n: int) -> None:
    results = getattr(world, roles)
    assert len(results.gallery_ids) > 5
    postprocessor = (
        PairwiseEmbeddingsPostprocessor(top_n, LinearTrivialDistanceSiamese(8, identity_init=True), 0, 7)
        if kind == "embeddings"
        else PairwiseImagesPostprocessor(
            top_n, TrivialDistanceSiamese(world.extractor), TRANSFORMS, batch_size=7, verbose=False, use_fp16=True
        )
    )
    new = postprocessor.rerank(results, world.data)
    assert torch.equal(new.retrieved_ids, results.retrieved_ids)
    torch.testing.assert_close(new.distances[:, :top_n], results.distances[:, :top_n])
    n = len(world.embeddings)
    roles_of = {
        name: torch.isin(torch.arange(n), ids)
        for name, ids in (("is_query", results.query_ids), ("is_gallery", results.gallery_ids))
    }
    old = as_matrix(results)
    matrix = postprocessor.process_by_dict(old, world.data | roles_of)
    assert torch.equal(matrix.argsort(stable=True), old.argsort(stable=True))


class Brightness(IPairwiseModel):
    """Difference of the means of two images."""

    def forward(self, x1: Any, x2: Any) -> Tensor:
        raise AssertionError("re-ranking is by predict")

    def predict(self, x1: Tensor, x2: Tensor) -> Tensor:
        return (x1.flatten(1).amax(dim=1) - x2.flatten(1).amax(dim=1)).abs()


TO_TENSOR = v2.Compose([v2.ToImage(), v2.Resize((2, 2)), v2.ToDtype(torch.float32, scale=True)])


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Four images of which the left half has the shade that the right half of the next has."""
    folder = tmp_path_factory.mktemp("halves")
    for i in range(4):
        image = Image.new("L", (8, 4), color=50 * (i + 1))
        image.paste(50 * i, (4, 0, 8, 4))
        image.save(folder / f"{i}.png")
    return [str(folder / f"{i}.png") for i in range(4)]


LEFT, RIGHT = (0, 0, 4, 4), (4, 0, 8, 4)


def images_postprocessor(**args: Any) -> PairwiseImagesPostprocessor:
    return PairwiseImagesPostprocessor(**{"top_n": 3, "pairwise_model": Brightness(), "transforms": TO_TENSOR} | args)


def test_boxes_are_what_is_compared(halves: list[str]) -> None:
    boxes = [LEFT, *[RIGHT] * 3]
    sides = torch.tensor(boxes).T.tolist()
    data = {"paths": halves, **dict(zip(("x1", "y1", "x2", "y2"), sides, strict=True))}
    assert set(images_postprocessor().optional_keys) == {"x1", "y1", "x2", "y2"}
    one = torch.tensor([0])
    results = RetrievalResults(
        one, one, torch.arange(1, 4), torch.zeros(3).long(), torch.tensor([[3, 2, 1]]), torch.tensor([[1.0, 2, 3]])
    )
    new = images_postprocessor(verbose=False).rerank(results, data)
    assert new.retrieved_ids.tolist() == [[1, 2, 3]]
    torch.testing.assert_close(new.distances, torch.tensor([[0.0, 50, 100]]) / 255)
    matrix = images_postprocessor(verbose=False).process(
        torch.tensor([[3.0, 2, 1]]), [(halves[0], LEFT)], [(path, RIGHT) for path in halves[1:]]
    )
    assert torch.equal(matrix, new.distances)

    whole = images_postprocessor(verbose=False).rerank(results, {"paths": halves}).distances
    torch.testing.assert_close(whole, torch.tensor([[50.0, 100, 150]]) / 255)
    data |= {key: torch.full((4,), torch.nan) for key in ("x1", "y1", "x2", "y2")}
    assert torch.equal(images_postprocessor(verbose=False).rerank(results, data).distances, whole)
    matrix = images_postprocessor(verbose=False).process(torch.tensor([[3.0, 2, 1]]), halves[:1], halves[1:])
    assert torch.equal(matrix, whole)

    with pytest.raises(ValueError, match=r"nan, 0.0, 4.0, 4.0.* for item 1, and others of that kind: 2 in all"):
        images_postprocessor().rerank(
            results,
            {"paths": halves, "x1": [0, torch.nan, 0, torch.nan], "y1": [0.0] * 4, "x2": [4] * 4, "y2": [4] * 4},
        )
    with pytest.raises(ValueError, match=r"\['x2'\] are missing"):
        images_postprocessor().rerank(results, {key: value for key, value in data.items() if key != "x2"})


def test_each_image_is_read_once_for_all_queries(world: World) -> None:
    n_reads: Counter[bytes] = Counter()

    def reader(source: Any) -> Any:
        n_reads[source] += 1
        return imread_tensor(source)

    postprocessor = images_postprocessor(f_imread=reader, batch_size=4, verbose=False)
    new = postprocessor.rerank(world.shared, world.data)
    assert n_reads.total() == len(n_reads) == len(world.embeddings)
    for others in ({"cache_size": 0}, {"batch_size": 1, "cache_size": 100}, {"batch_size": 100, "num_workers": 2}):
        again = images_postprocessor(**{"verbose": False} | others).rerank(world.shared, world.data)
        assert torch.equal(again.retrieved_ids, new.retrieved_ids)
        assert torch.equal(again.distances, new.distances)


def test_a_bar_says_what_lasts(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    images_postprocessor(verbose=False).rerank(world.shared, world.data)
    assert capfd.readouterr() == ("", "")
    images_postprocessor().rerank(world.shared, world.data)
    assert f"Re-ranking the top 3 of {len(world.shared)} queries" in capfd.readouterr().err


@settings(deadline=None, max_examples=50)
@given(cases(), st.sampled_from([torch.nan, torch.inf, -torch.inf]))
def test_a_model_that_gives_no_numbers(make: Make, bad: float) -> None:
    case = make()
    if (case.results.retrieved_ids >= 0).any():
        broken = case._replace(table=torch.full_like(case.table, bad))
        for run in (
            lambda: broken.postprocessor().rerank(broken.results, broken.data),
            lambda: broken.postprocessor().process_by_dict(broken.distances(), broken.data),
        ):
            with pytest.raises(ValueError, match=r"needs finite distances of its model, got .* pairs, such as query"):
                run()


def test_queries_that_found_nothing_and_no_queries() -> None:
    none, one = torch.tensor([], dtype=torch.long), torch.tensor([0])
    for query_ids in (none, one):
        results = RetrievalResults(
            query_ids,
            query_ids,
            one,
            one,
            torch.full((len(query_ids), 1), -1),
            torch.full((len(query_ids), 1), torch.inf),
        )
        case = Case(results, torch.zeros(1, 1), top_n=2)
        new = case.postprocessor().rerank(results, case.data)
        assert torch.equal(new.retrieved_ids, results.retrieved_ids)
        assert torch.equal(new.distances, results.distances)


def test_what_is_no_argument() -> None:
    model = Table(torch.zeros(1, 1))
    for top_n in (1, 0, True):
        with pytest.raises(ValueError, match="2 or more as top_n"):
            PairwiseEmbeddingsPostprocessor(top_n, model, 0, 1)
    with pytest.raises(ValueError, match="1 or more as batch_size, got 0"):
        PairwiseEmbeddingsPostprocessor(2, model, 0, 0)
    with pytest.raises(ValueError, match="0 or more as num_workers, got -1"):
        images_postprocessor(num_workers=-1)
    with pytest.raises(ValueError, match="0 or more as cache_size, got -1"):
        images_postprocessor(cache_size=-1)
    unchecked: Any = unwrap(PairwiseEmbeddingsPostprocessor.__init__)
    with pytest.raises(TypeError, match=r"needs a pairwise_model: a module with predict\(x1, x2\).*got Tiny"):
        unchecked(object.__new__(PairwiseEmbeddingsPostprocessor), 2, Tiny(), 0, 1)


def test_what_does_not_fit() -> None:
    everyone = torch.ones(4, dtype=torch.bool)
    results = RetrievalResults.from_embeddings(torch.eye(4), torch.zeros(4).long(), everyone, everyone, top_k=2)
    case = Case(results, torch.zeros(4, 4), top_n=3)
    with pytest.raises(ValueError, match="top 3 galleries, the results hold 2: search with top_k=3"):
        case.postprocessor().rerank(results, case.data)
    postprocessor, items = case.postprocessor(), case.data["embeddings"]
    with pytest.raises(ValueError, match=r"4 queries and 3 galleries, got \(4, 4\)"):
        postprocessor.process(torch.zeros(4, 4), items, items[:3])
    for bad in (torch.nan, -torch.inf):
        distances = torch.zeros(4, 4)
        distances[2, 1] = bad
        with pytest.raises(ValueError, match="in 1 of 4 rows, such as row 2"):
            postprocessor.process(distances, items, items)

    class Short(SwapsTopTwo):
        def inference(self, queries: Tensor, galleries: Tensor, ii_top: Tensor, top_n: int) -> Tensor:
            return torch.zeros(len(queries))

    with pytest.raises(ValueError, match=r"Short.inference gives \(4,\) numbers instead of \(4, 3\)"):
        Short(3).process(torch.zeros(4, 4), items, items)
