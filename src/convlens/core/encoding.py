"""Named NumPy arrays of plain numbers as compressed bytes, and back.

The bytes are how many follow once inflated (4 bytes, little-endian), and zlib over: the length of a
JSON header (4 bytes), the header ``[[name, dtype, shape], …]``, and the arrays one after the other,
each as all first bytes of its numbers, then all second bytes, and so on: counts and losses that
resemble each other differ in their low bytes only, and zlib is twice as fast on them in this order
and leaves a fifth less. Only booleans, integers and floats are written or accepted, so reading can
never run anything, and never more is inflated than `LIMIT`.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convlens.errors import RunError

if TYPE_CHECKING:
    from zlib import _Decompress as Decompressor  # pyright: ignore[reportPrivateUsage]

_PLAIN = frozenset(
    ["|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8"]
)


LIMIT = 1 << 28
"""Bytes that a packet may have once inflated: 256 MiB."""

HEADER_LIMIT = 1 << 20
"""Bytes that its header may have."""


def pack(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Named arrays as compressed bytes.

    Raises:
        ValueError: if an array holds anything but booleans, integers or floats, or if they have
            more bytes together than `LIMIT`.
    """
    plain = {name: _little_endian(array) for name, array in arrays.items()}
    header = json.dumps([[name, a.dtype.str, a.shape] for name, a in plain.items()]).encode()
    body = b"".join(_planes(array) for array in plain.values())
    raw = struct.pack("<I", len(header)) + header + body
    if len(header) > HEADER_LIMIT or len(raw) > LIMIT:
        raise ValueError(f"the arrays have {len(raw):,} bytes, at most {LIMIT:,} can be kept")
    return struct.pack("<I", len(raw)) + zlib.compress(raw, level=1)


def unpack(payload: bytes, limit: int = LIMIT) -> dict[str, NDArray[Any]]:
    """The arrays that `pack` wrote, writable.

    Args:
        payload: the bytes.
        limit: bytes that they may have once inflated.

    Raises:
        RunError: if the bytes are not such a packet, to the last byte.
    """
    try:
        raw = _inflate(payload, limit)
        length = _header_length(raw, len(raw))
        places, end = _places(json.loads(raw[4 : 4 + length]), 4 + length)
        arrays = {p.name: _from_planes(raw, p) for p in places}
        if end != len(raw):
            raise ValueError(f"{len(raw)} bytes instead of {end}")
    except _DAMAGES as error:
        raise _damaged(payload, error) from error
    return arrays


@dataclass(frozen=True)
class Heads:
    """The arrays of M packets that have the same header, but for the last array.

    Attributes:
        rows: (M,) which packets.
        arrays: by name, each of shape (M, its shape in one packet).
    """

    rows: Sequence[int]
    arrays: Mapping[str, NDArray[Any]]


def unpack_heads(payloads: Sequence[bytes], last: str, limit: int = LIMIT) -> list[Heads]:
    """The arrays before the array ``last`` of many packets: no more of them is inflated.

    Packets whose arrays have the same types and shapes are read together, which makes many small
    ones several times as fast as one by one. What follows those arrays is not looked at, so damage
    there is not found.

    Raises:
        RunError: if the bytes are not such a packet, as far as they are read.
    """
    mark = b', ["%s", "' % last.encode()
    groups: dict[bytes, _Group] = {}
    guess = _HEAD
    for row, payload in enumerate(payloads):
        try:
            size = _raw_size(payload, limit)
            stream = zlib.decompressobj()
            raw = stream.decompress(payload[4:], min(guess, size))
            length = _header_length(raw, size)
            raw = _inflate_to(stream, raw, 4 + length)
            header = raw[4 : 4 + length]
            cut = header.rfind(mark)
            if cut < 0 or len(json.loads(b"[" + header[cut + 2 :])) != 1:
                raise ValueError(f"its last array is not {last!r}")
            group = groups.get(header[:cut])
            if group is None:
                group = groups[header[:cut]] = _Group(*_places(json.loads(header[:cut] + b"]"), 0))
            guess = 4 + length + group.size
            if guess > size:
                raise ValueError("it is cut off")
            group.rows.append(row)
            group.raws.append(_inflate_to(stream, raw, guess)[4 + length : guess])
        except _DAMAGES as error:
            raise _damaged(payload, error) from error
    return [group.read() for group in groups.values()]


_HEAD = 1 << 12
"""Bytes of the first packet that are inflated at first: a header, and small arrays with it."""


@dataclass
class _Group:
    """Packets that have the same header but for the last array, and what lies before that."""

    places: list[_Place]
    size: int
    rows: list[int] = field(default_factory=list[int])
    raws: list[bytes] = field(default_factory=list[bytes])

    def read(self) -> Heads:
        """What they hold, array by array, of all packets at once."""
        raw = np.frombuffer(b"".join(self.raws), np.uint8).reshape(len(self.raws), self.size)
        arrays: dict[str, NDArray[Any]] = {}
        for place in self.places:
            planes = raw[:, place.begin : place.end]
            planes = planes.reshape(len(raw), place.dtype.itemsize, place.size)
            values = np.ascontiguousarray(planes.transpose(0, 2, 1)).reshape(-1)
            arrays[place.name] = values.view(place.dtype).reshape(len(raw), *place.shape)
        return Heads(self.rows, arrays)


_DAMAGES = (zlib.error, struct.error, ValueError, TypeError, OverflowError, RecursionError)


def _damaged(payload: bytes, error: Exception) -> RunError:
    return RunError(
        f"A packet of arrays ({len(payload)} bytes) cannot be decoded ({error}); "
        "the record is damaged there. Restore run.db from a copy."
    )


@dataclass(frozen=True)
class _Place:
    """Where an array lies."""

    name: str
    dtype: np.dtype[Any]
    shape: list[int]
    begin: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def end(self) -> int:
        return self.begin + self.size * self.dtype.itemsize


def _places(header: Iterable[tuple[str, str, list[Any]]], begin: int) -> tuple[list[_Place], int]:
    """Where the arrays of a header lie, the first at ``begin``, and where they end."""
    places: dict[str, _Place] = {}
    for name, dtype, shape in header:
        if dtype not in _PLAIN:
            raise ValueError(f"{name} holds {dtype}, not plain numbers")
        if name in places or not all(isinstance(n, int) and n >= 0 for n in shape):
            raise ValueError(f"{name} of shape {shape} cannot be")
        places[name] = _Place(name, np.dtype(dtype), shape, begin)
        begin = places[name].end
        if math.prod(n or 1 for n in shape) > LIMIT:  # also of an array without numbers
            raise ValueError(f"{name} of shape {shape} is larger than any array that is kept")
    return list(places.values()), begin


def _raw_size(payload: bytes, limit: int) -> int:
    """What a packet says that it has once inflated."""
    (size,) = struct.unpack_from("<I", payload)
    if size > limit:
        raise ValueError(f"{size:,} bytes once inflated, expected at most {limit:,}")
    return size


def _header_length(raw: bytes, size: int) -> int:
    (length,) = struct.unpack_from("<I", raw)
    if length > min(HEADER_LIMIT, size - 4):
        raise ValueError(f"its header cannot have {length:,} bytes")
    return length


def _inflate_to(stream: Decompressor, raw: bytes, size: int) -> bytes:
    """What was inflated so far, and as much more as makes ``size`` bytes."""
    if size > len(raw):
        raw += stream.decompress(stream.unconsumed_tail, size - len(raw))
    if size > len(raw):
        raise ValueError("it is cut off")
    return raw


def _inflate(payload: bytes, limit: int) -> bytes:
    size = _raw_size(payload, limit)
    stream = zlib.decompressobj()
    raw = stream.decompress(payload[4:], size + 1)
    if len(raw) > size or stream.unused_data:
        raise ValueError("more bytes follow its end")
    if len(raw) < size or not stream.eof:
        raise ValueError("it is cut off")
    return raw


def _planes(array: NDArray[Any]) -> bytes:
    rows = np.frombuffer(array.tobytes(), np.uint8).reshape(array.size, array.itemsize)
    return rows.T.tobytes()


def _from_planes(raw: bytes, place: _Place) -> NDArray[Any]:
    """A new array, aligned, writable and free of the packet's memory."""
    planes = np.frombuffer(raw, np.uint8, place.end - place.begin, place.begin)
    rows = planes.reshape(place.dtype.itemsize, place.size).T.copy()
    return rows.reshape(-1).view(place.dtype).reshape(place.shape)


def _little_endian(array: NDArray[Any]) -> NDArray[Any]:
    plain = np.asarray(array, array.dtype.newbyteorder("<"))
    if plain.dtype.str not in _PLAIN:
        raise ValueError(f"an array of {array.dtype} is not plain numbers")
    return plain
