"""CSV files and lists of files with labels: which are taken as what, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from convlens.data.tables import given_listing, read_listing
from convlens.errors import ArgumentError, DataError

NAMES = ("a.png", "b.png", "c.png", "d.png")


@pytest.fixture
def images(tmp_path):
    """Four images in a folder beside the tables."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name in NAMES:
        Image.new("RGB", (8, 8)).save(folder / name)
    return folder


@pytest.fixture
def read(tmp_path, images):
    """Reads a table with this text, of which the images lie in the folder ``images``."""

    def read_text(text, image=None, label=None, separator=None, kind=None, encoding="utf-8"):
        file = tmp_path / "labels.csv"
        file.write_bytes(text.encode(encoding))
        return read_listing(file, image, label, images, separator, kind)

    return read_text


def labels_of(listing):
    """The name or number of each file's label."""
    items = listing.items
    values = items.targets.tolist()
    if items.kind == "classes":
        values = [items.classes[value] for value in values]
    return {Path(file).name: value for file, value in zip(items.files, values, strict=True)}


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_text_is_classes_with_any_delimiter(read, mark, encoding):
    rows = ["file,label", "a.png,Köln", 'b.png,"x"', "c.png,Köln ", "", "d.png,x"]
    listing = read("\r\n".join(rows).replace(",", mark), encoding=encoding)
    assert labels_of(listing) == {"a.png": "Köln", "b.png": "x", "c.png": "Köln", "d.png": "x"}
    assert (listing.items.kind, listing.items.classes) == ("classes", ("Köln", "x"))
    assert listing.items.targets.dtype == torch.int64


def test_whole_numbers_are_classes_in_natural_order_or_numbers_if_said(read):
    text = "file,label\na.png,10\nb.png,2\nc.png,1\nd.png,2"
    listing = read(text)
    assert listing.items.classes == ("1", "2", "10")
    assert labels_of(listing)["a.png"] == "10"
    as_numbers = read(text, kind="numbers").items
    assert (as_numbers.kind, as_numbers.classes) == ("numbers", ())
    assert as_numbers.targets.tolist() == [10.0, 2.0, 1.0, 2.0]
    assert as_numbers.targets.dtype == torch.float32


def test_floats_are_numbers_or_classes_if_said(read):
    text = "file,label\na.png,0.5\nb.png,-2\nc.png,1e3\nd.png,2"
    assert read(text).items.targets.tolist() == [0.5, -2.0, 1000.0, 2.0]
    assert read(text, kind="classes").items.classes == ("-2", "0.5", "2", "1e3")


def test_a_separator_makes_several_labels(read):
    listing = read("file,tags\na.png,sky sea\nb.png,sea\nc.png,\nd.png,sea  sky sea", separator=" ")
    items = listing.items
    assert (items.kind, items.classes) == ("labels", ("sea", "sky"))
    assert items.targets.tolist() == [[1, 1], [1, 0], [0, 0], [1, 1]]
    assert listing.notes == ("1 image with none of the labels.",)


def test_columns_are_guessed_only_where_nothing_else_can_be_meant(read):
    assert len(read("x,y\na.png,p\nb.png,q").items) == 2
    assert len(read("id,label,width\na.png,p,5\nb.png,q,6").items) == 2
    with pytest.raises(ArgumentError, match=r"not clear which column .* has the labels; say label"):
        read("file,colour,shape\na.png,p,r\nb.png,q,s")
    assert len(read("id,breed\na,p\nb,q").items) == 2  # a.png and b.png are there
    with pytest.raises(ArgumentError, match=r"column .* has the file names.* None names files in"):
        read("one,two\nnot-there,p\nnor-this,q")
    with pytest.raises(ArgumentError, match=r"not clear which column .* has the file names"):
        read("one,two\na,a\nb,b")
    with pytest.raises(ArgumentError, match=r"has no header: its first row names the file 'a.png'"):
        read("a.png,p\nb.png,q")


def test_a_missing_column_gets_the_closest_name(read):
    text = "filename,breed,width\na.png,p,5\nb.png,q,6"
    assert len(read(text, "filename", "breed").items) == 2
    with pytest.raises(ArgumentError, match=r"label='bread', but .* no column .* Closest: 'breed'"):
        read(text, "filename", "bread")
    with pytest.raises(ArgumentError, match=r"image='file'.*'filename', 'breed', 'width'"):
        read(text, "file", "breed")
    with pytest.raises(ArgumentError, match="image and label are the same column"):
        read(text, "breed", "breed")
    with pytest.raises(ArgumentError, match="several columns of labels are not supported"):
        read(text, "filename", ["breed", "width"])
    with pytest.raises(ArgumentError, match="more than one column"):
        read("file,label,label\na.png,p,p\nb.png,q,q", label="label")


def test_files_that_are_not_there_are_listed_with_the_closest(read, images):
    with pytest.raises(ArgumentError) as refused:
        read("file,label\na.png,p\nbb.png,q\nzz.png,p")
    said = str(refused.value)
    assert "names 2 files that are not there" in said
    assert "'bb.png' (row 3), 'zz.png' (row 4)" in said
    assert "Closest: 'b.png'" in said
    assert "folder=" not in said
    with pytest.raises(ArgumentError, match="Give the folder of the files with folder="):
        read("file,label\nimages/a.png,p\nimages/b.png,q")
    many = "\n".join(f"no{i}.png,p" for i in range(20))
    with pytest.raises(ArgumentError, match=r"\(row 11\) and 10 more"):
        read(f"file,label\n{many}")


def test_a_name_that_may_be_two_files_is_refused(read, images):
    assert labels_of(read("file,label\na,x\nb,y")) == {"a.png": "x", "b.png": "y"}
    Image.new("RGB", (8, 8)).save(images / "b.jpg")
    with pytest.raises(ArgumentError, match=r"'b' \(row 3\), which may be each of 'b.jpg'"):
        read("file,label\na,x\nb,y", image="file", label="label")


def test_the_folder_of_the_table_is_where_files_lie_unless_said(tmp_path, images):
    table = tmp_path / "t.csv"
    table.write_text("file,label\nimages/a.png,p\nimages\\b.png,q\nimages/c,q\n")
    listing = read_listing(table, None, None, None, None, None)
    assert list(labels_of(listing)) == ["a.png", "b.png", "c.png"]
    with pytest.raises(ArgumentError, match=r"'.*imagse' is not a folder. Closest: 'images'"):
        read_listing(table, None, None, tmp_path / "imagse", None, None)


def test_files_without_a_label_are_listed(read):
    listing = read("file,label\na.png,p\nc.png,q")
    assert [(Path(one.file).name, one.why) for one in listing.skipped] == [
        ("b.png", "no label in labels.csv"),
        ("d.png", "no label in labels.csv"),
    ]


def test_a_row_that_comes_twice_is_dropped_and_two_labels_of_a_file_are_refused(read):
    listing = read("file,label\na.png,p\nb.png,q\na.png,p\n./a.png,p")
    assert len(listing.items) == 2
    assert listing.notes == ("2 rows dropped: file and label of an earlier one again.",)
    with pytest.raises(
        ArgumentError, match=r"1 file with two different .*'a.png' in row 2 and row 4"
    ):
        read("file,label\na.png,p\nb.png,q\na.png,q")


@pytest.mark.parametrize("empty", ["", " ", "nan", "NaN"])
def test_labels_that_are_missing_are_refused_with_their_rows(read, empty):
    with pytest.raises(ArgumentError, match="2 images have no label: row 3, row 5;"):
        read(f"file,label\na.png,p\nb.png,{empty}\nc.png,q\nd.png,{empty}")
    with pytest.raises(ArgumentError, match="1 image has no label: row 2;"):
        read(f"file,label\na.png,{empty}\nb.png,1.5")


def test_numbers_must_be_numbers(read):
    with pytest.raises(ArgumentError, match="no finite number: 'x' in row 3, 'inf' in row 4"):
        read("file,label\na.png,1\nb.png,x\nc.png,inf", kind="numbers")
    with pytest.raises(
        ArgumentError, match="kind must be None, 'classes' or 'numbers', got 'many'"
    ):
        read("file,label\na.png,1", kind="many")
    with pytest.raises(ArgumentError, match="kind='numbers' is for one label"):
        read("file,label\na.png,1", kind="numbers", separator=" ")
    with pytest.raises(ArgumentError, match=r"All images have the label p; .* at least two"):
        read("file,label\na.png,p\nb.png,p")


def test_classes_that_differ_in_case_only_are_said(read):
    listing = read("file,label\na.png,cat\nb.png,Cat\nc.png,dog")
    assert listing.notes == ("Classes that differ in case only: 'Cat' and 'cat'.",)


def test_what_is_no_table_is_refused(read, tmp_path, images):
    for text, said in (
        ("", "has no rows below a header"),
        ("file,label\n", "has no rows below a header"),
        ("file,label\na.png,p\nb.png,q,r\nc.png\n", "another number in row 3, row 4"),
        ("file,label\n,p\nb.png,q", "names no file in row 2"),
    ):
        with pytest.raises((ArgumentError, DataError), match=said):
            read(text)
    with pytest.raises(DataError, match="is not UTF-8 text: line 2 has the byte 0xf6; save it as"):
        read("file,label\na.png,Köln\n", encoding="latin-1")
    with pytest.raises(ArgumentError, match=r"does not exist. Closest: 'labels.csv'"):
        read_listing(tmp_path / "label.csv", None, None, None, None, None)
    with pytest.raises(ArgumentError, match=r"is a folder; read it with cl.from_folder"):
        read_listing(images, None, None, None, None, None)


def test_lists_of_files_and_labels(images):
    paths = [images / name for name in NAMES]
    assert given_listing(paths, np.array([7, 3, 3, 7]), None).items.classes == ("3", "7")
    assert given_listing(paths, torch.tensor([1.5, 2, 3, 4]), None).items.kind == "numbers"
    several = given_listing(paths, [["x", "y"], ["y"], [], ("x",)], None).items
    assert several.targets.tolist() == [[1, 1], [0, 1], [0, 0], [1, 0]]
    text = given_listing(map(str, paths), ["b", "a", "b", "a"], None).items
    assert text.targets.tolist() == [1, 0, 1, 0]


def test_lists_that_do_not_fit_are_refused(images):
    paths = [str(images / name) for name in NAMES]
    for given, labels, said in (
        (paths, ["a"], "paths has 4 files and labels 1; give one label for each"),
        ([], [], "paths has 0 files"),
        ("a.png", ["a"], "must be lists"),
        ([1], ["a"], "paths must be a list of paths"),
        (paths, ["a", "b", None, "a"], r"1 image has no label: labels\[2\]"),
        (paths, ["a", "b", ["c"], "a"], r"label in labels\[0\] is 'a'; where one image has a list"),
        (paths, ["a", "b", 1.5, "a"], r"label in labels\[2\] is 1.5, of type float"),
        ([*paths[:3], "images/x.png"], list("abab"), r"paths names 1 file .*\(paths\[3\]\)"),
    ):
        with pytest.raises(ArgumentError, match=said):
            given_listing(given, labels, None)
