import io
import os
import resource
import shutil
import subprocess
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from oml.datasets import glyphs as module
from oml.datasets.glyphs import (
    Face,
    Glyphs,
    Instance,
    category_of,
    distinct_instances,
    draw_glyphs,
    font_files,
    group_lookalikes,
    known_instances,
    load_glyphs,
    look_of,
    read_face,
)
from oml.utils.dataframe_format import check_retrieval_dataframe_format

SMALL = {"min_faces": 18, "n_labels": 8}  # made in a moment


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def as_one(glyphs: Glyphs) -> pd.DataFrame:
    return pd.concat([glyphs.df_train, glyphs.df_val])


def read(path: Path) -> Image.Image:
    return Image.open(io.BytesIO(path.read_bytes()))


@pytest.fixture(scope="session")
def glyphs(tmp_path_factory: pytest.TempPathFactory) -> Glyphs:
    return load_glyphs(tmp_path_factory.mktemp("glyphs") / "many", n_labels=100, min_faces=16)


@pytest.fixture(scope="session")
def small_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return load_glyphs(tmp_path_factory.mktemp("glyphs") / "small", **SMALL).root


@pytest.fixture
def root(small_root: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(small_root, tmp_path / "copy"))


@pytest.fixture(scope="session")
def faces() -> list[Face]:
    return [read_face(path) for path in font_files()]


# the table and the images


def test_table_keeps_the_rules(glyphs: Glyphs) -> None:
    df = as_one(glyphs)
    check_retrieval_dataframe_format(df, dataset_root=glyphs.root)
    assert df["label"].dtype == np.int64
    assert glyphs.df_train["label"].unique().tolist() == list(range(50))
    assert glyphs.df_val["label"].unique().tolist() == list(range(50, 100))
    assert df["label"].value_counts().min() >= 2
    assert df["path"].is_unique
    assert (df.groupby("label")["category"].nunique() == 1).all()
    for part, split in [(glyphs.df_train, "train"), (glyphs.df_val, "validation")]:
        assert (part["split"] == split).all()
        assert part.index.tolist() == list(range(len(part)))
    assert glyphs.df_train[["is_query", "is_gallery"]].isna().all(axis=None)
    assert glyphs.df_val["is_query"].dtype == glyphs.df_val["is_gallery"].dtype == bool
    assert glyphs.df_val[["is_query", "is_gallery"]].all(axis=None)


def test_characters_belong_to_one_label_and_categories_mix(glyphs: Glyphs) -> None:
    df = as_one(glyphs)
    assert (df.groupby("character")["label"].nunique() == 1).all()
    assert df["character"].nunique() > 100  # some look alike
    for part in (glyphs.df_train, glyphs.df_val):
        assert {"Latin", "Cyrillic", "Greek"} <= set(part["category"])
    lowest = df.groupby("label")["character"].min().str[2:].map(lambda code: category_of(chr(int(code, 16))))
    assert df.groupby("label")["category"].first().tolist() == lowest.tolist()


def test_images_are_black_on_white_and_whole(glyphs: Glyphs) -> None:
    for path in as_one(glyphs)["path"]:
        image = read(glyphs.root / path)
        assert (image.format, image.mode, image.size) == ("PNG", "L", (64, 64))
        pixels = np.asarray(image)
        assert pixels.min() < 64
        for border in (pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:]):
            assert (border == 255).all()


def test_no_image_occurs_twice(glyphs: Glyphs) -> None:
    """Neither inside a label nor in two of them, be it moved sideways."""
    seen = Counter()
    for path in as_one(glyphs)["path"]:
        pixels = np.asarray(read(glyphs.root / path))
        rows, columns = (pixels < 255).nonzero()
        seen[rows.min(), pixels[:, columns.min() : columns.max() + 1].tobytes()] += 1
    assert set(seen.values()) == {1}


@pytest.mark.parametrize("image_size", [16, 33, 96])
def test_image_size_and_n_labels_are_respected(tmp_path: Path, image_size: int) -> None:
    made = load_glyphs(tmp_path, image_size=image_size, n_labels=5, min_faces=20)
    assert (made.df_train["label"].nunique(), made.df_val["label"].nunique()) == (3, 2)
    assert {read(made.root / path).size for path in as_one(made)["path"]} == {(image_size, image_size)}


def test_a_smaller_choice_is_part_of_a_larger_one(tmp_path: Path) -> None:
    few, many = (load_glyphs(tmp_path / str(n), n_labels=n, min_faces=18, seed=3) for n in (7, 20))
    for part, whole in [(few.df_train, many.df_train), (few.df_val, many.df_val)]:
        groups = [{tuple(sorted(paths)) for paths in df.groupby("label")["path"].agg(list)} for df in (part, whole)]
        assert groups[0] < groups[1]


def test_another_seed_makes_another_choice(tmp_path: Path, small_root: Path) -> None:
    other = load_glyphs(tmp_path, **SMALL, seed=1)
    assert set(as_one(other)["character"]) != set(as_one(load_glyphs(small_root, **SMALL))["character"])


# what is one label


def looks_in(faces: list[Face], characters: str) -> dict[Instance, str]:
    instances = [
        Instance(character, face) for face in faces for character in characters if character in face.characters
    ]
    looks = {i: look_of(pixels, 64) for i, pixels in zip(instances, draw_glyphs(instances, 64), strict=True)}
    return {instance: look for instance, look in looks.items() if look is not None}


def test_latin_greek_and_cyrillic_a_are_one_label(faces: list[Face]) -> None:
    labels = distinct_instances(looks_in(faces, "A\u0391\u0410Б"))
    assert labels.keys() == {"A", "Б"}
    assert {instance.character for instance in labels["A"]} > {"A"}  # STIX draws them anew
    assert len(labels["A"]) > 16


def test_letters_alike_in_italics_only_stay_two_labels(faces: list[Face]) -> None:
    looks = looks_in(faces, "mт")
    shared = set.intersection(*({look for i, look in looks.items() if i.character == c} for c in "mт"))
    assert shared
    labels = distinct_instances(looks)
    assert labels.keys() == {"m", "т"}
    assert not shared & {looks[instance] for instances in labels.values() for instance in instances}


def test_what_has_no_ink_has_no_look(faces: list[Face]) -> None:
    assert any("\u2800" in face.characters for face in faces)  # the empty Braille pattern
    assert looks_in(faces, "\u2800") == {}


def test_controls_spaces_and_private_use_are_left_out(faces: list[Face]) -> None:
    characters = {instance.character for instance in known_instances(faces, 8)}
    for left_out in "\u00a0\u00ad\u200b\uf400":
        assert sum(left_out in face.characters for face in faces) >= 8
        assert left_out not in characters
    assert "→" in characters
    counts = Counter(instance.character for instance in known_instances(faces, 8))
    assert min(counts.values()) == 8


def test_images_move_sideways_but_not_up() -> None:
    image = np.full((16, 16), 255, dtype=np.uint8)
    image[5:9, 6:9] = np.arange(12).reshape(4, 3)
    look, right, down = (
        look_of(np.roll(image, shift, axis=(0, 1)).tobytes(), 16) for shift in [(0, 0), (0, 2), (1, 0)]
    )
    assert look == right
    assert look != down


EDGES = st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 5)), max_size=9)


@given(EDGES)
def test_groups_follow_the_definition(looks: list[tuple[str, int]]) -> None:
    groups = {character: {character} for character, _ in looks}
    for _ in looks:  # a chain is no longer than that
        for (a, look_a), (b, look_b) in combinations(looks, 2):
            if look_a == look_b:
                joined = groups[a] | groups[b]
                groups |= dict.fromkeys(joined, joined)
    assert group_lookalikes(looks) == {character: min(group) for character, group in groups.items()}


FACES = [Face(Path(f"{name}.ttf"), name == "Italic", frozenset()) for name in ("Bold", "Italic", "Regular")]


@given(st.dictionaries(st.tuples(st.sampled_from("abcde"), st.sampled_from(FACES)), st.integers(0, 8), max_size=12))
def test_labels_follow_the_definition(drawn: dict[tuple[str, Face], int]) -> None:
    looks = {Instance(*key): look for key, look in drawn.items()}
    label = {instance.character: {instance.character} for instance in looks}
    for _ in label:
        for a, b in combinations(looks, 2):
            if a.face == b.face and not a.face.is_slanted and looks[a] == looks[b]:
                joined = label[a.character] | label[b.character]
                label |= dict.fromkeys(joined, joined)
    expected = {}
    for group in label.values():
        own = sorted(
            (instance.character, instance.face.name, looks[instance])
            for instance in looks
            if instance.character in group
        )
        kept, used = [], {looks[instance] for instance in looks if instance.character not in group}
        for character, face, look in own:
            if look not in used:
                kept.append((character, face))
                used.add(look)
        if len(kept) >= 2:
            expected[min(group)] = kept
    found = distinct_instances(looks)
    assert {label: [(i.character, i.face.name) for i in instances] for label, instances in found.items()} == expected


@pytest.mark.parametrize(
    ("character", "category"),
    [
        ("A", "Latin"),
        ("ж", "Cyrillic"),
        ("7", "Basic Latin"),
        ("→", "Arrows"),
        ("\u0301", "Combining Diacritical Marks"),
    ],
)
def test_category(character: str, category: str) -> None:
    assert category_of(character) == category


# the folder


def test_a_made_folder_is_reused(small_root: Path) -> None:
    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in [small_root, *small_root.rglob("*")]}

    before, calls = times(), []
    first = load_glyphs(small_root, **SMALL)
    second = load_glyphs(str(small_root), **SMALL, on_progress=lambda *call: calls.append(call))
    assert times() == before
    assert calls == []
    assert second.root == small_root
    pd.testing.assert_frame_equal(first.df_val, second.df_val)


def test_cache_folders_differ_by_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_root: Path) -> None:
    monkeypatch.setattr(module, "CACHE_PATH", tmp_path)
    tiny = {"min_faces": 22, "n_labels": 3}
    changes = [{}, {"n_labels": 2}, {"min_faces": 23}, {"image_size": 16}, {"seed": 1}]
    roots = {load_glyphs(**tiny | change).root for change in changes}
    assert len(roots) == len(changes)
    assert {path.parent for path in roots} == {tmp_path / "glyphs"}
    assert load_glyphs(**tiny).root in roots
    assert set((tmp_path / "glyphs").iterdir()) == roots


def test_progress_grows_to_the_total(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    load_glyphs(tmp_path, **SMALL, on_progress=lambda done, total: calls.append((done, total)))
    done, totals = zip(*calls, strict=True)
    assert done == tuple(range(len(calls)))
    assert list(totals) == sorted(totals, reverse=True)
    assert done[-1] == totals[-1]


def break_image(root: Path, how: str) -> str:
    path = sorted(root.glob("images/*/*.png"))[3]
    data = path.read_bytes()
    match how:
        case "missing":
            path.unlink()
        case "truncated":
            path.write_bytes(data[:-20])
        case "changed":
            path.write_bytes(data[:60] + bytes([data[60] ^ 1]) + data[61:])
    return path.relative_to(root).as_posix()


def break_table(root: Path, how: str) -> str:
    text = (root / "df.csv").read_text()
    match how:
        case "missing":
            (root / "df.csv").unlink()
        case "truncated":
            (root / "df.csv").write_text(text[: len(text) // 2])
        case "changed":
            (root / "df.csv").write_text(text.replace("train", "Train", 1))
    return "df.csv"


@pytest.mark.parametrize("how", ["missing", "truncated", "changed"])
@pytest.mark.parametrize("damage", [break_image, break_table])
def test_damage_is_reported(root: Path, damage, how: str) -> None:
    load_glyphs(root, **SMALL)
    name = damage(root, how)
    before = content(root)
    with pytest.raises(ValueError, match=f"are damaged: 1 of {len(before) - (how != 'missing')} files") as error:
        load_glyphs(root, **SMALL)
    message = str(error.value)
    assert f"such as {name}. Delete the folder {root} and run again" in message
    assert "\n" not in message
    assert content(root) == before


def test_much_damage_is_counted(root: Path) -> None:
    images = sorted(root.glob("images/*/*.png"))
    for path in images:
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=f"damaged: {len(images)} of {len(images) + 1} files") as error:
        load_glyphs(root, **SMALL)
    assert str(error.value).count(".png") == 3


def test_a_folder_made_otherwise_is_refused(root: Path) -> None:
    before = content(root)
    with pytest.raises(ValueError, match=rf"{root} were made with n_labels=8 instead of None, seed=0 instead of 5\."):
        load_glyphs(root, **SMALL | {"n_labels": None, "seed": 5})
    assert content(root) == before


def test_a_foreign_folder_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match=f"{tmp_path} exists and is not a folder of the glyphs data set"):
        load_glyphs(tmp_path, **SMALL)
    assert content(tmp_path) == {"thesis.txt": b"years of work"}


def test_a_root_below_a_file_is_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("years of work")
    with pytest.raises(OSError, match="file"):
        load_glyphs(tmp_path / "file" / "glyphs", **SMALL)
    assert content(tmp_path) == {"file": b"years of work"}


def run(root: Path, hash_seed: int, file_limit: int = resource.RLIM_INFINITY) -> subprocess.Popen:
    code = (
        # or Python cuts off files of bytecode, which other tests would read
        f"import resource, sys; sys.dont_write_bytecode = True\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({file_limit},) * 2)\n"
        f"from oml.datasets.glyphs import load_glyphs\nload_glyphs({str(root)!r}, **{SMALL})"
    )
    env = os.environ | {"PYTHONHASHSEED": str(hash_seed)}
    return subprocess.Popen([sys.executable, "-c", code], env=env, stderr=subprocess.PIPE, text=True)


def test_nothing_is_left_when_the_disk_is_full(tmp_path: Path, small_root: Path) -> None:
    sizes = {path.name: path.stat().st_size for path in small_root.rglob("*") if path.is_file()}
    limit = sizes["df.csv"] // 2
    assert max(size for name, size in sizes.items() if name.endswith(".png")) < limit  # the images do get written
    process = run(tmp_path / "glyphs", hash_seed=0, file_limit=limit)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "OSError: [Errno 27] File too large" in error
    assert list(tmp_path.iterdir()) == []


def test_two_processes_make_the_same_folder_at_once(tmp_path: Path, small_root: Path) -> None:
    """Different hash seeds show, too, that no order of a set got into the files."""
    processes = [run(tmp_path / "glyphs", hash_seed) for hash_seed in (1, 2)]
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert content(tmp_path / "glyphs") == content(small_root)
    assert [path.name for path in tmp_path.iterdir()] == ["glyphs"]


def test_making_it_twice_gives_the_same_bytes(tmp_path: Path, small_root: Path) -> None:
    load_glyphs(tmp_path, **SMALL)  # exists and is empty: that is fine
    assert content(tmp_path) == content(small_root)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 15}, "image_size of 16 to 1024 pixels, got 15"),
        ({"image_size": 1025}, "image_size of 16 to 1024 pixels, got 1025"),
        ({"n_labels": 1}, "n_labels of 2 or more, .* got 1"),
        ({"min_faces": 0}, "min_faces of 1 to [0-9]+, .* got 0"),
        ({"min_faces": 99}, "min_faces of 1 to [0-9]+, .* got 99"),
        ({"min_faces": 20, "n_labels": 1000}, "Glyphs have [0-9]+ labels in 20 or more faces, got n_labels=1000"),
    ],
)
def test_arguments_out_of_range(tmp_path: Path, arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_glyphs(tmp_path / "glyphs", **arguments)
    assert list(tmp_path.iterdir()) == []
