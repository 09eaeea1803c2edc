"""Watching inside graphs that `torch.compile` made.

When a layer with a hook is compiled, the hook is traced with it: its Python runs once, and the
operators of `convlens.watching.custom_ops` stay in the graph. Code compiled before the hooks were
registered does not call them, so everything compiled in this process is thrown away when watching
begins, and what was compiled with hooks when it ends.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convlens.watching import normalization
from convlens.watching.aggregator import Aggregator, Slot
from convlens.watching.backends.buffers import buffer_device
from convlens.watching.custom_ops import NO_AXIS, register, watchers
from convlens.watching.forward_lock import ForwardLock
from convlens.watching.layer_selection import channel_axis
from convlens.watching.notes import CannotSketchError, Notes
from convlens.watching.outputs import first_tensor


class CompiledHooks:
    """What the hooks of one watcher do while they are traced, and what the operators call.

    Args:
        aggregator: where the sketches go.
        slots: the watched layers.
        notes: where to say what could not be recorded.
        lock: which forwards are recorded.
        enter_forward: begins a forward on some inputs; returns whether it is counted, None if it
            is left out.

    Attributes:
        active: whether some of the model was compiled when watching began, or an operator has run.
    """

    def __init__(
        self,
        aggregator: Aggregator,
        slots: Sequence[Slot],
        notes: Notes,
        lock: ForwardLock,
        enter_forward: Callable[[Sequence[Any]], bool | None],
    ) -> None:
        self.active = False
        self._aggregator, self._slots, self._notes, self._lock = aggregator, slots, notes, lock
        self._enter_forward = enter_forward
        self._number = secrets.randbits(62)
        self._cursors: dict[torch.device, Tensor] = {}
        self._on_cpu = np.zeros(1, np.int64)  # the memory of the CPU's cursor, once there is one

    def attach(self, model: nn.Module) -> None:
        """Let graphs find this watcher, and have compiled code compiled anew."""
        register()
        watchers()[self._number] = self
        for own in {parameter.device for parameter in model.parameters()}:
            with suppress(CannotSketchError):
                device = buffer_device(own)
                if device not in self._cursors:
                    self._cursors[device] = torch.full((1,), -1, device=device)
                    if device.type == "cpu":
                        self._on_cpu = self._cursors[device].numpy()
        self.active = any(_is_compiled(module) for module in model.modules())
        if self.active or _has_compiled():
            torch.compiler.reset()

    def detach(self) -> None:
        """Let graphs find no watcher any more, and have compiled code compiled without."""
        watchers().pop(self._number, None)
        self.let(count=False)
        if self.active:
            torch.compiler.reset()

    def let(self, *, count: bool) -> None:
        """Set the cursors from outside of any graph: to the current row, or to none."""
        for device, cursor in self._cursors.items():
            if device.type == "cpu":  # NumPy takes a tenth of torch's time
                self._on_cpu[0] = self._aggregator.row if count else -1
            else:
                self._set([cursor], count=count)

    def _set(self, cursors: Sequence[Tensor], *, count: bool) -> None:
        for cursor in cursors:
            cursor.fill_(self._aggregator.row_on(cursor.device) if count else -1)

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
        old, slot.old = slot.old, None
        if torch.compiler.is_exporting():
            return
        x, buffers = first_tensor(output), slot.buffers
        cursor = None if buffers is None else self._cursors.get(buffers.device)
        if x is None or buffers is None or cursor is None:
            return
        axis = channel_axis(slot.channel_rule, x.ndim)
        torch.ops.convlens.sketch_(
            x.detach(), *buffers.sketched(), cursor,
            NO_AXIS if axis is None else axis, self._number, slot.info.index,
        )  # fmt: skip
        if slot.batch_norm:
            with torch.no_grad():
                normalization.add(module, old, x, buffers.batch_norm, cursor=cursor)

    def leave(self) -> None:
        """The model's forward has ended, inside a graph."""
        if torch.compiler.is_exporting():
            return
        torch.ops.convlens.leave_(list(self._cursors.values()), self._number)

    def _buffers(self) -> list[Tensor]:
        return [t for slot in self._slots if slot.buffers for t in slot.buffers.tensors()]

    # ---- called by the operators ----------------------------------------------------------------

    def enter_compiled(
        self, cursors: Sequence[Tensor], buffers: Sequence[Tensor], inputs: Sequence[Tensor]
    ) -> None:
        """A forward begins. A graph may have copied the buffers, which then are emptied too."""
        self.active = True
        before = self._aggregator.n_flushes
        count = self._notes.guard(self._enter_forward, inputs)
        if count is None:
            return
        self._set(cursors, count=count)
        # On a device the other half is used next, and this one is emptied once it is copied.
        if self._aggregator.n_flushes != before:
            for tensor in buffers:
                if tensor.device.type != "cuda":
                    tensor.zero_()

    def sketch_compiled(
        self, slot: int, x: Tensor, axis: int | None, buffers: Sequence[Tensor], cursor: Tensor
    ) -> None:
        """A layer has put out ``x``."""
        self.active = True
        if self._lock.elsewhere:
            return
        try:
            self._aggregator.sketch_into(self._slots[slot], x, axis, buffers, cursor)
        except Exception as error:
            self._notes.leave_out(self._slots[slot].info, error, x)

    def leave_compiled(self, cursors: Sequence[Tensor]) -> None:
        """The forward has ended."""
        if self._lock.release():
            self._set(cursors, count=False)


def _is_compiled(module: nn.Module) -> bool:
    in_place: object = vars(module).get("_compiled_call_impl")
    return hasattr(module, "_orig_mod") or in_place is not None


def _has_compiled() -> bool:
    """Whether `torch.compile` has compiled anything in this process: it remembers what it met."""
    frames = sys.modules.get("torch._dynamo.convert_frame")
    met: Any = getattr(frames, "input_codes", None)
    return bool(getattr(met, "seen", met))
