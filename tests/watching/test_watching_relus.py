"""Which layers are said to be followed by a ReLU: the same, compiled or not."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import convlens as cl

RELUS = {
    "F.relu": F.relu,
    "F.relu(inplace)": lambda x: F.relu(x, inplace=True),
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "by name": lambda x: torch.relu(input=x),
    "method": lambda x: x.relu(),
    "nn.ReLU": nn.ReLU(),
    "nn.ReLU(inplace)": nn.ReLU(inplace=True),
    "F.relu6": F.relu6,
    "nn.ReLU6": nn.ReLU6(),
    "nn.ReLU6(inplace)": nn.ReLU6(inplace=True),
    "F.hardtanh": lambda x: F.hardtanh(x, 0.0, 6.0),
    "nn.Hardtanh": nn.Hardtanh(min_val=0.0, max_val=20.0),
    "clamp(min=0)": lambda x: x.clamp(min=0),
    "torch.clamp(x, 0)": lambda x: torch.clamp(x, 0),
    "clamp(0, 6)": lambda x: x.clamp(0, 6),
    "clamp_min": lambda x: x.clamp_min(0),
    "clip": lambda x: torch.clip(x, min=0),
    "F.threshold": lambda x: F.threshold(x, 0, 0),
    "nn.Threshold": nn.Threshold(0.0, 0.0),
}
OTHERS = {
    "clamp(0, 1)": lambda x: x.clamp(0, 1),
    "clamp(-1, 1)": lambda x: x.clamp(-1, 1),
    "clamp(max=0)": lambda x: x.clamp(max=0),
    "clamp(min=0.1)": lambda x: x.clamp(min=0.1),
    "clamp by tensor": lambda x: x.clamp(torch.zeros(4)),
    "nn.Hardtanh(0, 1)": nn.Hardtanh(0.0, 1.0),
    "nn.Hardtanh": nn.Hardtanh(),
    "threshold(0, 1)": lambda x: F.threshold(x, 0.0, 1.0),
    "threshold(0.1, 0)": lambda x: F.threshold(x, 0.1, 0.0),
    "leaky": F.leaky_relu,
    "gelu": F.gelu,
    "of a sum": lambda x: F.relu(x + 1),
    "of a sum in place": lambda x: F.relu(x.add_(1)),
    "of a part": lambda x: F.relu(x[:1]),
}


class Net(nn.Module):
    def __init__(self, after):
        super().__init__()
        self.layer, self.after = nn.Linear(4, 4), after

    def forward(self, x):
        return self.after(self.layer(x))


def feeds_relu(after, *, compiled):
    model = Net(after)
    run = torch.compile(model, backend="eager") if compiled else model
    with cl.watch(run) as stats:
        run(torch.randn(3, 4))
    assert stats.notes == ()
    return stats["layer"].layer.feeds_relu


@pytest.fixture(autouse=True)
def _fresh():
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("relu", RELUS)
def test_what_is_a_relu(relu, compiled):
    assert feeds_relu(RELUS[relu], compiled=compiled)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("other", OTHERS)
def test_what_is_none(other, compiled):
    assert not feeds_relu(OTHERS[other], compiled=compiled)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_residual_block_that_adds_in_place(compiled):
    """What torchvision's ResNet does: its ReLU takes the sum, not what the last layer put out."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2)
            self.last, self.relu = nn.BatchNorm2d(2), nn.ReLU(inplace=True)

        def forward(self, x):
            out = self.last(self.relu(self.norm(self.first(x))))
            out += x
            return self.relu(out)

    model = Block()
    run = torch.compile(model, backend="aot_eager") if compiled else model
    with cl.watch(run) as stats:
        run(torch.randn(3, 2, 5, 5))
    assert [name for name in stats if stats[name].layer.feeds_relu] == ["norm"]


def test_a_container_that_puts_out_what_its_last_layer_does():
    class Owner(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Linear(4, 4))
            self.scale = nn.Parameter(torch.ones(()))

    model = nn.Sequential(Owner(), nn.ReLU())
    with cl.watch(model) as stats:
        model(torch.randn(3, 4))
    assert [name for name in stats if stats[name].layer.feeds_relu] == ["0", "0.0"]


def test_in_inference_mode():
    model = Net(nn.ReLU6())
    with cl.watch(model) as stats, torch.inference_mode():
        model(torch.randn(3, 4))
    assert stats["layer"].layer.feeds_relu
    assert stats.notes == ()
