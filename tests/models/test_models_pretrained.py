"""Pretrained weights: files, the libraries' own, what they expect, and what is refused."""

from __future__ import annotations

import os
import pickle
import urllib.error
import warnings
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

import convlens as cl
from convlens.data import PixelScale
from convlens.errors import ArgumentError, CheckpointError, ConvlensWarning
from convlens.models.architecture import architecture_of, build

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALL = "torchvision:shufflenet_v2_x0_5"  # 1.4 million parameters


def data(channels=3, n_classes=4, scale="measured"):
    x, y = (
        torch.rand(2 * n_classes, channels, 64, 64),
        [i % n_classes for i in range(2 * n_classes)],
    )
    dls = cl.from_arrays(x, y, layout="NCHW")
    if scale != "measured":
        dls.scale = scale
    return dls


IMAGENET = PixelScale(torch.tensor(MEAN), torch.tensor(STD), 0.0, 1.0)


def randomized(network):
    """With other statistics than those of new batch norms."""
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
    return network.eval()


@pytest.fixture
def shufflenet(tmp_path, monkeypatch):
    """torchvision's weights of `SMALL`, where the library keeps what it has downloaded."""
    network = randomized(torchvision.models.shufflenet_v2_x0_5())
    url = torchvision.models.get_model_weights("shufflenet_v2_x0_5").DEFAULT.url
    folder = tmp_path / "home" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    torch.save(network.state_dict(), folder / Path(url).name)
    return network


def without_head(network):
    return {k: v for k, v in network.state_dict().items() if not k.startswith("fc.")}


def same(found, expected):
    return all(torch.equal(found[name], value) for name, value in expected.items())


def test_the_librarys_own_weights_and_what_they_expect(shufflenet):
    dls = data()
    before = repr(dls.scale)
    model = cl.model(SMALL, dls, pretrained=True).eval()
    assert repr(dls.scale) == before
    assert [name for name, _ in model.named_children()] == ["normalization", "network"]
    assert same(model.network.state_dict(), without_head(shufflenet))
    assert model.network.fc.weight.shape == (4, 1024)
    raw = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (MEAN, STD))
    x = dls.scale.from_unit(raw)
    torch.testing.assert_close(
        model.normalization(x).double(), (raw - mean) / std, rtol=1e-6, atol=1e-6
    )
    again = build(architecture_of(model)).eval()
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
    assert architecture_of(model).arguments == {"n_in": 3, "n_classes": 4, "normalization": True}


def test_data_that_is_normalized_so_gets_the_plain_network(shufflenet):
    model = cl.model(SMALL, data(scale=IMAGENET), pretrained=True)
    assert type(model).__name__ == "ShuffleNetV2"
    with pytest.warns(ConvlensWarning, match=r"may be another .* mean \[0\.485, 0\.456, 0\.406\]"):
        model = cl.model(SMALL, data(scale=None), pretrained=True)
    assert type(model).__name__ == "ShuffleNetV2"


def test_grey_images_get_the_sum_of_the_weights(shufflenet, tmp_path):
    save_file(shufflenet.state_dict(), tmp_path / "weights.safetensors")
    grey, color = data(channels=1, n_classes=1000), data(n_classes=1000)
    model, plain = (
        cl.model(SMALL, dls, pretrained=tmp_path / "weights.safetensors", normalization="data")
        for dls in (grey, color)
    )
    x = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        expected = shufflenet(x.expand(-1, 3, -1, -1))
        torch.testing.assert_close(model.eval()(x), expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(plain.eval()(x.expand(-1, 3, -1, -1)), expected)  # its head too
    model = cl.model(SMALL, grey, pretrained=True)
    layer, scale = model.normalization, grey.scale
    mean, std = sum(MEAN) / 3, sum(STD) / 3
    raw = torch.rand(5)
    x = (raw - scale.mean) / scale.std
    torch.testing.assert_close(x * layer.factor + layer.shift, (raw - mean) / std)


def test_timms_own_weights(tmp_path, monkeypatch):
    network = randomized(timm.create_model("test_resnet"))
    folder = tmp_path / "hub" / "models--timm--test_resnet.r160_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0123456789abcdef0123456789abcdef01234567")
    snapshot = folder / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    snapshot.mkdir(parents=True)
    save_file(network.state_dict(), snapshot / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = cl.model("timm:test_resnet", data(), pretrained=True)
    assert same(model.network.state_dict(), without_head(network))
    assert model.network.fc.weight.shape[0] == 4
    with pytest.raises(CheckpointError, match="pretrained=True: timm cannot give its weights of"):
        cl.model("timm:test_vit", data(), pretrained=True)


def test_a_download_that_fails_is_a_sentence(monkeypatch):
    def fail(*arguments, **options):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    with pytest.raises(
        CheckpointError, match=r"cannot give its weights of .*no route to host.*pat"
    ):
        cl.model(SMALL, data(), pretrained=True)
    with pytest.raises(ArgumentError, match="no published weights of simple_cnn; give the path"):
        cl.model("simple_cnn", data(), pretrained=True)


def wrapped(state, how):
    if how == "plain":
        return state
    if how == "parallel":
        return {"epoch": 3, "state_dict": {f"module.{name}": v for name, v in state.items()}}
    if how == "compiled":
        return {"model": {f"_orig_mod.module.{name}": v for name, v in state.items()}}
    return {"model_state_dict": {f"network.{name}": v for name, v in state.items()}}


@pytest.mark.parametrize("how", ["plain", "parallel", "compiled", "network"])
def test_usual_wrappers_are_accepted(tmp_path, how):
    network = cl.simple_cnn(3, 7, norm="batch", widths=(8, 16, 32, 64, 128))
    torch.save(wrapped(network.state_dict(), how), tmp_path / "w.pth")
    model = cl.model("simple_cnn", data(), pretrained=tmp_path / "w.pth")
    expected = {k: v for k, v in network.state_dict().items() if k[0] != "5"}
    assert len(expected) == 5 * 7
    assert same(model.state_dict(), expected)


def test_the_weights_of_a_run(tmp_path):
    dls = data(scale=IMAGENET)
    learn = cl.Learner(dls, cl.model("timm:test_resnet", dls), progress=False)
    learn.fit(1)
    file = next((learn.run_path / "checkpoints").glob("*/model.safetensors"))
    with pytest.warns(ConvlensWarning, match="not known which normalization"):
        model = cl.model("timm:test_resnet", data(), pretrained=file)
    assert same(model.state_dict(), learn.model.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cl.model("timm:test_resnet", data(), pretrained=str(file), normalization="data")
        half = cl.model(
            "timm:test_resnet", data(), pretrained=file, normalization=([0.5] * 3, [0.5] * 3)
        )
    assert type(half[0]).__name__ == "Normalization"
    learn = cl.Learner(data(), half, progress=False)
    learn.fit(1)
    file = next((learn.run_path / "checkpoints").glob("*/model.safetensors"))
    model = cl.model("timm:test_resnet", data(n_classes=3), pretrained=file)
    assert same(model.network.state_dict(), without_head(half.network))


def changed(change):
    state = cl.simple_cnn(3, 4, norm="batch", widths=(8, 16, 32, 64, 128)).state_dict()
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda s: s.update({"1.0.weight": torch.zeros(3, 8, 3, 3), "2.0.bias": torch.zeros(1)}),
            r"its 1\.0\.weight is \(3, 8, 3, 3\), the network's is \(16, 8, 3, 3\)",
        ),
        (lambda s: s.pop("2.0.bias"), r"it has no 2\.0\.bias, which is \(32,\) in the network"),
        (lambda s: s.update(extra=torch.zeros(2)), r"the network has no extra, which is \(2,\) in"),
        (lambda s: s.update(extra=[1]), "has 'extra' of type list, expected weights"),
    ],
)
def test_weights_of_another_network_name_the_first_difference(tmp_path, change, words):
    torch.save(changed(change), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=rf"pretrained='.*w\.pth'.* {words}"):
        cl.model("simple_cnn", data(), pretrained=tmp_path / "w.pth")


class Attack:
    def __reduce__(self):
        return os.mkdir, ("was-run",)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda p: torch.save({"a": Attack()}, p), "holds Python objects, which could run code"),
        (lambda p: p.write_bytes(pickle.dumps(Attack())), "Python objects|no file of weights"),
        (lambda p: torch.save(cl.simple_cnn(3, 4), p), "holds Python objects, which could run"),
        (lambda p: p.write_bytes(b"\0" * 100), "damaged or no file of weights"),
        (lambda p: p.write_bytes(b""), "damaged or no file of weights"),
        (lambda p: torch.save([torch.zeros(2)], p), "holds list, expected weights by name"),
        (lambda p: torch.save({}, p), "holds dict, expected weights by name"),
    ],
)
def test_files_that_are_refused(tmp_path, write, words):
    path = tmp_path / "w.pth"
    write(path)
    with pytest.raises(CheckpointError, match=words):
        cl.model("simple_cnn", data(), pretrained=path)
    assert not Path("was-run").exists()


def test_a_path_that_is_no_file(tmp_path):
    for path in (tmp_path, tmp_path / "none.pth"):
        with pytest.raises(
            ArgumentError, match=r"is not a file; give a \.safetensors or \.pth file"
        ):
            cl.model("simple_cnn", data(), pretrained=path)


def test_a_damaged_safetensors_file(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(CheckpointError, match="damaged or no file of weights"):
        cl.model("simple_cnn", data(), pretrained=tmp_path / "w.safetensors")


@pytest.mark.parametrize("normalization", ["other", (0.5, 0.5), ([0.5], [0.0]), ([0.5] * 3, [1])])
def test_a_wrong_normalization(tmp_path, normalization):
    torch.save(changed(lambda s: None), tmp_path / "w.pth")
    with pytest.raises(ArgumentError, match="normalization must be 'data' or"):
        cl.model("simple_cnn", data(), pretrained=tmp_path / "w.pth", normalization=normalization)
