"""Exports: what is written, that it answers as `predict` does, and what is refused."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import convlens as cl
from convlens.data import PixelScale
from convlens.data.embedded import read_idx
from convlens.data.preprocessing import Preprocessing

N = 128


@pytest.fixture(scope="module")
def digits():
    """Real digits, (N, 28, 28) uint8, and their labels."""
    images, labels = (read_idx(f"t10k-{name}-ubyte") for name in ("images-idx3", "labels-idx1"))
    return images[:600], labels[:600]


def trained(digits, model=None, **kwargs):
    """A Learner after a few steps, so that batch normalization has statistics of real images."""
    images, labels = digits
    valid = images[:N], labels[:N]
    dls = cl.from_arrays(
        images, labels, layout="NHW", valid=valid, batch_size=50, device="cpu",
        classes=[f"digit {i}" for i in range(10)],
    )  # fmt: skip
    torch.manual_seed(0)
    model = cl.simple_cnn(1, 10, norm="batch") if model is None else model
    learn = cl.Learner(dls, model, run=None, progress=False, **kwargs)
    learn.fit(1, 0.01)
    return learn


@pytest.fixture(scope="module")
def learn(digits):
    return trained(digits)


@pytest.fixture(scope="module")
def exported(learn, tmp_path_factory):
    """An export that is not to be changed; nothing else was changed by making it."""
    folder = tmp_path_factory.mktemp("exports") / "classifier"
    learn.model[0].eval()
    random, modes = torch.get_rng_state(), [m.training for m in learn.model.modules()]
    before = {name: value.clone() for name, value in learn.model.state_dict().items()}
    order = learn.dls.train.peek(9)[1]
    learn.export(folder)
    assert all(torch.equal(before[k], v) for k, v in learn.model.state_dict().items())
    assert [m.training for m in learn.model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(learn.dls.train.peek(9)[1], order)
    return folder


def test_onnx_runtime_and_the_reloaded_folder_answer_as_predict_does(learn, exported, digits):
    images = digits[0][:N]
    right = learn.predict(images)
    assert right.probabilities.amax(1).mean() > 0.3
    session = onnxruntime.InferenceSession(exported / "model.onnx")
    for n in (1, 2, 7, N):
        (found,) = session.run(["probabilities"], {"images": images[:n, :, :, None]})
        np.testing.assert_allclose(found, right.probabilities[:n].numpy(), atol=1e-5)
    loaded = cl.load_classifier(exported, device="cpu")
    assert torch.equal(loaded.predict(images).probabilities, right.probabilities)
    assert loaded.predict(images[:2]).names == right.names[:2]
    assert repr(loaded) == "Classifier(Sequential, 10 classes, images of 1×28×28, cpu)"


def test_the_json_says_what_somebody_needs_to_use_it(exported):
    facts = json.loads((exported / "classifier.json").read_text())
    assert facts["kind"] == "classes"
    assert facts["classes"][3] == "digit 3"
    assert facts["architecture"]["name"] == "simple_cnn"
    assert facts["input"]["input_shape"] == [1, 28, 28]
    assert 0.1 < facts["input"]["normalization"]["mean"][0] < 0.2  # of pixels from 0 to 1
    assert set(facts["versions"]) == {"python", "convlens", "torch", "onnx", "onnxruntime"}
    assert facts["compared"]["images"] == N
    assert facts["files"]["model.onnx"]["bytes"] == (exported / "model.onnx").stat().st_size


@pytest.mark.slow  # lint-imports holds that `inference` imports nothing of `train`
def test_loading_needs_no_training_code(exported, digits):
    np.save("digits.npy", digits[0][:3])
    program = (
        "import sys, numpy, convlens as cl\n"
        "said = cl.load_classifier(sys.argv[1], 'cpu').predict(numpy.load('digits.npy'))\n"
        "assert 'convlens.train' not in sys.modules and 'onnx' not in sys.modules\n"
        "print(*said.labels.tolist())"
    )
    command = [sys.executable, "-W", "error", "-c", program, exported]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    right = cl.load_classifier(exported, "cpu").predict(digits[0][:3])
    assert done.stdout.split() == list(map(str, right.labels.tolist()))


# ---- other kinds of networks ---------------------------------------------------------------------


class Multiplied(nn.Sequential):
    """Another function where it is exported."""

    def forward(self, x):
        return super().forward(x) * (1.05 if torch.compiler.is_exporting() else 1.0)


def small(n_out, n_in=1, kind=nn.Sequential):
    return kind(nn.Conv2d(n_in, 4, 5, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(144, n_out))


def given_pixels(kind, y, classes=(), model=None, n_in=1, **kwargs):
    """A Learner on batches of one's own, whose normalization is known."""
    x = torch.rand(len(y), n_in, 28, 28)
    scale = PixelScale(torch.full((n_in,), 0.5), torch.full((n_in,), 0.25), 0.0, 1.0)
    settings = {"scale": scale, "preprocessing": Preprocessing((28, 28), channels=n_in)} | kwargs
    dls = cl.DataLoaders([((x - 0.5) / 0.25, y)], kind=kind, classes=classes, **settings)
    model = small(len(classes) or 1, n_in) if model is None else model
    return cl.Learner(dls, model, run=None, progress=False)


def test_several_labels_and_numbers(tmp_path, capfd):
    photos = np.random.default_rng(0).integers(0, 256, (5, 28, 28, 3), np.uint8)
    labels = given_pixels("labels", torch.eye(3).repeat(40, 1), ["a", "b", "c"], n_in=3)
    (tmp_path / "labels").mkdir()  # an empty folder is used
    labels.export(tmp_path / "labels")
    model = small(3, 3)
    loaded = cl.load_classifier(tmp_path / "labels", "cpu", model)
    said = loaded.predict(np.moveaxis(photos, -1, 1))
    assert torch.equal(said.labels, said.probabilities > 0.5)
    assert said.names[0] == tuple("abc"[i] for i in said.labels[0].nonzero().flatten())
    session = onnxruntime.InferenceSession(tmp_path / "labels" / "model.onnx")
    (found,) = session.run(None, {"images": photos})
    np.testing.assert_allclose(found, said.probabilities.numpy(), atol=1e-6)
    numbers = given_pixels("numbers", torch.rand(120))
    capfd.readouterr()
    found = numbers.export(tmp_path / "labels", overwrite=True)
    out, err = capfd.readouterr()
    assert (out, err) == (f"{found}\n", "")
    assert re.match(
        rf"exported {found.path}: [\d.]+ kB; ONNX Runtime and the reloaded folder agree with "
        r"predict on 120 images, largest difference \d\.\de-\d\d\n",
        out,
    )
    assert [path.name for path in tmp_path.iterdir()] == ["labels"]
    with pytest.raises(cl.ArgumentError, match=r"convlens did not build by name; give it, with"):
        cl.load_classifier(found.path, "cpu")
    loaded = cl.load_classifier(found.path, "cpu", small(1))
    assert torch.equal(
        loaded.predict(photos[..., 0]).values, numbers.predict(photos[..., 0]).values
    )
    with pytest.raises(cl.CheckpointError, match=r"3\.weight is \(1, 144\), the model has \(2, "):
        cl.load_classifier(found.path, "cpu", small(2))


@pytest.mark.parametrize(("n", "word"), [(60, "exported"), (40, "written")])
def test_training_images_are_compared_where_those_to_validate_on_are_few(digits, n, word, tmp_path):
    x, y = (part[: 2 * n] for part in digits)
    dls = cl.from_arrays(x, y, layout="NHW", valid=0.5, batch_size=20, device="cpu")
    found = cl.Learner(dls, small(10), run=None, progress=False).export(tmp_path / "made")
    assert (found.n_images, str(found).split()[0].strip(",")) == (2 * n, word)
    assert ("80 images, fewer than 100" in str(found)) == (word == "written")


def test_training_images_of_another_size_are_not_compared(tmp_path):
    scale = PixelScale(torch.full((1,), 0.5), torch.full((1,), 0.25), 0.0, 1.0)
    y = torch.arange(8) % 2
    train, valid = [(torch.rand(8, 1, 24, 24), y)], [(torch.rand(8, 1, 28, 28), y)]
    settings = {"scale": scale, "preprocessing": Preprocessing((28, 28), channels=1)}
    for batches in (valid, []):
        dls = cl.DataLoaders(
            valid if not batches else train, batches, classes=["a", "b"], **settings
        )
        learn = cl.Learner(dls, cl.simple_cnn(1, 2), run=None, progress=False)
        assert learn.export(tmp_path / "made", overwrite=True).n_images == 8
    same = cl.DataLoaders(valid, valid, classes=["a", "b"], **settings)
    learn = cl.Learner(same, cl.simple_cnn(1, 2), run=None, progress=False)
    assert learn.export(tmp_path / "made", overwrite=True).n_images == 8


# ---- what is not exported ------------------------------------------------------------------------


def test_an_export_that_answers_otherwise_is_not_left(digits, exported, tmp_path):
    learn = trained(digits, small(10, kind=Multiplied))
    made = tmp_path / "made"
    shutil.copytree(exported, made)
    before = (made / "classifier.json").read_bytes()
    with pytest.raises(
        cl.TrainingError,
        match=r"ONNX Runtime does not agree with predict on \d+ of 128 images: validation image "
        r"\d+ by 0.0\d+,"
        r".*nothing is exported",
    ):
        learn.export(made, overwrite=True)
    assert (made / "classifier.json").read_bytes() == before
    changed = trained(digits)
    changed.model[0][1] = nn.GELU()  # what convlens builds by this name has a ReLU here
    with pytest.raises(cl.TrainingError, match=r"The reloaded folder does not agree with predict"):
        changed.export(tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir() if "image-cache" not in path.name] == ["made"]


class TwoOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = small(10)

    def forward(self, x):
        return {"scores": self.inner(x)}


class Deciding(TwoOutputs):
    def forward(self, x):
        scores = self.inner(x)
        return -scores if scores.sum() > 0 else scores


def four_channels():
    x = torch.rand(20, 28, 28, 4)
    dls = cl.from_arrays(x, [0, 1] * 10, layout="NHWC", valid=0.5, device="cpu")
    return cl.Learner(dls, small(2, 4), run=None, progress=False)


def refused():
    y = torch.arange(10).repeat(12)
    unknown = {"scale": None}
    no_size = {"preprocessing": None}
    units = {"scale": PixelScale(torch.zeros(1), torch.ones(1), -5.0, 15.0)}
    return {
        "a dictionary": (lambda: given_pixels("classes", y, model=TwoOutputs()), r"is a dict"),
        "values decide": (
            lambda: given_pixels("classes", y, model=Deciding()),
            r"cannot be exported: torch.onnx cannot follow it \(.*[Dd]ata-dependent",
        ),
        "four channels": (four_channels, r"its input has 4 channels"),
        "unknown scale": (
            lambda: given_pixels("classes", y, model=small(10), **unknown),
            r"the normalization of pixels is not known; give the scale",
        ),
        "units of their own": (
            lambda: given_pixels("classes", y, model=small(10), **units),
            r"the normalization of pixels is not known",
        ),
        "unknown size": (
            lambda: given_pixels("classes", y, model=small(10), **no_size),
            r"the size of its input is not known; give it",
        ),
    }  # fmt: skip


@pytest.mark.parametrize("case", refused())
def test_what_cannot_be_exported_is_refused_with_the_reason(case, tmp_path, capfd):
    make, sentence = refused()[case]
    with pytest.raises(cl.ConvlensError, match=sentence):
        make().export(tmp_path / "made")
    assert capfd.readouterr() == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == []


def test_folders_that_are_in_use(learn, exported, tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    (tmp_path / "file").write_text("dear")
    with pytest.raises(cl.ArgumentError, match=r"full' is not empty; give a new folder"):
        learn.export(tmp_path / "full", overwrite=True)
    with pytest.raises(cl.ArgumentError, match=r"file' cannot be used \(Not a directory\)"):
        learn.export(tmp_path / "file")
    with pytest.raises(cl.ArgumentError, match=r"lies in a folder that does not exist"):
        learn.export(tmp_path / "no" / "where")
    with pytest.raises(cl.ArgumentError, match=r"is the current folder; name a new one in it"):
        learn.export(".")
    with pytest.raises(cl.ArgumentError, match=r"folder must be a path, got 3"):
        learn.export(3)
    with pytest.raises(cl.ArgumentError, match=r"holds an earlier export; give a new folder, or o"):
        learn.export(exported)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(cl.MissingLibraryError, match=r"pip install 'convlens\[export\]'"):
        learn.export(tmp_path / "new")


@pytest.mark.slow
def test_the_table_of_twelve_networks(tmp_path):
    script = Path(__file__).parents[2] / "benchmarks" / "export.py"
    command = [sys.executable, "-W", "error", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")] for line in done.stdout.splitlines()[2:-1]]
    assert len(rows) == 12
    for _, name, _, _, images, _, by_onnx, reloaded, same, *_ in rows:
        assert int(images) >= 100, name
        assert max(float(by_onnx), float(reloaded)) <= 1e-4, name
        assert same == f"{images} of {images}", name
