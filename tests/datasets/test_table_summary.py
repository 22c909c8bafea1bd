import numpy as np
from pandas import DataFrame

from oml.datasets.table_summary import ItemCounts, summarise_table


def test_the_counts_of_a_table() -> None:
    table = DataFrame(
        {
            "label": [0] * 5 + [1] * 4 + [2, 3, 3],
            "path": [f"{i // 2}.jpg" for i in range(12)],
            "split": ["train"] * 9 + ["validation"] * 3,
            "is_query": [None] * 9 + [True, True, False],
            "is_gallery": [None] * 9 + [1, 1, 1],
            "category": list("aaaaabbbbbcc"),
            "x_1": [0.0, 1.0, *[np.nan] * 10],
            "x_2": [9.0, 9.0, *[np.nan] * 10],
            "y_1": [0.0, 1.0, *[np.nan] * 10],
            "y_2": [9.0, *[np.nan] * 11],
        }
    )
    summary = summarise_table(table)
    assert summary.whole == ItemCounts(12, 6, 4, 3, 2, 3, 1, {(1, 1): 1, (2, 2): 1, (3, 4): 1, (5, 8): 1})
    assert summary.train == ItemCounts(9, 5, 2, 2, 0, 0, 1, {(3, 4): 1, (5, 8): 1})
    assert summary.validation == ItemCounts(3, 2, 2, 2, 2, 3, 0, {(1, 1): 1, (2, 2): 1})


def test_the_ranges_cover_every_number_once() -> None:
    for n in range(1, 70):
        [(low, high)] = summarise_table(DataFrame({"label": [7] * n})).whole.items_per_label
        assert low <= n <= high < 2 * low


def test_broken_tables_are_counted_as_far_as_it_goes() -> None:
    summary = summarise_table(DataFrame({"path": ["a", "a"], "split": ["train", "oops"]}))
    assert summary.whole == ItemCounts(2, 1, None, None, None, None, 0, {})
    assert summary.train.items == 1
    assert summarise_table(DataFrame()).whole == ItemCounts(0, None, None, None, None, None, 0, {})
    assert summarise_table(DataFrame({"label": [1, 1]})).train.items == 0
