"""What training keeps, against what autograd saves and the allocator gives in real steps."""

from __future__ import annotations

import golden_tables
import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from convlens.errors import ArgumentError
from convlens.geometry import summary
from convlens.geometry.training_memory import Memory
from convlens.models import simple_cnn


def memory_below(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def really_kept(model: nn.Module, image: Tensor) -> int:
    """Bytes that autograd saves in a real forward pass in training mode.

    Each memory once, without the input, the parameters and the buffers.
    """
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved[memory_below(tensor)] = tensor
        return tensor

    model.train()
    own = {memory_below(t) for t in [*model.parameters(), *model.buffers(), image]}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(image)
    del output
    return sum(t.untyped_storage().nbytes() for place, t in saved.items() if place not in own)


SMALL = {
    "simple_cnn_none": (3, 1, 28, 28),
    "simple_cnn_batch": (3, 1, 28, 28),
    "resnet18": (2, 3, 64, 64),
    "mobilenet_v3_large": (2, 3, 64, 64),
    "unet": (2, 1, 32, 32),
}


@pytest.mark.parametrize("name", SMALL)
def test_kept_is_what_autograd_saves_to_the_byte(name: str):
    shape = SMALL[name]
    model = golden_tables.build(name).to_empty(device="cpu")  # no number matters
    found = summary(model, shape).memory
    assert not found.problem
    assert found.kept is not None
    assert shape[0] * found.kept + found.kept_fixed == really_kept(model, torch.zeros(shape))
    if name == "resnet18":
        assert found == summary(golden_tables.build(name), shape).memory  # on "meta"


def test_kept_of_a_transformer():
    model = nn.Sequential(nn.Linear(6, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
    found = summary(model, (4, 5, 6)).memory
    assert 4 * (found.kept or 0) + found.kept_fixed == really_kept(model, torch.zeros(4, 5, 6))


def test_kept_of_a_linear_layer_and_a_relu_by_hand():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.Sigmoid())
    table = summary(model, (1, 6))
    # The first keeps the image, which does not count; ReLU and sigmoid keep what they give; the
    # second keeps what it gets, which ReLU keeps already.
    assert [row.kept for row in table] == [0, 5 * 4, 0, 4 * 4]
    assert table.totals["kept"] == table.memory.kept == 36
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    frozen = summary(model, (1, 6))
    assert frozen.memory.gradients == 4 * (5 * 4 + 4)
    assert [row.kept for row in frozen] == [0, 0, 5 * 4, 4 * 4]  # nothing before is trained


def test_the_peak_is_the_formula_by_hand():
    memory = summary(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)), (1, 6)).memory
    first, second = 4 * 35, 4 * 24
    assert (memory.parameters, memory.gradients, memory.input) == (first + second,) * 2 + (24,)
    n = 1000
    at_relu = n * 20 + second + first + n * 40  # kept, gradients, those of its input and output
    at_second = n * 20 + second + n * 36
    assert at_relu > at_second
    always = 2 * (first + second) + n * 24
    at_first = first + second + n * 44
    at_relu = n * 20 + second + n * 40
    assert memory.peak(n) == always + max(at_first, at_relu, at_second)
    assert memory.peak(n, optimizer_copies=2) == memory.peak(n) + first + second
    assert memory.peak(1, optimizer_copies=0) == 236 + 24 + 236 + 44


def allocated(model: nn.Module, image: Tensor) -> int:
    """The most that a step allocates at a time, as torch's profiler sees it, in bytes."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9)
    labels = torch.zeros(len(image), dtype=torch.long)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(image), labels).backward()
        optimizer.step()

    step()  # the first allocates the momentum
    optimizer.zero_grad()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    now = most = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


@pytest.mark.filterwarnings("ignore")  # the profiler's own
@pytest.mark.parametrize(
    ("name", "shape", "blas", "tolerance"),
    [
        ("simple_cnn_batch", (64, 1, 28, 28), False, 0.05),
        ("simple_cnn_batch", (64, 1, 28, 28), True, 0.25),  # oneDNN's copies in its own layout
        ("resnet18", (4, 3, 64, 64), True, 0.05),
    ],
)
def test_the_peak_is_near_what_a_step_allocates(name, shape, blas, tolerance):
    model = golden_tables.MODELS[name][0]().train()
    memory = summary(model, shape).memory
    with torch.backends.mkldnn.flags(enabled=blas):
        steps = allocated(model, torch.randn(shape))
    always = memory.parameters + memory.buffers + memory.gradients + shape[0] * memory.input
    estimate = memory.peak(shape[0])
    assert estimate == pytest.approx(always + steps, rel=tolerance)


class Picky(nn.Module):
    """Goes a way in training that depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.sum() > 0:
            return -self.linear(x)
        return self.linear(x)


def test_a_model_that_cannot_be_followed_in_training_says_so():
    table = summary(nn.Sequential(Picky()), (1, 4))
    assert table.memory.kept is None
    assert table.memory.peak(8) is None
    assert table["0.linear"].kept is None
    assert "kept" not in table.lines()[0]
    assert table.to_dict()["memory"]["peak"] is None
    note = table.notes[-1]
    assert note.startswith("training: what it keeps is not known, as the model cannot")
    assert "layer '0' (Picky) decides by values" in note


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0,), "batch_size must be a whole number of at least 1, got 0"),
        ((1, -1), "optimizer_copies must be a whole number of at least 0, got -1"),
        ((True,), "batch_size must be .*, got True"),
    ],
)
def test_arguments_that_cannot_work_get_a_sentence(arguments, words):
    memory: Memory = summary(simple_cnn(1, 10), (1, 1, 28, 28)).memory
    with pytest.raises(ArgumentError, match=words):
        memory.peak(*arguments)
