"""The steps' series in ``run.db``, in chunks of the 1,024 steps that share ``step >> 10``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from convlens.core.encoding import pack, unpack
from convlens.core.steps import StepSeries, cut_steps, join_steps, take_steps
from convlens.runs.database_reader import Transaction

CHUNK_BITS = 10
"""2^10 = 1,024 steps in a chunk."""

CHUNK_LIMIT = 1 << 24
"""Bytes that a chunk may have once inflated: 16 MiB."""

HYPER = "hyper/"
"""Begins the names of the arrays that are hyperparameters."""

KnownChunks = Mapping[int, tuple[int, StepSeries]]
"""Chunks by their number, each with the checksum of its row."""


def split_steps(steps: StepSeries) -> Iterator[tuple[int, StepSeries]]:
    """The chunks that steps belong to, and the steps of each."""
    chunks = steps.step >> CHUNK_BITS
    for chunk in np.unique(chunks).tolist():
        yield chunk, take_steps(steps, np.flatnonzero(chunks == chunk))


def update_chunk(payload: bytes | None, steps: StepSeries) -> bytes:
    """A chunk with more steps, in ascending order; a step that is there already is replaced."""
    whole = steps if payload is None else join_steps([decode_steps(payload), steps])
    order = np.argsort(whole.step, kind="stable")
    ascending = whole.step[order]
    is_last = np.append(ascending[1:] != ascending[:-1], True)
    whole = take_steps(whole, order[is_last])
    arrays = {"step": whole.step, "epoch": whole.epoch, "loss": whole.loss, "wall_s": whole.wall_s}
    return pack(arrays | {f"{HYPER}{name}": values for name, values in whole.hypers.items()})


def decode_steps(payload: bytes) -> StepSeries:
    """The steps of a chunk.

    Raises:
        RunError: if the bytes are no packet of arrays.
        ValueError: if the arrays are not those of steps.
    """
    arrays = unpack(payload, CHUNK_LIMIT)
    n = len(arrays["step"])
    for name, array in arrays.items():
        kind = "i" if name in ("step", "epoch") else "f"
        ndim = 2 if name.startswith(HYPER) else 1
        if array.dtype.kind != kind or array.ndim != ndim or len(array) != n:
            raise ValueError(f"{name} is {array.dtype} of shape {array.shape}, expected {n} rows")
    hypers = {n.removeprefix(HYPER): a for n, a in arrays.items() if n.startswith(HYPER)}
    return StepSeries(arrays["step"], arrays["epoch"], arrays["loss"], arrays["wall_s"], hypers)


def read_step_chunks(
    record: Transaction, first: int = 0, known: KnownChunks | None = None
) -> KnownChunks:
    """The chunks from a step on, in order of time.

    Args:
        record: the run's own file.
        first: the step.
        known: chunks that were read before; those whose checksum is the same are not read again.
    """
    found: dict[int, tuple[int, StepSeries]] = {}
    for (chunk,), (_, _, crc) in sorted(record.keys("steps").items()):
        if not 0 <= chunk < 1 << 52:
            raise ValueError(f"chunk {chunk} of the steps cannot be")
        if chunk < first >> CHUNK_BITS:
            continue
        old = (known or {}).get(chunk)
        if old is not None and old[0] == crc:
            found[chunk] = old
        else:
            (payload,) = record.values("steps", (chunk,))
            found[chunk] = crc, decode_steps(payload)
    return found


def read_steps(record: Transaction, first: int = 0) -> StepSeries:
    """Every recorded step, or those from one on."""
    parts = [steps for _, steps in read_step_chunks(record, first).values()]
    return cut_steps(join_steps(parts), first, None)
