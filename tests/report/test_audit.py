import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pandas import DataFrame
from PIL import Image
from torch import Tensor

from oml.datasets.table import TableError
from oml.report.audit import COLUMNS, Audit, audit_table
from oml.report.audit_page import audit_page

N_LABELS, N_EACH = 8, 6


@pytest.fixture
def embeddings() -> Tensor:
    """48 items of 8 labels that lie apart."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.nn.functional.normalize(torch.randn(N_LABELS, 16, generator=generator))
    return centres.repeat_interleave(N_EACH, 0) + 0.03 * torch.randn(N_LABELS * N_EACH, 16, generator=generator)


@pytest.fixture
def table() -> DataFrame:
    """As :func:`embeddings`; all items of a label are in one split."""
    label = np.repeat(range(N_LABELS), N_EACH)
    split = np.where(label < N_LABELS // 2, "train", "validation")
    return DataFrame({"label": label, "path": [f"{i}.png" for i in range(len(label))], "split": split})


def everything(table: DataFrame, embeddings: Tensor, **arguments: Any) -> Audit:
    return audit_table(table, np.arange(len(table)), embeddings, **arguments)


def planted(table: DataFrame, embeddings: Tensor) -> tuple[DataFrame, Tensor]:
    """Row 40 of label 6 carries 7; rows 1 and 47 are copies, so are 8, 10 and 11; labels 4 and 5 are mixed."""
    table, embeddings = table.copy(), embeddings.clone()
    table.loc[40, "label"] = 7
    embeddings[47] = embeddings[1]
    embeddings[10] = embeddings[11] = embeddings[8]
    embeddings[24:30] = embeddings[30:36] + 0.03 * torch.randn(6, 16, generator=torch.Generator().manual_seed(5))
    return table, embeddings


def test_nothing_is_found_where_all_is_right(table: DataFrame, embeddings: Tensor) -> None:
    audit = everything(table, embeddings)
    assert audit.findings.empty
    assert list(audit.findings.columns) == list(COLUMNS)
    assert audit.agreement == 1
    assert audit.chance == pytest.approx(5 / 47)


def test_what_is_planted_is_found(table: DataFrame, embeddings: Tensor) -> None:
    table, embeddings = planted(table, embeddings)
    table.index = table.index[::-1]  # an index says nothing: rows are counted from 0
    findings = everything(table, embeddings).findings
    assert {name: str(findings[name].dtype) for name in findings} == COLUMNS
    wrong = findings[findings["kind"] == "wrong_label"].set_index("row")
    # 47 lies, as a copy of 1, among items of label 0
    assert sorted(wrong.index[:2]) == [40, 47]
    assert wrong.loc[[40, 47], ["label", "suggested_label"]].to_numpy().tolist() == [[7, 6], [7, 0]]
    assert set(wrong["label"][2:]) <= {4, 5}  # one of these may lie among items of the other by chance
    for row, other, distance in wrong[["other_row", "distance"]].itertuples():
        same = table["label"].to_numpy() == wrong.loc[row, "suggested_label"]
        all_distances = (embeddings[same] - embeddings[row]).norm(dim=1)
        assert all_distances.argmin() == np.flatnonzero(same).tolist().index(other)
        assert distance == pytest.approx(all_distances.min().item(), abs=1e-6)
    assert wrong.loc[40, "path"] == "40.png"
    assert wrong.loc[[47], ["other_path", "other_split", "split"]].to_numpy().tolist() == [
        ["1.png", "train", "validation"]
    ]

    pairs = ["row", "other_row", "label", "other_label", "split", "other_split", "group", "distance", "score"]
    across = findings[findings["kind"] == "copy_across"]
    assert across[pairs].to_numpy().tolist() == [[1, 47, 0, 7, "train", "validation", 0, 0, 1]]
    within = findings[findings["kind"] == "copy_within"]
    assert sorted(zip(within["row"], within["other_row"], strict=True)) == [(8, 10), (8, 11), (10, 11)]
    assert set(within["group"]) == {0}

    mixed = findings[findings["kind"] == "mixed_labels"]
    assert mixed[["label", "other_label"]].to_numpy().tolist() == [[4, 5]]
    assert mixed["crossing"].iloc[0] > 20
    assert findings.loc[mixed.index, ["row", "path", "distance"]].isna().all(axis=None)


def test_embeddings_of_a_split_keep_the_rows_of_the_table(table: DataFrame, embeddings: Tensor) -> None:
    table, embeddings = planted(table, embeddings)
    rows = np.flatnonzero(table["split"] == "validation")
    audit = audit_table(table, rows, embeddings[rows])
    assert audit.items.index.tolist() == rows.tolist()
    wrong = audit.findings[audit.findings["kind"] == "wrong_label"]
    assert wrong["row"].tolist() == [40]
    assert not (audit.findings["kind"] == "copy_across").any()


def test_thresholds(table: DataFrame, embeddings: Tensor) -> None:
    table, embeddings = planted(table, embeddings)
    assert set(everything(table, embeddings, min_score=1.0).findings["kind"]) == {"copy_across", "copy_within"}
    audit = everything(table, embeddings, max_distance=100.0)
    within = audit.findings[audit.findings["kind"] == "copy_within"]
    assert set(within[["row", "other_row"]].to_numpy().ravel()) == set(range(48))
    assert (within["split"] == within["other_split"]).all()


def test_sequences(table: DataFrame, embeddings: Tensor) -> None:
    """Frames of a sequence are no copies, unless they are in two splits; items without a sequence may be."""
    table, embeddings = planted(table, embeddings)
    table["sequence"] = pd.Series([None] * 48, dtype=object)
    table.loc[[8, 10, 1, 47], "sequence"] = ["a", "a", "b", "b"]
    findings = everything(table, embeddings).findings
    copies = findings[findings["kind"].isin(["copy_across", "copy_within"])]
    assert copies[["row", "other_row"]].to_numpy().tolist() == [[1, 47], [8, 11], [10, 11]]


def test_one_item(table: DataFrame, embeddings: Tensor) -> None:
    audit = everything(table.iloc[:1], embeddings[:1])
    assert audit.findings.empty
    assert (audit.agreement, audit.chance) == (0, 0)


def test_tables_that_are_none(table: DataFrame, embeddings: Tensor) -> None:
    with pytest.raises(TableError, match=r"needs the columns \['path'\]; the table has \['label', 'split'\]"):
        everything(table.drop(columns="path"), embeddings)
    with pytest.raises(TableError, match="label must be a column of whole numbers.*not whole in rows 0, 1, 2"):
        everything(table.assign(label=0.5), embeddings)


# --------------------------------------------------------------------------------------------------------------- page


class Elements(HTMLParser):
    """Texts, and the attributes of elements by their names; the page has to be well nested."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: dict[str, list[dict[str, str | None]]] = {}
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.setdefault(tag, []).append(dict(attrs))
        if tag not in ("img", "meta"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def pictures(page: Elements) -> list[Image.Image]:
    sources = [image["src"] or "" for image in page.found.get("img", [])]
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    return [Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) for source in sources]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """0.png to 47.png, 300 x 200 pixels, grey in 48 shades."""
    for i in range(48):
        Image.new("L", (300, 200), 5 * i).save(tmp_path / f"{i}.png")
    return tmp_path


def page_of(audit: Audit, root: Path, n_shown: int = 50) -> tuple[Elements, list[str]]:
    html, missing = audit_page(audit, root, table="<df>.csv", embeddings="e.npy", n_shown=n_shown)
    return Elements(html), missing


def test_a_page_shows_the_findings(table: DataFrame, embeddings: Tensor, root: Path) -> None:
    table, embeddings = planted(table, embeddings)
    audit = everything(table, embeddings)
    page, missing = page_of(audit, root)
    assert not missing
    assert not {"script", "link", "iframe"} & set(page.found)
    assert "Row 40: label 7, rather 6" in "".join(page.texts)
    for text in (
        f"Likely wrong labels: {(audit.findings['kind'] == 'wrong_label').sum()}",
        "Copies across splits: 1",
        "Copies within a split: 1",
        "3 items",
    ):
        assert any(text in found for found in page.texts), text
    assert any(re.fullmatch(r"1\. Labels 4 of 6 items and 5 of 6: \d+ neighbours cross", text) for text in page.texts)
    shown = pictures(page)
    assert {image.size for image in shown} == {(128, 85)}
    # the first finding: item 40 or 47, then its neighbours as the search has ranked them
    shades = [round(np.asarray(image).mean() / 5) for image in shown]
    first = audit.findings["row"][0]
    assert shades[0] == first
    assert shades[1:6] == audit.neighbours.ids[first, :5].tolist()
    roles = [figure["class"] for figure in page.found["figure"]]
    assert roles[:2] == ["item", "suggested"]
    same = [shade for shade, role in zip(shades, roles, strict=True) if role == "same"]
    assert len(same) >= 4
    assert first not in same
    # the last finding: of label 4 and 5 those nearest to the other
    distances = torch.cdist(embeddings[24:30], embeddings[30:36])
    assert shades[-12:-6] == (24 + distances.amin(dim=1).argsort()).tolist()
    assert shades[-6:] == (30 + distances.amin(dim=0).argsort()).tolist()


def test_texts_are_escaped_and_what_cannot_be_shown_is_told(table: DataFrame, embeddings: Tensor, root: Path) -> None:
    table, embeddings = planted(table, embeddings)
    table["label_name"] = "<i>&"
    table.loc[40, "path"] = "<script>.png"
    table.loc[47, "path"] = None
    (root / "8.png").write_text("no image")
    page, missing = page_of(everything(table, embeddings), root)
    assert "script" not in page.found
    assert "i" not in page.found
    assert "<script>.png" in page.texts
    assert "Audit of <df>.csv" in page.texts
    assert any("label 7 (<i>&)" in text for text in page.texts)
    assert len(missing) == 3  # each once, however often it is shown
    assert page.texts.count("no image") >= 3
    assert any(
        text.startswith("3 images could not be shown. oml audit cannot read the image of row") for text in page.texts
    )


def test_pictures_are_cut_by_boxes(table: DataFrame, embeddings: Tensor, root: Path) -> None:
    table, embeddings = planted(table, embeddings)
    image = Image.new("L", (300, 200), 0)
    image.paste(255, (10, 20, 60, 170))
    image.save(root / "1.png")
    table[["x_1", "x_2", "y_1", "y_2"]] = np.nan
    table.loc[1, ["x_1", "x_2", "y_1", "y_2"]] = [10, 60, 20, 170]
    table.loc[47, ["x_1", "x_2", "y_1", "y_2"]] = [250, 350, 0, 100]  # sticks out: 50 x 100 are left
    table.loc[8, ["x_1", "x_2", "y_1", "y_2"]] = [300, 350, 0, 100]  # outside
    audit = everything(table, embeddings)
    audit = audit._replace(findings=audit.findings[audit.findings["kind"].isin(["copy_across", "copy_within"])])
    page, missing = page_of(audit, root)
    cut, sticking, *_ = pictures(page)
    assert cut.size == (43, 128)
    assert np.asarray(cut).min() > 240
    assert sticking.size == (50, 100)  # smaller ones stay as they are
    assert len(missing) == 1
    assert "Nothing of it lies inside" in missing[0]


def test_a_page_is_bounded(table: DataFrame, embeddings: Tensor, root: Path) -> None:
    table, embeddings = planted(table, embeddings)
    page, _ = page_of(everything(table, embeddings), root, n_shown=1)
    assert len(page.found["article"]) == 4
    assert "The 1 surest findings are shown; all are in findings.csv." in page.texts
    nothing, _ = page_of(everything(table, embeddings), root, n_shown=0)
    assert "article" not in nothing.found
    same = torch.zeros(48, 16)  # one group of all items
    page, _ = page_of(everything(table, same), root)
    assert len(pictures(page)) < 40
    assert any("more are in the table" in text for text in page.texts)


def test_poor_embeddings_are_told_of(table: DataFrame, embeddings: Tensor, root: Path) -> None:
    order = torch.randperm(48, generator=torch.Generator().manual_seed(0))
    page, _ = page_of(everything(table, embeddings[order]), root)
    assert any("not in" in text and "the order of the table" in text for text in page.texts)
    page, _ = page_of(everything(table, embeddings), root)
    assert not any("the order of the table" in text for text in page.texts)
