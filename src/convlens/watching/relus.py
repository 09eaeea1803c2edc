"""Which layers' outputs a ReLU takes directly."""

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
from convlens.watching.outputs import first_tensor

_DEFAULTS: dict[str, dict[str, float | None]] = {
    "relu": {},
    "relu6": {},
    "clamp": {"min": None, "max": None},
    "clip": {"min": None, "max": None},
    "clamp_min": {"min": None},
    "hardtanh": {"min_val": -1, "max_val": 1},
    "threshold": {"threshold": None, "value": None},
}
"""Functions that may be a ReLU, with the defaults of the arguments after the input."""


def is_relu(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a function of torch is a ReLU of its first argument.

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


class ReluFinder(TorchFunctionMode):
    """Finds the layers before a ReLU in what runs while the mode is on and is not compiled.

    It sees modules, functions and methods alike, which the model's structure does not show.

    Attributes:
        n_outputs: how many outputs of layers were added.
        found: names of the layers before a ReLU.
    """

    def __init__(self) -> None:
        super().__init__()
        # By id, with a reference so that it is not reused, the version and the layers' names.
        self._outputs: dict[int, tuple[Tensor, int, list[str]]] = {}
        self.found: set[str] = set()

    @property
    def n_outputs(self) -> int:
        """How many outputs were added."""
        return len(self._outputs)

    def add(self, layer: str, output: Tensor) -> None:
        """Ask about a layer's output; a container may return the same tensor as its last layer."""
        kept = self._outputs.setdefault(id(output), (output, _version(output), []))
        if kept[1] == _version(output):
            kept[2].append(layer)
        else:  # changed in place since, such as by the ReLU
            self._outputs[id(output)] = output, _version(output), [layer]

    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Look at a function of torch, and run it."""
        if not torch.compiler.is_compiling():  # what is traced has no identity
            with suppress(Exception):  # of arguments that cannot be compared
                self._called(getattr(func, "__name__", ""), args, kwargs or {})
        return func(*args, **(kwargs or {}))

    def _called(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        x = args[0] if args else kwargs.get("input")
        kept = self._outputs.get(id(x))
        if kept is not None and kept[1] == _version(kept[0]) and is_relu(name, args, kwargs):
            self.found.update(kept[2])


def _version(x: Tensor) -> int:
    """How often the tensor was changed in place; a residual sum in place is no layer's output."""
    return 0 if x.is_inference() else x._version  # pyright: ignore[reportPrivateUsage]


class _LayerOutputs:
    """An observer of `execution.trace` that gives a `ReluFinder` the output of every layer."""

    def __init__(self, finder: ReluFinder) -> None:
        self._finder = finder

    def begin(self, tensor: Tensor) -> None:
        """Nothing to do."""

    def enter(self, name: str, module: nn.Module, given: Sequence[Tensor]) -> None:
        """Nothing to do."""

    def operator(self, *args: object, **kwargs: object) -> None:
        """Nothing to do."""

    def leave(self, name: str, module: nn.Module, output: object) -> None:  # noqa: ARG002
        """A module has run."""
        tensor = first_tensor(output)
        if tensor is not None:
            self._finder.add(name, tensor)


def layers_before_relus(model: nn.Module, inputs: Sequence[Any]) -> set[str]:
    """Names of the layers before a ReLU, from a run on fake tensors; for compiled models.

    Raises:
        ArgumentError: if the model cannot be run on fake tensors.
    """
    finder = ReluFinder()
    with finder:
        trace(model, Inputs.of(*inputs), [_LayerOutputs(finder)])
    return finder.found


class ReluSearch:
    """Looks for the layers before a ReLU in the first forward that is watched.

    Attributes:
        done: whether the search is over.
    """

    def __init__(self, model: nn.Module, notes: Notes) -> None:
        self.done = False
        self._model, self._notes = model, notes
        self._finder: ReluFinder | None = None
        self._thread = -1  # modes are a thread's own

    def begin(self) -> None:
        """A forward that is watched begins in this thread."""
        if not self.done and self._finder is None:
            self._finder, self._thread = ReluFinder(), get_ident()
            self._finder.__enter__()

    def add(self, layer: str, output: Tensor) -> None:
        """A layer has put out something in it."""
        if self._finder is not None:
            self._finder.add(layer, output)

    def end(self, *, complete: bool, compiled: bool) -> set[str] | None:
        """The forward ends.

        Args:
            complete: whether it came to its end.
            compiled: whether layers ran in compiled code, which the finder does not see.

        Returns:
            Names of the layers before a ReLU, None if they are not known by it.
        """
        if self._finder is None or self._thread != get_ident():
            return None
        finder, self._finder = self._finder, None
        finder.__exit__(None, None, None)
        self.done = complete and (compiled or finder.n_outputs > 0)
        if self.done and not finder.n_outputs:
            self._notes.say("relus", why="all layers are compiled")
        return finder.found if self.done else None

    def on_fake_tensors(self, inputs: Sequence[Any]) -> set[str]:
        """The same of a model that is compiled, from a run without values."""
        self.done = True
        try:
            return layers_before_relus(self._model, inputs)
        except Exception as error:
            self._notes.say("relus", why=described(error))
            return set()
