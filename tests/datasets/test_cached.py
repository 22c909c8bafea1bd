import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from oml.datasets._cached import MANIFEST, changed_files, digest, read_manifest, recipe_key, write_folder

RECIPE = {"dataset": "letters", "size": 2}
FILES = {"a.txt": b"alpha", "deep/er/b.txt": b"beta"}


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    root = tmp_path / "new" / "folder"
    write_folder(root, RECIPE, FILES.items())
    manifest = read_manifest(root, "letters")
    assert manifest is not None
    assert manifest.recipe == RECIPE
    assert manifest.files == {name: digest(data) for name, data in FILES.items()}
    assert {name: data for name, data in content(root).items() if name != MANIFEST} == FILES
    assert changed_files(root, manifest.files) == []
    assert [path.name for path in root.parent.iterdir()] == ["folder"]


def test_changed_files_are_named(tmp_path: Path) -> None:
    root = tmp_path / "folder"
    files = {f"{kind}.txt": b"some text" for kind in ("kept", "lost", "short", "other", "folder")} | {"sub/c": b"c"}
    write_folder(root, RECIPE, files.items())
    (root / "lost.txt").unlink()
    (root / "short.txt").write_bytes(b"some")
    (root / "other.txt").write_bytes(b"Some text")
    (root / "folder.txt").unlink()
    (root / "folder.txt").mkdir()
    (root / "sub" / "c").unlink()
    (root / "sub").rmdir()
    (root / "sub").write_bytes(b"a file where a folder was")
    (root / "extra.txt").write_bytes(b"of the user: no damage")
    manifest = read_manifest(root, "letters")
    assert manifest is not None
    assert changed_files(root, manifest.files) == sorted(files.keys() - {"kept.txt"})


def test_nothing_is_left_when_the_files_cannot_be_made(tmp_path: Path) -> None:
    def failing() -> Iterator[tuple[str, bytes]]:
        yield "a.txt", b"alpha"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_folder(tmp_path / "folder", RECIPE, failing())
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_a_faster_process_is_kept(tmp_path: Path) -> None:
    root = tmp_path / "folder"

    def overtaken() -> Iterator[tuple[str, bytes]]:
        yield "a.txt", b"ours"
        write_folder(root, RECIPE, {"a.txt": b"theirs"}.items())

    write_folder(root, RECIPE, overtaken())
    assert content(root)["a.txt"] == b"theirs"
    assert list(tmp_path.iterdir()) == [root]


def test_a_foreign_folder_that_appears_meanwhile_is_kept_too(tmp_path: Path) -> None:
    root = tmp_path / "folder"

    def overtaken() -> Iterator[tuple[str, bytes]]:
        yield "a.txt", b"ours"
        root.mkdir()
        (root / "thesis.txt").write_bytes(b"theirs")

    with pytest.raises(OSError, match="folder"):
        write_folder(root, RECIPE, overtaken())
    assert content(root) == {"thesis.txt": b"theirs"}
    assert list(tmp_path.iterdir()) == [root]


def test_nothing_stands_in_an_absent_or_empty_folder(tmp_path: Path) -> None:
    assert read_manifest(tmp_path / "absent", "letters") is None
    assert read_manifest(tmp_path, "letters") is None


@pytest.mark.parametrize(
    "manifest",
    [None, "[]", '{"files": {}}', '{"recipe": {"dataset": "digits"}, "files": {}}', '{"recipe": {}, "files": {}}'],
)
def test_what_is_not_of_the_data_set_is_refused(tmp_path: Path, manifest: str | None) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    if manifest is not None:
        (tmp_path / MANIFEST).write_text(manifest)
    before = content(tmp_path)
    with pytest.raises(FileExistsError, match=rf"{tmp_path} exists and is not a folder of the letters data set"):
        read_manifest(tmp_path, "letters")
    assert content(tmp_path) == before


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("years of work")
    with pytest.raises(FileExistsError, match="is not a folder of the letters data set"):
        read_manifest(tmp_path / "file", "letters")


def test_an_unreadable_manifest_is_damage(tmp_path: Path) -> None:
    write_folder(tmp_path / "folder", RECIPE, FILES.items())
    path = tmp_path / "folder" / MANIFEST
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=rf"{tmp_path / 'folder'} is damaged: {MANIFEST}") as error:
        read_manifest(tmp_path / "folder", "letters")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("other", [{"size": 3}, {"size": "2"}, {"more": None}, {"dataset": "digits"}])
def test_recipes_that_differ_have_other_keys(other: dict) -> None:
    assert recipe_key(RECIPE | other) != recipe_key(RECIPE) == recipe_key(json.loads(json.dumps(RECIPE)))
