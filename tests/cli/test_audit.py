from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pandas import DataFrame
from PIL import Image

Oml = Callable[..., tuple[int, str, str]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Table, pictures and embeddings of 40 items of 8 labels; row 12, of label 2, carries 7."""
    rng = np.random.default_rng(0)
    label = np.repeat(range(8), 5)
    embeddings = np.eye(8, dtype=np.float32)[label] + 0.05 * rng.standard_normal((40, 8), dtype=np.float32)
    np.save(tmp_path / "e.npy", embeddings)
    np.save(tmp_path / "validation.npy", embeddings[20:])
    for i in range(40):
        Image.new("RGB", (8, 6), (i, i, i)).save(tmp_path / f"{i}.png")
    label[12] = 7
    split = np.where(np.arange(40) < 20, "train", "validation")
    DataFrame({"label": label, "path": [f"{i}.png" for i in range(40)], "split": split}).to_csv(
        tmp_path / "df.csv", index=False
    )
    return tmp_path


def test_a_wrong_label_is_found(root: Path, oml: Oml) -> None:
    out = root / "new" / "out"
    code, text, _ = oml("audit", root / "df.csv", "--embeddings", root / "e.npy", "--out", out)
    assert code == 0
    lines = [line.strip() for line in text.splitlines()]
    assert "40 items of 8 labels." in lines
    assert "1 likely wrong labels" in lines
    assert lines[-2:] == [str(out / "findings.csv"), str(out / "audit.html")]
    findings = pd.read_csv(out / "findings.csv")
    assert findings[["kind", "row", "label", "suggested_label"]].to_numpy().tolist() == [["wrong_label", 12, 7, 2]]
    assert "<img" in (out / "audit.html").read_text(encoding="utf-8")
    assert sorted(path.name for path in out.iterdir()) == ["audit.html", "findings.csv"]


def test_nothing_is_written_over_unasked(root: Path, oml: Oml, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("audit", root / "df.csv", "--embeddings", root / "e.npy", "--show", "0")
    out = root / "out"
    out.mkdir()
    (out / "audit.html").write_text("mine")
    code, _, err = oml(*arguments, "--out", out)
    assert code == 2
    assert f"there is audit.html in '{out}'; give another --out or --overwrite" in err
    assert [path.read_text() for path in out.iterdir()] == ["mine"]
    assert oml(*arguments, "--out", out, "--overwrite")[0] == 0
    assert (out / "audit.html").read_text() != "mine"

    monkeypatch.chdir(root)
    assert [oml(*arguments)[0], oml(*arguments)[0]] == [0, 0]
    runs = list((root / "runs").iterdir())
    assert len(runs) == 2
    assert all(run.name.startswith("audit-") and (run / "findings.csv").is_file() for run in runs)


def test_options_reach_the_audit(root: Path, oml: Oml) -> None:
    (root / "tables").mkdir()
    table = pd.read_csv(root / "df.csv")
    table.to_csv(root / "tables" / "df.csv", index=False, sep=";")
    arguments = (
        "audit",
        root / "tables" / "df.csv",
        "--sep",
        ";",
        "--root",
        root,
        "--out",
        root / "out",
        "--overwrite",
    )
    code, text, _ = oml(*arguments, "--embeddings", root / "e.npy", "--min-score", "1", "--max-distance", "9")
    assert code == 0
    kinds = set(pd.read_csv(root / "out" / "findings.csv")["kind"])
    assert kinds == {"copy_across", "copy_within"}
    assert "could not be shown" not in text
    code, text, _ = oml(*arguments, "--embeddings", root / "validation.npy", "--split", "validation")
    assert code == 0
    assert "20 items of 4 labels." in text
    (root / "12.png").unlink()
    code, text, _ = oml(*arguments, "--embeddings", root / "e.npy", "--neighbours", "3")
    assert code == 0
    assert "1 images could not be shown" in text
    assert "3 neighbours of each" in " ".join((root / "out" / "audit.html").read_text().split())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["none.csv", "--embeddings", "e.npy"], "not found at 'none.csv'"),
        (["df.csv", "--embeddings", "none.npy"], "there is no file 'none.npy'"),
        (
            ["df.csv", "--embeddings", "validation.npy"],
            "20 embeddings fit its train rows and its validation rows",
        ),
        (["df.csv", "--embeddings", "short.npy"], "40 for the whole table, 20 for its train rows"),
        (["df.csv", "--embeddings", "nan.npy"], "those of the table's row 3."),
        (["df.csv", "--embeddings", "huge.npy"], "needs finite queries below"),
        (["bare.csv", "--embeddings", "e.npy"], "needs the columns ['path']"),
        (["df.csv", "--embeddings", "e.npy", "--root", "none"], "there is no folder 'none'"),
        (["df.csv", "--embeddings", "e.npy", "--out", "df.csv"], "cannot write to 'df.csv'"),
        (["df.csv"], "Missing option '--embeddings'"),
    ],
)
def test_what_is_not_understood_or_read(
    arguments: list[str], text: str, root: Path, oml: Oml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    embeddings = np.load("e.npy")
    np.save("short.npy", embeddings[:7])
    embeddings[3, 3] = np.nan
    np.save("nan.npy", embeddings)
    embeddings[3, 3] = 1e30
    np.save("huge.npy", embeddings)
    pd.read_csv("df.csv").drop(columns="path").to_csv("bare.csv", index=False)
    before = sorted(root.iterdir())
    code, out, err = oml("audit", *arguments)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert text in err
    assert sorted(root.iterdir()) == before
