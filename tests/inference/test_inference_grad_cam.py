"""Grad-CAM equals captum's, changes nothing, and is compared with random weights."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import convlens as cl
from convlens.inference.explanation import Randomization
from convlens.inference.grad_cam import explained, grad_cam, rank_correlation


def torchvision_model(name: str) -> nn.Module:
    import torchvision

    return torchvision.models.get_model(name, num_classes=10)


def timm_model(name: str) -> nn.Module:
    import timm

    return timm.create_model(name, num_classes=10)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, tuple[str, ...]]] = {
    "simple_cnn": (lambda: cl.simple_cnn(1, 10, norm="batch"), 28, ("0.2", "1", "2.0")),
    # its in-place ReLU follows an in-place addition
    "resnet18": (lambda: torchvision_model("resnet18"), 64, ("layer4", "layer3.1.conv2", "relu")),
    "mobilenet_v3_small": (
        lambda: torchvision_model("mobilenet_v3_small"),
        64,
        ("features.12", "features.5.block.0.2"),
    ),
    "densenet121": (lambda: torchvision_model("densenet121"), 64, ("features.norm5",)),
    "timm efficientnet": (lambda: timm_model("test_efficientnet"), 64, ("conv_head", "blocks.2")),
}  # fmt: skip

LARGE = ("densenet121", "mobilenet_v3_small", "timm efficientnet")


def settled(model: nn.Module, x: Tensor) -> nn.Module:
    """Batch normalization with statistics of these images, so that gradients are not tiny."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # of all batches alike
    with torch.no_grad():
        model.train()(x)
    return model.eval()


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in LARGE else []) for n in NETWORKS]
)
def test_the_maps_are_captums(name: str) -> None:
    from captum.attr import LayerGradCam

    make, side, layers = NETWORKS[name]
    x = torch.rand(2, 1 if name == "simple_cnn" else 3, side, side)
    model = settled(make(), x)
    target = torch.tensor([1, 7])
    nonzero = 0
    for layer in layers:
        oracle = LayerGradCam(model, model.get_submodule(layer))
        expected = oracle.attribute(x, target=target, relu_attributions=True).detach()[:, 0]
        found = grad_cam(model, x, layer, target)
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.max()))
        nonzero += int(expected.count_nonzero())
    assert nonzero
    predicted = model(x).argmax(1)
    torch.testing.assert_close(grad_cam(model, x), grad_cam(model, x, target=predicted))


class Everything(nn.Module):
    """In-place ReLU, dropout, a shared layer, a buffer that counts, frozen weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3).requires_grad_(False)
        self.norm = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.shared = nn.Conv2d(6, 6, 3, padding=1)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6, 4)
        self.unused = nn.Conv2d(1, 1, 1)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = self.relu(self.norm(self.first(x)))
        x = self.relu(self.shared(x)) + x
        x = self.relu(self.shared(x))
        return self.head(self.drop(x.mean((2, 3))))


def state_of(model: nn.Module) -> list[object]:
    modules = list(model.modules())
    return [
        *(tensor.clone() for tensor in model.state_dict().values()),
        [module.training for module in modules],
        [list(module._forward_hooks) for module in modules],
        [p.requires_grad for p in model.parameters()],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        torch.get_rng_state(), random.getstate(),
    ]  # fmt: skip


def assert_same(one: object, other: object) -> None:
    if isinstance(one, list):
        assert isinstance(other, list)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    elif isinstance(one, Tensor):
        assert torch.equal(one, other)  # pyright: ignore[reportArgumentType]
    else:
        assert one == other


@pytest.mark.parametrize("around", ["nothing", "no_grad", "inference_mode", "autocast"])
def test_nothing_is_changed_and_nothing_changes_the_maps(around: str) -> None:
    model, x = Everything(), torch.rand(2, 1, 12, 12)
    model.norm.eval()  # a mode of its own
    model(x).sum().backward()
    before, pixels = state_of(model), x.clone()
    reference = grad_cam(copy.deepcopy(model), x, "shared", 2)
    contexts = {
        "nothing": torch.enable_grad(),
        "no_grad": torch.no_grad(),
        "inference_mode": torch.inference_mode(),
        "autocast": torch.autocast("cpu", torch.bfloat16),
    }
    with contexts[around]:
        given = x.clone()  # in inference mode, an inference tensor
        found = explained(model, given, "shared", 2, n_random=2)
    assert torch.equal(found.maps, reference)
    assert not found.maps.requires_grad
    assert_same(state_of(model), before)
    assert torch.equal(x, pixels)
    assert grad_cam(model, x).shape == (2, 10, 10)


def test_of_a_layer_that_runs_twice_the_last_run_counts() -> None:
    model, x = Everything().eval(), torch.rand(2, 1, 12, 12)
    kept: list[Tensor] = []
    handle = model.shared.register_forward_hook(lambda *a: kept.append(a[2]) or a[2].clone())
    scores = model(x)
    handle.remove()
    (gradient,) = torch.autograd.grad(scores[:, 1].sum(), kept[-1])
    expected = (gradient.mean((2, 3), keepdim=True) * kept[-1]).sum(1).relu().detach()
    torch.testing.assert_close(grad_cam(model, x, "shared", 1), expected)


def test_tokens_are_a_grid() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 8, 4, stride=4)
            self.norm = nn.LayerNorm(8)
            self.more = nn.Sequential(nn.Linear(8, 8), nn.GELU())
            self.head = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.patches(x).flatten(2).mT
            x = self.norm(torch.cat([x.mean(1, keepdim=True), x], dim=1))
            return self.head(self.more(x).mean(1))

    model, x = Tokens(), torch.rand(2, 3, 20, 20)
    kept: list[Tensor] = []
    handle = model.norm.register_forward_hook(lambda *a: kept.append(a[2]))
    scores = model(x)
    handle.remove()
    (gradient,) = torch.autograd.grad(scores[:, 0].sum(), kept[0])
    weights = gradient[:, 1:].mean(1, keepdim=True)
    expected = (weights * kept[0][:, 1:]).sum(2).relu().reshape(2, 5, 5).detach()
    torch.testing.assert_close(grad_cam(model, x, "norm", 0), expected)
    with pytest.raises(cl.ArgumentError, match=r"later layers put out tokens .* name a layer"):
        grad_cam(model, x)


def test_without_a_layer_named_it_is_the_last_with_a_grid() -> None:
    x = torch.rand(2, 1, 28, 28)
    assert explained(cl.simple_cnn(1, 10), x, None, None, 0).layer == "2.1"
    assert explained(cl.simple_cnn(1, 10), x[:, :, :9, :9], None, None, 0).layer == "0.1"
    resnet = torchvision_model("resnet18")
    assert explained(resnet, torch.rand(1, 3, 128, 128), None, None, 0).layer == "layer4.1.relu"
    assert grad_cam(resnet, torch.rand(1, 3, 64, 96)).shape == (1, 4, 6)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(784, 3))
    with pytest.raises(cl.ArgumentError, match=r"but it has none; name a layer"):
        grad_cam(flat, x)


class Last(nn.Module):
    """Channels last, as Swin has them."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


def test_what_cannot_be_explained_is_refused_in_a_sentence() -> None:
    x = torch.rand(2, 1, 28, 28)
    model = cl.simple_cnn(1, 10)
    with pytest.raises(cl.LayerNotFoundError, match=r"layer='2.9' is not among the .* closest"):
        grad_cam(model, x, "2.9")
    for target in (10, -1, 1.5, [1], [1, 2, 3], "cat", True):
        with pytest.raises(cl.ArgumentError, match="target must be a class from 0 to 9, or one fo"):
            grad_cam(model, x, target=target)  # pyright: ignore[reportArgumentType]
    with pytest.raises(cl.ArgumentError, match=r"x must be images \(N, C, H, W\)"):
        grad_cam(model, x[0])
    with pytest.raises(cl.ArgumentError, match="has no grid"):
        grad_cam(model, x, "5")
    with pytest.raises(cl.ArgumentError, match="'unused' does not run for such images"):
        grad_cam(Everything(), x, "unused")
    lasts = nn.Sequential(nn.Conv2d(1, 40, 3), Last(), nn.Flatten(), nn.LazyLinear(3))
    lasts(x)
    with pytest.raises(cl.ArgumentError, match=r"layer='1' puts out \(2, 26, 26, 40\), which has"):
        grad_cam(lasts, x, "1")
    assert explained(lasts, x, None, None, 0).layer == "0"
    with pytest.raises(cl.TrainingError, match=r"scores \(N, K\) of N = 2 images, got \(2,"):
        grad_cam(nn.Sequential(nn.Conv2d(1, 2, 3)), x, "0")


def test_ranks_are_spearmans() -> None:
    one, other = torch.rand(3, 4, 5), torch.rand(3, 4, 5)
    one[0, :2] = 0.25  # ties
    other[2] = 1.0
    found = rank_correlation(one, other)
    for i in (0, 1):
        values = [part[i].flatten().numpy() for part in (one, other)]
        ranks = [(v[:, None] > v).sum(1) + ((v[:, None] == v).sum(1) + 1) / 2 for v in values]
        assert found[i] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert np.isnan(found[2])
    assert rank_correlation(one, one * 3)[:2] == pytest.approx([1.0, 1.0])


# ---- a Learner ----------------------------------------------------------------------------------


class Bright(nn.Module):
    """Two classes: bright at the left, bright at the right; what is learned cannot be drawn anew.

    The map is the image, whatever the weights of the unused layer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.grid = nn.Identity()
        self.unused = nn.Linear(2, 2)
        sides = torch.zeros(2, 8, 8)
        sides[0, :, :4], sides[1, :, 4:] = 1, 1
        self.register_buffer("sides", sides)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nchw,khw->nk", self.grid(x), self.sides)


def learner(model: nn.Module, classes: tuple[str, ...] = ("left", "right")) -> cl.Learner:
    x = torch.rand(8, 1, 8, 8)
    dls = cl.from_arrays(
        (255 * x).to(torch.uint8), [0, 1] * 4, layout="NCHW", classes=classes, device="cpu"
    )
    return cl.Learner(dls, model, run=None, progress=False)


def test_an_explanation_has_the_size_of_the_images_and_names() -> None:
    x = torch.zeros(2, 1, 8, 8)
    x[0, :, :, 1], x[1, :, :, 6] = 0.9, 0.9
    learn = learner(Bright())
    found = learn.explain(x, layer="grid")
    assert (found.maps.shape, found.names) == ((2, 8, 8), ("left", "right"))
    assert found.targets.tolist() == [0, 1]
    assert (found.maps.min(), found.maps.max()) == (0.0, 1.0)
    assert (found.maps[0].argmax(1) == 1).all()
    named = learn.explain(x, "grid", ["right", 0])
    assert (named.targets.tolist(), named.names) == ([1, 0], ("right", "left"))
    assert learn.explain(x, "grid", "right").targets.tolist() == [1, 1]
    shares = F.softmax(learn.model(learn.dls.scale.from_unit(x)), dim=1)
    np.testing.assert_allclose(found.probabilities, shares.amax(1).detach(), rtol=1e-5)
    axes = found.plot()
    assert len(axes.images) == 2
    assert axes.images[0].get_array().shape == (8, 16, 3)
    assert axes.texts[0].get_text().startswith("left")
    plt.close("all")
    with pytest.raises(cl.ArgumentError, match="target='up' is not among the 2 classes; close: 'l"):
        learn.explain(x, "grid", "up")
    for target in ([0], [0, 1, 1]):
        with pytest.raises(cl.ArgumentError, match=r"2 images, (target has|got)"):
            learn.explain(x, "grid", target)


def test_maps_that_do_not_depend_on_the_weights_are_found_out() -> None:
    learn = learner(Bright())
    same = learn.explain(torch.rand(3, 1, 8, 8), layer="grid").randomization
    np.testing.assert_allclose(same.correlation, 1.0)
    assert "Rank correlation with the maps of random weights: 1.00; the maps depend little" in str(
        same
    )
    trained = cl.simple_cnn(1, 2, widths=(8,))
    other = learner(nn.Sequential(*trained[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    found = other.explain(torch.rand(3, 1, 8, 8)).randomization
    assert abs(found.mean) < 0.9
    assert str(found).endswith("when the weights are random explains nothing.")
    assert "could not be compared" in str(Randomization(np.full(2, np.nan, np.float32)))


def test_every_form_that_predict_takes_is_explained(tmp_path) -> None:
    from PIL import Image

    learn = learner(Bright())
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "one.png")
    forms = [
        tmp_path / "one.png", [str(tmp_path / "one.png")], Image.fromarray(pixels), pixels[None],
        torch.from_numpy(pixels)[None, None], pixels[None] / 255,
    ]  # fmt: skip
    first, *others = [learn.explain(form, layer="grid").maps for form in forms]
    for other in others:
        np.testing.assert_allclose(first, other, atol=1e-5)
