"""The walk: real networks are looked at in several ways and are afterwards what they were."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import torch
from execution_networks import networks
from execution_state import assert_same, fakes, state_of
from torch import Tensor, nn

import convlens as cl
from convlens.execution import copy_of, preserved, read_inputs

FEW = [
    "transformers:DINOv3ViT",
    "transformers:Beit",
    "ours:siamese",
]
"""Some of those that were changed, or refused, before everything was put back in one place."""


def tensors(output: Any) -> list[Tensor]:
    """Every tensor of an output, in order."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        return [t for value in output.values() for t in tensors(value)]
    if is_dataclass(output):
        return [t for f in fields(output) for t in tensors(getattr(output, f.name))]
    if isinstance(output, list | tuple):
        return [t for value in output for t in tensors(value)]
    return []


def output_of(model: nn.Module, given: Any) -> list[Tensor]:
    """What the model gives in evaluation, for a fixed image and fixed random numbers."""
    inputs = read_inputs(given)
    generator = torch.Generator().manual_seed(3)

    def image(tensor: Tensor) -> Tensor:
        return torch.rand(tensor.shape, generator=generator)

    args, kwargs = inputs.make(inputs.n, torch.empty(0))
    torch.manual_seed(4)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    with torch.no_grad():
        output = model(*map(image, args), **{k: image(v) for k, v in kwargs.items()})
    for module, training in modes:
        module.training = training
    return tensors(output)


def walk(name: str) -> float:
    """Look at one network; the seconds that it took."""
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries, about themselves
        make, given = networks()[name]
        torch.manual_seed(0)
        model = make().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.01)
    optimizer.step()
    before, held = state_of(model), fakes()
    kept = {k: v["momentum_buffer"].clone() for k, v in optimizer.state.items()}
    table = cl.summary(model, given)
    assert sum(p.numel() for p in model.parameters()) == table.totals["parameters"]
    cl.receptive_field(model, given)
    args, kwargs = read_inputs(given).make(read_inputs(given).n, torch.empty(0))
    with preserved(model, copy_of), torch.no_grad():
        model(*args, **kwargs)
    assert_same(before, state_of(model))
    assert all(torch.equal(optimizer.state[k]["momentum_buffer"], v) for k, v in kept.items())
    assert fakes() <= held
    outputs = output_of(model, given)
    assert all(type(t) is Tensor for t in outputs)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = make().train()
    torch.optim.SGD(other.parameters(), lr=0.1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.full_like(parameter, 0.01), alpha=-0.1)
    expected = output_of(other, given)
    assert len(outputs) == len(expected)
    assert all(map(torch.equal, outputs, expected))
    return time.perf_counter() - start


@pytest.mark.parametrize("name", FEW)
def test_a_network_is_what_it_was(name: str) -> None:
    walk(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(networks()))
def test_every_network_is_what_it_was(name: str) -> None:
    print(f"{name}: {walk(name):.1f} s")
