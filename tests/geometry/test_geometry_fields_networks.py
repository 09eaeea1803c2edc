"""Receptive fields of the networks that people use, against NaN in the real ones.

`pytest tests/geometry/test_geometry_fields_networks.py -m "slow or not slow"` probes them all.
"""

from __future__ import annotations

import pytest
import torch
from geometry_probe import Probe
from torch import nn

from convlens.errors import ArgumentError
from convlens.geometry import receptive_field

QUICK = [
    "torchvision:mobilenet_v3_small:64",
    "torchvision:shufflenet_v2_x1_0:64",
]

SLOW = [
    *(
        f"torchvision:{name}:64"
        for name in [
            "alexnet",
            "efficientnet_b0",
            "regnet_y_400mf",
            "squeezenet1_1",
            "vgg11_bn",
            "vgg16",
            "resnet18",
            "resnet34",
            "resnet50",
            "resnext50_32x4d",
            "wide_resnet50_2",
            "densenet121",
            "googlenet",
            "mobilenet_v2",
            "mnasnet1_0",
            "convnext_tiny",
            "swin_t",
        ]
    ),
    *(
        f"timm:{name}:64"
        for name in [
            "legacy_seresnet18",
            "repvgg_a0",
            "hrnet_w18_small",
            "mobilevit_xxs",
            "resnetv2_50",
            "nfnet_f0",
            "res2net50_26w_4s",
            "cspresnet50",
            "ghostnet_100",
            "dla34",
            "mixnet_s",
            "tf_efficientnet_lite0",
            "legacy_xception",
            "ese_vovnet19b_dw",
            "dpn68",
            "skresnet18",
            "resnest14d",
            "tresnet_m",
            "lambda_resnet26t",
            "convnextv2_atto",
            "focalnet_tiny_srf",
            "poolformer_s12",
            "fastvit_t8",
            "starnet_s1",
        ]
    ),
    "torchvision:inception_v3:96",
    "timm:inception_v4:96",
]


def built(source: str, name: str) -> nn.Module:
    """A network of torchvision or timm with random weights."""
    torch.manual_seed(0)
    if source == "timm":
        import timm

        return timm.create_model(name, pretrained=False)
    import torchvision

    more = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(name, weights=None, **more)


def deepest(probe: Probe) -> str | None:
    """The last layer whose fields have a size and lie within the input somewhere."""
    n = probe.fields.input_shape[3]
    for name, layer in reversed(list(probe.fields.items())):
        if len(layer.grid) == 2 and layer.first and layer.size[1] and layer.first[1].ndim == 1:
            first, last = layer.first[1], layer.last[1]
            if ((first > 0) & (last < n - 1) & (last - first + 1 == layer.size[1])).any():
                return name
    return None


@pytest.mark.parametrize(
    "network", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_all_layers_of_real_networks_equal_what_nan_probing_finds(network: str):
    source, name, size = network.split(":")
    model = built(source, name)
    probe = Probe(model, receptive_field(model, (1, 3, int(size), int(size))))
    probe.run()
    assert not probe.wrong
    assert probe.compared >= 2 * 20


@pytest.mark.slow
@pytest.mark.parametrize("network", [*QUICK, *SLOW])
def test_the_deepest_fields_of_real_networks_end_where_nan_says(network: str):
    """On an input as wide as the fields are, which a small one is not."""
    source, name, size = network.split(":")
    model = built(source, name)
    try:
        probe = Probe(model, receptive_field(model, (1, 3, int(size), 640)))
    except ArgumentError:
        pytest.skip(f"{name} takes square images only")
    layer = deepest(probe)
    if layer is None:
        pytest.skip(f"{name} begins with an operation after which no size is given")
    first, last, turned = probe.edges(layer)
    assert last - first + 1 == probe.fields[layer].size[1]
    assert turned == [False, True, True, False]


KNOWN = [
    ("resnet18", "layer4.1.conv2", 435, (64, 640)),
    ("resnet50", "layer4", 427, (64, 640)),
    ("vgg16", "features.30", 212, (32, 384)),
    ("alexnet", "features.12", 195, (64, 384)),
]


@pytest.mark.parametrize(("name", "layer", "size", "image"), KNOWN)
def test_known_sizes_end_where_nan_says(name: str, layer: str, size: int, image: tuple[int, int]):
    model = built("torchvision", name)
    probe = Probe(model, receptive_field(model, (1, 3, *image)))
    assert probe.fields[layer].size == (size, size)
    first, last, turned = probe.edges(layer)
    assert last - first + 1 == size
    assert turned == [False, True, True, False]
