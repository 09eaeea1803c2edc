"""Folders that are damaged, or made to do harm: each is refused in one sentence."""

import hashlib
import json
import os
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import convlens as cl
from convlens.data.input_transform import InputTransform


def seal(folder):
    """Make the hashes and sizes of `classifier.json` those of the files."""
    facts = json.loads((folder / "classifier.json").read_text())
    for name, said in facts["files"].items():
        data = (folder / name).read_bytes()
        said |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (folder / "classifier.json").write_text(json.dumps(facts))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder as `learn.export` writes it; no ONNX, which the loader only compares by its hash."""
    folder = tmp_path_factory.mktemp("good") / "classifier"
    folder.mkdir()
    model = cl.simple_cnn(1, 2, norm="batch")
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "model.onnx").write_bytes(b"a graph")
    scale = cl.from_arrays(torch.rand(4, 28, 28), [0, 1] * 2, layout="NHW", device="cpu").scale
    facts = {
        "format": 1,
        "kind": "classes",
        "classes": ["cat", "dog"],
        "architecture": {
            "name": "simple_cnn",
            "arguments": {"n_in": 1, "n_classes": 2, "norm": "batch", "widths": [8, 16, 32, 64]},
        },
        "input": InputTransform.of((1, 28, 28), scale, None).facts(),
        "files": {"model.safetensors": {}, "model.onnx": {}},
    }
    (folder / "classifier.json").write_text(json.dumps(facts))
    seal(folder)
    return folder


def test_the_good_one_is_loaded(good):
    assert len(cl.load_classifier(good, "cpu").predict(np.zeros((2, 28, 28), np.uint8))) == 2


def set_fact(*keys, to):
    def change(folder):
        facts = json.loads((folder / "classifier.json").read_text())
        inner = facts
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = to
        (folder / "classifier.json").write_text(json.dumps(facts))

    return change


def write(name, data):
    return lambda folder: (folder / name).write_bytes(data)


def truncate(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-100])


def truncate_and_seal(folder):
    truncate(folder)
    seal(folder)


def change_a_byte(name):
    def change(folder):
        data = bytearray((folder / name).read_bytes())
        data[-1] ^= 1
        (folder / name).write_bytes(data)

    return change


def link(name):
    def change(folder):
        (folder / name).rename(folder.parent / "elsewhere")
        (folder / name).symlink_to(folder.parent / "elsewhere")

    return change


def pipe(folder):
    (folder / "classifier.json").unlink()
    os.mkfifo(folder / "classifier.json")


def large_header(folder):
    (folder / "model.safetensors").write_bytes((2**40).to_bytes(8, "little") + b"{}")
    seal(folder)


def other_shapes(folder):
    save_file(cl.simple_cnn(1, 3, norm="batch").state_dict(), folder / "model.safetensors")
    seal(folder)


def pickled(folder):
    torch.save(cl.simple_cnn(1, 2).state_dict(), folder / "model.safetensors")
    seal(folder)


def arguments(**given):
    base = {"n_in": 1, "n_classes": 2, "norm": "batch", "widths": [8, 16, 32, 64]}
    return set_fact("architecture", "arguments", to=base | given)


def named(name, **given):
    return set_fact("architecture", to={"name": name, "arguments": given})


DAMAGED = r"is damaged or was not written by convlens \("
BAD = {
    "truncated weights": (truncate, DAMAGED + r"it has [\d,]+ bytes, classifier.json says"),
    "truncated, hash made to fit": (truncate_and_seal, DAMAGED + r"it cannot be read"),
    "a changed byte": (change_a_byte("model.safetensors"), DAMAGED + "its SHA-256 is not that"),
    "a changed byte of ONNX": (change_a_byte("model.onnx"), r"model.onnx' is damaged .*SHA-256"),
    "a header of a terabyte": (large_header, DAMAGED + r"it cannot be read"),
    "pickle": (pickled, DAMAGED + r"it cannot be read"),
    "other shapes": (other_shapes, r"of another model: .*4.0.weight is \(3, 64, 3, 3\), the mod"),
    "a link": (link("model.safetensors"), DAMAGED + r"it is a link\)"),
    "a link for the JSON": (link("classifier.json"), DAMAGED + r"it is a link\)"),
    "a pipe": (pipe, DAMAGED + r"it is not a file\)"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), DAMAGED + r"No such file"),
    "no ONNX": (lambda f: (f / "model.onnx").unlink(), DAMAGED + r"No such file"),
    "no JSON": (lambda f: (f / "classifier.json").unlink(), r"has neither classifier.json nor"),
    "not JSON": (write("classifier.json", b"\xff\xfe"), DAMAGED + r"it is not JSON"),
    "a list": (write("classifier.json", b"[]"), DAMAGED + r"it is not an object"),
    "nested JSON": (write("classifier.json", b"[" * 10**6), DAMAGED + r"it is not JSON"),
    "a long number": (write("classifier.json", b"1" * 10**5), DAMAGED + r"it is not JSON"),
    "NaN": (write("classifier.json", b'{"format": NaN}'), DAMAGED + r".*NaN is no number"),
    "much JSON": (write("classifier.json", b" " * 2**25), DAMAGED + r"it has more than 16,777,216"),
    "another format": (set_fact("format", to=2), r"has format '2', this convlens reads format 1"),
    "format true": (set_fact("format", to=True), r"has format 'True'"),
    "a missing fact": (write("classifier.json", b'{"format": 1}'), r"it has no architecture, cla"),
    "kind": (set_fact("kind", to=["classes"]), r"kind is "),
    "classes": (set_fact("classes", to={"cat": 1}), r"classes must be a list of names"),
    "a long name": (set_fact("classes", to=["a" * 10**4]), r"classes must be a list of names"),
    "another number of classes": (set_fact("classes", to=["cat"]), r"2 outputs, classes 1 names"),
    "a path": (set_fact("files", "../../etc/passwd", to={}), DAMAGED + r"files must be model.saf"),
    "no hash": (set_fact("files", "model.onnx", to={}), r"model.onnx must have sha256 and bytes"),
    "files": (set_fact("files", to="all"), r"files must be model.safetensors and model.onnx"),
    "code by name": (named("evil.py:model"), r"'evil.py:model' .*cannot be built"),
    "a download by name": (named("timm:hf-hub:evil/x", n_in=1), r"cannot be built|no model"),
    "an unknown network": (named("resnet19", n_in=1, n_classes=2), r"cannot be built"),
    "a library's options": (
        named("timm:resnet10t", n_in=1, n_classes=2, checkpoint_path="evil.pth"),
        r"cannot be built",
    ),
    "other channels": (arguments(n_in=3), r"architecture has 3 channels, input 1"),
    "no arguments": (set_fact("architecture", to={"name": "a"}), r"must have a name and arguments"),
    "a huge network": (arguments(widths=[10**6] * 64), r"of another model"),
    "a larger number": (arguments(widths=[10**12]), r"arguments that are no small plain numbers"),
    "many layers": (arguments(widths=[1] * 10**5), r"arguments that are no small plain numbers"),
    "many blocks": (named("resnet", n_in=1, n_classes=2, blocks=[10**6]), r"has 1,000,000 blocks"),
    "nested arguments": (arguments(widths=[[[8]]]), r"arguments that are no small plain numbers"),
    "the input": (set_fact("input", to=None), r"input must be an object with input_shape, norm"),
    "a huge input": (set_fact("input", "input_shape", to=[3, 10**5, 10**5]), r"has more than"),
    "half a pixel": (set_fact("input", "input_shape", to=[1, 0.5, 28]), r"must be \[C, H, W\]"),
    "another size": (set_fact("input", "input_shape", to=[1, 64, 64]), r"but the preprocessing"),
    "no deviation": (set_fact("input", "normalization", "std", to=[0]), r"must have a std above 0"),
    "three means": (set_fact("input", "normalization", "mean", to=[0, 0, 0]), r"for each channel"),
    "a mean in words": (set_fact("input", "normalization", "mean", to=["a"]), r"must be numbers"),
    "a large mean": (set_fact("input", "normalization", "mean", to=[1e30]), r"must be numbers"),
    "resize": (set_fact("input", "preprocessing", "resize", to="run"), r"resize must be 'crop'"),
    "size": (set_fact("input", "preprocessing", "size", to="28"), r"size must be \(H, W\)"),
    "margin": (set_fact("input", "preprocessing", "margin", to=[1]), r"a margin or channels"),
    "channels": (set_fact("input", "preprocessing", "channels", to={}), r"channels must be 1, 3"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_damaged_or_hostile_folder_is_refused_in_a_sentence(case, good, tmp_path):
    change, sentence = BAD[case]
    folder = tmp_path / "classifier"
    shutil.copytree(good, folder)
    change(folder)
    with pytest.raises(cl.ConvlensError, match=sentence) as caught:
        cl.load_classifier(folder, "cpu")
    said = str(caught.value)
    assert isinstance(caught.value, cl.ArgumentError | cl.CheckpointError)
    assert len(said) < 700
    assert "\n" not in said


def test_arguments_that_cannot_work(good, tmp_path):
    with pytest.raises(cl.ArgumentError, match=r"is no folder; give one that learn.export wrote"):
        cl.load_classifier(tmp_path / "nowhere")
    with pytest.raises(cl.ArgumentError, match=r"folder must be a path, got 3"):
        cl.load_classifier(3)
    with pytest.raises(cl.ArgumentError, match=r"model must be a torch.nn.Module or None, got 'a"):
        cl.load_classifier(good, model="a")
    with pytest.raises(cl.ArgumentError, match=r"device='nowhere' cannot be used here"):
        cl.load_classifier(good, "nowhere")
