"""Which layers' outputs a ReLU takes directly: one rule, applied in two ways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from convlens.execution import Inputs, trace
from convlens.watching.notes import Notes, described
from convlens.watching.probes import first_tensor

_DEFAULTS: dict[str, dict[str, float | None]] = {
    "relu": {},
    "relu6": {},
    "clamp": {"min": None, "max": None},
    "clip": {"min": None, "max": None},
    "clamp_min": {"min": None},
    "hardtanh": {"min_val": -1, "max_val": 1},
    "threshold": {"threshold": None, "value": None},
}
"""The arguments after the input of what may be a ReLU, and their defaults."""


def is_relu(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a function or ATen operator is a ReLU of its first argument.

    That is ``relu``, ``relu6``, a clamp or hardtanh from 0 upwards, without an upper bound or with
    one above 1 (0 to 1 is how pixels and probabilities are bounded), and a threshold of 0 with the
    value 0.

    Args:
        name: the function's name, such as ``"relu_"``; in place or not makes no difference.
        args: all of its arguments.
        kwargs: those given by name.
    """
    name = name.strip("_")
    if name not in _DEFAULTS or name in ("relu", "relu6"):
        return name in _DEFAULTS
    bounds = {**_DEFAULTS[name], **kwargs, **dict(zip(_DEFAULTS[name], args[1:], strict=False))}
    low, high = bounds.get("min", bounds.get("min_val")), bounds.get("max", bounds.get("max_val"))
    if name == "threshold":
        return bounds["threshold"] == bounds["value"] == 0
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        return False
    return low == 0 and (high is None or high > 1)


class ReluInputs:
    """Outputs of layers, and which of them a ReLU has taken as they were.

    Attributes:
        found: names of the layers before a ReLU.
    """

    def __init__(self) -> None:
        # Hold a reference so that id() is not reused.
        self._outputs: dict[int, tuple[Tensor, int, list[str]]] = {}
        self.found: set[str] = set()

    def __len__(self) -> int:
        return len(self._outputs)

    def add(self, layer: str, output: Tensor) -> None:
        """Ask about a layer's output; a container may put out the same tensor as its last layer."""
        kept = self._outputs.setdefault(id(output), (output, _version(output), []))
        if kept[1] == _version(output):
            kept[2].append(layer)
        else:  # changed in place since, such as by the ReLU
            self._outputs[id(output)] = output, _version(output), [layer]

    def called(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """A function or operator is about to run."""
        x = args[0] if args else kwargs.get("input")
        kept = self._outputs.get(id(x))
        if kept is not None and kept[1] == _version(kept[0]) and is_relu(name, args, kwargs):
            self.found.update(kept[2])


def _version(x: Tensor) -> int:
    """How often the tensor was changed in place; a residual sum in place is no layer's output."""
    return 0 if x.is_inference() else x._version  # pyright: ignore[reportPrivateUsage]


class WatchingRelus(TorchFunctionMode):
    """Finds the layers before a ReLU while the mode is on, where nothing is compiled.

    It sees modules, functions and methods alike, which looking at the model's structure does not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.inputs = ReluInputs()

    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """See `ReluInputs.called`; the function runs as it would."""
        if not torch.compiler.is_compiling():  # what is traced has no identity
            with suppress(Exception):  # of arguments that cannot be compared
                self.inputs.called(getattr(func, "__name__", ""), args, kwargs or {})
        return func(*args, **(kwargs or {}))


class RelusObserver:
    """An observer of `execution.trace` that finds the layers before a ReLU."""

    def __init__(self) -> None:
        self.inputs = ReluInputs()

    def begin(self, tensor: Tensor) -> None:
        """Nothing to do."""

    def enter(self, name: str, module: nn.Module, given: Sequence[Tensor]) -> None:
        """Nothing to do."""

    def leave(self, name: str, module: nn.Module, output: object) -> None:  # noqa: ARG002
        """A module has run."""
        tensor = first_tensor(output)
        if tensor is not None:
            self.inputs.add(name, tensor)

    def operator(
        self,
        function: Any,  # noqa: ANN401
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        out: object,  # noqa: ARG002
        layer: str,  # noqa: ARG002
    ) -> None:
        """An operator has run."""
        self.inputs.called(function.overloadpacket.__name__, args, kwargs)


def layers_before_relus(model: nn.Module, inputs: Sequence[Any]) -> set[str]:
    """Names of the layers before a ReLU, from a run on fake tensors; for models that are compiled.

    Args:
        model: any module.
        inputs: what it is given, by position.

    Raises:
        ArgumentError: if the model cannot be run on fake tensors.
    """
    observer = RelusObserver()
    trace(model, Inputs.of(*inputs), [observer])
    return observer.inputs.found


class ReluSearch:
    """Looks for the layers before a ReLU, once.

    Args:
        model: whose layers.
        notes: where to say that they could not be found.

    Attributes:
        done: whether it has been looked for.
    """

    def __init__(self, model: nn.Module, notes: Notes) -> None:
        self.done = False
        self._model, self._notes = model, notes
        self._mode: WatchingRelus | None = None
        self._thread = -1  # modes are a thread's own

    def begin(self) -> None:
        """A forward that is watched begins in this thread."""
        if not self.done and self._mode is None:
            self._mode, self._thread = WatchingRelus(), get_ident()
            self._mode.__enter__()

    def add(self, layer: str, output: Tensor) -> None:
        """A layer has put out something in it."""
        if self._mode is not None:
            self._mode.inputs.add(layer, output)

    def end(self, *, complete: bool, compiled: bool) -> set[str] | None:
        """The forward ends.

        Args:
            complete: whether it came to its end.
            compiled: whether layers ran in compiled code, which the mode does not see.

        Returns:
            Names of the layers before a ReLU, None if they are not known by it.
        """
        if self._mode is None or self._thread != get_ident():
            return None
        mode, self._mode = self._mode, None
        mode.__exit__(None, None, None)
        self.done = complete and (compiled or len(mode.inputs) > 0)
        if self.done and not len(mode.inputs):
            self._notes.say("relus", why="all layers are compiled")
        return mode.inputs.found if self.done else None

    def on_fake_tensors(self, inputs: Sequence[Any]) -> set[str]:
        """The same of a model that is compiled, from a run without values."""
        self.done = True
        try:
            return layers_before_relus(self._model, inputs)
        except Exception as error:
            self._notes.say("relus", why=described(error))
            return set()
