"""`cl.model`: networks by name for some data, and `build`."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import convlens as cl
from convlens.errors import ArgumentError
from convlens.models.architecture import Architecture, architecture_of, build


def data(shape=(3, 32, 32), n_classes=4, **options):
    y = [i % n_classes for i in range(2 * n_classes)]
    return cl.from_arrays(torch.rand(len(y), *shape), y, layout="NCHW", **options)


def of_kind(kind, y):
    batches = [(torch.rand(4, 3, 32, 32), y)] * 2
    classes = ["cat", "dog", "bird"] if kind == "labels" else ()
    return cl.DataLoaders(batches, classes=classes, kind=kind)


LARGE = pytest.mark.slow


@pytest.mark.parametrize(
    ("spec", "name", "shape"),
    [
        ("simple_cnn", "simple_cnn", (3, 100, 64)),
        ("resnet", "resnet", (1, 28, 28)),
        ("mobilenet_v3_small", "torchvision:mobilenet_v3_small", (1, 32, 32)),
        ("timm:test_resnet", "timm:test_resnet", (1, 32, 32)),
        pytest.param("resnet18", "torchvision:resnet18", (3, 32, 32), marks=LARGE),
        pytest.param("efficientnet_b0", "torchvision:efficientnet_b0", (3, 32, 32), marks=LARGE),
        pytest.param("convnext_tiny", "torchvision:convnext_tiny", (1, 32, 32), marks=LARGE),
        pytest.param("regnet_y_400mf", "torchvision:regnet_y_400mf", (3, 32, 32), marks=LARGE),
        pytest.param("vit_b_16", "torchvision:vit_b_16", (3, 224, 224), marks=LARGE),
        pytest.param("inception_v3", "torchvision:inception_v3", (3, 80, 80), marks=LARGE),
        pytest.param("timm:resnet10t", "timm:resnet10t", (1, 32, 32), marks=LARGE),
        pytest.param(
            "timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k",
            "timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k",
            (3, 224, 224),
            marks=LARGE,
        ),
    ],
)
def test_a_network_fits_the_data_and_is_built_again(spec, name, shape):
    model = cl.model(spec, data(shape)).eval()
    x = torch.rand(2, *shape)
    with torch.no_grad():
        scores = model(x)
    assert scores.shape == (2, 4)
    assert scores.isfinite().all()
    architecture = architecture_of(model)
    assert architecture is not None
    assert architecture.name == name
    random = torch.get_rng_state()
    again = build(architecture).eval()
    assert torch.equal(torch.get_rng_state(), random)
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(again(x), scores)


def test_a_seed_gives_the_same_initial_weights():
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(cl.model("timm:test_resnet", data()).state_dict())
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())


def test_outputs_are_those_of_the_kind_of_targets():
    labels = of_kind("labels", torch.ones(4, 3))
    assert cl.model("simple_cnn", labels)(torch.rand(2, 3, 32, 32)).shape == (2, 3)
    numbers = of_kind("numbers", torch.rand(4))
    assert cl.model("simple_cnn", numbers)(torch.rand(2, 3, 32, 32)).shape == (2, 1)


def test_labels_of_a_loader_of_ones_own_are_no_numbers_to_scale_by():
    numbers = of_kind("numbers", torch.rand(4))

    class Loader(list):
        labels = (1.0, 2.0)

    numbers.train = Loader(numbers.train)
    assert cl.model("simple_cnn", numbers)(torch.rand(2, 3, 32, 32)).shape == (2, 1)


def test_a_loader_of_torch_is_asked_for_its_first_images():
    dataset = TensorDataset(torch.rand(8, 3, 20, 20), torch.arange(8) % 2)
    loader = DataLoader(dataset, batch_size=4, shuffle=True)
    random = torch.get_rng_state()
    dls = cl.DataLoaders(loader, classes=["cat", "dog"])
    with torch.random.fork_rng():
        model = cl.model("simple_cnn", dls)
    assert torch.equal(torch.get_rng_state(), random)
    assert model(torch.zeros(2, 3, 20, 20)).shape == (2, 2)
    with pytest.raises(ArgumentError, match=r"dls\.classes is empty.*classes=\[…\]"):
        cl.model("simple_cnn", cl.DataLoaders(loader))


def test_a_module_is_returned_as_it_is():
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))
    assert cl.model(module, data()) is module
    assert architecture_of(module) is None


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("resnet1", "'resnet1' is not known; .* Closest: .*resnet18"),
        ("torchvision:resnet1", "torchvision has no model 'resnet1' among .* Closest: 'resnet1"),
        ("timm:resnet10t.none", r"timm has no model 'resnet10t\.none'"),
        (
            "timm:vit_tiny_patch16_224",
            "cannot take the data's images of 3×32×32 .it is made for 224×224 pixels",
        ),
        pytest.param(
            "fcn_resnet50",
            r"must return \(N, 4\) for the data's images of 3×32×32, got OrderedDict",
            marks=pytest.mark.slow,
        ),
        (nn.Flatten(), r"Flatten must return \(N, 4\) for .*, got \(1, 3072\) for one image"),
        (nn.Linear, "spec must be a module or one of simple_cnn, resnet, .*; got type"),
        (nn.Conv2d(1, 4, 3), "Conv2d cannot take the data's images of 3×32×32: "),
    ],
)
def test_what_does_not_fit_gets_a_sentence(spec, words):
    with pytest.raises(ArgumentError, match=words):
        cl.model(spec, data())


def test_other_arguments_that_cannot_work():
    with pytest.raises(ArgumentError, match=r"dls must be DataLoaders, such as .*, got list"):
        cl.model("simple_cnn", [])
    with pytest.raises(ArgumentError, match="give pretrained too"):
        cl.model("simple_cnn", data(), normalization="data")
    with pytest.raises(ArgumentError, match="pretrained must be True, a path or None, got 3"):
        cl.model("simple_cnn", data(), pretrained=3)
    for architecture in (
        Architecture("simple_cnn", {"n_in": 1}),
        Architecture("vgg_of_mine", {"n_in": 1, "n_classes": 2}),
        Architecture("timm:test_resnet", {"n_in": 1, "classes": 2}),
    ):
        with pytest.raises(ArgumentError, match=f"'{architecture.name}' with the arguments .* can"):
            build(architecture)


@pytest.mark.parametrize("downsampling", [1, 2, 4])
def test_resnet(downsampling):
    model = cl.models.resnet(3, 5, (1, 2), (8, 16), downsampling=downsampling)
    sizes = []
    x = torch.rand(2, 3, 33, 33)
    for layer in model:
        x = layer(x)
        sizes.append(tuple(x.shape[1:]))
    side = {1: 33, 2: 17, 4: 9}[downsampling]
    assert sizes[:3] == [(8, side, side), (8, side, side), (16, -(-side // 2), -(-side // 2))]
    assert sizes[-1] == (5,)


def test_resnets_blocks_start_as_their_shortcuts():
    model = cl.models.resnet(1, 2, (2, 2), (4, 8), bottleneck=True, downsampling=1)
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 2)
    first = model[1][1]
    x = torch.rand(2, 16, 8, 8)
    assert torch.equal(first(x), x)  # its input is not negative
    kinds = [type(layer).__name__ for layer in model[2][0].shortcut]
    assert kinds == ["AvgPool2d", "Conv2d", "BatchNorm2d"]
    assert model[0][0].stride == (1, 1)
    assert sum(isinstance(m, nn.MaxPool2d) for m in model.modules()) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"blocks": (1,), "widths": (8, 8)}, "one number for each stage, got 1 and 2"),
        ({"blocks": (0,), "widths": (8,)}, r"blocks\[0\] must be a whole number of at least 1"),
        ({"downsampling": 3}, "downsampling must be 1, 2 or 4, got 3"),
    ],
)
def test_resnets_arguments(options, words):
    with pytest.raises(ArgumentError, match=words):
        cl.models.resnet(3, 10, **options)
