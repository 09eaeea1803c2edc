"""Named NumPy arrays of plain numbers as compressed bytes, and back.

The bytes are zlib over: the length of a JSON header (4 bytes, little-endian), the header
``[[name, dtype, shape], …]``, and the arrays one after the other, each as all first bytes of its
numbers, then all second bytes, and so on: counts and losses that resemble each other differ in
their low bytes only, and zlib is twice as fast on them in this order and leaves a fifth less. Only
booleans, integers and floats are written or accepted, so reading can never run anything.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convlens.errors import RunError

if TYPE_CHECKING:
    from zlib import _Decompress as Decompressor  # pyright: ignore[reportPrivateUsage]

_PLAIN = frozenset(
    ["|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8"]
)


def pack(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Named arrays as compressed bytes.

    Raises:
        ValueError: if an array holds anything but booleans, integers or floats.
    """
    plain = {name: _little_endian(array) for name, array in arrays.items()}
    header = json.dumps([[name, a.dtype.str, a.shape] for name, a in plain.items()]).encode()
    body = b"".join(_planes(array) for array in plain.values())
    return zlib.compress(struct.pack("<I", len(header)) + header + body, level=1)


def unpack(payload: bytes) -> dict[str, NDArray[Any]]:
    """The arrays that `pack` wrote, writable.

    Raises:
        RunError: if the bytes are not such a packet, to the last byte.
    """
    try:
        raw = _inflate(payload)
        (length,) = struct.unpack_from("<I", raw)
        arrays, end = _read(raw, json.loads(raw[4 : 4 + length]), 4 + length)
        if end != len(raw):
            raise ValueError(f"{len(raw)} bytes instead of {end}")
    except _DAMAGES as error:
        raise _damaged(payload, error) from error
    return arrays


def unpack_before(payload: bytes, last: str) -> dict[str, NDArray[Any]] | None:
    """The arrays before the array ``last``, if that is the last: no more than those is inflated.

    What follows them is not looked at, so damage there is not found.

    Returns:
        None if ``last`` is not the last array.

    Raises:
        RunError: if the bytes are not such a packet, as far as they are read.
    """
    try:
        stream = zlib.decompressobj()
        raw = stream.decompress(payload, _HEAD)
        (length,) = struct.unpack_from("<I", raw)
        raw = _inflate_to(stream, raw, 4 + length)
        *header, (name, _, _) = json.loads(raw[4 : 4 + length])
        if name != last:
            return None
        sizes = (math.prod(shape) * _plain(title, dtype).itemsize for title, dtype, shape in header)
        raw = _inflate_to(stream, raw, 4 + length + sum(sizes))
        arrays, _ = _read(raw, header, 4 + length)
    except _DAMAGES as error:
        raise _damaged(payload, error) from error
    return arrays


_HEAD = 1 << 13
"""Bytes that are inflated at first: a header, and small arrays with it."""

_DAMAGES = (zlib.error, struct.error, ValueError, TypeError, OverflowError, RecursionError)


def _damaged(payload: bytes, error: Exception) -> RunError:
    return RunError(
        f"A packet of arrays ({len(payload)} bytes) cannot be decoded ({error}); "
        "the record is damaged there. Restore run.db from a copy."
    )


def _read(
    raw: bytes, header: Iterable[tuple[str, str, list[int]]], offset: int
) -> tuple[dict[str, NDArray[Any]], int]:
    """The arrays of a header, the first at ``offset``, and where they end."""
    arrays: dict[str, NDArray[Any]] = {}
    for name, dtype, shape in header:
        plain = _plain(name, dtype)
        if name in arrays or not all(isinstance(n, int) and n >= 0 for n in shape):
            raise ValueError(f"{name} of shape {shape} cannot be")
        arrays[name] = _from_planes(raw, plain, shape, offset)
        offset += arrays[name].nbytes
    return arrays, offset


def _plain(name: str, dtype: str) -> np.dtype[Any]:
    if dtype not in _PLAIN:
        raise ValueError(f"{name} holds {dtype}, not plain numbers")
    return np.dtype(dtype)


def _inflate_to(stream: Decompressor, raw: bytes, size: int) -> bytes:
    """What was inflated so far, and as much more as makes ``size`` bytes."""
    if size <= len(raw):
        return raw
    return raw + stream.decompress(stream.unconsumed_tail, size - len(raw))


def _inflate(payload: bytes) -> bytes:
    stream = zlib.decompressobj()
    raw = stream.decompress(payload)
    if not stream.eof or stream.unused_data:
        raise ValueError("it is cut off" if not stream.eof else "more bytes follow its end")
    return raw


def _planes(array: NDArray[Any]) -> bytes:
    rows = np.frombuffer(array.tobytes(), np.uint8).reshape(array.size, array.itemsize)
    return rows.T.tobytes()


def _from_planes(raw: bytes, dtype: np.dtype[Any], shape: list[int], offset: int) -> NDArray[Any]:
    """A new array, aligned, writable and free of the packet's memory."""
    size = math.prod(shape)
    planes = np.frombuffer(raw, np.uint8, size * dtype.itemsize, offset)
    rows = planes.reshape(dtype.itemsize, size).T.copy()
    return rows.reshape(-1).view(dtype).reshape(shape)


def _little_endian(array: NDArray[Any]) -> NDArray[Any]:
    plain = np.asarray(array, array.dtype.newbyteorder("<"))
    if plain.dtype.str not in _PLAIN:
        raise ValueError(f"an array of {array.dtype} is not plain numbers")
    return plain
