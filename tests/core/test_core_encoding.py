"""Packets: every plain array comes back as it was, and nothing else is taken."""

from __future__ import annotations

import json
import re
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from convlens.core.encoding import pack, unpack, unpack_heads
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
    for read in (unpack, lambda payload: unpack_heads([payload], "last")):
        tracemalloc.start()
        with pytest.raises(RunError, match=r"more bytes follow its end|its last array is not"):
            read(bomb)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 8 << 20


def test_more_than_can_be_read_is_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convlens.core.encoding.LIMIT", 1000)
    with pytest.raises(
        ValueError, match=r"the arrays have 1,0\d\d bytes, at most 1,000 can be kept"
    ):
        pack({"x": np.zeros(1000, np.uint8)})


# ---- many at once, but for their last array -----------------------------------------------------


def heads_of(payloads: list[bytes]) -> dict[int, dict[str, np.ndarray]]:
    """The arrays of each packet."""
    return {
        row: {name: array[i] for name, array in group.arrays.items()}
        for group in unpack_heads(payloads, "last")
        for i, row in enumerate(group.rows)
    }


def test_the_first_arrays_of_many_packets_are_those_of_each() -> None:
    rng = np.random.default_rng(0)
    packets = [
        {
            "floats": rng.normal(size=(3, width)),
            "none": np.zeros((0, 2), np.int16),
            "flags": rng.random(7) < 0.5,
            "last": rng.integers(0, 99, (int(rng.integers(0, 9)), 3)),
        }
        for width in (2, 0, 2, 700, 2)
    ]
    payloads = [pack(packet) for packet in packets]
    assert len(unpack_heads(payloads, "last")) == 3, "as many as there are widths"
    found = heads_of(payloads)
    assert sorted(found) == [0, 1, 2, 3, 4]
    for row, arrays in found.items():
        assert [*arrays, "last"] == list(packets[row])
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, packets[row][name])
            assert array.dtype == packets[row][name].dtype
    assert heads_of([]) == {}


def test_what_follows_the_first_arrays_is_not_inflated() -> None:
    noise = np.random.default_rng(0).integers(0, 256, 10**6, np.uint8)
    whole = pack({"x": np.arange(5), "last": noise})
    found = heads_of([whole[:40_000]])
    assert found[0]["x"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (b"", "unpack_from requires"),
        (b"\x05\0\0\0nonsense", "incorrect header check"),
        (pack({"x": np.arange(9), "last": np.zeros(2)})[:45], "it is cut off"),
        (pack({"last": np.zeros(2)}), "its last array is not 'last'"),
        (pack({"last": np.zeros(2), "more": np.zeros(2)}), "its last array is not 'last'"),
        (compressed(b"", 1 << 29), "536,870,912 bytes once inflated, expected at most 268,435,456"),
        (compressed(struct.pack("<I", 1 << 21), 1 << 22), "its header cannot have"),
        (raw_packet([["x", "|O", [1]], ["last", "|u1", [0]]]), "x holds |O, not plain numbers"),
        (raw_packet([["x", "<i8", [-1]], ["last", "|u1", [0]]]), "x of shape [-1] cannot be"),
        (raw_packet([["x", "<i8", [9]], ["last", "|u1", [0]]]), "it is cut off"),
    ],
)
def test_damaged_first_arrays_are_a_sentence(payload: bytes, words: str) -> None:
    expected = re.escape(f"A packet of arrays ({len(payload)} bytes) cannot be decoded (")
    with pytest.raises(RunError, match=expected + ".*" + re.escape(words)):
        unpack_heads([payload], "last")
