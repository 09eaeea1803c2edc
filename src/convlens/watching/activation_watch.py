"""`ActivationWatch`: hooks on a model's layers, a sketch of every output, and their history."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import get_ident
from typing import Any, Self

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from convlens.core.histories import FORWARD, LayerHistory, LayerInfo
from convlens.core.layer_histories import UpdateHistories
from convlens.core.outcome import outcome_of
from convlens.core.records import RecordSink, RunRecord
from convlens.errors import ArgumentError
from convlens.watching import normalization
from convlens.watching.aggregator import Aggregator, Slot
from convlens.watching.arguments import MODES, check_watch
from convlens.watching.compiled import CompiledHooks
from convlens.watching.copies import LeftOutOfCopies
from convlens.watching.cost import Cost, hook_seconds
from convlens.watching.forward_lock import ForwardLock
from convlens.watching.layer_selection import (
    Layers,
    channel_rule,
    choose_layers,
    known_channels,
    other_names,
)
from convlens.watching.loop_facts import LoopFacts
from convlens.watching.notes import CannotSketchError, Notes
from convlens.watching.outputs import (
    are_fake,
    first_tensor,
    in_backward,
    is_transformed,
    why_no_sketch,
)
from convlens.watching.parameter_watch import Gradients, ParameterWatch
from convlens.watching.relus import ReluSearch
from convlens.watching.step_log import LoggingHistories, StepLog
from convlens.watching.unseen import note_forwards, note_unseen


class ActivationWatch(LoggingHistories):
    """Exact statistics of what each watched layer puts out at every step; see `convlens.watch`.

    Use it as a context manager around a training loop, or call `attach` and `detach`. It can be
    read at any time.

    A step is a forward of ``model`` in training mode, or with ``count_forwards=False`` what lies
    between two calls of `step`. Forwards in evaluation mode are counted if ``mode`` says so. Not
    counted are calls of a layer outside the model's forward, and what activation checkpointing
    computes again in the backward pass. A loop that does not call the model itself calls `enter`
    before and `leave` after its forward pass.

    An error inside watching never stops the training. What cannot be recorded is left out, warned
    of once and counted in `notes`: values without a sketch (sparse, nested, complex, inside a
    transform of torch.func), layers that are never called, forwards of a second thread.

    Memory is bounded: beyond 4,096 steps neighbours share a column. Of a layer with several outputs
    the first floating-point tensor is watched; with ``sample``, its first axis is that of the
    images. Near zero for gradients and updates is 1e-7.

    Args:
        model: any module; its layers are found once, here. Compiled code is compiled anew, since it
            would not call new hooks.
        layers, eps, every, mode, sample, gradients, updates, count_forwards: see `convlens.watch`.
        sink: where finished columns are written to besides memory.
        flush_sink: flush the sink after each write.
        rates: keep the learning rates of each optimizer step also where nothing is logged.

    Attributes:
        run_path: the directory of the run that it records to by itself (``run`` of
            `convlens.watch`), None if it keeps everything in memory.

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
        mode: str = "train",
        sample: float = 1.0,
        gradients: bool = False,
        updates: bool = False,
        count_forwards: bool = True,
        sink: RecordSink | None = None,
        flush_sink: bool = False,
        rates: bool = False,
    ) -> None:
        flags = {"gradients": gradients, "updates": updates, "count_forwards": count_forwards}
        check_watch(model, eps, every, mode, sample, **flags)
        self.model, self.eps, self.every, self.sample = model, eps, every, sample
        self.count_forwards, self._modes = count_forwards, MODES[mode]
        self.close_sink: Callable[[str, str | None], None] | None = None  # of a sink of its own
        self.run_path: Path | None = None
        self._notes = Notes()
        self.aggregator = Aggregator(eps, sample, sink, flush_sink=flush_sink, notes=self._notes)
        self.layout = self.aggregator.layout
        self._inner: nn.Module = getattr(model, "_orig_mod", model)  # of a compiled module
        self._chosen = choose_layers(self._inner, layers)
        self._slots = self.aggregator.open(
            LayerInfo(index, name, type(module).__name__)
            for index, (name, module) in enumerate(self._chosen)
        )
        self._parameters = ParameterWatch(
            self._inner,
            gradients=gradients,
            updates=updates,
            sink=sink,
            flush_sink=flush_sink,
            begun_by_forwards=count_forwards,
            notes=self._notes,
        )
        self._log = StepLog(self._inner, self._notes, self._clock, flush_sink=flush_sink)
        self._parameters.epochs = self._log.epochs
        self._facts = LoopFacts(self._inner, self._notes, parts=not count_forwards)
        self._log.loop, self._log.rates, self._log.sink = self._facts, rates, sink
        if count_forwards:
            self.aggregator.counted = self._parameters.aggregator.counted = FORWARD
        self._lock = ForwardLock()
        self._compiled = CompiledHooks(
            self.aggregator, self._slots, self._notes, self._lock, self._enter_forward
        )
        self._copies = LeftOutOfCopies()
        self._handles: list[RemovableHandle] = []
        self._next_step = 0
        self._watched = False  # whether the current step is
        self._held = False  # `enter` said so, so that the model's own forward says nothing
        self._relus = ReluSearch(self._inner, self._notes)
        self._began: float | None = None
        self._training_s = 0.0
        self._closed = False

    @property
    def sink(self) -> RecordSink | None:
        """Where finished columns are written to besides memory; to be set before `attach`."""
        return self.aggregator.store.sink

    @sink.setter
    def sink(self, sink: RecordSink | None) -> None:
        self._notes.sink = self._log.sink = sink
        for aggregator in self._aggregators():
            aggregator.store.sink = sink

    def _aggregators(self) -> list[Aggregator]:
        of_parameters = [self._parameters.aggregator] if self._parameters.wanted else []
        return [self.aggregator, *of_parameters]

    @property
    def layers(self) -> Sequence[LayerInfo]:
        """The watched layers, in order of ``model.named_modules()``."""
        return [slot.info for slot in self._slots]

    def __getitem__(self, layer: int | str) -> LayerHistory:
        """One history: by an index (negative counts from the end) or any name of the module.

        Raises:
            LayerNotFoundError: if nothing has this index or name.
        """
        if isinstance(layer, str) and layer not in self.names:
            layer = other_names(self._inner, self._chosen).get(layer, layer)
        return super().__getitem__(layer)

    def history(self, index: int) -> LayerHistory:
        """Everything recorded of one layer so far."""
        return self.aggregator.history(self._slots[index].series)

    @property
    def gradients(self) -> Gradients:
        """The gradients before each optimizer's step, by the parameters' names, if asked for."""
        return self._parameters.gradients

    @property
    def updates(self) -> UpdateHistories:
        """What each optimizer's step changed, by the parameters' names, if asked for."""
        return self._parameters.updates

    def record(self) -> RunRecord:
        """Everything recorded so far, as the doctor is given it."""
        watch, parameters = self._parameters, dict[str, Sequence[LayerHistory]]()
        for quantity in watch.quantities:
            parameters[quantity] = watch.histories(quantity)
        meta = {
            "status": "running" if self._handles else "finished",
            "counted": self.aggregator.counted,
            **self._log.meta(),
        }
        layers = [self.history(i) for i in range(len(self._slots))]
        return RunRecord(meta, self._log.steps, self._log.epochs, layers, parameters)

    @property
    def notes(self) -> tuple[str, ...]:
        """What could not be recorded so far, a sentence each; a run has them in its meta."""
        return self._notes.sentences()

    @property
    def cost(self) -> Cost:
        """What watching has cost so far, measured here."""
        parts = self._aggregators()
        return Cost(
            sum(part.kernel_s for part in parts),
            sum(part.n_sketches for part in parts) * hook_seconds(ActivationWatch),
            sum(part.handover_s for part in parts),
            self._watched_s(),
        )

    def _watched_s(self) -> float:
        """Seconds since the first step, as long as it is watched."""
        running = 0.0 if self._began is None else time.perf_counter() - self._began
        return self._training_s + running

    # ---- attaching ------------------------------------------------------------------------------

    def attach(self) -> Self:
        """Register the hooks, all or none; a second call changes nothing."""
        if self._handles:
            return self
        if self._closed:
            raise ArgumentError(
                "this watch has closed its run and cannot be attached again; call cl.watch again."
            )
        try:
            self._attach()
        except BaseException as error:
            self.detach(error)
            raise
        return self

    def _attach(self) -> None:
        if self.count_forwards and self.sink is not None:
            self.sink.write_meta({"counted": FORWARD})
        self._keep(self.model, self.model.register_forward_pre_hook(self._enter))
        for slot, (_, module) in zip(self._slots, self._chosen, strict=True):
            self._attach_layer(slot, module)
        # Last, so that a model which is itself a watched layer is recorded before it is left.
        self._keep(self.model, self.model.register_forward_hook(self._leave, always_call=True))
        self._parameters.attach()
        self._facts.attach(self.model)
        self._log.attach()
        self._compiled.attach(self.model)

    def _attach_layer(self, slot: Slot, module: nn.Module) -> None:
        if isinstance(module, torch.jit.ScriptModule):
            self._notes.leave_out(slot.info, CannotSketchError("torch.jit takes no hooks"))
            return
        slot.channel_rule = channel_rule(module)
        if normalization.keeps_statistics(module):
            slot.batch_norm = True
            before = module.register_forward_pre_hook(partial(self._before_batch_norm, slot))
            self._keep(module, before)
        channels = known_channels(module)
        near = next(module.parameters(), next(self._inner.parameters(), None))
        if slot.buffers is None and channels is not None and near is not None:
            with suppress(CannotSketchError):  # on the meta device, which it may still leave
                self.aggregator.allocate(slot, channels, near.device)
        self._keep(module, module.register_forward_hook(partial(self._record, slot)))

    def _keep(self, module: nn.Module, handle: RemovableHandle) -> None:
        self._handles.append(handle)
        self._copies.add(module, handle)

    def detach(self, error: BaseException | None = None) -> None:
        """Remove the hooks and write what is still open; the history stays readable.

        Args:
            error: what ended the watched loop, None if it ended well; a run of one's own is closed
                as finished, stopped or failed.
        """
        attached = bool(self._handles)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._copies.clear()
        self._compiled.detach()
        self._relus.end(complete=False, compiled=False)  # of a first forward that was interrupted
        self._lock.clear()
        self._held = self._watched = False
        self._training_s, self._began = self._watched_s(), None
        try:
            self._facts.detach()
            self._log.close()
            self._parameters.detach(error)
            self.aggregator.close()
            if attached and error is None:
                self._note_unseen()
            self._notes.write()
        finally:
            self._close_sink(error)

    def _note_unseen(self) -> None:
        note_unseen(
            self._notes,
            self.model,
            [(slot, module) for slot, (_, module) in zip(self._slots, self._chosen, strict=True)],
            self._lock,
            modes=self._modes,
            counted=self._next_step,
            count_forwards=self.count_forwards,
        )
        if self.count_forwards:
            note_forwards(self._notes, self._modes, self._next_step, self._log.optimizer_steps)

    def _close_sink(self, error: BaseException | None) -> None:
        if self.close_sink is None:
            return
        close, self.close_sink, self._closed = self.close_sink, None, True
        self.sink, self._log.run_closed = None, True
        close(*outcome_of(error))

    def __enter__(self) -> Self:
        return self.attach()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.detach(error)

    # ---- counting steps -------------------------------------------------------------------------

    def step(self, number: int | None = None) -> None:
        """Say that an optimizer step begins: what is watched from here on belongs to it.

        Args:
            number: the step's number, the next one if None; the same again adds to that step.
                Numbers that were logged before the first call belong to step 0; the first call is
                step 1 then.

        Raises:
            ArgumentError: if the number is negative.
        """
        first = 0 if self.count_forwards or not self._log.has_numbers else 1
        step = (self._next_step or first) if number is None else number
        if step < 0:
            raise ArgumentError(f"number must be at least 0, got {step}; it is the step's number.")
        self._next_step = step + 1
        if not self.count_forwards:
            self._facts.told_step()
        if self._began is None:
            self._began = time.perf_counter()
        self._watched = step % self.every == 0
        try:
            for part in (self.aggregator, *([self._parameters] if self._parameters.wanted else [])):
                if self._watched:
                    part.begin(step)
                else:
                    part.pause()
        except Exception as error:
            self._notes.failed(error)

    def _clock(self) -> tuple[int, float]:
        """The number of the current step, -1 before the first, and seconds since the first one."""
        return self._next_step - 1, self._watched_s()

    def enter(self) -> None:
        """Count what runs until `leave` as one forward of the model.

        For loops that call parts of the model and not the model, as Lightning's ``training_step``
        may. What a backward pass computes again (activation checkpointing) is not counted.
        """
        self._held = bool(self._notes.guard(self._begin, ()))

    def leave(self) -> None:
        """End what `enter` began; nothing is counted until the next `enter` or forward."""
        if self._held and not self._lock.elsewhere:
            self._held = False
            self._notes.guard(self._end, True)

    def step_done(self) -> None:
        """Say that the current step was made, so that readers of a run see it before the next.

        Of a model that is not compiled they do so anyway, at most once a second.
        """
        for aggregator in self._aggregators():
            aggregator.step_done()

    def flush(self) -> None:
        """Hand finished columns and logged numbers over to be written to the sink."""
        for aggregator in self._aggregators():
            aggregator.flush()
        self._log.flush()

    # ---- the hooks: whatever fails in one, the user's step goes on ------------------------------

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self._held or self._facts.validating:
            return
        if torch.compiler.is_compiling():
            if module.training in self._modes:
                self._compiled.enter(args)
        elif not in_backward() and not are_fake(args):
            if module.training not in self._modes:
                self._lock.release()  # a replayed CUDA graph has left it on
                self._lock.n_passed += 1
                return
            try:
                self._begin(args)
            except Exception as error:
                self._notes.failed(error)

    def _begin(self, args: Sequence[Any]) -> bool:
        """A forward begins; False if it is left out."""
        count = self._enter_forward(args)
        if count is None:
            return False
        self._compiled.let(count=count)
        if count and not self._relus.done:
            self._relus.begin()
        return True

    def _enter_forward(self, inputs: Sequence[Any]) -> bool | None:
        """A forward begins; whether it is to be counted, None if it is left out."""
        if not self._lock.acquire():
            self._notes.say("threads")
            self._parameters.refuse()
            return None
        if self._compiled.active and not self._relus.done:
            held, self._held = self._held, True  # a run on fake tensors is no forward of training
            try:
                self._describe(self._relus.on_fake_tensors(inputs))
            finally:
                self._held = held
        if self.count_forwards:
            self.step()
        self._lock.inside = get_ident() if self._watched else None
        return self._watched

    def _before_batch_norm(self, slot: Slot, module: nn.BatchNorm2d, args: object) -> None:  # noqa: ARG002
        if torch.compiler.is_compiling():
            slot.old = normalization.before(module)
        elif self._lock.inside == get_ident():
            slot.old = self._notes.guard(normalization.before, module)

    def _record(self, slot: Slot, module: nn.Module, args: Any, output: Any) -> None:  # noqa: ANN401, ARG002
        if torch.compiler.is_compiling():
            self._compiled.record(slot, module, output)
            return
        if self._lock.inside != get_ident():
            if self._lock.inside is not None and not self._lock.refused and not in_backward():
                self._notes.say("outputs")
            return
        if self._held and in_backward():
            return
        try:
            x = first_tensor(output)
            if x is None or is_transformed(x):
                raise CannotSketchError(why_no_sketch(output))
            self.aggregator.sketch(slot, x)
            if slot.batch_norm and slot.buffers is not None:
                old, slot.old = slot.old, None
                row = self.aggregator.row_on(x.device)
                normalization.add(module, old, x, slot.buffers.batch_norm, row)
            if not self._relus.done:
                self._relus.add(slot.info.name, x)
        except Exception as error:
            self._notes.leave_out(slot.info, error, output)
            self._notes.guard(self.aggregator.lose_batch_norm, slot)

    def _leave(self, module: nn.Module, args: object, output: object) -> None:  # noqa: ARG002
        if self._held or self._facts.validating or module.training not in self._modes:
            return
        if torch.compiler.is_compiling():
            self._compiled.leave()
        else:
            try:  # without an output the forward has failed, perhaps before it came to a ReLU
                self._end(output is not None)
            except Exception as error:
                self._notes.failed(error)

    def _end(self, complete: bool) -> None:
        before_relus: set[str] | None = None
        if not self._relus.done:
            before_relus = self._relus.end(complete=complete, compiled=self._compiled.active)
        if not self._lock.release():
            return
        self._compiled.let(count=False)
        if before_relus is not None:
            self._describe(before_relus)
        self.aggregator.step_done()

    def _describe(self, before_relus: set[str]) -> None:
        for slot, (_, module) in zip(self._slots, self._chosen, strict=True):
            kind = type(module).__name__  # a lazy module has another one now
            info = replace(slot.info, kind=kind, feeds_relu=slot.info.name in before_relus)
            self.aggregator.describe(slot, info)
