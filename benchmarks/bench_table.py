"""The check of a table, existence of files included, beside a literal walk through its rows.

Makes empty files in a temporary folder and a table whose rows are boxes in them, 5 rows a label. After both have found
the same faults in a small broken table, prints a JSON line each: reading the CSV file, checking the table, and the
walk through the first rows, its seconds scaled to all of them.

    python benchmarks/bench_table.py            # 1,000,000 rows, 200,000 files: half a minute
    python benchmarks/bench_table.py --quick    # seconds, to see that it runs
"""

import argparse
import json
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pandas import DataFrame, Series

from common import circumstances, peak_growth, spread, timed
from oml.datasets.table import inspect_table, read_table

FILES_PER_FOLDER = 1000
ROWS_PER_LABEL = 5

Faults = dict[str, list[int]]


def make(root: Path, n_rows: int, n_files: int) -> DataFrame:
    """Half of the labels are for training; the file of a row is drawn, as are the boxes."""
    paths = [f"folder_{i // FILES_PER_FOLDER:04}/image_{i % FILES_PER_FOLDER:04}.jpg" for i in range(n_files)]
    for path in paths:
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).touch()
    rng = np.random.default_rng(0)
    label = rng.permutation(n_rows) // ROWS_PER_LABEL
    is_validation = label % 2 == 1
    role = Series(True, index=range(n_rows), dtype=object).where(is_validation)
    corners = rng.integers(0, 500, size=(2, n_rows))
    return DataFrame(
        {
            "label": label,
            "path": np.array(paths, dtype=object)[rng.integers(0, n_files, n_rows)],
            "split": np.where(is_validation, "validation", "train"),
            "is_query": role,
            "is_gallery": role,
            "category": np.array([f"category {i}" for i in range(100)], dtype=object)[label % 100],
            "x_1": corners[0],
            "x_2": corners[0] + rng.integers(1, 100, n_rows),
            "y_1": corners[1],
            "y_2": corners[1] + rng.integers(1, 100, n_rows),
        }
    )


def spoil(table: DataFrame) -> DataFrame:
    table = table.astype({"split": object})
    rng = np.random.default_rng(1)
    faults = {"split": "test", "is_query": "yes", "category": None, "path": "none.jpg", "x_1": 9999, "y_1": -7}
    for column, value in faults.items():
        table.loc[rng.random(len(table)) < 0.1, column] = value
    table.loc[rng.random(len(table)) < 0.3, "is_gallery"] = False
    return table


def walk(table: DataFrame, root: Path) -> Faults:
    """The rules of the format, a row at a time; what a violation begins with -> rows."""
    found: Faults = defaultdict(list)
    galleries: dict[int, int] = defaultdict(int)
    may_be_found = []
    rows: list[Any] = list(table.itertuples(index=False))
    for row in rows:
        may_be_found.append(row.split != "train" and row.is_gallery != False)  # noqa: E712 (an empty cell is not)
        galleries[row.label] += may_be_found[-1]
    for i, row in enumerate(rows):
        if row.split not in ("train", "validation"):
            found["split must"].append(i)
        for name, role in (("is_query", row.is_query), ("is_gallery", row.is_gallery)):
            if row.split == "train" and not (role is None or role != role):
                found[f"{name} must be empty"].append(i)
            if row.split == "validation" and role not in (True, False):
                found[f"{name} must be true"].append(i)
        if row.split == "validation":
            if row.is_query == row.is_gallery == False:  # noqa: E712
                found["a validation row"].append(i)
            if row.is_query == True and galleries[row.label] == may_be_found[i]:  # noqa: E712
                found["every query"].append(i)
        if row.category is None or row.category != row.category:
            found["category must"].append(i)
        sides = (row.x_1, row.x_2, row.y_1, row.y_2)
        if any(side % 1 for side in sides):
            found["a box needs"].append(i)
        if row.x_1 >= row.x_2:
            found["x_1 must"].append(i)
        if row.y_1 >= row.y_2:
            found["y_1 must"].append(i)
        if min(sides) < 0:
            found["boxes must not"].append(i)
        if not (root / row.path).is_file():
            found["path must be a file"].append(i)
    return dict(found)


def agree(violations: list[str], faults: Faults) -> bool:
    """The same rules are broken, in the same first rows and as many."""
    told = {}
    for text in violations:
        match = re.search(r"rows? (\d+(?:, \d+)*)(?: \(and ([\d,]+) more\))?", text)
        start = next((start for start in faults if text.startswith(start)), text)
        if match:
            first = [int(row) for row in match[1].split(", ")]
            told[start] = (first, len(first) + int((match[2] or "0").replace(",", "")))
    return told == {start: (rows[:3], len(rows)) for start, rows in faults.items()}


def bench(n_rows: int, n_files: int, n_walked: int, rounds: int, about: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        table = make(root, n_rows, n_files)
        broken = spoil(table[:500].reset_index(drop=True))
        faults = walk(broken, root)
        if len(faults) < 8 or not agree(inspect_table(broken, root).violations, faults):
            sys.exit(f"The check and the walk disagree on a broken table: {faults}")
        table.to_csv(root / "df.csv", index=False)
        table = read_table(root / "df.csv")
        if inspect_table(table, root).violations or walk(table[:n_walked], root).keys() - {"every query"}:
            sys.exit("The table should be good.")
        contenders: dict[str, tuple[Callable[[], Any], int]] = {
            "oml.datasets.table.read_table": (lambda: read_table(root / "df.csv"), n_rows),
            "oml.datasets.table.inspect_table": (lambda: inspect_table(table, root), n_rows),
            "row by row": (lambda: walk(table[:n_walked], root), n_walked),
        }
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(rounds):
            for name, (run, n) in contenders.items():
                seconds[name].append(timed(run)[1] * n_rows / n)
        for name, (run, n) in contenders.items():
            result = {
                "benchmark": "table",
                "contender": name,
                "rows": n_rows,
                "files": n_files,
                "rows_measured": n,
                "rounds": rounds,
                "wall_seconds": spread(seconds[name]),
                "peak_growth_mib": peak_growth(run) if n == n_rows else None,
            }
            print(json.dumps(result | about), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=200_000)
    parser.add_argument("--walked", type=int, default=50_000, help="rows of the walk")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="20,000 rows, two rounds")
    args = parser.parse_args()
    if args.quick:
        args.rows, args.files, args.walked, args.rounds = 20_000, 4_000, 5_000, 2
    bench(args.rows, args.files, args.walked, args.rounds, circumstances(1, "pandas", "numpy"))


if __name__ == "__main__":
    main()
