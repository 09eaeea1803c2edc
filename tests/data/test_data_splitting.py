"""What is held out for validation: shares of each class, groups, functions, folders; duplicates."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from convlens.data.duplicates import find_duplicates
from convlens.data.items import Items
from convlens.data.listing import Listing
from convlens.data.splitting import split, uses_folders
from convlens.errors import ArgumentError


def listing_of(counts, held_out=None, kind="classes", groups=None):
    """Files of classes a, b, … with so many images each."""
    labels = np.repeat(np.arange(len(counts)), counts)
    files = tuple(f"{'abcdefgh'[label]}/{i}.png" for i, label in enumerate(labels))
    names = tuple("abcdefgh"[: len(counts)])
    targets = torch.from_numpy(labels)
    items = Items(files, targets if kind == "classes" else targets.float(), names, kind)
    return Listing(items, held_out, (), (), "data", groups)


def counts_of(listing, positions):
    n = len(listing.items.classes)
    return torch.bincount(listing.items.targets[positions], minlength=n).tolist()


def test_each_class_keeps_its_share_on_both_sides():
    listing = listing_of([100, 10, 2])
    parts = split(listing, 0.2)
    assert counts_of(listing, parts.train) == [80, 8, 1]
    assert counts_of(listing, parts.valid) == [20, 2, 1]
    assert sorted(parts.train + parts.valid) == list(range(112))
    assert parts.train == sorted(parts.train)
    assert not parts.notes


def test_the_split_is_a_function_of_the_seed_and_of_each_class_alone():
    listing = listing_of([100, 10])
    assert split(listing, 0.2, seed=1) == split(listing, 0.2, seed=1)
    assert split(listing, 0.2, seed=1) != split(listing, 0.2, seed=2)
    more = split(listing_of([100, 12]), 0.2, seed=1)
    assert [i for i in more.valid if i < 100] == [i for i in split(listing, 0.2, seed=1).valid
                                                 if i < 100]  # fmt: skip


def test_a_class_with_one_image_is_trained_on_and_said():
    listing = listing_of([10, 1])
    parts = split(listing, 0.2)
    assert counts_of(listing, parts.train) == [8, 1]
    assert parts.notes == (
        "1 class has a single image, which is trained on and not validated on.",
        "Not validated on, for want of images: b.",
    )


@pytest.mark.parametrize("kind", ["labels", "numbers"])
def test_without_classes_a_share_of_all_is_held_out(kind):
    parts = split(listing_of([10, 10], kind=kind), 0.25)
    assert (len(parts.train), len(parts.valid)) == (15, 5)


def test_a_function_of_the_path_says_what_is_held_out():
    listing = listing_of([4, 4])
    parts = split(listing, lambda path: path.name in ("1.png", "5.png"))
    assert parts.valid == [1, 5]
    with pytest.raises(ArgumentError, match=r"validation gave 0 for 'a/0.png'; it must be True"):
        split(listing, lambda path: 0)
    with pytest.raises(ArgumentError, match="leaves none of 8 images to validate on"):
        split(listing, lambda path: False)
    with pytest.raises(ArgumentError, match="leaves none of 8 images to train on"):
        split(listing, lambda path: True)
    with pytest.raises(ArgumentError, match="1 class would have no image to train on: b;"):
        split(listing, lambda path: path.parent.name == "b")


def test_folders_say_what_is_held_out_where_there_are_some():
    held_out = (False, False, True, False, True)
    listing, flat = listing_of([3, 2], held_out), listing_of([3, 2])
    assert uses_folders("auto", None, listing)
    assert uses_folders("folders", None, listing)
    assert not uses_folders(0.2, None, listing)
    assert not uses_folders("auto", None, flat)
    assert split(listing, "auto").valid == [2, 4]
    with pytest.raises(ArgumentError, match=r"no train/ with a valid/, val/"):
        uses_folders("folders", None, flat)
    with pytest.raises(ArgumentError, match=r"groups is for a share.*say validation=0.2"):
        uses_folders("auto", str, listing)


def test_none_validates_on_nothing():
    parts = split(listing_of([3, 2]), None)
    assert (parts.train, parts.valid) == ([0, 1, 2, 3, 4], None)


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_on_one_side_only(seed):
    def person(path):
        return int(path.stem) % 10

    listing = listing_of([50, 50])
    parts = split(listing, 0.2, groups=person, seed=seed)
    files = listing.items.files
    sides = [{int(files[i][2:-4]) % 10 for i in side} for side in (parts.train, parts.valid)]
    assert not sides[0] & sides[1]
    assert counts_of(listing, parts.valid) == [10, 10]
    assert parts.notes == (
        "10 groups of images, each on one side only: 20 images (20%) are held out.",
    )
    given = listing_of([50, 50], groups=tuple(i % 10 for i in range(100)))
    assert split(given, 0.2, seed=seed) == parts


def test_groups_that_are_too_large_or_hold_a_class_are_not_held_out():
    listing = listing_of([6, 6], groups=tuple("xxxyyy" * 2))
    assert len(split(listing, 0.1).valid) == 6
    by_class = listing_of([6, 6, 6], groups=tuple("a" * 6 + "b" * 6 + "cccddd"))
    assert split(by_class, 0.2).valid in ([12, 13, 14], [15, 16, 17])
    with pytest.raises(ArgumentError, match="each group has all images of some class"):
        split(listing_of([6, 6], groups=tuple("a" * 6 + "b" * 6)), 0.2)
    with pytest.raises(ArgumentError, match="groups puts all images in one group, 'x'"):
        split(listing_of([6, 6], groups=tuple("x" * 12)), 0.2)
    with pytest.raises(ArgumentError, match=r"groups gives None for 'a/0.png'"):
        split(listing_of([6, 6]), 0.2, groups=lambda path: None)


@pytest.mark.parametrize("wrong", [0, 1, 1.5, -0.1, float("nan"), True, "folder", [0.2]])
def test_what_cannot_be_a_validation_is_refused(wrong):
    with pytest.raises(ArgumentError, match="validation must be a share"):
        uses_folders(wrong, None, listing_of([3, 3]))


def test_a_missing_group_is_refused():
    with pytest.raises(ArgumentError, match=r"groups gives nan for .*; give a text or a number"):
        split(listing_of([4, 4]), 0.5, groups=lambda path: float("nan"))


def test_groups_need_a_share():
    for validation in (None, "folders", lambda path: True):
        with pytest.raises(ArgumentError, match="groups is for validation as a share"):
            uses_folders(validation, str, listing_of([3, 3], (True,) * 6))


def test_files_of_the_same_content_are_found_across_and_within():
    listing = listing_of([4, 4])
    files = listing.items.files
    parts = split(listing, lambda path: path.stem in "267")
    found = find_duplicates(
        files, ["x", "x", "x", "y", "z", "w", "v", "v"], parts.train, parts.valid
    )
    assert found.across == (("a/0.png", "a/2.png"),)
    assert found.within == (("a/1.png", "a/0.png"), ("b/7.png", "b/6.png"))
