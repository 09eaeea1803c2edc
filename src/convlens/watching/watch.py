"""`ActivationWatch`: hooks on a model's layers, a sketch of every output, and their history."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Self

import numpy as np
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.hooks import RemovableHandle

from convlens.errors import ArgumentError
from convlens.plots import LayerHistories
from convlens.records import Epoch, LayerHistory, LayerInfo, RecordSink
from convlens.sketch import (
    BucketLayout,
    Columns,
    coarsen,
    concatenate,
    decode,
    empty_columns,
    encode,
)
from convlens.watching.buffers import Buffers
from convlens.watching.kernels import Sketcher
from convlens.watching.probes import (
    Layers,
    ReluInputs,
    channel_axis,
    choose_layers,
    first_tensor,
)

BLOCK = 64  # steps held in full width before they are compressed and written


class ActivationWatch(LayerHistories):
    """Statistics of what each watched layer puts out, at every step, exact.

    Use it as a context manager around a training loop, or call `attach` and `detach`. Reading works
    at any time: ``watch["conv1"].near_zero`` is one array over the steps so far.

    A step is a forward of ``model`` in training mode; with ``count_forwards=False`` it is what lies
    between two calls of `step`, however often the model is called there. Forwards in evaluation
    mode are not counted, nor are calls of a layer outside the model's own forward.

    Args:
        model: any module; its layers are found once, at `attach`.
        layers: ``"trainable"`` (every module that owns parameters), ``"all"`` (every module without
            children), or names, modules and module classes. A layer with several outputs is
            watched by its first floating-point tensor.
        eps: a value with |x| ≤ eps is near zero.
        every: watch only each n-th step; 1 watches all.
        count_forwards: see above.
        sink: where finished columns are written to besides memory.

    Raises:
        ArgumentError: if an argument has a value that cannot work.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Layers = "trainable",
        *,
        eps: float = 0.05,
        every: int = 1,
        count_forwards: bool = True,
        sink: RecordSink | None = None,
    ) -> None:
        if eps < 0:
            raise ArgumentError(f"eps={eps} is negative; give the bound of |x| for near zero.")
        if every < 1:
            raise ArgumentError(f"every={every} is not a positive number of steps; use 1 for all.")
        self.model = model
        self.eps = eps
        self.every = every
        self.count_forwards = count_forwards
        self.sink = sink
        self.close_sink: Callable[[str, str | None], None] | None = None  # of a sink of its own
        self.layout = BucketLayout()
        self._sketch = Sketcher(self.layout, eps)
        self._chosen = choose_layers(model, layers)
        self._layers = [
            LayerInfo(index, name, type(module).__name__)
            for index, (name, module) in enumerate(self._chosen)
        ]
        self._handles: list[RemovableHandle] = []
        self._buffers: list[Buffers | None] = [None] * len(self._chosen)
        self._chunks: list[list[bytes]] = [[] for _ in self._chosen]
        self._steps: list[int] = []  # the step of each row in use
        self._next_step = 0
        self._row = -1  # the row of the current step, -1 if it is not watched
        self._inside = False  # in a training forward of the model
        self._relus: ReluInputs | None = None  # there during the first watched forward only
        self._relus_known = False
        self._layers_written = False
        self._closed = False

    # ---- what LayerHistories needs -------------------------------------------------------------

    @property
    def layers(self) -> Sequence[LayerInfo]:
        """The watched layers, in order of ``model.named_modules()``."""
        return self._layers

    @property
    def epochs(self) -> Sequence[Epoch]:
        """Nothing: a loop of one's own has not said where its epochs end."""
        return ()

    def history(self, index: int) -> LayerHistory:
        """Everything recorded of one layer so far."""
        parts = [decode(chunk) for chunk in self._chunks[index]]
        buffers = self._buffers[index]
        if buffers is not None:
            parts.append(self._open_columns(buffers))
        columns = concatenate(parts) if parts else empty_columns(self.layout.size, 0)
        # A step that was cut in two by a flush is one step.
        columns = coarsen(columns, 0)
        return LayerHistory(self._layers[index], columns, self.layout, self.eps)

    # ---- attaching ------------------------------------------------------------------------------

    def attach(self) -> Self:
        """Register the hooks; a second call changes nothing."""
        if self._handles:
            return self
        if self._closed:
            raise ArgumentError(
                "this watch has closed its run and cannot be attached again; call cl.watch(…) anew."
            )
        if hasattr(self.model, "_orig_mod"):
            raise ArgumentError(
                "model is a compiled module, which would ignore new hooks in silence; watch the "
                "module that was given to torch.compile, before compiling it."
            )
        enter = self.model.register_forward_pre_hook(self._enter)
        self._handles.append(enter)
        for index, (_, module) in enumerate(self._chosen):
            hook = partial(self._record, index)
            self._handles.append(module.register_forward_hook(hook))
        # Last, so that a model which is itself a watched layer is recorded before it is left.
        leave = self.model.register_forward_hook(self._leave, always_call=True)
        self._handles.append(leave)
        return self

    def detach(self, error: BaseException | None = None) -> None:
        """Remove the hooks and write what is still open; the history stays readable.

        Args:
            error: what ended the watched loop, None if it ended well; a run of one's own is closed
                as finished, stopped or failed.
        """
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._inside = False
        if self._relus is not None:  # the first forward was left by an interrupt
            self._relus.__exit__(None, None, None)
            self._relus = None
        self.flush()
        if self.close_sink is not None:
            stopped = isinstance(error, KeyboardInterrupt)
            status = "finished" if error is None else "stopped" if stopped else "failed"
            self.close_sink(status, None if error is None else str(error))
            self.sink, self.close_sink, self._closed = None, None, True

    def __enter__(self) -> Self:
        return self.attach()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.detach(error)

    # ---- counting steps -------------------------------------------------------------------------

    def step(self, number: int | None = None) -> None:
        """Say that an optimizer step begins: what is watched from here on belongs to it.

        Args:
            number: the step's number, the next one if None; the same again adds to that step.
        """
        step = self._next_step if number is None else number
        self._next_step = step + 1
        self._row = -1
        if step % self.every:
            return
        if self._steps and self._steps[-1] == step:
            self._row = len(self._steps) - 1
            return
        if len(self._steps) == BLOCK:
            self.flush()
        self._row = len(self._steps)
        self._steps.append(step)

    def flush(self) -> None:
        """Compress the finished columns and write them to the sink."""
        if not self._steps:
            return
        if self.sink is not None and not self._layers_written:
            self.sink.write_layers(self._layers, self.layout, self.eps)
            self._layers_written = True
        for index, buffers in enumerate(self._buffers):
            if buffers is None:
                continue
            columns = self._open_columns(buffers)
            buffers.clear()
            if len(columns):
                payload = encode(columns)
                self._chunks[index].append(payload)
                if self.sink is not None:
                    first, last = int(columns.first_step[0]), int(columns.last_step[-1])
                    self.sink.write_columns(index, 0, first, last, payload)
        self._steps.clear()
        self._row = -1
        if self.sink is not None and self.close_sink is not None:
            self.sink.flush()  # nobody else does: whoever lends a sink flushes it with its own rows

    def _open_columns(self, buffers: Buffers) -> Columns:
        steps = np.array(self._steps, np.int64)
        return buffers.take(steps, steps)

    # ---- the hooks ------------------------------------------------------------------------------

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        # A summary of a watched model runs it on fake tensors, which is no step.
        if not module.training or any(isinstance(x, FakeTensor) for x in args):
            return
        if self.count_forwards:
            self.step()
        self._inside = self._row >= 0
        if self._inside and not self._relus_known:
            self._relus = ReluInputs()
            self._relus.__enter__()

    def _record(self, index: int, module: nn.Module, args: object, output: Any) -> None:  # noqa: ANN401, ARG002
        if not self._inside:
            return
        x = first_tensor(output)
        if x is None:
            return
        axis = channel_axis(module, x)
        buffers = self._buffers[index]
        if buffers is None:
            channels = 0 if axis is None else x.shape[axis]
            buffers = self._buffers[index] = Buffers(BLOCK, self.layout, channels, x.device)
        self._sketch(x, axis, buffers, self._row)
        if self._relus is not None:
            self._relus.add(index, x)

    def _leave(self, module: nn.Module, args: object, output: object) -> None:  # noqa: ARG002
        self._inside = False
        if self._relus is None:
            return
        self._relus.__exit__(None, None, None)
        seen, self._relus = self._relus.layers, None
        if output is None:  # the forward failed, perhaps before it came to a ReLU
            return
        self._relus_known = True
        self._layers = [replace(layer, feeds_relu=layer.index in seen) for layer in self._layers]
