"""The IDX format of MNIST, read strictly, and its xz-compressed files, checked by SHA-256."""

from __future__ import annotations

import hashlib
import lzma
import math
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convlens.errors import DataError

UINT8 = 0x08
REINSTALL = "reinstall convlens (pip install --force-reinstall convlens)"


def read_idx_xz(path: Path, sha256: str) -> NDArray[np.uint8]:
    """The array in an xz-compressed IDX file.

    Args:
        path: the compressed file.
        sha256: expected SHA-256 of the decompressed bytes, in hexadecimal.

    Raises:
        DataError: if the file is missing, does not decompress, or holds other bytes.
    """
    try:
        raw = lzma.decompress(path.read_bytes())
    except (OSError, lzma.LZMAError, EOFError) as error:
        raise DataError(
            f"{path} cannot be read ({error}); expected an xz file whose contents have the "
            f"SHA-256 {sha256}; {REINSTALL}."
        ) from error
    found = hashlib.sha256(raw).hexdigest()
    if found != sha256:
        raise DataError(
            f"{path} is damaged: its contents have the SHA-256 {found}, expected {sha256}; "
            f"{REINSTALL}."
        )
    return parse_idx(raw, str(path))


def parse_idx(raw: bytes, source: str) -> NDArray[np.uint8]:
    """The uint8 array in the bytes of an IDX file; a view of ``raw``, so read-only.

    The format: two zero bytes, the type (0x08 for uint8), the rank, one big-endian uint32 per
    axis, then the values in row-major order and nothing after them.

    Args:
        raw: the whole file.
        source: what to call it in errors.

    Raises:
        DataError: if the header or the length is not as it should be.
    """
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] != UINT8 or raw[3] == 0:
        raise DataError(
            f"{source} begins with the bytes {raw[:4].hex(' ') or '(none)'}; an IDX file of uint8 "
            f"values begins with 00 00 08 and its rank; {REINSTALL}."
        )
    start = 4 + 4 * raw[3]
    if len(raw) < start:
        raise DataError(
            f"{source} ends after {len(raw)} bytes, within its header of {start} bytes; "
            f"{REINSTALL}."
        )
    shape: tuple[int, ...] = struct.unpack(f">{raw[3]}I", raw[4:start])
    if len(raw) != start + math.prod(shape):
        raise DataError(
            f"{source} holds {len(raw) - start} bytes of values, but its header says the shape "
            f"{shape}, which needs {math.prod(shape)}; {REINSTALL}."
        )
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)
