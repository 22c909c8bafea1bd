import os
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas import DataFrame

from oml.datasets.splitting import assign_splits, number_labels, rebase_paths, table_from_folder
from oml.datasets.table import check_retrieval_dataframe_format, inspect_table


def grow(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def test_a_folder_for_each_label(tmp_path: Path) -> None:
    grow(tmp_path, "b/2.JPG", "b/10.webp", "a/1.Tiff", "a/x.bmp", "a/notes.txt", "a/._1.jpg", "loose.png", "df.csv")
    grow(tmp_path, ".git/1.jpg", "__MACOSX/a/1.jpg")
    (tmp_path / "empty").mkdir()
    (tmp_path / "linked").symlink_to("b")
    table, notes = table_from_folder(str(tmp_path))
    assert table.to_dict("list") == {
        "label": [0, 0, 1, 1, 2, 2],
        "path": ["a/1.Tiff", "a/x.bmp", "b/10.webp", "b/2.JPG", "linked/10.webp", "linked/2.JPG"],
        "label_name": ["a", "a", "b", "b", "linked", "linked"],
    }
    assert notes == [
        "3 files are no images by their names; they were left out.",
        f"1 images lie in '{tmp_path}' itself, so have no label; they were left out.",
        "1 folders hold no images, such as ['empty'].",
    ]


def test_two_levels_are_category_and_label(tmp_path: Path) -> None:
    grow(tmp_path, "cats/tom/1.jpg", "cats/kit/1.jpg", "dogs/tom/1.jpg", "dogs/tom/2.jpg")
    table, notes = table_from_folder(tmp_path)
    assert table.to_dict("list") == {
        "label": [0, 1, 2, 2],
        "path": ["cats/kit/1.jpg", "cats/tom/1.jpg", "dogs/tom/1.jpg", "dogs/tom/2.jpg"],
        "label_name": ["kit", "tom", "tom", "tom"],
        "category": ["cats", "cats", "dogs", "dogs"],
    }
    assert notes == ["1 label folders are named like one elsewhere: each is a label of its own."]


@pytest.mark.parametrize(
    ("files", "text"),
    [
        (["a/1.jpg", "b/c/1.jpg"], r"images in 'a', and images in 'b/c'"),
        (["a/b/c/1.jpg"], "images in 'a/b/c'"),
        (["1.jpg", "a/notes.txt"], "found none, of the suffixes"),
        ([], "found none"),
    ],
)
def test_other_trees_are_errors(tmp_path: Path, files: list[str], text: str) -> None:
    with pytest.raises(ValueError, match=f"LABEL/image or all as CATEGORY/LABEL/image .*{text}"):
        table_from_folder(grow(tmp_path, *files))


def test_a_circle_of_folders_is_left(tmp_path: Path) -> None:
    grow(tmp_path, "a/1.jpg")
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="images in 'a', and images in 'a/again/a'"):
        table_from_folder(tmp_path)


def test_folders_that_are_none_and_names_that_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="needs a folder, there is none"):
        table_from_folder(tmp_path / "none")
    grow(tmp_path, "a/1.jpg")
    Path(os.fsdecode(os.fsencode(tmp_path / "a") + b"/\xff.jpg")).touch()
    with pytest.raises(ValueError, match="in UTF-8; 1 are not"):
        table_from_folder(tmp_path)


def test_labels_are_numbered() -> None:
    for labels in ([3, 3, 1], [3.0, 3.0, 1.0], pd.array([3, 3, 1], dtype="Int64"), np.array([3, 3, 1], dtype=np.int8)):
        numbered = number_labels(DataFrame({"label": labels}))
        assert numbered.label.dtype == np.int64
        assert numbered.to_dict("list") == {"label": [3, 3, 1]}
    assert number_labels(DataFrame({"label": ["b", 10, "a"]})).to_dict("list") == {
        "label": [2, 0, 1],
        "label_name": ["b", "10", "a"],
    }
    with pytest.raises(ValueError, match="needs a label; it is empty in row 1"):
        number_labels(DataFrame({"label": ["b", None]}))
    with pytest.raises(ValueError, match="column label_name"):
        number_labels(DataFrame({"label": ["b"], "label_name": ["c"]}))


def test_columns_are_carried_along_and_in_order() -> None:
    items = DataFrame({"weight": [1, 2], "path": ["a", "b"], "category": ["x", "y"], "label": ["l", "l"], "x_1": 0})
    items["split"] = "none"
    table, notes = assign_splits(items, 1.0)
    ours = ["label", "path", "split", "is_query", "is_gallery", "category", "x_1"]
    assert list(table.columns) == [*ours, "weight", "label_name"]
    assert notes[0] == "the columns ['split'] of the table were replaced."
    assert notes[1] == "validation has 1 of 1 labels, 100.0% of them."
    assert "split" in items.columns


ITEMS = st.lists(st.tuples(st.integers(0, 5), st.sampled_from([None, None, "s", "t"])), min_size=1, max_size=14)


@settings(max_examples=150)
@given(
    items=ITEMS,
    share=st.sampled_from([0.0, 0.1, 0.5, 0.7, 1.0]),
    seed=st.integers(0, 3),
    is_one_vs_rest=st.booleans(),
    n_queries=st.integers(1, 3),
    keep=st.booleans(),
)
def test_every_split_keeps_its_promises(
    items: list[tuple[int, str | None]], share: float, seed: int, is_one_vs_rest: bool, n_queries: int, keep: bool
) -> None:
    given_ = DataFrame(
        {
            "label": [label for label, _ in items],
            "path": __file__,
            "sequence": [sequence for _, sequence in items],
            "category": [f"c{label % 3}" for label, _ in items],
            "number": range(len(items)),
        }
    )
    protocol = "one-vs-rest" if is_one_vs_rest else "query-gallery"
    table, notes = assign_splits(given_, share, seed, protocol, n_queries, keep)
    pd.testing.assert_frame_equal(table, assign_splits(given_, share, seed, protocol, n_queries, keep).table)
    pd.testing.assert_frame_equal(table[given_.columns], given_)  # the same items in the same order
    assert inspect_table(table).violations == []  # among them: every query has something to find

    labels = set(given_.label)
    train, validation = (set(table.label[table.split == split]) for split in ("train", "validation"))
    assert not train & validation
    # how many rows or sequences a label's items are from
    ways = {label: part.sequence.nunique() + part.sequence.isna().sum() for label, part in given_.groupby("label")}
    findable = {label for label, n in ways.items() if n > 1}
    low, high = share > 0, max(len(labels) - (share < 1), share > 0)
    if not keep:
        assert validation <= findable
        assert len(validation) == min(max(int(share * len(labels) + 0.5), low), high, len(findable))
    else:
        parts = [{label for label in labels if label % 3 == c} for c in range(3)]
        assert all(part <= train or part <= validation for part in parts)
        choices = [set().union(*some) for n in range(4) for some in combinations([p for p in parts if p & findable], n)]
        allowed = [len(choice) for choice in choices if low <= len(choice) <= high] or [len(c) for c in choices]
        assert abs(len(validation) - share * len(labels)) == pytest.approx(
            min(abs(n - share * len(labels)) for n in allowed)
        )
    assert (
        f"validation has {len(validation)} of {len(labels)} labels" in notes[-1] + notes[-2 if len(notes) > 1 else -1]
    )
    assert any("nothing to be found by" in note for note in notes) == (findable != labels)

    for label, rows in table[table.split == "validation"].groupby("label"):
        n = int(rows.is_query.sum())
        assert (n > 0) == (label in findable)
        if is_one_vs_rest:
            assert rows.is_gallery.all()
            assert n in (0, len(rows))
        else:
            assert (rows.is_query != rows.is_gallery).all()
            assert n <= min(n_queries, len(rows) - 1)
            if rows.sequence.isna().all() and label in findable:
                assert n == min(n_queries, len(rows) - 1)


def test_seeds_differ_and_every_item_may_be_a_query() -> None:
    items = DataFrame({"label": np.repeat(range(20), 4), "path": "a"})
    tables = [assign_splits(items, 0.5, seed, "query-gallery").table for seed in range(40)]
    assert sum(table.is_query == True for table in tables).min() > 0  # noqa: E712
    assert len({tuple(table.split) for table in tables}) == 40
    with_categories = items.assign(category=items.label // 5)
    sides = {tuple(assign_splits(with_categories, 0.5, seed, keep_categories=True).table.split) for seed in range(40)}
    assert len(sides) == 6  # 2 of 4 categories


def test_what_cannot_be_split() -> None:
    items = DataFrame({"label": [0, 0, 1], "path": list("abc"), "category": ["x", "y", "x"]})
    for changes, text in (
        ({"validation_share": 1.5}, "validation_share from 0 to 1, got 1.5"),
        ({"n_queries": 0}, "n_queries of 1 or more"),
        ({"keep_categories": True}, r"one category each; not so in rows 0, 1 with \[\[0, 'x'\], \[0, 'y'\]\]"),
    ):
        with pytest.raises(ValueError, match=text):
            assign_splits(items, **changes)
    with pytest.raises(ValueError, match="one for every row; it is empty in row 2"):
        assign_splits(items.assign(category=["x", "x", None]), keep_categories=True)
    with pytest.raises(ValueError, match=r"needs the columns \['category'\]"):
        assign_splits(items[["label", "path"]], keep_categories=True)
    with pytest.raises(ValueError, match=r"needs the columns \['label'\]"):
        assign_splits(items[["path"]])
    with pytest.raises(ValueError, match="at least one row"):
        assign_splits(items.iloc[:0])
    with pytest.raises(ValueError, match="knows the protocols"):
        assign_splits.__wrapped__(items, protocol="all")


def test_paths_are_rebased(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(grow(tmp_path, "data/photos/a/1.jpg"))
    (tmp_path / "link").symlink_to("data")
    table = DataFrame({"path": ["a/1.jpg"], "split": "train", "label": 0, "is_query": None, "is_gallery": None})
    for new_root, path in (
        ("data/photos", "a/1.jpg"),
        ("data", "photos/a/1.jpg"),
        (tmp_path, "data/photos/a/1.jpg"),
        ("elsewhere", f"{tmp_path}/data/photos/a/1.jpg"),
        ("link", f"{tmp_path}/data/photos/a/1.jpg"),
    ):
        rebased = rebase_paths(table, "data/photos", new_root)
        assert rebased.path.tolist() == [path]
        check_retrieval_dataframe_format(rebased, new_root, verbose=False)
    absolute = table.assign(path=f"{tmp_path}/data/photos/a/1.jpg")
    pd.testing.assert_frame_equal(rebase_paths(absolute, "data", "data"), absolute)
