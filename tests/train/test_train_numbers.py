"""Numbers far from 0, from a table to the exported network."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import convlens as cl
from convlens.data import PixelScale
from convlens.models.architecture import architecture_of, build
from convlens.models.heads import head_names, head_of


def numbers_of_images(folder, numbers, seed=0):
    """Images that are the brighter the larger their number, named in a table, as DataLoaders."""
    rng, least = np.random.default_rng(seed), min(numbers)
    with (folder / "numbers.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "number"])
        for i, number in enumerate(numbers):
            pixels = rng.integers(0, 40, (20, 20, 3)) + 2 * (number - least)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
            rows.writerow([f"{i}.png", number])
    table = folder / "numbers.csv"
    return cl.from_csv(table, kind="numbers", validation=0.5, batch_size=16, device="cpu")


@pytest.fixture(scope="module")
def dls(tmp_path_factory):
    years = np.random.default_rng(1).integers(1950, 2025, 240).tolist()
    return numbers_of_images(tmp_path_factory.mktemp("years"), years)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_network_by_name_learns_them(dls, tmp_path, precision):
    torch.manual_seed(0)
    model = cl.model("simple_cnn", dls)
    learn = cl.Learner(dls, model, metrics=["r2"], seed=0, base=tmp_path, progress=False,
                       precision=precision)  # fmt: skip
    assert learn.validate()["r2"] > -1  # it begins with numbers around the mean
    learn.fit_one_cycle(6, 0.01)
    assert learn.validate()["r2"] > 0.9
    images = list(dls.valid_files)
    years = learn.predict(images).values
    assert years.dtype == torch.float32
    loaded = cl.load_classifier(learn.run_path, device="cpu").predict(images).values
    torch.testing.assert_close(loaded, years, rtol=1e-2 if precision == "bf16" else 1e-6, atol=0)
    if precision == "bf16":  # of which 2000 and 2008 are neighbours
        assert years.unique().numel() > 30
    else:
        assert str(learn.export(tmp_path / "made")).startswith("exported")
        found = cl.load_classifier(tmp_path / "made", device="cpu").predict(images).values
        assert torch.equal(found, loaded)


def test_the_scale_is_that_of_the_data_also_with_pretrained_weights(dls, tmp_path):
    model = cl.model("simple_cnn", dls)
    years = dls.train.labels
    assert float(model.output_scale.mean) == pytest.approx(float(years.mean()))
    assert float(model.output_scale.std) == pytest.approx(float(years.std(correction=0)), rel=1e-5)
    again = build(architecture_of(model))
    again.load_state_dict(model.state_dict())
    save_file(model.state_dict(), tmp_path / "years.safetensors")
    ages = numbers_of_images(tmp_path, range(20))
    other = cl.model("simple_cnn", ages, pretrained=tmp_path / "years.safetensors")
    assert float(other.output_scale.mean) == pytest.approx(float(ages.train.labels.mean()))
    for name, value in model.network.state_dict().items():
        assert torch.equal(other.network.state_dict()[name], value)


def test_the_normalization_of_timms_weights_comes_before_the_scale(dls, tmp_path):
    network = timm.create_model("test_resnet", pretrained=False)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    model = cl.model("timm:test_resnet", dls, pretrained=tmp_path / "w.safetensors")
    layers = [name for name, _ in model.named_children()]
    inner = [name for name, _ in model.network.named_children()]
    assert (layers, inner) == (["normalization", "network"], ["network", "output_scale"])
    again = build(architecture_of(model))
    again.load_state_dict(model.state_dict())
    x, layer = torch.rand(2, 3, 20, 20), model.network.output_scale
    with torch.no_grad():
        inner = model.eval().network.network(model.normalization(x))
        torch.testing.assert_close(model(x), layer.std * inner + layer.mean)
    names = {name.partition(".")[0] for name in head_names(model.network.network)}
    assert names == {"fc"}
    assert head_of(model) == head_of(model.network.network)


def test_a_network_of_ones_own_is_scaled_by_hand(dls):
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1))
    model = cl.models.output_scaled(network, dls.train.labels)
    assert cl.model(model, dls) is model
    learn = cl.Learner(dls, model, metrics=["r2"], seed=0, run=None, progress=False)
    learn.fit_one_cycle(8, 0.1)
    assert learn.validate()["r2"] > 0.9


def test_a_scale_around_pretrained_weights_can_be_built_again(tmp_path):
    own = cl.DataLoaders([(torch.rand(4, 3, 32, 32), torch.rand(4))], kind="numbers",
                         scale=PixelScale(torch.zeros(3), torch.ones(3), 0.0, 1.0))  # fmt: skip
    network = timm.create_model("test_resnet", pretrained=False)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    model = cl.model("timm:test_resnet", own, pretrained=tmp_path / "w.safetensors")
    model = cl.models.output_scaled(model, torch.tensor([1.0, 3.0]))
    build(architecture_of(model)).load_state_dict(model.state_dict())
    assert isinstance(head_of(model)[0], nn.Linear)
    with pytest.raises(cl.ArgumentError, match=r"has an output scale already; give .*\.network"):
        cl.models.output_scaled(model, torch.ones(2))


@pytest.mark.parametrize("targets", [torch.ones(2, 2), [], [1.0, float("nan")]])
def test_targets_that_are_no_numbers_are_refused(targets):
    with pytest.raises(cl.ArgumentError, match=r"targets must be finite numbers \(N,\), at least"):
        cl.models.output_scaled(nn.Linear(3, 1), targets)


def test_numbers_that_are_all_the_same(tmp_path):
    same = numbers_of_images(tmp_path, [7] * 8)
    model = cl.model("simple_cnn", same)
    assert (float(model.output_scale.mean), float(model.output_scale.std)) == (7.0, 1.0)
    cl.Learner(same, model, run=None, progress=False).fit(1)
    assert model(torch.rand(2, 3, 20, 20)).isfinite().all()


def test_loaders_that_do_not_know_their_numbers_get_the_plain_network():
    batches = [(torch.rand(4, 1, 28, 28), torch.rand(4))] * 2
    model = cl.model("simple_cnn", cl.DataLoaders(batches, kind="numbers"))
    assert not hasattr(model, "output_scale")
