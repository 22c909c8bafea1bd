"""The page of an audit: findings with their pictures, in one file that needs nothing else."""

import base64
import io
import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from pandas import DataFrame
from PIL import Image

import oml
from oml.const import BBOXES_COLUMNS, LABELS_COLUMN, PATHS_COLUMN, SPLIT_COLUMN
from oml.datasets._table_rules import is_path
from oml.datasets.image_files import ImageFiles, UnreadableImageError
from oml.report.audit import COPY_ACROSS, COPY_WITHIN, MIXED_LABELS, WRONG_LABEL, Audit
from oml.utils.images.images import ShrinkingReader

SIDE = 128  # pixels of the longer side of a picture
N_NEIGHBOURS, N_OWN, N_COPIES, N_MIXED = 5, 2, 8, 8  # pictures of a finding
_MOST_COMPARED = 1000  # items of a label among which the nearest ones are looked for


class Picture(NamedTuple):
    """A thumbnail, and what stands below it."""

    source: str
    """a data URI; empty if the image cannot be shown"""
    lines: list[str]
    role: str = ""
    """CSS class of the frame"""


class Shown(NamedTuple):
    """A finding on the page: rows of pictures, each with a caption."""

    title: str
    score: float
    strips: list[tuple[str, list[Picture]]]


class Page(NamedTuple):
    """HTML, and why images of it could not be shown."""

    html: str
    missing: list[str]


def audit_page(
    audit: Audit,
    root: Path | str,
    *,
    table: str,
    embeddings: str,
    n_shown: int = 50,
    on_progress: Callable[[int, int], None] | None = None,
) -> Page:
    """One page of HTML without scripts: counts, and the surest findings of each kind with their pictures.

    A picture has at most 128 x 128 pixels and takes some 4 KB. In the place of an image that cannot be read, the page
    says so.

    Args:
        audit: What to show.
        root: The folder that relative paths refer to.
        table, embeddings: What to call them.
        n_shown: Findings of each kind at most, of copies groups.
        on_progress: Called with how many of how many kinds of findings are done.
    """
    pictures = _Pictures(audit.items, Path(root))
    sections = {}
    kinds = {WRONG_LABEL: _wrong, COPY_ACROSS: _copies, COPY_WITHIN: _copies, MIXED_LABELS: _mixed}
    for done, (kind, show) in enumerate(kinds.items(), start=1):
        part = audit.findings[audit.findings["kind"] == kind]
        count = part["group"].nunique() if show is _copies else len(part)
        sections[kind] = {"count": count, "shown": list(islice(show(audit, part, pictures), n_shown))}
        if on_progress is not None:
            on_progress(done, len(kinds))
    environment = Environment(
        loader=PackageLoader("oml.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("audit.html").render(
        sections=sections,
        table=table,
        embeddings=embeddings,
        n_items=len(audit.items),
        n_labels=audit.items[LABELS_COLUMN].nunique(),
        n_neighbours=audit.neighbours.ids.shape[1],
        agreement=audit.agreement,
        chance=audit.chance,
        missing=pictures.missing,
        version=oml.__version__,
    )
    return Page(html, pictures.missing)


def _wrong(audit: Audit, part: DataFrame, pictures: "_Pictures") -> Iterator[Shown]:
    labels = audit.items[LABELS_COLUMN].to_numpy(dtype=np.int64)
    for row, label, suggested, score in part[["row", "label", "suggested_label", "score"]].itertuples(index=False):
        item = pictures.places[row]
        roles = {label: "same", suggested: "suggested"}
        near = zip(audit.neighbours.ids[item].tolist(), audit.neighbours.distances[item].tolist(), strict=True)
        own = np.flatnonzero(labels == label)
        own = own[own != item][:_MOST_COMPARED]
        strips = [
            ("the item", [pictures(item, "item")]),
            (
                "its nearest neighbours",
                [pictures(i, roles.get(int(labels[i]), ""), d) for i, d in islice(near, N_NEIGHBOURS) if i >= 0],
            ),
            (f"others of label {pictures.label(label)}", _nearest_own(audit, item, own, pictures)),
        ]
        title = f"Row {row}: label {pictures.label(label)}, rather {pictures.label(suggested)}"
        yield Shown(title, score, strips)


def _copies(audit: Audit, part: DataFrame, pictures: "_Pictures") -> Iterator[Shown]:
    for _, group in part.groupby("group", sort=True):
        rows = pd.unique(group[["row", "other_row"]].to_numpy(dtype=np.int64).ravel())
        items = [pictures.places[row] for row in rows]
        n_labels = audit.items[LABELS_COLUMN].iloc[items].nunique()
        title = f"{len(items)} items of {n_labels} labels" if n_labels > 1 else f"{len(items)} items"
        shown = [pictures(item) for item in items[:N_COPIES]]
        ends = dict.fromkeys(f"{distance:.3g}" for distance in (group["distance"].min(), group["distance"].max()))
        caption = f"{' to '.join(ends)} apart"
        caption += f"; {len(items) - N_COPIES} more are in the table" if len(items) > N_COPIES else ""
        yield Shown(title, group["score"].max(), [(caption, shown)])


def _mixed(audit: Audit, part: DataFrame, pictures: "_Pictures") -> Iterator[Shown]:
    labels = audit.items[LABELS_COLUMN].to_numpy()
    for label, other, crossing, score in part[["label", "other_label", "crossing", "score"]].itertuples(index=False):
        ours, theirs = (np.flatnonzero(labels == name) for name in (label, other))
        title = (
            f"Labels {pictures.label(label)} of {len(ours)} items and {pictures.label(other)} of {len(theirs)}: "
            f"{crossing} neighbours cross"
        )
        strips = []
        for name, items, others in ((label, ours, theirs), (other, theirs, ours)):
            items, others = items[:_MOST_COMPARED], others[:_MOST_COMPARED]
            distances = torch.cdist(audit.embeddings[items].float(), audit.embeddings[others].float()).amin(dim=1)
            nearest = items[distances.argsort(stable=True)[:N_MIXED].numpy()]
            strips.append(
                (f"of {pictures.label(name)}, nearest to the other label", [pictures(i) for i in nearest.tolist()])
            )
        yield Shown(title, score, strips)


def _nearest_own(audit: Audit, item: int, own: np.ndarray, pictures: "_Pictures") -> list[Picture]:
    distances = (audit.embeddings[own].double() - audit.embeddings[item]).norm(dim=1)
    order = distances.argsort(stable=True)[:N_OWN].tolist()
    return [pictures(int(own[place]), "same", distances[place].item()) for place in order]


class _Pictures:
    """Thumbnails of items with what is to be read of them; each image is read once."""

    def __init__(self, items: DataFrame, root: Path) -> None:
        is_there = is_path(items[PATHS_COLUMN])
        self._paths = [str(root / path) if ok else "" for path, ok in zip(items[PATHS_COLUMN], is_there, strict=True)]
        boxes = None
        if set(BBOXES_COLUMNS) <= set(items.columns):
            x1, x2, y1, y2 = BBOXES_COLUMNS
            boxes = items[[x1, y1, x2, y2]].to_numpy(dtype=float, na_value=np.nan)
        self._images = ImageFiles("oml audit", self._paths, boxes, ShrinkingReader(SIDE), rows=items.index.tolist())
        self._items = items
        #: where the rows of the table stand among the items
        self.places = {row: place for place, row in enumerate(items.index)}
        self._names = {}
        if "label_name" in items.columns:
            named = items.dropna(subset=["label_name"]).drop_duplicates(LABELS_COLUMN)
            self._names = dict(zip(named[LABELS_COLUMN], named["label_name"], strict=True))
        self._sources: dict[int, str] = {}
        self.missing: list[str] = []

    def __call__(self, item: int, role: str = "", distance: float | None = None) -> Picture:
        row = self._items.iloc[item]
        lines = [f"label {self.label(row[LABELS_COLUMN])}", f"row {self._items.index[item]}"]
        if SPLIT_COLUMN in self._items.columns and pd.notna(row[SPLIT_COLUMN]):
            lines.append(str(row[SPLIT_COLUMN]))
        if distance is not None:
            lines.append(f"distance {distance:.3g}")
        lines.append(str(row[PATHS_COLUMN]))
        return Picture(self._source(item), lines, role)

    def label(self, label: int | np.integer) -> str:
        return f"{label} ({self._names[label]})" if label in self._names else str(label)

    def _source(self, item: int) -> str:
        if item not in self._sources:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of boxes that stick out of their image
                    pixels, _ = self._images.load(item)
            except (UnreadableImageError, ValueError) as error:  # the latter of boxes outside of their image
                self.missing.append(str(error))
                self._sources[item] = ""
            else:
                picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
                picture.thumbnail((SIDE, SIDE))
                file = io.BytesIO()
                picture.save(file, "JPEG", quality=80)
                self._sources[item] = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
        return self._sources[item]
