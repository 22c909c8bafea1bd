"""Glyphs: a retrieval data set that needs no download, drawn from the fonts that come with matplotlib."""

import io
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import fontTools
import matplotlib
import pandas as pd
import PIL
from fontTools import unicodedata
from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw, ImageFont, features

from oml.const import (
    CACHE_PATH,
    CATEGORIES_COLUMN,
    IS_GALLERY_COLUMN,
    IS_QUERY_COLUMN,
    LABELS_COLUMN,
    PATHS_COLUMN,
    SPLIT_COLUMN,
    TRAIN_SPLIT,
    VALIDATION_SPLIT,
)
from oml.datasets._cached import (
    check_folder,
    digest,
    read_manifest,
    recipe_key,
    split_table,
    table_bytes,
    write_folder,
)

__all__ = ["MIN_FACES", "Glyphs", "load_glyphs"]

GLYPHS = "glyphs"
FORMAT = 1  # raise it whenever the same recipe would give other images or another table
TABLE = "df.csv"
MIN_FACES = 8
FACE_PREFIXES = ("DejaVu", "STIX")  # the other fonts of matplotlib hold few characters, or placeholders

# Of a side, in 1/64: the em lets accented capitals and descenders of nearly all faces in, around the baseline
EM, BASELINE, MARGIN = 44, 46, 2
SHEET_PIXELS = 2**20
WHITE = b"\xff"

Progress = Callable[[int, int], None]


class Glyphs(NamedTuple):
    """Where the images are, and the tables of the two splits; ``root / path`` is an image."""

    root: Path
    df_train: pd.DataFrame
    df_val: pd.DataFrame


class Face(NamedTuple):
    """A font file and the characters it has."""

    path: Path
    is_slanted: bool
    characters: frozenset[str]

    @property
    def name(self) -> str:
        """The file's name without suffix, such as ``DejaVuSans-Bold``."""
        return self.path.stem


class Instance(NamedTuple):
    """A character in a face: one image."""

    character: str
    face: Face


def load_glyphs(
    root: str | Path | None = None,
    *,
    image_size: int = 64,
    n_labels: int | None = None,
    min_faces: int = MIN_FACES,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> Glyphs:
    """The Glyphs data set, drawn on first use and then kept: some 3,000 characters, 31,000 images in 26 type faces.

    A label is a character, an instance is that character in one face, the category is the character's script
    or, if it has none of its own (digits, signs, arrows), its block in Unicode. Characters that look the same,
    such as the Latin, Greek and Cyrillic A, are one label: all those whose images agree in every pixel, be it
    after a shift sideways, in some upright face, and whatever is so linked to them. In slanted faces more is
    alike (the Cyrillic te is an m): an image that two labels share is left out of both. Images that repeat
    inside a label are dropped.

    The labels are halved between train and validation at random. The validation is "1 vs rest": each image is
    query and gallery. Train labels are ``0 ... n_train - 1``, the validation ones follow, both in the order of
    Unicode. Besides the columns of every retrieval table there are ``character``, as ``U+0041``, and ``face``.

    Args:
        root: Folder of the data set. ``None`` is a folder in the cache, named after all that the content depends
            on: the arguments below, the fonts, and the versions of Pillow, FreeType and fontTools.
        image_size: Side of the square images in pixels, 16 to 1024. Grey PNG, dark on white.
        n_labels: Take that many labels, chosen at random; ``None`` is all of them. A smaller choice is part of
            a larger one, with the same splits.
        min_faces: Take the characters that at least so many faces have.
        seed: Of the choice and the split of labels.
        on_progress: Called with (done, total) while the images are made; the total may shrink on the way.

    Raises:
        ValueError: An argument is out of its range; or ``root`` is damaged, or was made with other arguments.
        FileExistsError: ``root`` holds something else. Nothing was touched.
        OSError: The files could not be written, and nothing was left.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     glyphs = load_glyphs(folder, n_labels=5, min_faces=20)
        >>> glyphs.df_train["label"].unique(), glyphs.df_val["label"].unique()
        (array([0, 1, 2]), array([3, 4]))
    """
    if not 16 <= image_size <= 1024:
        raise ValueError(f"Glyphs need an image_size of 16 to 1024 pixels, got {image_size}.")
    if n_labels is not None and n_labels < 2:
        raise ValueError(f"Glyphs need n_labels of 2 or more, as each split has one at least, got {n_labels}.")
    fonts = font_files()
    if not 1 <= min_faces <= len(fonts):
        raise ValueError(f"Glyphs need min_faces of 1 to {len(fonts)}, the number of faces, got {min_faces}.")

    recipe = {
        "dataset": GLYPHS,
        "format": FORMAT,
        "image_size": image_size,
        "n_labels": n_labels,
        "min_faces": min_faces,
        "seed": seed,
        "fonts": digest(b"".join(path.name.encode() + path.read_bytes() for path in fonts)),
        "pillow": PIL.__version__,
        "freetype": features.version("freetype2"),
        "fonttools": fontTools.version,
    }
    folder = CACHE_PATH / GLYPHS / f"{image_size}px-{recipe_key(recipe)}" if root is None else Path(root)
    if read_manifest(folder, GLYPHS) is None:
        files = glyph_files(image_size, n_labels, min_faces, seed, on_progress or (lambda _done, _total: None))
        write_folder(folder, recipe, files)
    check_folder(folder, recipe)

    return Glyphs(folder, *split_table(pd.read_csv(folder / TABLE)))


def font_files() -> list[Path]:
    """The font files that Glyphs are drawn from, by name."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    if not (files := sorted(path for path in folder.glob("*.ttf") if path.name.startswith(FACE_PREFIXES))):
        raise FileNotFoundError(
            f"Glyphs are drawn from matplotlib's fonts {' and '.join(FACE_PREFIXES)}, but {folder} holds none of "
            "them. Some distributions strip them: install matplotlib by pip."
        )
    return files


def read_face(path: Path) -> Face:
    """The face in a font file."""
    with TTFont(path, lazy=True) as font:
        characters = frozenset(chr(code) for code in font.getBestCmap() or ())
        post: Any = font["post"]  # its fields are known at run time only
        return Face(path, post.italicAngle != 0, characters)


def glyph_files(
    image_size: int, n_labels: int | None, min_faces: int, seed: int, on_progress: Progress
) -> Iterator[tuple[str, bytes]]:
    """The images and, at last, the table of the data set: relative paths and contents.

    All instances are drawn to see which are alike, though only those of the chosen labels are drawn again and
    kept: so a label is the same in each choice, and the memory needed does not depend on the image size.
    """
    instances = known_instances([read_face(path) for path in font_files()], min_faces)
    n = len(instances)
    looks: dict[Instance, Hashable] = {}
    for done, (instance, pixels) in enumerate(zip(instances, draw_glyphs(instances, image_size), strict=True)):
        on_progress(done, 2 * n)
        if (look := look_of(pixels, image_size)) is not None:
            looks[instance] = look

    labels = distinct_instances(looks)
    order = sorted(labels, key=lambda label: digest(f"{seed} {label}".encode()))  # by hash: alike in all versions
    if len(order) < (n_labels or 2):
        raise ValueError(f"Glyphs have {len(order)} labels in {min_faces} or more faces, got n_labels={n_labels}.")
    order = order[:n_labels]
    train, validation = sorted(order[::2]), sorted(order[1::2])
    chosen = [instance for label in train + validation for instance in labels[label]]

    paths = [f"images/{ord(character):04X}/{face.name}.png" for character, face in chosen]
    for done, (path, pixels) in enumerate(zip(paths, draw_glyphs(chosen, image_size), strict=True)):
        on_progress(n + done, n + len(chosen))
        yield path, encode_png(pixels, image_size)

    numbers = [number for number, label in enumerate(train + validation) for _ in labels[label]]
    roles = [None if number < len(train) else True for number in numbers]
    df = pd.DataFrame(
        {
            LABELS_COLUMN: numbers,
            PATHS_COLUMN: paths,
            SPLIT_COLUMN: [TRAIN_SPLIT if role is None else VALIDATION_SPLIT for role in roles],
            IS_QUERY_COLUMN: roles,
            IS_GALLERY_COLUMN: roles,
            CATEGORIES_COLUMN: [category_of((train + validation)[number]) for number in numbers],
            "character": [f"U+{ord(instance.character):04X}" for instance in chosen],
            "face": [instance.face.name for instance in chosen],
        }
    )
    yield TABLE, table_bytes(df)
    on_progress(n + len(chosen), n + len(chosen))


def known_instances(faces: Iterable[Face], min_faces: int) -> list[Instance]:
    """All instances of the characters that ``min_faces`` or more of the faces have, by face and character.

    Controls, spaces and what Unicode leaves to private use have no look that fonts agree on, and are left out.
    """
    faces = list(faces)
    n_faces: defaultdict[str, int] = defaultdict(int)
    for face in faces:
        for character in face.characters:
            n_faces[character] += 1
    known = {c for c, n in n_faces.items() if n >= min_faces and unicodedata.category(c)[0] not in "CZ"}
    return [Instance(character, face) for face in faces for character in sorted(face.characters & known)]


def look_of(pixels: bytes, image_size: int) -> str | None:
    """A digest that images share if they agree in every pixel, be it after a shift sideways; ``None`` if blank.

    Sideways, as an image is centred by its outline, whose extent may differ where the ink does not.
    """
    ink = pixels.lstrip(WHITE)
    if not ink:
        return None
    first_row = (len(pixels) - len(ink)) // image_size
    return digest(first_row.to_bytes(2, "big") + ink.rstrip(WHITE))


def distinct_instances(looks: Mapping[Instance, Hashable]) -> dict[str, list[Instance]]:
    """The instances of each label, given what each looks like; a label is named by its first character.

    Characters that look the same in an upright face are one label. A look that two labels share is left out, as
    are all instances of a label but the first of a look, and labels with fewer than two looks.
    """
    label_of = group_lookalikes((i.character, (i.face, look)) for i, look in looks.items() if not i.face.is_slanted)
    labels_of_look: defaultdict[Hashable, set[str]] = defaultdict(set)
    for instance, look in looks.items():
        labels_of_look[look].add(label_of.get(instance.character, instance.character))

    instance_of: dict[Hashable, Instance] = {}
    for instance in sorted(looks, key=lambda i: (i.character, i.face.name)):
        instance_of.setdefault(looks[instance], instance)
    labels: defaultdict[str, list[Instance]] = defaultdict(list)
    for look, instance in instance_of.items():
        if len(labels_of_look[look]) == 1:
            labels[min(labels_of_look[look])].append(instance)
    return {label: instances for label, instances in labels.items() if len(instances) >= 2}


def group_lookalikes(looks: Iterable[tuple[str, Hashable]]) -> dict[str, str]:
    """The first of its group for each character, given characters with their looks; a shared look makes a group.

    Groups are the connected components: if a looks like b and b like c, all three are one group.

    Example:
        >>> group_lookalikes([("a", 1), ("b", 1), ("b", 2), ("c", 2), ("d", 3)])
        {'a': 'a', 'b': 'a', 'c': 'a', 'd': 'd'}
    """
    parent: dict[str, str] = {}

    def find(character: str) -> str:
        while (above := parent.setdefault(character, character)) != character:
            parent[character] = character = parent[above]
        return character

    first_with: dict[Hashable, str] = {}
    for character, look in looks:
        low, high = sorted((find(first_with.setdefault(look, character)), find(character)))
        parent[high] = low
    return {character: find(character) for character in parent}


def category_of(character: str) -> str:
    """The script of a character, or its block in Unicode if it belongs to none.

    Example:
        >>> [category_of(character) for character in "AЖ7→"]
        ['Latin', 'Cyrillic', 'Basic Latin', 'Arrows']
    """
    script = unicodedata.script(character)
    if script in ("Zyyy", "Zinh"):  # Common, Inherited
        return unicodedata.block(character)
    return unicodedata.script_name(script)


@lru_cache(maxsize=512)
def open_font(path: Path, size: int) -> ImageFont.FreeTypeFont:
    """A font of ``size`` pixels per em. BASIC, as the other layout engine needs libraqm, which may be missing."""
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


def place_glyph(character: str, face: Face, image_size: int) -> tuple[ImageFont.FreeTypeFont, int, int]:
    """The font and where in the square the origin of the character is to be put.

    The size of the font and the height of the baseline are the same for all, so that case and accents tell;
    only what would cross the margin is shrunk, and moved up or down, as far as needed.
    """
    margin, baseline, size = (max(1, image_size * part // 64) for part in (MARGIN, BASELINE, EM))
    room = image_size - 2 * margin
    while True:
        font = open_font(face.path, size)
        left, top, right, bottom = font.getbbox(character, anchor="ls")  # around the origin
        if (extent := max(right - left, bottom - top)) <= room:
            break
        size = min(int(size * room / extent), size - 1)
    y = min(max(baseline, margin - top), image_size - margin - bottom)
    return font, int(image_size - left - right) // 2, int(y)


def draw_glyphs(instances: Sequence[Instance], image_size: int) -> Iterator[bytes]:
    """For each instance its pixels, row by row: black on white, centred from left to right."""
    area = image_size**2
    step = max(1, SHEET_PIXELS // area)
    for start in range(0, len(instances), step):
        sheet = instances[start : start + step]
        # one tall image for many glyphs: making an image and its pen for each takes as long as drawing
        image = Image.new("L", (image_size, image_size * len(sheet)), 255)
        pen = ImageDraw.Draw(image)
        for i, (character, face) in enumerate(sheet):
            font, x, y = place_glyph(character, face, image_size)
            pen.text((x, y + i * image_size), character, fill=0, font=font, anchor="ls")
        pixels = image.tobytes()
        yield from (pixels[i * area : (i + 1) * area] for i in range(len(sheet)))


def encode_png(pixels: bytes, image_size: int) -> bytes:
    """The file of a grey image. Level 1 takes two thirds of the time of the usual 6, for a sixth more bytes."""
    file = io.BytesIO()
    Image.frombytes("L", (image_size, image_size), pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()
