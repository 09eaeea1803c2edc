"""Real image files → batches: classes, sizes, balance, duplicates, last batches, what is said."""

from __future__ import annotations

import shutil
from itertools import compress
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from PIL import Image

import convlens as cl
from convlens.core.snapshots import Mistakes
from convlens.core.terminal import printable
from convlens.data.augmentation import Flip, Mixup
from convlens.errors import ArgumentError, ConvlensWarning, DataError

RNG = np.random.default_rng(0)


def image(path: Path, size=(12, 10), mode="RGB", colour=None):
    """A file of random pixels, or of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if colour is not None:
        Image.new(mode, size, colour).save(path)
        return path
    shape = (size[1], size[0], 3)[: 3 if mode == "RGB" else 2]
    Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8)).save(path)
    return path


def folder(root: Path, counts: dict[str, int], **options) -> Path:
    for name, n in counts.items():
        for i in range(n):
            image(root / name / f"{i}.png", **options)
    return root


@pytest.fixture
def _close_figures():
    yield
    plt.close("all")


# ---- folders -----------------------------------------------------------------------------


def test_a_folder_becomes_batches_of_its_images(tmp_path, capsys):
    pets = folder(tmp_path / "pets", {"cat": 10, "dog": 20})
    dls = cl.from_folder(pets, size=8, batch_size=8, device="cpu")
    assert capsys.readouterr().out.splitlines() == [
        "pets: 30 images of 2 classes: 24 to train on, 6 to validate on",
        "  classes: 0 cat, 1 dog",
        "  in memory: 4.61 kB of uint8",
    ]
    assert (dls.name, dls.classes, dls.kind) == ("pets", ("cat", "dog"), "classes")
    x, y = next(iter(dls.train))
    assert (x.shape, x.dtype, y.dtype) == ((8, 3, 8, 8), torch.float32, torch.int64)
    everything = torch.cat([x for x, _ in dls.train])
    assert everything.mean().abs() < 0.01
    assert (everything.std() - 1).abs() < 0.02
    facts = dls.facts()
    assert (facts["n_train"], facts["n_valid"], facts["input_shape"]) == (24, 6, [3, 8, 8])
    assert facts["normalization"] == "mean and deviation of the training images"


def test_items_say_which_file_is_where(tmp_path):
    for i, grey in enumerate(range(0, 250, 10)):
        image(tmp_path / "pets" / "ab"[i % 2] / f"{grey}.png", colour=grey, mode="L")
    dls = cl.from_folder(tmp_path / "pets", batch_size=4, device="cpu")
    for loader in (dls.train, dls.valid):
        x, y = loader.pick(torch.arange(len(loader.items)))
        for picture, label, file in zip(dls.to_uint8(x), y.tolist(), loader.items.files,
                                        strict=True):  # fmt: skip
            assert (picture == int(Path(file).stem)).all()
            assert Path(file).parent.name == dls.classes[label]
    held_out, trained = set(dls.valid.items.files), set(dls.train.items.files)
    assert not held_out & trained
    assert (len(held_out), len(trained)) == (5, 20)


def test_folders_to_validate_on_are_used_and_can_be_left(tmp_path, capsys):
    data = folder(tmp_path / "data", {"train/a": 5, "train/b": 5, "test/a": 2, "test/b": 2})
    dls = cl.from_folder(data, batch_size=4, device="cpu")
    assert len(dls.valid.items) == 4
    assert "There is no valid/, so test/ is what is validated on." in capsys.readouterr().out
    dls = cl.from_folder(data, validation=0.2, batch_size=4, device="cpu")
    assert {Path(file).parts[-3] for file in dls.valid.items.files} == {"train"}
    assert len(dls.train.items) == 8
    out = capsys.readouterr().out
    assert "The folder to validate on is left unused." in out
    assert "so test/ is" not in out
    dls = cl.from_folder(data, validation=None, batch_size=4, device="cpu")
    assert dls.valid is None
    assert "10 images of 2 classes: 10 to train on\n" in capsys.readouterr().out


def test_grey_images_have_one_channel_unless_the_model_expects_three(tmp_path):
    data = folder(tmp_path / "data", {"a": 3, "b": 3}, mode="L")
    assert cl.from_folder(data, device="cpu").train.input_shape == (1, 10, 12)
    dls = cl.from_folder(data, normalize="imagenet", device="cpu")
    assert dls.train.input_shape == (3, 10, 12)
    x, _ = dls.train.pick(torch.tensor([0]))
    pixels = np.asarray(Image.open(dls.train.items.files[0])) / 255
    assert np.allclose(x[0, 1], (pixels - 0.456) / 0.224, atol=1e-5)
    assert dls.facts()["normalization"] == "mean and deviation of ImageNet"
    image(data / "a" / "colour.png")
    assert cl.from_folder(data, device="cpu").train.input_shape == (3, 10, 12)


def test_images_of_several_sizes_need_a_size(tmp_path):
    data = folder(tmp_path / "data", {"a": 3, "b": 3})
    image(data / "a" / "large.png", size=(40, 50))
    with pytest.raises(DataError, match="Without a size, images need to have one size"):
        cl.from_folder(data, device="cpu")
    for resize in ("crop", "squish", "pad"):
        dls = cl.from_folder(data, size=(6, 8), resize=resize, device="cpu")
        assert dls.train.input_shape == (3, 6, 8)
        assert dls.describe().to_dict()["width"] == {"least": 12, "median": 12, "most": 40}


@pytest.mark.parametrize("resize", ["crop", "squish", "pad"])
def test_strange_shapes_are_images_too(tmp_path, resize):
    data = folder(tmp_path / "data", {"a": 3, "b": 3})
    image(data / "a" / "pixel.png", size=(1, 1))
    image(data / "b" / "long.png", size=(10_000, 10))
    dls = cl.from_folder(data, size=8, resize=resize, device="cpu", validation=None)
    assert len(dls.train.items) == 8
    assert all(x.isfinite().all() for x, _ in dls.train)


# ---- damaged and repeated files ----------------------------------------------------------


def test_what_cannot_be_read_is_listed_and_left_as_it_is(tmp_path, capsys):
    data = folder(tmp_path / "data", {"a": 100, "b": 100})
    (data / "a" / "broken.png").write_bytes((data / "a" / "0.png").read_bytes()[:60])
    (data / "b" / "notes.txt").write_text("no image")
    before = (data / "a" / "broken.png").read_bytes()
    dls = cl.from_folder(data, device="cpu")
    assert len(dls.train.items) + len(dls.valid.items) == 200
    out = capsys.readouterr().out
    assert "skipped 2 files: b/notes.txt (not an image, by its ending), a/broken.png (is " in out
    files = {Path(one["file"]).name for one in dls.describe().to_dict()["skipped"]}
    assert files == {"broken.png", "notes.txt"}
    assert "a/broken.png" in str(dls.describe())
    assert (data / "a" / "broken.png").read_bytes() == before
    with pytest.raises(DataError, match="strict=True allows none"):
        cl.from_folder(data, strict=True, device="cpu")


def test_a_class_of_which_nothing_can_be_read_is_refused(tmp_path):
    data = folder(tmp_path / "data", {"a": 200, "b": 200})
    (data / "c").mkdir()
    (data / "c" / "empty.png").touch()
    with pytest.raises(ArgumentError, match="1 class would have no image to train on: c"):
        cl.from_folder(data, device="cpu")


def test_the_same_image_on_both_sides_is_said_with_names(tmp_path, capsys):
    data = folder(tmp_path / "data", {"train/a": 5, "train/b": 5, "valid/a": 5, "valid/b": 5})
    shutil.copy(data / "train/a/3.png", data / "valid/a/copy.png")
    shutil.copy(data / "train/a/3.png", data / "train/b/copy.png")
    with pytest.warns(ConvlensWarning, match="1 validation image is also among .*train.a.3.png = "):
        dls = cl.from_folder(data, device="cpu")
    found = dls.describe().to_dict()["duplicates"]
    assert [[Path(file).name for file in pair] for pair in found["across"]] == [
        ["3.png", "copy.png"]
    ]
    assert [[Path(file).parts[-2] for file in pair] for pair in found["within"]] == [["b", "a"]]
    assert "1 image in train and in valid, 1 more within one of them" in str(dls.describe())


def test_groups_keep_duplicates_and_persons_together(tmp_path, capsys):
    data = tmp_path / "data"
    for i in range(40):
        image(data / "ab"[i % 2] / f"person{i % 8}-{i}.png")
    dls = cl.from_folder(data, groups=lambda path: path.name.split("-")[0], device="cpu")
    sides = [{Path(file).name.split("-")[0] for file in loader.items.files}
             for loader in (dls.train, dls.valid)]  # fmt: skip
    assert not sides[0] & sides[1]
    assert "8 groups of images, each on one side only" in capsys.readouterr().out


# ---- batches -----------------------------------------------------------------------------


def test_a_batch_larger_than_the_set_is_all_of_it(tmp_path, capsys):
    data = folder(tmp_path / "data", {"a": 5, "b": 5})
    dls = cl.from_folder(data, batch_size=64, device="cpu")
    assert "batch_size=64 is more than there are images to train on" in capsys.readouterr().out
    assert [len(x) for x, _ in dls.train] == [8]
    with pytest.raises(ArgumentError, match="drop_last=True leaves no batch of 8 images"):
        cl.from_folder(data, batch_size=64, drop_last=True, device="cpu")


def test_a_last_batch_of_one_is_left_out_and_said(tmp_path, capsys):
    data = folder(tmp_path / "data", {"a": 5, "b": 6})
    dls = cl.from_folder(data, batch_size=4, validation=0.2, device="cpu")
    assert len(dls.train.items) == 9
    assert [len(x) for x, _ in dls.train] == [4, 4]
    assert "would be a single image" in capsys.readouterr().out
    learn = cl.Learner(dls, cl.simple_cnn(3, 2, norm="batch"), run=None, progress=False)
    learn.fit(1)
    cl.from_folder(data, batch_size=3, device="cpu")
    assert "single image" not in capsys.readouterr().out


def test_fewer_validation_images_than_classes_are_said(tmp_path, capsys):
    data = folder(tmp_path / "data", {"a": 3, "b": 3, "c": 1, "d": 1})
    dls = cl.from_folder(data, device="cpu")
    assert len(dls.valid.items) == 2
    out = capsys.readouterr().out
    assert "2 classes have a single image, which is trained on and not validated on." in out
    assert "Not validated on, for want of images: c, d." in out


def test_sampling_makes_up_for_imbalance(tmp_path, capsys):
    data = folder(tmp_path / "data", {"a": 90, "b": 10})
    dls = cl.from_folder(data, validation=None, device="cpu")
    assert 'the smallest; balance="sample" or balance="loss"' in capsys.readouterr().out
    assert dls.class_weights is None
    dls = cl.from_folder(data, validation=None, balance="sample", device="cpu")
    drawn = torch.cat([y for _ in range(5) for _, y in dls.train])
    assert 200 < (drawn == 1).sum() < 300
    assert dls.describe().to_dict()["imbalance"] == 9


def test_weights_in_the_loss_make_up_for_imbalance(tmp_path):
    data = folder(tmp_path / "data", {"a": 9, "b": 3})
    dls = cl.from_folder(data, validation=None, balance="loss", device="cpu")
    assert torch.allclose(dls.class_weights, torch.tensor([2 / 3, 2.0]))
    learn = cl.Learner(dls, cl.simple_cnn(3, 2), run=None, progress=False)
    output, y = torch.randn(4, 2), torch.tensor([0, 1, 0, 0])
    weighted = torch.nn.functional.cross_entropy(output, y, weight=dls.class_weights)
    assert torch.equal(learn.loss_function(output, y), weighted)
    learn.fit(1)
    assert dls.facts()["balance"] == "loss"


def test_a_memory_limit_streams_and_is_said(tmp_path, capsys):
    data = folder(tmp_path / "data", {"a": 10, "b": 10})
    whole = cl.from_folder(data, batch_size=4, seed=3, device="cpu")
    capsys.readouterr()
    dls = cl.from_folder(data, batch_size=4, seed=3, device="cpu", max_memory=1000)
    assert "  streamed: 5.76 kB of uint8, of which 1.00 kB may be in memory" in (
        capsys.readouterr().out
    )
    for (x, y), (x_whole, y_whole) in zip(dls.train, whole.train, strict=True):
        assert torch.equal(x, x_whole)
        assert torch.equal(y, y_whole)


def test_augmentation_is_recorded_and_repeated_after_a_restart(tmp_path):
    data = folder(tmp_path / "data", {"a": 8, "b": 8}, size=(20, 20))

    def batches():
        dls = cl.from_folder(data, size=14, batch_size=4, augment="photos", seed=5, device="cpu")
        return dls, [x for _ in range(2) for x, _ in dls.train]

    (first, a), (_, b) = batches(), batches()
    assert all(torch.equal(x, z) for x, z in zip(a, b, strict=True))
    assert a[0].shape == (4, 3, 14, 14)
    assert first.facts()["augmentation"]
    assert first.valid.input_shape == (3, 14, 14)
    flipped = cl.from_folder(data, augment=[Flip()], device="cpu")
    assert flipped.train.input_shape == (3, 20, 20)


# ---- labels and numbers ------------------------------------------------------------------


def table(tmp_path, label, n=20):
    lines = ["file,label"]
    for i in range(n):
        image(tmp_path / "images" / f"{i}.png")
        lines.append(f"images/{i}.png,{label(i)}")
    file = tmp_path / "table.csv"
    file.write_text("\n".join(lines))
    return file


@pytest.mark.usefixtures("_close_figures")
def test_several_labels_are_trained_and_shown(tmp_path):
    file = table(tmp_path, lambda i: ["sea", "sky", "sea sky", ""][i % 4])
    dls = cl.from_csv(file, separator=" ", batch_size=4, device="cpu")
    assert (dls.kind, dls.classes) == ("labels", ("sea", "sky"))
    _, y = next(iter(dls.train))
    assert (y.shape, y.dtype) == ((4, 2), torch.float32)
    learn = cl.Learner(dls, cl.simple_cnn(3, 2), run=None, progress=False,
                       callbacks=[cl.Pictures()])  # fmt: skip
    learn.fit(1)
    assert learn.loss_function is torch.nn.functional.binary_cross_entropy_with_logits
    captions = {text.get_text() for text in dls.show_batch(16).texts}
    assert captions <= {"sea", "sky", "sea, sky", ""}
    assert len(captions) > 2
    said = learn.predict(tmp_path / "images")
    assert said.names[3] == tuple(compress(("sea", "sky"), said.labels[3]))
    with pytest.raises(ArgumentError, match="balance='loss' is for images of one class each"):
        cl.from_csv(file, separator=" ", balance="loss", device="cpu")


@pytest.mark.usefixtures("_close_figures")
def test_numbers_are_trained_and_shown(tmp_path):
    dls = cl.from_csv(table(tmp_path, lambda i: i / 3), batch_size=4, device="cpu")
    assert (dls.kind, dls.classes) == ("numbers", ())
    learn = cl.Learner(dls, cl.simple_cnn(3, 1), run=None, progress=False,
                       callbacks=[cl.Pictures()])  # fmt: skip
    learn.fit(1)
    output, y = torch.randn(4, 1), torch.randn(4)
    assert torch.isclose(learn.loss_function(output, y), ((output[:, 0] - y) ** 2).mean())
    assert all(len(text.get_text()) <= 5 for text in dls.show_batch(8).texts)
    assert "numbers: least" in str(dls.describe())
    wrong = cl.Learner(dls, cl.simple_cnn(3, 2), run=None, progress=False)
    with pytest.raises(cl.TrainingError, match=r"shape \(4, 2\) for 4 numbers; give it one"):
        wrong.fit(1)


@pytest.mark.usefixtures("_close_figures")
def test_mixed_classes_are_trained_and_shown_with_their_shares(tmp_path):
    data = folder(tmp_path / "data", {"a": 8, "b": 8})
    dls = cl.from_folder(data, augment=[Mixup()], batch_size=8, device="cpu")
    _, y = next(iter(dls.train))
    assert y.shape == (8, 2)
    learn = cl.Learner(dls, cl.simple_cnn(3, 2), metrics=[cl.accuracy], run=None, progress=False,
                       callbacks=[cl.Pictures()])  # fmt: skip
    learn.fit(1)
    captions = [text.get_text() for text in dls.show_batch(8).texts]
    assert any("%" in caption for caption in captions) or set(captions) <= {"a", "b"}
    assert dls.captions(torch.tensor([[0.7, 0.3], [1.0, 0.0]])) == ["a 70%, b 30%", "a"]


def test_lists_of_files_take_groups_and_kinds(tmp_path):
    paths = [image(tmp_path / f"{i}.png") for i in range(20)]
    dls = cl.from_files(paths, [i % 2 for i in range(20)], groups=[i // 4 for i in range(20)],
                        batch_size=4, device="cpu")  # fmt: skip
    assert len({int(Path(file).stem) // 4 for file in dls.valid.items.files}) == 1
    assert dls.classes == ("0", "1")
    as_numbers = cl.from_files(paths, range(20), kind="numbers", batch_size=4, device="cpu")
    assert as_numbers.kind == "numbers"
    with pytest.raises(ArgumentError, match="groups has 3 groups for 20 images"):
        cl.from_files(paths, [i % 2 for i in range(20)], groups=[1, 2, 3])


def test_a_column_of_groups(tmp_path):
    lines = ["file,label,patient"]
    for i in range(20):
        image(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,{'xy'[i % 2]},p{i // 4}")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    dls = cl.from_csv(tmp_path / "t.csv", label="label", groups="patient", device="cpu")
    assert len({int(Path(file).stem) // 4 for file in dls.valid.items.files}) == 1


# ---- arguments and descriptions ----------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": 0}, "size must be"),
        ({"size": (8,)}, "size must be"),
        ({"size": "8"}, "size must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"seed": -1}, "seed must be"),
        ({"resize": "stretch"}, "resize must be one of 'crop', 'squish', 'pad', got 'stretch'"),
        ({"normalize": True}, "normalize must be one of 'data', 'imagenet', got True"),
        ({"balance": "both"}, "balance must be one of 'sample', 'loss', None"),
        ({"validation": 2}, "validation must be a share"),
        ({"validation": "folders"}, "validation='folders', but there is no"),
        ({"augment": "foto", "size": 8}, "photos"),
        ({"augment": "foto"}, "photos"),
        ({"groups": [1, 2]}, "groups must be a function of a path"),
        ({"max_memory": -1}, "max_memory must be"),
        ({"device": "gpu9"}, "device"),
    ],
)
def test_arguments_that_cannot_work_get_a_sentence(tmp_path, options, said):
    data = folder(tmp_path / "data", {"a": 3, "b": 3})
    with pytest.raises(ArgumentError, match=said):
        cl.from_folder(data, **options)


def test_describe_is_text_and_json(tmp_path):
    data = folder(tmp_path / "data", {"cat": 30, "dog": 10})
    described = cl.from_folder(data, size=8, augment="small", device="cpu").describe()
    lines = str(described).splitlines()
    assert lines[0] == "data: 40 images of 2 classes, 3×8×8 in batches"
    assert lines[2].split() == ["train", "valid"]
    assert lines[3].split()[:4] == ["0", "cat", "24", "6"]
    assert lines[3].count("█") == 3 * lines[4].count("█") + 1
    for title in ("Source", "Files", "Sizes", "Skipped", "Duplicates", "Balance", "Normalization",
                  "Augmentation", "Storage"):  # fmt: skip
        assert any(line.startswith(title) for line in lines), title
    facts = described.to_dict()
    assert facts["splits"]["train"]["counts"] == [24, 8]
    assert facts["formats"] == {"PNG": 40}
    assert facts["imbalance"] == 3


def test_of_a_thousand_classes_the_largest_and_smallest_are_shown():
    counts = np.arange(1, 101)
    y = np.repeat(np.arange(100), counts)
    dls = cl.from_arrays(torch.rand(len(y), 2, 2), y, layout="NHW", device="cpu")
    lines = str(dls.describe()).splitlines()
    rows = [line.split() for line in lines[3:24]]
    assert [row[0] for row in rows[:10]] == [str(i) for i in range(99, 89, -1)]
    assert rows[10] == ["…", "80", "more", "…"]
    assert [row[0] for row in rows[11:]] == [str(i) for i in range(9, -1, -1)]
    assert len(lines) < 30


def test_loaders_of_ones_own_say_what_is_known():
    dls = cl.DataLoaders([(torch.zeros(2, 1, 4, 4), torch.tensor([0, 1]))])
    assert "not known without reading all batches" in str(dls.describe())
    assert dls.describe().to_dict()["splits"] == {"train": {"images": None, "storage": ""}}
    with pytest.raises(ArgumentError, match="kind must be 'classes', 'labels' or 'numbers'"):
        cl.DataLoaders([], kind="many")


def test_mistakes_name_their_files(tmp_path):
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(20):
            pixels = random.integers(0, 255, (12, 12), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{name} {i}\n\x1b.png")
    dls = cl.from_folder(tmp_path / "photos", batch_size=8, validation=0.5, device="cpu")
    run = tmp_path / "run"
    learn = cl.Learner(
        dls, cl.simple_cnn(1, 2), callbacks=[cl.Pictures()], run=run, progress=False, seed=0
    )
    learn.fit(1, 0.01)
    kept = cl.open_run(run).snapshot(Mistakes)
    assert len(kept.files) == len(kept.item) > 0
    for file, item, true in zip(kept.files, kept.item, kept.true, strict=True):
        assert printable(dls.valid.items.files[item]) == file
        assert f"/{dls.classes[true]}/" in file
        assert file.isprintable()
    report = cl.report(run).read_text()
    assert kept.files[0].rsplit("/", 1)[-1] in report
