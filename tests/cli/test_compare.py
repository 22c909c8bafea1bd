import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from oml.metrics.comparison import compare_results
from oml.retrieval import RetrievalResults

Oml = Callable[..., tuple[int, str, str]]

N, N_TRAIN = 120, 40  # labels repeat after 40, so that those of the first N rows of all fit too


def results(noise: float, n: int = N) -> RetrievalResults:
    generator = torch.Generator().manual_seed(0)
    labels, everyone = torch.arange(n) % 40 + 100, torch.ones(n, dtype=torch.bool)
    centres = torch.randn(40, 6, generator=generator)
    generator.manual_seed(int(10 * noise))
    embeddings = centres[labels - 100] + noise * torch.randn(n, 6, generator=generator)
    return RetrievalResults.from_embeddings(embeddings, labels, everyone, everyone, top_k=4)


def items(n: int = N) -> pd.DataFrame:
    return pd.DataFrame({"path": [f"images/{i}.png" for i in range(n)], "label": np.arange(n) % 40 + 100})


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folders old and new, one beside the other, in the working directory."""
    monkeypatch.chdir(tmp_path)
    for name, noise in (("old", 1.0), ("new", 0.6)):
        results(noise).save(f"{name}/results.safetensors")
    return tmp_path


@pytest.fixture
def images(runs: Path) -> Path:
    (runs / "data" / "images").mkdir(parents=True)
    for i in range(N):
        Image.new("RGB", (8, 8), (2 * i, 100, 100)).save(runs / "data" / "images" / f"{i}.png")
    train = items(N_TRAIN).assign(split="train", path="images/0.png")
    pd.concat([train, items().assign(split="validation")]).to_csv(runs / "data" / "df.csv", index=False)
    return runs / "data"


def test_what_a_user_sees(runs: Path, oml: Oml) -> None:
    code, out, err = oml("compare", "old", "new")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[:3] == ["A: old", "B: new", "120 queries of 40 labels"]
    expected = compare_results(results(1.0), results(0.6))
    assert list(expected.metrics) == ["cmc@1", "cmc@4", "precision@4", "map@4"]
    for name, metric in expected.metrics.items():
        test = metric.test
        assert next(line for line in lines if line.strip().startswith(name)).split() == [
            name, f"{metric.a.mean():.4f}", f"{metric.b.mean():.4f}", f"{test.difference:+.4f}",
            f"{test.low:+.4f}", "to", f"{test.high:+.4f}", f"{test.p_value:.4f}",
            str(int((metric.change > 0).sum())), str(int((metric.change < 0).sum())),
        ]  # fmt: skip
    better, worse = expected.most_changed(5)
    assert len(better) == 5
    assert len(worse) > 0
    listed = [line.split()[:2] for line in lines if line.count(" to ") == 4]
    assert listed == [[str(i), str(i % 40 + 100)] for i in [*better.tolist(), *worse.tolist()]]
    assert "path" not in out


def test_json_says_the_same(runs: Path, oml: Oml) -> None:
    code, out, err = oml(
        "compare", "new/results.safetensors", "old", "--json", "--metric", "map", "--top-k", "3", "--show", "1"
    )
    assert (code, err) == (0, "")
    found = json.loads(out)
    expected = compare_results(results(0.6), results(1.0), metrics=["map@3"])
    metric = expected.metrics["map@3"]
    assert metric.test.difference < 0
    assert found["metrics"] == {
        "map@3": {
            "a": pytest.approx(metric.a.mean().item()), "b": pytest.approx(metric.b.mean().item()),
            "difference": metric.test.difference, "low": metric.test.low, "high": metric.test.high,
            "p_value": metric.test.p_value,
            "better": int((metric.change > 0).sum()), "worse": int((metric.change < 0).sum()),
        }
    }  # fmt: skip
    assert (found["a"], found["b"]) == ("new/results.safetensors", "old")
    assert (found["queries"], found["labels"]) == (120, 40)
    row = int(expected.most_changed(1)[1])
    assert found["worse"] == [
        {"item": row, "label": row % 40 + 100, "map@3": [float(metric.a[row]), float(metric.b[row])]}
    ]
    assert len(found["better"]) == 1


def test_runs_that_do_not_differ_and_few_labels(runs: Path, oml: Oml) -> None:
    code, out, _ = oml("compare", "old", "old")
    assert code == 0
    assert "No query has changed." in out
    assert "intervals are too narrow" not in out
    embeddings, everyone = torch.arange(6.0)[:, None], torch.ones(6, dtype=torch.bool)
    few = RetrievalResults.from_embeddings(embeddings, torch.arange(6) // 2, everyone, everyone, top_k=1)
    few.save("few.safetensors")
    assert "With 3 labels the intervals are too narrow" in oml("compare", "few.safetensors", "few.safetensors")[1]


@pytest.mark.parametrize("where", ["items", "table", "whole table", "root"])
def test_paths_come_from_the_run_or_a_table(where: str, images: Path, oml: Oml) -> None:
    options: list[str | Path] = []
    if where == "items":
        items().assign(path=[f"../data/images/{i}.png" for i in range(N)]).to_csv("new/items.csv", index=False)
    elif where == "table":
        options = ["--table", "data/df.csv"]
    elif where == "whole table":  # of a data set of all rows, whatever their split
        items().assign(split=["train", "validation"] * (N // 2)).to_csv("elsewhere.tsv", index=False, sep=";")
        options = ["--table", "elsewhere.tsv", "--root", "data", "--sep", ";"]
    else:
        items().to_csv("old/items.csv", index=False)
        options = ["--root", "data"]
    code, out, err = oml(
        "compare", "old", "new", *options, "--show", "1", "--csv", "out/changes.csv", "--figure", "out/changes.png"
    )
    assert (code, err) == (0, "")
    expected = compare_results(results(1.0), results(0.6))
    table = pd.read_csv("out/changes.csv")
    assert [Path(path).resolve() for path in table["path"]] == [images / "images" / f"{i}.png" for i in range(N)]
    assert table["map@4_change"].to_numpy() == pytest.approx(expected.metrics["map@4"].change.numpy(), abs=1e-6)
    cells = [cell for line in Path("out/changes.csv").read_text().splitlines()[1:] for cell in line.split(",")[3:]]
    assert max(len(cell.removeprefix("-")) for cell in cells) == len("0.333333")
    assert table["label"].tolist() == expected.query_labels.tolist()
    gained = int(expected.most_changed(1)[0])
    assert any(line.split()[:1] == [str(gained)] and line.split()[-1] == f"{gained}.png" for line in out.splitlines())
    assert "every query: out/changes.csv\npicture: out/changes.png\n" in out
    with Image.open("out/changes.png") as picture:
        colours = {colour for _, colour in picture.getcolors(2**20) or []}
    assert (2 * gained, 100, 100) in colours


def test_boxes_are_cut_out(images: Path, oml: Oml) -> None:
    for i in range(N):  # only the corner in the box is red
        image = Image.new("RGB", (8, 8), (0, 90, 0))
        image.paste((200, 0, 10), (0, 0, 4, 4))
        image.save(images / "images" / f"{i}.png")
    items().assign(x_1=0, y_1=0, x_2=4, y_2=4).to_csv("data/boxes.csv", index=False)
    options = ["--table", "data/boxes.csv", "--show", "1", "--figure"]
    assert oml("compare", "old", "new", *options, "boxes.png")[0] == 0
    items().to_csv("data/boxes.csv", index=False)
    assert oml("compare", "old", "new", *options, "whole.png")[0] == 0
    for name, has_rest in (("boxes.png", False), ("whole.png", True)):
        with Image.open(name) as picture:
            colours = {colour for _, colour in picture.getcolors(2**20) or []}
        assert (200, 0, 10) in colours
        assert ((0, 90, 0) in colours) == has_rest


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["nowhere", "new"], 2, "there is no folder or file 'nowhere'."),
        (["old", "data"], 2, "the folder 'data' has no results.safetensors. `oml demo` leaves one, and so does"),
        (
            ["old", "."],
            2,
            "the folder '.' has no results.safetensors. Name one of those in it that have: new, old, other.",
        ),
        (["old", "data/df.csv"], 2, "needs a file that save() wrote, not 'data/df.csv'"),
        (["old", "new", "-k", "9"], 1, "can cut at 1 to 4, got cmc@9, precision@9, map@9: A holds the 4 nearest"),
        (["old", "new", "-m", "map@5"], 1, "can cut at 1 to 4, got map@5"),
        (["old", "new", "-m", "accuracy"], 1, "knows cmc, precision, map, recall, ndcg, mrr, or such as map@10"),
        (["old", "fewer"], 1, "20 of 120 queries of A are not in the other, such as items [100, 101, 102]."),
        (["old", "new", "--figure", "x.png"], 2, "--figure needs the paths of the images: name the table"),
        (["old", "new", "--figure", "x.svg"], 2, "cannot write 'x.svg': its name must end in .png or .jpg"),
        (["old", "new", "--csv", "x.png"], 2, "cannot write 'x.png': its name must end in .csv"),
        (["old", "new", "--csv", "data/df.csv"], 2, "there is a file 'data/df.csv' already"),
        (["old", "new", "--table", "data/no.csv"], 2, "not found at 'data/no.csv'"),
        (
            ["old", "new", "--table", "few.csv"],
            2,
            "neither its validation rows nor all rows are 120 or more with the labels",
        ),
        (["old", "new", "--table", "other.csv"], 2, "such as 100 of item 0."),
        (["old", "new", "--table", "bare.csv"], 2, "the table 'bare.csv' lacks the columns label."),
        (
            ["old", "other"],
            2,
            "as their items.csv say: item 2 is old/images/2.png in one and other/images/3.png in the",
        ),
    ],
)
def test_what_cannot_be_compared(arguments: list[str], code: int, text: str, images: Path, oml: Oml) -> None:
    results(1.0, n=100).save("fewer/results.safetensors")
    results(1.0).save("other/results.safetensors")
    if "other" in arguments:
        items().to_csv("old/items.csv", index=False)
        items().assign(path=[f"images/{i + (i > 1)}.png" for i in range(N)]).to_csv("other/items.csv", index=False)
    items(119).to_csv("few.csv", index=False)
    items().assign(label=range(N)).to_csv("other.csv", index=False)
    items()[["path"]].to_csv("bare.csv", index=False)
    before = {path: path.read_bytes() for path in images.parent.rglob("*") if path.is_file()}
    found, out, err = oml("compare", *arguments)
    assert (found, out) == (code, "")
    assert len(err.splitlines()) == 1
    assert text in err
    assert {path: path.read_bytes() for path in images.parent.rglob("*") if path.is_file()} == before


def test_a_table_overrules_those_of_the_runs(images: Path, oml: Oml) -> None:
    items().to_csv("old/items.csv", index=False)
    items().assign(path="x.png").to_csv("new/items.csv", index=False)
    assert oml("compare", "old", "new")[0] == 2
    code, out, _ = oml("compare", "old", "new", "--table", "data/df.csv")
    assert code == 0
    assert "paths below" in out


def test_files_are_kept_unless_asked(runs: Path, oml: Oml) -> None:
    assert oml("compare", "old", "new", "--csv", "c.csv", "-m", "map")[0] == 0
    first = Path("c.csv").read_bytes()
    assert oml("compare", "old", "new", "--csv", "c.csv", "-m", "cmc")[0] == 2
    assert Path("c.csv").read_bytes() == first
    assert oml("compare", "old", "new", "--csv", "c.csv", "-m", "cmc", "--overwrite")[0] == 0
    assert Path("c.csv").read_bytes() != first
    code, out, err = oml("compare", "old", "new", "--csv", "c.csv/d.csv", "--json")
    assert code == 2
    assert "cannot write to 'c.csv/d.csv'" in err
    code, out, err = oml("compare", "old", "new", "--csv", "d.csv", "--json")
    assert code == 0
    assert err == "every query: d.csv\n"
    json.loads(out)


def test_a_picture_of_nothing_is_not_made(images: Path, oml: Oml) -> None:
    code, _, err = oml("compare", "old", "old", "--table", "data/df.csv", "--figure", "x.png")
    assert (code, err) == (0, "No query to draw: x.png was not made.\n")
    assert not Path("x.png").exists()
