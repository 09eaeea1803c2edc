"""Memory that training holds: found by a forward pass on fake tensors with autograd on.

`torch.autograd.graph.saved_tensors_hooks` says which tensors autograd saves for the backward pass.
"""

from __future__ import annotations

import weakref
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from convlens.core.wording import n_bytes
from convlens.errors import ArgumentError
from convlens.execution import (
    Inputs,
    Observer,
    ValuesNeededError,
    has_children,
    memory_of,
    named_layers,
    own_parameters,
    run_on_fake,
    unwrapped,
)
from convlens.execution.shapes import check_count

PROBE_BATCH = 127
"""Images of the fake batch: a prime, so that a size it divides grows with the batch."""


@dataclass(frozen=True)
class LayerMemory:
    """Memory that training holds for one layer, in bytes.

    Attributes:
        name: the module's qualified name.
        kept: for each image, tensors kept for the backward pass that no earlier layer keeps.
        kept_fixed: the same, whatever the batch: running statistics, masks, computed weights.
        gradients: of the layer's own trainable parameters.
        passing: for each image, inputs and outputs, whose gradients exist together during the
            layer's backward pass.
    """

    name: str
    kept: int = 0
    kept_fixed: int = 0
    gradients: int = 0
    passing: int = 0


@dataclass(frozen=True, repr=False)
class Memory:
    """Memory that training holds, in bytes; `peak` estimates the most at a time.

    >>> memory = cl.summary(cl.simple_cnn(1, 10), (1, 1, 28, 28)).memory
    >>> memory.parameters, memory.peak(batch_size=64) > memory.peak(batch_size=1)
    (121128, True)

    Attributes:
        parameters: of all parameters.
        gradients: of the trainable parameters.
        buffers: of running statistics and other buffers.
        input: of one image.
        kept: activations kept for the backward pass, for each image, without the input, parameters
            and buffers; memory shared by several tensors counts once. None if unknown.
        kept_fixed: the same, whatever the batch.
        layers: the same by layer, in the order of the forward pass.
        problem: why ``kept`` is None, or empty.
        unit: images that "each image" stands for: 1, or more for a model that does not take one.
    """

    parameters: int
    gradients: int
    buffers: int
    input: int
    kept: int | None
    kept_fixed: int
    layers: tuple[LayerMemory, ...] = field(repr=False)
    problem: str = ""
    unit: int = 1

    def __repr__(self) -> str:
        kept = self.problem or f"{n_bytes(self.kept or 0)} an image + {n_bytes(self.kept_fixed)}"
        return (
            f"Memory(parameters {n_bytes(self.parameters)}, gradients {n_bytes(self.gradients)}, "
            f"buffers {n_bytes(self.buffers)}, input {n_bytes(self.input)} an image, kept {kept})"
        )

    def peak(self, batch_size: int, optimizer_copies: int = 1) -> int | None:
        """An estimate of the most that a training step holds, in bytes.

        parameters + buffers + optimizer_copies · gradients + N · input + the largest, over the
        layers, of (kept by this layer and those before it + gradients of the parameters of this
        layer and those after it + gradients of its inputs and outputs), and at least all gradients
        together, which the optimizer needs. Not included: workspace of single operators, and what
        CUDA itself takes.

        Args:
            batch_size: N, images in a batch.
            optimizer_copies: numbers that the optimizer keeps for each parameter: 0 for plain SGD,
                1 with momentum, 2 for Adam.

        Returns:
            None if `kept` is None.

        Raises:
            ArgumentError: if ``batch_size`` is below 1 or ``optimizer_copies`` below 0.
        """
        check_count("batch_size", batch_size, 1)
        check_count("optimizer_copies", optimizer_copies, 0)
        if self.kept is None:
            return None
        always = self.parameters + self.buffers + optimizer_copies * self.gradients
        worst, kept, done, n = self.gradients, 0, 0, -(-batch_size // self.unit)
        for layer in self.layers:
            kept += n * layer.kept + layer.kept_fixed
            worst = max(worst, kept + self.gradients - done + n * layer.passing)
            done += layer.gradients
        return always + n * self.input + worst


def measure_memory(model: nn.Module, inputs: Inputs, unit: int = 1) -> Memory:
    """Memory that training holds, from one forward pass in training mode on fake tensors.

    Args:
        model: any module; it is left as it was.
        inputs: its inputs.
        unit: images that it takes at least.
    """
    model = unwrapped(model)
    parameters = [p for _, module in named_layers(model) for p in own_parameters(module)]
    buffers = list(model.buffers())
    problem = ""
    saved = _SavedTensors()
    hooks = torch.autograd.graph.saved_tensors_hooks(saved.pack, saved.unpack)
    try:
        contexts = [torch.enable_grad(), hooks]
        run_on_fake(model, inputs, PROBE_BATCH * unit, [saved], contexts, training=True)
    except Exception as error:  # whatever a model raises: the table does without these numbers
        kind = "" if isinstance(error, ArgumentError | ValuesNeededError) else type(error).__name__
        problem = f"{kind}: {' '.join(str(error).split())[:200]}".removeprefix(": ")
    layers = () if problem else tuple(saved.layers(model))
    return Memory(
        parameters=_bytes(parameters),
        gradients=_bytes(p for p in parameters if p.requires_grad),
        buffers=_bytes(buffers),
        input=inputs.n_bytes(unit, [*parameters, *buffers]),
        kept=None if problem else sum(layer.kept for layer in layers),
        kept_fixed=sum(layer.kept_fixed for layer in layers),
        layers=layers,
        problem=problem,
        unit=unit,
    )


class _Saved:
    """Takes the place of a saved tensor until autograd releases it.

    It holds the storage, so that its id is not reused; the tensor would hold the graph.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.storage = tensor.untyped_storage()


class _SavedTensors(Observer):
    """Notes what autograd saves, and in which module."""

    def __init__(self) -> None:
        self._running: list[tuple[str, set[int]]] = [("", set())]  # and the memory of its inputs
        self._passing: dict[str, int] = {}
        self._own: set[int] = set()  # memory of parameters, buffers and inputs
        self._saved: list[tuple[str, int, int, weakref.ref[_Saved]]] = []
        self._kept: dict[str, list[int]] = {}

    def pack(self, tensor: Tensor) -> _Saved:
        saved = _Saved(tensor)
        n_bytes, name = saved.storage.nbytes(), self._running[-1][0]
        self._saved.append((name, memory_of(tensor), n_bytes, weakref.ref(saved)))
        return saved

    @staticmethod
    def unpack(_: _Saved) -> Tensor:
        raise RuntimeError("there is no backward pass")

    def constant(self, fake: Tensor, real: Tensor) -> None:  # noqa: ARG002
        """Memory of parameters and buffers is not kept for the backward pass."""
        self._own.add(memory_of(fake))

    def enter(self, name: str, module: nn.Module, given: Sequence[Tensor]) -> None:  # noqa: ARG002
        """Note the inputs of a module."""
        memories = set(map(memory_of, given))
        if not name:
            self._own |= memories
        self._running.append((name, memories))
        self._passing[name] = sum(t.untyped_storage().nbytes() for t in given)

    def leave(self, name: str, module: nn.Module, output: object) -> None:  # noqa: ARG002
        """Note the outputs of a module; the model itself is last, while its output is held."""
        while (ended := self._running.pop())[0] != name:  # a model may catch its layers' errors
            pass
        tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        made = [t for t in tensors if memory_of(t) not in ended[1]]
        # In place, the gradient of the output becomes that of the input where it lies.
        self._passing[name] += sum(t.untyped_storage().nbytes() for t in made)
        if not name:
            self._sum_up()

    def _sum_up(self) -> None:
        """Add up what is still saved, each memory once."""
        met = set(self._own)
        for name, memory, size, saved in self._saved:
            if saved() is not None and memory not in met:
                met.add(memory)
                per_image, rest = divmod(size, PROBE_BATCH)
                sums = self._kept.setdefault(name, [0, 0])
                sums[bool(rest)] += size if rest else per_image
        self._saved.clear()

    def layers(self, model: nn.Module) -> Generator[LayerMemory]:
        """The memory of each layer, in the order in which they ran."""
        modules = dict(named_layers(model))
        met: set[int] = set()
        for name in [*self._passing, *(name for name in modules if name not in self._passing)]:
            own = [p for p in own_parameters(modules[name]) if id(p) not in met]
            met.update(map(id, own))
            kept, fixed = self._kept.get(name, (0, 0))
            leaf = not has_children(modules[name])
            passing = self._passing.get(name, 0) // PROBE_BATCH if leaf else 0
            trained = _bytes(p for p in own if p.requires_grad)
            yield LayerMemory(name, kept, fixed, trained, passing)


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of distinct tensors."""
    sizes = {id(t): t.numel() * t.element_size() for t in tensors}
    return sum(sizes.values())
