import inspect
import math
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from oml.datasets.base import DatasetQueryGallery
from oml.retrieval import NothingToFindError, RetrievalResults

FIELDS = ["query_ids", "query_labels", "gallery_ids", "gallery_labels", "retrieved_ids", "distances"]


def assert_equal(found: RetrievalResults, expected: RetrievalResults) -> None:
    for name in (*FIELDS, "is_relevant", "n_relevant"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


def problem(n: int, n_labels: int, roles: str, seed: int) -> dict[str, Any]:
    """Items on so coarse a grid that ties and duplicates are common, labels that may occur once."""
    generator = torch.Generator().manual_seed(seed)
    everyone = torch.ones(n, dtype=torch.bool)
    is_query = everyone if roles == "shared" else torch.rand(n, generator=generator) < 0.5
    is_gallery = {"shared": everyone, "separate": ~is_query}.get(roles, torch.rand(n, generator=generator) < 0.7)
    return {
        "embeddings": torch.randint(3, (n, 2), generator=generator).float(),
        "labels": torch.randint(n_labels, (n,), generator=generator) - 1,
        "is_query": is_query,
        "is_gallery": is_gallery,
    }


def literal(
    embeddings: Tensor,
    labels: Tensor,
    is_query: Tensor,
    is_gallery: Tensor,
    top_k: int,
    sequences: Tensor | None = None,
) -> dict[int, dict[str, list[Any]]]:
    """What each query finds and should find, item by item."""
    found = {}
    galleries = [g for g in range(len(labels)) if is_gallery[g]]
    for q in range(len(labels)):
        if is_query[q]:
            others = [g for g in galleries if g != q]
            if sequences is not None and sequences[q] >= 0:
                others = [g for g in others if sequences[g] != sequences[q]]
            ranked = sorted((float((embeddings[q] - embeddings[g]).double().norm()), g) for g in others)
            ranked = [*ranked, *[(math.inf, -1)] * len(galleries)][: min(top_k, len(galleries))]
            found[q] = {
                "retrieved": [g for _, g in ranked],
                "distances": [distance for distance, _ in ranked],
                "is_relevant": [g >= 0 and bool(labels[g] == labels[q]) for _, g in ranked],
                "gt": [g for g in others if labels[g] == labels[q]],
            }
    return found


@settings(deadline=None)
@given(
    n=st.integers(1, 12),
    n_labels=st.integers(1, 4),
    roles=st.sampled_from(["shared", "separate", "mixed"]),
    top_k=st.integers(1, 14),
    n_sequences=st.integers(0, 4),
    seed=st.integers(0, 999),
)
def test_results_follow_the_definition(
    n: int, n_labels: int, roles: str, top_k: int, n_sequences: int, seed: int
) -> None:
    data = problem(n, n_labels, roles, seed)
    if n_sequences:
        data["sequences"] = torch.randint(n_sequences, (n,), generator=torch.Generator().manual_seed(seed)) - 1
    if not data["is_query"].any() or not data["is_gallery"].any():
        with pytest.raises(ValueError, match="RetrievalResults needs at least one"):
            RetrievalResults.from_embeddings(**data, top_k=top_k)
        return
    expected = literal(**data, top_k=top_k)
    lost = [q for q in expected if not expected[q]["gt"]]
    if lost:
        with pytest.raises(NothingToFindError, match=f"{len(lost)} of {len(expected)} queries have nothing to find"):
            RetrievalResults.from_embeddings(**data, top_k=top_k)
    if len(lost) == len(expected):
        with pytest.raises(NothingToFindError):
            RetrievalResults.from_embeddings(**data, top_k=top_k, on_missing="ignore")
        return
    if lost:
        with pytest.warns(UserWarning, match="They are left out"):
            results = RetrievalResults.from_embeddings(**data, top_k=top_k, on_missing="ignore")
    else:
        results = RetrievalResults.from_embeddings(**data, top_k=top_k)
    kept = [q for q in expected if q not in lost]
    assert len(results) == len(kept)
    assert results.query_ids.tolist() == kept
    assert results.gallery_ids.tolist() == data["is_gallery"].nonzero().squeeze(1).tolist()
    for row, q in enumerate(kept):
        assert results.retrieved_ids[row].tolist() == expected[q]["retrieved"]
        assert results.distances[row].tolist() == pytest.approx(expected[q]["distances"])
        assert results.is_relevant[row].tolist() == expected[q]["is_relevant"]
        assert results.n_relevant[row] == len(expected[q]["gt"])
        assert results.gt_ids(row).tolist() == expected[q]["gt"]


def test_a_query_does_not_retrieve_its_sequence(tmp_path: Path) -> None:
    labels, sequences = torch.tensor([0, 0, 0, 1, 1, 0]), torch.tensor([4, 4, 2, 4, -1, -1])
    everyone = torch.ones(6, dtype=torch.bool)
    x = torch.arange(6.0)[:, None]
    parts = [
        RetrievalResults.from_embeddings(
            x, labels, everyone & (labels == label), everyone, top_k=5, sequences=sequences
        )
        for label in (1, 0)
    ]
    results = RetrievalResults.merge(parts)
    assert results.retrieved_ids.tolist() == [
        [2, 4, 5, -1, -1],  # 1 and 3 are of sequence 4, too
        [2, 4, 5, -1, -1],
        [1, 3, 0, 4, 5],
        [2, 4, 5, -1, -1],
        [3, 5, 2, 1, 0],  # no sequence: 5 has none either, and is found
        [4, 3, 2, 1, 0],
    ]
    assert results.n_relevant.tolist() == [2, 2, 3, 1, 1, 3]
    assert [results.gt_ids(row).tolist() for row in (0, 3)] == [[2, 5], [4]]
    others = RetrievalResults.from_embeddings(x, labels, labels == 0, everyone, top_k=5, sequences=sequences + 1)
    with pytest.raises(ValueError, match="in the same gallery"):
        RetrievalResults.merge([parts[0], others])
    results.save(tmp_path / "r.safetensors")
    loaded = RetrievalResults.load(tmp_path / "r.safetensors")
    assert_equal(loaded, results)
    assert loaded.query_sequences is not None
    assert torch.equal(loaded.query_sequences, sequences)
    with pytest.raises(NothingToFindError, match=r"no other item of their label \(and of another sequence"):
        RetrievalResults.from_embeddings(
            x[:3], labels[:3], everyone[:3], everyone[:3], top_k=1, sequences=torch.tensor([1, 1, 1])
        )


def test_exactly_one_query() -> None:
    """AssertionError without text in the described system."""
    is_query = torch.tensor([False, True, False])
    results = RetrievalResults.from_embeddings(
        torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([3, 3, 4]), is_query, ~is_query, top_k=5
    )
    assert results.retrieved_ids.tolist() == [[0, 2]]
    assert results.is_relevant.tolist() == [[True, False]]
    assert results.n_relevant.tolist() == [1]
    assert repr(results) == "RetrievalResults(1 queries, 2 galleries, top 2)"


def test_an_item_never_retrieves_itself_not_even_among_copies() -> None:
    everyone = torch.ones(30, dtype=torch.bool)
    x = torch.ones(30, 4)
    results = RetrievalResults.from_embeddings(x, torch.zeros(30, dtype=torch.int64), everyone, everyone, top_k=29)
    assert (results.retrieved_ids != results.query_ids[:, None]).all()
    assert results.retrieved_ids[0].tolist() == list(range(1, 30))
    assert (results.n_relevant == 29).all()


def test_labels_beyond_what_float32_can_count() -> None:
    labels = 2**24 + torch.tensor([0, 0, 1, 1])  # as float32, all but the last would be equal
    everyone = torch.ones(4, dtype=torch.bool)
    results = RetrievalResults.from_embeddings(torch.arange(4.0)[:, None], labels, everyone, everyone, top_k=3)
    assert results.n_relevant.tolist() == [1, 1, 1, 1]
    assert results.is_relevant[1].tolist() == [True, False, False]


def test_queries_with_nothing_to_find_are_named() -> None:
    everyone = torch.ones(8, dtype=torch.bool)
    labels = torch.tensor([0, 5, 0, 6, 7, 8, 0, 9])
    with pytest.raises(NothingToFindError, match=r"5 of 8 .* rows \[1, 3, 4\], with labels \[5, 6, 7\], and 2 more"):
        RetrievalResults.from_embeddings(torch.rand(8, 2), labels, everyone, everyone, top_k=1)
    with pytest.raises(AssertionError):  # what old callers catch
        RetrievalResults.from_embeddings(torch.rand(8, 2), labels, everyone, everyone, top_k=1)


def test_queries_left_out_change_nothing_for_the_others() -> None:
    data = problem(12, 2, "shared", seed=0)
    expected = RetrievalResults.from_embeddings(**data, top_k=4)
    data["labels"] = torch.cat([data["labels"], torch.tensor([77])])
    data["embeddings"] = torch.cat([data["embeddings"], torch.tensor([[100.0, 100.0]])])
    data["is_query"] = torch.ones(13, dtype=torch.bool)
    data["is_gallery"] = data["is_query"].clone()
    data["is_gallery"][12] = False
    with pytest.warns(UserWarning, match=r"1 of 13 queries .* rows \[12\], with labels \[77\]\. They are left out"):
        assert_equal(RetrievalResults.from_embeddings(**data, top_k=4, on_missing="ignore"), expected)


@settings(deadline=None, max_examples=30)
@given(n_parts=st.integers(1, 4), roles=st.sampled_from(["shared", "separate"]), seed=st.integers(0, 999))
def test_parts_merge_to_the_whole(n_parts: int, roles: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    embeddings, labels = torch.randint(4, (16, 2), generator=generator).float(), torch.arange(16) % 4
    everyone = torch.ones(16, dtype=torch.bool)
    is_query = everyone if roles == "shared" else torch.arange(16) < 8
    is_gallery = everyone if roles == "shared" else ~is_query
    whole = RetrievalResults.from_embeddings(embeddings, labels, is_query, is_gallery, top_k=5)
    part_of = torch.randint(n_parts, (16,), generator=generator)
    parts = [
        RetrievalResults.from_embeddings(embeddings, labels, is_query & (part_of == part), is_gallery, top_k=5)
        for part in range(n_parts)
        if (is_query & (part_of == part)).any()
    ]
    assert_equal(RetrievalResults.merge(parts), whole)
    assert_equal(RetrievalResults.merge(parts[::-1]), whole)


@settings(deadline=None, max_examples=50)
@given(
    n_parts=st.integers(1, 4),
    roles=st.sampled_from(["shared", "separate", "mixed"]),
    top_k=st.integers(1, 18),
    n_sequences=st.integers(0, 4),
    on_missing=st.sampled_from(["ignore", "keep"]),
    seed=st.integers(0, 999),
)
def test_parts_of_the_gallery_merge_to_the_whole(
    n_parts: int, roles: str, top_k: int, n_sequences: int, on_missing: Any, seed: int
) -> None:
    data, generator = problem(16, 4, roles, seed), torch.Generator().manual_seed(seed)
    if n_sequences:
        data["sequences"] = torch.randint(n_sequences, (16,), generator=generator) - 1
    part_of = torch.randint(n_parts, (16,), generator=generator)
    galleries = [data["is_gallery"] & (part_of == part) for part in range(n_parts)]
    galleries = [gallery for gallery in galleries if gallery.any()]
    if not data["is_query"].any() or not galleries:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of queries left out
        try:
            whole = RetrievalResults.from_embeddings(**data, top_k=top_k, on_missing=on_missing)
        except NothingToFindError:  # in no query, so that even ignoring does not help
            return
        # each part knows only its own embeddings, in any order, and where they are in the data set
        parts = []
        for gallery in galleries:
            ids = (data["is_query"] | gallery).nonzero().squeeze(1)
            ids = ids[torch.randperm(len(ids), generator=generator)]
            own = {name: values[ids] for name, values in (data | {"is_gallery": gallery}).items()}
            parts.append(RetrievalResults.from_embeddings(**own, ids=ids, top_k=top_k, on_missing="keep"))
        for order in (parts, parts[::-1]):
            merged = RetrievalResults.merge(order, top_k=top_k, on_missing=on_missing)
            assert_equal(merged, whole)
            assert (merged.query_sequences is None) == (n_sequences == 0)
        halves = RetrievalResults.merge(parts[:2], on_missing="keep"), *parts[2:]
        assert_equal(RetrievalResults.merge(halves, top_k=top_k, on_missing=on_missing), whole)


def test_as_many_ranks_are_merged_as_are_sure() -> None:
    x, labels = torch.arange(12.0)[:, None], torch.zeros(12, dtype=torch.int64)
    is_query, gallery = torch.arange(12) < 2, torch.arange(12) >= 2
    parts = [
        RetrievalResults.from_embeddings(x, labels, is_query, gallery & of_part, top_k=top_k)
        for of_part, top_k in ((torch.arange(12) < 5, 3), (torch.arange(12) >= 5, 4))
    ]  # the first lists its whole gallery, the second 4 of 7
    assert RetrievalResults.merge(parts).retrieved_ids.tolist() == [[2, 3, 4, 5]] * 2
    assert RetrievalResults.merge(parts, top_k=2).retrieved_ids.tolist() == [[2, 3]] * 2
    with pytest.raises(ValueError, match="hold 4 sure ranks, top_k=5 were asked for"):
        RetrievalResults.merge(parts, top_k=5)
    with pytest.raises(ValueError, match=r"hold 3 galleries twice, such as \[2, 3, 4\]"):
        RetrievalResults.merge([parts[0], RetrievalResults.from_embeddings(x, labels, is_query, gallery, top_k=3)])
    of_queries = [
        RetrievalResults.from_embeddings(x, labels, is_query & (labels + torch.arange(12) == q), gallery, top_k=3)
        for q in (0, 1)
    ]
    assert RetrievalResults.merge(of_queries, top_k=1).retrieved_ids.tolist() == [[2], [2]]
    with pytest.raises(ValueError, match=r"got \[3\] ranks and top_k=4"):
        RetrievalResults.merge(of_queries, top_k=4)


def test_queries_with_nothing_to_find_in_the_whole_gallery_are_found_out_when_it_is_merged() -> None:
    x, labels, first = torch.arange(6.0)[:, None], torch.tensor([0, 1, 2, 0, 1, 3]), torch.arange(6) < 3
    halves = [
        RetrievalResults.from_embeddings(
            x, labels, first, ~first & of_half, top_k=2, on_missing="keep", ids=torch.arange(6) + 10
        )
        for of_half in (torch.arange(6) == 3, torch.arange(6) > 3)
    ]
    assert [half.n_relevant.tolist() for half in halves] == [[1, 0, 0], [0, 1, 0]]
    with pytest.raises(NothingToFindError, match=r"1 of 3 queries .* rows \[12\], with labels \[2\]"):
        RetrievalResults.merge(halves)
    with pytest.warns(UserWarning, match=r"1 of 3 queries .* They are left out"):
        merged = RetrievalResults.merge(halves, on_missing="ignore")
    assert merged.query_ids.tolist() == [10, 11]
    assert RetrievalResults.merge(halves, on_missing="keep").n_relevant.tolist() == [1, 1, 0]


def test_equal_distances_rank_by_position() -> None:
    everyone = torch.ones(6, dtype=torch.bool)
    results = RetrievalResults.from_embeddings(torch.ones(6, 2), torch.zeros(6).long(), everyone, everyone, top_k=9)
    assert results.retrieved_ids.tolist() == [[*(g for g in range(6) if g != q), -1] for q in range(6)]
    assert results.distances[:, :5].eq(0).all()


def test_distances_may_be_cosines_and_products_in_bfloat16() -> None:
    everyone = torch.ones(4, dtype=torch.bool)
    x, labels = torch.tensor([[1.0, 0.0], [0.0, 0.5], [5.0, 5.0], [1.0, 0.5]]), torch.zeros(4).long()
    results = RetrievalResults.from_embeddings(x, labels, everyone, everyone, top_k=3, distance="cosine")
    assert results.retrieved_ids[0].tolist() == [3, 2, 1]
    torch.testing.assert_close(results.distances[0], 1 - torch.tensor([1.25**-0.5, 0.5**0.5, 0]))
    arguments: Any = {"labels": labels, "is_query": everyone, "is_gallery": everyone, "top_k": 3}
    l2 = RetrievalResults.from_embeddings(x, **arguments)
    assert l2.retrieved_ids[3].tolist() == [0, 1, 2]
    assert results.retrieved_ids[3].tolist() == [2, 0, 1]
    assert_equal(RetrievalResults.from_embeddings(x, **arguments, product_dtype=torch.bfloat16), l2)


def test_results_of_a_data_set(tmp_path: Path) -> None:
    for item in range(5):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{item}.png")
    table = pd.DataFrame(
        {
            "label": [7, 7, 3, 7, 3],
            "path": [f"{item}.png" for item in range(5)],
            "split": "validation",
            "is_query": [True, False, True, True, False],
            "is_gallery": [True, True, False, True, True],
            "sequence": ["a", "a", None, "b", "b"],
        },
        index=[9, 8, 7, 6, 5],  # positions count, not names of rows
    )
    x = torch.arange(5.0)[:, None]
    results = RetrievalResults.from_dataset(x, DatasetQueryGallery(table, dataset_root=tmp_path), top_k=3)
    assert results.query_ids.tolist() == [0, 2, 3]
    assert results.retrieved_ids.tolist() == [[3, 4, -1], [1, 3, 0], [1, 0, -1]]
    assert results.n_relevant.tolist() == [1, 1, 2]
    without = DatasetQueryGallery(table.drop(columns="sequence"), dataset_root=tmp_path)
    results = RetrievalResults.from_dataset(x, without, top_k=3)
    assert results.retrieved_ids.tolist() == [[1, 3, 4], [1, 3, 0], [4, 1, 0]]
    assert results.query_sequences is None
    assert results.query_labels.tolist() == [7, 3, 7]


def test_what_does_not_belong_together_is_not_merged() -> None:
    everyone = torch.ones(6, dtype=torch.bool)
    x, labels, first = torch.rand(6, 2), torch.arange(6) // 3, torch.arange(6) < 3
    part = RetrievalResults.from_embeddings(x, labels, first, everyone, top_k=2)
    for other, message in (
        (RetrievalResults.from_embeddings(x, labels, ~first, ~first, top_k=2), "the same gallery"),
        (RetrievalResults.from_embeddings(x, labels + 1, ~first, everyone, top_k=2), "the same gallery"),
        (RetrievalResults.from_embeddings(x, labels, ~first, everyone, top_k=3), "the same top_k"),
        (RetrievalResults.from_embeddings(x, labels, everyone, everyone, top_k=2), r"3 queries twice, such as \[0, 1"),
    ):
        with pytest.raises(ValueError, match=message):
            RetrievalResults.merge([part, other])
    with pytest.raises(ValueError, match="one part or more"):
        RetrievalResults.merge([])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_files_hold_everything(tmp_path: Path, dtype: torch.dtype) -> None:
    everyone = torch.ones(2, dtype=torch.bool)
    labels = torch.tensor([4, 4], dtype=torch.int32)
    results = RetrievalResults.from_embeddings(torch.rand(2, 3, dtype=dtype), labels, everyone, everyone, top_k=2)
    assert (results.retrieved_ids[:, 1] == -1).all()  # empty places too
    path = tmp_path / "folder" / "results.safetensors"
    results.save(path)
    loaded = RetrievalResults.load(str(path))
    assert_equal(loaded, results)
    assert all(getattr(loaded, name).dtype == getattr(results, name).dtype for name in FIELDS)
    loaded.save(path)
    assert [file.name for file in path.parent.iterdir()] == ["results.safetensors"]


def test_tensors_that_share_memory_are_saved(tmp_path: Path) -> None:
    ids = torch.arange(6).reshape(3, 2)
    results = RetrievalResults(ids[:, 0], ids[:, 0], ids[:, 0], ids[:, 0], ids[[1, 2, 0], :1], torch.ones(3, 1))
    results.save(tmp_path / "results.safetensors")
    assert_equal(RetrievalResults.load(tmp_path / "results.safetensors"), results)


def test_other_files_are_not_loaded(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        RetrievalResults.load(tmp_path / "none.safetensors")
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors' holds \['weight'\] instead of \['distances'"):
        RetrievalResults.load(tmp_path / "model.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors at all")
    with pytest.raises(ValueError, match=r"RetrievalResults\.load needs a file that save\(\) wrote, not '"):
        RetrievalResults.load(tmp_path / "text.safetensors")
    with pytest.raises(ValueError, match=r"is a folder\. Name the file, such as .*/model\.safetensors', '"):
        RetrievalResults.load(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"Name the file; this folder has no \.safetensors files"):
        RetrievalResults.load(tmp_path / "empty")


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = torch.tensor([0])
    results = RetrievalResults(one, one, one + 1, one, torch.tensor([[1]]), torch.tensor([[0.5]]))
    path = tmp_path / "results.safetensors"
    results.save(path)
    content = path.read_bytes()

    def half_written(tensors: dict[str, Tensor], filename: Path) -> None:
        filename.write_bytes(content[:20])
        raise OSError("disk full")

    monkeypatch.setattr("oml.retrieval.results.save_file", half_written)
    with pytest.raises(OSError, match="disk full"):
        results.save(path)
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_bad_parts_are_refused() -> None:
    ids, labels = torch.arange(3), torch.tensor([0, 0, 1])
    good = {
        "query_ids": ids,
        "query_labels": labels,
        "gallery_ids": ids,
        "gallery_labels": labels,
        "retrieved_ids": torch.tensor([[1], [0], [-1]]),
        "distances": torch.tensor([[1.0], [1.0], [math.inf]]),
    }
    assert RetrievalResults(**good).n_relevant.tolist() == [1, 1, 0]
    unchecked = inspect.unwrap(RetrievalResults.__init__)  # the tests' own checks of annotations would come first
    for bad, message in (
        ({"query_labels": labels[:2]}, "a label per id, got 2 for 3 queries"),
        ({"distances": torch.ones(3, 2)}, r"got \(3, 1\) and \(3, 2\)"),
        ({"retrieved_ids": torch.ones(2, 1), "distances": torch.ones(2, 1)}, "of 3 queries, got"),
        ({"retrieved_ids": torch.tensor([[1], [7], [-2]])}, r"in 2 rows, such as \[7\] in row 1"),
        ({"retrieved_ids": torch.tensor([[1], [1], [0]])}, r"not the query's own .* such as \[1\] in row 1"),
        ({"query_ids": ids - 1}, "positions in the data set as ids, got -1"),
        ({"gallery_ids": torch.tensor([0, 1, 1])}, "each query and each gallery once"),
        ({"gallery_labels": labels + 1}, r"one label per item, got others .* for 3 items, such as \[0, 1, 2\]"),
        (
            {"retrieved_ids": ids[:, None].expand(3, 2).flip(0) % 2, "distances": torch.tensor([[2.0, 1.0]] * 3)},
            "not the query's own",
        ),
        (
            {"retrieved_ids": torch.tensor([[1, 2], [0, 2], [0, 1]]), "distances": torch.tensor([[2.0, 1.0]] * 3)},
            r"in ascending order, .* got others in 3 rows, such as \[2.0, 1.0\] in row 0",
        ),
        ({"distances": torch.tensor([[1.0], [math.inf], [math.inf]])}, r"others in 1 rows, such as \[inf\] in row 1"),
        ({"distances": torch.ones(3, 1)}, r"others in 1 rows, such as \[1.0\] in row 2"),
        ({"distances": torch.tensor([[1.0], [math.nan], [math.inf]])}, r"others in 1 rows, such as \[nan\] in row 1"),
        (
            {"retrieved_ids": torch.tensor([[1, 1], [0, 2], [0, 1]]), "distances": torch.ones(3, 2)},
            r"at most once per query, got some twice in 1 rows, such as \[1, 1\] in row 0",
        ),
        ({"query_sequences": ids}, r"or none at all, got \[3\] for 3 queries"),
        (
            {"query_sequences": torch.tensor([8, 8, -1]), "gallery_sequences": torch.tensor([8, 8, -1])},
            r"nor of its sequence, got others in 2 rows, such as \[1\] in row 0",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            unchecked(object.__new__(RetrievalResults), **{**good, **bad})


def test_bad_data_is_refused() -> None:
    data = problem(6, 1, "shared", seed=0)
    unchecked = inspect.unwrap(RetrievalResults.from_embeddings.__func__)
    for bad, message in (
        ({"labels": data["labels"].float()}, r"integer label .* labels of torch\.float32"),
        ({"is_query": data["is_query"][:4]}, "of 6, 6, 4, 6 items"),
        ({"is_gallery": ~data["is_gallery"]}, "at least one gallery, none of the 6 items is one"),
        ({"is_query": ~data["is_query"]}, "at least one query, none of the 6 items is one"),
        ({"top_k": 0}, "top_k >= 1"),
        ({"embeddings": data["embeddings"] * math.nan}, "NaN"),
        ({"labels": data["labels"] > 0}, r"integer label .* labels of torch\.bool"),
        ({"labels": data["labels"][:, None]}, r"one number per item, got labels of shape \(6, 1\)"),
        ({"is_query": torch.arange(6)}, "1 or 0, in 'is_query', got 2 and the like for 4 of 6 items, such as .2, 3, 4"),
        ({"is_gallery": torch.full((6,), math.nan)}, "1 or 0, in 'is_gallery', got nan"),
        ({"is_query": data["is_query"][:, None]}, r"got is_query of shape \(6, 1\)"),
        ({"sequences": torch.full((6,), math.nan)}, r"sequences of integers, -1 for none, got torch\.float32"),
    ):
        with pytest.raises(ValueError, match=message):
            unchecked(RetrievalResults, **{**data, "top_k": 1, **bad})
    with pytest.raises(TypeError, match="RetrievalResults needs tensors, got labels of list"):
        unchecked(RetrievalResults, **{**data, "top_k": 1, "labels": data["labels"].tolist()})


def test_embeddings_that_are_not_finite_are_named_by_their_rows_in_the_data_set() -> None:
    labels, is_query = torch.tensor([0, 0, 1, 1, 0, 1]), torch.tensor([False, True, False, True, False, False])
    embeddings, unused = torch.zeros(6, 2), 0
    embeddings[[unused, 3, 5], 1] = torch.tensor([math.nan, math.inf, math.nan])
    is_gallery = ~is_query & (torch.arange(6) != unused)
    with pytest.raises(ValueError, match=r"in 2 of 5 items, such as \[3, 5\]"):
        RetrievalResults.from_embeddings(embeddings, labels, is_query, is_gallery, top_k=1)
    parts = [x.flip(0) for x in (embeddings, labels, is_query, is_gallery)]
    with pytest.raises(ValueError, match=r"in 2 of 5 items, such as \[13, 15\]"):
        RetrievalResults.from_embeddings(*parts, top_k=1, ids=torch.arange(10, 16).flip(0))
    embeddings[1:] = 1
    assert len(RetrievalResults.from_embeddings(embeddings, labels, is_query, is_gallery, top_k=1)) == 2
