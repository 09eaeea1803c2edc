"""What training keeps in memory: found by running the model on fake tensors with autograd on.

Autograd says of each tensor that it saves it for the backward pass; here its saving is listened
to (`torch.autograd.graph.saved_tensors_hooks`), so that no rule for an operator can be wrong.
"""

from __future__ import annotations

import weakref
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves

from convlens.errors import ArgumentError
from convlens.execution import (
    Inputs,
    ValuesNeededError,
    has_children,
    memory_of,
    named_layers,
    own_parameters,
    run_on_fake,
    unwrapped,
)

PROBE_BATCH = 127
"""Images of the fake batch: a prime, so that a size it divides grows with the batch."""


@dataclass(frozen=True)
class LayerMemory:
    """What training holds for one layer, in bytes.

    Attributes:
        name: the module's qualified name.
        kept: for each image, what this layer is the first to keep until its backward pass.
        kept_fixed: the same, whatever the batch: running statistics, masks, computed weights.
        gradients: those of its own trainable parameters.
        passing: for each image, its inputs and outputs; their gradients are there together while
            its backward pass runs.
    """

    name: str
    kept: int = 0
    kept_fixed: int = 0
    gradients: int = 0
    passing: int = 0


@dataclass(frozen=True)
class Memory:
    """What training holds, in bytes; `peak` estimates the most that it holds at a time.

    Attributes:
        parameters: of all parameters.
        gradients: of those that are trained.
        buffers: of running statistics and the like.
        input: of one image.
        kept: activations kept for the backward pass, for each image; None where the model cannot
            be followed in training. Each memory counts once, however many tensors look at it;
            the input, parameters and buffers are not among them.
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

    def peak(self, batch_size: int, optimizer_copies: int = 1) -> int | None:
        """An estimate of the most that a training step holds, in bytes.

        parameters + buffers + optimizer_copies · gradients + N · input + the largest, over the
        layers, of (kept by this layer and those before it + gradients of the parameters of this
        layer and those after it + the gradients of its inputs and outputs), and at least all
        gradients together, which the optimizer sees. Parameters' gradients are set to None before
        the forward pass, as `torch.optim.Optimizer.zero_grad` does it. What libraries take for
        themselves while an operator runs is not in it, and nothing of CUDA's own.

        Args:
            batch_size: N, images in a batch.
            optimizer_copies: numbers that the optimizer keeps for each trained one: 0 for plain
                SGD, 1 with momentum, 2 for Adam.

        Returns:
            None where `kept` is not known.

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
            waiting = self.gradients - done
            worst = max(worst, kept + waiting + n * layer.passing)
            done += layer.gradients
        return always + n * self.input + worst


def check_count(name: str, value: object, least: int) -> None:
    """Refuse what is no whole number of at least ``least``.

    Raises:
        ArgumentError: if it is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ArgumentError(f"{name}={value!r} must be a whole number of at least {least}.")


def measure_memory(model: nn.Module, inputs: Inputs, unit: int = 1) -> Memory:
    """What training ``model`` holds, found by one pass in training mode on fake tensors.

    Args:
        model: any module; it is left as it was.
        inputs: what it is called with.
        unit: images that it takes at least.
    """
    model = unwrapped(model)
    parameters = [p for _, module in named_layers(model) for p in own_parameters(module)]
    buffers = list(model.buffers())
    problem = ""
    keeper = _Keeper()
    hooks = torch.autograd.graph.saved_tensors_hooks(keeper.pack, keeper.unpack)
    try:
        contexts = [torch.enable_grad(), hooks]
        run_on_fake(model, inputs, PROBE_BATCH * unit, [keeper], contexts, training=True)
    except Exception as error:  # whatever a model raises: the table does without these numbers
        kind = "" if isinstance(error, ArgumentError | ValuesNeededError) else type(error).__name__
        problem = f"{kind}: {' '.join(str(error).split())[:200]}".removeprefix(": ")
    layers = tuple(keeper.layers(model))
    return Memory(
        parameters=_bytes(parameters),
        gradients=_bytes(p for p in parameters if p.requires_grad),
        buffers=_bytes(buffers),
        input=inputs.n_bytes(unit, [*parameters, *buffers]),
        kept=None if problem else sum(layer.kept for layer in layers),
        kept_fixed=0 if problem else sum(layer.kept_fixed for layer in layers),
        layers=() if problem else layers,
        problem=problem,
        unit=unit,
    )


class _Saved:
    """Stands for a saved tensor; autograd lets it go when it would let the tensor go.

    It holds the memory, so that its identity is not used anew, and not the tensor, which would hold
    the graph that holds this.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.storage = tensor.untyped_storage()


class _Keeper:
    """Listens to what autograd saves, and in which module; see `execution.Observer`."""

    def __init__(self) -> None:
        self._running: list[str] = [""]
        self._given: list[set[int]] = []
        self._passing: dict[str, int] = {}
        self._order: list[str] = []
        self._own: set[int] = set()  # memory of parameters, buffers and inputs
        self._saved: list[tuple[str, int, int, weakref.ref[_Saved]]] = []
        self._kept: dict[str, list[int]] = {}

    def pack(self, tensor: Tensor) -> _Saved:
        saved = _Saved(tensor)
        n_bytes = saved.storage.nbytes()
        entry = (self._running[-1], memory_of(tensor), n_bytes, weakref.ref(saved))
        self._saved.append(entry)
        return saved

    @staticmethod
    def unpack(_: _Saved) -> Tensor:
        raise RuntimeError("there is no backward pass")

    def begin(self, tensor: Tensor) -> None:
        """Nothing to do."""

    def constant(self, fake: Tensor, real: Tensor) -> None:  # noqa: ARG002
        """Memory that is there anyway."""
        self._own.add(memory_of(fake))

    def operator(
        self,
        function: OpOverload,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        out: object,
        layer: str,
    ) -> None:
        """Nothing to do."""

    def enter(self, name: str, module: nn.Module, given: Sequence[Tensor]) -> None:  # noqa: ARG002
        """A module is about to run."""
        if not name:
            self._own.update(map(memory_of, given))
        self._running.append(name)
        self._given.append(set(map(memory_of, given)))
        self._passing[name] = sum(t.untyped_storage().nbytes() for t in given)
        if name not in self._order:
            self._order.append(name)

    def leave(self, name: str, module: nn.Module, output: object) -> None:  # noqa: ARG002
        """A module has run; the model itself is the last one, while its output is still held."""
        while self._running.pop() != name:  # a model may catch what its layers raise
            self._given.pop()
        given = self._given.pop()
        tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        made = [t for t in tensors if memory_of(t) not in given]
        # In place, the gradient of the output becomes that of the input where it lies.
        self._passing[name] += sum(t.untyped_storage().nbytes() for t in made)
        if not name:
            self._sum_up()

    def _sum_up(self) -> None:
        """Sum up what is still saved, each memory once."""
        met = set(self._own)
        for name, memory, n_bytes, saved in self._saved:
            if saved() is not None and memory not in met:
                met.add(memory)
                per_unit, rest = divmod(n_bytes, PROBE_BATCH)
                sums = self._kept.setdefault(name, [0, 0])
                if rest:
                    sums[1] += n_bytes
                else:
                    sums[0] += per_unit
        self._saved.clear()

    def layers(self, model: nn.Module) -> Generator[LayerMemory]:
        modules = dict(named_layers(model))
        met: set[int] = set()
        names = [*self._order, *(name for name in modules if name not in self._order)]
        for name in names:
            own = [p for p in own_parameters(modules[name]) if id(p) not in met]
            met.update(map(id, own))
            kept, fixed = self._kept.get(name, (0, 0))
            leaf = not has_children(modules[name])
            passing = self._passing.get(name, 0) // PROBE_BATCH if leaf else 0
            trained = _bytes(p for p in own if p.requires_grad)
            yield LayerMemory(name, kept, fixed, trained, passing)


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the memory below tensors, each counted once."""
    sizes = {id(t): t.numel() * t.element_size() for t in tensors}
    return sum(sizes.values())
