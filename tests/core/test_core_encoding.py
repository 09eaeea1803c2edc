"""Packets: every plain array comes back as it was, and nothing else is taken."""

from __future__ import annotations

import json
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from convlens.core.encoding import pack, unpack
from convlens.errors import RunError

PLAIN = st.sampled_from(["?", "i1", "u1", "<i2", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8"])


def raw_packet(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return compressed(struct.pack("<I", len(text)) + text + body)


def compressed(raw: bytes, size: int | None = None) -> bytes:
    return struct.pack("<I", len(raw) if size is None else size) + zlib.compress(raw)


@settings(deadline=None, max_examples=60)
@given(hnp.arrays(PLAIN, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)))
def test_any_plain_array_comes_back(array: np.ndarray) -> None:
    found = unpack(pack({"x": array}))["x"]
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert found.tobytes() == array.tobytes(), "bit for bit, NaN too"


def test_several_arrays_in_order_and_free_of_each_other() -> None:
    arrays = {
        "big-endian": np.arange(3, dtype=">i4"),
        "flags": np.array([[True], [False]]),
        "none": np.zeros((0, 4), np.float32),
        "scalar": np.full((), 2.5),
        "floats": np.array([1e300, np.nan]),
        "transposed": np.arange(6).reshape(2, 3).T,
        "every second": np.arange(10)[::2],
    }
    found = unpack(pack(arrays))
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].shape == array.shape
    found["floats"][0] = 1.0
    found["flags"][0] = False
    assert found["transposed"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert unpack(pack({})) == {}


@pytest.mark.parametrize(
    "array", [np.array([object()]), np.array(["a"]), np.array([1j]), np.zeros(2, "M8[s]")]
)
def test_what_is_not_plain_is_not_packed(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match="is not plain numbers"):
        pack({"x": array})


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (b"", "unpack_from requires"),
        (b"\x05\0\0\0nonsense", "incorrect header check"),
        (compressed(b"ab"), "unpack_from requires"),
        (compressed(b"ab" * 9, 17), "more bytes follow its end"),
        (compressed(b"ab" * 9, 19), "it is cut off"),
        (compressed(b"", 1 << 29), "536,870,912 bytes once inflated, expected at most 268,435,456"),
        (compressed(struct.pack("<I", 1 << 21) + bytes(1 << 21)), "its header cannot have"),
        (raw_packet([["x", "|b1", [0, 2**60]]]), "is larger than any array that is kept"),
        (raw_packet([["x", "|O", [1]]], b"\0" * 8), "x holds |O, not plain numbers"),
        (raw_packet([["x", "<i8,<i8", [1]]], b"\0" * 16), "x holds <i8,<i8, not plain"),
        (raw_packet([["x", "<i8", [2]]], b"\0" * 8), "buffer is smaller than requested"),
        (raw_packet([["x", "<i8", [1]]], b"\0" * 9), "bytes instead of"),
        (raw_packet([["x", "<i8", [-1]]], b"\0" * 8), "x of shape [-1] cannot be"),
        (raw_packet([["x", "<i8", [1.0]]], b"\0" * 8), "x of shape [1.0] cannot be"),
        (raw_packet([["x", "<i8", [2**70]]]), "is larger than any array that is kept"),
        (raw_packet([["x", "|u1", [0]], ["x", "|u1", [0]]]), "x of shape [0] cannot be"),
        (raw_packet([["x", "<i8"]]), "not enough values to unpack"),
        (raw_packet(7), "not iterable"),
        (raw_packet([["x", ["<i8"], [0]]]), "unhashable"),
        (raw_packet(b'[["\xff"]]'), "codec can't decode"),
        (raw_packet(b"["), "Expecting value"),
        (raw_packet(b"[" * 100_000), "recursion"),
        (pack({"x": np.arange(3)}) + b"more", "more bytes follow its end"),
        (pack({"x": np.arange(300)})[:-1], "it is cut off"),
    ],
)
def test_what_is_no_packet_is_a_sentence(payload: bytes, words: str) -> None:
    with pytest.raises(RunError) as caught:
        unpack(payload)
    text = str(caught.value)
    assert words in text
    assert text.startswith(f"A packet of arrays ({len(payload)} bytes) cannot be decoded (")
    assert text.endswith("; the record is damaged there. Restore run.db from a copy.")


def test_a_bomb_is_refused_before_it_takes_memory() -> None:
    bomb = compressed(bytes(1 << 28), 1 << 20)  # 256 MiB of zeros in 255 kB
    tracemalloc.start()
    with pytest.raises(RunError, match="more bytes follow its end"):
        unpack(bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20


def test_more_than_can_be_read_is_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convlens.core.encoding.LIMIT", 1000)
    with pytest.raises(
        ValueError, match=r"the arrays have 1,0\d\d bytes, at most 1,000 can be kept"
    ):
        pack({"x": np.zeros(1000, np.uint8)})
