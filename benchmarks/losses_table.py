"""The tables of docs/training_defaults.md out of the results of bench_losses.py, put between their marks.

python benchmarks/losses_table.py benchmarks/results/losses_cpu_2026-11-26.jsonl docs/training_defaults.md
"""

import json
import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

Run = dict[str, Any]
COLUMNS = {"few": "Glyphs, 32 px", "objects": "objects, 64 px"}


def losses(runs: Sequence[Run]) -> str:
    """A row per loss, the best first."""
    by_rate: defaultdict[tuple[str, float], list[Run]] = defaultdict(list)
    for run in runs:
        by_rate[run["job"]["name"], run["job"]["criterion_lr_factor"]].append(run)
    best: dict[str, list[Run]] = {}
    for (name, _), of_rate in by_rate.items():
        best[name] = max(best.get(name, of_rate), of_rate, key=lambda runs: runs[0]["map@r"]["mean"])
    rows = []
    for name, of_name in best.items():
        cmc, maps = ([run[metric] for run in of_name] for metric in ("cmc@1", "map@r"))
        mean_map, low, high = (mean(each[key] for each in maps) for key in ("mean", "low", "high"))
        means = [each["mean"] for each in maps]
        cells = [
            f"`{name}`",
            f"{mean_map:.3f}",
            f"{low:.3f} to {high:.3f}",
            f"{min(means):.3f} to {max(means):.3f}" if len(means) > 1 else "",
            f"{mean(each['mean'] for each in cmc):.3f}",
            len(of_name),
            f"{mean(run['cpu_seconds'] for run in of_name):.1f}",
        ]
        rows.append((mean_map, cells))
    head = ["loss", "map@r", "95 % over labels", "over seeds", "cmc@1", "seeds", "CPU s"]
    return _markdown(head, [cells for _, cells in sorted(rows, key=lambda row: -row[0])])


def recipe(runs: Sequence[Run]) -> str:
    """A row per change of the recipe, beside the loss: map@r with its interval on each data set."""
    by_change: defaultdict[str, dict[str, Run]] = defaultdict(dict)
    plain = {run["job"]["data"]: _around(run) for run in runs if _is_plain(run)}
    for run in runs:
        data = run["job"]["data"]
        changes = {key: value for key, value in _around(run).items() if value != plain[data][key]}
        by_change[", ".join(f"{key}={value}" for key, value in changes.items()) or "as it is"][data] = run
    rows = []
    for change, of_data in sorted(by_change.items(), key=lambda item: item[0] != "as it is"):
        cells = []
        for data in COLUMNS:
            found = of_data.get(data)
            cells += ["", ""] if found is None else [_figure(found["map@r"]), f"{found['cpu_seconds']:.0f}"]
        rows.append([f"`{change}`" if change != "as it is" else change, *cells])
    return _markdown(["change", *(x for name in COLUMNS.values() for x in (f"map@r, {name}", "CPU s"))], rows)


def _around(run: Run) -> Run:
    job = run["job"]
    return {key: job[key] for key in job if key not in ("name", "criterion", "data", "n_unseen")} | {
        "temperature": job["criterion"]["args"].get("temperature", 0.1)
    }


def _is_plain(run: Run) -> bool:
    around = _around(run)
    return (
        around["temperature"] == 0.1
        and (around["lr"], around["steps"], around["n_labels"], around["warm_up"]) == (3e-3, 60, 16, 0.3)
        and around["augs"] == "none"
        and not (around["batch_norm"] or around["frozen_bn"])
    )


def _figure(interval: dict[str, float]) -> str:
    return f"{interval['mean']:.3f} ({interval['low']:.3f} to {interval['high']:.3f})"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def main(results: Path, page: Path) -> None:
    runs = [json.loads(line) for line in results.read_text().splitlines()]
    text = page.read_text()
    for group, make in (("losses", losses), ("objects", losses), ("many", losses), ("recipe", recipe)):
        content = make([run for run in runs if run["group"] == group and "error" not in run])
        text, n = re.subn(
            rf"(<!-- {group} -->\n).*?(\n<!-- end -->)",
            lambda found, new=content: found[1] + new + found[2],
            text,
            flags=re.DOTALL,
        )
        assert n == 1, f"{page} has no place for {group}"
    page.write_text(text)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
