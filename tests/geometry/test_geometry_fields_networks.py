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
    "torchvision:alexnet:64",
    "torchvision:mobilenet_v3_small:64",
    "torchvision:shufflenet_v2_x1_0:64",
    "torchvision:regnet_y_400mf:64",
    "torchvision:efficientnet_b0:64",
    "torchvision:squeezenet1_1:64",
    "timm:legacy_seresnet18:64",
    "timm:repvgg_a0:64",
    "timm:hrnet_w18_small:64",
    "timm:mobilevit_xxs:64",
]

SLOW = [
    "torchvision:vgg11_bn:64",
    "torchvision:vgg16:64",
    "torchvision:resnet18:64",
    "torchvision:resnet34:64",
    "torchvision:resnet50:64",
    "torchvision:resnext50_32x4d:64",
    "torchvision:wide_resnet50_2:64",
    "torchvision:densenet121:64",
    "torchvision:googlenet:64",
    "torchvision:inception_v3:96",
    "torchvision:mobilenet_v2:64",
    "torchvision:mnasnet1_0:64",
    "torchvision:convnext_tiny:64",
    "torchvision:swin_t:64",
    "timm:resnetv2_50:64",
    "timm:nfnet_f0:64",
    "timm:res2net50_26w_4s:64",
    "timm:cspresnet50:64",
    "timm:ghostnet_100:64",
    "timm:dla34:64",
    "timm:mixnet_s:64",
    "timm:tf_efficientnet_lite0:64",
    "timm:legacy_xception:64",
    "timm:ese_vovnet19b_dw:64",
    "timm:dpn68:64",
    "timm:skresnet18:64",
    "timm:resnest14d:64",
    "timm:tresnet_m:64",
    "timm:inception_v4:96",
    "timm:lambda_resnet26t:64",
    "timm:convnextv2_atto:64",
    "timm:focalnet_tiny_srf:64",
    "timm:poolformer_s12:64",
    "timm:fastvit_t8:64",
    "timm:starnet_s1:64",
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
    ("resnet50", "layer4.2.conv2", 427, (64, 640)),
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
