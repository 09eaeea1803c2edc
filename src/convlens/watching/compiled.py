"""Watching inside graphs that `torch.compile` made.

When a layer with a hook is compiled, the hook is traced with it: what it does in Python happens
once, and what stays in the graph are the operators of `convlens.watching.operators`. Modules that
were compiled before the hooks came would go on without them, so everything compiled is thrown away
when watching begins, and again when it ends, so that no operator stays behind.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convlens.errors import ArgumentError
from convlens.execution import read_inputs, trace
from convlens.watching import normalization
from convlens.watching.book import Sketchbook, Slot
from convlens.watching.operators import NO_AXIS, operators, watchers
from convlens.watching.probes import channel_axis, first_tensor


class CompiledSide:
    """What the hooks of one watcher do while they are traced, and what the operators call.

    Args:
        book: where the sketches go.
        slots: the watched layers.
        enter_step: begins a training forward on some inputs; whether it is to be counted.

    Attributes:
        active: whether some of the model was compiled when watching began, or an operator has run.
    """

    def __init__(
        self,
        book: Sketchbook,
        slots: Sequence[Slot],
        enter_step: Callable[[Sequence[Any]], bool],
    ) -> None:
        self.active = False
        self._book, self._slots, self._enter_step = book, slots, enter_step
        self._number = secrets.randbits(62)
        self._cursors: dict[torch.device, Tensor] = {}
        self._on_cpu = np.zeros(1, np.int64)  # the memory of the CPU's cursor, once there is one

    def attach(self, model: nn.Module) -> None:
        """Let graphs find this watcher, and have what is compiled made anew."""
        operators()
        watchers()[self._number] = self
        for slot in self._slots:
            if slot.buffers is not None and slot.buffers.device not in self._cursors:
                device = slot.buffers.device
                self._cursors[device] = torch.full((1,), -1, dtype=torch.int64, device=device)
                if device.type == "cpu":
                    self._on_cpu = self._cursors[device].numpy()
        self.active = any(_is_compiled(module) for module in model.modules())
        if self.active:
            torch.compiler.reset()

    def detach(self) -> None:
        """What is still compiled finds no watcher any more; it is made anew without."""
        watchers().pop(self._number, None)
        self.let(count=False)
        if self.active:
            torch.compiler.reset()

    def let(self, *, count: bool) -> None:
        """Say from outside of any graph whether the current row is counted in."""
        for device, cursor in self._cursors.items():
            if device.type == "cpu":  # through NumPy in a tenth of the time
                self._on_cpu[0] = self._book.row if count else -1
            else:
                self._set([cursor], count=count)

    def _set(self, cursors: Sequence[Tensor], *, count: bool) -> None:
        for cursor in cursors:
            cursor.fill_(self._book.row_on(cursor.device) if count else -1)

    # ---- traced with the model ------------------------------------------------------------------

    def enter(self, args: Sequence[Any]) -> None:
        """The model's own forward begins, inside a graph."""
        if torch.compiler.is_exporting():
            return  # the graph is for elsewhere
        inputs = [x for x in args if isinstance(x, Tensor)]
        cursors = list(self._cursors.values())
        torch.ops.convlens.enter_(cursors, self._buffers(), inputs, self._number)

    def record(self, slot: Slot, module: nn.Module, output: Any) -> None:  # noqa: ANN401
        """A layer has put out something, inside a graph."""
        if torch.compiler.is_exporting():
            slot.old = None
            return
        x, buffers = first_tensor(output), slot.buffers
        if x is None or buffers is None:
            return
        axis = channel_axis(slot.channel_rule, x.ndim)
        cursor = self._cursors[buffers.device]
        torch.ops.convlens.sketch_(
            x.detach(), *buffers.sketched(), cursor,
            NO_AXIS if axis is None else axis, self._number, slot.info.index,
        )  # fmt: skip
        if slot.old is not None:
            old, slot.old = slot.old, None
            with torch.no_grad():
                normalization.add(module, old, x, buffers.batch_norm, cursor=cursor)

    def leave(self) -> None:
        """The model's forward has ended, inside a graph."""
        if torch.compiler.is_exporting():
            return
        torch.ops.convlens.leave_(list(self._cursors.values()))

    def _buffers(self) -> list[Tensor]:
        return [t for slot in self._slots if slot.buffers for t in slot.buffers.tensors()]

    # ---- called by the operators ----------------------------------------------------------------

    def enter_compiled(
        self, cursors: Sequence[Tensor], buffers: Sequence[Tensor], inputs: Sequence[Tensor]
    ) -> None:
        """A forward begins. A graph may have copied the buffers, which then are emptied too."""
        self.active = True
        before = self._book.n_flushes
        count = self._enter_step(inputs)
        self._set(cursors, count=count)
        # On a device the other half is used next, and this one is emptied once it is copied.
        if self._book.n_flushes != before:
            for tensor in buffers:
                if tensor.device.type != "cuda":
                    tensor.zero_()

    def sketch_compiled(
        self, slot: int, x: Tensor, axis: int | None, buffers: Sequence[Tensor], cursor: Tensor
    ) -> None:
        """A layer has put out ``x``."""
        self.active = True
        self._book.sketch_into(self._slots[slot], x, axis, buffers, cursor)


class BeforeRelus:
    """An observer of `execution.trace`: which modules' outputs a ReLU takes directly."""

    def __init__(self) -> None:
        aten = torch.ops.aten
        self._relus = {aten.relu.default, aten.relu_.default}
        self._clamps = {aten.clamp_min, aten.clamp_min_, aten.clamp, aten.clamp_}
        self._clamps |= {aten.hardtanh, aten.hardtanh_}  # ReLU6
        self._outputs: dict[int, tuple[str, Tensor]] = {}
        self.names: set[str] = set()

    def begin(self, tensor: Tensor) -> None:
        """Nothing to do."""

    def enter(self, name: str, module: nn.Module, given: Sequence[Tensor]) -> None:
        """Nothing to do."""

    def leave(self, name: str, module: nn.Module, output: object) -> None:  # noqa: ARG002
        """A module has run; its output is kept alive so that its identity stays its."""
        tensor = first_tensor(output)
        if tensor is not None:
            self._outputs.setdefault(id(tensor), (name, tensor))

    def operator(
        self,
        function: Any,  # noqa: ANN401
        args: Sequence[Any],
        kwargs: object,  # noqa: ARG002
        out: object,  # noqa: ARG002
        layer: str,  # noqa: ARG002
    ) -> None:
        """An operator has run."""
        is_relu = function in self._relus
        if function.overloadpacket in self._clamps:
            is_relu = len(args) > 1 and args[1] == 0
        if is_relu and id(args[0]) in self._outputs:
            self.names.add(self._outputs[id(args[0])][0])


def layers_before_relus(model: nn.Module, inputs: Sequence[Any]) -> set[str]:
    """Names of the modules whose output a ReLU takes directly, from a run on fake tensors.

    None are found for a model of several inputs, or one that fake tensors cannot follow.
    """
    observer = BeforeRelus()
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    if len(tensors) == 1 and len(inputs) == 1:
        with suppress(ArgumentError):
            trace(model, read_inputs(tensors[0]), [observer])
    return observer.names


def _is_compiled(module: nn.Module) -> bool:
    in_place: object = vars(module).get("_compiled_call_impl")
    return hasattr(module, "_orig_mod") or in_place is not None
