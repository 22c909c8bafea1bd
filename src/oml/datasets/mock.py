"""The mock data set: 36 tiny drawings of geometric figures, to try a pipeline on within seconds."""

import io
import logging
import math
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from random import Random
from typing import NamedTuple

import pandas as pd
import PIL
from PIL import Image, ImageDraw, features

from oml.const import (
    BBOXES_COLUMNS,
    CATEGORIES_COLUMN,
    IS_GALLERY_COLUMN,
    IS_QUERY_COLUMN,
    LABELS_COLUMN,
    MOCK_DATASET_PATH,
    OBLIGATORY_COLUMNS,
    PATHS_COLUMN,
    SPLIT_COLUMN,
    TRAIN_SPLIT,
    VALIDATION_SPLIT,
)
from oml.datasets._cached import (
    MANIFEST,
    changed_files,
    digest,
    manifest_text,
    read_manifest,
    split_table,
    table_bytes,
    write_folder,
)
from oml.utils.io import atomic_path

__all__ = ["download_mock_dataset"]

logger = logging.getLogger(__name__)

MOCK = "mock"
FORMAT = 1  # raise it whenever the same recipe would give other files
IMAGE_SIZE = 64
N_TRAIN_INSTANCES, N_VALIDATION_INSTANCES = 6, 3

Stroke = Sequence[tuple[float, float]]


class Figure(NamedTuple):
    """What a label looks like: lines to draw within the unit circle around the origin, y pointing down."""

    name: str
    category: str
    split: str
    strokes: Sequence[Stroke]


def polygon(n_corners: int, radii: Sequence[float] = (1.0,)) -> Stroke:
    """The outline through points at even angles around the origin, the first one on top; ``radii`` take turns."""
    turns = [2 * math.pi * i / n_corners for i in range(n_corners + 1)]
    return [(r * math.sin(turn), -r * math.cos(turn)) for turn, r in zip(turns, cycle(radii), strict=False)]


FIGURES = [
    Figure("circle", "shape", TRAIN_SPLIT, [polygon(72)]),
    Figure("rhombus", "shape", TRAIN_SPLIT, [polygon(4, radii=(1.0, 0.6))]),
    Figure("cross", "sign", TRAIN_SPLIT, [[(-0.7, -0.7), (0.7, 0.7)], [(-0.7, 0.7), (0.7, -0.7)]]),
    Figure("arrow", "sign", TRAIN_SPLIT, [[(-1.0, 0.0), (0.9, 0.0)], [(0.4, -0.5), (0.9, 0.0), (0.4, 0.5)]]),
    Figure(
        "hash_sign",
        "sign",
        VALIDATION_SPLIT,
        [
            [(-0.8, -0.3), (0.8, -0.3)],
            [(-0.8, 0.3), (0.8, 0.3)],
            [(-0.3, -0.8), (-0.3, 0.8)],
            [(0.3, -0.8), (0.3, 0.8)],
        ],
    ),
    Figure(
        "rectangle", "shape", VALIDATION_SPLIT, [[(-0.8, -0.5), (0.8, -0.5), (0.8, 0.5), (-0.8, 0.5), (-0.8, -0.5)]]
    ),
    Figure("triangle", "shape", VALIDATION_SPLIT, [polygon(3)]),
    Figure("star", "sign", VALIDATION_SPLIT, [polygon(10, radii=(1.0, 0.4))]),
]


def download_mock_dataset(
    dataset_root: str | Path = MOCK_DATASET_PATH, check_md5: bool = True, df_name: str = "df.csv"
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The train and the validation table of the mock data set, which is made in ``dataset_root`` if need be.

    Nothing is downloaded, in spite of the name, which is kept for old callers: the images are drawn here.
    Train has 4 labels with 6 images, validation 4 other labels with 1 query and 2 gallery images; each
    category has 2 labels of either split. The images are 64x64 JPEG files, paths are relative to the root.

    Args:
        dataset_root: Folder of the data set: a new or empty one, or one that was made by this function before.
        check_md5: Compare the files found in an existing folder with their digests; those that are missing or
            changed are made anew, and a warning is logged. ``False`` takes a folder that has the table as it is.
        df_name: The table to read: ``df.csv``, ``df_with_bboxes.csv`` (a square around each figure) or
            ``df_with_category.csv``.

    Raises:
        FileExistsError: ``dataset_root`` holds something else. Nothing was touched.
        FileNotFoundError: There is no table called ``df_name``.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     df_train, df_val = download_mock_dataset(folder, df_name="df_with_category.csv")
        >>> len(df_train), len(df_val), df_train["path"][0]
        (24, 12, 'images/circle_1.jpg')
    """
    root = Path(dataset_root)
    if check_md5 or not (root / df_name).is_file():
        make_or_mend(root)
    if not (root / df_name).is_file():
        tables = ", ".join(sorted(path.name for path in root.glob("*.csv")))
        raise FileNotFoundError(f"The mock data set in {root} has no table {df_name}; it has {tables}.")
    return split_table(pd.read_csv(root / df_name))


def make_or_mend(root: Path) -> None:
    """Make the data set in ``root``; where it stands, replace the files that are missing or changed.

    Files of other names are not touched, and each file is replaced at once.
    """
    recipe = {"dataset": MOCK, "format": FORMAT, "pillow": PIL.__version__, "jpeg": features.version("jpg")}
    manifest = read_manifest(root, MOCK)
    if manifest is None:
        write_folder(root, recipe, mock_files().items())
        manifest = read_manifest(root, MOCK)
    if manifest is not None and manifest.recipe == recipe and not changed_files(root, manifest.files):
        return

    files = mock_files()
    digests = {name: digest(data) for name, data in files.items()}
    changed = changed_files(root, digests)
    logger.warning(
        "The mock data set in %s is damaged or of another version: %d of %d files are made anew, such as %s.",
        root,
        len(changed),
        len(files),
        ", ".join(changed[:3]) or MANIFEST,
    )
    content = {name: files[name] for name in changed} | {MANIFEST: manifest_text(recipe, digests).encode()}
    for name, data in content.items():  # the manifest comes last: a run killed before it mends again
        with atomic_path(root / name) as temporary:
            temporary.write_bytes(data)


def mock_files() -> dict[str, bytes]:
    """All files of the data set: relative paths and contents."""
    images: dict[str, bytes] = {}
    rows = []
    for label, figure in enumerate(FIGURES):
        is_train = figure.split == TRAIN_SPLIT
        for i in range(N_TRAIN_INSTANCES if is_train else N_VALIDATION_INSTANCES):
            path = f"images/{figure.name}_{i + 1}.jpg"
            images[path], box = draw_figure(figure.strokes, seed=path)
            rows.append(
                {
                    LABELS_COLUMN: label,
                    PATHS_COLUMN: path,
                    SPLIT_COLUMN: figure.split,
                    IS_QUERY_COLUMN: None if is_train else i == 0,
                    IS_GALLERY_COLUMN: None if is_train else i != 0,
                    CATEGORIES_COLUMN: figure.category,
                    **dict(zip(BBOXES_COLUMNS, box, strict=True)),
                }
            )
    df = pd.DataFrame(rows)
    return {
        "df.csv": table_bytes(df.loc[:, OBLIGATORY_COLUMNS]),
        "df_with_bboxes.csv": table_bytes(df.loc[:, [*OBLIGATORY_COLUMNS, *BBOXES_COLUMNS]]),
        "df_with_category.csv": table_bytes(df.loc[:, [*OBLIGATORY_COLUMNS, CATEGORIES_COLUMN]]),
        **images,
    }


def draw_figure(strokes: Sequence[Stroke], seed: str) -> tuple[bytes, tuple[int, int, int, int]]:
    """A JPEG file of the figure, and the square around it as left, right, top, bottom.

    The seed decides where it lies, how large and thick it is, how far it is turned, and its colour.
    """
    random = Random(seed)
    x, y = random.randint(28, 36), random.randint(28, 36)
    radius, turn, thickness = random.randint(17, 23), math.radians(random.uniform(-12, 12)), random.uniform(2, 4)
    colour = tuple(random.randint(0, 140) for _ in range(3))

    fine = 4  # drawn so many times larger, then shrunk, as lines drawn by Pillow have jagged edges
    image = Image.new("RGB", (IMAGE_SIZE * fine, IMAGE_SIZE * fine), (255, 255, 255))
    pen = ImageDraw.Draw(image)
    for stroke in strokes:
        points = [
            (
                fine * (x + radius * (u * math.cos(turn) - v * math.sin(turn))),
                fine * (y + radius * (u * math.sin(turn) + v * math.cos(turn))),
            )
            for u, v in stroke
        ]
        pen.line(points, fill=colour, width=round(thickness * fine), joint="curve")
    file = io.BytesIO()
    image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.LANCZOS).save(file, "JPEG", quality=95)
    reach = radius + 3
    return file.getvalue(), (x - reach, x + reach, y - reach, y + reach)
