"""What training keeps in memory: found by running the model on fake tensors with autograd on.

Autograd says of each tensor that it saves it for the backward pass; here its saving is listened
to (`torch.autograd.graph.saved_tensors_hooks`), so that no rule for an operator can be wrong.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves

from convlens.errors import ArgumentError

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
    """

    parameters: int
    gradients: int
    buffers: int
    input: int
    kept: int | None
    kept_fixed: int
    layers: tuple[LayerMemory, ...] = field(repr=False)
    problem: str = ""

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
        worst, kept, done = self.gradients, 0, 0
        for layer in self.layers:
            kept += batch_size * layer.kept + layer.kept_fixed
            waiting = self.gradients - done
            worst = max(worst, kept + waiting + batch_size * layer.passing)
            done += layer.gradients
        return always + batch_size * self.input + worst


def check_count(name: str, value: object, least: int) -> None:
    """Refuse what is no whole number of at least ``least``.

    Raises:
        ArgumentError: if it is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ArgumentError(f"{name}={value!r} must be a whole number of at least {least}.")


def measure_memory(model: nn.Module, shape: Sequence[int], example: Tensor | None = None) -> Memory:
    """What training ``model`` on images of a shape (N, C, …) holds; N does not matter.

    The model runs once on fake tensors, with every module in training mode; afterwards everything
    about it is as it was.

    Args:
        model: any module that takes one tensor.
        shape: of its input.
        example: gives the input's type and device; those of the model's parameters without one.
    """
    model = getattr(model, "_orig_mod", model)  # of a compiled model
    parameters = dict(model.named_parameters())
    buffers = dict(model.named_buffers())
    reals = [t for t in [*parameters.values(), *buffers.values()] if t.is_floating_point()]
    like = example if example is not None else reals[0] if reals else torch.empty(0)
    trained = [p for p in parameters.values() if p.requires_grad]
    problem = ""
    keeper = _Keeper()
    try:
        _run(model, {**parameters, **buffers}, (PROBE_BATCH, *shape[1:]), like, keeper)
    except Exception as error:  # whatever a model raises: the table does without these numbers
        problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    layers = tuple(keeper.layers(model))
    return Memory(
        parameters=_bytes(parameters.values()),
        gradients=_bytes(trained),
        buffers=_bytes(buffers.values()),
        input=torch.Size(shape[1:]).numel() * like.element_size(),
        kept=None if problem else sum(layer.kept for layer in layers),
        kept_fixed=0 if problem else sum(layer.kept_fixed for layer in layers),
        layers=() if problem else layers,
        problem=problem,
    )


class _Saved:
    """Stands for a saved tensor; autograd lets it go when it lets the tensor go."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class _Keeper:
    """Listens to what autograd saves, and in which module."""

    def __init__(self) -> None:
        self.running: list[str] = [""]
        self.given: list[set[int]] = []
        self.passing: dict[str, int] = {}
        self.order: list[str] = []
        self._saved: list[tuple[str, int, int, weakref.ref[_Saved]]] = []
        self._kept: dict[str, list[int]] = {}

    def pack(self, tensor: Tensor) -> _Saved:
        saved = _Saved(tensor)
        storage = tensor.untyped_storage()
        entry = (self.running[-1], _identity(tensor), storage.nbytes(), weakref.ref(saved))
        self._saved.append(entry)
        return saved

    @staticmethod
    def unpack(saved: _Saved) -> Tensor:
        return saved.tensor

    def enter(self, name: str, values: object) -> None:
        self.running.append(name)
        self.given.append({_identity(t) for t in _tensors(values)})
        self.passing[name] = sum(t.untyped_storage().nbytes() for t in _tensors(values))
        if name not in self.order:
            self.order.append(name)

    def leave(self, name: str, values: object) -> None:
        while self.running.pop() != name:  # a model may catch what its layers raise
            self.given.pop()
        given = self.given.pop()
        made = [t for t in _tensors(values) if _identity(t) not in given]
        # In place, the gradient of the output becomes that of the input where it lies.
        self.passing[name] += sum(t.untyped_storage().nbytes() for t in made)

    def close(self, own: set[int]) -> None:
        """Sum up what is still saved, each memory once, without those in ``own``."""
        met = set(own)
        for name, memory, n_bytes, saved in self._saved:
            if saved() is not None and memory not in met:
                met.add(memory)
                per_batch, rest = divmod(n_bytes, PROBE_BATCH)
                sums = self._kept.setdefault(name, [0, 0])
                if rest:
                    sums[1] += n_bytes
                else:
                    sums[0] += per_batch
        self._saved.clear()

    def layers(self, model: nn.Module) -> Generator[LayerMemory]:
        modules = dict(model.named_modules())
        met: set[int] = set()
        names = [*self.order, *(name for name in modules if name not in self.order)]
        for name in names:
            own = [p for p in modules[name].parameters(recurse=False) if id(p) not in met]
            met.update(map(id, own))
            kept, fixed = self._kept.get(name, (0, 0))
            leaf = not any(True for _ in modules[name].children())
            passing = self.passing.get(name, 0) // PROBE_BATCH if leaf else 0
            trained = _bytes(p for p in own if p.requires_grad)
            yield LayerMemory(name, kept, fixed, trained, passing)


def _run(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    shape: tuple[int, ...],
    like: Tensor,
    keeper: _Keeper,
) -> None:
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    modules = dict(model.named_modules())
    with ExitStack() as stack:
        stack.enter_context(_in_training(modules.values()))
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.enable_grad())
        fakes = {name: _fake(fake, tensor) for name, tensor in tensors.items()}
        for name, module in modules.items():
            before = module.register_forward_pre_hook(
                _entering(keeper, name), prepend=True, with_kwargs=True
            )
            stack.callback(before.remove)
            stack.callback(module.register_forward_hook(_leaving(keeper, name)).remove)
        stack.enter_context(fake)
        device = "cpu" if like.is_meta else like.device
        image = torch.empty(shape, dtype=like.dtype, device=device)
        own = {_identity(t) for t in [*fakes.values(), image]}
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(keeper.pack, keeper.unpack))
        output = torch.func.functional_call(model, fakes, (image,))
        keeper.close(own)
        del output  # until now it held what backward would need


def _fake(mode: FakeTensorMode, tensor: Tensor) -> Tensor:
    """A fake of a tensor; one without a device of its own is taken to lie on the CPU.

    On "meta" torch chooses other operators than on any real device.
    """
    if not tensor.is_meta:
        return mode.from_tensor(tensor)
    with mode:
        made = torch.empty_like(tensor, device="cpu")
        return made.requires_grad_(tensor.requires_grad)


def _entering(keeper: _Keeper, name: str) -> Callable[..., None]:
    def enter(_: nn.Module, args: Any, kwargs: Any) -> None:  # noqa: ANN401
        keeper.enter(name, (args, kwargs))

    return enter


def _leaving(keeper: _Keeper, name: str) -> Callable[..., None]:
    def leave(_: nn.Module, __: object, output: object) -> None:
        keeper.leave(name, output)

    return leave


@contextmanager
def _in_training(modules: Any) -> Generator[None]:  # noqa: ANN401
    """Training mode inside; afterwards every attribute of every module is what it was."""
    saved = [(module, dict(vars(module))) for module in modules]
    try:
        for module, _ in saved:
            module.training = True
        yield
    finally:
        for module, attributes in saved:
            vars(module).clear()
            vars(module).update(attributes)


def _tensors(values: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _identity(tensor: Tensor) -> int:
    return StorageWeakRef(tensor.untyped_storage()).cdata


def _bytes(tensors: Any) -> int:  # noqa: ANN401 — any iterable of tensors
    """Bytes of the memory below tensors, each counted once."""
    sizes = {id(t): t.numel() * t.element_size() for t in tensors}
    return sum(sizes.values())
