"""Named NumPy arrays as compressed bytes, and back.

A packet is the length of its content (4 bytes, little-endian) and the zlib-compressed content: the
length of a JSON header (4 bytes), the header ``[[name, dtype, shape], …]``, and the arrays one
after the other, each as all first bytes of its numbers, then all second bytes, and so on, which
compresses faster and better. Only booleans, integers and floats are written or accepted, so reading
can never run anything, and nothing larger than `LIMIT` is ever inflated.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convlens.errors import RunError

_PLAIN = frozenset(
    ["|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8"]
)

_DAMAGES = (zlib.error, struct.error, ValueError, TypeError, OverflowError, RecursionError)
"""Errors of bytes that are no packet."""

LIMIT = 1 << 28
"""Bytes that a packet may have once inflated: 256 MiB."""

HEADER_LIMIT = 1 << 20
"""Bytes that its header may have."""

FIRST_PART = 1 << 12
"""Bytes that are inflated first where the last array is left out: most headers fit."""


def pack(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Named arrays as compressed bytes.

    >>> from convlens.core.encoding import pack, unpack
    >>> unpack(pack({"x": np.arange(3)}))["x"].tolist()
    [0, 1, 2]

    Raises:
        ValueError: if an array holds anything but booleans, integers or floats, or if they have
            more bytes together than `LIMIT`.
    """
    plain = {name: np.asarray(a, a.dtype.newbyteorder("<")) for name, a in arrays.items()}
    for array in plain.values():
        if array.dtype.str not in _PLAIN:
            raise ValueError(f"an array of {array.dtype} is not plain numbers")
    header = json.dumps([[name, a.dtype.str, a.shape] for name, a in plain.items()]).encode()
    raw = struct.pack("<I", len(header)) + header + b"".join(map(_planes, plain.values()))
    if len(header) > HEADER_LIMIT or len(raw) > LIMIT:
        raise ValueError(f"the arrays have {len(raw):,} bytes, at most {LIMIT:,} can be kept")
    return struct.pack("<I", len(raw)) + zlib.compress(raw, level=1)


def unpack(payload: bytes, limit: int = LIMIT, *, last: bool = True) -> dict[str, NDArray[Any]]:
    """The arrays that `pack` wrote, writable.

    Args:
        payload: the bytes.
        limit: bytes that they may have once inflated.
        last: False leaves out the last array, which is not inflated.

    Raises:
        RunError: if the bytes are not such a packet, to the last byte.
    """
    try:
        if not last:
            return _arrays(*_inflate_all_but_last(payload, limit))
        raw = _inflate(payload, limit)
        return _arrays(raw, *_header(raw))
    except _DAMAGES as error:
        raise RunError(
            f"A packet of arrays ({len(payload)} bytes) cannot be decoded ({error}); "
            "the record is damaged there. Restore run.db from a copy."
        ) from error


def _inflate(payload: bytes, limit: int) -> bytes:
    (size,) = struct.unpack_from("<I", payload)
    if size > limit:
        raise ValueError(f"{size:,} bytes once inflated, expected at most {limit:,}")
    stream = zlib.decompressobj()
    raw = stream.decompress(payload[4:], size + 1)
    if len(raw) > size or stream.unused_data:
        raise ValueError("more bytes follow its end")
    if len(raw) < size or not stream.eof:
        raise ValueError("it is cut off")
    return raw


def _inflate_all_but_last(payload: bytes, limit: int) -> tuple[bytes, list[Any], int]:
    """Content, header and its end, as `_arrays` takes them, without the last array."""
    stream = zlib.decompressobj()
    raw = stream.decompress(payload[4:], FIRST_PART)
    if struct.unpack_from("<I", raw)[0] > FIRST_PART - 4:
        raw = _inflate(payload, limit)
    header, begin = _header(raw)
    header = header[:-1]
    size = begin + sum(math.prod(shape) * np.dtype(dtype).itemsize for _, dtype, shape in header)
    if size > limit:
        raise ValueError(f"{size:,} bytes once inflated, expected at most {limit:,}")
    if size > len(raw):
        raw += stream.decompress(stream.unconsumed_tail, size - len(raw))
    return raw[:size], header, begin


def _header(raw: bytes) -> tuple[list[Any], int]:
    """The header, and where it ends."""
    (length,) = struct.unpack_from("<I", raw)
    if length > min(HEADER_LIMIT, len(raw) - 4):
        raise ValueError(f"its header cannot have {length:,} bytes")
    return json.loads(raw[4 : 4 + length]), 4 + length


def _arrays(raw: bytes, header: list[Any], begin: int) -> dict[str, NDArray[Any]]:
    """The arrays of a header, which fill ``raw`` from ``begin`` on."""
    arrays: dict[str, NDArray[Any]] = {}
    for name, dtype, shape in header:
        if dtype not in _PLAIN:
            raise ValueError(f"{name} holds {dtype}, not plain numbers")
        if name in arrays or not all(isinstance(n, int) and n >= 0 for n in shape):
            raise ValueError(f"{name} of shape {shape} cannot be")
        if math.prod(n or 1 for n in shape) > LIMIT:  # also of an array without numbers
            raise ValueError(f"{name} of shape {shape} is larger than any array that is kept")
        size, width = math.prod(shape), np.dtype(dtype).itemsize
        planes = np.frombuffer(raw, np.uint8, size * width, begin).reshape(width, size)
        arrays[name] = planes.T.copy().view(dtype).reshape(shape)
        begin += size * width
    if begin != len(raw):
        raise ValueError(f"{len(raw)} bytes instead of {begin}")
    return arrays


def _planes(array: NDArray[Any]) -> bytes:
    rows = np.frombuffer(array.tobytes(), np.uint8).reshape(array.size, array.itemsize)
    return rows.T.tobytes()
