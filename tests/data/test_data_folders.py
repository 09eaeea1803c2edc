"""Folders of class folders: which files are images of which class, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from convlens.data.folders import scan
from convlens.errors import ArgumentError


def tree(root: Path, *names: str) -> Path:
    """Images (endings of images) and text files at these paths; a name ending in / is a folder."""
    for name in names:
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in (".jpg", ".png"):
            Image.new("RGB", (8, 8)).save(path)
        else:
            path.write_text("no image")
    return root


def classes_of(listing):
    """Class, and the path below the root, of each file."""
    return [
        (listing.items.classes[label], Path(file).relative_to(listing.source).as_posix())
        for file, label in zip(listing.items.files, listing.items.targets.tolist(), strict=True)
    ]


def test_numbers_in_names_of_classes_and_files_are_in_natural_order(tmp_path):
    tree(tmp_path, *(f"{c}/{f}.png" for c in (100, 2, 10, 1) for f in ("x10", "x9")))
    listing = scan(tmp_path)
    assert listing.items.classes == ("1", "2", "10", "100")
    assert classes_of(listing)[:2] == [("1", "1/x9.png"), ("1", "1/x10.png")]
    assert listing.held_out is None


def test_what_systems_leave_behind_is_no_class_and_no_image(tmp_path):
    tree(tmp_path, "a/1.png", "a/.DS_Store", "a/Thumbs.db", "a/desktop.ini", "a/._1.png",
         "a/.ipynb_checkpoints/1-checkpoint.png", "b/1.png", ".ipynb_checkpoints/x.png",
         "__MACOSX/a/._1.png", ".git/x.png", ".DS_Store")  # fmt: skip
    listing = scan(tmp_path)
    assert classes_of(listing) == [("a", "a/1.png"), ("b", "b/1.png")]
    assert not listing.skipped
    assert not listing.notes


def test_endings_count_in_any_case_and_other_files_are_listed(tmp_path):
    tree(tmp_path, "a/1.JPG", "a/notes.txt", "b/1.PNG", "b/no-ending", "readme.md", "stray.png")
    listing = scan(tmp_path)
    assert classes_of(listing) == [("a", "a/1.JPG"), ("b", "b/1.PNG")]
    why = {Path(one.file).name: one.why for one in listing.skipped}
    assert why == {
        "notes.txt": "not an image, by its ending",
        "no-ending": "not an image, by its ending",
        "readme.md": "not an image, by its ending",
        "stray.png": "beside the class folders, so it has no class",
    }


def test_folders_below_a_class_folder_belong_to_it(tmp_path):
    tree(tmp_path, "a/1.png", "a/more/2.png", "a/more/deep/3.png", "b/only/1.png")
    assert [name for name, _ in classes_of(scan(tmp_path))] == ["a", "a", "a", "b"]


@pytest.mark.parametrize("name", ["valid", "val", "validation", "test", "Val"])
def test_a_folder_to_validate_on_is_known_by_its_name(tmp_path, name):
    tree(tmp_path, "train/a/1.png", "train/b/1.png", f"{name}/a/2.png", f"{name}/b/2.png")
    listing = scan(tmp_path)
    assert listing.held_out == (False, False, True, True)
    assert listing.items.targets.tolist() == [0, 1, 0, 1]
    assert bool(listing.notes) == (name == "test")


def test_a_test_folder_beside_the_two_is_left_unused_and_said(tmp_path):
    tree(tmp_path, *(f"{s}/{c}/1.png" for s in ("train", "valid", "test", "extra") for c in "ab"))
    listing = scan(tmp_path)
    assert len(listing.items) == 4
    assert listing.notes == ("test/ beside train/ is left unused.",
                             "extra/ beside train/ is left unused.")  # fmt: skip


def test_two_folders_to_validate_on_are_refused(tmp_path):
    tree(tmp_path, *(f"{s}/{c}/1.png" for s in ("train", "valid", "val") for c in "ab"))
    with pytest.raises(ArgumentError, match="more than one folder to validate on, valid, val"):
        scan(tmp_path)


def test_a_class_may_be_called_train(tmp_path):
    tree(tmp_path, "train/1.png", "car/1.png", "boat/1.png")
    assert scan(tmp_path).items.classes == ("boat", "car", "train")


@pytest.mark.parametrize(
    "names", [("Training", "Testing"), ("train", "testing"), ("valid", "test")]
)
def test_folders_named_like_splits_are_not_taken_for_classes(tmp_path, names):
    tree(tmp_path, *(f"{name}/{c}/1.png" for name in names for c in "ab"))
    with pytest.raises(ArgumentError, match="look like parts of a data set and not like classes"):
        scan(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="no such names there")
def test_names_cannot_steer_a_terminal(tmp_path):
    tree(tmp_path, "train/a\x1b[2J/1.png", "train/b/1.png", "valid/b/1.png", "valid/c/1.png")
    with pytest.raises(ArgumentError, match=r"Only in train/: a\\x1b\[2J; only in valid/: c"):
        scan(tmp_path)


def test_a_train_folder_alone_is_the_folder_of_class_folders(tmp_path):
    tree(tmp_path, "train/a/1.png", "train/b/1.png")
    listing = scan(tmp_path)
    assert listing.items.classes == ("a", "b")
    assert listing.held_out is None


def test_other_classes_in_validation_are_refused_with_both_lists(tmp_path):
    tree(tmp_path, "train/cat/1.png", "train/dog/1.png", "train/bird/1.png",
         "valid/Cat/1.png", "valid/dog/1.png", "valid/fish/1.png")  # fmt: skip
    with pytest.raises(ArgumentError) as refused:
        scan(tmp_path)
    said = str(refused.value)
    assert "Only in train/: bird, cat; only in valid/: Cat, fish." in said
    assert "Is 'Cat' the same as one of train/? Closest: 'cat'." in said


def test_a_class_that_is_missing_in_validation_is_refused(tmp_path):
    tree(tmp_path, "train/a/1.png", "train/b/1.png", "valid/a/1.png", "valid/b/")
    with pytest.raises(ArgumentError, match=r"Only in train/: b; only in valid/: none"):
        scan(tmp_path)


def test_one_class_only_is_refused_and_a_folder_too_high_is_hinted_at(tmp_path):
    tree(tmp_path, "photos/cat/1.png", "photos/dog/1.png")
    with pytest.raises(ArgumentError, match=r"one class only, 'photos'.*did you mean '.*photos'"):
        scan(tmp_path)
    tree(tmp_path / "other", "cat/1.png")
    with pytest.raises(ArgumentError, match="one class only, 'cat'; classification needs"):
        scan(tmp_path / "other")


def test_an_empty_class_folder_is_no_class_and_said(tmp_path):
    tree(tmp_path, "a/1.png", "b/1.png", "c/", "docs/readme.txt")
    listing = scan(tmp_path)
    assert listing.items.classes == ("a", "b")
    assert listing.notes == ("c, docs are not classes: they have no images.",)


def test_an_empty_folder_and_one_of_empty_folders_are_refused(tmp_path):
    with pytest.raises(ArgumentError, match="has no images: it is empty"):
        scan(tmp_path)
    tree(tmp_path, "a/", "b/")
    with pytest.raises(ArgumentError, match=r"only folders without images \(a, b\)"):
        scan(tmp_path)


def test_images_without_class_folders_are_told_what_to_do(tmp_path):
    tree(tmp_path, "1.png", "2.png")
    with pytest.raises(ArgumentError, match=r"2 images \(1.png, 2.png\) but no class.*from_csv"):
        scan(tmp_path)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("photo", "does not exist. Closest: 'photos', 'photos.zip' in"),
        ("photos/trian", "does not exist. Closest: 'train' in"),
        ("photso/train", "does not exist. Closest: 'photos', 'photos.zip' in"),
        ("zzz", "does not exist.$"),
        ("labels.csv", "is a file, not a folder; read it with cl.from_csv"),
        ("photos.zip", "is a file, not a folder; unpack it first"),
        ("x" * 300, "does not exist."),
    ],
)
def test_a_path_that_is_no_folder_gets_the_closest_names(tmp_path, path, said):
    tree(tmp_path, "photos/train/a/1.png", "labels.csv", "photos.zip")
    with pytest.raises(ArgumentError, match=said):
        scan(tmp_path / path)


def test_a_path_of_another_type_is_refused():
    with pytest.raises(ArgumentError, match="path must be a folder of images, got 3"):
        scan(3)  # type: ignore[arg-type]


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_links_are_followed_and_loops_end(tmp_path):
    tree(tmp_path, "data/a/1.png", "data/b/1.png", "elsewhere/2.png")
    data = tmp_path / "data"
    (data / "a" / "linked").symlink_to(tmp_path / "elsewhere")
    (data / "a" / "itself").symlink_to(data / "a")
    (data / "a" / "above").symlink_to(data)
    (data / "a" / "3.png").symlink_to(tmp_path / "elsewhere" / "2.png")
    (data / "b" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (data / "c").symlink_to(tmp_path / "elsewhere")
    listing = scan(data)
    assert classes_of(listing) == [
        ("a", "a/1.png"), ("a", "a/3.png"), ("a", "a/linked/2.png"), ("b", "b/1.png"),
        ("c", "c/2.png"),
    ]  # fmt: skip
    why = {Path(one.file).name: one.why for one in listing.skipped}
    assert why == {
        "itself": "a link to a folder above it or one that was read",
        "above": "a link to a folder above it or one that was read",
        "gone.png": "a link to a file that does not exist",
    }


def test_names_with_spaces_other_letters_and_great_length_are_names(tmp_path):
    long = "x" * 200 + ".png"
    tree(tmp_path, "Ä ö/ß 日本.png", f"b b/{long}", "c/🦊.png")
    listing = scan(tmp_path)
    assert set(listing.items.classes) == {"Ä ö", "b b", "c"}
    assert len(listing.items) == 3
