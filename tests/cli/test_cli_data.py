"""``convlens data``, ``show``, ``cache``, and training on files that the test makes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import convlens as cl
from convlens.cli import main

RNG = np.random.default_rng(0)


def make(root, counts, side=16, suffix=".png"):
    """Bright images of one class and dark ones of the others."""
    for k, (name, n) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i in range(n):
            pixels = RNG.integers(100 * k, 100 * k + 60, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}{suffix}")
    return root


@pytest.fixture
def convlens(monkeypatch, capsys, tmp_path):
    """Calls the entry point; gives the exit code, the output and the error output."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["convlens", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), *capsys.readouterr()

    return call


def test_a_folder_is_trained_on_by_the_command(tmp_path):
    make(tmp_path / "photos", {"dark": 40, "bright": 40}, side=20, suffix=".jpg")
    command = [sys.executable, "-W", "error", "-m", "convlens", "train", "photos", "--size", "16"]
    done = subprocess.run(
        [*command, "--epochs", "3", "--augment", "small", "--batch-size", "16", "--json"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "photos: 80 images of 2 classes: 64 to train on, 16 to validate on"
    assert lines[1] == "  classes: 0 bright, 1 dark"
    result = json.loads(lines[-1])
    assert result["run"] == "runs/photos-0001"
    assert result["accuracy"] > 0.9
    run = cl.open_run(tmp_path / "runs" / "photos-0001")
    assert run.meta["data"]["augmentation"]
    assert run.meta["data"]["input_shape"] == [3, 16, 16]


def test_data_says_what_is_there(convlens, tmp_path):
    data = make(tmp_path / "pets", {"cat": 20, "dog": 5})
    (data / "cat" / "notes.txt").write_text("no image")
    shutil.copy(data / "cat" / "0.png", data / "cat" / "copy.png")
    code, out, error = convlens("data", "pets")
    assert (code, error) == (0, "")
    assert out.startswith("pets: 26 images of 2 classes, 3×16×16 in batches\n")
    assert "0 cat     17      4  ████" in out
    assert "not an image, by its ending: cat/notes.txt" in out
    code, out, error = convlens("data", "pets", "--json", "--validation", 0.4)
    assert code == 0
    facts = json.loads(out)
    assert facts["splits"]["valid"]["counts"] == [8, 2]
    assert [one["why"] for one in facts["skipped"]] == ["not an image, by its ending"]
    assert error.startswith("pets: 26 images of 2 classes")


def test_data_in_a_terminal_without_such_characters(tmp_path):
    make(tmp_path / "pets", {"cat": 4, "hündchen": 4})
    done = subprocess.run(
        [sys.executable, "-m", "convlens", "data", "pets"], cwd=tmp_path, capture_output=True,
        text=True, timeout=300, check=False,
        env={"PATH": "", "PYTHONPATH": ":".join(sys.path), "PYTHONIOENCODING": "ascii",
             "CONVLENS_CACHE": str(tmp_path / "cache")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "3x16x16 in batches" in done.stdout
    assert "####" in done.stdout


def test_show_draws_a_batch(convlens, tmp_path):
    make(tmp_path / "pets", {"cat": 10, "dog": 10})
    code, out, _ = convlens("show", "pets", "--augment", "small", "--out", "b.png", "--images", 6)
    assert code == 0
    assert out.splitlines()[-1] == "6 training images of pets: b.png"
    with Image.open(tmp_path / "b.png") as picture:
        assert min(picture.size) > 100
    code, _, error = convlens("show", "pets", "--out", "b.doc")
    assert code == 2
    assert "--out must end in one of" in error


def test_a_table_is_read_with_its_columns(convlens, tmp_path):
    make(tmp_path / "images", {"x": 12})
    rows = [f"{i}.png,{i / 2},{'ab'[i % 2]}" for i in range(12)]
    (tmp_path / "table.csv").write_text("\n".join(["file,age,sort", *rows]))
    options = ("--data", "images/x")
    code, _, error = convlens("data", "table.csv", *options)
    assert code == 2
    assert "not clear which column of 'table.csv' has the labels; say --label" in error
    code, out, _ = convlens("data", "table.csv", *options, "--label", "sort", "--json")
    assert json.loads(out)["classes"] == ["a", "b"]
    code, out, error = convlens("train", "table.csv", *options, "--label", "age", "--epochs", 1,
                                "--batch-size", 4, "--no-watch", "--json")  # fmt: skip
    assert code == 0, error
    result = json.loads(out.splitlines()[-1])
    assert result["accuracy"] is None
    assert result["epochs"][0]["valid_loss"] > 0


def test_a_failure_names_the_options_of_the_command_line(convlens, tmp_path):
    make(tmp_path / "photos", {"a": 3, "b": 3})
    Image.new("RGB", (8, 9)).save(tmp_path / "photos" / "b" / "other.png")
    assert "Without a size, images need" in (said := convlens("data", "photos")[2])
    assert said.endswith("give --size.\n")
    table = tmp_path / "labels.csv"
    table.write_text("id,one,two\n0,p,q\n1,p,p\n2,p,q\n")
    assert "say --image, one of 'id'" in convlens("data", table)[2]
    in_folder = ("data", table, "--data", tmp_path / "photos" / "a")
    assert "say --label, one of 'id'" in convlens(*in_folder)[2]
    assert "--label 'three', but" in convlens(*in_folder, "--label", "three")[2]
    said = convlens("data", table, "--image", "id", "--label", "one")[2]
    assert said.endswith("Give the folder of the files with --data.\n")
    code, out, _ = convlens(*in_folder, "--label", "two")
    assert (code, out.splitlines()[0][:18]) == (0, "labels: 3 images o")


def test_check_takes_a_folder(convlens, tmp_path):
    make(tmp_path / "pets", {"cat": 20, "dog": 20}, side=40)
    code, out, error = convlens("check", "pets", "--seconds", 2, "--json")
    assert code in (0, 3), error
    assert json.loads(out)["tried"]


def test_the_cache_is_listed_and_cleared(convlens, tmp_path):
    make(tmp_path / "pets", {"cat": 4, "dog": 4})
    assert convlens("cache")[1].startswith("0 B in ")
    convlens("data", "pets")
    _, out, _ = convlens("cache")
    assert f"8 images of 3×16×16 from {tmp_path / 'pets'}" in out
    assert convlens("cache", "--clear")[1].splitlines()[-1].split()[2:4] == ["removed", "from"]
    assert convlens("cache")[1].startswith("0 B in ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("data", "pet"), "DATA 'pet' is no folder, no .csv file and none of mnist, "),
        (("data", "pet"), "Closest: 'pets' in"),
        (("data", "cifra10"), "Closest: 'cifar10'"),
        (
            ("train", "pets", "--validation", "x"),
            "must be a share such as 0.2, or folders, got 'x'",
        ),
        (("train", "pets", "--validation", "3"), "validation must be a share between 0 and 1"),
        (("train", "pets", "--label", "x"), "--label is not for a folder"),
        (("train", "mnist", "--size", "3"), "--size is not for mnist"),
        (("train", "mnist", "--balance", "loss"), "--balance is not for mnist"),
        (("train", "mnist", "--data", "."), "--data is not for mnist"),
        (("show", "pets/cat"), "no class folders with images; put the images of each class into"),
    ],
)
def test_what_cannot_be_trained_on_gets_one_sentence(convlens, tmp_path, arguments, said):
    make(tmp_path / "pets", {"cat": 4, "dog": 4})
    code, _, error = convlens(*arguments)
    assert code == 2
    assert error.startswith("convlens: ")
    assert said in error
    assert len(error.splitlines()) == 1
