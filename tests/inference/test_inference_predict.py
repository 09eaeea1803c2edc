"""`predict` on folders, labels and numbers, with test-time augmentation; the command's predict."""

import csv
import io
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import convlens as cl
from convlens.cli import main
from convlens.data import PixelScale
from convlens.data.input_transform import InputTransform
from convlens.inference import Classifier, Prediction


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of class folders, as `from_folder` takes it."""
    root, rng = tmp_path_factory.mktemp("data") / "photos", np.random.default_rng(0)
    for part, n in (("train", 8), ("valid", 12)):
        for light, name in ((80, "cat"), (150, "dog")):
            (root / part / name).mkdir(parents=True)
            for i in range(n):
                pixels = rng.normal(light, 30, (40 + i, 50, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i}.jpg")
    return root


@pytest.fixture(scope="module")
def learn(photos, tmp_path_factory):
    """A Learner with a run, on images that are stored larger than the network gets them."""
    dls = cl.from_folder(photos, size=32, augment="photos", batch_size=8, device="cpu")
    base = tmp_path_factory.mktemp("runs")
    learn = cl.Learner(
        dls, cl.simple_cnn(3, 2, norm="batch"), progress=False, base=base, metrics=[cl.accuracy]
    )
    learn.fit(2, 0.01)
    return learn


def test_bits_are_those_of_the_validation_loader_also_from_the_run(learn):
    files = list(learn.dls.valid_files)
    learn.model.eval()
    with torch.no_grad():
        right = torch.cat([learn.model(x).softmax(1) for x, _ in learn.dls.valid])
    learn.model.train()
    loaded = cl.load_classifier(learn.run_path, "cpu")
    for one in (learn, loaded):
        said = one.predict(files, batch_size=8)
        assert torch.equal(said.probabilities, right)
        assert said.files == tuple(files)
    assert learn.model.training


def test_what_the_run_says_of_the_input(learn):
    meta = cl.open_run(learn.run_path).meta
    assert meta["architecture"]["name"] == "simple_cnn"
    assert meta["classes"] == ["cat", "dog"]
    assert meta["kind"] == "classes"
    transform = InputTransform.from_facts(meta["input"])
    assert transform.facts() == learn.dls.input_transform.facts() == meta["input"]
    assert transform.input_shape == (3, 32, 32)
    assert transform.preprocessing == learn.dls.preprocessing
    assert transform.preprocessing.stored == (37, 37)


def test_the_facts_of_pixels_to_255_are_of_pixels_to_1():
    images = np.random.default_rng(0).integers(0, 256, (20, 9, 9), np.uint8)
    whole, unit = (
        cl.from_arrays(x, [0, 1] * 10, layout="NHW", device="cpu").input_transform
        for x in (images, images.astype(np.float32) / 255)
    )
    again = InputTransform.from_facts(json.loads(json.dumps(whole.facts())))
    x = torch.from_numpy(images)[:, None]
    assert torch.equal(again.from_uint8(x), whole.from_uint8(x))
    for key in ("mean", "std"):
        ours, theirs = (one.facts()["normalization"][key] for one in (whole, unit))
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_folders_are_read_recursively_in_natural_order(learn, photos, tmp_path):
    new = tmp_path / "new"
    (new / "inner").mkdir(parents=True)
    for i in (10, 9, 2):
        Image.open(photos / "valid" / "dog" / f"{i}.jpg").save(new / "inner" / f"{i}.png")
    (new / "bad.jpg").write_text("no image")
    (new / "notes.txt").write_text("notes")
    said = learn.predict(new)
    assert [file.removeprefix(str(new)) for file in said.files] == [
        "/inner/2.png", "/inner/9.png", "/inner/10.png"
    ]  # fmt: skip
    why = {one.file.removeprefix(str(new)): one.why for one in said.skipped}
    assert why["/notes.txt"] == "not an image, by its ending"
    assert why["/bad.jpg"].startswith("is not an image that can be read; give one of")
    assert repr(said).endswith("; 2 skipped)")
    mixed = learn.predict(path for path in [str(new), photos / "valid" / "cat" / "0.jpg"])
    assert len(mixed) == 4
    assert torch.equal(mixed.probabilities[:3], said.probabilities)
    with pytest.raises(cl.DataError, match=r"bad.jpg is not an image"):
        learn.predict([new / "bad.jpg"])
    with pytest.raises(cl.DataError, match=r"bad.jpg is not an image"):
        learn.predict(new, strict=True)
    with pytest.raises(cl.DataError, match=r"None of 1 file could be read: .*bad.jpg \(is not an"):
        learn.predict([new / "bad.jpg"], strict=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(cl.ArgumentError, match=r"empty' is a folder without images"):
        learn.predict(tmp_path / "empty")


def test_flipped_images_count_as_much(learn, photos):
    x = torch.cat([x for x, _ in learn.dls.valid])
    plain, mirrored = (learn.predict(one, normalized=True).probabilities for one in (x, x.flip(-1)))
    both = learn.predict(photos / "valid", tta="flip").probabilities
    torch.testing.assert_close(both, (plain + mirrored) / 2)
    assert not torch.equal(plain, mirrored)
    y = torch.cat([y for _, y in learn.dls.valid])
    found = learn.validate(tta="flip")
    assert found["loss"] == pytest.approx(-both[range(len(y)), y].log().mean().item(), rel=1e-4)
    assert found["accuracy"] == pytest.approx((both.argmax(1) == y).float().mean().item())
    assert learn.validate() == learn.validate(tta=None)
    for call in (learn.validate, lambda tta: learn.predict(x, tta=tta)):
        with pytest.raises(cl.ArgumentError, match=r"tta must be 'flip' or None, got 'rotate'"):
            call(tta="rotate")


def test_precision_and_layout_are_those_of_validation(learn, photos):
    other = cl.Learner(
        learn.dls, learn.model, run=None, progress=False, precision="bf16", channels_last=True
    )
    said = other.predict(photos / "valid", batch_size=8)
    learn.model.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        right = torch.cat([other.model(x).float().softmax(1) for x, _ in learn.dls.valid])
    assert torch.equal(said.probabilities, right)
    assert not torch.equal(said.probabilities, learn.predict(photos / "valid").probabilities)


# ---- labels and numbers --------------------------------------------------------------------------


def classifier(kind, n_out, classes=()):
    torch.manual_seed(0)
    scale = PixelScale(torch.tensor([0.5]), torch.tensor([0.25]), 0.0, 1.0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(81, n_out))
    return Classifier(model, InputTransform.of((1, 9, 9), scale, None), classes, kind)


def test_labels_are_those_above_a_half():
    labels = classifier("labels", 3, ["a", "b", "c"])
    x = torch.rand(6, 9, 9)
    said = labels.predict(x)
    right = labels.model((x[:, None] - 0.5) / 0.25).sigmoid()
    torch.testing.assert_close(said.probabilities, right.detach())
    assert said.names[1] == tuple("abc"[i] for i in (right[1] > 0.5).nonzero().flatten())
    assert said.top(1)[0] == [("abc"[int(right[0].argmax())], said.probabilities[0].max().item())]
    flipped = labels.predict(x, tta="flip").probabilities
    mirrored = labels.predict(x.flip(-1)).probabilities
    torch.testing.assert_close(flipped, (said.probabilities + mirrored) / 2)
    row = said.to_dict(1)["images"][0]
    assert row["labels"] == list(said.names[0])
    assert set(row["top"][0]) == {"label", "probability"}
    none = Prediction.of_scores(torch.tensor([[-9.0, -9.0], [9.0, 9.0]]), ["a", "b"], "labels")
    assert repr(none) == "Prediction(2 images: none, a+b)"


def test_numbers():
    numbers = classifier("numbers", 1)
    x = torch.rand(6, 9, 9)
    said = numbers.predict(x, batch_size=4)
    right = numbers.model((x[:, None] - 0.5) / 0.25)[:, 0].detach()
    torch.testing.assert_close(said.values, right)
    assert said.to_dict()["images"][2] == {"file": "", "value": said.values[2].item()}
    assert repr(said).startswith(f"Prediction(6 images: {right[0]:.6g}, ")
    with pytest.raises(cl.ArgumentError, match=r"The network predicts numbers; read values"):
        said.top()
    with pytest.raises(
        cl.TrainingError, match=r"output of numbers \(N,\) or \(N, 1\); .* \(6, 2\)"
    ):
        classifier("numbers", 2).predict(x)
    with pytest.raises(cl.TrainingError, match=r"output of labels \(N, 2\); .* is \(6, 3\)"):
        classifier("labels", 3, ["a", "b"]).predict(x)
    with pytest.raises(cl.ArgumentError, match=r"kind must be 'classes', 'labels' or 'numbers', g"):
        classifier("masks", 3)


# ---- the command ---------------------------------------------------------------------------------


@pytest.fixture
def convlens(monkeypatch, capsys):
    """Calls the entry point as the installed command does."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["convlens", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), *capsys.readouterr()

    return call


def test_the_command_predicts_and_lists_what_cannot_be_read(convlens, learn, photos, tmp_path):
    strange = tmp_path / "a\x1b[2J\n.png"
    Image.open(photos / "valid" / "dog" / "3.jpg").save(strange)
    (tmp_path / "bad.jpg").write_text("no image")
    files = [photos / "valid" / "cat", strange, tmp_path / "bad.jpg", tmp_path / "none.jpg"]
    right = learn.predict([photos / "valid" / "cat", strange])
    code, out, err = convlens("predict", learn.run_path, *files, "--top", 2)
    assert code == 0
    lines = out.splitlines()
    (name, share), (other, rest) = right.top(2)[0]
    file, said = lines[0].split("  ", 1)
    assert file.endswith("cat/0.jpg")
    assert said.strip() == f"{name} {share:.1%}  {other} {rest:.1%}"
    assert r"a\x1b[2J\n.png" in lines[12]
    assert lines[13:] == ["13 images, 2 skipped"]
    assert [line.partition(": skipped ")[2] for line in err.splitlines()] == [
        f"{tmp_path}/bad.jpg: is not an image that can be read; give one of BMP, GIF, JPEG, PNG, "
        "PPM, TIFF, WEBP",
        f"{tmp_path}/none.jpg: does not exist",
    ]
    code, out, _ = convlens("predict", learn.run_path, *files, "--format", "json", "--top", 1)
    found = json.loads(out)
    assert (code, found["kind"], len(found["skipped"])) == (0, "classes", 2)
    assert found["images"][12]["file"] == str(strange)
    assert found["images"][0]["top"] == [{"class": name, "probability": pytest.approx(share)}]
    _, out, _ = convlens("predict", learn.run_path, *files, "--format", "csv", "--tta", "flip")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert list(rows[0]) == ["file", "class", "probability", "class_2", "probability_2"]
    assert len(rows) == 13
    assert "\n" not in rows[12]["file"]
    code, out, err = convlens("predict", learn.run_path, tmp_path / "bad.jpg")
    assert (code, out) == (1, "")
    assert err.startswith("convlens: None of 1 file could be read: ")
    code, _, err = convlens("predict", tmp_path, tmp_path / "bad.jpg")
    assert code == 2
    assert "has neither classifier.json nor run.db; give a folder that learn.export wrote" in err


def test_the_command_exports_a_run(convlens, learn, photos, tmp_path):
    code, out, err = convlens("export", learn.run_path, tmp_path / "made")
    assert (code, err) == (0, "")
    assert out.startswith("written, but little compared: ")
    assert "agree with predict on 40 images, fewer than 100, largest difference" in out
    code, out, _ = convlens("predict", tmp_path / "made", photos / "valid", "--format", "json")
    right = learn.predict(photos / "valid").probabilities.amax(1).tolist()
    found = [one["top"][0]["probability"] for one in json.loads(out)["images"]]
    assert found == pytest.approx(right)
    for arguments, sentence in (
        ([learn.run_path, tmp_path / "made"], "holds an earlier export; give a new folder, or --o"),
        ([learn.run_path, tmp_path / "new", "--images", "nowhere"], "'nowhere' is no folder with"),
        ([tmp_path / "made", tmp_path / "new"], "is not the directory of a run"),
    ):
        code, _, err = convlens("export", *arguments)
        assert (code, sentence in err) == (2, True)


def test_a_network_of_ones_own_is_given(convlens, photos, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def made():\n"
        "    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 2))\n"
    )
    dls = cl.from_folder(photos, size=32, device="cpu")
    model = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 2))
    learn = cl.Learner(dls, model, progress=False, base=tmp_path)
    learn.fit(1)
    code, _, err = convlens("predict", learn.run_path, photos / "valid")
    assert code == 2
    assert "convlens did not build by name; give it, with any weights, with --model." in err
    spec = f"{tmp_path / 'mine.py'}:made"
    code, out, err = convlens(
        "predict", learn.run_path, photos / "valid", "--model", spec, "--format", "csv"
    )
    assert (code, err) == (0, "")
    shares = [float(row["probability"]) for row in csv.DictReader(io.StringIO(out))]
    assert shares == pytest.approx(learn.predict(photos / "valid").probabilities.amax(1), rel=1e-4)
    code, _, err = convlens("predict", learn.run_path, photos, "--model", "resnet")
    assert (code, "--model must be file.py:object, got 'resnet'" in err) == (2, True)
