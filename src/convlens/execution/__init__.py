"""Runs a user's model, on fake or real tensors, and restores it."""

from __future__ import annotations

from convlens.execution.inputs import Given, Inputs, read_inputs
from convlens.execution.modules import (
    has_children,
    hook_layers,
    keep_outputs,
    layer_kind,
    named_layers,
    named_tensors,
    own_parameters,
)
from convlens.execution.preserve import copy_of, preserved, restored, same_random, surely, unwrapped
from convlens.execution.tracing import (
    Observer,
    Traced,
    ValuesNeededError,
    memory_of,
    run_on_fake,
    trace,
    written_by,
)

__all__ = [
    "Given",
    "Inputs",
    "Observer",
    "Traced",
    "ValuesNeededError",
    "copy_of",
    "has_children",
    "hook_layers",
    "keep_outputs",
    "layer_kind",
    "memory_of",
    "named_layers",
    "named_tensors",
    "own_parameters",
    "preserved",
    "read_inputs",
    "restored",
    "run_on_fake",
    "same_random",
    "surely",
    "trace",
    "unwrapped",
    "written_by",
]
